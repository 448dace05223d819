"""Laws of the folders of jobs: their names are never a client's, and what is old is removed, and nothing else."""

import itertools
import os
import stat
import time

import pytest

from ltx_runtime import LtxError
from ltx_serve.jobs.folders import Folders
from ltx_serve.jobs.job import Failure, Job, new_id
from ltx_serve.jobs.store import Store

BYTES = 1000


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path / "jobs.sqlite", 1000)
    yield store
    store.close()


@pytest.fixture
def folders(tmp_path):
    return Folders(tmp_path / "videos")


@pytest.fixture
def clock(monkeypatch):
    """Returns a function that sets the time, in seconds since 1970."""
    return lambda seconds: monkeypatch.setattr(time, "time", lambda: seconds)


@pytest.mark.parametrize(
    "name",
    [
        *["", ".", "..", "../video_" + "0" * 32, "video_", "video_" + "0" * 31, "video_" + "0" * 33, "/etc/passwd"],
        *["video_" + "G" * 32, "VIDEO_" + "0" * 32, "video_" + "0" * 32 + "\n", "video_" + "٣" * 32, "a\0b"],
    ],
)
def test_what_has_not_the_form_of_an_id_is_no_folder(folders, name):
    for place in (folders.of, folders.video, folders.thumbnail, folders.make, folders.remove):
        with pytest.raises(LtxError, match="no video has an id of that form"):
            place(name)


def test_ids_differ_and_each_is_a_folder_of_its_own(folders):
    ids = {new_id() for _ in range(200)}
    assert len(ids) == len({folders.of(id) for id in ids}) == 200
    assert all(folders.video(id).parent.parent == folders.root for id in ids)


def filled(folders, id, *names):
    folder = folders.make(id)
    for name in names:
        (folder / name).write_bytes(b"x" * BYTES)
    partial = folder / ".ltx-12345678.partial"
    partial.mkdir()
    (partial / "video.mp4").touch()
    return folder


@pytest.mark.parametrize("keep_video", [True, False])
def test_after_its_end_a_job_has_what_was_uploaded_and_its_video_and_nothing_else(folders, keep_video):
    names = ["input-1.png", "input-2.mp4", "video.mp4", "thumbnail.webp", ".thumbnail.webp", "video.mp4.unfinished"]
    folder = filled(folders, new_id(), *names)
    folders.tidy(folder.name, keep_video=keep_video)
    kept = ["input-1.png", "input-2.mp4", *(["thumbnail.webp", "video.mp4"] if keep_video else [])]
    assert sorted(path.name for path in folder.iterdir()) == kept
    folders.tidy(new_id(), keep_video=keep_video)  # one without a folder


def test_folders_without_a_job_are_removed_and_other_things_are_left(folders):
    kept, lost = new_id(), [new_id(), new_id()]
    for id in (kept, *lost):
        filled(folders, id, "video.mp4")
    (folders.root / "notes.txt").touch()
    (folders.root / "video_of_mine").mkdir()
    assert sorted(folders.remove_all_but({kept})) == sorted(lost)
    assert {path.name for path in folders.root.iterdir()} == {kept, "notes.txt", "video_of_mine"}


def ended(store, folders, count, failing=()):
    """Adds jobs that end one after another, and returns their ids in that order."""
    ids = []
    for number in range(count):
        id = store.add(Job(new_id(), "demo", {})).id
        store.claim()
        if number in failing:
            store.fail(id, Failure("failed", "no video"))
        else:
            store.finish(id, {})
        filled(folders, id, "video.mp4")
        ids.append(id)
    return ids


def present(store, folders):
    """Returns the ids of all jobs, which are also the folders."""
    assert store.ids() == {path.name for path in folders.root.iterdir()}
    return store.ids()


def test_jobs_are_removed_when_they_ended_too_long_ago(store, folders, clock):
    clock(1_000_000)
    old = ended(store, folders, 3, failing=[1])
    clock(1_000_000 + 2 * 86_400)
    new = ended(store, folders, 2)
    assert folders.keep_within(store, 3, None) == []
    clock(1_000_000 + 4 * 86_400)
    assert folders.keep_within(store, 3, None) == old
    assert present(store, folders) == {*new}


@pytest.mark.parametrize("kept", range(6))
def test_of_too_many_bytes_those_that_ended_first_are_removed(store, folders, kept):
    ids = ended(store, folders, 5)
    for size in (kept * BYTES, kept * BYTES + BYTES - 1):
        folders.keep_within(store, None, size)
        assert present(store, folders) == {*ids[5 - min(kept, 5) :]}


def test_what_is_not_over_is_never_removed_but_its_bytes_count(store, folders, clock):
    clock(1_000_000)
    waiting, under_way = store.add(Job(new_id(), "demo", {})), store.add(Job(new_id(), "demo", {}))
    store.claim()
    for job in (waiting, under_way):
        filled(folders, job.id, "input-1.png")
    over = []
    for _ in range(3):
        over.append(store.add(Job(new_id(), "demo", {})).id)
        filled(folders, over[-1], "video.mp4")
        store.fail(over[-1], Failure("cancelled", "no"))
    clock(2_000_000_000)
    assert folders.keep_within(store, None, 4 * BYTES) == over[:1]
    assert folders.keep_within(store, 1, 0) == over[1:]
    assert present(store, folders) == {waiting.id, under_way.id}


def test_without_limits_everything_is_kept(store, folders, clock):
    ids = ended(store, folders, 2)
    clock(10_000_000_000)
    assert folders.keep_within(store, None, None) == []
    assert present(store, folders) == {*ids}


def test_days_and_bytes_are_both_kept(store, folders, clock):
    for days, size in itertools.product((1, 100), (0, 10**9)):
        clock(1_000_000)
        ids = ended(store, folders, 2)
        clock(1_000_000 + 50 * 86_400)
        assert folders.keep_within(store, days, size) == ([] if (days, size) == (100, 10**9) else ids)
        for id in store.ids():
            store.delete(id)
            folders.remove(id)


def test_a_place_that_is_no_folder_is_refused_by_its_name(tmp_path):
    (tmp_path / "videos").touch()
    with pytest.raises(LtxError, match=f"cannot write {tmp_path / 'videos'}: file exists"):
        Folders(tmp_path / "videos")


def test_what_was_uploaded_is_on_the_disk_with_its_name_before_a_job_is_accepted(folders, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(os.readlink(f"/proc/self/fd/{descriptor}")))
    empty, filled = new_id(), new_id()
    folders.make(empty)
    folders.sync(empty)
    assert synced == []
    for name in ("input-1.png", "input-2.mp4"):
        (folders.make(filled) / name).write_bytes(b"x")
    folders.sync(filled)
    folder = folders.of(filled)
    assert {*synced[:2]} == {str(folder / "input-1.png"), str(folder / "input-2.mp4")}
    assert synced[2:] == [str(folder), str(folders.root)]


@pytest.mark.skipif(os.name != "posix", reason="Windows has other permissions")
def test_prompts_and_uploads_lie_in_folders_that_are_their_owners_alone(tmp_path):
    data = tmp_path / "data"
    Store(data / "jobs.sqlite", 1).close()
    assert stat.S_IMODE(data.stat().st_mode) == 0o700
    assert stat.S_IMODE(Folders(data / "videos").root.stat().st_mode) == 0o700
