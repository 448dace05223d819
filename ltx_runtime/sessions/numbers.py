"""Looks at the numbers that a network has computed, before anything else is computed from them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ltx_runtime.errors import LtxError
from ltx_runtime.folder.commands import check_command
from ltx_runtime.sessions import BACKENDS
from ltx_runtime.sessions.found import Found

Floats = NDArray[np.float32]


class NotFiniteError(LtxError):
    """A network has computed NaN or infinity, or its numbers have become that."""

    def explained(self, where: str, found: Found, folder: Path) -> NotFiniteError:
        """Returns the error with what is known further up.

        Args:
            where: the stage, and the part of it.
            found: what runs the network.
            folder: its version folder.
        """
        is_exact = BACKENDS[found.backend].on_cpu and found.precision == "fp32"
        advice = "" if is_exact else 'use --backend cpu (in Python: backend="cpu"), which computes in fp32'
        problem = f"{where}: {self.problem} ({computing(found)})"
        return NotFiniteError(problem, advice, check_command(folder))


def computing(found: Found) -> str:
    """Names what computes a network: its backend, and the precision of the graph or engine."""
    return f"{found.component.name} on {found.backend} in {found.precision}"


def finite(array: Floats, made: str) -> Floats:
    """Returns an array as it is.

    Args:
        array: what was computed, of any shape.
        made: who has made it, for the message: "the transformer computed".

    Raises:
        NotFiniteError: a number is NaN or infinite.
    """
    if not is_finite(array):
        count = array.size - np.count_nonzero(np.isfinite(array))
        kinds = [kind for kind, found in (("NaN", np.isnan), ("infinite", np.isinf)) if found(array).any()]
        raise NotFiniteError(f"{count} of {array.size} numbers that {made} are {' or '.join(kinds)}")
    return array


def is_finite(array: Floats) -> bool:
    """Returns whether all numbers are finite: if their sum is, they are. That reads them once and copies nothing."""
    with np.errstate(over="ignore", invalid="ignore"):
        total = array.sum()
    return bool(np.isfinite(total) or np.isfinite(array).all())  # a sum of large numbers may be infinite as well
