"""TensorRT and TensorRT-RTX behind one interface: code asks what a library can do, and not which one it is.

The builder and the session use this module. It imports neither library before `load_library` is called.
"""

from __future__ import annotations

import importlib
import platform
import re
from functools import cache
from typing import Any

from ltx_runtime.errors import LtxError
from ltx_runtime.folder.sidecar import PORTABLE, Maker
from ltx_runtime.packages import install_command
from ltx_runtime.sessions.cuda.gpu import Gpu

# The extra that installs each library, by builder, which is also the name of its module; in the order of preference.
LIBRARIES = {"tensorrt": "tensorrt", "tensorrt_rtx": "tensorrt-rtx"}
LEAST_CAPABILITY, _LEAST_BF16 = (7, 5), (8, 0)
# Compute capabilities that TensorRT-RTX serves, for use where the library is not installed or does not list them.
RTX_CAPABILITIES = ((8, 0), (8, 6), (8, 9), (12, 0), (12, 1))
_TITLES = {"tensorrt": "TensorRT", "tensorrt_rtx": "TensorRT-RTX"}


def load_library(builder: str) -> Any:
    """Imports and returns the module of a builder, which is a key of LIBRARIES.

    Raises:
        LtxError: the library is not installed, or cannot be loaded.
    """
    try:
        return importlib.import_module(builder)
    except Exception as error:  # a package without its shared libraries can raise anything
        if isinstance(error.__cause__, KeyboardInterrupt):  # Ctrl-C while a shared library was loading
            raise error.__cause__ from None
        reason = " ".join(str(error).split())
        raise LtxError(
            f"{_TITLES[builder]} cannot be loaded ({reason})",
            command=install_command(LIBRARIES[builder]),
        ) from None


def title_of(builder: str) -> str:
    """Returns the name of a library as NVIDIA writes it."""
    return _TITLES[builder]


def compiles_at_run_time(library: Any) -> bool:
    """Returns whether kernels are compiled on the first run: such engines are portable, and are built without a GPU."""
    return hasattr(library, "IRuntimeCache")


def serves_gpu(library: Any, capability: tuple[int, int]) -> bool:
    """Returns whether a library's engines run on a GPU of this compute capability.

    A library that compiles at run time is asked for its targets if it lists them. Its engines are built for GPUs that
    have bf16 (8.0 and later): Turing would need a build of its own.
    """
    if not compiles_at_run_time(library):
        return capability >= LEAST_CAPABILITY
    targets = getattr(getattr(library, "ComputeCapability", None), "__members__", None)
    if targets is None:
        return capability in RTX_CAPABILITIES
    return capability >= _LEAST_BF16 and f"SM{capability[0]}{capability[1]}" in targets


def refuse_unserved(library: Any, builder: str, gpu: Gpu) -> None:
    """Raises LtxError if a library's engines do not run on this GPU."""
    if not serves_gpu(library, gpu.compute_capability):
        architecture = "SM{}{}".format(*gpu.compute_capability)
        raise LtxError(
            f"{_TITLES[builder]} {library.__version__} makes nothing for {gpu.name} ({architecture})",
            "use --backend tensorrt, or cuda",
        )


def maker_of(builder: str, library: Any, gpu: Gpu | None) -> Maker:
    """Returns the Maker of the engines that a library builds or runs on this machine.

    Raises:
        LtxError: the library's engines are for one GPU, and there is no GPU.
    """
    gpu_fields = {"gpu": gpu.name, "driver": gpu.driver} if gpu else {}
    if compiles_at_run_time(library):
        return Maker(builder, library.__version__, PORTABLE, **gpu_fields)
    if gpu is None:
        raise LtxError(f"{_TITLES[builder]} builds and runs engines on an NVIDIA GPU only", "use a machine with one")
    major, minor = gpu.compute_capability
    gpu_slug = re.sub(r"[^a-z0-9]+", "-", gpu.name.lower()).strip("-")
    system = f"{platform.system()}-{platform.machine()}".lower()
    return Maker(builder, library.__version__, f"sm{major}{minor}-{gpu_slug}", system, **gpu_fields)


@cache
def logger_of(library: Any) -> Any:
    """Returns a library's logger, one for the whole process, since the library keeps using the first one it gets.

    Its list `heard` has all errors since it was last cleared; nothing is printed.
    """

    class Logger(library.ILogger):  # type: ignore[misc]
        """Collects errors for later messages instead of printing them."""

        def __init__(self) -> None:
            library.ILogger.__init__(self)
            self.heard: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity <= library.ILogger.Severity.ERROR:
                self.heard.append(message)

    return Logger()


def first_error(library: Any) -> str:
    """Returns the first error since the library's logger was cleared, on one line."""
    heard = logger_of(library).heard
    return " ".join(heard[0].split()) if heard else "it gave no reason"
