"""Memory, copies and CUDA graphs on the first GPU; the only module that calls CUDA for them, through cuda-bindings.

The sessions that run engines use this module. All work goes into one stream, and a function waits for it only if its
docstring says so. Sizes are in bytes, and addresses are plain integers. This module knows nothing about engines, ports
or files.
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

    Every user calls `join` and `leave`. Memory that users share, for activations and staging, is freed when the last
    user leaves.

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
        """Counts one more user."""
        self._users += 1

    def leave(self) -> None:
        """Counts one user less, and frees the shared memory after the last one."""
        self._users -= 1
        if not self._users:
            try:
                self.arena.free()
            finally:
                self._staging.free()

    def _call(self, name: str, *arguments: Any) -> Any:
        """Calls a function of the CUDA runtime, and returns its results without the error code.

        Raises:
            GpuMemoryError: the GPU's memory is full.
            RuntimeError: any other error, with CUDA's name of it.
        """
        error, *values = getattr(self._cudart, name)(*arguments)
        if int(error) == SUCCESS:
            return values[0] if len(values) == 1 else tuple(values)
        cuda_name = error_name(self._cudart, error)
        if cuda_name == _NO_MEMORY:
            raise GpuMemoryError("the GPU's memory is full", "close other programs that use it")
        raise RuntimeError(f"{name} failed: {cuda_name}")

    def free_bytes(self) -> int:
        """Returns the free memory of the GPU in bytes."""
        return int(self._call("cudaMemGetInfo")[0])

    def total_bytes(self) -> int:
        """Returns the total memory of the GPU in bytes."""
        return int(self._call("cudaMemGetInfo")[1])

    def allocate(self, size: int, what: str, advice: str) -> Buffer:
        """Allocates GPU memory, at least one byte; its content is undefined.

        Args:
            size: number of bytes.
            what: purpose of the memory for the error message, as in "the weights of transformer".
            advice: advice of the error.

        Raises:
            GpuMemoryError: there is too little GPU memory.
        """
        try:
            return Buffer(int(self._call("cudaMalloc", max(size, 1))), size)
        except GpuMemoryError:
            raise self.too_little(size, what, advice) from None

    def too_little(self, size: int, what: str, advice: str) -> GpuMemoryError:
        """Returns the error for an allocation of `size` bytes that failed; see `allocate` for the arguments."""
        return GpuMemoryError(
            f"{what} needs {amount(size, 1)} of GPU memory, and {amount(self.free_bytes(), 1)} of "
            f"{amount(self.total_bytes(), 1)} are free",
            advice,
        )

    def free(self, buffer: Buffer) -> None:
        """Frees GPU memory; no unfinished work may use it."""
        self._call("cudaFree", buffer.address)

    def pinned(self, size: int) -> Bytes:
        """Allocates pinned host memory, which the GPU can copy to and from asynchronously.

        Raises:
            MemoryError: the host has too little memory.
        """
        try:
            address = int(self._call("cudaHostAlloc", size, self._cudart.cudaHostAllocDefault))
        except GpuMemoryError:
            raise MemoryError(f"{size} bytes that stay in place") from None
        return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))

    def free_pinned(self, array: Bytes) -> None:
        """Frees memory from `pinned`; no unfinished work may use it."""
        self._call("cudaFreeHost", array.ctypes.data)

    def upload(self, array: NDArray[Any], buffer: Buffer, offset: int = 0) -> None:
        """Copies a host array into a buffer at a byte offset; the array may be changed as soon as this returns."""
        flat = _flat(array)
        _refuse_outside(buffer, offset, flat.size)
        for begin, staged in self._staging.pieces(flat.size):
            np.copyto(staged, flat[begin : begin + staged.size])
            self._copy(buffer.address + offset + begin, staged.ctypes.data, staged.size, "cudaMemcpyHostToDevice")

    def download(self, buffer: Buffer, array: NDArray[Any]) -> None:
        """Copies the start of a buffer into a host array, after all earlier work, and waits for the copy."""
        flat = _flat(array)
        _refuse_outside(buffer, 0, flat.size)
        pending: list[tuple[int, Bytes]] = []

        def fetch() -> None:
            for begin, staged in pending:
                np.copyto(flat[begin : begin + staged.size], staged)
            pending.clear()

        for begin, staged in self._staging.pieces(flat.size, before_reuse=fetch):
            self._copy(staged.ctypes.data, buffer.address + begin, staged.size, "cudaMemcpyDeviceToHost")
            pending.append((begin, staged))
        self.synchronize()
        fetch()

    def _copy(self, target: int, source: int, size: int, kind: str) -> None:
        self._call("cudaMemcpyAsync", target, source, size, getattr(self._cudart.cudaMemcpyKind, kind), self.stream)

    def synchronize(self) -> None:
        """Waits until all work in the stream is done.

        Raises:
            RuntimeError: some of the work failed.
        """
        self._call("cudaStreamSynchronize", self.stream)

    def record(self, work: Callable[[], None]) -> Any:
        """Captures what `work` puts into the stream as a CUDA graph, without running it; `launch` runs the graph.

        Raises:
            RuntimeError: the work cannot be captured; the stream stays usable.
        """
        cudart = self._cudart
        self._call("cudaStreamBeginCapture", self.stream, cudart.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal)
        try:
            work()
        except BaseException:
            _, graph = cudart.cudaStreamEndCapture(self.stream)
            if graph is not None and int(graph):
                self._call("cudaGraphDestroy", graph)
            cudart.cudaGetLastError()  # clears the error, which a library could take for its own
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
        """Puts the work of a captured graph into the stream."""
        self._call("cudaGraphLaunch", graph, self.stream)

    def forget(self, graph: Any) -> None:
        """Frees a captured graph, which must not be running."""
        self._call("cudaGraphExecDestroy", graph)


@cache
def device() -> Device:
    """Returns the device, which is the same object for the whole process.

    Raises:
        LtxError: there is no GPU.
    """
    return Device()


def _flat(array: NDArray[Any]) -> Bytes:
    """Returns the bytes of an array as a view; raises ValueError if the array is not C-contiguous."""
    if not array.flags.c_contiguous:
        raise ValueError(f"an array {array.shape} with strides {array.strides} is not contiguous")
    return array.reshape(-1).view(np.uint8)


def _refuse_outside(buffer: Buffer, offset: int, size: int) -> None:
    if offset < 0 or offset + size > buffer.size:
        raise ValueError(f"{size} bytes at {offset} are more than a buffer of {buffer.size} holds")
