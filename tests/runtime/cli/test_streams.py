"""Laws of output in an encoding that lacks characters: all is printed, with escapes, and the work is never lost."""

import json
import os
import subprocess
import sys

import pytest
from fakes import program

from ltx_runtime.spec.versions import VERSIONS

SMALL = ("--seed", "3", "--height", "64", "--width", "96", "--num-frames", "9")
# One that has no letters but English ones, that of Windows, and others.
ENCODINGS = ("ascii", "cp1252", *(pytest.param(name, marks=pytest.mark.slow) for name in ("cp932", "latin-1", "utf-8")))
NAMES = ["狐.mp4", "🦊é.png", "лиса.gif", os.fsdecode(b"\xff.mp4")]


def started(encoding, *arguments):
    """Runs ltx-run on the fake stages with redirected output; returns exit code, output and errors as bytes."""
    command = [sys.executable, program.__file__, "0", *arguments]
    environment = program.environment() | {"PYTHONIOENCODING": encoding, "LC_ALL": "C.UTF-8"}
    ended = subprocess.run(command, capture_output=True, env=environment, timeout=120, check=False)
    assert b"Traceback" not in ended.stderr
    return ended.returncode, ended.stdout, ended.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no names of files in bytes")
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_result_is_told_in_any_encoding(engines, tmp_path, monkeypatch, encoding):
    engines(VERSIONS["demo"])
    monkeypatch.chdir(tmp_path)
    for name in NAMES:
        code, out, err = started(encoding, "лиса 狐", *SMALL, "--output", name)
        assert code == 0, err
        assert (tmp_path / name.removesuffix(".png")).exists()
        out.decode(encoding)
    code, out, _ = started(encoding, "лиса 狐", *SMALL, "--json")
    assert (tmp_path / json.loads(out)["file"]).exists()


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_help_notes_and_errors_are_told_in_any_encoding(engines, tmp_path, monkeypatch, encoding):
    engines(VERSIONS["demo"])
    monkeypatch.chdir(tmp_path)
    for words, expected in (
        (("--help",), 0),
        (("--help-all",), 0),
        (("--about",), 0),
        (("--doctor",), 0),
        (("лиса 狐", *SMALL, "--plan"), 0),
        (("лиса 狐", *SMALL, "--output", "狐.avi"), 2),
        (("лиса 狐", *SMALL, "--image", "é狐🦊.png"), 2),
        (("--resume", "狐.unfinished"), 2),
        (("--狐",), 2),
    ):
        code, out, err = started(encoding, *words)
        assert code == expected, err
        assert out or err.splitlines()[-2].startswith(b"error: ")
