"""The Session contract, the table of backends, and how a component's graph becomes an open session."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ltx_runtime.components import UNEVEN, Component, ComponentName, check_feeds
from ltx_runtime.errors import LtxError
from ltx_runtime.manifest import Engines, export_command

Arrays = Mapping[str, np.ndarray[Any, Any]]


class Runner(Protocol):
    """What a backend's `load(graph: Path, weights: Path, *, arena: bool)` returns: runs one graph until closed.

    `weights` is the folder that the graph's weights are in; file names in the graph are relative to it. With `arena`,
    memory that one layer has freed may be kept for the next.
    """

    def run(self, feeds: Arrays) -> dict[str, np.ndarray[Any, Any]]: ...

    def close(self) -> None: ...


class Session(Protocol):
    """An open component: arrays by port name in, arrays by port name out."""

    @property
    def component(self) -> Component: ...

    def run(self, feeds: Arrays) -> dict[str, np.ndarray[Any, Any]]: ...


@dataclass(frozen=True)
class Backend:
    """Where a backend lives (a module with `load`), the precision of graph it runs, and the extra that brings it."""

    module: str
    precision: str
    extra: str


BACKENDS: dict[str, Backend] = {
    "cpu": Backend("ltx_runtime.sessions.onnxruntime_cpu", "fp32", "cpu"),
}


@dataclass(frozen=True)
class CheckedSession:
    """A runner whose inputs are checked against the component's ports first."""

    component: Component
    runner: Runner

    def run(self, feeds: Arrays) -> dict[str, np.ndarray[Any, Any]]:
        """Raises ValueError if the feeds do not fit the ports."""
        check_feeds(self.component, feeds)
        return self.runner.run(feeds)


@contextmanager
def open_session(engines: Engines, name: ComponentName, backend: str = "cpu") -> Iterator[Session]:
    """An open session on one component; its memory is given back at the end of the `with` block.

    Raises:
        LtxError: the backend is unknown or not installed, or the folder has no graph for it.
    """
    graph = graph_of(engines, name, backend)
    runner = _load(BACKENDS[backend], graph, engines.weights_folder(name), arena=name not in UNEVEN)
    try:
        yield CheckedSession(engines.component(name).signature, runner)
    finally:
        runner.close()


def graph_of(engines: Engines, name: ComponentName, backend: str) -> Path:
    """The graph of one component that a backend runs.

    Raises:
        LtxError: the backend is unknown, or the folder has no graph for it.
    """
    row = BACKENDS.get(backend)
    if row is None:
        raise LtxError(f"unknown backend {backend!r}; use one of {', '.join(BACKENDS)}")
    graph = engines.component(name).graphs.get(row.precision)
    if graph is None:
        raise LtxError(
            f"{engines.folder} has no {row.precision} graph of {name}, which backend {backend} needs - "
            f"{export_command(engines.manifest.version)}"
        )
    return engines.folder / graph


def _load(row: Backend, graph: Path, weights: Path, *, arena: bool) -> Runner:
    try:
        module = importlib.import_module(row.module)
    except ModuleNotFoundError as error:
        raise LtxError(f"{error.name} is not installed - run: pip install 'ltx-engines[{row.extra}]'") from error
    runner: Runner = module.load(graph, weights, arena=arena)
    return runner
