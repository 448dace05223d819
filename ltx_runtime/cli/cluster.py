"""Many videos on a cluster: --ray, and the options that belong to it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ltx_runtime.cli.arguments import Arguments
from ltx_runtime.cli.streams import note
from ltx_runtime.errors import LtxError

if TYPE_CHECKING:
    from ltx_runtime.batch.making import Executor, Shown
    from ltx_runtime.batch.results import About
    from ltx_runtime.batch.tasks import Outcome, Task
    from ltx_runtime.pipeline import Pipeline


@contextmanager
def joined_for(typed: Arguments, engines: Path) -> Iterator[None]:
    """Joins the cluster that was asked for, if any, after a check of the options that belong to it.

    Args:
        typed: the options.
        engines: the version folder, which is sent if that was asked for.

    Raises:
        LtxError: an option is invalid, there is no such cluster, or the version folder is too large to be sent.
    """
    if typed.ray is None:
        yield
        return
    from ltx_runtime.cluster.destination import destination_of
    from ltx_runtime.cluster.joining import joined

    if typed.ray_cpus is not None and typed.ray_cpus < 1:
        raise LtxError(f"ray-cpus must be at least 1; got {typed.ray_cpus}", "leave it out for all cores of a node")
    destination_of(typed.output_uri, Path())
    with joined(typed.ray, engines if typed.send_engines else None):
        yield


def on_cluster(
    about: About, pipe: Pipeline, of_pipeline: dict[str, Any], folder: Path, typed: Arguments, *, again: bool
) -> Executor:
    """Returns a function that has the nodes of the joined cluster make the tasks of a batch.

    Args:
        about: how the batch is made.
        pipe: plans videos on this machine.
        of_pipeline: arguments of the nodes' Pipelines by name.
        folder: the folder of the file of results.
        typed: the options of the cluster.
        again: whether the batch was begun before.

    Raises:
        LtxError: the videos cannot be stored where they are to go.
    """
    from ltx_runtime.cluster.destination import destination_of
    from ltx_runtime.cluster.making import Batch, made_on_cluster
    from ltx_runtime.cluster.node import Share
    from ltx_runtime.cluster.team import Team

    if typed.ray_cpus is not None and of_pipeline["threads"] is None:
        of_pipeline = of_pipeline | {"threads": typed.ray_cpus}
    of_pipeline = of_pipeline | {"trust_engines": typed.trust_engines}
    place = Path(os.path.realpath(folder))
    team = Team(Share(pipe.engines.folder, typed.send_engines, of_pipeline, about.options, place), typed.ray_cpus, note)
    batch = Batch(pipe, about.options, folder, destination_of(about.uri, folder))

    def made(tasks: Iterable[Task], shown: Shown) -> Iterator[Outcome]:
        for outcome in made_on_cluster(tasks, team, batch, again=again):
            with shown(outcome.task):
                yield outcome

    return made
