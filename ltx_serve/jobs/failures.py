"""The failure that an error makes of a job: the code of its failure, and the sentence that its client reads."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from ltx_runtime.errors import LtxError
from ltx_runtime.sessions.cuda.memory import GpuMemoryError
from ltx_serve.jobs.job import NO_SPACE, OUT_OF_MEMORY, REFUSED

_FULL = (errno.ENOSPC, errno.EDQUOT)


class MakingError(LtxError):
    """A video that cannot be made, with the code of its failure."""

    def __init__(self, code: str, problem: str, advice: str = "", command: str = "") -> None:
        super().__init__(problem, advice, command)
        self.code = code


def making_error_of(error: Exception) -> MakingError:
    """Returns what an error means for a job; of one that is a bug of this program, clients read the type alone."""
    if isinstance(error, MakingError):
        return error
    if isinstance(error, MemoryError):
        return MakingError(OUT_OF_MEMORY, "there is too little memory", "ask for a smaller size or fewer frames")
    if isinstance(error, LtxError):
        return MakingError(_code_of(error), error.problem, error.advice, error.command)
    return MakingError(
        REFUSED, f"an error of this program ended it ({type(error).__name__})", "report it with what the server logged"
    )


def without_folders(text: str, *folders: Path) -> str:
    """Returns a text for clients, in which a path inside one of these folders begins there: the rest is not theirs."""
    for folder in folders:
        text = text.replace(f"{folder}{os.sep}", "").replace(str(folder), folder.name)
    return text


def _code_of(error: LtxError) -> str:
    if isinstance(error, GpuMemoryError):
        return OUT_OF_MEMORY
    cause: BaseException | None = error
    while cause is not None:  # an OSError becomes an LtxError in whose context it stays
        if isinstance(cause, OSError) and cause.errno in _FULL:
            return NO_SPACE
        cause = cause.__cause__ or cause.__context__
    return REFUSED
