"""Laws of standard streams that cannot be written: videos are made all the same, and the exit code says so."""

import json
import os
import pty
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import pytest
from fakes import program
from fakes.batches import SIZE, statuses, videos_in

from ltx_runtime.cli.streams import UNTOLD
from ltx_runtime.spec.versions import VERSIONS

SINGLE = VERSIONS["0.9.5"]
FOX = ("a fox", *SIZE, "--steps", "1", "--seed", "3")
# What nobody reads, and what could not be written although somebody may want it.
UNREAD, FAILED = ("closed", "broken pipe", "dead terminal"), ("full disk", "read-only")

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such streams")


@contextmanager
def stream(kind):
    """Yields a descriptor to write to that cannot be written; None for one that is closed, or as usual."""
    if kind in (None, "closed"):
        yield None
        return
    if kind == "broken pipe":
        reader, writer = os.pipe()
        os.close(reader)
    elif kind == "dead terminal":
        reader, writer = pty.openpty()
        os.close(reader)
    else:
        writer = os.open("/dev/full", os.O_WRONLY) if kind == "full disk" else os.open(os.devnull, os.O_RDONLY)
    try:
        yield writer
    finally:
        os.close(writer)


def process(*words, out=None, err=None, module=program.__file__, **more):
    """Runs a program with streams of these kinds, or with pipes; returns code, standard output and error."""
    with stream(out) as stdout, stream(err) as stderr:
        closing = " ".join(f"{number}>&-" for number, kind in ((1, out), (2, err)) if kind == "closed")
        command = [sys.executable, module, "0", *words] if module == program.__file__ else [*module, *words]
        ended = subprocess.run(
            ["/bin/sh", "-c", f'exec "$@" {closing}', "sh", *command],
            stdout=stdout or subprocess.PIPE,
            stderr=stderr or subprocess.PIPE,
            env=program.environment(),
            timeout=120,
            text=True,
            **more,
        )
    told = ended.stderr or ""
    assert "Traceback" not in told and "Exception ignored" not in told, told
    return ended.returncode, ended.stdout or "", told


@pytest.fixture
def folder(run, engines, tmp_path, monkeypatch):
    engines(SINGLE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("kind", UNREAD + FAILED)
def test_a_video_is_made_whatever_becomes_of_both_streams(run, folder, kind):
    code, _, _ = process(*FOX, "--output", "fox.mp4", out=kind, err=kind)
    assert code == (0 if kind in UNREAD else UNTOLD)
    made = (folder / "fox.mp4").read_bytes()
    assert sorted(path.name for path in folder.iterdir()) == ["engines", "fox.mp4"]
    assert run(*FOX, "--output", "again.mp4")[0] == 0
    assert (folder / "again.mp4").read_bytes() == made  # and nothing that a library printed is in it


@pytest.mark.parametrize("kind", ["closed", "full disk"])
def test_standard_error_that_cannot_be_written_changes_neither_result_nor_code(folder, kind):
    code, out, _ = process(*FOX, "--output", "fox.mp4", "--json", err=kind)
    assert (code, json.loads(out)["file"]) == (0, "fox.mp4")
    assert process(*FOX, "--output", "fox.avi", err=kind)[:2] == (2, "")


@pytest.mark.parametrize("kind", ["broken pipe", "full disk", "read-only"])
def test_a_result_that_cannot_be_written_is_told_on_standard_error_with_the_place_of_the_video(folder, kind):
    code, _, err = process(*FOX, "--output", "fox.mp4", "--json", out=kind)
    last = err.splitlines()[-2]
    if kind in UNREAD:
        assert (code, last) == (0, "note: nobody reads standard output; the video is fox.mp4")
    else:
        reason = "no space left on device" if kind == "full disk" else "bad file descriptor"
        assert code == UNTOLD
        assert last.startswith(f"error: cannot write to standard output: {reason}; the video is fox.mp4")
    assert err.count("standard output") == 1
    assert (folder / "fox.mp4").exists()


@pytest.mark.parametrize("kind", ["broken pipe", "full disk"])
def test_a_batch_is_made_to_its_end_and_its_results_are_in_their_file(folder, kind):
    (folder / "p.txt").write_text("a fox\nan owl\n")
    code, _, err = process("--prompts", "p.txt", *SIZE, "--steps", "1", "--json", out=kind)
    assert code == (0 if kind in UNREAD else UNTOLD)
    assert (len(videos_in(folder)), statuses(folder / "p.results.jsonl")["done"]) == (2, 2)
    assert err.count("; the results are in p.results.jsonl") == 1


@pytest.mark.parametrize("words", [("--plan", *FOX), ("--help",)])
def test_whatever_is_asked_for_on_a_full_disk_fails_and_where_nobody_reads_it_does_not(folder, words):
    code, _, err = process(*words, out="full disk")
    assert code == UNTOLD
    assert err.count("error: cannot write to standard output: no space left on device") == 1
    code, _, err = process(*words, out="broken pipe")
    assert (code, err.count("standard output")) == (0, 0)


@pytest.mark.parametrize("module", ["ltx_runtime.cli", "ltx_serve.cli"])
def test_the_programs_have_the_same_streams(folder, module):
    program_of = [sys.executable, "-m", module]
    assert process("--help", out="full disk", module=program_of)[0] == UNTOLD
    assert process("--help", out="closed", err="closed", module=program_of)[0] == 0
    assert process("--nonsense", err="full disk", module=program_of)[0] == 2


def test_a_terminal_that_is_closed_under_way_does_not_end_a_run_that_ignores_it(folder):
    terminal, inner = pty.openpty()
    words = ("a fox", *SIZE, "--steps", "30", "--seed", "3", "--output", "fox.mp4")
    process = subprocess.Popen(
        [sys.executable, program.__file__, "0", *words],
        stdout=inner,
        stderr=inner,
        env=program.environment() | {"TERM": "xterm"},
    )
    os.close(inner)
    os.read(terminal, 1)
    os.close(terminal)
    assert process.wait(120) == 0
    assert (folder / "fox.mp4").exists()


def test_a_pipe_that_does_not_block_gets_the_whole_result_however_slowly_it_is_read(folder):
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    os.write(writer, b"x" * 65_536)  # full
    parts = []

    def read():
        time.sleep(1)
        while part := os.read(reader, 4096):
            parts.append(part)

    thread = threading.Thread(target=read)
    thread.start()
    command = [sys.executable, program.__file__, "0", *FOX, "--plan", "--json"]
    ended = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, env=program.environment(), timeout=120)
    os.close(writer)
    thread.join()
    os.close(reader)
    assert ended.returncode == 0, ended.stderr
    assert json.loads(b"".join(parts).lstrip(b"x"))["passes"]


def test_a_reader_of_standard_error_who_has_stopped_is_not_waited_for(folder):
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with pytest.raises(BlockingIOError):
        while True:
            os.write(writer, b"x" * 4096)
    started = time.monotonic()
    command = [sys.executable, program.__file__, "0", *FOX, "--output", "fox.mp4"]
    assert (
        subprocess.run(
            command, stdout=subprocess.DEVNULL, stderr=writer, env=program.environment(), timeout=120
        ).returncode
        == 0
    )
    assert time.monotonic() - started < 60
    os.close(reader)
    os.close(writer)
    assert (folder / "fox.mp4").exists()


def test_standard_input_that_is_closed_has_no_prompts(folder):
    code, _, err = process(
        "--prompts",
        "-",
        *SIZE,
        stdin=None,
        module=["/bin/sh", "-c", f'exec "{sys.executable}" "{program.__file__}" 0 "$@" <&-', "sh"],
    )
    assert (code, err.splitlines()[-2]) == (2, "error: standard input has no prompts - write one a line")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--frames", "3"), "no such option: --frames"),
        (("--seed", "abc"), "invalid value for '--seed'"),
        (("--seed",), "option '--seed' requires an argument"),
        (("a", "fox"), "unexpected extra argument"),
    ],
)
def test_what_cannot_be_typed_is_one_line_that_leads_to_the_help(tmp_path, words, told):
    code, out, err = process(*words, module=[sys.executable, "-m", "ltx_runtime.cli"], cwd=tmp_path)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("error: ") and told in err and err.endswith(" - run: ltx-run --help\n")
