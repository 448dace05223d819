"""What killed processes leave is deleted by whoever comes next; what living ones write or read is not."""

import os
import subprocess
import sys
import time

import pytest

from ltx_runtime.files import Lock, lock_name, lock_of, partial_file, partial_folder
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
    left = tmp_path / ".ltx-01234567.partial" / "demo"
    left.mkdir(parents=True)
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
    left, told = tmp_path / ".ltx-01234567.partial", []
    left.mkdir()
    os.link(weights, left / "linked")
    tidy(tmp_path, told.append)
    assert [*tmp_path.iterdir()] == [weights] and told == []


@pytest.mark.parametrize("age_days", [0, 2])
def test_where_nothing_can_be_locked_what_was_not_used_for_a_day_is_deleted(tmp_path, monkeypatch, age_days):
    monkeypatch.setattr("ltx_runtime.files.lock_of", lambda path, shared=False: Lock(None))
    left = tmp_path / ".ltx-01234567.partial"
    (left / "demo").mkdir(parents=True)
    (left / "demo" / "file").touch()
    old = time.time() - 2 * 86_400
    for path in (left, left / "demo"):
        os.utime(path, (old, old))
    os.utime(left / "demo" / "file", (time.time() - age_days * 86_400,) * 2)
    tidy(tmp_path, lambda line: None)
    assert left.exists() == (age_days == 0)


def test_what_this_user_may_not_delete_is_not_told_as_freed(tmp_path, monkeypatch):
    left, told = tmp_path / ".ltx-01234567.partial", []
    left.mkdir()
    (left / "weights").write_bytes(bytes(1_000_000))
    monkeypatch.setattr("ltx_runtime.files.shutil.rmtree", lambda path, ignore_errors: None)
    tidy(tmp_path, told.append)
    tidy(tmp_path / "gone", told.append)
    assert told == []
