"""Chooses the library that builds engines here, and finds out for which GPU, and whether engines can be run here too.

CUDA is imported only to look for a GPU: engines are built without one if the library allows it.
"""

from __future__ import annotations

from typing import Any

from ltx_export.engines.arguments import AUTO
from ltx_runtime.errors import LtxError
from ltx_runtime.packages import install_command
from ltx_runtime.sessions.cuda import gpu as cuda_gpu
from ltx_runtime.sessions.cuda.gpu import Gpu
from ltx_runtime.sessions.trt.library import LIBRARIES, RTX_CAPABILITIES, load_library, maker_of, refuse_unserved


def choose_builder(asked: str) -> tuple[str, Gpu | None, str]:
    """Returns a key of LIBRARIES, the GPU if there is one, and the reason for the choice in parentheses or "".

    AUTO chooses TensorRT if it is installed and has a GPU to build for, else TensorRT-RTX.

    Raises:
        LtxError: the requested builder, or with AUTO every builder, is not installed or has no GPU to build for.
    """
    gpu, _ = _gpu()
    if asked != AUTO:
        maker_of(asked, load_library(asked), gpu)
        return asked, gpu, ""
    reasons = []
    for builder in LIBRARIES:
        try:
            maker_of(builder, load_library(builder), gpu)
        except LtxError as error:
            reasons.append(error.problem)
            continue
        return builder, gpu, f" ({'; '.join(reasons)})" if reasons else f" (for {gpu.name})" if gpu else ""
    advice = LIBRARIES["tensorrt" if gpu and gpu.compute_capability not in RTX_CAPABILITIES else "tensorrt_rtx"]
    raise LtxError(f"there is no builder of engines here ({'; '.join(reasons)})", command=install_command(advice))


def _gpu() -> tuple[Gpu | None, LtxError | None]:
    """Returns the GPU, or None and the reason why there is none."""
    try:
        return cuda_gpu.find_gpu(), None
    except LtxError as error:
        return None, error


def reason_not_to_run(library: Any, builder: str, gpu: Gpu | None) -> LtxError | None:
    """Returns the reason why engines cannot be run here; None if they can."""
    if gpu is None:
        return _gpu()[1]
    try:
        refuse_unserved(library, builder, gpu)
    except LtxError as error:
        return error
    return None
