"""Makes the tasks of a batch on a cluster, and stores each video once, as soon as it is made."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ltx_runtime.batch.tasks import Outcome, Task, size_of
from ltx_runtime.cluster.destination import Destination
from ltx_runtime.cluster.node import Made
from ltx_runtime.cluster.team import Team
from ltx_runtime.errors import LtxError, explaining
from ltx_runtime.files import partial_file, partial_folder
from ltx_runtime.media.video import target_of
from ltx_runtime.outputs.plain import request_from_fields
from ltx_runtime.pipeline import Pipeline


@dataclass(frozen=True)
class Batch:
    """A batch that a cluster makes.

    Attributes:
        pipe: plans videos on this machine.
        options: fields of RunOptions by name, for every video.
        folder: the folder of the file of results, where paths in the tasks begin.
        destination: where the videos go.
    """

    pipe: Pipeline
    options: dict[str, Any]
    folder: Path
    destination: Destination


def made_on_cluster(tasks: Iterable[Task], team: Team, batch: Batch, *, again: bool) -> Iterator[Outcome]:
    """Has videos made by all makers of a cluster; one that fails does not end the rest.

    Args:
        tasks: the videos.
        team: the makers.
        batch: how and where to.
        again: whether the batch was begun before, so that what is there may be its own.

    Yields:
        An outcome for every task, in the order in which they are made.

    Raises:
        LtxError: no node can make videos.
    """
    there: deque[Outcome] = deque()
    for made in team.made(_missing(tasks, batch, there, again=again)):
        yield from _taken(there)
        yield _stored(made, batch)
    yield from _taken(there)


def _taken(outcomes: deque[Outcome]) -> Iterator[Outcome]:
    while outcomes:
        yield outcomes.popleft()


def _missing(tasks: Iterable[Task], batch: Batch, there: deque[Outcome], *, again: bool) -> Iterator[Task]:
    """Yields the tasks whose videos are not there, and keeps the outcomes of the others in `there`."""
    for task in tasks:
        try:
            name = target_of(Path(task.output)).as_posix()
            if not batch.destination.has(name) or batch.options.get("overwrite"):
                yield task
            elif again and (result := _found(task, name, batch)) is not None:  # killed between its name and its line
                there.append(Outcome(task, result))
            else:
                advice = "choose another name, or add --overwrite"
                there.append(Outcome(task, problem=str(LtxError(f"{name} exists where the videos go", advice))))
        except LtxError as error:
            there.append(Outcome(task, problem=str(error)))


def _found(task: Task, name: str, batch: Batch) -> dict[str, Any] | None:
    """Returns what a task has made, if that is what has its name; None if it is something else.

    A copy in the folder of the file of results is checked, since records name files relative to their own folder.
    """
    output = batch.folder / task.output
    is_folder = target_of(output) != output
    video = batch.pipe(request_from_fields(task.fields, batch.folder), **batch.options)
    with (
        explaining(),
        partial_folder(output.parent) if is_folder else partial_file(output.parent, output.suffix) as target,
    ):
        batch.destination.fetch(name, target)
        saved = video.is_saved_as(target.with_name(target.name + output.suffix) if is_folder else target)
        return video.result(Path(name)) | {"bytes": size_of(target)} if saved else None


def _stored(made: Made, batch: Batch) -> Outcome:
    """Stores the video of a task, and returns what became of it."""
    outcome = made.outcome
    if outcome.result is not None:
        try:
            overwrite = bool(batch.options.get("overwrite"))
            batch.destination.publish(outcome.result["file"], made.files, overwrite=overwrite)
        except LtxError as error:
            return replace(outcome, result=None, problem=str(error))
    return outcome
