"""Loads a server with jobs from many clients at once, kills it or its workers meanwhile if asked to, and checks that
every job that was accepted is finished exactly once. Linux only.

    python benchmarks/serving.py engines --jobs 1000 --clients 50
    python benchmarks/serving.py engines --jobs 1000 --clients 50 --kills 10

It starts its own ltx-serve on this machine, on the CPU, in a new folder. A client whose connection breaks tries again;
the time until the answer is that of the request that was accepted. Jobs whose answer was lost with a server count as
unanswered: they are made as well.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import platform
import random
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from ltx_runtime.sessions.processor import cores, processor_name
from ltx_serve.jobs.job import COMPLETED, IN_PROGRESS, QUEUED
from ltx_serve.jobs.store import Store

_SERVE = "from ltx_serve.cli.main import main; main()"
_START_S, _RETRY_S, _INTERVAL_S = 60.0, 0.1, 0.25
_PARTS = 4  # of the run, whose largest memory is told apart


class Served:
    """A server in a folder of its own, which is started again when it was killed.

    Attributes:
        accepted: id of every job whose acceptance was answered, and how many seconds the answer took.
        accepted_at: when each answer came, by the clock of time.perf_counter.
        log: every line of the server's log, read as JSON.
    """

    def __init__(self, asked: argparse.Namespace, data: Path) -> None:
        self.data, self.port = data, _free_port()
        self.accepted: dict[str, float] = {}
        self.accepted_at: list[float] = []
        self.log: list[dict[str, Any]] = []
        options = {"engines": asked.engines, "data": data, "port": self.port, "max-queue": asked.jobs, "backend": "cpu"}
        options |= {"workers": asked.workers} | ({} if asked.threads is None else {"threads": asked.threads})
        typed = [str(part) for name, value in options.items() for part in (f"--{name}", value)]
        self._command = [sys.executable, "-c", _SERVE, *typed]
        self.process = self._started()

    def _started(self) -> subprocess.Popen[str]:
        process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        threading.Thread(target=self._read, args=(process,)).start()
        return process

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stderr is not None
        for line in process.stderr:
            with suppress(ValueError):  # cut off by the end of the process
                self.log.append(json.loads(line))
        process.stderr.close()

    def wait_until_ready(self) -> None:
        until = time.perf_counter() + _START_S
        while not self.told("working"):
            if time.perf_counter() > until or self.process.poll() is not None:
                raise SystemExit(f"error: the server did not start: {self.log}")
            time.sleep(_RETRY_S)

    def count(self, *statuses: str) -> int:
        """Returns how many jobs have one of these statuses, as the file of the queue says."""
        marks = ", ".join("?" * len(statuses))
        reader = sqlite3.connect(f"file:{self.data / 'jobs.sqlite'}?mode=ro", uri=True)
        try:
            query = f"SELECT count(*) FROM jobs WHERE status IN ({marks})"
            (count,) = reader.execute(query, statuses).fetchone()
        finally:
            reader.close()
        return int(count)

    def told(self, event: str) -> list[dict[str, Any]]:
        """Returns the lines of the log that tell of an event."""
        return [line for line in [*self.log] if line.get("event") == event]

    def start_again(self) -> None:
        self.process.kill()
        self.process.wait()
        self.process = self._started()

    def workers(self) -> list[psutil.Process]:
        """Returns the worker processes that there are now."""
        try:
            children: list[psutil.Process] = psutil.Process(self.process.pid).children()
        except psutil.Error:
            return []
        return [child for child in children if _is_worker(child)]

    def post(self, seed: int) -> tuple[str, float]:
        """Asks for a video until the server accepts it; returns its id, and how long the answer took."""
        fields = {"prompt": "a red fox", "size": "64x64", "num_frames": 9, "fps": 24, "seed": seed}
        while True:
            began = time.perf_counter()
            with suppress(OSError, http.client.HTTPException, ValueError):
                connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
                try:
                    connection.request("POST", "/v1/videos", json.dumps(fields), {"Content-Type": "application/json"})
                    answer = connection.getresponse()
                    video = json.loads(answer.read())
                finally:
                    connection.close()
                if answer.status == 200:
                    return str(video["id"]), time.perf_counter() - began
                sys.stderr.write(f"refused with {answer.status}: {video}\n")
            time.sleep(_RETRY_S)

    def end(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(60)


def main() -> None:
    asked = _arguments()
    with tempfile.TemporaryDirectory(prefix="ltx-serving", dir=asked.folder) as folder:
        served = Served(asked, Path(folder) / "data")
        try:
            served.wait_until_ready()
            memory = _Memory(served)
            began = time.perf_counter()
            clients = [threading.Thread(target=_ask, args=(served, n, asked)) for n in range(asked.clients)]
            for client in clients:
                client.start()
            killed = _kill(served, asked)
            for client in clients:
                client.join()
            while served.count(QUEUED, IN_PROGRESS):
                time.sleep(_RETRY_S)
            took_s = time.perf_counter() - began
            memory.stop()
            served.end()
            _report(served, asked, began, took_s, killed, memory)
        finally:
            served.process.kill()
        sys.stdout.write(f"{_checked(served)}\n")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engines", type=Path, help="a folder of engines that has only the demo version")
    parser.add_argument("--jobs", type=int, default=1000)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--threads", type=int, help="CPU threads of all workers together")
    parser.add_argument("--kills", type=int, default=0, help="SIGKILL, by turns to the server and to a worker")
    parser.add_argument("--folder", type=Path, help="where the folder of the data is made")
    return parser.parse_args(namespace=argparse.Namespace(load=os.getloadavg()[0]))


def _is_worker(process: psutil.Process) -> bool:
    with suppress(psutil.Error):
        return any("making.worker" in part for part in process.cmdline())
    return False


def _ask(served: Served, client: int, asked: argparse.Namespace) -> None:
    for seed in range(client, asked.jobs, asked.clients):
        id, took_s = served.post(seed)
        served.accepted[id] = took_s
        served.accepted_at.append(time.perf_counter())


def _kill(served: Served, asked: argparse.Namespace) -> list[str]:
    """Kills by turns the server and a worker, spread over the run; returns what was killed."""
    chosen, killed = random.Random(1), []
    for number in range(asked.kills):
        while served.count(COMPLETED) < (number + 1) * asked.jobs / (asked.kills + 1):
            time.sleep(0.02)
        time.sleep(chosen.random() * 0.2)
        workers = served.workers()
        if number % 2 and workers:
            os.kill(chosen.choice(workers).pid, signal.SIGKILL)
            killed.append("worker")
        else:
            served.start_again()
            killed.append("server")
    return killed


class _Memory:
    """Measures the resident memory of the server and of its largest worker until it is stopped, in bytes."""

    def __init__(self, served: Served) -> None:
        self._served, self._stopped = served, threading.Event()
        self.server: list[int] = []
        self.worker: list[int] = []
        self._thread = threading.Thread(target=self._measure)
        self._thread.start()

    def _measure(self) -> None:
        while not self._stopped.wait(_INTERVAL_S):
            with suppress(psutil.Error, ValueError):  # what is measured was killed
                self.server.append(psutil.Process(self._served.process.pid).memory_info().rss)
                self.worker.append(max(one.memory_info().rss for one in self._served.workers()))

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()


def _report(
    served: Served, asked: argparse.Namespace, began: float, took_s: float, killed: list[str], memory: _Memory
) -> None:
    """Prints the figures, in the order in which they are told."""
    answers = sorted(served.accepted.values())
    count = served.count(COMPLETED)
    lines = [
        f"{processor_name()}, {cores()} cores, Python {platform.python_version()}, load before {asked.load:.1f}",
        f"{asked.jobs} jobs of 64x64x9 by {asked.clients} clients, {asked.workers} worker(s)",
        f"killed: {', '.join(killed) or 'nothing'}",
        f"all accepted after {max(served.accepted_at) - began:.1f} s, all over after {took_s:.1f} s: "
        f"{count / took_s:.1f} jobs/s",
        f"answer of acceptance: p50 {_ms(answers, 0.5)}, p99 {_ms(answers, 0.99)}, longest {_ms(answers, 1)}",
        f"server, largest resident memory of each quarter: {_quarters(memory.server)} MB",
        f"worker, largest resident memory of each quarter: {_quarters(memory.worker)} MB",
    ]
    sys.stdout.write("\n".join(lines) + "\n")


def _ms(answers: list[float], share: float) -> str:
    return f"{1000 * answers[min(int(share * len(answers)), len(answers) - 1)]:.0f} ms"


def _quarters(sizes: list[int]) -> str:
    parts = [sizes[len(sizes) * part // _PARTS : len(sizes) * (part + 1) // _PARTS] for part in range(_PARTS)]
    return ", ".join(f"{max(part) / 1e6:.0f}" for part in parts if part)


def _checked(served: Served) -> str:
    """Returns a line about the jobs, each of which must have been made once. Raises AssertionError if one was not."""
    store = Store(served.data / "jobs.sqlite", 1)
    jobs = {id: store.get(id) for id in store.ids()}
    store.close()
    assert served.accepted.keys() <= jobs.keys(), "a job that was accepted is lost"
    for id, job in jobs.items():
        assert job is not None and job.status == COMPLETED, job
        names = sorted(path.name for path in (served.data / "videos" / id).iterdir())
        assert names == ["thumbnail.webp", "video.mp4"], names
    finished = Counter(line["job"] for line in served.told("completed"))
    assert max(finished.values()) == 1, "a job was finished twice"
    seen: set[str] = set()
    for line in served.log:
        assert line.get("event") != "started" or line["job"] not in seen, "a job that was finished was begun again"
        seen |= {line["job"]} if line.get("event") == "completed" else set()
    attempts = Counter(job.attempts for job in jobs.values() if job is not None)
    unanswered = len(jobs) - len(served.accepted)
    return (
        f"{len(jobs)} jobs made once each ({unanswered} of them unanswered); attempts: {dict(sorted(attempts.items()))}"
    )


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    return port


if __name__ == "__main__":
    main()
