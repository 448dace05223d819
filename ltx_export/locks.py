"""One process at a time writes a folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from ltx_runtime.errors import LtxError

_WAIT_S = 0.2


@contextmanager
def locked(lock: Path, writer: str) -> Iterator[None]:
    """Holds a lock file inside the block, and removes it at the end.

    Args:
        lock: in a folder that exists.
        writer: who holds it and what for, as in "export writes engines/0.9.5".

    Raises:
        LtxError: another process holds it.
    """
    from filelock import FileLock, SoftFileLock  # noqa: PLC0415

    with ExitStack() as held:
        try:
            try:
                held.enter_context(FileLock(lock, timeout=_WAIT_S))
            except NotImplementedError:  # network file systems without locks
                held.enter_context(SoftFileLock(lock, timeout=_WAIT_S))
        except TimeoutError:
            raise LtxError(f"another {writer} (it holds {lock}) - wait until it has ended") from None
        held.callback(_remove, lock)
        yield


def _remove(lock: Path) -> None:
    with suppress(OSError):  # Windows removes no file that is held; it is locked anew the next time
        lock.unlink()
