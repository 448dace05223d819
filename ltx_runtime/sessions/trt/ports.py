"""Memory of the GPU for an engine's inputs and outputs: it only grows, and what has not changed stays in it.

Stands between the session's arrays and the engine's addresses.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ltx_runtime.sessions.cuda.device import Device
from ltx_runtime.sessions.cuda.memory import Buffer


class PortBuffers:
    """A buffer for each input and output of one engine, until freed."""

    def __init__(self, device: Device, dtypes: Mapping[str, np.dtype[Any]], owner: str, advice: str) -> None:
        """Allocates nothing yet.

        Args:
            device: it has been joined.
            dtypes: the engine's, by port.
            owner: the component.
            advice: what to do when there is too little memory.
        """
        self._device, self._dtypes = device, dtypes
        self._owner, self._advice = owner, advice
        self._buffers: dict[str, Buffer] = {}
        self._constants: dict[str, NDArray[Any]] = {}

    def fill(self, name: str, array: NDArray[Any]) -> None:
        """Uploads an input, unless it is the very array that is there already and cannot be written to.

        Raises:
            LtxError: there is too little memory.
        """
        constant = not array.flags.writeable
        if constant and self._constants.get(name) is array:
            return
        self._constants.pop(name, None)
        values = np.ascontiguousarray(array, self._dtypes[name])
        self._device.upload(values, self._room(name, values.nbytes))
        if constant:
            self._constants[name] = array

    def make_room(self, name: str, shape: tuple[int, ...]) -> None:
        """Sees that an output has memory.

        Raises:
            LtxError: there is too little.
        """
        self._room(name, int(np.prod(shape)) * self._dtypes[name].itemsize)

    def _room(self, name: str, size: int) -> Buffer:
        held = self._buffers.get(name)
        if held is not None and held.size >= size:
            return held
        if held is not None:
            del self._buffers[name]
            self._device.synchronize()
            self._device.free(held)
        made = self._device.allocate(size, f"{name} of {self._owner}", self._advice)
        self._buffers[name] = made
        return made

    def addresses(self) -> dict[str, int]:
        """Where everything is now."""
        return {name: buffer.address for name, buffer in self._buffers.items()}

    def fetch(self, name: str, shape: tuple[int, ...]) -> NDArray[Any]:
        """Waits for all work and copies an output into a new array."""
        made = np.empty(shape, self._dtypes[name])
        self._device.download(self._buffers[name], made)
        return made

    def free(self) -> None:
        """Gives all of it back; no work may be under way."""
        self._constants.clear()
        while self._buffers:
            self._device.free(self._buffers.popitem()[1])
