"""The one place that touches CUDA: memory, copies and graphs of kernels on the first GPU, through cuda-bindings.

Stands below the sessions that run engines. Everything happens in one stream, and nothing here waits for it unless it
says so. Sizes are in bytes, addresses are plain numbers. Knows nothing of engines, ports or files.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ltx_runtime.files import amount
from ltx_runtime.sessions.cuda import gpu
from ltx_runtime.sessions.cuda.gpu import SUCCESS, error_name
from ltx_runtime.sessions.cuda.memory import Arena, Buffer, Bytes, GpuMemoryError, Staging

_NO_MEMORY = "cudaErrorMemoryAllocation"


class Device:
    """The first GPU and one stream on it.

    Whoever uses it joins and leaves; what users share, activations and staging, is freed when the last has left.

    Raises:
        LtxError: there is no GPU.
    """

    def __init__(self) -> None:
        self.gpu = gpu.find_gpu()
        self._cudart = gpu.cuda_runtime()
        self._users = 0
        self._call("cudaSetDevice", 0)
        self.stream = int(self._call("cudaStreamCreateWithFlags", self._cudart.cudaStreamNonBlocking))
        self.arena = Arena(self)
        self._staging = Staging(self)

    def join(self) -> None:
        """Counts one user more."""
        self._users += 1

    def leave(self) -> None:
        """Counts one user less; the last takes with it what users share."""
        self._users -= 1
        if not self._users:
            try:
                self.arena.free()
            finally:
                self._staging.free()

    def _call(self, name: str, *arguments: Any) -> Any:
        """Calls a function of CUDA and gives what it returns besides the error.

        Raises:
            GpuMemoryError: the GPU's memory is full.
            RuntimeError: any other error, by CUDA's name.
        """
        error, *values = getattr(self._cudart, name)(*arguments)
        if int(error) == SUCCESS:
            return values[0] if len(values) == 1 else tuple(values)
        called = error_name(self._cudart, error)
        if called == _NO_MEMORY:
            raise GpuMemoryError("the GPU's memory is full", "close other programs that use it")
        raise RuntimeError(f"{name} failed: {called}")

    def free_bytes(self) -> int:
        """Memory of the GPU that nobody uses."""
        return int(self._call("cudaMemGetInfo")[0])

    def total_bytes(self) -> int:
        """All memory of the GPU."""
        return int(self._call("cudaMemGetInfo")[1])

    def allocate(self, size: int, what: str, advice: str) -> Buffer:
        """Memory of the GPU, of at least one byte; what is in it is unknown.

        Args:
            size: bytes.
            what: it is for, as in "the weights of transformer"; `advice` is what to do when there is too little.

        Raises:
            GpuMemoryError: there is too little.
        """
        try:
            return Buffer(int(self._call("cudaMalloc", max(size, 1))), size)
        except GpuMemoryError:
            raise self.too_little(size, what, advice) from None

    def too_little(self, size: int, what: str, advice: str) -> GpuMemoryError:
        """The error that says so."""
        return GpuMemoryError(
            f"{what} needs {amount(size, 1)} of GPU memory, and {amount(self.free_bytes(), 1)} of "
            f"{amount(self.total_bytes(), 1)} are free",
            advice,
        )

    def free(self, buffer: Buffer) -> None:
        """Gives memory back; no work may be under way that uses it."""
        self._call("cudaFree", buffer.address)

    def pinned(self, size: int) -> Bytes:
        """Memory of the host that the GPU copies from and to by itself.

        Raises:
            MemoryError: the host has too little.
        """
        try:
            address = int(self._call("cudaHostAlloc", size, self._cudart.cudaHostAllocDefault))
        except GpuMemoryError:
            raise MemoryError(f"{size} bytes that stay in place") from None
        return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))

    def free_pinned(self, array: Bytes) -> None:
        """Gives back what `pinned` gave; no work may be under way that uses it."""
        self._call("cudaFreeHost", array.ctypes.data)

    def upload(self, array: NDArray[Any], buffer: Buffer, offset: int = 0) -> None:
        """Copies an array of the host into a buffer; the array may change as soon as this returns."""
        flat = _flat(array)
        _refuse_outside(buffer, offset, flat.size)
        for begin, staged in self._staging.pieces(flat.size):
            np.copyto(staged, flat[begin : begin + staged.size])
            self._copy(buffer.address + offset + begin, staged.ctypes.data, staged.size, "cudaMemcpyHostToDevice")

    def download(self, buffer: Buffer, array: NDArray[Any]) -> None:
        """Waits for all work and fills an array of the host from the begin of a buffer."""
        flat = _flat(array)
        _refuse_outside(buffer, 0, flat.size)
        waiting: list[tuple[int, Bytes]] = []

        def fetch() -> None:
            for begin, staged in waiting:
                np.copyto(flat[begin : begin + staged.size], staged)
            waiting.clear()

        for begin, staged in self._staging.pieces(flat.size, before_reuse=fetch):
            self._copy(staged.ctypes.data, buffer.address + begin, staged.size, "cudaMemcpyDeviceToHost")
            waiting.append((begin, staged))
        self.synchronize()
        fetch()

    def _copy(self, target: int, source: int, size: int, kind: str) -> None:
        self._call("cudaMemcpyAsync", target, source, size, getattr(self._cudart.cudaMemcpyKind, kind), self.stream)

    def synchronize(self) -> None:
        """Waits until all work is done.

        Raises:
            RuntimeError: some of it failed.
        """
        self._call("cudaStreamSynchronize", self.stream)

    def record(self, work: Callable[[], None]) -> Any:
        """Takes what `work` puts into the stream down as a graph, instead of doing it; `launch` does it.

        Raises:
            RuntimeError: it cannot be taken down; the stream is as it was.
        """
        cudart = self._cudart
        self._call("cudaStreamBeginCapture", self.stream, cudart.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal)
        try:
            work()
        except BaseException:
            _, graph = cudart.cudaStreamEndCapture(self.stream)
            if graph is not None and int(graph):
                self._call("cudaGraphDestroy", graph)
            cudart.cudaGetLastError()  # or a library takes it for its own
            raise
        try:
            graph = self._call("cudaStreamEndCapture", self.stream)
        except RuntimeError:
            cudart.cudaGetLastError()
            raise
        try:
            return self._call("cudaGraphInstantiate", graph, 0)
        finally:
            self._call("cudaGraphDestroy", graph)

    def launch(self, graph: Any) -> None:
        """Puts the work of a graph into the stream."""
        self._call("cudaGraphLaunch", graph, self.stream)

    def forget(self, graph: Any) -> None:
        """Frees a graph; no work of it may be under way."""
        self._call("cudaGraphExecDestroy", graph)


@cache
def device() -> Device:
    """The process's device.

    Raises:
        LtxError: there is none.
    """
    return Device()


def _flat(array: NDArray[Any]) -> Bytes:
    """The bytes of an array whose values lie one after another."""
    if not array.flags.c_contiguous:
        raise ValueError(f"an array {array.shape} with strides {array.strides} is not contiguous")
    return array.reshape(-1).view(np.uint8)


def _refuse_outside(buffer: Buffer, offset: int, size: int) -> None:
    if offset < 0 or offset + size > buffer.size:
        raise ValueError(f"{size} bytes at {offset} are more than a buffer of {buffer.size} holds")
