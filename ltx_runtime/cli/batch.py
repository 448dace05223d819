"""Many videos on the command line: --prompts, --count, --seeds, and --resume with a file of results."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ltx_runtime.cli.arguments import Arguments, is_typed
from ltx_runtime.cli.cluster import joined_for, on_cluster
from ltx_runtime.cli.streams import answer, folder_for, note, resuming, tell, told_of
from ltx_runtime.errors import LtxError
from ltx_runtime.files import amount, engines_folder

if TYPE_CHECKING:
    from ltx_runtime.batch.making import Executor
    from ltx_runtime.batch.results import Results
    from ltx_runtime.batch.rows import Row
    from ltx_runtime.batch.tasks import Outcome, Planned, Refused, Task
    from ltx_runtime.pipeline import Pipeline

SUFFIX = ".jsonl"  # that of files of results, as --resume takes them
SOME_FAILED = 3
_UNNAMED = "batch"
_MOST_TOLD = 50
_CORRECT = "correct what was told of them, in a file of their own, and give that to --prompts"


def make(typed: Arguments) -> None:
    """Makes the videos of a file of prompts, or of one prompt with several seeds; with --plan, only tells of them.

    Raises:
        SystemExit: code 3, if a row was refused or a video failed.
        LtxError: the file, an option or every row cannot be used, or the batch was begun before.
    """
    from ltx_runtime.batch.results import SUFFIX as RESULTS
    from ltx_runtime.batch.results import About, begin
    from ltx_runtime.batch.rows import name_of
    from ltx_runtime.batch.tasks import Planner
    from ltx_runtime.cli import request_from_arguments as asked
    from ltx_runtime.planning.options import RunOptions

    asked.check_batch_options(typed)
    seeds, changes = asked.seeds_of(typed), asked.typed_fields(typed)
    of_pipeline, options = asked.pipeline_options_of(typed), asked.run_options_of(typed)
    usual = RunOptions()
    options = {name: value for name, value in options.items() if value != getattr(usual, name)}
    folder = (typed.output_dir or Path()) if typed.output is None else typed.output.parent
    with _opened(engines_folder(typed.engines), typed.version, of_pipeline, typed) as pipe:
        typed_for = partial(_with_changes, changes)
        rows_folder = Path() if typed.prompts is None else typed.prompts.parent
        planner = Planner(pipe, options, typed_for, seeds, folder, rows_folder)
        survey = Survey("the command" if typed.prompts is None else name_of(typed.prompts))
        planned = survey.counted(planner.tasks(_rows(typed)))
        if typed.plan:
            for _ in planned:
                pass
            answer(json.dumps(survey.report(), indent=1) if typed.json else "\n".join(survey.lines()))
            raise SystemExit(SOME_FAILED if survey.refused else 0)

        def about() -> About:
            folder_of = str(pipe.engines.folder)
            return About(pipe.version.name, folder_of, of_pipeline, options, typed.output_uri, planner.asked)

        stem = typed.prompts.stem if typed.prompts is not None and typed.prompts.stem not in ("", "-") else _UNNAMED
        with (
            joined_for(typed, pipe.engines.folder),
            folder_for(folder),
            begin(folder / f"{stem}{RESULTS}", about, planned, note, overwrite=typed.overwrite) as results,
        ):
            _make(results, pipe, of_pipeline, typed, again=False)


def go_on(typed: Arguments) -> None:
    """Goes on with a batch that was interrupted, or of which some videos failed, from its file of results.

    Raises:
        SystemExit: code 3, if a video failed. Rows that were refused are told once more, but only a file of their own
            can make them, so a script that goes on until code 0 comes to an end.
        LtxError: the file or an option cannot be used, or the batch is under way.
    """
    from ltx_runtime.batch.results import reopen
    from ltx_runtime.cli import request_from_arguments as asked

    asked.check_batch_options(typed)
    assert typed.resume is not None
    with reopen(typed.resume) as results:
        results.check_unchanged()
        about = results.about
        changed = asked.pipeline_options_of(typed, {})
        of_pipeline = {
            name: value if is_typed(typed, name) else about.pipeline.get(name, value) for name, value in changed.items()
        }
        with _opened(typed.engines or Path(about.engines), about.version, of_pipeline, typed) as pipe:
            if typed.plan:
                left = sum(1 for _ in results.tasks())
                told = f"{left} of {results.planned} videos are left to make"
                answer(json.dumps({"videos": results.planned, "left": left}) if typed.json else told)
                return
            with joined_for(typed, pipe.engines.folder):
                _make(results, pipe, of_pipeline, typed, again=True)


def _opened(folder: Path, version: str | None, of_pipeline: dict[str, Any], typed: Arguments) -> Pipeline:
    """Returns a pipeline for many videos; whether its folder is trusted is typed, and never what a file says."""
    from ltx_runtime.pipeline import Pipeline

    return Pipeline(folder, version, **of_pipeline, trust_engines=typed.trust_engines, keep_loaded=True, note=note)


def check_is_no_batch(resumed: Path, folder: Path) -> None:
    """Raises LtxError if --resume is a file of prompts or a folder of videos, and names what can go on.

    Args:
        resumed: the file that was typed.
        folder: the folder of the outputs, where the results of a file of prompts may be.
    """
    from ltx_runtime.batch.results import SUFFIX as RESULTS
    from ltx_runtime.batch.rows import SUFFIXES
    from ltx_runtime.outputs.unfinished import SUFFIX as UNFINISHED

    if resumed.is_dir():
        beside = resumed.with_name(resumed.name + UNFINISHED)  # that of a folder of frames
        inside = (path for suffix in (RESULTS, UNFINISHED) for path in sorted(resumed.glob(f"*{suffix}")))
        found = next((path for path in (beside, *inside) if path.exists()), None)
        advice = "" if found else f"give a file that ends in {RESULTS} or {UNFINISHED}"
        command = resuming(found) if found else ""
        raise LtxError(f"{resumed} is a folder, from which no run goes on", advice, command)
    if resumed.suffix.lower() in SUFFIXES:
        results = (place / f"{resumed.stem}{RESULTS}" for place in (folder, resumed.parent))
        found = next((path for path in results if path.exists()), None)
        command = resuming(found) if found else ""
        raise LtxError(f"{resumed} is no file to go on from", "give it to --prompts to begin", command)


def _with_changes(changes: dict[str, Any], request: Any) -> Any:
    return replace(request, **changes)


def _rows(typed: Arguments) -> Iterator[Row]:
    """Yields the rows of the file of prompts, or a single one for what was typed."""
    from ltx_runtime.batch.rows import Row, read_rows

    if typed.prompts is None:
        yield Row(1, output=None if typed.output is None else typed.output.name)
    else:
        yield from read_rows(typed.prompts, note)


def _rows_refused(count: int, singular: str, plural: str) -> str:
    return f"1 row {singular} refused" if count == 1 else f"{count} rows {plural} refused"


class Survey:
    """Counts what is planned and tells what is refused, while tasks pass by.

    Attributes:
        name: where the rows are from, for messages.
        refused: number of rows, or videos of them, that cannot be made.
    """

    def __init__(self, name: str) -> None:
        from ltx_runtime.planning.report import Memory

        self.name, self.refused, self._work = name, 0, 0.0
        self._lines: set[int] = set()
        self._memory = Memory(0, 0)
        self._sizes: Counter[tuple[int, int, int, float]] = Counter()  # height, width, frames, frames per second

    def counted(self, planned: Iterable[tuple[Task, Planned] | Refused]) -> Iterator[Task | Refused]:
        """Yields tasks and refused rows as they come.

        Raises:
            LtxError: in the end, if there is nothing to make.
        """
        from ltx_runtime.batch.tasks import Refused

        for one in planned:
            if isinstance(one, Refused):
                self.refused += 1
                self._lines.add(one.line)
                self._tell(one)
                yield one
            else:
                task, plan = one
                height, width = plan.size
                self._sizes[height, width, plan.num_frames, plan.fps] += 1
                self._work += task.work
                self._memory = max(self._memory, plan.memory, key=lambda memory: memory.needed_bytes)
                yield task
        if self.refused > _MOST_TOLD:
            _error(f"{self.refused - _MOST_TOLD} more of {self.name} cannot be made")
        if not self._sizes:
            if self.refused:
                raise LtxError(f"nothing of {self.name} can be made", "correct what is told above")
            raise LtxError(f"{self.name} has no prompts", "write one a line")

    def _tell(self, refused: Refused) -> None:
        if self.refused <= _MOST_TOLD:
            _error(f"line {refused.line} of {self.name}: {refused.problem}")

    def report(self) -> dict[str, Any]:
        """Returns what is planned as plain data, for programs."""
        sizes = [
            {"width": width, "height": height, "frames": frames, "fps": fps, "videos": videos}
            for (height, width, frames, fps), videos in self._sizes.items()
        ]
        return {
            "videos": self._sizes.total(),
            "refused": self.refused,
            "sizes": sizes,
            "memory": asdict(self._memory),
            "operations": self._work,
        }

    def lines(self) -> Iterator[str]:
        """Yields what is planned, for people."""
        videos = self._sizes.total()
        num_frames = sum(frames * count for (_, _, frames, _), count in self._sizes.items())
        duration_s = sum(frames / fps * count for (_, _, frames, fps), count in self._sizes.items())
        yield f"{videos} {'video' if videos == 1 else 'videos'}, {num_frames} frames and {duration_s:.1f} s in all"
        for (height, width, frames, fps), videos in self._sizes.most_common():
            yield f"{videos} of {width}x{height}, {frames} frames at {fps:g} fps"
        if self._memory.needed_bytes:
            yield f"about {amount(self._memory.needed_bytes)} of memory at most, besides the weights"
        yield from self._memory.lines()
        if self.refused:
            yield _rows_refused(len(self._lines), "is", "are")


def _make(results: Results, pipe: Pipeline, of_pipeline: dict[str, Any], typed: Arguments, *, again: bool) -> None:
    """Makes what is left of a batch, and tells each outcome as soon as it is in the file of results."""
    from ltx_runtime.cli.progress import display_many

    left, work = results.left()
    again_with = resuming(results.path, *(() if typed.ray is None else ("--ray", typed.ray)))
    if not left:
        note("the video is made" if results.planned == 1 else f"all {results.planned} videos are made")
    else:
        note(f"if this is interrupted, go on with: {again_with}")
    failed = 0
    try:
        make = _executor(results, pipe, of_pipeline, typed, again=again)
        with display_many(left, work) as display:
            for outcome in make(results.tasks(), lambda task: display(task.work)):
                results.append(outcome)
                failed += outcome.result is None
                _tell(outcome, results.path, as_json=typed.json)
    except BaseException:
        note(f"what is finished is kept; go on with: {again_with}")
        raise
    if failed:
        note(f"{failed} of {left} videos failed; try them again with: {again_with}")
    if results.refused:
        when = " when the batch was begun" if again else ""
        note(f"{_rows_refused(len(results.refused), 'was', 'were')}{when}: {_CORRECT}")
    if failed or (results.refused and not again):
        raise SystemExit(SOME_FAILED)


def _executor(
    results: Results, pipe: Pipeline, of_pipeline: dict[str, Any], typed: Arguments, *, again: bool
) -> Executor:
    """Returns what makes the tasks: this process, or the cluster that it has joined."""
    from ltx_runtime.batch.making import made_here

    about, folder = results.about, results.path.parent
    if typed.ray is not None:
        return on_cluster(about, pipe, of_pipeline, folder, typed, again=again)
    if about.uri is not None:
        raise LtxError(f"this batch goes to {about.uri}, which only a cluster writes to", "add --ray auto")
    return lambda tasks, shown: made_here(tasks, pipe, about.options, folder, shown, again=again)


def _tell(outcome: Outcome, results: Path, *, as_json: bool) -> None:
    """Tells an outcome on standard output, or a failure on standard error."""
    task = outcome.task
    if outcome.result is None:
        _error(f"line {task.line}, {task.output}: {outcome.problem}")
    if as_json:
        numbers = {"number": task.number, "line": task.line}
        line = json.dumps(numbers | (outcome.result or {"file": task.output, "problem": outcome.problem}))
    elif outcome.result is not None:
        line = told_of(outcome.result)
    else:
        return
    answer(line, f"the results are in {results}")


def _error(text: str) -> None:
    tell(f"error: {text}")
