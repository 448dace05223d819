"""What tests of batches and of interrupted runs begin with, and runs in forks of a process that is warm."""

import math

import pytest
from fakes import stages as fake_stages
from fakes.batches import SIZE
from fakes.forks import Forks
from PIL import Image

from ltx_runtime.outputs import unfinished
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


@pytest.fixture
def interrupted(run, engines, tmp_path, monkeypatch):
    """Leaves a run of clip.mp4 from image.png that was interrupted after three steps; returns its version folder."""
    monkeypatch.setattr(unfinished, "SHARE_OF_TIME", math.inf)  # steps take no time, and would not be kept one by one
    folder = engines(VERSIONS["demo"])
    Image.new("RGB", (96, 64), (200, 0, 0)).save(tmp_path / "image.png")
    with monkeypatch.context() as patch:
        patch.setitem(fake_stages.STAGES, "transformer", fake_stages.interrupting("transformer", 3))
        assert run("a cat", "--seed", "3", *SIZE, "--image", "image.png", "--output", "clip.mp4")[0] == 130
    return folder
