"""Laws of replacing a folder: its name never leads nowhere or to a mixture, whatever the system can do."""

import ctypes
import errno
import os
import threading
import time
from contextlib import suppress

import pytest

from ltx_runtime.errors import LtxError
from ltx_runtime.files import Lock, folder_of, lock_of, partial_folder
from ltx_runtime.replacing import exchange
from ltx_runtime.replacing.exchange import exchanged, standing, standing_in, whole_beside
from ltx_runtime.replacing.tidying import tidy

NAMES = ("first", "second")


@pytest.fixture(params=["in one step", "by names"])
def way(request, monkeypatch):
    """Exchanges in one step, as this system can, or as systems do that have no such step."""
    if request.param == "by names":
        monkeypatch.setattr(exchange, "_exchange_of_system", lambda: None)
    elif exchange._exchange_of_system() is None:
        pytest.skip("this system cannot exchange two names in one step")
    return request.param


def write(folder, text):
    folder.mkdir(parents=True)
    for name in NAMES:
        (folder / name).write_text(text)


def read(folder):
    return {(folder / name).read_text() for name in NAMES}


def test_the_new_folder_and_the_old_one_exchange_their_names(way, tmp_path):
    write(tmp_path / "demo", "old")
    with partial_folder(tmp_path) as partial:
        write(partial / "demo", "new")
        exchanged(partial / "demo", tmp_path / "demo")
        assert (read(partial / "demo"), read(tmp_path / "demo")) == ({"old"}, {"new"})
    assert [path.name for path in tmp_path.iterdir()] == ["demo"]


def test_in_one_step_the_name_never_leads_nowhere(tmp_path):
    if exchange._exchange_of_system() is None:
        pytest.skip("this system cannot exchange two names in one step")
    write(tmp_path / "demo", "old")
    lost, ended = [], threading.Event()

    def look():
        while not ended.is_set():
            lost.append(not (tmp_path / "demo" / "first").exists())

    looking = threading.Thread(target=look)
    looking.start()
    with partial_folder(tmp_path) as partial:
        write(partial / "demo", "new")
        for _ in range(500):
            exchanged(partial / "demo", tmp_path / "demo")
    ended.set()
    looking.join()
    assert len(lost) > 10 and not any(lost)


@pytest.mark.parametrize("renamings", [0, 1, 2])
def test_a_process_that_is_killed_between_names_leaves_the_old_or_the_new_folder_and_the_next_one_finishes(
    tmp_path, monkeypatch, renamings
):
    """The kill is an exception that leaves no time to put anything back; what the process held is free again."""
    monkeypatch.setattr(exchange, "_exchange_of_system", lambda: None)
    write(tmp_path / "demo", "old")
    with partial_folder(tmp_path) as partial:
        pass
    write(partial / "demo", "new")
    rename, done = type(tmp_path).replace, []

    class KilledError(BaseException):
        pass

    def limited(self, target):
        if len(done) == renamings:
            raise KilledError
        done.append(target)
        return rename(self, target)

    with monkeypatch.context() as patch, suppress(KilledError):
        patch.setattr(type(tmp_path), "replace", limited)
        exchanged(partial / "demo", tmp_path / "demo")
    expected = {"old"} if renamings < 2 else {"new"}
    before = sorted(tmp_path.rglob("*"))
    assert read(standing(tmp_path / "demo")) == expected
    assert [*standing_in(tmp_path)] == [tmp_path / "demo"] * (renamings == 2)
    assert sorted(tmp_path.rglob("*")) == before  # whoever only looks changes nothing
    tidy(tmp_path, lambda line: None)
    assert read(tmp_path / "demo") == expected
    assert [path.name for path in tmp_path.iterdir()] == ["demo"]


def test_whoever_may_not_write_reads_the_new_folder_under_the_name_that_it_has(tmp_path):
    write(whole_beside(tmp_path / "demo"), "new")
    assert read(standing(tmp_path / "demo")) == {"new"}
    assert [*standing_in(tmp_path)] == [tmp_path / "demo"]
    assert folder_of(standing(tmp_path / "demo")) == tmp_path / "demo"


@pytest.mark.parametrize("renamings", [1, 2])
def test_an_exchange_by_names_ends_well_if_others_tidy_up_meanwhile(tmp_path, monkeypatch, renamings):
    """Also where folders cannot be locked, as on NFS and Windows."""
    monkeypatch.setattr(exchange, "_exchange_of_system", lambda: None)
    monkeypatch.setattr("ltx_runtime.files.lock_of", lambda path, shared=False: Lock(None))
    write(tmp_path / "demo", "old")
    rename, done = type(tmp_path).replace, []

    def watched(self, target):
        if len(done) == renamings:
            tidy(tmp_path, lambda line: None)
        done.append(target)
        return rename(self, target)

    with partial_folder(tmp_path) as partial:
        write(partial / "demo", "new")
        with monkeypatch.context() as patch:
            patch.setattr(type(tmp_path), "replace", watched)
            exchanged(partial / "demo", tmp_path / "demo")
        assert (read(partial / "demo"), read(tmp_path / "demo")) == ({"old"}, {"new"})
    assert [path.name for path in tmp_path.iterdir()] == ["demo"]


def test_a_whole_folder_beside_a_standing_one_is_left_to_its_living_process_and_deleted_once_that_is_dead(tmp_path):
    write(whole_beside(tmp_path / "demo"), "new")
    write(tmp_path / "demo", "old")
    lock = lock_of(whole_beside(tmp_path / "demo"))
    if not lock.keeps_out:
        pytest.skip("folders cannot be locked here")
    tidy(tmp_path, lambda line: None)
    assert read(whole_beside(tmp_path / "demo")) == {"new"}
    lock.release()
    tidy(tmp_path, lambda line: None)
    assert read(tmp_path / "demo") == {"old"} and [path.name for path in tmp_path.iterdir()] == ["demo"]


@pytest.mark.parametrize("refused_at", [1, 2, 3])
@pytest.mark.parametrize("number", [errno.EACCES, errno.EXDEV])
def test_a_name_that_is_refused_leaves_everything_as_it_was(tmp_path, monkeypatch, refused_at, number):
    """An image of a container refuses to move its folders, with EXDEV: that is one clear sentence."""
    monkeypatch.setattr(exchange, "_exchange_of_system", lambda: None)
    write(tmp_path / "demo", "old")
    rename, done = type(tmp_path).replace, []

    def refused(self, target):
        done.append(target)
        if len(done) == refused_at:
            raise OSError(number, os.strerror(number), str(self))
        return rename(self, target)

    with partial_folder(tmp_path) as partial:
        write(partial / "demo", "new")
        monkeypatch.setattr(type(tmp_path), "replace", refused)
        told = "demo cannot be moved: it belongs to the image of a container - delete it first, or choose"
        in_a_sentence = number == errno.EXDEV and refused_at == 2
        with pytest.raises(LtxError if in_a_sentence else OSError, match=told if in_a_sentence else None):
            exchanged(partial / "demo", tmp_path / "demo")
        assert (read(partial / "demo"), read(tmp_path / "demo")) == ({"new"}, {"old"})
    assert [path.name for path in tmp_path.iterdir()] == ["demo"]


def test_what_is_in_the_way_of_an_exchange_by_names_is_told_and_stays(tmp_path, monkeypatch):
    monkeypatch.setattr(exchange, "_exchange_of_system", lambda: None)
    write(tmp_path / "demo", "old")
    with partial_folder(tmp_path) as partial:
        write(partial / "demo", "new")
        whole_beside(tmp_path / "demo").write_text("of a stranger")
        with pytest.raises(LtxError, match=r"\.ltx-demo\.new is in the way of a new demo - move or delete it"):
            exchanged(partial / "demo", tmp_path / "demo")
    assert read(tmp_path / "demo") == {"old"} and whole_beside(tmp_path / "demo").read_text() == "of a stranger"


def test_an_exchange_that_the_system_refuses_between_disks_is_made_by_names(tmp_path, monkeypatch):
    def refused(new, old):
        ctypes.set_errno(errno.EXDEV)
        return -1

    monkeypatch.setattr(exchange, "_exchange_of_system", lambda: refused)
    write(tmp_path / "demo", "old")
    with partial_folder(tmp_path) as partial:
        write(partial / "demo", "new")
        exchanged(partial / "demo", tmp_path / "demo")
    assert read(tmp_path / "demo") == {"new"}


def test_readers_of_a_folder_that_is_replaced_all_the_time_never_see_both(way, tmp_path):
    from ltx_runtime.replacing.held import opened

    write(tmp_path / "demo", "0")
    seen, ended = [], threading.Event()

    def look():
        while not ended.is_set():

            def texts(folder, held):
                folder = standing(folder)
                return {(folder / name).read_text() for name in NAMES}

            seen.append(opened(tmp_path / "demo", texts))

    looking = [threading.Thread(target=look) for _ in range(2)]
    for thread in looking:
        thread.start()
    started, count = time.monotonic(), 0
    while time.monotonic() - started < 1 or len(seen) < 20:
        count += 1
        with partial_folder(tmp_path) as partial:
            write(partial / "demo", str(count))
            exchanged(partial / "demo", tmp_path / "demo")
    ended.set()
    for thread in looking:
        thread.join()
    assert count > 5 and all(len(texts) == 1 for texts in seen)
