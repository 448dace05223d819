"""The command of two prompts with which tests of batches begin."""

import pytest
from fakes.batches import SIZE

from ltx_runtime.spec.versions import VERSIONS


@pytest.fixture
def batch(run, engines, tmp_path):
    """Makes version 0.9.5 and a file of two prompts; runs it with further options."""
    engines(VERSIONS["0.9.5"])
    (tmp_path / "p.txt").write_text("a fox\nan owl\n")
    return lambda *options: run("--prompts", "p.txt", *SIZE, "--steps", "2", *options)
