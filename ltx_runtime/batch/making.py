"""Makes the tasks of a batch in this process, one after another, with networks that stay loaded."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from ltx_runtime.batch.tasks import Outcome, Task, size_of
from ltx_runtime.errors import LtxError, explaining
from ltx_runtime.files import check_space
from ltx_runtime.media.video import target_of
from ltx_runtime.outputs.plain import request_from_fields
from ltx_runtime.outputs.unfinished import open_unfinished, place_beside
from ltx_runtime.pipeline import RESUMED_FIELDS, Pipeline
from ltx_runtime.progress import Progress
from ltx_runtime.video import Video

Shown = Callable[[Task], AbstractContextManager[Progress]]
# Makes tasks and yields their outcomes as they come, in any order: `made_here` with all else filled in, or one that
# hands them to other machines.
Executor = Callable[[Iterable[Task], Shown], Iterator[Outcome]]
_SMALL_BYTES = 100_000


def made_here(
    tasks: Iterable[Task], pipe: Pipeline, options: dict[str, Any], folder: Path, shown: Shown, *, again: bool
) -> Iterator[Outcome]:
    """Makes videos one after another; one that fails does not end the rest.

    Args:
        tasks: the videos.
        pipe: makes them; it should keep its networks loaded.
        options: fields of RunOptions by name, for every video.
        folder: the folder of the outputs, where paths in the tasks begin.
        shown: shows how far a task is.
        again: whether the batch was begun before, so that what is there may be its own.

    Yields:
        An outcome for every task, in their order.

    Raises:
        LtxError: a video failed, and the disk has no room for another one.
    """
    most_bytes = _SMALL_BYTES
    for task in tasks:
        try:
            with explaining(), shown(task) as progress:
                outcome = Outcome(task, _made(task, pipe, options, folder, progress, again=again))
        except LtxError as error:
            outcome = Outcome(task, problem=str(error))
        except MemoryError:
            outcome = Outcome(task, problem="not enough memory - ask for a smaller size or fewer frames")
        except Exception as error:  # a bug, which need not cost the videos of a whole night
            logging.getLogger("ltx_runtime").exception("video %d failed by a bug; please report it", task.number)
            outcome = Outcome(task, problem=f"a bug of this program, please report it: {error!r}")
        yield outcome
        if outcome.result is None:
            check_space(folder, most_bytes)
        else:
            most_bytes = max(most_bytes, outcome.result["bytes"])


def _made(
    task: Task, pipe: Pipeline, options: dict[str, Any], folder: Path, progress: Progress, *, again: bool
) -> dict[str, Any]:
    """Makes a video, or the rest of one, and returns what was made; see `Outcome`."""
    output = folder / task.output
    kept, target = place_beside(output), target_of(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    video = pipe(request_from_fields(task.fields, folder), **options)
    if again and kept.exists():
        unfinished = open_unfinished(kept)
        unfinished.about["output"] = str(output.absolute())  # the folder may have been moved
        if video.is_of(unfinished.recorded()[0], output):
            video = pipe.resume(unfinished, **{name: options[name] for name in RESUMED_FIELDS if name in options})
        else:
            unfinished.unlock()
    elif again and target.exists() and video.is_saved_as(output):  # killed between its name and its line
        return _result(video, target, folder)
    return _result(video, video.save(output, progress, unfinished=lambda path: None), folder)


def _result(video: Video, target: Path, folder: Path) -> dict[str, Any]:
    return video.result(target.relative_to(folder)) | {"bytes": size_of(target)}
