"""The type of the functions through which long-running work reports its progress."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

# Opens a stage: (name, number of units) -> context manager of a function that is called with the number of units
# completed since its last call. Units are bytes, steps or frames.
Progress = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]


@contextmanager
def silent(name: str, units: int) -> Iterator[Callable[[int], None]]:
    """Implements Progress without showing anything."""
    yield lambda done: None
