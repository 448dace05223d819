"""Opens sessions, and closes them after use or keeps them open for the next video."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from ltx_runtime.sessions import Arrays, Found, Session, open_session
from ltx_runtime.sessions.cuda.memory import GpuMemoryError
from ltx_runtime.spec.components import COMPONENT_NAMES, Component, ComponentName


@dataclass
class _Kept:
    """A session that stays open, the graph or engine that it runs, the stack that closes it, and its users now."""

    found: Found
    session: Session
    opened: ExitStack
    users: int = 0


class SessionPool:
    """At most one kept session for each component.

    A kept session stays open until its memory is needed, and always while it is used. The component that comes first on
    the road is closed first, since the next video needs it for the shortest time.

    Args:
        keep: whether sessions stay open after use.
        limit_bytes: most bytes of weights in all open sessions together; None for no limit. The usable memory of a GPU
            is a further limit.
    """

    def __init__(self, keep: bool = False, limit_bytes: float | None = None) -> None:
        self.keep = keep
        self._limit = limit_bytes
        self._kept: dict[ComponentName, _Kept] = {}

    @contextmanager
    def session(self, found: Found) -> Iterator[Session]:
        """Yields an open session of a graph or engine; closes it at the end of the block unless it is kept.

        Raises:
            LtxError: the session cannot be opened.
        """
        name = found.component.name
        kept = self._kept.get(name)
        if kept is not None and kept.found != found:
            if not kept.users:
                self._close(name)
            kept = None
        if kept is None:
            self._make_room(found)
            with ExitStack() as opened:
                session = self._opened(found, opened)
                if not self.keep or name in self._kept:
                    yield session
                    return
                kept = self._kept[name] = _Kept(found, session, opened.pop_all())
        kept.users += 1
        try:
            yield _Sharing(self, kept.session)
        finally:
            kept.users -= 1

    def _opened(self, found: Found, opened: ExitStack) -> Session:
        """Opens a session; as long as it does not fit on the GPU, closes a kept session and tries again."""
        while True:
            try:
                return opened.enter_context(open_session(found))
            except GpuMemoryError:
                if not self.close_one():
                    raise

    def _make_room(self, found: Found) -> None:
        """Closes kept sessions until the weights of `found` fit beside those that stay open."""
        limits = [one for one in (self._limit, found.usable_gpu_bytes) if one is not None]
        if not limits:
            return
        while sum(one.found.weights_bytes for one in self._kept.values()) + found.weights_bytes > min(limits):
            if not self.close_one():
                return

    def close_one(self) -> bool:
        """Closes the kept session that comes first on the road of those in no use; returns False if there is none."""
        for name in COMPONENT_NAMES:
            if name in self._kept and not self._kept[name].users:
                self._close(name)
                return True
        return False

    def _close(self, name: ComponentName) -> None:
        self._kept.pop(name).opened.close()

    def close(self) -> None:
        """Closes every session that is kept."""
        for name in tuple(self._kept):
            self._close(name)


@dataclass(frozen=True)
class _Sharing:
    """A kept session; a run that lacks GPU memory closes other kept sessions, one at a time, and is repeated."""

    pool: SessionPool
    session: Session

    @property
    def component(self) -> Component:
        return self.session.component

    @property
    def outputs(self) -> Sequence[str]:
        return self.session.outputs

    def run(self, feeds: Arrays, wanted: Sequence[str] = ()) -> dict[str, np.ndarray[Any, Any]]:
        while True:
            try:
                return self.session.run(feeds, wanted)
            except GpuMemoryError:
                if not self.pool.close_one():
                    raise
