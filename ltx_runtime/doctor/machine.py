"""Finds out what a machine has: its system, its GPU, and which of the needed libraries are installed and load.

Nothing is changed. A broken package, whatever it raises, is part of the result. This module knows nothing about version
folders.
"""

from __future__ import annotations

import importlib
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from ltx_runtime.errors import LtxError
from ltx_runtime.packages import install_command
from ltx_runtime.sessions.cuda.driver import driver_gpu, has_nvidia_driver
from ltx_runtime.sessions.cuda.gpu import Gpu
from ltx_runtime.sessions.processor import cores, memory_bytes, processor_name
from ltx_runtime.sessions.trt.library import LIBRARIES, serves_gpu, title_of

CUDA_PROVIDER = "CUDAExecutionProvider"
# All of these packages contain the module `onnxruntime`, and the one installed last overwrites the others.
RUNTIMES = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-directml", "onnxruntime-openvino", "onnxruntime-qnn")
_CUDA = "cuda.bindings.runtime"
_NO_CUDA_ERROR, _BUS_ID_BYTES = 0, 32
# Module -> its name for people, and its pip package.
_PLAIN_LIBRARIES = {
    _CUDA: ("cuda-bindings", "cuda-bindings"),
    "onnxruntime": ("ONNX Runtime", "onnxruntime"),
    "openvino": ("OpenVINO", "openvino"),
    "av": ("PyAV", "av"),
    "numpy": ("numpy", "numpy"),
    "sentencepiece": ("sentencepiece", "sentencepiece"),
}


@dataclass(frozen=True)
class System:
    """Operating system and hardware of the machine, except its GPU.

    Attributes:
        os, processor: names for people.
        cores: number of cores that this process may use.
        memory_bytes, available_bytes: total memory, and what programs may still take of it.
        python: version of Python.
        nvidia_driver: whether an NVIDIA driver is installed, as far as can be seen without CUDA.
    """

    os: str
    processor: str
    cores: int
    memory_bytes: int
    available_bytes: int
    python: str
    nvidia_driver: bool


@dataclass(frozen=True)
class GpuFacts:
    """Facts about the GPU that a run would use, or could use if CUDA could.

    Attributes:
        compute_capability: major and minor number; None if there is no GPU.
        driver: the CUDA version that the driver supports.
        free_bytes: free memory; None if it is unknown.
        problem: why CUDA has no GPU; empty if it has one.
    """

    name: str = ""
    compute_capability: tuple[int, int] | None = None
    driver: str = ""
    memory_bytes: int = 0
    free_bytes: int | None = None
    problem: str = ""


@dataclass(frozen=True)
class Library:
    """Facts about a package that runs or engine builds use.

    Attributes:
        name: its name for people.
        module: the module that Python imports.
        package: the package that pip installs.
        version: its version; empty if it is unknown.
        problem: why it does not load; empty if it does, or if it is not installed.
        serves_gpu: whether it can build engines for this GPU; None if it builds none, does not load, or there is no
            GPU.
        providers: ONNX Runtime's execution providers; empty for other libraries.
    """

    name: str
    module: str
    package: str
    installed: bool
    version: str = ""
    problem: str = ""
    serves_gpu: bool | None = None
    providers: tuple[str, ...] = ()

    @property
    def loads(self) -> bool:
        return self.installed and not self.problem


@dataclass(frozen=True)
class Machine:
    """Facts about a machine; `clashing` are installed packages that overwrite each other's files."""

    system: System
    gpu: GpuFacts
    libraries: tuple[Library, ...]
    clashing: tuple[str, ...]

    def library(self, module: str) -> Library:
        """Returns the library that Python imports under this name."""
        return next(library for library in self.libraries if library.module == module)


def look() -> tuple[Machine, Gpu | None]:
    """Returns facts about the machine, and its GPU for code that builds or runs engines."""
    gpu, problem = _gpu()
    facts = GpuFacts(problem=problem)
    if gpu is not None:
        facts = GpuFacts(gpu.name, gpu.compute_capability, gpu.driver, gpu.memory_bytes, _free_bytes())
    elif (told := driver_gpu()) is not None:
        seen = told.gpu
        facts = GpuFacts(seen.name, seen.compute_capability, seen.driver, seen.memory_bytes, told.free_bytes, problem)
    builders = [_builder(module, gpu) for module in LIBRARIES]
    return Machine(
        _system(), facts, (*builders, *(_plain_library(module) for module in _PLAIN_LIBRARIES)), _clashing()
    ), gpu


def _gpu() -> tuple[Gpu | None, str]:
    try:
        gpu = importlib.import_module("ltx_runtime.sessions.cuda.gpu").find_gpu()
    except LtxError as error:
        return None, str(error)
    except ModuleNotFoundError as error:
        return None, str(LtxError(f"{error.name} is not installed", command=install_command("gpu")))
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # an incomplete driver may raise anything
        return None, f"CUDA cannot be used ({reason_of(error)})"
    assert isinstance(gpu, Gpu)
    return gpu, ""


def _free_bytes() -> int | None:
    """Returns the GPU's free memory as the driver tells it: CUDA itself would first take some of it for a context."""
    runtime, _ = _loaded(_CUDA)
    try:
        status, bus_id = runtime.cudaDeviceGetPCIBusId(_BUS_ID_BYTES, 0)
        told = driver_gpu(bus_id.rstrip(b"\0")) if int(status) == _NO_CUDA_ERROR else None
    except Exception:
        return None
    return None if told is None else told.free_bytes


def _builder(module: str, gpu: Gpu | None) -> Library:
    loaded, problem = _loaded(module)
    if loaded is None:
        return Library(title_of(module), module, LIBRARIES[module], problem != "", "", problem)
    serves = None if gpu is None else serves_gpu(loaded, gpu.compute_capability)
    return Library(title_of(module), module, LIBRARIES[module], True, _version(loaded, module), "", serves)


def _plain_library(module: str) -> Library:
    name, package = _PLAIN_LIBRARIES[module]
    loaded, problem = _loaded(module)
    if loaded is None:
        return Library(name, module, package, problem != "", _version_of(package) if problem else "", problem)
    providers: tuple[str, ...] = ()
    if module == "onnxruntime":
        try:
            providers = tuple(str(provider) for provider in loaded.get_available_providers())
        except Exception as error:  # two packages overwrote each other's files
            problem = reason_of(error)
    return Library(name, module, package, True, _version(loaded, package), problem, providers=providers)


def _loaded(module: str) -> tuple[Any, str]:
    """Returns a module and an empty string, or None and why it does not load (empty if it is not installed)."""
    try:
        return importlib.import_module(module), ""
    except ModuleNotFoundError as error:
        absent = error.name is not None and (module == error.name or module.startswith(f"{error.name}."))
        return None, "" if absent else reason_of(error)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a package without its libraries may raise anything
        return None, reason_of(error)


def reason_of(error: BaseException) -> str:
    """Returns an exception's message on one line, or its type if it has none."""
    return " ".join(str(error).split()) or type(error).__name__


def _version(loaded: Any, package: str) -> str:
    return str(getattr(loaded, "__version__", "") or _version_of(package))


def _version_of(package: str) -> str:
    try:
        return metadata.version(package)
    except Exception:  # not installed by pip, or its record is damaged
        return ""


def _clashing(packages: Sequence[str] = RUNTIMES) -> tuple[str, ...]:
    installed = tuple(package for package in packages if _version_of(package))
    return installed if len(installed) > 1 else ()


def _system() -> System:
    total_bytes, available_bytes = memory_bytes()
    return System(
        os=f"{platform.system()} {platform.release()}".strip(),
        processor=processor_name(),
        cores=cores(),
        memory_bytes=total_bytes,
        available_bytes=available_bytes,
        python=platform.python_version(),
        nvidia_driver=has_nvidia_driver(),
    )
