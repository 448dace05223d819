"""Checks, before anything runs, that every file to read is there and that no file to write is any other of the run."""

from __future__ import annotations

import errno
import os
import sys
import unicodedata
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ltx_runtime.errors import LtxError, explaining
from ltx_runtime.files import partial_folder
from ltx_runtime.folder.finding import tidy_around
from ltx_runtime.folder.manifest import Engines
from ltx_runtime.media.pictures import file_of
from ltx_runtime.media.video import TakenError
from ltx_runtime.planning.options import RunOptions
from ltx_runtime.planning.request import Request
from ltx_runtime.replacing.tidying import tidy
from ltx_runtime.weights.lora import files_of

SAVING = ("save_embeddings", "save_latents", "save_noise")  # fields of RunOptions
_Identity = tuple[object, ...]


@dataclass(frozen=True)
class Places:
    """The files of a run.

    Attributes:
        engines: the version folder, into which nothing is written.
        reads: files to read, by what they are for the user.
        writes: files, or folders of frames, to write.
        overwrite: whether files to write may exist.
    """

    engines: Engines
    reads: Mapping[str, Path]
    writes: Mapping[str, Path]
    overwrite: bool = False

    def check(self, own: Collection[str] = ()) -> None:
        """Checks the files to write, without a change to their folders.

        Args:
            own: absolute paths of those that this run may find, since it wrote them before it was interrupted.

        Raises:
            LtxError: a file exists, its folder is not there or not to be written, or it is another file of the run.
        """
        self.check_distinct()
        for path in self.writes.values():
            with explaining(f"write {path}"):
                _check_name(path, replace=self.overwrite or str(path.absolute()) in own)

    def try_writing(self, note: Callable[[str], None]) -> None:
        """Writes and deletes an empty file in place of each file to write, before anything is computed for it.

        What killed runs have left there and around the version folder is cleared away first.

        Args:
            note: is called with what that frees.

        Raises:
            LtxError: a file cannot be written, whatever the rights of its folder promise.
        """
        tidy_around(self.engines.folder, note)
        for parent in {path.parent for path in self.writes.values()}:
            tidy(parent, note)
        for path in self.writes.values():
            with explaining(f"write {path}"), partial_folder(path.parent) as folder:
                (folder / path.name).touch()

    def check_distinct(self) -> None:
        """Raises LtxError if a file to write is also read, is written twice, or is in a folder that must be left alone.

        Files are compared by what they are on the disk, whatever their spelling and the links that lead to them.
        """
        read = {_identity(path): label for label, path in self._all_reads()}
        version_folder = _identity(self.engines.folder)
        written: dict[_Identity, str] = {}
        for label, path in self.writes.items():
            identity = _identity(path)
            if identity in read:
                raise LtxError(f"{path} would be both {read[identity]} and {label}", "give another name")
            if identity in written:
                raise LtxError(f"{path} would be both {written[identity]} and {label}", "give another name")
            written[identity] = label
        for label, path in self.writes.items():
            for parent in map(_identity, Path(os.path.realpath(path)).parents):
                if parent == version_folder:
                    raise LtxError(f"{label} would be in the version folder: {path}", "choose another folder")
                if parent in written:
                    raise LtxError(f"{label} would be inside {written[parent]}: {path}", "choose another folder")

    def _all_reads(self) -> Iterator[tuple[str, Path]]:
        manifest = self.engines.manifest
        for name in manifest.files:
            yield f"a file of {self.engines.folder}", manifest.place(self.engines.folder, name)
        yield from self.reads.items()

    def adding(self, writes: Mapping[str, Path] | None = None, reads: Mapping[str, Path] | None = None) -> Places:
        """Returns the places with further files to write or to read."""
        return replace(self, reads={**self.reads, **(reads or {})}, writes={**self.writes, **(writes or {})})


def _check_name(path: Path, *, replace: bool) -> None:
    """Checks that a file could be written under this name, as far as can be seen.

    Raises:
        LtxError: the name is taken, or that of a folder.
        OSError: it cannot be a name, or its folder is not there or not to be written.
    """
    if not path.name or path.is_dir():
        raise LtxError(f"cannot write {path}: it is a folder", "give a file name")
    with suppress(FileNotFoundError):
        path.lstat()
        if not replace:
            raise TakenError(f"{path} exists", "choose another name, or add --overwrite (in Python: overwrite=True)")
    path.parent.stat()
    if not os.access(path.parent, os.W_OK | os.X_OK):
        is_read_only = hasattr(os, "statvfs") and os.statvfs(path.parent).f_flag & os.ST_RDONLY
        number = errno.EROFS if is_read_only else errno.EACCES
        raise OSError(number, os.strerror(number), str(path))


def check_readable(options: RunOptions) -> None:
    """Raises LtxError if a file of embeddings, latents or noise cannot be opened."""
    for path in (options.embeddings, options.initial_latents, options.noise):
        if path is not None:
            with explaining(f"read {path}"), path.open("rb"):
                pass


def places_of(engines: Engines, request: Request | None, options: RunOptions) -> Places:
    """Returns the files of a request, without its output; `request` is None for latents that were saved.

    Raises:
        LtxError: an image or clip is not there.
    """
    saved = {"embeddings": options.embeddings, "initial latents": options.initial_latents, "noise": options.noise}
    reads = {f"the file of {name}": path for name, path in saved.items() if path is not None}
    if request is not None:
        sources = [*(one.media for one in request.conditions), request.video]
        media = [file_of(source) for source in sources if isinstance(source, (str, Path))]
        reads |= {f"the image or clip {path}": path for path in media}
        reads |= {f"the LoRA {path}": path for one in request.loras for path in files_of(one.file)}
    kept = {
        "embeddings": options.save_embeddings,
        "latents": options.save_latents,
        "noise": options.save_noise,
    }
    writes = {f"the file for {name}": path for name, path in kept.items() if path is not None}
    return Places(engines, reads, writes, options.overwrite)


def confined(about: dict[str, Any], path: Path) -> dict[str, Any]:
    """Returns how a video is made, as another user or another machine may say it: beside the file, replacing nothing.

    Args:
        about: what `about_of` returns.
        path: the file that says so.

    Raises:
        LtxError: a file would be saved outside the folder of `path`.
    """
    folder = path.absolute().parent
    options = {name: value for name, value in about["options"].items() if name != "overwrite"}
    for place in (Path(str(options[name])) for name in SAVING if options.get(name) is not None):
        if not place.is_absolute() or os.path.realpath(place.parent) != os.path.realpath(folder):
            raise LtxError(
                f"{path} was not written by you on this machine, and its run would also write {place}",
                "start the run again",
            )
    return {**about, "options": options, "output": str(folder / Path(about["output"]).name)}


def _identity(path: Path) -> _Identity:
    """Identifies a file: by device and number if it exists, else by its folder and its name."""
    real = Path(os.path.realpath(path))
    try:
        status = real.stat()
        return status.st_dev, status.st_ino
    except (OSError, ValueError):
        pass
    name = unicodedata.normalize("NFC", real.name)
    if sys.platform in ("darwin", "win32"):  # their file systems take names that differ in case for the same
        name = name.casefold()
    return (*_identity(real.parent), name) if real.parent != real else (name,)
