"""The command of two prompts with which tests of batches begin, and runs in forks of a process that is warm."""

import pytest
from fakes.batches import SIZE
from fakes.forks import Forks

from ltx_runtime.spec.versions import VERSIONS


@pytest.fixture
def batch(run, engines, tmp_path):
    """Makes version 0.9.5 and a file of two prompts; runs it with further options."""
    engines(VERSIONS["0.9.5"])
    (tmp_path / "p.txt").write_text("a fox\nan owl\n")
    return lambda *options: run("--prompts", "p.txt", *SIZE, "--steps", "2", *options)


@pytest.fixture
def forks(tmp_path):
    """Starts Forks in a new folder, which is a disk if a size is given."""
    started = []

    def start(disk=""):
        (tmp_path / "runs").mkdir()
        started.append(Forks(tmp_path / "runs", disk))
        return started[-1]

    yield start
    for one in started:
        one.close()
