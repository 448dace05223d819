"""A tar file with the same bytes for the same files, written as a stream: large files are never copied before."""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import BinaryIO, cast

from ltx_runtime.errors import LtxError

SUMS = "SHA256SUMS"
_FILE_MODE, _PROGRAM_MODE = 0o644, 0o755
_TIME = 315_532_800  # 1980-01-01 in UTC, since tar warns of times before it was common
_COPIED_BYTES = 1 << 20  # at a time
_BLOCK_BYTES, _PAX_BYTES = 512, 1536  # an entry's header, and what a long name or a size over 8 GB adds


def archive_bytes(sizes: dict[str, int]) -> int:
    """Returns the most bytes that an archive of files with these names and sizes takes."""
    sums = sum(len(name) + 70 for name in sizes)
    entries = [*sizes.values(), sums]
    rounded = sum(-(-size // _BLOCK_BYTES) * _BLOCK_BYTES + _BLOCK_BYTES + _PAX_BYTES for size in entries)
    return rounded + tarfile.RECORDSIZE + 2 * _BLOCK_BYTES


class Archive:
    """An archive that is being written; every file is in one folder.

    Attributes:
        sums: SHA-256 of every file so far, by its name.
    """

    def __init__(self, tar: tarfile.TarFile, folder: str) -> None:
        self._tar, self._folder = tar, folder
        self.sums: dict[str, str] = {}

    def add_text(self, name: str, text: str, *, program: bool = False) -> None:
        """Adds a small file."""
        content = text.encode()
        self._add(name, len(content), io.BytesIO(content), _PROGRAM_MODE if program else _FILE_MODE)

    def add_file(self, name: str, path: Path, advance: Callable[[int], None] = lambda done: None) -> None:
        """Adds a file from the disk, following links, and calls a function with each number of bytes read.

        Raises:
            LtxError: the file is shorter than it was a moment ago.
        """
        with path.open("rb") as file:
            size = path.stat().st_size
            try:
                self._add(name, size, file, _FILE_MODE, advance)
            except OSError as error:
                if error.errno is not None:  # an error of the disk
                    raise
                raise LtxError(f"{path} became shorter while it was read", "run the command again") from None

    def add_sums(self) -> None:
        """Adds the checksums of all files before, as `sha256sum --check` reads them."""
        self.add_text(SUMS, "".join(f"{digest}  {name}\n" for name, digest in sorted(self.sums.items())))

    def _add(
        self, name: str, size: int, file: BinaryIO, mode: int, advance: Callable[[int], None] = lambda done: None
    ) -> None:
        place = PurePosixPath(name)
        if place.is_absolute() or ".." in place.parts or "\\" in name or "\n" in name:
            raise LtxError(f"{name!r} is outside the bundle's folder", "do not use this version folder")
        entry = tarfile.TarInfo(f"{self._folder}/{place}")
        entry.size, entry.mode, entry.mtime = size, mode, _TIME
        reader = _Reader(file, advance)
        self._tar.addfile(entry, cast(BinaryIO, reader))
        self.sums[str(place)] = reader.digest.hexdigest()


class _Reader:
    """A file that hashes what is read from it."""

    def __init__(self, file: BinaryIO, advance: Callable[[int], None]) -> None:
        self._file, self._advance, self.digest = file, advance, hashlib.sha256()

    def read(self, size: int) -> bytes:
        data = self._file.read(size)
        self.digest.update(data)
        self._advance(len(data))
        return data


class _Writer:
    """A file that hashes what is written to it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self.digest = file, hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        return self._file.write(data)

    def tell(self) -> int:
        return self._file.tell()


@contextmanager
def archive_at(path: Path, folder: str, told: Callable[[str], None]) -> Iterator[Archive]:
    """Yields an archive that is written to a new file, and calls a function with the SHA-256 of the whole file.

    Args:
        path: the file.
        folder: name of the only folder in the archive.
        told: called at the end.
    """
    with path.open("xb") as file:
        writer = _Writer(file)
        stream = cast(BinaryIO, writer)
        tar = tarfile.TarFile(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT, copybufsize=_COPIED_BYTES)
        yield Archive(tar, folder)
        tar.close()
    told(writer.digest.hexdigest())
