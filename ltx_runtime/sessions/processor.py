"""What this machine's processor and memory are, and in which precision its products of matrices are fastest."""

from __future__ import annotations

import json
import platform
import re
import shutil
import time
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from ltx_runtime.files import cache_folder, written_whole
from ltx_runtime.folder.manifest import QUANTIZED, QUANTIZED_BLOCK

# OpenVINO's setting for the number of activations that share a scale, where weights are q8: the same as of weights.
GROUP = "DYNAMIC_QUANTIZATION_GROUP_SIZE"
_ROWS, _WIDTH, _LAYERS, _RUNS = 256, 1024, 4, 12
_KEPT = "speedups.json"


def processor_name(file: Path = Path("/proc/cpuinfo")) -> str:
    """Returns the processor's name from /proc/cpuinfo, or its architecture if the system has no such file."""
    with suppress(OSError):
        match = re.search(r"^model name\s*:\s*(.+)$", file.read_text(), re.MULTILINE)
        if match:
            return match[1].strip()
    return platform.processor() or platform.machine()


def memory_sizes(file: Path = Path("/proc/meminfo")) -> dict[str, int]:
    """Returns the sizes in /proc/meminfo in bytes, by name; empty if the system has no such file."""
    try:
        rows = re.findall(r"^(\w+):\s+(\d+) kB$", file.read_text(), re.MULTILINE)
    except OSError:
        return {}
    return {name: int(size) << 10 for name, size in rows}


def has_nvidia_driver() -> bool:
    """Returns whether an NVIDIA driver is installed, as far as can be seen without CUDA."""
    return Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi") is not None


def speedups() -> dict[str, float]:
    """Returns how many times faster OpenVINO multiplies matrices here in bf16 and in q8 than in fp32, by precision.

    Having the instructions is not enough: processors with AVX512-BF16 but without AMX may be slower in bf16, and q8 is
    slow without VNNI. The measurement takes about a second, and is kept in the cache for this processor and this
    version of OpenVINO. A precision that the processor does not have is left out.
    """
    key, folder = f"{processor_name()}, OpenVINO {metadata.version('openvino')}", cache_folder()
    kept = _kept(folder)
    if key not in kept:
        kept[key] = _measured()
        if folder is not None:
            with suppress(OSError):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                with written_whole(folder / _KEPT) as temporary:
                    temporary.write_text(json.dumps(kept))
    return kept[key]


def _kept(folder: Path | None) -> dict[str, dict[str, float]]:
    """Returns earlier measurements by processor and version; none if they cannot be read."""
    if folder is None:
        return {}
    try:
        data = json.loads((folder / _KEPT).read_text())
        return {str(key): {str(name): float(x) for name, x in row.items()} for key, row in data.items()}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}


def _measured() -> dict[str, float]:
    import openvino  # noqa: PLC0415  (takes 0.2 s, and the result is usually in the cache)

    core = openvino.Core()
    has_bf16 = "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    seconds = {name: _seconds(openvino, core, name) for name in ("fp32", QUANTIZED, *(["bf16"] if has_bf16 else []))}
    return {name: seconds["fp32"] / seconds[name] for name in seconds if name != "fp32"}


def _seconds(openvino: Any, core: Any, precision: str) -> float:
    """Returns the least time of a few layers that are as wide as half a 2B transformer."""
    operators = openvino.opset13
    x = inputs = operators.parameter([_ROWS, _WIDTH], np.float32)
    for seed in range(_LAYERS):
        shape = _WIDTH // QUANTIZED_BLOCK, QUANTIZED_BLOCK, _WIDTH
        codes = np.random.RandomState(seed).randint(-127, 128, shape).astype(np.int8)
        scales = np.full((len(codes), 1, _WIDTH), 1 / (64 * _WIDTH**0.5), np.float32)  # keeps the size of activations
        if precision == QUANTIZED:
            matrix = operators.multiply(operators.convert(operators.constant(codes), "f32"), operators.constant(scales))
        else:
            matrix = operators.constant(codes * scales)
        square = operators.reshape(matrix, operators.constant(np.array([_WIDTH, _WIDTH])), False)
        x = operators.matmul(x, square, False, False)
    hint = "bf16" if precision == "bf16" else "f32"
    settings = {"INFERENCE_PRECISION_HINT": hint, "PERFORMANCE_HINT": "LATENCY", GROUP: QUANTIZED_BLOCK}
    request = core.compile_model(openvino.Model([x], [inputs]), "CPU", settings).create_infer_request()
    feeds = [np.random.RandomState(_LAYERS).standard_normal((_ROWS, _WIDTH)).astype(np.float32)]
    seconds = []
    for _ in range(_RUNS + 1):
        started = time.perf_counter()
        request.infer(feeds)
        seconds.append(time.perf_counter() - started)
    return min(seconds[1:])  # the first run packs the weights
