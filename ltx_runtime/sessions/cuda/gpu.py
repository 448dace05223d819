"""Finds the first GPU with the CUDA runtime, through cuda-bindings."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

from ltx_runtime.errors import LtxError
from ltx_runtime.packages import install_command

SUCCESS = 0


@dataclass(frozen=True)
class Gpu:
    """A CUDA device.

    Attributes:
        name: name as the driver reports it, e.g. "NVIDIA GeForce RTX 4090".
        compute_capability: major and minor number, e.g. (8, 9).
        driver: the CUDA version that the driver supports, e.g. "13.0".
        memory_bytes: total memory of the device.
    """

    name: str
    compute_capability: tuple[int, int]
    driver: str
    memory_bytes: int


def cuda_runtime() -> Any:
    """Imports and returns the CUDA runtime's module of cuda-bindings.

    Raises:
        LtxError: cuda-bindings is not installed or cannot be loaded.
    """
    try:
        return importlib.import_module("cuda.bindings.runtime")
    except Exception as error:  # a package without its shared libraries can raise anything
        reason = " ".join(str(error).split())
        raise LtxError(f"cuda-bindings cannot be loaded ({reason})", command=install_command("gpu")) from None


def error_name(cudart: Any, error: Any) -> str:
    """Returns CUDA's name of an error code."""
    return str(cudart.cudaGetErrorName(error)[1].decode())


def find_gpu() -> Gpu:
    """Returns the first GPU that CUDA_VISIBLE_DEVICES allows.

    Raises:
        LtxError: there is no GPU, no driver, or only a driver that is too old; the message says which.
    """
    cudart = cuda_runtime()
    error, count = cudart.cudaGetDeviceCount()
    if int(error) != SUCCESS:
        raise _without_gpu(cudart, error_name(cudart, error))
    if not count:
        raise _without_gpu(cudart, "cudaErrorNoDevice")
    error, properties = cudart.cudaGetDeviceProperties(0)
    if int(error) != SUCCESS:
        raise _without_gpu(cudart, error_name(cudart, error))
    return Gpu(
        properties.name.rstrip(b"\0").decode(),
        (properties.major, properties.minor),
        _version(cudart.cudaDriverGetVersion()[1]),
        properties.totalGlobalMem,
    )


def _version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"


def _without_gpu(cudart: Any, name: str) -> LtxError:
    error, driver = cudart.cudaDriverGetVersion()
    if int(error) != SUCCESS or not driver:
        return LtxError("there is no NVIDIA driver", "use a machine with an NVIDIA GPU, or install its driver")
    if name in ("cudaErrorInsufficientDriver", "cudaErrorCallRequiresNewerDriver"):
        runtime = _version(cudart.cudaRuntimeGetVersion()[1])
        return LtxError(
            f"the NVIDIA driver is for CUDA {_version(driver)}, and cuda-bindings for {runtime}", "update the driver"
        )
    if name == "cudaErrorNoDevice":
        return LtxError("CUDA finds no GPU", "check nvidia-smi and CUDA_VISIBLE_DEVICES")
    return LtxError(f"the GPU cannot be used ({name})", "check nvidia-smi and who else uses it")
