"""The command ltx-serve: as a process of its own on the demo, and what it says when it cannot serve."""

import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from fakes.servers import write_demo
from onnxruntime import get_available_providers
from samples.demo import folder_with_demo

from ltx_runtime import read_record
from ltx_serve.cli import main as cli

ROOT = Path(__file__).parents[2]
PROGRAM = "import sys; sys.argv[0] = 'ltx-serve'; from ltx_serve.cli.main import main; main()"


@dataclass
class Process:
    """A running ltx-serve."""

    popen: subprocess.Popen[str]
    url: str
    greeting: str

    def stop(self) -> int:
        """Sends SIGTERM, and returns the exit code."""
        self.popen.send_signal(signal.SIGTERM)
        return self.popen.wait(60)


@contextmanager
def started(folder: Path, *options: str) -> Iterator[Process]:
    """Runs ltx-serve in a folder that has engines, as somebody whose home is that folder."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("LTX_")}
    environment |= {
        "XDG_DATA_HOME": str(folder / "home"),
        "PYTHONPATH": str(ROOT),
        "LTX_CACHE": "",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-c", PROGRAM, "--port", "0", "--threads", "1", *options]
    with (
        (folder / "log").open("a") as log,
        subprocess.Popen(command, cwd=folder, env=environment, text=True, stdout=subprocess.PIPE, stderr=log) as popen,
    ):
        try:
            greeting = popen.stdout.readline()
            assert greeting, (folder / "log").read_text()
            yield Process(popen, greeting.split()[0], greeting)
        finally:
            popen.kill()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with engines/demo, as `make demo` leaves it."""
    folder = tmp_path_factory.mktemp("served")
    (folder / "engines").symlink_to(folder_with_demo() / "engines")
    return folder


@pytest.mark.filterwarnings("ignore:The Sora API:DeprecationWarning")
def test_the_program_of_the_documentation_runs_against_the_command_without_options(folder, monkeypatch):
    (block,) = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs/serving.md").read_text(), re.DOTALL | re.MULTILINE)
    monkeypatch.chdir(folder)
    with started(folder) as process:
        assert "serves demo" in process.greeting
        assert str(folder / "home" / "ltx-engines" / "serve") in process.greeting
        names: dict[str, object] = {}
        exec(compile(block.replace("http://127.0.0.1:8000/", process.url), "docs/serving.md", "exec"), names)
        names["client"].close()
        assert httpx.get(process.url).headers["content-type"].startswith("text/html")
        assert httpx.get(f"{process.url}readyz").status_code == 200
        assert process.stop() == 0
    record = read_record(folder / "fox.mp4")
    assert (record.version, record.request.prompt) == ("demo", "A red fox runs through deep snow")


def test_what_was_accepted_before_sigterm_is_made_after_the_next_start(folder):
    data = ("--data", str(folder / "kept"))
    with started(folder, *data, "--grace-s", "0") as process:
        fields = {"prompt": "A fox", "num_frames": 49}
        ids = [httpx.post(f"{process.url}v1/videos", json=fields).json()["id"] for _ in range(2)]
        with httpx.stream("GET", f"{process.url}v1/videos/{ids[0]}/events") as events:
            next(line for line in events.iter_lines() if line == "event: step")
            assert process.stop() == 0  # although a stream is open
    with started(folder, *data) as process:
        for id in ids:
            assert "event: completed" in httpx.get(f"{process.url}v1/videos/{id}/events", timeout=120).text
        assert process.stop() == 0
    log = [json.loads(line) for line in (folder / "log").read_text().splitlines() if line.startswith("{")]
    ended = [line["job"] for line in log if line["event"] == "completed" and line["job"] in ids]
    assert sorted(ended) == sorted(ids)
    assert all(line.keys() >= {"time", "level", "logger", "event"} for line in log)
    assert not [line for line in log if line["level"] == "error"]


def test_two_servers_do_not_share_their_data(folder):
    with started(folder, "--data", str(folder / "own")):
        other = subprocess.run(
            [sys.executable, "-c", PROGRAM, "--port", "0", "--data", str(folder / "own")],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert other.returncode == 2
    assert other.stderr.startswith("error: another server uses")


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Runs ltx-serve in a folder with engines; returns the exit code and standard error."""
    monkeypatch.setattr(logging.root, "handlers", [])  # its own ends with the streams of the test
    monkeypatch.chdir(tmp_path)
    for name in ("LTX_ENGINES", "LTX_TOKEN", "LTX_DATA"):
        monkeypatch.delenv(name, raising=False)
    write_demo(tmp_path / "engines")

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["ltx-serve", *arguments])
        with pytest.raises(SystemExit) as left:
            cli.main()
        captured = capsys.readouterr()
        return left.value.code or 0, captured.out + captured.err

    return run


def test_a_port_that_is_taken_is_told_before_anything_is_started(run):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, message = run("--port", str(port))
    assert (code, message.count("\n")) == (2, 1)
    assert f"port {port} of 127.0.0.1 is taken" in message


def test_what_cannot_be_served_is_told_in_one_sentence(run, tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    for arguments, sentence in (
        (("--host", "0.0.0.0"), "0.0.0.0 can be reached from other machines, and there is no token"),
        (("--host", "no.such.host.invalid", "--token", "x"), "there is no address no.such.host.invalid"),
        (("--engines", "nowhere"), "nowhere is not a folder"),
        (("--engines", "empty"), "empty holds no complete version folder"),
        (("--data", "file"), "file"),
        (("--token-file", "nowhere"), "cannot read nowhere"),
        (("--token-file", "file"), "the first line of file is empty"),
        (("--token-file", "file", "--token", "x"), "there is a token, and a file of another"),
        (("--backend", "abacus"), "unknown backend 'abacus'"),
        (("--max-queue", "0"), "max-queue must be at least 1; got 0"),
        (("--max-upload-mb", "nan"), "max-upload-mb"),
        (("--keep-gb", "inf"), "keep-gb"),
        (("--port", "70000"), "port must be from 0 to 65535; got 70000"),
    ):
        code, message = run("--port", "0", *arguments)
        assert code == 2, (arguments, message)
        assert message.startswith("error: ") and sentence in message and message.count("\n") == 1, (arguments, message)


@pytest.mark.skipif("CUDAExecutionProvider" in get_available_providers(), reason="there is a CUDA provider here")
def test_a_backend_that_cannot_run_here_is_told_at_once_with_the_command_that_helps(run):
    code, message = run("--port", "0", "--backend", "cuda")
    assert (code, message.count("\n")) == (2, 1)
    assert message.startswith("error: this onnxruntime is without CUDA - run: ")


def test_a_damaged_version_is_told_at_once(run, tmp_path):
    weights = next((tmp_path / "engines" / "demo").glob("*.onnx"))
    for damage in (lambda: weights.write_bytes(b"other"), weights.unlink):
        damage()
        code, message = run("--port", "0")
        assert (code, message.count("\n")) == (2, 1)
        assert message.startswith(f"error: {weights}") and " - run: " in message, message


def test_the_version_is_told(run):
    from ltx_runtime import __version__

    assert [run(option) for option in ("--version", "--about")] == [(0, f"ltx-serve {__version__}\n")] * 2


def test_a_missing_extra_is_told_with_the_command_that_installs_it(run, monkeypatch):
    from ltx_runtime import packages

    monkeypatch.setattr(packages, "find_spec", lambda name: None if name == "uvicorn" else object())
    code, message = run()
    assert code == 2
    assert message.startswith("error: uvicorn not installed - run: ")


def test_the_token_is_the_first_line_of_its_file_or_the_variable(run, monkeypatch, tmp_path):
    (tmp_path / "token").write_text("secret-1\nother\n")
    monkeypatch.setenv("LTX_TOKEN", "secret-2")
    served = []
    monkeypatch.setattr("ltx_serve.cli.server.serve", served.append)
    run("--host", "0.0.0.0")
    assert "LTX_TOKEN" not in os.environ  # and so not known to workers
    run("--token-file", "token")
    assert [settings.token for settings in served] == ["secret-2", "secret-1"]


def test_the_help_is_short_and_fast_and_shows_everything_on_request(run):
    began = time.monotonic()
    code, short = run("--help")
    assert code == 0 and time.monotonic() - began < 5
    assert "--token-file" in short and "--max-attempts" not in short
    code, whole = run("--help-all")
    assert code == 0 and "--max-attempts" in whole
