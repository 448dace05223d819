"""A server without HTTP, to be killed: accepts some jobs, tells their ids, and makes all that there are.

Usage: python crew_program.py ENGINES DATA JOBS WORKERS, where JOBS is `-` for a job with every line of standard input.
Standard output has a line for every job that was accepted or refused, and ends when all jobs have; standard error is
the log.
"""

import json
import logging
import sys
import time
from pathlib import Path
from typing import Any

from ltx_runtime import LtxError
from ltx_serve.jobs.folders import Folders
from ltx_serve.jobs.job import IN_PROGRESS, QUEUED, Job, new_id
from ltx_serve.jobs.store import Store
from ltx_serve.making import health
from ltx_serve.making.crew import Crew
from ltx_serve.making.logs import JsonFormatter
from ltx_serve.making.workers import workers_of
from ltx_serve.settings import Settings

PACE_S = 0.05


def accepted(store: Store) -> dict[str, Any]:
    """Accepts a job; returns its id and seed, or why it was refused."""
    seed = len(store.ids())
    fields = {"prompt": "a fox", "height": 64, "width": 64, "num_frames": 9, "fps": 24.0, "seed": seed}
    try:
        return {"id": store.add(Job(new_id(), "demo", fields)).id, "seed": seed}
    except LtxError as error:
        return {"refused": str(error)}


def main() -> None:
    """Serves until all jobs have ended."""
    engines, data, jobs, workers = sys.argv[1:]
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    settings = Settings(Path(engines), Path(data), workers=int(workers), backend="cpu", threads=1)
    store, folders = Store(settings.data / "jobs.sqlite", settings.max_queue), Folders(settings.data / "videos")
    crew = Crew(store, folders, settings, workers_of(settings))
    health._FIRST_REST_S, health._MOST_REST_S = PACE_S, 10 * PACE_S  # so that the tests need not wait
    crew.start()
    for _ in sys.stdin if jobs == "-" else range(int(jobs)):
        sys.stdout.write(json.dumps(accepted(store)) + "\n")
        sys.stdout.flush()
        crew.notify()
        time.sleep(PACE_S)
    while _are_any_left(store):
        time.sleep(PACE_S)
    crew.stop(0)


def _are_any_left(store: Store) -> bool:
    counts = store.counts()  # once, for a job that goes back to the queue is in neither of two looks
    return bool(counts[QUEUED] or counts[IN_PROGRESS])


if __name__ == "__main__":
    main()
