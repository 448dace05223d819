"""Chooses how an input is quantized: factors for its channels, by which the product's rounding errors become smallest.

A channel with large activations would make the only scale of all activations coarse. Its factor moves a part of its
size into the matrix, whose rows have a scale each (SmoothQuant, Xiao et al. 2023, arXiv 2211.10438, equation 4).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

_LARGEST_CODE = 127
_SHARES = (0.25, 0.5, 0.75)  # parts of a channel's size that are moved into the matrix
_MARGIN = 1.1  # how much larger than those that were seen activations may be
_SMALLEST = np.float32(1e-5)


@dataclass(frozen=True)
class Activations:
    """Activations that were seen of one value.

    Attributes:
        largest: (K,) the largest magnitude in each channel, for some prompts.
        rows: (R, K) some tokens, for another prompt.
    """

    largest: Floats
    rows: Floats


@dataclass(frozen=True)
class Smoothing:
    """How a value is quantized.

    Attributes:
        factors: (K,) by which channels are multiplied.
        step: scale of the codes of all its values.
        errors: relative L2 of each product with it.
    """

    factors: Floats
    step: np.float32
    errors: tuple[float, ...]


def chosen_smoothing(seen: Activations, matrices: Sequence[Floats]) -> Smoothing:
    """Returns the smoothing with the smallest errors of the products with these matrices (N, K), on the rows seen."""
    columns = np.max([np.abs(matrix).max(0) for matrix in matrices], axis=0)
    exact = [seen.rows @ matrix.T for matrix in matrices]
    candidates = []
    for factors in (np.ones_like(columns), *(_factors(seen.largest, columns, share) for share in _SHARES)):
        step = np.float32(_MARGIN * max((seen.largest * factors).max(), _SMALLEST) / _LARGEST_CODE)
        x = np.clip(np.rint(seen.rows * factors / step), -_LARGEST_CODE - 1, _LARGEST_CODE) * step
        errors = []
        for matrix, expected in zip(matrices, exact, strict=True):
            codes, scales = integers_of(matrix, factors)
            difference = (x @ codes.T.astype(np.float32)) * scales - expected
            errors.append(float(np.linalg.norm(difference) / max(np.linalg.norm(expected), _SMALLEST)))
        candidates.append(Smoothing(factors, step, tuple(errors)))
    return min(candidates, key=lambda candidate: max(candidate.errors))


def _factors(largest: Floats, columns: Floats, share: float) -> Floats:
    """Returns factors (K,) that move a share of every channel's size into the matrix; their geometric mean is 1."""
    sizes = np.maximum(largest, _SMALLEST) ** share / np.maximum(columns, _SMALLEST) ** (1 - share)
    return np.asarray(np.exp(np.log(sizes).mean()) / sizes, np.float32)


def integers_of(matrix: Floats, factors: Floats) -> tuple[NDArray[np.int8], Floats]:
    """Quantizes a matrix (N, K) whose input is multiplied by factors (K,); returns codes (N, K) and scales (N,)."""
    scaled = matrix / factors
    scales = np.abs(scaled).max(1) / np.float32(_LARGEST_CODE)
    scales[scales == 0] = 1
    return np.rint(scaled / scales[:, None]).astype(np.int8), scales
