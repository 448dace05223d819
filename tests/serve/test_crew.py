"""Laws of the crew: every job that was accepted ends once, as it was made, refused, lost or cancelled."""

import itertools
import random
import re
import threading
import time

import pytest
from fakes.crews import ERRORS, RESULT, FakeMaker, Works, working

from ltx_serve.jobs.job import COMPLETED, FAILED, IN_PROGRESS, QUEUED, Failure, Job, new_id
from ltx_serve.jobs.store import Store, StoreError
from ltx_serve.making import crew as crew_module
from ltx_serve.making import health, watch

MADE, NOT_MADE = ["input-1.png", "video.mp4"], ["input-1.png"]


@pytest.fixture
def works(tmp_path):
    with working(tmp_path, max_attempts=3) as works:
        yield works


@pytest.mark.parametrize(
    ("does", "attempts", "failure"),
    [
        (["make"], 1, None),
        (["lose", "make"], 2, None),
        (["lose", "lose", "make"], 3, None),
        (["lose"], 3, ("worker_lost", "begun 3 times, and every time the worker was lost: .*SIGSEGV - ")),
        (["starve"], 1, ("out_of_memory", "ran out of memory and ended it - ask for a smaller size")),
        (["memory"], 1, ("out_of_memory", "there is too little memory - ask for a smaller size")),
        (["full"], 1, ("no_space", "^cannot write video.mp4: no space left on device - free some space")),
        (["refuse"], 1, ("failed", "^input-1.png is no picture - give another$")),
        (["moved"], 1, ("failed", "^demo has no manifest$")),
        (["bug"], 1, ("failed", r"an error of this program ended it \(ZeroDivisionError\) - report it")),
        (["lose", "refuse"], 2, ("failed", "no picture")),
    ],
)
def test_a_job_ends_as_its_making_did(works, does, attempts, failure):
    (job,) = works.ended(works.add(*does))
    assert job.attempts == attempts
    if failure is None:
        assert (job.status, job.failure, job.result) == (COMPLETED, None, RESULT)
    else:
        assert (job.status, job.failure.code) == (FAILED, failure[0])
        assert re.search(failure[1], job.failure.message)
        assert "secret" not in job.failure.message and str(works.folders.root) not in job.failure.message
    works.until(lambda: works.files(job.id) == (MADE if failure is None else NOT_MADE))


def test_whatever_happens_to_one_job_the_next_is_made(works):
    ids = [works.add(what) for what in ERRORS]
    (last,) = works.ended(works.add("make"))
    assert last.status == COMPLETED
    assert {job.status for job in works.ended(*ids)} == {FAILED}


def test_jobs_are_begun_in_the_order_in_which_they_were_accepted_each_once_by_one_maker(tmp_path):
    works = Works(tmp_path, makers=3)
    ids = [works.add() for _ in range(60)]
    works.crew.start()
    assert {job.status for job in works.ended(*ids)} == {COMPLETED}
    begun = [maker.begun for maker in works.makers]
    assert sorted(itertools.chain(*begun)) == sorted(ids)
    assert all(mine == sorted(mine, key=ids.index) for mine in begun)
    works.close()


def test_a_lost_job_is_begun_again_after_others_for_a_while_and_then_at_its_place(works, monkeypatch):
    first, second = works.add("lose", "make"), works.add()
    works.ended(first, second)
    assert works.makers[0].begun == [first, second, first]
    monkeypatch.setattr(health, "_MOST_REST_S", 0.0)
    first, second = works.add("lose", "make"), works.add()
    works.ended(first, second)
    assert works.makers[0].begun[3:] == [first, first, second]


def test_jobs_that_are_lost_again_and_again_are_passed_from_maker_to_maker(tmp_path):
    with working(tmp_path, makers=4, max_attempts=10) as works:
        ids = [works.add(*["lose"] * 8, "make") for _ in range(10)]
        assert {(job.status, job.attempts) for job in works.ended(*ids)} == {(COMPLETED, 9)}
        assert sorted(id for maker in works.makers for id in maker.begun) == sorted(ids * 9)


class MeddlingStore(Store):
    """A store that calls a function with the id of a job right after that was taken or queued again."""

    taken = queued_again = staticmethod(lambda id: None)

    def claim(self, besides=()):
        job = super().claim(besides)
        if job is not None:
            self.taken(job.id)
        return job

    def requeue(self, id, *, counted=True):
        done = super().requeue(id, counted=counted)
        self.queued_again(id)
        return done


def test_a_job_that_another_maker_has_begun_before_the_first_let_go_of_it_stays_under_way(tmp_path):
    with working(tmp_path, makers=2, store=MeddlingStore) as works:

        def begin_elsewhere(_):
            works.crew.notify()
            works.until(lambda: sum(len(maker.begun) for maker in works.makers) == 2)

        works.store.queued_again = begin_elsewhere
        lost = works.add("lose", "wait")
        works.until(lambda: sum(len(maker.begun) for maker in works.makers) == 2)
        assert works.ended(works.add())[0].status == COMPLETED  # by the first maker, which has let go
        assert lost in works.crew.busy.values()
        assert works.crew.cancel(lost)
        assert works.ended(lost)[0].failure.code == "cancelled"


def test_a_job_that_waits_is_cancelled_at_once_and_never_begun(works):
    busy, waiting = works.add("wait"), works.add()
    works.until(lambda: works.crew.busy == {"maker-1": busy})
    assert works.crew.cancel(waiting)
    assert works.store.get(waiting).failure == Failure("cancelled", "the video was cancelled")
    assert not works.crew.cancel(waiting)
    works.crew.cancel(busy)
    works.ended(works.add())
    assert waiting not in works.makers[0].begun
    assert works.files(waiting) == NOT_MADE


@pytest.mark.parametrize("does", ["wait", "make late"])
@pytest.mark.parametrize("end", ["cancel", "delete"])
def test_a_job_that_is_being_made_has_ended_for_its_client_at_once_whatever_its_maker_does(works, does, end):
    id = works.add(does)
    works.until(lambda: works.store.get(id).progress > 0)
    assert getattr(works.crew, end)(id)
    job = works.store.get(id)
    assert job is None if end == "delete" else job.failure.code == "cancelled"
    assert not getattr(works.crew, end)(id)
    (after,) = works.ended(works.add())
    assert after.status == COMPLETED
    assert works.store.get(id) == job
    assert works.files(id) == (None if end == "delete" else NOT_MADE)


@pytest.mark.parametrize("end", ["cancel", "delete"])
def test_cancelling_and_deleting_at_any_moment_ends_a_job_once(tmp_path, end):
    chosen = random.Random(3)
    with working(tmp_path, makers=2) as works:
        ids = [works.add(step_s=0.002) for _ in range(40)]
        ended = {}
        for id in chosen.sample(ids, len(ids)):
            time.sleep(chosen.random() * 0.006)
            ended[id] = getattr(works.crew, end)(id)
        jobs = dict(zip(ids, works.ended(*ids), strict=True))
        assert True in ended.values()
        for id, job in jobs.items():
            if end == "delete":
                assert ended[id] and job is None and works.files(id) is None
            else:
                assert (job.status, works.files(id)) == ((FAILED, NOT_MADE) if ended[id] else (COMPLETED, MADE))


def test_a_job_that_has_ended_is_not_cancelled_but_deleted(works):
    (job,) = works.ended(works.add())
    assert not works.crew.cancel(job.id)
    assert works.store.get(job.id) == job
    assert works.crew.delete(job.id)
    assert (works.store.get(job.id), works.files(job.id)) == (None, None)
    assert not works.crew.delete(job.id)


def test_an_attempt_that_takes_too_long_is_ended_and_says_for_how_long_it_might(tmp_path):
    with working(tmp_path, max_job_s=0.3) as works:
        (late,) = works.ended(works.add("wait"))
        assert (late.status, late.failure.code) == (FAILED, "timed_out")
        assert "longer than the 0.3 seconds" in late.failure.message
        (next_one,) = works.ended(works.add())
        assert next_one.status == COMPLETED


def test_a_server_that_stops_lets_what_is_under_way_finish_and_begins_nothing_new(tmp_path):
    works = Works(tmp_path)
    first, second = works.add(step_s=0.1), works.add()
    works.crew.start()
    works.until(lambda: works.crew.busy == {"maker-1": first})
    assert works.crew.is_working
    works.crew.stop(20)
    assert [works.store.get(id).status for id in (first, second)] == [COMPLETED, QUEUED]
    assert works.makers[0].is_closed and not works.crew.is_working
    works.store.close()


def test_what_is_not_finished_in_time_is_made_after_the_next_start_and_the_attempt_does_not_count(tmp_path):
    for _ in range(4):  # more often than there are attempts
        works = Works(tmp_path, max_attempts=3)
        id = works.add("wait") if not works.store.ids() else next(iter(works.store.ids()))
        works.crew.start()
        works.until(lambda works=works: works.makers[0].begun)
        works.crew.stop(0.05)
        job = works.store.get(id)
        assert (job.status, job.attempts) == (QUEUED, 0)
        assert "video.mp4.unfinished" in works.files(id)
        works.store.close()


def test_a_crew_that_never_started_can_be_stopped(tmp_path):
    Works(tmp_path).close()


def test_after_a_crash_what_was_under_way_is_made_first_and_folders_without_a_job_are_gone(tmp_path):
    works = Works(tmp_path)
    ids = [works.add() for _ in range(4)]
    for _ in range(2):
        works.store.claim()  # and then the server was killed
    abandoned = works.folders.make("video_" + "0" * 32)
    works.crew.start()
    assert {job.attempts for job in works.ended(*ids)} == {1}
    assert works.makers[0].begun == ids
    assert not abandoned.exists()
    works.close()


class FailingStore(Store):
    """A store on a disk that is full now and then."""

    failures = 0

    def _fail_first(self):
        if self.failures:
            self.failures -= 1
            raise StoreError("cannot use the file: disk full", "free some space")

    def claim(self, besides=()):
        self._fail_first()
        return super().claim(besides)

    def finish(self, id, result):
        self._fail_first()
        return super().finish(id, result)


def test_a_disk_that_is_full_delays_what_is_recorded_and_loses_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(crew_module, "_RETRY_S", 0.02)
    with working(tmp_path, store=FailingStore) as works:
        for does, status in ((["make"], COMPLETED), (["lose", "make"], COMPLETED), (["refuse"], FAILED)):
            works.store.failures = 3
            (job,) = works.ended(works.add(*does))
            assert job.status == status
        works.until(lambda: works.store.failures == 0)


def test_a_disk_that_stays_full_does_not_keep_the_server_from_stopping(tmp_path, monkeypatch):
    monkeypatch.setattr(crew_module, "_RETRY_S", 0.02)
    works = Works(tmp_path, store=FailingStore)
    id = works.add()
    works.crew.start()
    works.until(lambda: works.files(id) == MADE or works.makers[0].begun)
    works.store.failures = 10**9
    works.crew.stop(0.2)
    works.store.failures = 0
    assert works.store.get(id).status in (IN_PROGRESS, COMPLETED)
    works.store.close()
    with working(tmp_path) as again:
        assert again.ended(id)[0].status == COMPLETED


def test_a_folder_that_cannot_be_written_fails_the_job_with_a_sentence_and_the_server_lives(works):
    hidden = works.folders.root.with_name("hidden")
    works.folders.root.rename(hidden)
    works.folders.root.touch()
    job = works.store.add(Job(new_id(), "demo", {}))
    works.crew.notify()
    (failed,) = works.ended(job.id)
    assert failed.failure == Failure("failed", f"cannot write {job.id}: not a directory - check the path")
    works.folders.root.unlink()
    hidden.rename(works.folders.root)
    assert works.ended(works.add())[0].status == COMPLETED


class Stubborn(FakeMaker):
    """A maker that cannot be cancelled, only closed."""

    def cancel(self, id):
        raise RuntimeError("no")

    def close(self):
        self._cancelled.set()


def test_a_maker_that_cannot_be_cancelled_keeps_no_other_from_its_limits_and_the_server_from_stopping(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(crew_module, "_STOP_S", 1.0)
    works = Works(tmp_path, makers=[Stubborn("stubborn"), FakeMaker("good")], max_job_s=0.3)
    works.crew.start()
    ids = [works.add("wait"), works.add("wait")]
    works.until(lambda: all(works.store.get(id).is_over for id in ids))
    assert {works.store.get(id).failure.code for id in ids} == {"timed_out"}
    assert works.ended(works.add())[0].status == COMPLETED
    began = time.monotonic()
    works.close()
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("moment", ["taken", "queued_again"])
def test_who_listens_to_a_job_that_was_cancelled_between_two_steps_of_the_crew_hears_its_end(tmp_path, moment):
    works = Works(tmp_path, store=MeddlingStore)
    setattr(works.store, moment, works.crew.cancel)
    works.crew.start()
    id = works.add("lose")
    works.ended(id)
    with works.crew.subscribe(id) as events:
        assert events.get(timeout=5).kind == "failed"
    assert works.makers[0].begun == ([] if moment == "taken" else [id])
    works.close()


def test_a_slow_disk_holds_up_nobody_who_adds_a_job(tmp_path):
    works, may_go_on = Works(tmp_path, store=MeddlingStore), threading.Event()
    works.store.taken = lambda id: may_go_on.wait(20)
    works.crew.start()
    id = works.add()
    works.until(lambda: works.store.get(id).status == IN_PROGRESS)
    began = time.monotonic()
    works.crew.notify()
    assert works.crew.busy == {"maker-1": None}
    assert time.monotonic() - began < 2
    may_go_on.set()
    assert works.ended(id)[0].status == COMPLETED
    works.close()


def test_a_job_that_was_under_way_whenever_the_server_was_ended_is_made_after_the_others_and_fails_in_the_end(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(crew_module, "_MOST_INTERRUPTIONS", 3)
    works = Works(tmp_path)
    first, second = works.add(), works.add()
    for _ in range(2):
        assert works.store.claim().id == first
        works.store.recover()
    assert works.store.claim().id == second
    works.store.requeue(second)
    works.store.claim([second])
    works.crew.start()  # for the third time
    assert works.ended(second)[0].status == COMPLETED
    failure = works.store.get(first).failure
    assert failure.code == "worker_lost" and "ended 3 times while it was made" in failure.message
    assert works.makers[0].begun == [second] and works.files(first) == NOT_MADE
    works.close()


def test_what_has_ended_long_ago_is_removed_while_the_server_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(watch, "_RETENTION_PERIOD_S", 0.1)
    with working(tmp_path, keep_bytes=0) as works:
        id = works.add()
        works.until(lambda: works.store.get(id) is None and works.files(id) is None)
