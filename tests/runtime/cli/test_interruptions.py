"""Laws of Ctrl-C, `kill` and a closed terminal, also twice: one line, nothing half-written, even during imports."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from fakes.forks import command_in
from fakes.stages import write_engines

from ltx_runtime.errors import INTERRUPTED, interruptible
from ltx_runtime.spec.versions import VERSIONS

ROOT = Path(__file__).parents[3]
FOX = ("a fox", "--seed", "3", "--height", "64", "--width", "96", "--num-frames", "9")
# Runs a program that interrupts itself at one of its imports.
INTERRUPTED_IMPORT = """
import os, signal, sys
from {package}.__main__ import main
count, moment = 0, int(sys.argv.pop())
def heard(event, arguments):
    global count
    if event == "import":
        count += 1
        if count == moment:
            os.kill(os.getpid(), signal.{signal})
sys.addaudithook(heard)
sys.argv = ["program", "--help"]
try:
    main()
finally:
    sys.stderr.write(str(count))
"""

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows cannot send itself these signals")


@pytest.fixture
def runs(forks, tmp_path, spiece):
    write_engines(tmp_path / "engines" / "demo", VERSIONS["demo"], spiece)
    return forks()


@pytest.mark.parametrize(
    ("names", "moments"), [(("SIGINT", "SIGINT"), 7), (("SIGTERM", "SIGHUP", "SIGINT"), 3)], ids=str
)
def test_a_run_that_is_interrupted_once_or_again_while_it_cleans_up_leaves_one_line(runs, tmp_path, names, moments):
    words = (*FOX, "--engines", str(tmp_path / "engines"), "--output", "fox.mp4", "--save-latents", "l.safetensors")
    code, _, err, events = runs.run(*words)
    assert code == 0, err
    whole = (runs.folder / "fox.mp4").read_bytes()
    for moment in np.linspace(1, events - len(names), moments, dtype=int):
        for path in runs.folder.iterdir():
            path.unlink()
        happening = [(int(moment) + later, name) for later, name in enumerate(names)]
        code, out, err, _ = runs.run(*words, signals=happening)
        if code == 0:  # all that was left to do was to tell of the video
            assert (runs.folder / "fox.mp4").read_bytes() == whole
            continue
        assert (code, out) == (INTERRUPTED, ""), err
        assert err.splitlines()[-1] == "error: interrupted; no half-written video was left"
        assert err.count("error") == 1 and "Traceback" not in err and "ignored" not in err, err
        assert not [path for path in runs.folder.iterdir() if path.name.startswith(".") or path.suffix == ".lock"]
        code, _, err, _ = runs.run(*(command_in(err) or words))
        assert code == 0, err
        assert (runs.folder / "fox.mp4").read_bytes() == whole


@pytest.mark.parametrize(
    ("package", "name"), [("ltx_runtime.cli", "SIGINT"), ("ltx_runtime.cli", "SIGTERM"), ("ltx_serve.cli", "SIGHUP")]
)
def test_a_signal_while_the_program_is_imported_is_one_line(tmp_path, package, name):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}

    def interrupted_at(moment):
        command = [sys.executable, "-c", INTERRUPTED_IMPORT.format(package=package, signal=name), str(moment)]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)

    whole = interrupted_at(0)
    assert whole.returncode == 0, whole.stderr
    for moment in np.linspace(1, 0.9 * int(whole.stderr), 2, dtype=int):
        ended = interrupted_at(moment)
        assert (ended.returncode, ended.stdout) == (INTERRUPTED, "")
        assert ended.stderr == "error: interrupted; nothing was begun\n"


def test_an_interruption_is_heard_again_after_the_time_that_cleaning_up_takes(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    heard = []
    with interruptible():
        for later in (0.0, 0.5, 1.9, 2.1, 2.2, 9.0):
            now[0] = later
            try:
                signal.raise_signal(signal.SIGINT)
            except KeyboardInterrupt:
                heard.append(later)
    assert heard == [0.0, 2.1, 9.0]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_signal_that_is_ignored_stays_ignored(monkeypatch):
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with interruptible():
            signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
