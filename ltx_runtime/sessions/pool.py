"""Open sessions, closed after use or kept for the next video."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from ltx_runtime.sessions import Arrays, Found, Session, open_session
from ltx_runtime.sessions.cuda.memory import GpuMemoryError
from ltx_runtime.spec.components import COMPONENT_NAMES, Component, ComponentName


@dataclass(frozen=True)
class _Kept:
    """A session that stays open, what it runs, and what closes it."""

    found: Found
    session: Session
    opened: ExitStack


class SessionPool:
    """Sessions by component.

    A session that is kept stays open until its place is needed: the earliest component of the road leaves first, since
    the next video needs it for the shortest time.

    Args:
        keep: whether sessions stay open after use.
        limit_bytes: of weights, in all kept sessions together; None for no limit. A GPU has a limit of its own.
    """

    def __init__(self, keep: bool = False, limit_bytes: float | None = None) -> None:
        self.keep = keep
        self._limit = limit_bytes
        self._kept: dict[ComponentName, _Kept] = {}

    @contextmanager
    def session(self, found: Found) -> Iterator[Session]:
        """An open session on what was found; it is closed at the end of the block unless it is kept.

        Raises:
            LtxError: it cannot be opened.
        """
        name = found.component.name
        kept = self._kept.get(name)
        if kept is not None and kept.found != found:
            self._close(name)
            kept = None
        if kept is not None:
            yield _Sharing(self, name, kept.session)
            return
        self._make_room(found)
        with ExitStack() as opened:
            session = self._opened(found, opened)
            if not self.keep:
                yield session
                return
            self._kept[name] = _Kept(found, session, opened.pop_all())
        yield _Sharing(self, name, session)

    def _opened(self, found: Found, opened: ExitStack) -> Session:
        """Opens a session; of a GPU that is full, kept sessions are closed until it fits."""
        while True:
            try:
                return opened.enter_context(open_session(found))
            except GpuMemoryError:
                if not self.leave_one(except_for=found.component.name):
                    raise

    def _make_room(self, found: Found) -> None:
        """Closes kept sessions until this one fits beside the others."""
        limits = [one for one in (self._limit, found.usable_gpu_bytes) if one is not None]
        if not limits:
            return
        while sum(one.found.weights_bytes for one in self._kept.values()) + found.weights_bytes > min(limits):
            if not self.leave_one(except_for=found.component.name):
                return

    def leave_one(self, *, except_for: ComponentName) -> bool:
        """Closes the kept session that comes first on the road; False if there is no other than the one named."""
        for name in COMPONENT_NAMES:
            if name in self._kept and name != except_for:
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
    """A kept session: where a run needs more GPU memory, others are closed and it is run again."""

    pool: SessionPool
    name: ComponentName
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
                if not self.pool.leave_one(except_for=self.name):
                    raise
