"""The Makefile's commands on each system: programs of an environment are where that system has them."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TARGETS = {*re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)} - {"clean"}


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make here, as on most machines with Windows")
@pytest.mark.parametrize(
    ("system", "programs", "python"), [("Windows_NT", "Scripts", "python"), ("", "bin", "python3")]
)
def test_every_target_runs_the_programs_of_its_environment(tmp_path, system, programs, python):
    assert {"setup", "engines", "demo", "check", "test", "test-runtime"} <= TARGETS
    for target in TARGETS:
        chosen = [f"OS={system}", f"VENV={tmp_path / 'venv'}", f"OLDEST_PYTHON={python}"]
        command = ["make", "--dry-run", *chosen, target]
        lines = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
        assert f"{python} -m venv {tmp_path / 'venv'}" in lines, target
        places = {*re.findall(r"venv(?:-runtime|-tools)?/(\w+)/[a-z-]+", lines)}
        assert places == {programs}, target


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make here, as on most machines with Windows")
def test_the_runtime_is_tested_on_a_python_that_is_there(tmp_path):
    command = ["make", "--dry-run", f"VENV={tmp_path / 'venv'}", "runtime"]
    lines = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    (python,) = re.findall(r"^(\S+) -m venv ", lines, re.MULTILINE)
    assert subprocess.run([python, "-c", "import sys; assert sys.version_info >= (3, 10)"], check=False).returncode == 0
