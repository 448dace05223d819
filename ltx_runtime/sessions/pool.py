"""Opens sessions, and closes them after use or keeps them open for the next video."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from ltx_runtime.declared import number_of
from ltx_runtime.errors import LtxError
from ltx_runtime.sessions import Arrays, Session, UnsupportedError, open_session
from ltx_runtime.sessions.cuda.memory import GpuMemoryError
from ltx_runtime.sessions.found import Found
from ltx_runtime.sessions.processor import free_memory
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
        limit_bytes: most bytes of weights in all open sessions together; None for no limit. The usable memory of a GPU,
            and the free memory of the machine for what runs on the CPU, are further limits.
    """

    def __init__(self, keep: bool = False, limit_bytes: float | None = None) -> None:
        self._keep, self._limit = keep, limit_bytes
        self._holders = 0
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
                if not self._keeps(found) or name in self._kept:
                    yield session
                    return
                kept = self._kept[name] = _Kept(found, session, opened.pop_all())
        kept.users += 1
        try:
            yield _Sharing(kept.session, self)
        finally:
            kept.users -= 1
            if not kept.users and self._kept.get(name) is kept and not self._keeps(found):
                self._close(name)

    @contextmanager
    def replaceable(self, found: Found, replacement: Callable[[UnsupportedError], Found]) -> Iterator[Session]:
        """Yields a session like `session`, and opens another in its place if its library cannot run the graph.

        Args:
            found: what is opened first.
            replacement: returns what is opened after the library has failed to load a graph or to run it once.

        Raises:
            LtxError: a session cannot be opened, or there is no replacement.
        """
        with ExitStack() as opened:

            def open_or_replace(found: Found) -> Session:
                opened.close()
                try:
                    return opened.enter_context(self.session(found))
                except UnsupportedError as error:
                    other = replacement(error)
                return open_or_replace(other)

            yield _Replaceable(open_or_replace(found), lambda error: open_or_replace(replacement(error)))

    @contextmanager
    def keeping(self) -> Iterator[None]:
        """Keeps sessions open inside the block, whether the pool does so by itself or not."""
        self._holders += 1
        try:
            yield
        finally:
            self._holders -= 1
            if not self._keep and not self._holders:
                self._close_unused()

    def _keeps(self, found: Found) -> bool:
        """Whether a session stays open after use: not one that exceeds the limit alone."""
        fits = self._limit is None or sum(found.held_bytes.values()) <= self._limit
        return fits and (self._keep or self._holders > 0)

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
        limits = [limit for limit in (self._limit, found.usable_gpu_bytes) if limit is not None]
        while limits and self._bytes_with(found) > min(limits):
            if not self.close_one():
                return
        if found.usable_gpu_bytes is None:
            while self._kept and sum(found.held_bytes.values()) > free_memory():
                if not self.close_one():
                    return

    def _bytes_with(self, found: Found) -> int:
        """Memory of the weights of all kept sessions and of `found`; files that several share count once."""
        held = dict(found.held_bytes)
        for kept in self._kept.values():
            held |= kept.found.held_bytes
        return sum(held.values())

    def close_one(self) -> bool:
        """Closes the kept session that comes first on the road of those in no use; returns False if there is none."""
        for name in COMPONENT_NAMES:
            if name in self._kept and not self._kept[name].users:
                self._close(name)
                return True
        return False

    def _close(self, name: ComponentName) -> None:
        self._kept.pop(name).opened.close()

    def _close_unused(self) -> None:
        while self.close_one():
            pass

    def close(self) -> None:
        """Closes every session that is kept, and from now on keeps none; one in use is closed after its use."""
        self._keep = False
        self._close_unused()


def pool_of(keep_loaded: bool | float) -> SessionPool:
    """Returns a pool that keeps all sessions, none, or those whose weights fit into so many GB.

    Raises:
        LtxError: it is neither a boolean nor a number from 0.
    """
    if isinstance(keep_loaded, bool):
        return SessionPool(keep_loaded)
    gigabytes = number_of(keep_loaded, "keep_loaded")
    if not gigabytes >= 0:
        raise LtxError(f"keep_loaded must be at least 0 GB; got {gigabytes:g}", "use True for all, or False for none")
    return SessionPool(gigabytes > 0, gigabytes * 1e9)


@dataclass
class _Around:
    """What is run in place of a session, and calls it."""

    session: Session

    @property
    def component(self) -> Component:
        return self.session.component

    @property
    def outputs(self) -> Sequence[str]:
        return self.session.outputs


@dataclass
class _Sharing(_Around):
    """A kept session; a run that lacks GPU memory closes other kept sessions, one at a time, and is repeated."""

    pool: SessionPool

    def run(self, feeds: Arrays, wanted: Sequence[str] = ()) -> dict[str, np.ndarray[Any, Any]]:
        while True:
            try:
                return self.session.run(feeds, wanted)
            except GpuMemoryError:
                if not self.pool.close_one():
                    raise


@dataclass
class _Replaceable(_Around):
    """A session that makes way for another one when its library turns out, in a run, not to compute the graph."""

    other: Callable[[UnsupportedError], Session]

    def run(self, feeds: Arrays, wanted: Sequence[str] = ()) -> dict[str, np.ndarray[Any, Any]]:
        while True:
            try:
                return self.session.run(feeds, wanted)
            except UnsupportedError as error:
                self.session = self.other(error)
