"""TensorRT and TensorRT-RTX as one library: they differ in what they can do, and code asks for that, not for names.

Loads nothing until it is asked to. Stands below the builder and the session.
"""

from __future__ import annotations

import importlib
import platform
import re
from functools import cache
from typing import Any

from ltx_runtime.errors import LtxError
from ltx_runtime.folder.sidecar import PORTABLE, Maker
from ltx_runtime.sessions.cuda.gpu import Gpu

# By builder, which is also the module's name: the extra that brings it. In the order of preference.
LIBRARIES = {"tensorrt": "tensorrt", "tensorrt_rtx": "tensorrt-rtx"}
LEAST_CAPABILITY, _LEAST_BF16 = (7, 5), (8, 0)
# What TensorRT-RTX serves, where it is not installed to be asked.
RTX_CAPABILITIES = ((8, 0), (8, 6), (8, 9), (12, 0), (12, 1))
_TITLES = {"tensorrt": "TensorRT", "tensorrt_rtx": "TensorRT-RTX"}


def load_library(builder: str) -> Any:
    """The module of a name of LIBRARIES.

    Raises:
        LtxError: it is not installed, or cannot be loaded.
    """
    try:
        return importlib.import_module(builder)
    except Exception as error:  # a package without its libraries raises whatever it likes
        if isinstance(error.__cause__, KeyboardInterrupt):  # pressed while a library was loaded
            raise error.__cause__ from None
        reason = " ".join(str(error).split())
        raise LtxError(
            f"{_TITLES[builder]} cannot be loaded ({reason})",
            command=f"pip install 'ltx-engines[{LIBRARIES[builder]}]'",
        ) from None


def title_of(builder: str) -> str:
    """The library's name as its makers write it."""
    return _TITLES[builder]


def compiles_at_run_time(library: Any) -> bool:
    """Whether kernels are made on the first run, so that engines are portable and need no GPU to be built."""
    return hasattr(library, "IRuntimeCache")


def serves_gpu(library: Any, capability: tuple[int, int]) -> bool:
    """Whether a library's engines run on a GPU, by what it can be told to compile for where that can be asked.

    Engines that are compiled at run time are made for bf16 and later GPUs: Turing would want a build of its own.
    """
    if not compiles_at_run_time(library):
        return capability >= LEAST_CAPABILITY
    targets = getattr(getattr(library, "ComputeCapability", None), "__members__", None)
    if targets is None:
        return capability in RTX_CAPABILITIES
    return capability >= _LEAST_BF16 and f"SM{capability[0]}{capability[1]}" in targets


def refuse_unserved(library: Any, builder: str, gpu: Gpu) -> None:
    """Raises LtxError if a library's engines do not run on a GPU."""
    if not serves_gpu(library, gpu.compute_capability):
        architecture = "SM{}{}".format(*gpu.compute_capability)
        raise LtxError(
            f"{_TITLES[builder]} {library.__version__} makes nothing for {gpu.name} ({architecture})",
            "use --backend tensorrt, or cuda",
        )


def maker_of(builder: str, library: Any, gpu: Gpu | None) -> Maker:
    """What builds or runs engines here.

    Raises:
        LtxError: engines of this library are for one GPU, and there is none.
    """
    told = {"gpu": gpu.name, "driver": gpu.driver} if gpu else {}
    if compiles_at_run_time(library):
        return Maker(builder, library.__version__, PORTABLE, **told)
    if gpu is None:
        raise LtxError(f"{_TITLES[builder]} builds and runs engines on an NVIDIA GPU only", "use a machine with one")
    major, minor = gpu.compute_capability
    words = re.sub(r"[^a-z0-9]+", "-", gpu.name.lower()).strip("-")
    system = f"{platform.system()}-{platform.machine()}".lower()
    return Maker(builder, library.__version__, f"sm{major}{minor}-{words}", system, **told)


@cache
def logger_of(library: Any) -> Any:
    """The library's logger, one for the whole process: the library goes on using the first it was given.

    Its list `heard` has all errors since it was last cleared; nothing is printed.
    """

    class Logger(library.ILogger):  # type: ignore[misc]
        """Keeps errors for the message instead of printing them."""

        def __init__(self) -> None:
            library.ILogger.__init__(self)
            self.heard: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity <= library.ILogger.Severity.ERROR:
                self.heard.append(message)

    return Logger()


def first_error(library: Any) -> str:
    """The first error since the logger was cleared, in one line."""
    heard = logger_of(library).heard
    return " ".join(heard[0].split()) if heard else "it gave no reason"
