"""Seed -> noise. The same numbers on every machine and backend, independent of how many draws came before.

Uses numpy's RandomState, whose stream is frozen by numpy's compatibility policy. Each purpose has its own
stream, so that the decoder's noise does not depend on the number of steps.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ltx_runtime.errors import LtxError

Purpose = Literal["latents", "step", "decode", "decoder_maps"]
_STREAMS: dict[Purpose, int] = {"latents": 0, "step": 1, "decode": 2, "decoder_maps": 3}

SEED_BITS = 64


def check_seed(seed: int) -> None:
    """Raises LtxError unless the seed is in 0 .. 2**64-1."""
    if not 0 <= seed < 2**SEED_BITS:
        raise LtxError(f"seed must be from 0 to 2^{SEED_BITS}-1; got {seed} - use a seed in that range")


class NoiseStream:
    """Standard normal float32 draws for one purpose of one seed."""

    def __init__(self, seed: int, purpose: Purpose) -> None:
        """Raises LtxError if the seed is not in 0 .. 2**64-1."""
        check_seed(seed)
        self._state = np.random.RandomState([seed & 0xFFFFFFFF, seed >> 32, _STREAMS[purpose]])

    def draw(self, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """The next `prod(shape)` normals in C order, unit variance."""
        return self._state.standard_normal(shape).astype(np.float32)
