"""Laws of files that sessions leave beside engines: they save work, are complete, and may fail to be written."""

import json
import multiprocessing
import time

import pytest
from stand_ins.engine_cases import Bench, feeds_for

from ltx_runtime.sessions import open_session
from ltx_runtime.sessions.trt import files as trt_files
from ltx_runtime.sessions.trt.files import leave, locked, read

pytest.importorskip("filelock", reason="sessions of engines need it; it comes with them")


@pytest.fixture
def bench(tmp_path, monkeypatch):
    made = Bench(tmp_path / "0.9.5", monkeypatch)
    made.build()
    yield made
    made.machine.assert_nothing_left()


def run(bench, **sizes):
    """Runs the transformer once; returns what was compiled for it."""
    before = len(bench.seen.compiled)
    with open_session(bench.find()) as session:
        session.run(feeds_for("transformer", **sizes))
    return bench.seen.compiled[before:]


def kernels_of(bench):
    (path,) = bench.find().path.parent.glob("*.kernels")
    return path


def test_kernels_are_compiled_once_for_all_sessions(bench):
    assert run(bench) == ["transformer 0"]
    assert run(bench) == []
    assert run(bench, tokens=20) == ["transformer 2"]
    assert run(bench) == run(bench, tokens=20) == []
    engine = bench.find().sidecar.engine_checksum[:16]
    assert kernels_of(bench).name == f"transformer.bf16.engine.nvidia-geforce-rtx-4090.{engine}.kernels"


def test_each_gpu_has_kernels_of_its_own(bench, monkeypatch):
    run(bench)
    bench.machine.name = "NVIDIA GeForce RTX 5090"
    bench.build(machine=bench.machine)
    assert run(bench) == ["transformer 0"]
    assert len(list(bench.find().path.parent.glob("*.kernels"))) == 2


def test_kernels_of_another_driver_are_made_anew(bench):
    run(bench)
    bench.machine.driver += 10
    assert run(bench) == ["transformer 0"]
    assert run(bench) == []


@pytest.mark.parametrize("content", [b"", b"half of it"])
def test_damaged_kernels_are_made_anew(bench, content):
    run(bench)
    kernels_of(bench).write_bytes(content)
    assert run(bench) == ["transformer 0"]
    assert json.loads(kernels_of(bench).read_bytes())["kernels"] == ["transformer 0"]


def test_kernels_that_are_there_already_are_not_written_again(bench):
    run(bench)
    before = kernels_of(bench).stat()
    run(bench)
    after = kernels_of(bench).stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


def test_a_place_that_cannot_be_written_is_no_error(bench):
    run(bench)
    path = kernels_of(bench)
    path.unlink()
    path.mkdir()
    (path / "full").touch()
    assert run(bench) == run(bench) == ["transformer 0"]


def test_the_other_library_leaves_nothing(tmp_path, monkeypatch):
    bench = Bench(tmp_path / "other", monkeypatch)
    bench.build("tensorrt")
    run(bench)
    names = {path.suffix for path in bench.find().path.parent.iterdir()}
    assert names == {".engine", ".json"}


def test_a_file_is_left_whole_or_not_at_all(tmp_path):
    path = tmp_path / "file"
    assert read(path) is None
    leave(path, b"one")
    leave(path, memoryview(b"two"))
    assert read(path) == b"two"
    leave(tmp_path / "nowhere" / "file", b"three")
    assert [one.name for one in tmp_path.iterdir()] == ["file"]


def test_a_lock_that_cannot_be_had_is_no_error(tmp_path, monkeypatch):
    monkeypatch.setattr(trt_files, "_WAIT_S", 0.05)
    path = tmp_path / "file"
    with locked(tmp_path / "nowhere" / "file"):
        leave(path, b"one")
    context = multiprocessing.get_context("spawn")
    held, done = context.Event(), context.Event()
    other = context.Process(target=hold, args=(str(path), held, done))
    other.start()
    try:
        assert held.wait(30)
        with locked(path):
            leave(path, b"two")
    finally:
        done.set()
        other.join()
    assert read(path) == b"two"


def hold(path, held, done):
    """Holds the lock, in another process."""
    from pathlib import Path

    with locked(Path(path)):
        held.set()
        done.wait(30)


def add(path, times):
    """Counts up a number in a file, in another process."""
    from pathlib import Path

    for _ in range(times):
        with locked(Path(path)):
            number = int(read(Path(path)) or b"0")
            time.sleep(0.002)
            leave(Path(path), str(number + 1).encode())


def test_two_processes_that_write_one_file_wait_for_each_other(tmp_path):
    context = multiprocessing.get_context("spawn")
    path = tmp_path / "count"
    others = [context.Process(target=add, args=(str(path), 20)) for _ in range(2)]
    for other in others:
        other.start()
    for other in others:
        other.join()
    assert [other.exitcode for other in others] == [0, 0]
    assert read(path) == b"40"
