"""A process of ltx-serve with the demo version, for tests that look at it with a browser."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path

ENGINES = Path(__file__).parents[2] / "engines" / "demo"
START_S = 60
COMMAND = "from ltx_serve.cli.main import main; main()"


@dataclass
class Server:
    """A process of ltx-serve, which can be stopped and started again at the same address."""

    data: Path
    token: str | None = None
    port: int = 0
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    def start(self) -> "Server":
        assert ENGINES.is_dir(), f"there is no {ENGINES} - run make demo"
        self.port = self.port or free_port()
        options = ("--engines", str(ENGINES), "--data", str(self.data))
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "LTX_TOKEN": self.token or ""}
        with (self.data / "log.txt").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", COMMAND, *options, "--port", str(self.port)],
                env={name: value for name, value in environment.items() if value},
                stdout=log,
                stderr=log,
            )
        until = time.monotonic() + START_S
        while True:
            try:
                urllib.request.urlopen(self.url + "healthz", timeout=5).close()
                return self
            except OSError:
                assert self.process.poll() is None and time.monotonic() < until, (self.data / "log.txt").read_text()
                time.sleep(0.1)

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.wait(60)

    def answer(self, method: str, path: str) -> dict:
        """Returns what the server answers to a request without a body."""
        headers = {} if self.token is None else {"Authorization": f"Bearer {self.token}"}
        request = urllib.request.Request(self.url + path, method=method, headers=headers)
        with urllib.request.urlopen(request, timeout=60) as response:
            return json.load(response)

    def videos(self) -> list[dict]:
        """Returns all videos, the newest first."""
        return self.answer("GET", "v1/videos?limit=100")["data"]


def free_port() -> int:
    """Returns a port that nobody listens at."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
