"""A disk that is full, or that nothing can be written to: jobs fail with a sentence, the server lives and goes on."""

import json
import os
import re
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from samples.demo import folder_with_demo

TESTS = Path(__file__).parents[1]
PROGRAM = TESTS / "fakes" / "crew_program.py"
DISK = "6m"  # of the queue, and the same for the videos
PATIENCE_S = 60
# In a namespace of its own, anyone may mount a small disk.
MOUNTED = """
mount -t tmpfs -o size=$SIZE none "$1" && mkdir "$1/videos" && mount -t tmpfs -o size=$SIZE none "$1/videos" || exit
shift; exec "$@"
"""


def can_mount() -> bool:
    try:
        return subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode == 0
    except OSError:
        return False


pytestmark = pytest.mark.skipif(
    not can_mount(), reason="needs `unshare -rm`: Linux that lets users make namespaces, see user_namespaces(7)"
)


class Server:
    """The program on a small disk that only it sees; the test reaches that through /proc."""

    def __init__(self, disk: Path) -> None:
        disk.mkdir()
        command = ["unshare", "-rm", "sh", "-c", MOUNTED, "sh", disk, sys.executable, PROGRAM]
        engines = folder_with_demo() / "engines"
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS)]),
            "SIZE": DISK,
        }
        self.process = subprocess.Popen(
            [*command, engines, disk, "-", "1"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self.disk, self.log = Path(f"/proc/{self.process.pid}/root{disk}"), []
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self):
        for line in self.process.stderr:
            self.log.append(json.loads(line))

    def ask(self) -> str:
        """Asks for a video; returns its id, or why it was refused."""
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        return answer.get("id") or answer["refused"]

    def end_of(self, id: str) -> dict:
        """Waits for the end of a job, and returns the line of the log that tells of it."""
        until = time.monotonic() + PATIENCE_S
        while time.monotonic() < until and self.process.poll() is None:
            for line in [*self.log]:
                if line.get("job") == id and line["event"] in ("completed", "failed"):
                    return line
            time.sleep(0.02)
        raise AssertionError(self.log)

    def remount(self, place: str, how: str) -> None:
        """Makes a disk read-only ("ro") or not ("rw")."""
        disk = Path("/", *(self.disk / place).parts[4:])
        enter = ["nsenter", "-t", str(self.process.pid), "-U", "-m", "--preserve-credentials"]
        subprocess.run([*enter, "mount", "-o", f"remount,{how}", disk], check=True)

    def close(self) -> int:
        """Ends the server when all jobs have ended."""
        self.process.stdin.close()
        code = self.process.wait(PATIENCE_S)
        self.process.stdout.close()
        self.process.stderr.close()
        return code


@pytest.fixture
def server(tmp_path):
    server = Server(tmp_path / "disk")
    yield server
    server.process.kill()
    server.close()


@contextmanager
def full(server, place):
    """Fills a disk to the last byte, inside the block."""
    ballast = server.disk / place / "ballast"
    with suppress(OSError), ballast.open("wb", buffering=0) as file:
        while True:
            file.write(b"x" * 4096)
    yield
    ballast.unlink()


@contextmanager
def read_only(server, place):
    """Makes a disk read-only, inside the block."""
    server.remount(place, "ro")
    yield
    server.remount(place, "rw")


@pytest.mark.parametrize("spoiled", [full, read_only])
def test_where_no_video_can_be_written_jobs_fail_with_a_sentence_and_the_next_is_made(server, spoiled):
    assert server.end_of(server.ask())["event"] == "completed"
    with spoiled(server, "videos"):
        for _ in range(3):
            end = server.end_of(server.ask())
            assert end["event"] == "failed"
            assert end["code"] == ("no_space" if spoiled is full else "failed")
            assert re.fullmatch(r"cannot write [^/]+(/video\.mp4\S*)?: \S.* - \S.*", end["reason"]), end["reason"]
    assert server.end_of(server.ask())["event"] == "completed"
    assert server.close() == 0
    assert not [line for line in server.log if line["event"] == "bug"]


def test_where_the_queue_cannot_be_written_jobs_are_refused_with_a_sentence_and_none_is_lost(server):
    first = server.ask()
    assert server.end_of(first)["event"] == "completed"
    with full(server, "."):
        answers = [server.ask() for _ in range(6)]
        refused = [answer for answer in answers if not answer.startswith("video_")]
        accepted = [answer for answer in answers if answer.startswith("video_")]  # while the disk has room for rows
        assert len(refused) > 2
        for answer in refused:
            assert re.fullmatch(r"cannot use \S+/jobs\.sqlite: \S.* - check the disk, .*", answer), answer
    for id in (*accepted, server.ask()):
        assert server.end_of(id)["event"] == "completed"
    assert server.close() == 0
    assert not [line for line in server.log if line["event"] == "bug"]
