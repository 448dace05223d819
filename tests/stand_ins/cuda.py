"""Stand-in for cuda.bindings.runtime on a GPU of numpy arrays: same arguments, same results (error, value...)."""
# ruff: noqa: N802, N803

import ctypes
import enum
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

from stand_ins.gpu_machine import Machine

HOST_TO_DEVICE, DEVICE_TO_HOST = "cudaMemcpyHostToDevice", "cudaMemcpyDeviceToHost"
_ERRORS = {
    "cudaSuccess": 0,
    "cudaErrorInvalidValue": 1,
    "cudaErrorMemoryAllocation": 2,
    "cudaErrorInsufficientDriver": 35,
    "cudaErrorDevicesUnavailable": 46,
    "cudaErrorNoDevice": 100,
    "cudaErrorIllegalAddress": 700,
    "cudaErrorStreamCaptureUnsupported": 900,
    "cudaErrorStreamCaptureInvalidated": 901,
}
_KINDS = {"cudaMemcpyHostToHost": 0, HOST_TO_DEVICE: 1, DEVICE_TO_HOST: 2, "cudaMemcpyDeviceToDevice": 3}
_MODES = {"Global": 0, "ThreadLocal": 1, "Relaxed": 2}


def types_of_cuda() -> ModuleType:
    """Returns the enumerations of the real package if it is installed, else equal ones."""
    made = ModuleType("cuda_types")
    try:
        real = importlib.import_module("cuda.bindings.runtime")
    except ImportError:
        real = None
    modes = {f"cudaStreamCaptureMode{name}": value for name, value in _MODES.items()}
    for name, members in (("cudaError_t", _ERRORS), ("cudaMemcpyKind", _KINDS), ("cudaStreamCaptureMode", modes)):
        setattr(made, name, getattr(real, name) if real else enum.IntEnum(name, members))
    made.cudaStreamNonBlocking, made.cudaHostAllocDefault = 1, 0
    return made


@dataclass
class Properties:
    """Properties of the GPU that a program may read."""

    name: bytes
    major: int
    minor: int
    totalGlobalMem: int  # noqa: N815  (CUDA's own name)


class Handle(int):
    """Handle of a stream, a graph, or an executable graph."""


def cudart_of(machine: Machine) -> ModuleType:
    """Returns the stand-in for cuda.bindings.runtime; every function returns (error, value...)."""
    made = types_of_cuda()
    for part in (_about, _memory, _copies, _streams, _graphs):
        for name, function in part(machine, made).items():
            setattr(made, name, _checked(machine, made, name, function))
    return made


def _checked(machine: Machine, cuda: ModuleType, name: str, function: Callable) -> Callable:
    """Wraps a function so that it returns the error that a test wants, if any."""

    def call(*arguments):
        if name in machine.errors:
            values = 2 if name == "cudaMemGetInfo" else 1
            return (getattr(cuda.cudaError_t, machine.errors[name]), *(None,) * values)
        made = function(*arguments)
        return made if name == "cudaGetErrorName" else (made if isinstance(made, tuple) else (made,))

    call.__wrapped__ = function  # gives it the function's signature
    return call


def _about(machine: Machine, cuda: ModuleType) -> dict[str, Callable]:
    error = cuda.cudaError_t

    def cudaGetDeviceCount():
        if not machine.driver or machine.driver // 1000 < machine.runtime // 1000:
            return error.cudaErrorInsufficientDriver, None
        return (error.cudaSuccess, machine.devices) if machine.devices else (error.cudaErrorNoDevice, None)

    def cudaSetDevice(device):
        assert 0 <= device < machine.devices
        return error.cudaSuccess

    def cudaGetDeviceProperties(device):
        assert 0 <= device < machine.devices
        name = machine.name.encode().ljust(256, b"\0")
        return error.cudaSuccess, Properties(name, *machine.compute_capability, machine.memory_bytes)

    def cudaDriverGetVersion():
        return error.cudaSuccess, machine.driver

    def cudaRuntimeGetVersion():
        return error.cudaSuccess, machine.runtime

    def cudaGetErrorName(error):
        return cuda.cudaError_t.cudaSuccess, error.name.encode()

    def cudaGetLastError():
        return error.cudaSuccess

    return _named(locals())


def _memory(machine: Machine, cuda: ModuleType) -> dict[str, Callable]:
    error = cuda.cudaError_t

    def cudaMalloc(size):
        machine.refuse_in_capture("cudaMalloc")
        assert size > 0, "nothing is allocated"
        address = machine.take(size)
        return (error.cudaErrorMemoryAllocation, None) if address is None else (error.cudaSuccess, address)

    def cudaFree(devPtr):
        machine.refuse_in_capture("cudaFree")
        machine.give_back(devPtr)
        return error.cudaSuccess

    def cudaMemGetInfo():
        return error.cudaSuccess, machine.memory_bytes - machine.used_bytes(), machine.memory_bytes

    def cudaHostAlloc(size, flags):
        machine.refuse_in_capture("cudaHostAlloc")
        assert size > 0 and flags == 0
        block = (ctypes.c_uint8 * size)()
        machine.pinned[ctypes.addressof(block)] = block
        return error.cudaSuccess, ctypes.addressof(block)

    def cudaFreeHost(ptr):
        machine.refuse_in_capture("cudaFreeHost")
        assert ptr in machine.pinned, "pinned memory is freed twice, or was never allocated"
        assert not machine.under_way(), "pinned memory is freed while work is under way"
        del machine.pinned[ptr]
        return error.cudaSuccess

    return _named(locals())


def _copies(machine: Machine, cuda: ModuleType) -> dict[str, Callable]:
    def cudaMemcpyAsync(dst, src, count, kind, stream):
        machine.refuse_in_capture("cudaMemcpyAsync")
        if kind == getattr(cuda.cudaMemcpyKind, HOST_TO_DEVICE):
            machine.host_at(src, count)

            def copy():
                machine.at(dst, count)[:] = machine.host_at(src, count)
                machine.uploaded += count

            machine.put(stream, copy, [(dst, count)])
        else:
            assert kind == getattr(cuda.cudaMemcpyKind, DEVICE_TO_HOST), f"a copy of kind {kind}"
            machine.host_at(dst, count)

            def copy():
                machine.host_at(dst, count)[:] = machine.at(src, count)
                machine.downloaded += count

            machine.put(stream, copy, [(src, count)])
        return cuda.cudaError_t.cudaSuccess

    return _named(locals())


def _streams(machine: Machine, cuda: ModuleType) -> dict[str, Callable]:
    def cudaStreamCreateWithFlags(flags):
        assert flags == cuda.cudaStreamNonBlocking
        stream = Handle(0x5000 + len(machine.streams))
        machine.streams[int(stream)] = []
        return cuda.cudaError_t.cudaSuccess, stream

    def cudaStreamSynchronize(stream):
        machine.refuse_in_capture("cudaStreamSynchronize")
        machine.do_all(stream)
        return cuda.cudaError_t.cudaSuccess

    def cudaStreamBeginCapture(stream, mode):
        assert int(stream) in machine.streams and machine.capturing is None
        assert mode in list(cuda.cudaStreamCaptureMode)
        machine.capturing, machine.invalidated = [], False
        return cuda.cudaError_t.cudaSuccess

    def cudaStreamEndCapture(stream):
        assert int(stream) in machine.streams and machine.capturing is not None
        taken, machine.capturing = machine.capturing, None
        if machine.invalidated:
            return cuda.cudaError_t.cudaErrorStreamCaptureInvalidated, None
        machine.captures += 1
        graph = Handle(0x6000 + machine.captures)
        machine.graphs[int(graph)] = taken
        return cuda.cudaError_t.cudaSuccess, graph

    return _named(locals())


def _graphs(machine: Machine, cuda: ModuleType) -> dict[str, Callable]:
    def cudaGraphInstantiate(graph, flags):
        assert flags == 0
        launchable = Handle(0x7000 + int(graph))
        machine.launchable[int(launchable)] = machine.graphs[int(graph)]
        return cuda.cudaError_t.cudaSuccess, launchable

    def cudaGraphLaunch(graphExec, stream):
        machine.launches += 1
        for work in machine.launchable[int(graphExec)]:
            machine.put(stream, work.does, work.touches, int(graphExec))
        return cuda.cudaError_t.cudaSuccess

    def cudaGraphDestroy(graph):
        del machine.graphs[int(graph)]
        return cuda.cudaError_t.cudaSuccess

    def cudaGraphExecDestroy(graphExec):
        assert all(work.graph != int(graphExec) for work in machine.under_way()), "a graph is destroyed under way"
        del machine.launchable[int(graphExec)]
        return cuda.cudaError_t.cudaSuccess

    return _named(locals())


def _named(found: dict[str, object]) -> dict[str, Callable]:
    return {name: value for name, value in found.items() if name.startswith("cuda") and callable(value)}
