"""Sessions made of a function: ports are checked as they are for a real graph, arithmetic is whatever a test says."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from ltx_runtime.sessions import CheckedSession
from ltx_runtime.spec.components import Component, Port

Arrays = Mapping[str, np.ndarray]


@dataclass
class FunctionRunner:
    """Runs a function of feeds instead of a graph, and keeps every feed it was given."""

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
    """An open session on `component` that computes `function`; `.runner.fed` are its feeds so far."""
    return CheckedSession(component, FunctionRunner(function, [port.name for port in component.outputs]))


def feeds_of(ports: tuple[Port, ...], sizes: Mapping[str, int]) -> dict[str, np.ndarray]:
    """An array of zeros for every port."""
    return {port.name: np.zeros(port.shape(sizes), port.dtype) for port in ports}
