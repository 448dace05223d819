"""The maker on a node of a cluster: a warm Pipeline that makes tasks, in a folder that mirrors that of the outputs.

Files that a task names come with it, and its video goes back as bytes, so that nodes need no disk in common. Records
hold paths relative to the output, so the mirror has every file under its own path below a temporary folder: the bytes
of a video do not depend on where it was made.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ltx_runtime.batch.making import made_here
from ltx_runtime.batch.tasks import Outcome, Task
from ltx_runtime.errors import LtxError, explaining
from ltx_runtime.folder.manifest import MANIFEST
from ltx_runtime.media.pictures import file_of
from ltx_runtime.outputs.plain import fields_of_request, request_from_fields
from ltx_runtime.packages import RELEASE
from ltx_runtime.pipeline import Pipeline
from ltx_runtime.progress import silent
from ltx_runtime.weights.lora import files_of


@dataclass(frozen=True)
class Share:
    """The orders that hold for all tasks of a maker.

    Attributes:
        engines: the version folder on the machine that hands out the tasks, absolute.
        is_sent: whether Ray has copied the version folder, which is then the working folder of the maker's process.
        pipeline: arguments of Pipeline by name.
        options: fields of RunOptions by name, for every video.
        folder: the folder of the outputs, absolute, without links.
    """

    engines: Path
    is_sent: bool
    pipeline: dict[str, Any]
    options: dict[str, Any]
    folder: Path


@dataclass(frozen=True)
class Introduction:
    """The release and the version folder of a maker, which must be the same for all videos of a batch.

    Attributes:
        release: the version of this program on its node.
        engines: the checksum of the manifest of its version folder.
    """

    release: str
    engines: str


@dataclass(frozen=True)
class Made:
    """A task that a maker is done with.

    Attributes:
        outcome: what became of it.
        files: content of every file of the video, by its path relative to the folder of the outputs, with slashes.
        notes: what the pipeline has noted meanwhile.
    """

    outcome: Outcome
    files: dict[str, bytes] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


class NodeMaker:
    """Makes tasks on a node, one at a time, with networks that stay loaded."""

    def __init__(self, share: Share) -> None:
        self._share = share
        self._pipe: Pipeline | None = None
        self._notes: list[str] = []
        self._root = Path(os.path.realpath(tempfile.mkdtemp(prefix="ltx-node-")))

    def introduce(self) -> Introduction:
        """Opens the version folder and verifies its files.

        Raises:
            LtxError: the node has no such folder, or a file of it is missing or changed.
        """
        folder = Path.cwd() if self._share.is_sent else self._share.engines
        introduction = introduction_of(folder)
        self._pipe = Pipeline(folder, **self._share.pipeline, keep_loaded=True, note=self._notes.append)
        return introduction

    def make(self, task: Task, inputs: Mapping[Path, Any]) -> Made:
        """Makes a task.

        Args:
            task: the task.
            inputs: Ray's reference to the content of every file that the task names, by its absolute path.

        Raises:
            LtxError: the node cannot store the files of the task.
        """
        import ray  # noqa: PLC0415

        assert self._pipe is not None
        folder = self._mirrored(self._share.folder)
        try:
            with explaining():
                folder.mkdir(parents=True, exist_ok=True)
                for path, content in zip(inputs, ray.get([*inputs.values()]), strict=True):
                    place = self._mirrored(path)
                    place.parent.mkdir(parents=True, exist_ok=True)
                    place.write_bytes(content)
            shown = nullcontext(silent)
            (outcome,) = made_here([task], self._pipe, self._share.options, folder, lambda _: shown, again=False)
            if outcome.problem:  # paths of the mirror mean nothing to whoever reads it
                outcome = Outcome(task, problem=outcome.problem.replace(str(self._root), ""))
            files = {} if outcome.result is None else _contents(folder, folder / outcome.result["file"])
            notes = [note.replace(str(self._root), "") for note in self._notes]
            return Made(outcome, files, notes)
        finally:
            self._notes.clear()
            for place in self._root.iterdir():
                shutil.rmtree(place, ignore_errors=True)

    def _mirrored(self, path: Path) -> Path:
        drive = path.drive.replace(":", "")
        return self._root / drive / path.relative_to(path.anchor)

    def __del__(self) -> None:
        with suppress(AttributeError):  # its making has failed
            shutil.rmtree(self._root, ignore_errors=True)


def introduction_of(folder: Path) -> Introduction:
    """Returns what this machine says of itself, given a version folder, of whose files only the manifest is read.

    Raises:
        LtxError: there is no such folder.
    """
    manifest = folder / MANIFEST
    if not manifest.is_file():
        advice = "copy the version folder there, or use a folder that all nodes share"
        raise LtxError(f"it has no version folder {folder}", advice)
    return Introduction(RELEASE, hashlib.sha256(manifest.read_bytes()).hexdigest())  # of all other files too


def with_inputs(task: Task, folder: Path) -> tuple[Task, list[Path]]:
    """Returns a task whose files are named relative to the folder of the outputs, and these files.

    Args:
        task: the task.
        folder: the folder of the outputs, absolute, without links.

    Returns:
        The task, and the absolute paths of all its files, whose folders are without links as in records.

    Raises:
        LtxError: a file is not there.
    """
    request = request_from_fields(task.fields, folder)
    conditions = tuple(replace(one, media=_file_of(one.media)) for one in request.conditions)
    video = None if request.video is None else _file_of(request.video)
    request = replace(request, conditions=conditions, video=video)
    media = [_file_of(one.media) for one in conditions] + ([] if video is None else [video])
    files = [*media, *(path for one in request.loras for path in files_of(one.file))]
    real = [Path(os.path.realpath(path.parent), path.name) for path in files]
    return replace(task, fields=fields_of_request(request, folder)), real


def _file_of(source: Any) -> Path:
    return file_of(source).absolute()


def _contents(folder: Path, target: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in _files(target)}


def _files(target: Path) -> Iterator[Path]:
    if target.is_dir():
        yield from sorted(target.iterdir())
    else:
        yield target
