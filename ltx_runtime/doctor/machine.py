"""What a machine has that engines and runs need: its system, its GPU, and the libraries that are installed and load.

Looks and changes nothing. A broken package is a finding: it may raise whatever it likes. Knows nothing of folders.
"""

from __future__ import annotations

import importlib
import os
import platform
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from ltx_runtime.errors import LtxError
from ltx_runtime.sessions.cuda.gpu import Gpu
from ltx_runtime.sessions.trt.library import LIBRARIES, serves_gpu, title_of

CUDA_PROVIDER = "CUDAExecutionProvider"
# All of these bring the module `onnxruntime`, and the one installed last overwrites the others.
RUNTIMES = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-directml", "onnxruntime-openvino", "onnxruntime-qnn")
_CUDA = "cuda.bindings.runtime"
_NO_CUDA_ERROR = 0
# By module: what people call it, and what pip does.
_PLAIN = {
    _CUDA: ("cuda-bindings", "cuda-bindings"),
    "onnxruntime": ("ONNX Runtime", "onnxruntime"),
    "av": ("PyAV", "av"),
    "numpy": ("numpy", "numpy"),
    "sentencepiece": ("sentencepiece", "sentencepiece"),
}


@dataclass(frozen=True)
class System:
    """A computer.

    Attributes:
        os, processor, python: in words.
        cores: that this process may use.
        memory_bytes, available_bytes: all of it, and what is not in use; None where the system does not tell.
        nvidia_driver: whether one is installed, as far as can be seen without CUDA.
    """

    os: str
    processor: str
    cores: int
    memory_bytes: int | None
    available_bytes: int | None
    python: str
    nvidia_driver: bool


@dataclass(frozen=True)
class GpuFacts:
    """The GPU that runs would use, or in `problem` why there is none.

    driver is the CUDA version that the driver brings; free_bytes is None where it cannot be told.
    """

    name: str = ""
    compute_capability: tuple[int, int] | None = None
    driver: str = ""
    memory_bytes: int = 0
    free_bytes: int | None = None
    problem: str = ""


@dataclass(frozen=True)
class Library:
    """A package that runs or builds use.

    Attributes:
        name, module, package: what people call it, what Python imports, what pip installs.
        installed, version, problem: problem is why it does not load; version is empty where it cannot be told.
        serves_gpu: whether it can make kernels for this GPU; None where it makes none, or cannot be asked.
        providers: of ONNX Runtime.
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
    """Everything told about a machine; `clashing` are installed packages that overwrite each other."""

    system: System
    gpu: GpuFacts
    libraries: tuple[Library, ...]
    clashing: tuple[str, ...]

    def library(self, module: str) -> Library:
        """The one that Python imports under this name."""
        return next(one for one in self.libraries if one.module == module)


def look() -> tuple[Machine, Gpu | None]:
    """The machine, and its GPU for those who build or run engines."""
    gpu, problem = _gpu()
    facts = GpuFacts(problem=problem)
    if gpu is not None:
        facts = GpuFacts(gpu.name, gpu.compute_capability, gpu.driver, gpu.memory_bytes, _free_bytes())
    builders = [_builder(module, gpu) for module in LIBRARIES]
    return Machine(_system(), facts, (*builders, *(_plain(module) for module in _PLAIN)), _clashing()), gpu


def _gpu() -> tuple[Gpu | None, str]:
    try:
        found = importlib.import_module("ltx_runtime.sessions.cuda.gpu").find_gpu()
    except LtxError as error:
        return None, str(error)
    except ModuleNotFoundError as error:
        return None, f"{error.name} is not installed - run: pip install 'ltx-engines[gpu]'"
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a driver that is half there
        return None, f"CUDA cannot be used ({reason_of(error)})"
    assert isinstance(found, Gpu)
    return found, ""


def _free_bytes() -> int | None:
    runtime, _ = _loaded(_CUDA)
    try:
        status, free, _ = runtime.cudaMemGetInfo()
        return int(free) if int(status) == _NO_CUDA_ERROR else None
    except Exception:
        return None


def _builder(module: str, gpu: Gpu | None) -> Library:
    loaded, problem = _loaded(module)
    if loaded is None:
        return Library(title_of(module), module, f"ltx-engines[{LIBRARIES[module]}]", problem != "", "", problem)
    serves = None if gpu is None else serves_gpu(loaded, gpu.compute_capability)
    return Library(
        title_of(module), module, f"ltx-engines[{LIBRARIES[module]}]", True, _version(loaded, module), "", serves
    )


def _plain(module: str) -> Library:
    name, package = _PLAIN[module]
    loaded, problem = _loaded(module)
    if loaded is None:
        return Library(name, module, package, problem != "", _version_of(package) if problem else "", problem)
    providers: tuple[str, ...] = ()
    if module == "onnxruntime":
        try:
            providers = tuple(str(one) for one in loaded.get_available_providers())
        except Exception as error:  # one file of two packages that overwrote each other
            problem = reason_of(error)
    return Library(name, module, package, True, _version(loaded, package), problem, providers=providers)


def _loaded(module: str) -> tuple[Any, str]:
    """A module; or None and why it does not load, empty where it is not installed."""
    try:
        return importlib.import_module(module), ""
    except ModuleNotFoundError as error:
        absent = error.name is not None and (module == error.name or module.startswith(f"{error.name}."))
        return None, "" if absent else reason_of(error)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a package without its libraries raises whatever it likes
        return None, reason_of(error)


def reason_of(error: BaseException) -> str:
    """What an exception says, in one line."""
    return " ".join(str(error).split()) or type(error).__name__


def _version(loaded: Any, package: str) -> str:
    return str(getattr(loaded, "__version__", "") or _version_of(package))


def _version_of(package: str) -> str:
    try:
        return metadata.version(package)
    except Exception:  # not installed by pip, or its record is damaged
        return ""


def _clashing(packages: Sequence[str] = RUNTIMES) -> tuple[str, ...]:
    found = tuple(package for package in packages if _version_of(package))
    return found if len(found) > 1 else ()


def _system() -> System:
    sizes = _memory(Path("/proc/meminfo"))
    return System(
        os=f"{platform.system()} {platform.release()}".strip(),
        processor=_processor(Path("/proc/cpuinfo")) or platform.machine(),
        cores=_cores(),
        memory_bytes=sizes.get("MemTotal"),
        available_bytes=sizes.get("MemAvailable"),
        python=platform.python_version(),
        nvidia_driver=Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi") is not None,
    )


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):  # not on macOS and Windows
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _memory(file: Path) -> dict[str, int]:
    """Sizes in bytes by their name in /proc/meminfo; empty where there is none."""
    try:
        rows = re.findall(r"^(\w+):\s+(\d+) kB$", file.read_text(), re.MULTILINE)
    except OSError:
        return {}
    return {name: int(size) << 10 for name, size in rows}


def _processor(file: Path) -> str:
    """The processor's name in /proc/cpuinfo; empty where there is none."""
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", file.read_text(), re.MULTILINE)
    except OSError:
        return ""
    return found[1].strip() if found else ""
