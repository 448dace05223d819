"""The random numbers of `torch.Generator("cpu")`, made by numpy: Mersenne Twister words, uniforms and normals.

Words and uniforms are torch's bit for bit. Normals are its float32 normals of processors with AVX2, within 1e-6: the
last bits hang on how a library rounds logarithm and sine, and torch's own differ more between processors.
Knows nothing of what the numbers are for.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

_BLOCK = 16  # torch makes so many normals at once: eight cosines, then their eight sines


class TorchGenerator:
    """What `torch.Generator("cpu").manual_seed(seed)` draws, in the same order."""

    def __init__(self, seed: int) -> None:
        """Starts where torch does, which uses the lower 32 bits of a seed only."""
        self._state = np.random.RandomState(seed & 0xFFFFFFFF)
        self._second: float | None = None  # a normal that was made with the last one, and that nobody has asked for

    def words(self, count: int) -> NDArray[np.uint32]:
        """The next `count` words of 32 bits."""
        return self._state.randint(0, 1 << 32, count, np.uint32)

    def long_words(self, count: int) -> NDArray[np.uint64]:
        """The next `count` words of 64 bits; of the two words in each the upper half is drawn first."""
        halves = self.words(2 * count).astype(np.uint64).reshape(count, 2)
        words: NDArray[np.uint64] = halves[:, 0] << np.uint64(32) | halves[:, 1]
        return words

    def uniforms(self, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """`torch.rand(shape)`: 24 bits in [0, 1), one word each."""
        return _fractions(self.words(math.prod(shape))).reshape(shape)

    def long_uniforms(self, shape: tuple[int, ...]) -> NDArray[np.float64]:
        """`torch.rand(shape, dtype=torch.float64)`: 53 bits in [0, 1), two words each."""
        bits: NDArray[np.uint64] = self.long_words(math.prod(shape)) & np.uint64((1 << 53) - 1)
        return (bits.astype(np.float64) * 2.0**-53).reshape(shape)

    def normals(self, shape: tuple[int, ...], memory: tuple[int, ...] | None = None) -> NDArray[np.float32]:
        """`torch.randn(shape)`, or `normal_()` of a tensor whose memory has the axes in another order.

        Args:
            shape: of the tensor.
            memory: its axes from the outermost in memory to the innermost; 0, 1, 2, ... if left out. For a tensor that
                is contiguous nonetheless, since axes of one element have no place in memory, it changes nothing.

        Returns:
            Float32 normals in C order, whatever the order in which they were drawn.
        """
        memory = memory or tuple(range(len(shape)))
        count = math.prod(shape)
        longer = [axis for axis in memory if shape[axis] != 1]
        by_blocks = count >= _BLOCK and longer == sorted(longer)
        drawn = self._blocks(count) if by_blocks else self._one_by_one(count)
        laid = drawn.reshape([shape[axis] for axis in memory])
        return np.asarray(laid.transpose(np.argsort(memory)), order="C")

    def _blocks(self, count: int) -> NDArray[np.float32]:
        """At least 16 values by Box and Muller's transform, which neither uses nor touches the second normal.

        A rest of the last block is not cut from a block: the last 16 values are drawn once more.
        """
        fractions = _fractions(self.words(count))
        rest = count % _BLOCK
        normals = np.empty(count, np.float32)
        normals[: count - rest] = _transformed(fractions[: count - rest])
        if rest:
            normals[-_BLOCK:] = _transformed(_fractions(self.words(_BLOCK)))
        return normals

    def _one_by_one(self, count: int) -> NDArray[np.float32]:
        """Values in double precision; of each pair the second may wait for the next draw."""
        waiting = np.array([] if self._second is None else [self._second])
        pairs = (max(count - waiting.size, 0) + 1) // 2
        angle, height = self.long_uniforms((pairs, 2)).T
        radius, angle = np.sqrt(-2 * np.log1p(-height)), 2 * np.pi * angle
        made = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1).reshape(-1)
        values = np.concatenate([waiting, made])
        self._second = float(values[count]) if values.size > count else None
        return values[:count].astype(np.float32)


def _fractions(words: NDArray[np.uint32]) -> NDArray[np.float32]:
    """The lower 24 bits of each word as a number in [0, 1), exactly."""
    bits: NDArray[np.uint32] = words & np.uint32((1 << 24) - 1)
    fractions: NDArray[np.float32] = bits.astype(np.float32) * np.float32(2.0**-24)
    return fractions


def _transformed(fractions: NDArray[np.float32]) -> NDArray[np.float32]:
    """Blocks of 16 uniforms -> blocks of 16 normals, each step rounded to float32 as torch's vectors are."""
    heights, turns = fractions.reshape(-1, 2, _BLOCK // 2).swapaxes(0, 1)
    radius = np.sqrt(np.float32(-2) * np.log(1 - heights, dtype=np.float64).astype(np.float32))
    angle = (np.float32(2 * np.pi) * turns).astype(np.float64)
    cosine, sine = np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)
    return np.stack([radius * cosine, radius * sine], axis=1).reshape(-1)
