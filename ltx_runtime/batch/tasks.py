"""Rows become tasks, one for every video: with a seed, a name that no other has, and a plan that was checked."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path, PurePath
from typing import Any

from ltx_runtime.batch.rows import Row
from ltx_runtime.errors import LtxError
from ltx_runtime.media.video import TakenError, check_output
from ltx_runtime.noise.noise import check_seed
from ltx_runtime.outputs.names import names_for
from ltx_runtime.outputs.plain import fields_of_request, relative_name, request_from_fields
from ltx_runtime.outputs.unfinished import place_beside
from ltx_runtime.pipeline import RESUMED_FIELDS, Pipeline
from ltx_runtime.planning.preset import read_preset
from ltx_runtime.planning.report import Memory
from ltx_runtime.planning.request import Request, random_seed

_KEPT_PLANS = 1024
_PRESET = "preset"


@dataclass(frozen=True)
class Task:
    """One video to make, as plain data.

    Attributes:
        number: its number in the batch, from 1.
        line: the line of the file of prompts in which its row begins.
        fields: fields of Request by name, the seed among them; paths are relative to the folder of the outputs.
        output: the file of the video, relative to the same folder, with slashes.
        work: its estimated floating-point operations.
    """

    number: int
    line: int
    fields: dict[str, Any]
    output: str
    work: float


@dataclass(frozen=True)
class Refused:
    """A row, or one of its videos, that cannot be made, and why."""

    line: int
    problem: str


@dataclass(frozen=True)
class Outcome:
    """The outcome of a task.

    Attributes:
        task: the task.
        result: what was made, see `Video.result`, and its `bytes`; `file` is relative to the folder of the outputs.
            None if it failed.
        problem: why it failed; empty if it did not.
    """

    task: Task
    result: dict[str, Any] | None = None
    problem: str = ""


def is_inside(output: str) -> bool:
    """Returns whether a name is that of a file inside the folder to which it is relative."""
    path = PurePath(output)
    return not (path.is_absolute() or path.drive or ".." in path.parts or "\0" in output) and path.name != ""


def size_of(target: Path) -> int:
    """Returns the bytes of a video: of its file, or of all files in its folder of frames."""
    return sum(path.stat().st_size for path in (target.iterdir() if target.is_dir() else [target]))


@dataclass(frozen=True)
class Seeds:
    """The seeds of every row: those listed, or as many as `count` from its own on, or from a random one."""

    listed: tuple[int, ...] = ()
    count: int = 1

    def of(self, seed: int | None) -> Iterable[int]:
        first = random_seed() if seed is None else seed
        return self.listed or range(first, first + self.count)


def check_seeds(seeds: Seeds) -> None:
    """Raises LtxError if a seed is out of range or listed twice, or the count is not positive."""
    for seed in seeds.listed:
        check_seed(seed)
        if seeds.listed.count(seed) > 1:
            raise LtxError(f"seeds has {seed} twice", "give every seed once")
    if seeds.count < 1:
        raise LtxError(f"count must be at least 1; got {seeds.count}", "use 1 or more")


@dataclass(frozen=True)
class Planned:
    """The plan of a video: height and width in pixels, length, memory, and the operations of all stages."""

    size: tuple[int, int]
    num_frames: int
    fps: float
    memory: Memory
    work: float


class Planner:
    """Turns rows into tasks, and plans each of them without running anything.

    Args:
        pipe: plans the videos.
        options: fields of RunOptions by name, for every video.
        typed: returns a row's request with what was typed for all rows.
        seeds: the seeds of every row.
        folder: the folder of the outputs.
        rows_folder: the folder where paths in rows begin.
    """

    def __init__(
        self,
        pipe: Pipeline,
        options: dict[str, Any],
        typed: Callable[[Request], Request],
        seeds: Seeds,
        folder: Path,
        rows_folder: Path,
    ) -> None:
        self._pipe, self._options, self._typed, self._seeds = pipe, options, typed, seeds
        self._folder, self._rows_folder = folder, rows_folder
        self._outputs: dict[str, int] = {}
        # Rows mostly differ in prompt and seed alone, which no plan depends on.
        self._plan = lru_cache(_KEPT_PLANS)(self._planned)
        shown = {name: value for name, value in options.items() if name not in RESUMED_FIELDS}
        typed_for_all = fields_of_request(typed(Request()), folder)
        self._asked = hashlib.sha256()
        place = relative_name(rows_folder, folder)  # the same rows elsewhere name other images
        self._add((pipe.version.name, shown, typed_for_all, seeds.listed, seeds.count, place))

    @property
    def asked(self) -> str:
        """Checksum of what was asked for until now: the rows, and what holds for all of them.

        It does not depend on random seeds, on files that exist, or on how much of the machine is used.
        """
        return self._asked.hexdigest()

    def _add(self, data: Sequence[Any]) -> None:
        self._asked.update(json.dumps(data, sort_keys=True).encode() + b"\n")

    def tasks(self, rows: Iterable[Row]) -> Iterator[tuple[Task, Planned] | Refused]:
        """Yields the tasks of all rows with their plans, in order; in place of what cannot be made, the reason."""
        number = 0
        for row_number, row in enumerate(rows, start=1):
            self._add((row.fields, row.output, row.problem))
            try:
                if row.problem:
                    raise LtxError(row.problem)
                request = self._request(row)
                seeds = self._seeds.of(request.seed)
            except LtxError as error:
                yield Refused(row.line, str(error))
                continue
            for seed in seeds:
                number += 1
                try:
                    yield self._task(number, row_number, row, replace(request, seed=seed))
                except LtxError as error:
                    yield Refused(row.line, str(error))

    def _request(self, row: Row) -> Request:
        fields, preset = dict(row.fields), row.fields.get(_PRESET)
        if isinstance(preset, str):
            del fields[_PRESET]
        request = request_from_fields(fields, self._rows_folder)
        if isinstance(preset, str):
            request = replace(request, preset=read_preset(self._rows_folder / preset))
        return self._typed(request)

    def _task(self, number: int, row_number: int, row: Row, request: Request) -> tuple[Task, Planned]:
        assert request.seed is not None
        check_seed(request.seed)
        # A plan needs some prompt; an empty one is refused.
        planned = self._plan(replace(request, prompt=request.prompt and "prompt", seed=0))
        output = self._output(row_number, row, request)
        self._check_output(output, row, planned)
        return Task(number, row.line, fields_of_request(request, self._folder), output, planned.work), planned

    def _planned(self, request: Request) -> Planned:
        video = self._pipe(request, **self._options)
        memory = video.memory()
        assert memory is not None  # only latents that were saved have no plan
        return Planned(video.size, video.ending.num_frames, video.ending.fps, memory, sum(video.work().values()))

    def _output(self, row_number: int, row: Row, request: Request) -> str:
        """Returns the name of a video: that of its row, with the seed if the row has several; or one made from both."""
        assert request.seed is not None
        if row.output is None:
            named = next(names_for(Path(), request.prompt, request.seed)).name
            return f"{row_number:04d}-{named}"
        path = PurePath(row.output)
        if not is_inside(row.output):
            raise LtxError(
                f"output must be a file name inside the folder of the videos; got {row.output!r}",
                "give a relative name",
            )
        if self._seeds.count > 1 or self._seeds.listed:
            path = path.with_name(f"{path.stem}-{request.seed}{path.suffix}")
        return path.as_posix()

    def _check_output(self, output: str, row: Row, planned: Planned) -> None:
        """Raises LtxError if a video cannot have this name: its format cannot hold it, or the name is taken."""
        path, overwrite = self._folder / output, bool(self._options.get("overwrite"))
        target = str(check_output(path, *planned.size, planned.fps, overwrite=overwrite, folder_exists=False))
        if row.output is None:  # names made from number and prompt differ from each other
            other = self._outputs.get(target, row.line)
        else:
            other = self._outputs.setdefault(target, row.line)
        if other != row.line:
            raise TakenError(f"{output} is the output of line {other} as well", "give every video a name of its own")
        if not overwrite and place_beside(path).exists():
            raise TakenError(f"an earlier run of {output} was interrupted", "add --overwrite to start again")
