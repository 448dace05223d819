"""Asks a server for hundreds of videos, cancels some of them, and says whether the server or its worker grows.

    python tests/soak/server.py engines/demo [--jobs 300]

The server and its worker are measured when the queue is empty. The same request must make the same bytes every time,
whatever was cancelled before it. Linux only.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

import psutil
from soak.usage import Usage, grown, growth_of, table_of, usage_of
from soak.ways import MADE_S, asked, served

SIZES, LENGTHS, PROMPTS = ((64, 96), (64, 64), (128, 96)), (9, 17), ("A red fox", "An owl")
CANCELLED_SHARE, REFUSED_SHARE, BATCH = 0.4, 0.1, 10
QUIET_S = 0.5  # threads of connections that are closed have ended by then
WAITING = ("queued", "in_progress")


class Client:
    """Asks for videos.

    Args:
        url: the address of the server.
        seed: of the choice of requests.
    """

    def __init__(self, url: str, seed: int = 0) -> None:
        self.counts: Counter[str] = Counter()
        self._url, self._random = url, Random(seed)
        self._digests: dict[str, str] = {}

    def batch(self, count: int) -> None:
        """Asks for some videos at once, cancels some of them while they wait or are made, and compares the others."""
        random, jobs = self._random, {}
        for _ in range(count):
            (height, width), frames = random.choice(SIZES), random.choice(LENGTHS)
            fields = {"prompt": random.choice(PROMPTS), "seed": random.randrange(2)}
            fields |= {"height": height, "width": width, "num_frames": frames}
            if random.random() < REFUSED_SHARE:
                self._refused(fields | {"height": 65})
                continue
            jobs[asked(f"{self._url}v1/videos", fields)["id"]] = repr(fields)
        for job in jobs:
            if random.random() < CANCELLED_SHARE:
                time.sleep(random.uniform(0, 0.1))
                self._cancel(job)
        for job, fields in jobs.items():
            self._compare(job, fields)

    def _refused(self, fields: dict[str, Any]) -> None:
        try:
            asked(f"{self._url}v1/videos", fields)
        except urllib.error.HTTPError as error:
            assert error.code == 400, error.read()
            error.close()
            self.counts["refused"] += 1
        else:
            raise AssertionError("a wrong size was accepted")

    def _cancel(self, job: str) -> None:
        try:
            asked(f"{self._url}v1/videos/{job}/cancel", {})
        except urllib.error.HTTPError as error:  # it has ended already
            assert error.code == 409, error.read()
            error.close()

    def _compare(self, job: str, fields: str) -> None:
        until = time.monotonic() + MADE_S
        while (video := asked(f"{self._url}v1/videos/{job}"))["status"] in WAITING:
            assert time.monotonic() < until, "a job does not end"
            time.sleep(0.05)
        ended = video["status"] if video["error"] is None else video["error"]["code"]
        self.counts[ended] += 1
        if ended == "completed":
            with urllib.request.urlopen(f"{self._url}v1/videos/{job}/content", timeout=MADE_S) as answer:
                digest = hashlib.sha256(answer.read()).hexdigest()
            assert self._digests.setdefault(fields, digest) == digest, f"other bytes than before: {fields}"
        else:
            assert ended == "cancelled", video


def soaked(engines: Path, folder: Path, jobs: int, *options: str) -> dict[str, list[tuple[int, Usage]]]:
    """Asks for videos, and returns what the server and its worker held after every few of them."""
    usages: dict[str, list[tuple[int, Usage]]] = {"server": [], "worker": []}
    with served(engines, folder, *options) as (url, server):
        client, worker, began = Client(url), 0, time.perf_counter()
        for count in range(BATCH, jobs + 1, BATCH):
            client.batch(BATCH)
            children = [child.pid for child in psutil.Process(server.pid).children(recursive=True)]
            children = [child for child in children if "making" in " ".join(psutil.Process(child).cmdline())]
            assert len(children) == 1, f"there are {len(children)} workers"
            assert worker in (0, children[0]), "the worker was started again"
            (worker,) = children
            time.sleep(QUIET_S)
            usages["server"].append((count, usage_of(server.pid)))
            usages["worker"].append((count, usage_of(worker)))
            sys.stderr.write(f"{count} jobs, {time.perf_counter() - began:.0f} s: {usages['worker'][-1][1]}\n")
        sys.stderr.write(f"{dict(client.counts)}\n")
    return usages


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints tables of what the server and its worker held, and what has grown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engines", type=Path)
    parser.add_argument("--jobs", type=int, default=300)
    typed = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        usages = soaked(typed.engines.absolute(), Path(folder), typed.jobs, "--backend", "cpu", "--max-queue", "100")
    for name, measured in usages.items():
        sys.stdout.write(f"{name}\n{table_of(measured[:: max(1, len(measured) // 10)])}\n")
        sys.stdout.write(f"growth: {growth_of(measured)}\n")
    raise SystemExit("; ".join(line for measured in usages.values() for line in grown(measured)) or 0)


if __name__ == "__main__":
    main()
