"""Made-up machines and version folders for the doctor's tests: plain data, without libraries or a GPU."""

from ltx_runtime.doctor.folders import ComponentFacts, EngineFile, FolderFacts, Saying
from ltx_runtime.doctor.machine import GpuFacts, Library, Machine, System
from ltx_runtime.sessions.trt.library import RTX_CAPABILITIES

EXTRAS = {"tensorrt": "tensorrt", "tensorrt_rtx": "tensorrt-rtx"}
TITLES = {"tensorrt": "TensorRT", "tensorrt_rtx": "TensorRT-RTX"}
PLAIN = {"cuda.bindings.runtime": "cuda-bindings", "onnxruntime": "onnxruntime", "av": "av", "numpy": "numpy"}
PLAIN |= {"sentencepiece": "sentencepiece", "openvino": "openvino"}
RTX_4090, H100, GTX_1080 = (8, 9), (9, 0), (6, 1)


def machine(
    capability=None, absent=(), broken=(), providers=("CPUExecutionProvider",), clashing=(), driver=None, problem=""
):
    """Returns a machine with every library but those `absent` or `broken`, and a GPU if `capability` is given.

    driver: whether an NVIDIA driver is visible; by default if there is a GPU.
    problem: why CUDA cannot use the GPU.
    """
    gpu = GpuFacts(problem="there is no NVIDIA GPU")
    if capability:
        gpu = GpuFacts("NVIDIA Test", capability, "13.0", 24 << 30, 20 << 30, problem)

    def library(name, module, package, **told):
        if module in absent:
            return Library(name, module, package, False)
        problem = "libnv.so: cannot open" if module in broken else ""
        return Library(name, module, package, True, "1.2", problem, **told)

    def serves(module):
        if capability is None or problem:
            return None
        return capability in RTX_CAPABILITIES if module == "tensorrt_rtx" else capability >= (7, 5)

    libraries = [library(TITLES[m], m, EXTRAS[m], serves_gpu=None if m in broken else serves(m)) for m in EXTRAS]
    libraries += [
        library(package, m, package, **({"providers": providers} if m == "onnxruntime" else {}))
        for m, package in PLAIN.items()
    ]
    seen = bool(capability) if driver is None else driver
    system = System("Linux 6", "A processor", 8, 32 << 30, 16 << 30, "3.11.7", seen)
    return Machine(system, gpu, tuple(libraries), tuple(clashing))


def engine(component, problem=""):
    """Returns an engine of TensorRT-RTX, which is usable if it has no problem."""
    path = f"portable-tensorrt_rtx-1.2/{component}.bf16.engine"
    rebuild = f"ltx-export engine demo --component {component} --force" if problem else ""
    sizes = ("1 to 97 frames of 64x64 to 512x512",)
    return EngineFile(
        path, component, 48_000_000, "tensorrt_rtx 1.2", "bf16", "inputs", sizes, 1.2e-3, problem, rebuild
    )


def folder(
    chosen="cpu",
    components=("transformer", "vae_decoder"),
    problem="",
    engines=(),
    precisions=("fp32", "bf16", "q8"),
    **different,
):
    """Returns a version folder of the demo whose components run on one backend, except those in `different`."""

    def component(name):
        backend = different.get(name, chosen)
        sayings = (
            Saying("tensorrt", backend == "tensorrt", f"no engine of {name}"),
            Saying("cpu", True, f"{name}.onnx"),
        )
        own = tuple(one for one in engines if one.component == name)
        return ComponentFacts(name, precisions, sayings, backend, own)

    made = () if problem else tuple(component(name) for name in components)
    return FolderFacts("engines/demo", "demo", 1_500_000_000, problem, made)
