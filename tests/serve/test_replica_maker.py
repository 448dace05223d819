"""Laws of the maker whose videos come from a cluster, with streams that are lists in place of Ray's."""

import os
from types import SimpleNamespace

import pytest

from ltx_serve.cluster.maker import ReplicaMaker
from ltx_serve.cluster.replica import DONE, EVENT, FILE, LOST
from ltx_serve.jobs.job import Job, new_id
from ltx_serve.making.events import STEP, CancelledError, Event, MakerLostError

RESULT = {"stages": {"decode": 1.0}, "backends": {}, "remarks": {}, "notes": [], "bytes": 5}
FILES = [(FILE, ("thumbnail.webp", b"first")), (FILE, ("video.mp4", b"whole"))]


class Stream:
    """What a replica tells; an exception among it is raised, and a function is called."""

    def __init__(self, *items) -> None:
        self._items, self.is_cancelled = iter(items), False

    def __next__(self):
        item = next(self._items)
        if callable(item):
            item = item()
        if self.is_cancelled:
            raise RuntimeError("cancelled")
        if isinstance(item, Exception):
            raise item
        return item

    def cancel(self):
        self.is_cancelled = True


def maker_of(*items):
    """Returns a maker whose replica tells these items, and the stream of them."""
    stream = Stream(*items)
    handle = SimpleNamespace(make=SimpleNamespace(remote=lambda job, inputs: stream))
    return ReplicaMaker("replica-1", SimpleNamespace(options=lambda stream: handle)), stream


def make(maker, folder, job=None):
    return maker.make(job or Job(new_id(), "demo", {}), folder, lambda event: None)


def test_files_have_their_names_once_they_are_on_the_disk(tmp_path, monkeypatch):
    synced = []

    def record(descriptor, sync=os.fsync):
        named = os.readlink(f"/proc/self/fd/{descriptor}")
        synced.append((os.path.basename(named), sorted(path.name for path in tmp_path.iterdir() if path.is_file())))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", record)
    maker, _ = maker_of(*FILES, (DONE, RESULT))
    assert make(maker, tmp_path) == RESULT
    assert synced == [
        ("thumbnail.webp", []),
        (tmp_path.name, ["thumbnail.webp"]),
        ("video.mp4", ["thumbnail.webp"]),
        (tmp_path.name, ["thumbnail.webp", "video.mp4"]),
    ]
    assert (tmp_path / "video.mp4").read_bytes() == b"whole"


def test_a_video_that_is_whole_is_not_made_again(tmp_path):
    make(maker_of(*FILES, (DONE, RESULT))[0], tmp_path)
    maker, _ = maker_of(AssertionError("it is made again"))
    assert make(maker, tmp_path)["bytes"] == len(b"whole")
    (tmp_path / "video.mp4").unlink()
    assert make(maker_of(*FILES, (DONE, RESULT))[0], tmp_path) == RESULT


def test_only_the_job_that_is_under_way_is_cancelled(tmp_path):
    job, other = Job(new_id(), "demo", {}), new_id()
    step = (EVENT, Event(STEP, job.id))
    maker, stream = maker_of(lambda: maker.cancel(other) or step, *FILES, (DONE, RESULT))
    assert make(maker, tmp_path, job) == RESULT
    maker.cancel(job.id)  # too late
    assert not stream.is_cancelled
    (tmp_path / "video.mp4").unlink()
    maker, stream = maker_of(lambda: maker.cancel(job.id) or step)
    with pytest.raises(CancelledError):
        make(maker, tmp_path, job)
    assert stream.is_cancelled


@pytest.mark.parametrize(
    ("items", "before_work"),
    [
        ([RuntimeError("the actor died")], True),
        ([(EVENT, Event(STEP, "a")), RuntimeError("the actor died")], False),
        ([(LOST, ("its process ended", False, True))], True),
        ([(LOST, ("its process ended", False, False))], False),
    ],
)
def test_a_replica_that_is_lost_before_it_has_begun_is_no_attempt_of_the_job(tmp_path, items, before_work):
    with pytest.raises(MakerLostError) as lost:
        make(maker_of(*items)[0], tmp_path)
    assert lost.value.before_work == before_work
