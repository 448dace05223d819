"""The systemd unit: systemd itself finds no fault with it, and its options are the server's."""

import re
import shlex
import shutil
import subprocess
from dataclasses import fields
from pathlib import Path

import pytest

from ltx_serve.cli.arguments import Arguments
from ltx_serve.settings import Settings

UNIT = Path(__file__).parents[2] / "deploy" / "ltx-serve.service"
MOST_EXPOSED = 1.5  # of 10, by systemd's own count
needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="there is no systemd-analyze - install Debian's package systemd"
)


def settings_of_unit() -> dict[str, list[str]]:
    """Returns the values of each setting."""
    values: dict[str, list[str]] = {}
    for name, value in re.findall(r"^(\w+)=(.*)$", UNIT.read_text(), re.MULTILINE):
        values.setdefault(name, []).append(value)
    return values


@pytest.fixture
def checked(tmp_path):
    """Returns the unit with a program that exists on this machine."""
    text = re.sub(r"^ExecStart=\S+", f"ExecStart={shutil.which('true')}", UNIT.read_text(), flags=re.MULTILINE)
    (tmp_path / UNIT.name).write_text(text)
    return tmp_path / UNIT.name


@needs_systemd
def test_systemd_reads_it_without_a_word(checked):
    ended = subprocess.run(["systemd-analyze", "verify", checked], capture_output=True, text=True)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")


@needs_systemd
def test_systemd_counts_it_as_hardly_exposed(checked):
    command = ["systemd-analyze", "security", "--offline=true", "--no-pager", checked]
    ended = subprocess.run(command, capture_output=True, text=True)
    exposure = re.search(r"Overall exposure level for ltx-serve.service: ([\d.]+)", ended.stdout)
    assert exposure and float(exposure[1]) <= MOST_EXPOSED, ended.stdout[-300:]


def test_it_starts_the_server_with_options_that_it_has():
    (command,) = settings_of_unit()["ExecStart"]
    program, *words = shlex.split(command)
    assert program.endswith("/bin/ltx-serve")
    options = {f"--{one.name.replace('_', '-')}" for one in fields(Arguments)}
    assert {word for word in words if word.startswith("--")} <= options


def test_it_waits_longer_for_the_end_than_the_server_for_its_videos():
    (stop,) = settings_of_unit()["TimeoutStopSec"]
    grace_s = next(one.default for one in fields(Settings) if one.name == "grace_s")
    assert int(stop) >= grace_s + 15
    assert settings_of_unit()["KillMode"] == ["mixed"]  # workers do not hear SIGTERM


def test_the_token_is_no_option_and_no_variable():
    values = settings_of_unit()
    assert values["LoadCredential"] == ["token:/etc/ltx-serve/token"]
    assert not any("TOKEN" in value for value in values["Environment"])
