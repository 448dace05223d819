"""Laws of the queue: no job is lost, none is given out twice, the oldest comes first, and a crash changes nothing."""

import resource
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule

from ltx_runtime import LtxError
from ltx_serve.jobs.job import COMPLETED, FAILED, IN_PROGRESS, QUEUED, STATUSES, Failure, Job, new_id
from ltx_serve.jobs.store import QueueFullError, Store, StoreError

MOST = 6
FAILURE = Failure("failed", "no video")


def job(**fields) -> Job:
    return Job(new_id(), "demo", {"prompt": "a fox", "seed": 7, **fields})


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "data" / "jobs.sqlite"


@pytest.fixture
def store(path):
    store = Store(path, max_queue=1000)
    yield store
    store.close()


class Queue(RuleBasedStateMachine):
    """Holds the store against a list of [job, status] in the order of acceptance."""

    known = Bundle("known")

    @initialize()
    def begin(self):
        self.folder = TemporaryDirectory()
        self.store = Store(Path(self.folder.name) / "jobs.sqlite", MOST)
        self.all: dict[str, str] = {}  # in the order of acceptance, as dictionaries are
        self.attempts: dict[str, int] = {}
        self.interruptions: dict[str, int] = {}

    def teardown(self):
        self.store.close()
        self.folder.cleanup()

    def of(self, *statuses):
        return [id for id, status in self.all.items() if status in statuses]

    @rule(target=known, prompt=st.text(max_size=20))
    def add(self, prompt):
        new = job(prompt=prompt)
        if len(self.of(QUEUED)) == MOST:
            with pytest.raises(QueueFullError, match=f"{MOST} videos are waiting"):
                self.store.add(new)
            return new.id
        assert self.store.add(new) == new
        assert self.store.get(new.id) == new
        self.all[new.id], self.attempts[new.id], self.interruptions[new.id] = QUEUED, 0, 0
        return new.id

    def waiting(self):
        """The ids of the queue: those that were interrupted more than once come after the others."""
        return sorted(self.of(QUEUED), key=lambda id: max(self.interruptions[id], 1))

    @rule(besides=st.sets(st.integers(0, 3)))
    def claim(self, besides):
        left = [id for number, id in enumerate(self.waiting()) if number in besides]
        waiting = [id for id in self.waiting() if id not in left]
        claimed = self.store.claim(left)
        assert (claimed and claimed.id) == (waiting[0] if waiting else None)
        if claimed:
            self.all[claimed.id] = IN_PROGRESS
            self.attempts[claimed.id] += 1
            assert claimed.attempts == self.attempts[claimed.id]

    @rule(id=known)
    def finish(self, id):
        is_under_way = self.all.get(id) == IN_PROGRESS
        assert self.store.finish(id, {"bytes": 3}) == is_under_way
        if is_under_way:
            self.all[id] = COMPLETED
            done = self.store.get(id)
            assert (done.progress, done.result, done.failure) == (100, {"bytes": 3}, None)

    @rule(id=known)
    def fail(self, id):
        can_fail = self.all.get(id) in (QUEUED, IN_PROGRESS)
        assert self.store.fail(id, FAILURE) == can_fail
        if can_fail:
            self.all[id] = FAILED
            assert self.store.get(id).failure == FAILURE

    @rule(id=known, counted=st.booleans())
    def requeue(self, id, counted):
        is_under_way = self.all.get(id) == IN_PROGRESS
        assert self.store.requeue(id, counted=counted) == is_under_way
        if is_under_way:
            self.all[id] = QUEUED
            self.attempts[id] -= not counted

    @rule()
    def crash_and_recover(self):
        interrupted = self.of(IN_PROGRESS)
        self.open_again()
        assert {one.id for one in self.store.recover()} == {*interrupted}
        for id in interrupted:
            self.all[id] = QUEUED
            self.attempts[id] -= 1
            self.interruptions[id] += 1
            assert self.store.get(id).interruptions == self.interruptions[id]

    @rule(id=consumes(known))
    def delete(self, id):
        status = self.all.pop(id, None)
        deleted = self.store.delete(id)
        assert (deleted and deleted.status) == status
        assert self.store.get(id) is None

    @rule(id=known, percent=st.floats(-50, 150))
    def progress(self, id, percent):
        self.store.set_progress(id, percent)
        if self.all.get(id) == IN_PROGRESS:
            assert self.store.get(id).progress == min(max(percent, 0), 100)

    @rule()
    def open_again(self):
        self.store.close()
        self.store = Store(Path(self.folder.name) / "jobs.sqlite", MOST)

    @rule(limit=st.integers(1, 4), order=st.sampled_from(["asc", "desc"]))
    def pages_are_all_jobs_in_order(self, limit, order):
        listed, after, more = [], None, True
        while more:
            page, more = self.store.list(after=after, limit=limit, order=order)
            assert len(page) == limit or not more
            listed += [one.id for one in page]
            after = listed[-1] if listed else None
        assert listed == ([*self.all] if order == "asc" else [*self.all][::-1])

    @invariant()
    def what_is_stored_is_what_happened(self):
        assert self.store.counts() == {status: len(self.of(status)) for status in STATUSES}
        assert {*self.store.ends()} == {(id, self.store.get(id).completed_at) for id in self.of(COMPLETED, FAILED)}
        assert self.store.ids() == {*self.all}
        waiting = self.waiting()
        for id in self.all:
            assert self.store.position(id) == (waiting.index(id) + 1 if id in waiting else None)


TestQueue = Queue.TestCase
TestQueue.settings = settings(max_examples=15, stateful_step_count=30, deadline=None)


def test_a_job_is_given_to_one_of_many_who_ask_at_once_and_the_oldest_to_the_first(store):
    added = [store.add(job()).id for _ in range(120)]
    claimed: list[list[str]] = [[] for _ in range(8)]

    def take(mine):
        while (one := store.claim()) is not None:
            mine.append(one.id)

    threads = [threading.Thread(target=take, args=(mine,)) for mine in claimed]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(id for mine in claimed for id in mine) == sorted(added)
    for mine in claimed:
        assert mine == sorted(mine, key=added.index)


def test_many_who_add_at_once_never_make_the_queue_longer_than_it_may_be(path):
    store, accepted, refused = Store(path, max_queue=10), [], []

    def ask():
        for _ in range(5):
            try:
                accepted.append(store.add(job()).id)
            except QueueFullError:
                refused.append(None)

    threads = [threading.Thread(target=ask) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(accepted), len(refused)) == (10, 20)
    assert store.ids() == {*accepted}
    store.close()


@pytest.mark.parametrize("days", [None, 0.5, 30])
def test_a_job_expires_so_many_days_after_its_end(path, days):
    store = Store(path, 10, keep_days=days)
    id = store.add(job()).id
    store.claim()
    assert store.get(id).expires_at is None
    store.finish(id, {})
    done = store.get(id)
    assert done.expires_at == (None if days is None else done.completed_at + days * 86_400)
    assert abs(done.completed_at - time.time()) < 60
    store.close()


def test_a_second_server_is_refused_until_the_first_one_ends(path):
    store = Store(path, 10)
    kept = store.add(job())
    for _ in range(2):
        with pytest.raises(LtxError, match=f"another server uses {path.parent} - stop it, or choose another folder"):
            Store(path, 10)
    store.close()
    again = Store(path, 10)
    assert again.get(kept.id) == kept
    again.close()


ADDING = """
import sys
from pathlib import Path
from ltx_serve.jobs.job import Job, new_id
from ltx_serve.jobs.store import Store
store = Store(Path(sys.argv[1]), 10**6)
while True:
    print(store.add(Job(new_id(), "demo", {"prompt": "x" * 3000})).id, flush=True)
    if len(store.ids()) % 3 == 0:
        store.finish(store.claim().id, {})
"""


def test_a_server_that_is_killed_has_lost_nothing_that_it_had_accepted(path):
    accepted: set[str] = set()
    for kills, lines in enumerate((1, 20, 47), start=1):
        with subprocess.Popen([sys.executable, "-c", ADDING, path], stdout=subprocess.PIPE, text=True) as server:
            accepted |= {server.stdout.readline().strip() for _ in range(lines)}
            server.send_signal(signal.SIGKILL)
            accepted |= {line.strip() for line in server.stdout if line.endswith("\n")}
        store = Store(path, 10)
        assert accepted <= store.ids()
        assert len(store.ids()) <= len(accepted) + kills  # one may be stored and not told yet
        store.close()


@contextmanager
def full_disk(size_bytes):
    """Lets no file of this process grow beyond a size, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_on_a_full_disk_nothing_is_accepted_nothing_changes_and_what_was_accepted_stays(store, path):
    kept = store.add(job())
    wal = path.with_name(f"{path.name}-wal")
    with full_disk(wal.stat().st_size):
        for change in (lambda: store.add(job()), store.claim, lambda: store.delete(kept.id)):
            with pytest.raises(StoreError, match=f"cannot use {path}: .* - check the disk, its free space"):
                change()
        assert store.get(kept.id) == kept
    assert store.claim().id == kept.id
    store.add(job())
    assert store.counts() == {QUEUED: 1, IN_PROGRESS: 1, COMPLETED: 0, FAILED: 0}


def test_a_file_that_is_no_queue_is_refused_with_its_name_and_left_as_it_is(path):
    path.parent.mkdir()
    path.write_bytes(b"no database, but some text that is long enough" * 30)
    with pytest.raises(StoreError, match=f"cannot use {path}: file is not a database"):
        Store(path, 10)
    assert path.read_bytes().startswith(b"no database")
    path.unlink()
    Store(path, 10).close()  # the lock was given up


def test_a_queue_of_another_release_is_refused(path):
    Store(path, 10).close()
    with sqlite3.connect(path) as other:
        other.execute("PRAGMA user_version = 99")
    other.close()
    with pytest.raises(StoreError, match="was written by another release"):
        Store(path, 10)


def test_a_page_after_a_job_that_is_gone_is_refused(store):
    with pytest.raises(LtxError, match="there is no video video_1"):
        store.list(after="video_1", limit=5)
