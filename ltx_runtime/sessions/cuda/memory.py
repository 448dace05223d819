"""Memory that all open engines share: GPU memory for activations, and pinned host memory that copies go through.

The device that allocates and frees it is passed in. Sizes are in bytes, and addresses are plain integers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ltx_runtime.errors import LtxError

Bytes = NDArray[np.uint8]

STAGING_BYTES = 64 << 20
_CHUNK_BYTES = STAGING_BYTES // 4  # so that the host fills one chunk while another is being copied
_ALIGNMENT = 256


class GpuMemoryError(LtxError):
    """The error for an allocation, load or run that needs more memory than the GPU has free."""


@dataclass(eq=False)
class Buffer:
    """A block of GPU memory."""

    address: int
    size: int


class Owner(Protocol):
    """The device that allocates and frees the memory."""

    def allocate(self, size: int, what: str, advice: str) -> Buffer: ...

    def free(self, buffer: Buffer) -> None: ...

    def pinned(self, size: int) -> Bytes: ...

    def free_pinned(self, array: Bytes) -> None: ...

    def synchronize(self) -> None: ...


class Arena:
    """GPU memory for activations, shared by all open engines, since only one of them computes at a time."""

    def __init__(self, owner: Owner) -> None:
        self._device = owner
        self._buffer: Buffer | None = None

    def reserve(self, size: int, what: str, advice: str) -> Buffer:
        """Returns a buffer of at least `size` bytes, which may have moved since the last call.

        Args:
            size: number of bytes.
            what: purpose of the memory, for the error message.
            advice: advice of the error.

        Raises:
            GpuMemoryError: there is too little GPU memory.
        """
        if self._buffer is None or self._buffer.size < size:
            self.free()  # before the allocation, so that two buffers never exist at once
            self._buffer = self._device.allocate(size, what, advice)
        return self._buffer

    def free(self) -> None:
        """Waits for all work and frees the memory."""
        if self._buffer is not None:
            buffer, self._buffer = self._buffer, None
            with suppress(RuntimeError):  # from failed work; raised again where that work is awaited
                self._device.synchronize()
            self._device.free(buffer)


class Staging:
    """Pinned host memory that all copies go through, used again from its start when its end is reached."""

    def __init__(self, owner: Owner) -> None:
        self._device = owner
        self._memory: Bytes | None = None
        self._used = 0

    def pieces(self, size: int, before_reuse: Callable[[], None] = lambda: None) -> Iterator[tuple[int, Bytes]]:
        """Yields pieces of the memory for a copy of `size` bytes, each with its offset in the copied data.

        Before memory is used again, waits for all work and calls `before_reuse`.
        """
        if self._memory is None:
            self._memory, self._used = self._device.pinned(STAGING_BYTES), 0
        for begin in range(0, size, _CHUNK_BYTES):
            length = min(_CHUNK_BYTES, size - begin)
            if self._used + length > self._memory.size:
                self._device.synchronize()
                before_reuse()
                self._used = 0
            yield begin, self._memory[self._used : self._used + length]
            self._used += -(-length // _ALIGNMENT) * _ALIGNMENT

    def free(self) -> None:
        """Waits for all work and frees the memory."""
        if self._memory is not None:
            memory, self._memory = self._memory, None
            with suppress(RuntimeError):
                self._device.synchronize()
            self._device.free_pinned(memory)
