"""What this machine's processor and memory are, and whether bf16 arithmetic is faster on it than fp32."""

from __future__ import annotations

import json
import platform
import re
import time
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from ltx_runtime.files import cache_folder, written_whole

_ROWS, _WIDTH, _LAYERS, _RUNS = 256, 1024, 4, 5
_KEPT = "bf16.json"


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


def bf16_speedup() -> float:
    """Returns how many times faster OpenVINO multiplies matrices in bf16 than in fp32 here; 0 if it has no bf16.

    Having the instructions is not enough: processors with AVX512-BF16 but without AMX may be slower in bf16. The
    measurement takes under a second, and is kept in the cache for this processor and this version of OpenVINO.
    """
    key, folder = f"{processor_name()}, OpenVINO {metadata.version('openvino')}", cache_folder()
    kept: dict[str, float] = {}
    if folder is not None:
        with suppress(OSError, ValueError, AttributeError, TypeError):
            kept = {str(name): float(speedup) for name, speedup in json.loads((folder / _KEPT).read_text()).items()}
    if key not in kept:
        kept[key] = _measured()
        if folder is not None:
            with suppress(OSError):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                with written_whole(folder / _KEPT) as temporary:
                    temporary.write_text(json.dumps(kept))
    return kept[key]


def _measured() -> float:
    import openvino  # noqa: PLC0415  (takes 0.2 s, and the result is usually in the cache)

    core = openvino.Core()
    if "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        return 0.0
    return _seconds(openvino, core, "f32") / _seconds(openvino, core, "bf16")


def _seconds(openvino: Any, core: Any, precision: str) -> float:
    """Returns the least time of a few layers of the width of a small transformer."""
    operators = openvino.opset13
    x = inputs = operators.parameter([_ROWS, _WIDTH], np.float32)
    for seed in range(_LAYERS):
        weights = np.random.RandomState(seed).standard_normal((_WIDTH, _WIDTH)).astype(np.float32) / _WIDTH**0.5
        x = operators.matmul(x, operators.constant(weights), False, False)
    settings = {"INFERENCE_PRECISION_HINT": precision, "PERFORMANCE_HINT": "LATENCY"}
    request = core.compile_model(openvino.Model([x], [inputs]), "CPU", settings).create_infer_request()
    feeds = [np.random.RandomState(_LAYERS).standard_normal((_ROWS, _WIDTH)).astype(np.float32)]
    seconds = []
    for _ in range(_RUNS + 1):
        started = time.perf_counter()
        request.infer(feeds)
        seconds.append(time.perf_counter() - started)
    return min(seconds[1:])  # the first run packs the weights
