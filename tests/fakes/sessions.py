"""Sessions that run a function: ports are checked as for a real graph, the arithmetic is up to the test."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from ltx_runtime.sessions import CheckedSession
from ltx_runtime.spec.components import Component, Port

Arrays = Mapping[str, np.ndarray]


@dataclass
class FunctionRunner:
    """Runs a function of feeds instead of a graph, and keeps copies of all feeds."""

    function: Callable[[Arrays], dict[str, np.ndarray]]
    outputs: Sequence[str] = ()
    fed: list[Arrays] = field(default_factory=list)

    def run(self, feeds: Arrays, wanted: Sequence[str]) -> dict[str, np.ndarray]:
        self.fed.append({name: array.copy() for name, array in feeds.items()})
        made = self.function(feeds)
        return {name: made[name] for name in wanted}

    def close(self) -> None:
        pass


def session_of(component: Component, function: Callable[[Arrays], dict[str, np.ndarray]]) -> CheckedSession:
    """Returns an open session on `component` that computes `function`; `.runner.fed` lists its feeds so far."""
    return CheckedSession(component, FunctionRunner(function, [port.name for port in component.outputs]))


def feeds_of(ports: tuple[Port, ...], sizes: Mapping[str, int]) -> dict[str, np.ndarray]:
    """Returns an array of zeros for every port."""
    return {port.name: np.zeros(port.shape(sizes), port.dtype) for port in ports}
