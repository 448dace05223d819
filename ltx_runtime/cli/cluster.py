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
def on_cluster(
    about: About, pipe: Pipeline, of_pipeline: dict[str, Any], folder: Path, typed: Arguments, *, again: bool
) -> Iterator[Executor]:
    """Joins a cluster, and yields a function that has its nodes make the tasks of a batch.

    Args:
        about: how the batch is made.
        pipe: plans videos on this machine.
        of_pipeline: arguments of the nodes' Pipelines by name.
        folder: the folder of the file of results.
        typed: the options of the cluster.
        again: whether the batch was begun before.

    Raises:
        LtxError: there is no such cluster, the videos cannot be stored, or an option is invalid.
    """
    from ltx_runtime.cluster.destination import destination_of
    from ltx_runtime.cluster.joining import joined
    from ltx_runtime.cluster.making import Batch, made_on_cluster
    from ltx_runtime.cluster.node import Share
    from ltx_runtime.cluster.team import Team

    assert typed.ray is not None
    cpus, engines = typed.ray_cpus, pipe.engines.folder
    if cpus is not None and cpus < 1:
        raise LtxError(f"ray-cpus must be at least 1; got {cpus}", "leave it out for all cores of a node")
    destination = destination_of(about.uri, folder)
    if cpus is not None and of_pipeline["threads"] is None:
        of_pipeline = of_pipeline | {"threads": cpus}
    with joined(typed.ray, engines if typed.send_engines else None):
        share = Share(engines, typed.send_engines, of_pipeline, about.options, Path(os.path.realpath(folder)))
        team = Team(share, cpus, note)

        def made(tasks: Iterable[Task], shown: Shown) -> Iterator[Outcome]:
            batch = Batch(pipe, about.options, folder, destination)
            for outcome in made_on_cluster(tasks, team, batch, again=again):
                with shown(outcome.task):
                    yield outcome

        yield made
