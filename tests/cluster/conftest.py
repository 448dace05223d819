"""A Ray cluster for the tests of this folder, and a batch to make on it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from fakes.ray_nodes import ROOT, Cluster

ENGINES = ROOT / "engines" / "demo"
RUN = "from ltx_runtime.cli.main import main; main()"
SIZE = {"height": 64, "width": 96, "num_frames": 9}


@pytest.fixture(scope="module")
def running_cluster():
    """A cluster of which the head node makes nothing."""
    cluster = Cluster()
    yield cluster
    cluster.close()


@pytest.fixture
def cluster(running_cluster):
    """The cluster, to which a test adds nodes of its own."""
    yield running_cluster
    running_cluster.end_all_but_head()


class Program:
    """ltx-run in processes of its own, with a file of prompts.

    Attributes:
        prompts: the file.
    """

    def __init__(self, folder: Path) -> None:
        self.prompts = folder / "foxes.jsonl"

    def write(self, rows: list[dict[str, object]]) -> None:
        """Writes the file of prompts."""
        self.prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def start(self, *options: str | Path) -> subprocess.Popen[str]:
        """Starts ltx-run with some options."""
        command = [sys.executable, "-c", RUN, *map(str, options)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "LTX_ENGINES": str(ENGINES)}
        return subprocess.Popen(
            command, cwd=self.prompts.parent, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )

    def run(self, *options: str | Path) -> subprocess.CompletedProcess[str]:
        """Runs ltx-run with some options to its end."""
        process = self.start(*options)
        try:
            output, told = process.communicate(timeout=300)
        finally:
            process.kill()
        return subprocess.CompletedProcess(process.args, process.returncode, output, told)


@pytest.fixture
def program(tmp_path):
    """ltx-run, and 12 prompts."""
    program = Program(tmp_path)
    program.write([{"prompt": f"A red fox, number {number}", "seed": number, **SIZE} for number in range(12)])
    return program


@pytest.fixture(autouse=True, scope="session")
def engines_are_there():
    """Says what to do if the demo's version folder is not there."""
    assert (ENGINES / "manifest.json").exists(), "run: make demo"
