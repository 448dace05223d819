"""The Session contract, the table of backends, and how a component becomes an open session."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ltx_runtime.errors import LtxError
from ltx_runtime.folder.address import EngineAddress
from ltx_runtime.folder.manifest import Engines, export_command
from ltx_runtime.folder.profiles import Profile
from ltx_runtime.folder.sidecar import Sidecar
from ltx_runtime.spec.components import Component, ComponentName, check_feeds

Arrays = Mapping[str, np.ndarray[Any, Any]]
AUTO = "auto"
# Of a GPU: other programs and the driver have some, and so have a context and its libraries. Not measured yet.
_USABLE, _CONTEXT_BYTES, _SMALLEST_BYTES = 0.9, 1_500_000_000, 500_000_000


class UnsupportedError(LtxError):
    """A backend's library cannot run a graph, which only shows when it is loaded."""


@dataclass(frozen=True)
class Found:
    """The ONNX graph that a backend would run for a component; nothing of it is loaded.

    Attributes:
        backend: a name of BACKENDS.
        component: its ports.
        path: the file of the graph, or of the engine.
        weights: the folder of the weight files, which the graph names relative to it.
        precision: the precision of the graph, or of the graph that the engine was built from.
        weights_bytes: size of the weight files, or of the engine with the weights that are its inputs.
        gpu_bytes: total memory of the GPU that it runs on; None on a CPU.
        gpu_memory_bytes: how much of that may be used; None for all that is free.
        threads: number of CPU threads; None for one per core.
        reasons: why each backend before this one was passed over, one clause each.
    """

    backend: str
    component: Component
    path: Path
    weights: Path
    precision: str = "fp32"
    weights_bytes: int = 0
    gpu_bytes: int | None = None
    gpu_memory_bytes: int | None = None
    threads: int | None = None
    reasons: tuple[str, ...] = ()

    @property
    def profiles(self) -> Sequence[Profile]:
        """The sizes it serves; empty for a graph, which serves all."""
        return ()

    @property
    def usable_gpu_bytes(self) -> int | None:
        """GPU memory that this component and all that is open beside it may take; None on a CPU."""
        if self.gpu_bytes is None:
            return None
        return min(int(_USABLE * self.gpu_bytes), self.gpu_memory_bytes or self.gpu_bytes)

    @property
    def activation_bytes(self) -> int | None:
        """Estimated GPU memory left for activations; None on a CPU."""
        usable = self.usable_gpu_bytes
        if usable is None:
            return None
        return max(usable - self._loaded_bytes() - _CONTEXT_BYTES, _SMALLEST_BYTES)

    def _loaded_bytes(self) -> int:
        return self.path.stat().st_size


@dataclass(frozen=True, kw_only=True)
class FoundEngine(Found):
    """The engine that a backend would run for a component, checked by its sidecar; see `engine_found`.

    Attributes:
        address: names the engine, and the command that builds it again.
        sidecar: says what it was built from, for which sizes, and where its weights are.
    """

    address: EngineAddress
    sidecar: Sidecar

    @property
    def profiles(self) -> Sequence[Profile]:
        """The sizes it serves, in the engine's own order."""
        return self.sidecar.profiles

    def _loaded_bytes(self) -> int:
        return self.weights_bytes

    def rebuild_command(self) -> str:
        """The command that builds the engine again as it was built."""
        return self.address.rebuild_command(self.sidecar.options)


class Runner(Protocol):
    """What a backend's `load` returns: runs one graph or engine until closed.

    `outputs` are the names it can give: the component's, and of an engine's decoder besides
    `frames` (B, F, H, W, 3) uint8 RGB and `mean` (B,) float32 of the video, which is not finite if any value is not.
    """

    @property
    def outputs(self) -> Sequence[str]: ...

    def run(self, feeds: Arrays, wanted: Sequence[str]) -> dict[str, np.ndarray[Any, Any]]: ...

    def close(self) -> None: ...


class Session(Protocol):
    """An open component: arrays by port name in, arrays by port name out."""

    @property
    def component(self) -> Component: ...

    @property
    def outputs(self) -> Sequence[str]: ...

    def run(self, feeds: Arrays, wanted: Sequence[str] = ()) -> dict[str, np.ndarray[Any, Any]]: ...


@dataclass(frozen=True)
class Backend:
    """Where a backend lives, and the extra that brings its library.

    The module has `find(engines, name, backend) -> Found`, which raises LtxError with why it cannot run the component,
    and `load(found) -> Runner`.
    """

    module: str
    extra: str


# In the order in which they are tried.
BACKENDS: dict[str, Backend] = {
    "tensorrt": Backend("ltx_runtime.sessions.trt.session", "tensorrt"),
    "tensorrt_rtx": Backend("ltx_runtime.sessions.trt.session", "tensorrt-rtx"),
    "cuda": Backend("ltx_runtime.sessions.onnxruntime_cuda", "gpu"),
    "cpu": Backend("ltx_runtime.sessions.onnxruntime_cpu", "cpu"),
}


@dataclass(frozen=True)
class CheckedSession:
    """A runner whose inputs are checked against the component's ports first."""

    component: Component
    runner: Runner

    @property
    def outputs(self) -> Sequence[str]:
        """Names of what it can give."""
        return self.runner.outputs

    def run(self, feeds: Arrays, wanted: Sequence[str] = ()) -> dict[str, np.ndarray[Any, Any]]:
        """Runs it once; gives the component's own outputs unless others are wanted.

        A read-only array that is the same object as at the last run may be taken for unchanged.

        Raises:
            ValueError: the feeds do not fit the ports.
        """
        check_feeds(self.component, feeds)
        return self.runner.run(feeds, wanted or [port.name for port in self.component.outputs])


def find(engines: Engines, name: ComponentName, backend: str = AUTO, *, after: str = "") -> Found:
    """Finds the graph or engine that runs a component: of one backend, or of the first that can.

    With `after`, only the backends behind that one in the order of preference are tried.

    Raises:
        LtxError: the backend is unknown, not installed, or cannot run the component here.
    """
    if backend != AUTO and backend not in BACKENDS:
        raise LtxError(f"unknown backend {backend!r}", f"use one of {', '.join((AUTO, *BACKENDS))}")
    order = list(BACKENDS)
    tried = order[order.index(after) + 1 if after else 0 :] if backend == AUTO else [backend]
    reasons: list[str] = []
    for one in tried:
        try:
            found = _module(one).find(engines, name, one)
        except LtxError as error:
            if one == tried[-1]:
                raise
            reasons.append(f"{one}: {error.problem}")
            continue
        assert isinstance(found, Found)
        return replace(found, reasons=tuple(reasons))
    raise AssertionError("there is no backend")


@contextmanager
def open_session(found: Found) -> Iterator[Session]:
    """An open session on what was found; its memory is given back at the end of the `with` block.

    Raises:
        LtxError: it cannot be loaded.
    """
    runner: Runner = _module(found.backend).load(found)
    try:
        yield CheckedSession(found.component, runner)
    finally:
        runner.close()


def graph_found(engines: Engines, name: ComponentName, backend: str, precisions: Sequence[str]) -> Found:
    """The graph of a component in the first precision there is, as what a backend runs.

    Raises:
        LtxError: the folder has no graph for it.
    """
    entry = engines.component(name)
    for precision in precisions:
        if precision in entry.graphs:
            path = engines.folder / entry.graphs[precision]
            files = engines.manifest.files
            size_bytes = sum(files[file].size_bytes for file in entry.weights if file in files)
            return Found(backend, entry.signature, path, engines.weights_folder(name), precision, size_bytes)
    raise LtxError(
        f"{engines.folder} has no {' or '.join(precisions)} graph of {name}, which backend {backend} needs",
        command=export_command(engines.manifest.version),
    )


def engine_found(address: EngineAddress, sidecar: Sidecar, gpu_bytes: int | None = None) -> FoundEngine:
    """The engine at an address, as what its backend runs on a GPU of so many bytes of memory."""
    engines, name = address.engines, address.component
    return FoundEngine(
        address.maker.builder,
        engines.component(name).signature,
        address.path,
        engines.weights_folder(name),
        address.precision,
        weights_bytes=address.path.stat().st_size + sidecar.weight_inputs_bytes,
        gpu_bytes=gpu_bytes,
        address=address,
        sidecar=sidecar,
    )


def _module(backend: str) -> Any:
    row = BACKENDS[backend]
    try:
        return importlib.import_module(row.module)
    except ModuleNotFoundError as error:
        raise LtxError(f"{error.name} is not installed", command=f"pip install 'ltx-engines[{row.extra}]'") from error
