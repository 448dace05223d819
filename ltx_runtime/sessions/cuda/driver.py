"""Asks the NVIDIA driver for its GPUs through nvidia-ml-py; needs neither CUDA's libraries nor memory of a GPU."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ltx_runtime.sessions.cuda.gpu import Gpu

_VISIBLE = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True)
class DriverGpu:
    """A GPU as the driver describes it, and its free memory in bytes; None if only a part of the GPU is CUDA's."""

    gpu: Gpu
    free_bytes: int | None


def has_nvidia_driver() -> bool:
    """Returns whether an NVIDIA driver is installed, as far as can be seen without CUDA."""
    with _nvml() as nvml:
        # A container may have the driver without its management library.
        return nvml is not None or Path("/proc/driver/nvidia/version").exists()


def driver_gpu(bus_id: bytes | None = None) -> DriverGpu | None:
    """Returns a GPU as the driver describes it; None if there is none, or if the driver does not tell.

    Args:
        bus_id: CUDA's PCI bus id of the GPU; None for the first GPU that CUDA_VISIBLE_DEVICES allows.
    """
    with _nvml() as nvml:
        if nvml is None:
            return None
        try:
            handle = _first_visible(nvml) if bus_id is None else nvml.nvmlDeviceGetHandleByPciBusId(bus_id)
            return None if handle is None else _described(nvml, handle)
        except nvml.NVMLError:
            return None


def visible_gpus() -> list[str]:
    """Returns the GPUs that CUDA_VISIBLE_DEVICES allows, each as a value of it for a process that is to see it alone.

    What the variable lists is returned as it is; without it, every GPU is named by its UUID, since CUDA and the driver
    may number them differently.
    """
    visible = os.environ.get(_VISIBLE)
    if not has_nvidia_driver():
        return []
    if visible is not None:
        names = [name.strip() for name in visible.split(",")]
        return names[: next((place for place, name in enumerate(names) if name in ("", "-1")), len(names))]
    with _nvml() as nvml:
        if nvml is None:
            return []
        try:
            handles = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(int(nvml.nvmlDeviceGetCount()))]
            return [_text(nvml.nvmlDeviceGetUUID(handle)) for handle in handles]
        except nvml.NVMLError:
            return []


@contextmanager
def _nvml() -> Iterator[Any]:
    """Yields the initialized module of nvidia-ml-py; None where it or the driver's library is missing."""
    try:
        import pynvml  # noqa: PLC0415  (only where somebody asks for a driver)

        pynvml.nvmlInit()
    except Exception:  # not installed, as on macOS, or no driver
        yield None
        return
    try:
        yield pynvml
    finally:
        pynvml.nvmlShutdown()


def _first_visible(nvml: Any) -> Any:
    """Returns the handle of the first GPU that CUDA_VISIBLE_DEVICES allows; None if it allows none."""
    visible = os.environ.get(_VISIBLE)
    first = "0" if visible is None else visible.split(",")[0].strip()
    if first.isdecimal():
        count = int(nvml.nvmlDeviceGetCount())
        return nvml.nvmlDeviceGetHandleByIndex(int(first)) if int(first) < count else None
    return nvml.nvmlDeviceGetHandleByUUID(first) if first.startswith("GPU-") else None


def _described(nvml: Any, handle: Any) -> DriverGpu:
    name, cuda = nvml.nvmlDeviceGetName(handle), int(nvml.nvmlSystemGetCudaDriverVersion_v2())
    major, minor = nvml.nvmlDeviceGetCudaComputeCapability(handle)
    memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    gpu = Gpu(
        _text(name),
        (int(major), int(minor)),
        f"{cuda // 1000}.{cuda % 1000 // 10}",
        int(memory.total),
    )
    return DriverGpu(gpu, None if _is_split(nvml, handle) else int(memory.free))


def _text(name: bytes | str) -> str:
    """Returns a text of the driver, which older releases of nvidia-ml-py return as bytes."""
    return name.decode() if isinstance(name, bytes) else name


def _is_split(nvml: Any, handle: Any) -> bool:
    """Returns whether the GPU is split into instances (MIG), of which CUDA sees only one."""
    try:
        return bool(nvml.nvmlDeviceGetMigMode(handle)[0])
    except nvml.NVMLError:  # a GPU that cannot be split
        return False
