"""A GPU made of numpy arrays, stricter than a real one.

Work in a stream is not done until the stream is synchronized, so that reading, freeing or changing memory too early
fails every time. All memory starts as garbage, and no address is ever used twice.
"""

import ctypes
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

_FIRST_ADDRESS = 1 << 44  # not an address of this process
_GAP = 1 << 20
_GARBAGE = 0xA5


@dataclass
class Work:
    """Work in a stream: what it does, the memory it touches, and the CUDA graph that it belongs to."""

    does: Callable[[], None]
    touches: list[tuple[int, int]]
    graph: int = 0


@dataclass
class Machine:
    """The GPU and its driver; tests look at it, programs see it through `cudart_of`.

    Attributes:
        memory_bytes, name, compute_capability: properties of the GPU.
        driver, runtime: CUDA versions as CUDA writes them, 13000 for 13.0; 0 without a driver.
        devices: number of GPUs that the driver finds.
        errors: names of CUDA errors by function, for functions that are to fail.
        uploaded, downloaded: bytes copied so far.
        launches, captures: CUDA graphs launched and captured so far.
    """

    memory_bytes: int = 1 << 30
    name: str = "NVIDIA GeForce RTX 4090"
    compute_capability: tuple[int, int] = (8, 9)
    driver: int = 13000
    runtime: int = 13000
    devices: int = 1
    errors: dict[str, str] = field(default_factory=dict)
    uploaded: int = 0
    downloaded: int = 0
    launches: int = 0
    captures: int = 0
    blocks: dict[int, np.ndarray] = field(default_factory=dict)
    pinned: dict[int, ctypes.Array] = field(default_factory=dict)
    streams: dict[int, list[Work]] = field(default_factory=dict)
    graphs: dict[int, list[Work]] = field(default_factory=dict)
    launchable: dict[int, list[Work]] = field(default_factory=dict)
    capturing: list[Work] | None = None
    invalidated: bool = False
    _next: int = _FIRST_ADDRESS

    def used_bytes(self) -> int:
        """Returns the bytes of GPU memory that are in use."""
        return sum(block.size for block in self.blocks.values())

    def take(self, size: int) -> int | None:
        """Returns the address of new memory full of garbage; None if there is too little."""
        if size > self.memory_bytes - self.used_bytes():
            return None
        address, self._next = self._next, self._next + (-(-size // _GAP) + 1) * _GAP
        self.blocks[address] = np.full(size, _GARBAGE, np.uint8)
        return address

    def give_back(self, address: int) -> None:
        """Frees memory, which no pending work may touch."""
        assert address in self.blocks, f"{address:#x} is freed twice, or was never allocated"
        size = self.blocks[address].size
        for work in self.under_way():
            for begin, length in work.touches:
                outside = begin + length <= address or begin >= address + size
                assert outside, f"{address:#x} is freed while work that uses it is under way"
        del self.blocks[address]

    def under_way(self) -> list[Work]:
        """Returns the pending work of all streams."""
        return [work for stream in self.streams.values() for work in stream]

    def at(self, address: int, size: int) -> np.ndarray:
        """Returns a view of GPU memory that is in use."""
        for begin, block in self.blocks.items():
            if begin <= address < begin + max(block.size, 1):
                place = address - begin
                assert place + size <= block.size, f"{size} bytes at {place} of a block of {block.size}"
                return block[place : place + size]
        raise AssertionError(f"{address:#x} is no memory of the GPU that is in use")

    def host_at(self, address: int, size: int) -> np.ndarray:
        """Returns a view of pinned host memory."""
        for begin, block in self.pinned.items():
            place = address - begin
            if place >= 0 and place + size <= len(block):
                return np.frombuffer(block, np.uint8)[place : place + size]
        raise AssertionError(f"{size} bytes at {address:#x} of the host are not pinned")

    def put(self, stream: int, does: Callable[[], None], touches: list[tuple[int, int]], graph: int = 0) -> None:
        """Puts work into a stream, or records it while a graph is being captured."""
        assert int(stream) in self.streams, f"{stream} is no stream"
        for address, size in touches:
            self.at(address, size)
        work = Work(does, touches, graph)
        if self.capturing is not None:
            self.capturing.append(work)
        else:
            self.streams[int(stream)].append(work)

    def refuse_in_capture(self, name: str) -> None:
        """Fails a call that is not allowed while a graph is being captured."""
        assert self.capturing is None, f"{name} while a graph is captured"

    def do_all(self, stream: int) -> None:
        """Does the pending work of a stream."""
        waiting = self.streams[int(stream)]
        while waiting:
            work = waiting.pop(0)
            for address, size in work.touches:
                self.at(address, size)
            work.does()

    def assert_nothing_left(self) -> None:
        """Checks that everything that was allocated has been freed."""
        left = {hex(address): block.size for address, block in self.blocks.items()}
        assert left == {}, f"memory of the GPU is left: {left}"
        assert not self.pinned, f"{len(self.pinned)} blocks of pinned memory are left"
        assert not self.graphs and not self.launchable, "graphs are left"
        assert not self.under_way() and self.capturing is None, "work is left in a stream"
