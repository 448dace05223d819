"""The place of the videos of a batch: a folder, or a URI of a file system that pyarrow knows, such as s3://bucket/videos."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from ltx_runtime.errors import LtxError, explaining, first_line
from ltx_runtime.files import partial_folder, place_new
from ltx_runtime.media.video import TakenError, is_frame
from ltx_runtime.packages import need
from ltx_runtime.replacing.exchange import exchanged
from ltx_runtime.replacing.keeping import keep_rest

# File systems on which a file appears when it is whole. On all others it is written under another name and renamed.
_WHOLE = ("s3", "gcs", "abfs")
_UNFINISHED = ".unfinished"
_ADVICE = "check the address and your credentials for it, or leave --output-uri out"
_PASSWORD = re.compile(r"//[^/@]*@")


class Destination(Protocol):
    """A place that takes whole videos."""

    def publish(self, name: str, files: Mapping[str, bytes], *, overwrite: bool) -> None:
        """Stores a video so that nothing is seen half-written.

        Args:
            name: the name of its file, or of its folder of frames, relative to this place, with slashes.
            files: the content of the file, or of every file of the folder, by name relative to this place.
            overwrite: whether what is there is replaced.

        Raises:
            TakenError: a file of that name is there, and `overwrite` is false.
            LtxError: the files cannot be written.
        """

    def has(self, name: str) -> bool:
        """Returns whether there is a file or a folder of this name."""

    def fetch(self, name: str, target: Path) -> None:
        """Copies a file or a folder of this place to a path of this machine."""


class Folder:
    """A folder on a disk."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def has(self, name: str) -> bool:
        """Returns whether there is a file or a folder of this name."""
        return (self._path / name).exists()

    def fetch(self, name: str, target: Path) -> None:
        """Copies a file or a folder of this place to a path of this machine."""
        target.parent.mkdir(parents=True, exist_ok=True)
        source = self._path / name
        if source.is_dir():
            shutil.copytree(source, target, dirs_exist_ok=True)
        else:
            shutil.copyfile(source, target)

    def publish(self, name: str, files: Mapping[str, bytes], *, overwrite: bool) -> None:
        """Stores a video, which appears at once even if it is a folder of frames; see `Destination`."""
        target = self._path / name
        with explaining(f"write {target}"):
            target.parent.mkdir(parents=True, exist_ok=True)
            with partial_folder(target.parent) as folder:
                whole = folder / target.name
                for file, content in files.items():
                    path = whole / Path(file).relative_to(name)
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(content)
                self._place(whole, target, overwrite=overwrite)

    def _place(self, whole: Path, target: Path, *, overwrite: bool) -> None:
        if overwrite and target.is_dir() and whole.is_dir():
            keep_rest(target, whole, lambda file: is_frame(Path(file)))
            exchanged(whole, target)
        elif overwrite:
            whole.replace(target)
        else:
            try:
                place_new(whole, target)
            except FileExistsError:
                raise TakenError(f"{target} exists", "choose another name, or add --overwrite") from None


class Remote:
    """A folder on a file system that pyarrow knows.

    Args:
        file_system: a FileSystem of pyarrow.
        root: the folder there.
        uri: its address, for messages.
    """

    def __init__(self, file_system: Any, root: str, uri: str) -> None:
        self._file_system, self._root, self._uri = file_system, root.rstrip("/"), uri

    def has(self, name: str) -> bool:
        """Returns whether there is a file or a folder of this name."""
        from pyarrow.fs import FileType  # noqa: PLC0415

        with _explained(self._uri):
            return bool(self._file_system.get_file_info(self._place(name)).type != FileType.NotFound)

    def fetch(self, name: str, target: Path) -> None:
        """Copies a file or a folder of this place to a path of this machine."""
        from pyarrow.fs import FileType, LocalFileSystem, copy_files  # noqa: PLC0415

        with _explained(self._uri):
            is_folder = self._file_system.get_file_info(self._place(name)).type == FileType.Directory
            (target if is_folder else target.parent).mkdir(parents=True, exist_ok=True)
            copy_files(self._place(name), str(target), self._file_system, LocalFileSystem())

    def publish(self, name: str, files: Mapping[str, bytes], *, overwrite: bool) -> None:
        """Stores a video, each file of which appears when it is whole; see `Destination`."""
        if not overwrite and self.has(name):
            raise TakenError(f"{self._uri}/{name} exists", "choose another name, or add --overwrite")
        for file, content in files.items():
            with _explained(self._uri):
                self._write(self._place(file), content)

    def _write(self, place: str, content: bytes) -> None:
        is_whole = self._file_system.type_name in _WHOLE
        if not is_whole:
            self._file_system.create_dir(place.rpartition("/")[0], recursive=True)
        path = place if is_whole else place + _UNFINISHED
        try:
            with self._file_system.open_output_stream(path) as stream:
                stream.write(content)
            if not is_whole:
                self._file_system.move(path, place)
        except BaseException:
            self._remove(path)
            raise

    def _remove(self, path: str) -> None:
        try:
            self._file_system.delete_file(path)
        except (OSError, ValueError):  # it is not there, or whatever broke the writing breaks this as well
            return

    def _place(self, name: str) -> str:
        return f"{self._root}/{name}"


@contextmanager
def _explained(uri: str) -> Iterator[None]:
    """Converts what pyarrow raises to an LtxError that names the place."""
    try:
        yield
    except (OSError, ValueError) as error:
        raise LtxError(f"cannot use {uri}: {first_line(error)}", _ADVICE) from None


def destination_of(uri: str | None, folder: Path) -> Destination:
    """Returns the place that was asked for.

    Args:
        uri: an address such as s3://bucket/videos or file:///videos; None for the folder.
        folder: the folder of the outputs.

    Raises:
        LtxError: the address is of no file system that pyarrow knows, or pyarrow is not installed.
    """
    if uri is None:
        return Folder(folder)
    need("pyarrow", extra="ray")
    from pyarrow.fs import FileSystem, LocalFileSystem  # noqa: PLC0415

    shown = _PASSWORD.sub("//", uri).partition("?")[0].rstrip("/")
    try:
        file_system, root = FileSystem.from_uri(uri)
    except (OSError, ValueError, ImportError) as error:
        raise LtxError(
            f"{shown} is no place that pyarrow can write to: {first_line(error)}",
            "give an address such as s3://bucket/folder, gs://bucket/folder or file:///folder",
        ) from None
    return Folder(Path(root)) if isinstance(file_system, LocalFileSystem) else Remote(file_system, root, shown)
