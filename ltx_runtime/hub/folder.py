"""Files of the hub -> a folder: fetches what is missing, resumes what was interrupted, and checks every byte.

A file gets its final name only when its checksum is the hub's. `remote.py` transfers the bytes.
"""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ltx_runtime.errors import LtxError, explaining
from ltx_runtime.files import amount, check_space, locked
from ltx_runtime.hub.remote import Published, RemoteFile, cached, checksum_like, fetch

Report = Callable[[str], None]

# Also the place of `hf download --local-dir`'s records, so that each program trusts the files that the other fetched.
STATE = Path(".cache", "huggingface", "download")
_TAKEN = ".taken"  # suffix of a file from the shared cache that is not checked yet
_CLOCK_SLACK_S = 1  # as in huggingface_hub: file systems round times, and network file systems have their own clocks


@contextmanager
def filling(folder: Path, writer: str) -> Iterator[None]:
    """Holds a lock on a folder inside the block, since two downloads would append to the same partial files.

    Args:
        folder: created if missing.
        writer: who writes, for the message of another one.

    Raises:
        LtxError: another process holds the lock, or the disk refuses something; names the file that it refuses.
    """
    lock = folder / STATE / "ltx-export.lock"
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        with locked(lock, f"{writer} is writing to {folder}"):
            for left in lock.parent.rglob(f"*{_TAKEN}"):  # by a killed download; it may be a link to the cache's file
                left.unlink()
            yield
    except OSError as error:
        elsewhere = error.filename is not None and not Path(os.fsdecode(error.filename)).is_relative_to(folder)
        with explaining(None if elsewhere else f"download to {folder}"):
            raise


def complete(files: Sequence[Published], folder: Path, report: Report) -> None:
    """Fetches the files that a folder lacks, or of which the hub has other ones since they were downloaded.

    Args:
        files: the files on the hub.
        folder: the folder; files have the paths that their targets name.
        report: called with each line of progress.

    Raises:
        LtxError: a file cannot be fetched, the disk has too little space, a checksum is wrong, or somebody has put
            another file under the name of one. A partial file is kept, unless its checksum is wrong.
    """
    missing = [
        published
        for published in files
        if not _is_current(published, folder, report) and not _take_from_cache(published, folder, report)
    ]
    check_space(folder, sum(published.size - _kept_bytes(published, folder) for published in missing))
    for published in missing:
        partial, kept_bytes = _partial(published, folder), _kept_bytes(published, folder)
        report(
            f"{published.file.target}: {amount(published.size - kept_bytes)} of {amount(published.size)} "
            f"from {published.file.repository}"
        )
        fetch(published, partial)
        if not _has_right_checksum(partial, published, report):
            partial.unlink()
            raise LtxError(
                f"{published.file.target} arrived with a wrong checksum and was deleted", "run the command again"
            )
        _move_into_place(published, partial, folder)


def _has_right_checksum(path: Path, published: Published, report: Report) -> bool:
    report(f"{published.file.target}: computing its checksum")  # takes a minute for the largest file
    return checksum_like(path, like=published.checksum) == published.checksum


def _kept_bytes(published: Published, folder: Path) -> int:
    """Returns the size of the partial file of an interrupted download; deletes partial files that cannot be resumed."""
    partial = _partial(published, folder)
    partial.parent.mkdir(parents=True, exist_ok=True)
    _drop_partials(published, folder, keep=partial)
    if partial.is_file() and partial.stat().st_size > published.size:
        partial.unlink()
    return partial.stat().st_size if partial.is_file() else 0


def _drop_partials(published: Published, folder: Path, keep: Path | None = None) -> None:
    pattern = re.compile(re.escape(Path(published.file.target).name) + r"\.[0-9a-f]+\.incomplete")
    for path in _partial(published, folder).parent.iterdir():
        if pattern.fullmatch(path.name) and path != keep:
            path.unlink()


def _is_current(published: Published, folder: Path, report: Report) -> bool:
    """Returns whether the folder has the hub's file; computes the checksum only if no current record of it exists.

    Raises:
        LtxError: there is a file of this name that no download has left there.
    """
    path = folder / published.file.target
    if not path.is_file():
        return False
    if path.stat().st_size == published.size:
        if _recorded(published.file, folder) == published.checksum:
            report(f"{published.file.target}: already present")
            return True
        if _has_right_checksum(path, published, report):
            _record(published, folder)
            report(f"{published.file.target}: already present, checksum verified")
            return True
    if _recorded(published.file, folder) is None:
        raise LtxError(
            f"{path} is not the hub's file, and was changed or put there by somebody",
            "move it away, or delete it to download the hub's",
        )
    report(f"{published.file.target}: the hub has another one by now, which replaces it")
    return False


def _recorded(file: RemoteFile, folder: Path) -> str | None:
    """Returns the checksum that a file had when it was downloaded; None if it was changed since, or not downloaded."""
    try:
        _, checksum, time_s = _record_file(file, folder).read_text().split()
        unchanged = (folder / file.target).stat().st_mtime - _CLOCK_SLACK_S <= float(time_s)
        return checksum if unchanged else None
    except (FileNotFoundError, ValueError):
        return None


def _record(published: Published, folder: Path) -> None:
    """Records the checksum of a file in the folder, in huggingface_hub's format."""
    path = _record_file(published.file, folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{published.commit}\n{published.checksum}\n{time.time()}\n")


def _record_file(file: RemoteFile, folder: Path) -> Path:
    return folder / STATE / f"{file.target}.metadata"


def _partial(published: Published, folder: Path) -> Path:
    """Returns the path of a partial file; the checksum in it keeps two versions of a file from being mixed."""
    return folder / STATE / f"{published.file.target}.{published.checksum}.incomplete"


def is_available_offline(file: RemoteFile, folder: Path, report: Report) -> bool:
    """Returns whether the folder has the file or gets it from the shared cache, without asking the hub."""
    if (folder / file.target).is_file():
        return True
    cached_copy = cached(file, "main")
    return cached_copy is not None and _take_from_cache(cached_copy[1], folder, report)


def _take_from_cache(published: Published, folder: Path, report: Report) -> bool:
    """Links or copies a file from the shared cache into the folder; returns False if the cache has no intact copy."""
    cached_copy = cached(published.file, published.commit)
    if cached_copy is None or (cached_copy[1].checksum, cached_copy[1].size) != (published.checksum, published.size):
        return False
    # Not the partial file's name: a resumed download would append to the link, and so to the file in the cache.
    temporary = _partial(published, folder).with_suffix(_TAKEN)
    temporary.parent.mkdir(parents=True, exist_ok=True)
    temporary.unlink(missing_ok=True)
    try:
        try:
            os.link(cached_copy[0], temporary)
        except OSError:
            check_space(folder, published.size)
            shutil.copyfile(cached_copy[0], temporary)
        if not _has_right_checksum(temporary, published, report):
            return False
        _move_into_place(published, temporary, folder)
    finally:
        temporary.unlink(missing_ok=True)
    report(f"{published.file.target}: taken from {cached_copy[0]}")
    return True


def _move_into_place(published: Published, complete: Path, folder: Path) -> None:
    """Moves a checked file to its final name, and records its checksum."""
    path = folder / published.file.target
    path.parent.mkdir(parents=True, exist_ok=True)
    os.replace(complete, path)
    _record(published, folder)
    _drop_partials(published, folder)
