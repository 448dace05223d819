"""Runs schemathesis against ltx-serve on the demo, from its own OpenAPI document, and fails on any answer of 5xx.

    python benchmarks/fuzz_api.py [--minutes 10] [--engines engines]

Answers are held against the document: statuses, content types, bodies and headers. Whether valid data are accepted is
not, since a request can be wrong in ways that a schema cannot say, such as a size that is given twice. At the end, the
server must be alive and have made a video.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# Small videos, so that those that are accepted are made while others are asked for.
LIMITS = ("--max-frames", "33", "--max-pixels", "100000", "--max-queue", "20", "--max-upload-mb", "2", "--threads", "1")
SERVE = "from ltx_serve.cli.main import main; main()"
SMALL = {"prompt": "A red fox", "num_frames": 9}
CHECKS = ("--exclude-checks", "positive_data_acceptance", "--continue-on-failure")
START_S, MADE_S = 60.0, 300.0


@contextmanager
def served(engines: Path, data: Path) -> Iterator[str]:
    """Yields the address of a server, which must still run at the end of the block."""
    command = [sys.executable, "-c", SERVE, "--engines", str(engines), "--data", str(data), "--port", "0", *LIMITS]
    with (
        (data.parent / "log").open("w") as log,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log) as server,
    ):
        assert server.stdout is not None
        try:
            yield server.stdout.readline().decode().split()[0]
            assert server.poll() is None, f"the server has ended; see {log.name}"
        finally:
            server.terminate()


def asked(url: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    """Returns the answer to a request in JSON."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as answer:
        decoded: dict[str, Any] = json.load(answer)
    return decoded


def main() -> None:
    """Runs schemathesis, and then makes a video."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--engines", type=Path, default=Path("engines/demo"))
    typed = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, served(typed.engines, Path(folder) / "data") as url:
        fuzzing = ["run", f"{url}openapi.json", "--max-time", str(round(60 * typed.minutes)), *CHECKS]
        program = [sys.executable, "-c", "from schemathesis.cli import schemathesis; schemathesis()"]
        code = subprocess.run([*program, *fuzzing], cwd=folder).returncode
        figures = urllib.request.urlopen(f"{url}metrics").read().decode().splitlines()
        bad = [line for line in figures if line.startswith("ltx_requests_total") and 'status="5' in line]
        sys.stdout.write("answers of 5xx: " + (", ".join(bad) or "none") + "\n")
        for video in asked(f"{url}v1/videos?limit=100")["data"]:
            if video["status"] == "queued":
                asked(f"{url}v1/videos/{video['id']}/cancel", {})
        id, until = asked(f"{url}v1/videos", SMALL)["id"], time.monotonic() + MADE_S
        while (video := asked(f"{url}v1/videos/{id}"))["status"] in ("queued", "in_progress"):
            assert time.monotonic() < until, "no video was made after the run"
            time.sleep(1)
        sys.stdout.write(f"a video after it: {video['status']}\n")
    raise SystemExit(code or bool(bad) or video["status"] != "completed")


if __name__ == "__main__":
    main()
