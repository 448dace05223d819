"""ONNX Runtime on a GPU: runs ONNX graphs directly, for GPUs and components that have no engine.

Inputs that do not change stay on the GPU from run to run, and a video can be turned into frames there.
"""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ltx_runtime.errors import LtxError, one_line
from ltx_runtime.folder.manifest import Engines
from ltx_runtime.packages import install_command, replace_command
from ltx_runtime.sessions import BACKENDS, Arrays, UnsupportedError, graph_found
from ltx_runtime.sessions.cuda.frames import FRAMES, VIDEO, FramesOfVideo
from ltx_runtime.sessions.cuda.gpu import find_gpu
from ltx_runtime.sessions.cuda.memory import GpuMemoryError
from ltx_runtime.sessions.found import Found
from ltx_runtime.sessions.merged_weights import put_into_session
from ltx_runtime.spec.components import ComponentName
from ltx_runtime.weights.merging import merged

# The official VAE computes in bf16; it is not known whether its values fit into fp16. The CUDA provider has no kernel
# for what upsamplers do in bf16 (`DepthToSpace` of 1.31.1), and those take little time.
_PRECISIONS: dict[ComponentName, tuple[str, ...]] = {
    "vae_decoder": ("bf16", "fp32", "fp16"),
    "vae_encoder": ("bf16", "fp32", "fp16"),
    "upsampler": ("fp32", "fp16", "bf16"),
    "temporal_upsampler": ("fp32", "fp16", "bf16"),
}
_FIRST_BF16 = (8, 0)
_PROVIDER, _DEVICE = "CUDAExecutionProvider", "cuda"
_NO_MEMORY = re.compile(r"allocate memory|bad.?alloc|out of memory|available memory", re.IGNORECASE)
_SILENT = 4


def find(engines: Engines, name: ComponentName, backend: str) -> Found:
    """Returns the graph of a component in the first precision that suits the GPU.

    Raises:
        LtxError: this ONNX Runtime has no CUDA provider, there is no GPU, or there is no graph; the message says which.
    """
    providers = _onnxruntime().get_available_providers()
    if _PROVIDER not in providers:
        raise LtxError("this onnxruntime is without CUDA", command=replace_command(("onnxruntime",), "gpu"))
    gpu = find_gpu()
    precisions = _PRECISIONS.get(name, BACKENDS[backend].precisions)
    if gpu.compute_capability < _FIRST_BF16:
        precisions = tuple(precision for precision in precisions if precision != "bf16")
    return replace(graph_found(engines, name, backend, precisions), gpu_bytes=gpu.memory_bytes)


def _onnxruntime() -> Any:
    """Imports and returns ONNX Runtime.

    Raises:
        LtxError: ONNX Runtime is not installed.
    """
    try:
        import onnxruntime  # noqa: PLC0415  (so that the error names the missing package)
    except ImportError:
        raise LtxError("onnxruntime is not installed", command=install_command("gpu")) from None
    return onnxruntime


class CudaRunner:
    """One graph in ONNX Runtime's CUDA execution provider."""

    def __init__(self, found: Found) -> None:
        """Loads the graph.

        Raises:
            GpuMemoryError: the graph does not fit into the GPU's memory.
            UnsupportedError: ONNX Runtime cannot run the graph on this GPU; the message has its reason.
        """
        self._library, self._name, self._graph = _onnxruntime(), found.component.name, found.path
        options = self._library.SessionOptions()
        options.log_severity_level = _SILENT
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(found.weights))
        # Sizes change from run to run: the arena grows by what is needed, and cuDNN does not benchmark every size.
        settings = {
            "device_id": "0",
            "arena_extend_strategy": "kSameAsRequested",
            "cudnn_conv_algo_search": "HEURISTIC",
        }
        if found.gpu_memory_bytes is not None:
            settings["gpu_mem_limit"] = str(found.gpu_memory_bytes)
        self._merged = {} if found.merging is None else merged(found.merging)  # the session uses their memory
        put_into_session(self._library, options, self._merged)
        self._provider = (_PROVIDER, settings if _DEVICE == "cuda" else {})
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # it prints which libraries it does not find
                if hasattr(self._library, "preload_dlls"):  # CUDA and cuDNN may be Python packages
                    self._library.preload_dlls()
                self._session: Any = self._library.InferenceSession(
                    found.path.read_bytes(), options, providers=[self._provider], enable_fallback=0
                )
        except Exception as error:  # it raises many types, and none for this case alone
            raise self._out_of_memory(error) or UnsupportedError(
                f"ONNX Runtime cannot run {found.path} on the GPU ({one_line(error)})", "use --backend cpu"
            ) from None
        if _PROVIDER not in self._session.get_providers():  # it continues without it and only logs that
            raise UnsupportedError(
                "ONNX Runtime finds no CUDA and cuDNN to use", "use --backend cpu", install_command("gpu")
            )
        outputs = [output.name for output in self._session.get_outputs()]
        self.outputs: Sequence[str] = [*outputs, *FRAMES] if VIDEO in outputs else outputs
        self._frames: FramesOfVideo | None = None
        self._binding: Any = self._session.io_binding()
        self._kept: dict[str, tuple[NDArray[Any], Any]] = {}
        self._has_run = False

    def run(self, feeds: Arrays, wanted: Sequence[str]) -> dict[str, NDArray[Any]]:
        """Runs the graph once.

        Raises:
            GpuMemoryError: there is too little GPU memory; smaller inputs may fit.
            UnsupportedError: it is the first run, and ONNX Runtime has no kernel for a node, or none for its sizes:
                it finds that out only now.
            LtxError: a later run fails.
        """
        of_frames = [name for name in wanted if name in FRAMES]
        computed = [name for name in wanted if name not in FRAMES]
        places = dict.fromkeys(computed, "cpu") | ({VIDEO: _DEVICE} if of_frames else {})
        options = self._library.RunOptions()
        options.log_severity_level = _SILENT
        self._binding.clear_binding_outputs()
        try:
            for name, array in feeds.items():
                self._bind(name, array)
            for name, place in places.items():
                self._binding.bind_output(name, place)
            self._session.run_with_iobinding(self._binding, options)
            values = dict(zip(places, self._binding.get_outputs(), strict=True))
            made = {name: values[name].numpy() for name in computed}
            if of_frames:
                self._frames = self._frames or FramesOfVideo(self._library, self._provider)
                made |= self._frames.run(values[VIDEO], of_frames)
        except Exception as error:
            refusal = LtxError if self._has_run else UnsupportedError
            raise self._out_of_memory(error) or refusal(
                f"ONNX Runtime cannot run {self._graph} on the GPU ({one_line(error)})", "try --backend cpu"
            ) from error
        finally:
            self._binding.clear_binding_outputs()
        self._has_run = True
        return made

    def _bind(self, name: str, array: NDArray[Any]) -> None:
        """Uploads an input, unless it is the same read-only array as in the previous run."""
        previous = self._kept.get(name)
        if previous is None or previous[0] is not array:
            value = self._library.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array), _DEVICE, 0)
            self._binding.bind_ortvalue_input(name, value)
            self._kept[name] = (array, value)
            if array.flags.writeable:
                self._kept[name] = (_NO_ARRAY, value)

    def _out_of_memory(self, error: Exception) -> GpuMemoryError | None:
        if not _NO_MEMORY.search(str(error)):
            return None
        return GpuMemoryError(
            f"{self._name} does not fit into the GPU's memory ({one_line(error)})",
            "ask for less, give a smaller --memory, or use --backend cpu",
        )

    def close(self) -> None:
        """Frees the weights and buffers."""
        self._kept.clear()
        self._binding = self._session = self._frames = None
        self._merged = {}


_NO_ARRAY: NDArray[Any] = np.empty(0)


def load(found: Found) -> CudaRunner:
    """Loads a graph.

    Raises:
        LtxError: the graph does not fit into the GPU's memory, or ONNX Runtime cannot run it on this GPU.
    """
    return CudaRunner(found)
