"""Laws of makers that are lost: their jobs are made by others, and they are asked again, less and less often."""

import pytest
from fakes.crews import FakeMaker, working

from ltx_serve.jobs.job import COMPLETED
from ltx_serve.making import health
from ltx_serve.making.events import MakerLostError


class Broken(FakeMaker):
    """A maker that is lost at once with every job, until it is mended."""

    before_work = is_mended = False

    def make(self, job, folder, told):
        if self.is_mended:
            return super().make(job, folder, told)
        self.begun.append(job.id)
        raise MakerLostError("no process can be started: cannot allocate memory", before_work=self.before_work)


@pytest.mark.parametrize("before_work", [True, False])
def test_a_broken_maker_costs_no_job_its_video_as_long_as_there_is_another(tmp_path, before_work):
    broken = Broken("broken")
    broken.before_work = before_work
    with working(tmp_path, makers=[broken, FakeMaker("good")], max_attempts=2) as works:
        ids = [works.add(step_s=0.002) for _ in range(30)]
        assert {job.status for job in works.ended(*ids)} == {COMPLETED}
        assert broken.begun and works.crew.is_working


def test_jobs_outlive_makers_that_cannot_begin_and_the_server_is_not_ready_until_one_can(tmp_path):
    broken = Broken()
    broken.before_work = True
    with working(tmp_path, makers=[broken], max_attempts=2) as works:
        ids = [works.add() for _ in range(3)]
        works.until(lambda: len(broken.begun) > 6)
        assert {(works.store.get(id).attempts, works.store.get(id).failure) for id in ids} <= {(0, None), (1, None)}
        works.until(lambda: not works.crew.is_working)
        broken.is_mended = True
        assert {(job.status, job.attempts) for job in works.ended(*ids)} == {(COMPLETED, 1)}
        assert works.crew.is_working


def test_a_maker_rests_for_twice_as_long_after_every_loss_in_a_row_up_to_a_minute(monkeypatch):
    monkeypatch.undo()
    now = [100.0]
    monkeypatch.setattr(health.time, "monotonic", lambda: now[0])
    maker, rests = health.Health(), []
    for _ in range(2000):
        maker.lost("a")
        rests.append(maker.rest_s)
    assert rests == [1, 2, 4, 8, 16, 32] + [60] * 1994
    assert maker.avoided == {"a"} and not maker.is_well
    now[0] += 61
    assert not maker.avoided and maker.rest_s == 0
    maker.recovered()
    maker.lost("b")
    assert maker.rest_s == 1
