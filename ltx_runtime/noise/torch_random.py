"""Repeats the random numbers of `torch.Generator("cpu")` with numpy: Mersenne Twister words, uniforms and normals.

Words and uniforms equal torch's bit for bit. Normals equal torch's float32 normals on processors with AVX2 within
1e-6: their last bits depend on how a library rounds logarithm and sine, and torch's own normals differ more than that
between processors. This module does not know what the numbers are used for.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

_BLOCK = 16  # torch computes normals in blocks of 16: eight cosines, then their eight sines


class TorchGenerator:
    """A generator that draws the numbers of `torch.Generator("cpu").manual_seed(seed)` in the same order."""

    def __init__(self, seed: int) -> None:
        """Seeds the generator with the lower 32 bits of `seed`, as torch does."""
        self._state = np.random.RandomState(seed & 0xFFFFFFFF)
        self._second: float | None = None  # second normal of the last pair, if it was not used yet

    def words(self, count: int) -> NDArray[np.uint32]:
        """Returns the next `count` words of 32 bits."""
        return self._state.randint(0, 1 << 32, count, np.uint32)

    def long_words(self, count: int) -> NDArray[np.uint64]:
        """Returns the next `count` words of 64 bits, each drawn as two words of 32 bits, the upper half first."""
        halves = self.words(2 * count).astype(np.uint64).reshape(count, 2)
        words: NDArray[np.uint64] = halves[:, 0] << np.uint64(32) | halves[:, 1]
        return words

    def uniforms(self, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """Returns `torch.rand(shape)`: numbers in [0, 1) with 24 bits, one word each."""
        return _fractions(self.words(math.prod(shape))).reshape(shape)

    def long_uniforms(self, shape: tuple[int, ...]) -> NDArray[np.float64]:
        """Returns `torch.rand(shape, dtype=torch.float64)`: numbers in [0, 1) with 53 bits, two words each."""
        bits: NDArray[np.uint64] = self.long_words(math.prod(shape)) & np.uint64((1 << 53) - 1)
        return (bits.astype(np.float64) * 2.0**-53).reshape(shape)

    def normals(self, shape: tuple[int, ...], memory: tuple[int, ...] | None = None) -> NDArray[np.float32]:
        """Returns `torch.randn(shape)`, or `normal_()` of a tensor whose axes have another order in memory.

        Args:
            shape: shape of the tensor.
            memory: axes from the outermost in memory to the innermost; 0, 1, 2, ... by default. An order that only
                moves axes of length 1 changes nothing, since the tensor is still contiguous.

        Returns:
            Float32 normals in C order, whatever the order in which they were drawn.
        """
        memory = memory or tuple(range(len(shape)))
        count = math.prod(shape)
        long_axes = [axis for axis in memory if shape[axis] != 1]
        by_blocks = count >= _BLOCK and long_axes == sorted(long_axes)
        normals = self._blocks(count) if by_blocks else self._one_by_one(count)
        in_memory_order = normals.reshape([shape[axis] for axis in memory])
        return np.asarray(in_memory_order.transpose(np.argsort(memory)), order="C")

    def _blocks(self, count: int) -> NDArray[np.float32]:
        """Returns at least 16 normals by the Box-Muller transform; the kept second normal is neither used nor changed.

        If 16 does not divide `count`, the last 16 normals are drawn again as one block, as torch does.
        """
        fractions = _fractions(self.words(count))
        remainder = count % _BLOCK
        normals = np.empty(count, np.float32)
        normals[: count - remainder] = _box_muller(fractions[: count - remainder])
        if remainder:
            normals[-_BLOCK:] = _box_muller(_fractions(self.words(_BLOCK)))
        return normals

    def _one_by_one(self, count: int) -> NDArray[np.float32]:
        """Returns normals computed in pairs in double precision; an unused second normal is kept for the next call."""
        unused = np.array([] if self._second is None else [self._second])
        pairs = (max(count - unused.size, 0) + 1) // 2
        angle, height = self.long_uniforms((pairs, 2)).T
        radius, angle = np.sqrt(-2 * np.log1p(-height)), 2 * np.pi * angle
        drawn = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1).reshape(-1)
        normals = np.concatenate([unused, drawn])
        self._second = float(normals[count]) if normals.size > count else None
        return normals[:count].astype(np.float32)


def _fractions(words: NDArray[np.uint32]) -> NDArray[np.float32]:
    """Returns the lower 24 bits of each word as an exact number in [0, 1)."""
    bits: NDArray[np.uint32] = words & np.uint32((1 << 24) - 1)
    fractions: NDArray[np.float32] = bits.astype(np.float32) * np.float32(2.0**-24)
    return fractions


def _box_muller(fractions: NDArray[np.float32]) -> NDArray[np.float32]:
    """Turns blocks of 16 uniforms into 16 normals each, with each step rounded to float32 as in torch's vector code."""
    heights, turns = fractions.reshape(-1, 2, _BLOCK // 2).swapaxes(0, 1)
    radius = np.sqrt(np.float32(-2) * np.log(1 - heights, dtype=np.float64).astype(np.float32))
    angle = (np.float32(2 * np.pi) * turns).astype(np.float64)
    cosine, sine = np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)
    return np.stack([radius * cosine, radius * sine], axis=1).reshape(-1)
