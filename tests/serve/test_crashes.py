"""A server that is killed again and again while it works loses no job, and finishes each exactly once."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest
from samples.demo import folder_with_demo

from ltx_runtime import Pipeline
from ltx_serve.jobs.job import COMPLETED, FAILED
from ltx_serve.jobs.store import Store

TESTS = Path(__file__).parents[1]
KILLS, JOBS_OF_A_LIFE = 10, 4


@pytest.fixture(scope="module")
def engines():
    return folder_with_demo() / "engines"


class Lives:
    """Starts the program in one folder again and again; keeps what it accepted, and its log."""

    def __init__(self, engines, data) -> None:
        self.command = [sys.executable, TESTS / "fakes" / "crew_program.py", engines, data]
        self.environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS)])}
        self.seeds: dict[str, int] = {}
        self.log: list[dict] = []

    def told(self, event):
        """Returns the lines of the log that tell of an event."""
        return [line for line in self.log if line["event"] == event]

    def live(self, jobs, workers, disturb=lambda server: None):
        """Runs the program until it ends or `disturb` ends it."""
        command = [*self.command, str(jobs), str(workers)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": self.environment}
        with subprocess.Popen(command, **pipes) as server:
            threading.Thread(target=disturb, args=(server,), daemon=True).start()
            logged = threading.Thread(target=lambda: [self.log.append(line) for line in _read(server.stderr)])
            logged.start()
            self.seeds |= {line["id"]: line["seed"] for line in _read(server.stdout)}
            logged.join()
        return server.returncode


def _read(lines):
    """Yields all whole lines of JSON; the last one may be cut off."""
    return (json.loads(line) for line in lines if line.startswith("{") and line.endswith("\n"))


def pixels(video):
    import av

    with av.open(str(video)) as container:
        return [frame.to_ndarray(format="rgb24").tobytes() for frame in container.decode(video=0)]


def check(lives, data, engines, tmp_path):
    """Checks that everything that was accepted was made once, and is what the library makes."""
    store = Store(data / "jobs.sqlite", 1)
    assert store.ids() >= {*lives.seeds}
    for id in store.ids():
        job = store.get(id)
        assert (job.status, job.progress, job.failure) == (COMPLETED, 100, None)
        names = sorted(path.name for path in (data / "videos" / id).iterdir())
        assert names == ["thumbnail.webp", "video.mp4"]
    over = Counter(line["job"] for line in lives.log if line["event"] == "completed")
    assert over.keys() <= store.ids() and {*over.values()} == {1}
    seen = set()
    for line in lives.log:
        assert line["event"] != "started" or line["job"] not in seen, "a job that was finished is begun again"
        assert line["event"] not in ("failed", "bug")
        seen |= {line["job"]} if line["event"] == "completed" else set()
    with Pipeline(engines / "demo", backend="cpu", threads=1, keep_loaded=True) as pipe:
        for id in random.Random(1).sample(sorted(lives.seeds), 5):
            path = tmp_path / f"{id}.mp4"
            pipe("a fox", height=64, width=64, num_frames=9, fps=24.0, seed=lives.seeds[id]).save(path)
            assert pixels(path) == pixels(data / "videos" / id / "video.mp4")
    store.close()


@pytest.mark.slow
def test_a_server_that_is_killed_ten_times_finishes_every_job_exactly_once(engines, tmp_path):
    chosen, data = random.Random(2), tmp_path / "data"
    lives = Lives(engines, data)

    def kill(server):
        time.sleep(0.4 + 1.6 * chosen.random())
        server.kill()

    ends = []
    while ends.count(-signal.SIGKILL) < KILLS and len(ends) < 4 * KILLS:  # a fast machine may have ended before
        ends.append(lives.live(JOBS_OF_A_LIFE, 1, kill))
    assert ends.count(-signal.SIGKILL) == KILLS and {*ends} <= {0, -signal.SIGKILL}
    assert lives.live(JOBS_OF_A_LIFE, 1) == 0
    assert len(lives.seeds) > KILLS
    check(lives, data, engines, tmp_path)


def test_workers_that_are_killed_at_random_are_replaced_and_every_job_is_finished_once(engines, tmp_path):
    chosen, data, killed = random.Random(3), tmp_path / "data", []
    lives = Lives(engines, data)

    def kill_workers(server):
        while len(killed) < KILLS and server.poll() is None:
            time.sleep(0.2 * chosen.random())
            workers = {line["maker"]: line["pid"] for line in lives.told("worker started")}
            busy = {line["maker"]: line["attempt"] for line in lives.told("started")}
            # A job is not to lose all its attempts by chance.
            victims = {pid for maker, pid in workers.items() if busy.get(maker) == 1} - {*killed}
            for pid in sorted(victims)[:1]:
                killed.append(pid)
                os.kill(pid, signal.SIGKILL)

    assert lives.live(80, 2, kill_workers) == 0
    assert len(killed) == KILLS
    check(lives, data, engines, tmp_path)


def test_a_job_that_always_ends_its_worker_fails_and_the_others_are_made(engines, tmp_path):
    """The first job's worker is killed whenever it works on that job, as a fault in a driver would."""
    data = tmp_path / "data"
    lives = Lives(engines, data)

    def kill_first(server):
        while server.poll() is None:
            for line in lives.told("started")[:1]:
                begun = data / "videos" / line["job"] / "video.mp4.unfinished"
                if begun.exists():
                    for worker in psutil.Process(server.pid).children():
                        worker.kill()
                        psutil.wait_procs([worker])
                    begun.unlink(missing_ok=True)  # it is there again when the next worker has begun
            time.sleep(0.005)

    assert lives.live(3, 1, kill_first) == 0
    store = Store(data / "jobs.sqlite", 1)
    jobs = sorted((store.get(id) for id in store.ids()), key=lambda job: lives.seeds[job.id])
    assert [job.status for job in jobs] == [FAILED, COMPLETED, COMPLETED]
    assert jobs[0].failure.code == "worker_lost" and jobs[0].attempts == 5
    store.close()
