"""Finds out this machine's processor and memory, and in which precision it multiplies matrices fastest."""

from __future__ import annotations

import json
import os
import platform
import re
import time
from contextlib import suppress
from functools import cache
from importlib import metadata
from math import inf
from pathlib import Path
from typing import Any

import numpy as np

from ltx_runtime.files import cache_folder, written_whole
from ltx_runtime.folder.manifest import QUANTIZED, QUANTIZED_BLOCK

# OpenVINO's setting for the number of activations that share a scale, where weights are q8: the same as of weights.
GROUP = "DYNAMIC_QUANTIZATION_GROUP_SIZE"
_ROWS, _WIDTH, _LAYERS, _RUNS = 256, 1024, 4, 12
_KEPT = "speedups.json"
# Files of a container's memory in control groups of version 2 and 1: used, limit, statistics, and its row of files.
_VERSION_1 = "memory/memory.usage_in_bytes", "memory/memory.limit_in_bytes", "memory/memory.stat", "total_inactive_file"
_CONTROL_GROUPS = (("memory.current", "memory.max", "memory.stat", "inactive_file"), _VERSION_1)


def processor_name(file: Path = Path("/proc/cpuinfo")) -> str:
    """Returns the processor's name from /proc/cpuinfo, or its architecture if the system has no such file."""
    with suppress(OSError):
        match = re.search(r"^model name\s*:\s*(.+)$", file.read_text(), re.MULTILINE)
        if match:
            return match[1].strip()
    return platform.processor() or platform.machine()


def cores() -> int:
    """Returns the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS and Windows
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def memory_bytes() -> tuple[int, int]:
    """Returns how many bytes of memory the machine has, and how many of them programs may still take."""
    import psutil  # noqa: PLC0415  (native code, which only those who ask need)

    memory = psutil.virtual_memory()
    return int(memory.total), int(memory.available)


def total_memory(group: Path = Path("/sys/fs/cgroup")) -> int:
    """Returns how many bytes of memory this machine has, or its container on Linux if that may take fewer."""
    total, _ = memory_bytes()
    for _, limit_name, _, _ in _CONTROL_GROUPS:
        with suppress(OSError, ValueError):  # no container, or one without a limit ("max")
            total = min(total, int((group / limit_name).read_text()))
    return total


def free_memory(group: Path = Path("/sys/fs/cgroup")) -> int:
    """Returns how many bytes of memory this process may still take, in a container of Linux too.

    What a container holds of files counts as free, as it does for the whole machine.
    """
    _, free = memory_bytes()
    for used_name, limit_name, stat_name, files_name in _CONTROL_GROUPS:
        try:
            used, limit = int((group / used_name).read_text()), int((group / limit_name).read_text())
            files = re.search(rf"^{files_name} (\d+)$", (group / stat_name).read_text(), re.MULTILINE)
        except (OSError, ValueError):  # no container, or one without a limit ("max")
            continue
        free = min(free, limit - used + (int(files[1]) if files else 0))
    return free


def speedups() -> dict[str, float]:
    """Returns how many times faster OpenVINO multiplies matrices here in bf16 and in q8 than in fp32, by precision.

    Having the instructions is not enough: processors with AVX512-BF16 but without AMX may be slower in bf16, and q8 is
    slow without VNNI. The measurement takes about a second, and is kept in the cache for this processor and this
    version of OpenVINO. A precision that the processor does not have is left out.
    """
    cores, folder = os.cpu_count() or 1, cache_folder()
    key = f"{processor_name()}, {cores} cores, OpenVINO {metadata.version('openvino')}"
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
        rows = {str(key): {str(name): float(x) for name, x in row.items()} for key, row in data.items()}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}
    return {key: row for key, row in rows.items() if QUANTIZED in row and all(0 < x < inf for x in row.values())}


@cache
def _measured() -> dict[str, float]:
    import openvino  # noqa: PLC0415  (takes 0.2 s, and the result is usually in the cache)

    core = openvino.Core()
    has_bf16 = "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    requests = {name: _request(openvino, core, name) for name in ("fp32", QUANTIZED, *(["bf16"] if has_bf16 else []))}
    feeds = [np.random.RandomState(_LAYERS).standard_normal((_ROWS, _WIDTH)).astype(np.float32)]
    seconds: dict[str, list[float]] = {name: [] for name in requests}
    for _ in range(_RUNS + 1):  # in turns, so that other work hits all of them
        for name, request in requests.items():
            started = time.perf_counter()
            request.infer(feeds)
            seconds[name].append(time.perf_counter() - started)
    least = {name: min(times[1:]) for name, times in seconds.items()}  # the first run packs the weights
    return {name: least["fp32"] / least[name] for name in least if name != "fp32"}


@cache
def saturates() -> bool:
    """Returns whether products of two 8-bit integers are wrong here, as they may be where sums have 16 bits."""
    import openvino  # noqa: PLC0415  (takes 0.2 s)

    operators, (rows, width) = openvino.opset13, (16, 256)
    x = operators.parameter([rows, width], np.float32)
    ends = [operators.constant(np.float32(value)) for value in (-128, 127)]
    codes = operators.convert(operators.constant(np.full((width, width), 127, np.int8)), "f32")
    matrix = operators.multiply(codes, operators.constant(np.ones((width, 1), np.float32)))
    product = operators.matmul(operators.fake_quantize(x, *ends, *ends, 256), matrix, False, True)
    settings = {"INFERENCE_PRECISION_HINT": "f32"}
    request = openvino.Core().compile_model(openvino.Model([product], [x]), "CPU", settings).create_infer_request()
    results = [request.infer([np.full((rows, width), value, np.float32)])[0] for value in (-128, 127)]
    expected = [value * 127 * width for value in (-128, 127)]
    return not all(np.allclose(result, value) for result, value in zip(results, expected, strict=True))


def _request(openvino: Any, core: Any, precision: str) -> Any:
    """Returns a compiled request of a few layers that are half as wide as a 2B transformer."""
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
    return core.compile_model(openvino.Model([x], [inputs]), "CPU", settings).create_infer_request()
