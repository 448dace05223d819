"""GPU buffers for an engine's inputs and outputs; they only grow, and keep inputs that have not changed.

This module connects the arrays of the session with the addresses that the engine needs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ltx_runtime.sessions.cuda.device import Device
from ltx_runtime.sessions.cuda.memory import Buffer


class PortBuffers:
    """One GPU buffer for each input and output of an engine, until freed."""

    def __init__(self, device: Device, dtypes: Mapping[str, np.dtype[Any]], owner: str, advice: str) -> None:
        """Stores the arguments; buffers are allocated when they are needed.

        Args:
            device: the device, which must have been joined.
            dtypes: dtype of every input and output of the engine, by port name.
            owner: name of the component, for messages.
            advice: what to do when there is too little memory.
        """
        self._device, self._dtypes = device, dtypes
        self._owner, self._advice = owner, advice
        self._buffers: dict[str, Buffer] = {}
        self._constants: dict[str, NDArray[Any]] = {}

    def fill(self, name: str, array: NDArray[Any]) -> None:
        """Uploads an input, unless its buffer already holds the same read-only array.

        Raises:
            GpuMemoryError: there is too little GPU memory.
        """
        constant = not array.flags.writeable
        if constant and self._constants.get(name) is array:
            return
        self._constants.pop(name, None)
        values = np.ascontiguousarray(array, self._dtypes[name])
        self._device.upload(values, self._buffer_for(name, values.nbytes))
        if constant:
            self._constants[name] = array

    def make_room(self, name: str, shape: tuple[int, ...]) -> None:
        """Makes the buffer of an output large enough for `shape`.

        Raises:
            GpuMemoryError: there is too little GPU memory.
        """
        self._buffer_for(name, int(np.prod(shape)) * self._dtypes[name].itemsize)

    def _buffer_for(self, name: str, size: int) -> Buffer:
        buffer = self._buffers.get(name)
        if buffer is not None and buffer.size >= size:
            return buffer
        if buffer is not None:
            del self._buffers[name]
            self._device.synchronize()
            self._device.free(buffer)
        buffer = self._device.allocate(size, f"{name} of {self._owner}", self._advice)
        self._buffers[name] = buffer
        return buffer

    def addresses(self) -> dict[str, int]:
        """Returns the current address of every buffer, by port name."""
        return {name: buffer.address for name, buffer in self._buffers.items()}

    def fetch(self, name: str, shape: tuple[int, ...]) -> NDArray[Any]:
        """Waits for all work, and returns an output as a new array."""
        output = np.empty(shape, self._dtypes[name])
        self._device.download(self._buffers[name], output)
        return output

    def free(self) -> None:
        """Frees all buffers; no work may be unfinished."""
        self._constants.clear()
        while self._buffers:
            self._device.free(self._buffers.popitem()[1])
