"""What killed processes leave is deleted by whoever comes next; what living ones write or read is not."""

import contextlib
import os
import socket
import subprocess
import sys
import time

import pytest

from ltx_runtime import files
from ltx_runtime.files import Lock, lock_name, lock_of, partial_file, partial_folder
from ltx_runtime.replacing.exchange import standing, standing_in
from ltx_runtime.replacing.held import Held
from ltx_runtime.replacing.tidying import tidy, tidy_below

KILLED = """
import os, signal, sys
from pathlib import Path
from ltx_runtime.files import locked, partial_file, partial_folder
folder = Path(sys.argv[1])
lock = folder / ".ltx-demo.lock"
with locked(lock, "test"), partial_folder(folder) as partial, partial_file(folder, ".onnx") as file:
    (partial / "deep").mkdir()
    (partial / "deep" / "weights").write_bytes(bytes(3_000_000))
    file.write_bytes(bytes(1_000_000))
    print("ready", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def left_in(folder):
    """Returns an empty folder such as a killed process of this system leaves."""
    with partial_folder(folder) as left:
        pass
    left.mkdir()
    return left


def test_what_a_killed_process_has_left_is_deleted_and_its_size_is_told(tmp_path):
    (tmp_path / "inner").mkdir()
    for folder in (tmp_path, tmp_path / "inner"):
        subprocess.run([sys.executable, "-c", KILLED, str(folder)], stdout=subprocess.DEVNULL, check=False)
        assert sum(path.name.startswith(".ltx-") for path in folder.iterdir()) == 3
    told = []
    tidy_below(tmp_path, told.append)
    assert [path.name for path in tmp_path.iterdir()] == ["inner"] and not any((tmp_path / "inner").iterdir())
    expected = "an interrupted run had left 4.00 MB in {}, which are free again"
    assert told == [expected.format(tmp_path), expected.format(tmp_path / "inner")]
    tidy_below(tmp_path, told.append)
    assert len(told) == 2


def test_the_files_of_a_living_process_stay_and_so_does_everything_else(tmp_path):
    others = [tmp_path / name for name in (".other.lock", ".partial", "ltx-1.partial", ".demo.unfinished")]
    for path in others:
        path.write_text("precious")
    lock = tmp_path / lock_name("demo")
    lock.touch()
    held, told = lock_of(lock), []
    with partial_folder(tmp_path) as folder, partial_file(tmp_path, ".onnx") as file:
        tidy(tmp_path, told.append)
        assert folder.is_dir() and file.is_file() and lock.is_file()
    held.release()
    tidy(tmp_path, told.append)
    assert sorted(tmp_path.iterdir()) == sorted(others) and told == []


def test_a_folder_that_someone_reads_stays_although_its_writer_is_dead(tmp_path):
    left = left_in(tmp_path) / "demo"
    left.mkdir()
    (left / "file").write_text("old")
    reader = Held(left)
    tidy(tmp_path, lambda line: None)
    assert (left / "file").read_text() == "old"
    reader.release()
    tidy(tmp_path, lambda line: None)
    assert [*tmp_path.iterdir()] == []


def test_bytes_that_have_another_name_are_not_told_as_freed(tmp_path):
    weights = tmp_path / "weights"
    weights.write_bytes(bytes(5_000_000))
    left, told = left_in(tmp_path), []
    os.link(weights, left / "linked")
    tidy(tmp_path, told.append)
    assert [*tmp_path.iterdir()] == [weights] and told == []


@pytest.mark.parametrize("age_days", [0, 2])
def test_where_nothing_can_be_locked_what_was_not_used_for_a_day_is_deleted(tmp_path, monkeypatch, age_days):
    monkeypatch.setattr("ltx_runtime.files.lock_of", lambda path, shared=False: Lock(None))
    left = left_in(tmp_path)
    (left / "demo").mkdir()
    (left / "demo" / "file").touch()
    old = time.time() - 2 * 86_400
    for path in (left, left / "demo"):
        os.utime(path, (old, old))
    os.utime(left / "demo" / "file", (time.time() - age_days * 86_400,) * 2)
    tidy(tmp_path, lambda line: None)
    assert left.exists() == (age_days == 0)


def test_what_this_user_may_not_delete_is_not_told_as_freed(tmp_path, monkeypatch):
    left, told = left_in(tmp_path), []
    (left / "weights").write_bytes(bytes(1_000_000))
    monkeypatch.setattr("ltx_runtime.files.shutil.rmtree", lambda path, ignore_errors: None)
    tidy(tmp_path, told.append)
    tidy(tmp_path / "gone", told.append)
    assert told == []


@pytest.mark.parametrize("age_days", [0, 2])
def test_what_another_system_has_left_stays_for_a_day_since_its_locks_may_not_be_seen_here(
    tmp_path, monkeypatch, age_days
):
    monkeypatch.setattr(files, "_system", lambda: "0badcafe")
    left = left_in(tmp_path)
    (left / "file").touch()
    monkeypatch.undo()
    used = time.time() - age_days * 86_400 - 60
    for path in (left / "file", left):
        os.utime(path, (used, used))
    told = []
    tidy(tmp_path, told.append)
    assert left.exists() == (age_days == 0) and told == []


@pytest.fixture
def holiday(tmp_path):
    """A folder of the user's own."""
    (tmp_path / "holiday").mkdir()
    (tmp_path / "holiday" / "photo").write_text("precious")
    return tmp_path / "holiday"


def folder(path):
    path.mkdir(parents=True)
    (path / "photo").write_text("a stranger's")


HOSTILE = {
    "a folder": lambda place: folder(place / ".ltx-holiday.new"),
    "a file": lambda place: (place / ".ltx-holiday.new").write_text("a stranger's"),
    "a link": lambda place: (place / ".ltx-holiday.new").symlink_to(place.parent),
    "a link that leads nowhere": lambda place: (place / ".ltx-holiday.new").symlink_to("nowhere"),
    "a loop": lambda place: (place / ".ltx-holiday.new").symlink_to(".ltx-holiday.new"),
    "no name": lambda place: folder(place / ".ltx-.new"),
    "the name of the folder": lambda place: folder(place / ".ltx-..new"),
    "the name of the parent": lambda place: folder(place / ".ltx-...new"),
    "a pipe": lambda place: os.mkfifo(place / ".ltx-holiday.new"),
    "a socket": lambda place: socket_at(place / ".ltx-holiday.new"),
    "a folder that cannot be read": lambda place: (place / ".ltx-holiday.new").mkdir(mode=0),
    "a partial file": lambda place: (place / ".ltx-x.partial").symlink_to(place / "holiday"),
    "a lock": lambda place: (place / ".ltx-x.lock").symlink_to(place / "holiday" / "photo"),
}


def socket_at(path):
    with contextlib.chdir(path.parent) if sys.version_info >= (3, 11) else contextlib.nullcontext():
        bound = socket.socket(socket.AF_UNIX)
        bound.bind(path.name if sys.version_info >= (3, 11) else str(path))
        bound.close()


@pytest.mark.skipif(os.name != "posix", reason="makes files of a kind that Windows lacks")
@pytest.mark.parametrize("kind", HOSTILE)
def test_what_only_looks_as_if_a_killed_run_had_left_it_never_costs_a_folder_or_a_start(holiday, tmp_path, kind):
    HOSTILE[kind](tmp_path)
    told = []
    tidy(tmp_path, told.append)
    assert standing(holiday) == holiday and [*standing_in(tmp_path)] == []
    with partial_folder(tmp_path):
        pass
    assert (holiday / "photo").read_text() == "precious" and [path.name for path in holiday.iterdir()] == ["photo"]
    assert told == [] or kind == "a folder"


def test_a_folder_that_gets_the_name_which_a_killed_run_was_about_to_give_is_told(tmp_path):
    folder(tmp_path / ".ltx-fox.new")
    told = []
    tidy(tmp_path, told.append)
    assert [path.name for path in tmp_path.iterdir()] == ["fox"]
    assert told == [f"{tmp_path / 'fox'} is the new one: an interrupted run was about to give it this name"]


def test_a_folder_of_another_user_keeps_its_name_and_is_read_under_it(tmp_path, monkeypatch):
    folder(tmp_path / ".ltx-fox.new")
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1, raising=False)
    tidy(tmp_path, pytest.fail)
    assert standing(tmp_path / "fox") == tmp_path / ".ltx-fox.new"
    assert [*standing_in(tmp_path)] == [tmp_path / "fox"]
