"""Laws of examining a machine: whatever is broken is reported and never raised."""

import sys
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace

import pytest
from stand_ins.nvml import nvml

from ltx_runtime.doctor import machine as doctor_machine
from ltx_runtime.doctor.machine import GpuFacts, look
from ltx_runtime.errors import LtxError
from ltx_runtime.sessions.cuda.gpu import Gpu
from ltx_runtime.sessions.trt.library import RTX_CAPABILITIES, serves_gpu

GPU = Gpu("NVIDIA Test", (8, 9), "13.0", 24 << 30)
RUNTIME = "cuda.bindings.runtime"
EVERY_MODULE = pytest.mark.parametrize(
    "module", ["tensorrt", "tensorrt_rtx", RUNTIME, "onnxruntime", "av", "numpy", "sentencepiece"]
)


class Panic(BaseException):
    """Exception of the kind that extensions written in Rust raise."""


@dataclass
class BreaksAtImport:
    """Import finder that raises for one module."""

    module: str
    error: BaseException

    def find_spec(self, name, path=None, target=None):
        if name == self.module:
            raise self.error


@pytest.fixture
def install(monkeypatch):
    """Replaces a package with a module, with an error that its import raises, or with None for nothing."""

    def install(module, found):
        if isinstance(found, BaseException):
            packages = module.split(".")[:-1]
            for depth in range(len(packages)):  # parent packages may be absent here
                package = ".".join(packages[: depth + 1])
                monkeypatch.setitem(sys.modules, package, module_of(package, __path__=[]))
            monkeypatch.delitem(sys.modules, module, raising=False)
            monkeypatch.setattr(sys, "meta_path", [BreaksAtImport(module, found), *sys.meta_path])
        else:
            monkeypatch.setitem(sys.modules, module, found)

    return install


@pytest.fixture
def gpu(install):
    """Replaces find_gpu with a function."""

    def gpu(find_gpu):
        install("ltx_runtime.sessions.cuda.gpu", module_of("cuda", find_gpu=find_gpu))

    gpu(lambda: GPU)
    return gpu


def module_of(name, **members):
    module = ModuleType(name)
    vars(module).update(members)
    return module


def raising(error):
    def raises(*_):
        raise error

    return raises


def rtx(*targets, version="1.7"):
    """Returns a module TensorRT-RTX that can compile for these targets."""
    capabilities = SimpleNamespace(__members__=dict.fromkeys(targets))
    return module_of("tensorrt_rtx", __version__=version, IRuntimeCache=object, ComputeCapability=capabilities)


def test_a_gpu_is_told_as_it_was_found(gpu, install):
    install(RUNTIME, module_of("runtime", cudaDeviceGetPCIBusId=lambda length, device: (0, b"0000:01:00.0\0")))
    install("pynvml", nvml())
    machine, found = look()
    assert found == GPU
    assert (machine.gpu.name, machine.gpu.compute_capability, machine.gpu.driver) == ("NVIDIA Test", (8, 9), "13.0")
    assert (machine.gpu.free_bytes, machine.gpu.memory_bytes, machine.gpu.problem) == (20 << 30, 24 << 30, "")


@pytest.mark.parametrize(
    "asked",
    [lambda *_: (2, None), lambda *_: (0, b"0000:09:00.0"), raising(RuntimeError("no device")), lambda *_: None],
    ids=["an error", "another GPU", "raises", "nothing"],
)
def test_free_memory_that_cannot_be_told_is_left_out(gpu, install, asked):
    install("pynvml", nvml())
    install(RUNTIME, module_of("runtime", cudaDeviceGetPCIBusId=asked))
    assert look()[0].gpu.free_bytes is None


def test_a_gpu_that_cuda_cannot_use_is_told_as_the_driver_tells_it(gpu, install):
    gpu(raising(LtxError("cuda-bindings cannot be loaded")))
    install("pynvml", nvml())
    machine, found = look()
    assert found is None
    assert machine.gpu == GpuFacts("NVIDIA Test", (8, 9), "13.0", 24 << 30, 20 << 30, "cuda-bindings cannot be loaded")
    assert machine.system.nvidia_driver


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (LtxError("the driver is too old - update it"), "the driver is too old - update it"),
        (ModuleNotFoundError("cuda", name="cuda.bindings"), "cuda.bindings is not installed"),
        (RuntimeError("libcuda\n is half there"), "libcuda is half there"),
    ],
)
def test_why_there_is_no_gpu_is_told_in_one_line(gpu, error, said):
    gpu(raising(error))
    machine, found = look()
    assert found is None and machine.gpu.compute_capability is None
    assert said in machine.gpu.problem and "\n" not in machine.gpu.problem


@EVERY_MODULE
@pytest.mark.parametrize(
    "error", [ImportError("libx.so:\n no such file"), RuntimeError("bad"), SystemExit(3), Panic("rust"), OSError()]
)
def test_a_package_that_raises_at_import_is_installed_and_does_not_load(gpu, install, module, error):
    install(module, error)
    library = look()[0].library(module)
    assert library.installed and not library.loads
    assert library.problem and "\n" not in library.problem


@EVERY_MODULE
def test_a_package_that_is_not_there_is_not_installed(gpu, install, module):
    install(module, None)
    library = look()[0].library(module)
    assert not library.installed and not library.loads and library.problem == ""


def test_a_package_that_lacks_another_is_broken_and_not_missing(gpu, install):
    install("onnxruntime", ModuleNotFoundError("No module named 'flatbuffers'", name="flatbuffers"))
    library = look()[0].library("onnxruntime")
    assert library.installed and "flatbuffers" in library.problem


def test_ctrl_c_while_a_package_loads_is_no_finding(gpu, install):
    install("av", KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        look()


def test_onnx_runtime_s_providers_are_told(gpu, install):
    providers = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    install("onnxruntime", module_of("onnxruntime", __version__="9.9", get_available_providers=lambda: providers))
    library = look()[0].library("onnxruntime")
    assert library.providers == tuple(providers) and library.version == "9.9" and library.loads


@pytest.mark.parametrize("members", [{}, {"get_available_providers": raising(RuntimeError("mixed files"))}])
def test_an_onnx_runtime_that_another_overwrote_does_not_load(gpu, install, members):
    install("onnxruntime", module_of("onnxruntime", **members))
    assert look()[0].library("onnxruntime").problem


def test_a_library_that_compiles_at_run_time_serves_what_it_can_be_told_to_compile_for():
    library = rtx("NONE", "SM89", "SM130")
    assert serves_gpu(library, (8, 9)) and serves_gpu(library, (13, 0))
    assert not serves_gpu(library, (9, 0))


def test_an_older_one_that_cannot_be_asked_serves_what_is_documented():
    library = module_of("tensorrt_rtx", IRuntimeCache=object)
    assert all(serves_gpu(library, capability) for capability in RTX_CAPABILITIES)
    assert not serves_gpu(library, (9, 0)) and not serves_gpu(library, (6, 1))


def test_tensorrt_serves_turing_and_later():
    library = module_of("tensorrt")
    assert [serves_gpu(library, one) for one in ((7, 0), (7, 5), (9, 0), (12, 0))] == [False, True, True, True]


def test_a_builder_is_asked_about_this_gpu_and_about_none_if_there_is_none(gpu, install):
    install("tensorrt_rtx", rtx("SM89"))
    assert look()[0].library("tensorrt_rtx").serves_gpu is True
    install("tensorrt_rtx", rtx("SM120"))
    assert look()[0].library("tensorrt_rtx").serves_gpu is False
    gpu(raising(LtxError("no GPU")))
    assert look()[0].library("tensorrt_rtx").serves_gpu is None


@pytest.mark.parametrize(
    ("installed", "clashing"),
    [
        ([], ()),
        (["onnxruntime"], ()),
        (["onnxruntime-gpu"], ()),
        (["onnxruntime-gpu", "onnxruntime"], ("onnxruntime", "onnxruntime-gpu")),
    ],
)
def test_packages_that_overwrite_each_other_are_told(gpu, monkeypatch, installed, clashing):
    monkeypatch.setattr(doctor_machine, "_version_of", lambda package: "1" if package in installed else "")
    assert look()[0].clashing == clashing


def test_the_system_is_told(gpu):
    system = look()[0].system
    assert system.os and system.processor and system.cores >= 1
    assert system.python == ".".join(map(str, sys.version_info[:3]))
