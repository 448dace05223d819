"""What the users of a GPU share: memory for activations, and memory of the host that copies go through.

Stands on the device, which is given to it. Sizes are in bytes, addresses are plain numbers.
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
_CHUNK_BYTES = STAGING_BYTES // 4  # so that the host fills one while another is under way
_ALIGNMENT = 256


class GpuMemoryError(LtxError):
    """The GPU has too little memory for what was asked."""


@dataclass(eq=False)
class Buffer:
    """Memory of the GPU."""

    address: int
    size: int


class Owner(Protocol):
    """The device that memory is taken from and given back to."""

    def allocate(self, size: int, what: str, advice: str) -> Buffer: ...

    def free(self, buffer: Buffer) -> None: ...

    def pinned(self, size: int) -> Bytes: ...

    def free_pinned(self, array: Bytes) -> None: ...

    def synchronize(self) -> None: ...


class Arena:
    """Memory for activations, shared by all open engines, since only one of them computes at a time."""

    def __init__(self, owner: Owner) -> None:
        self._device = owner
        self._buffer: Buffer | None = None

    def reserve(self, size: int, what: str, advice: str) -> Buffer:
        """At least so much; it may have moved since the last call.

        Raises:
            GpuMemoryError: there is too little.
        """
        if self._buffer is None or self._buffer.size < size:
            self.free()  # first, so that there is never room for two
            self._buffer = self._device.allocate(size, what, advice)
        return self._buffer

    def free(self) -> None:
        """Waits for all work and gives the memory back."""
        if self._buffer is not None:
            buffer, self._buffer = self._buffer, None
            with suppress(RuntimeError):  # of work that failed; it is told where that is waited for
                self._device.synchronize()
            self._device.free(buffer)


class Staging:
    """Memory of the host that everything copied goes through, used round and round."""

    def __init__(self, owner: Owner) -> None:
        self._device = owner
        self._memory: Bytes | None = None
        self._used = 0

    def pieces(self, size: int, before_reuse: Callable[[], None] = lambda: None) -> Iterator[tuple[int, Bytes]]:
        """Pieces of the memory for so many bytes, each with where it begins among them.

        Before memory is used again, this waits for all work and calls `before_reuse`.
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
        """Waits for all work and gives the memory back."""
        if self._memory is not None:
            memory, self._memory = self._memory, None
            with suppress(RuntimeError):
                self._device.synchronize()
            self._device.free_pinned(memory)
