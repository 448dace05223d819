"""How long work tells its caller how far it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

# Opens a stage of so many units: (name, units) -> what is told how many more units are done. Bytes, steps and frames
# are units alike.
Progress = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]


@contextmanager
def silent(name: str, units: int) -> Iterator[Callable[[int], None]]:
    """Progress that shows nothing."""
    yield lambda done: None
