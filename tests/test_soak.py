"""The short form of tests/soak: some videos of every kind and some cancels in one process leave nothing behind."""

import gc
import signal
import sys
from dataclasses import replace

import pytest
from samples.demo import folder_with_demo
from soak.cancels import Cancelled
from soak.many_videos import Maker
from soak.usage import Usage, grown, usage_of

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="what a process holds is read from /proc")
VIDEOS, WARM, CANCELS = 16, 4, 12


@pytest.fixture
def engines():
    return folder_with_demo() / "engines" / "demo"


@pytest.fixture
def alarms():
    """Makes the signal of a timer act like Ctrl-C."""
    usual = signal.signal(signal.SIGALRM, signal.default_int_handler)
    yield
    signal.signal(signal.SIGALRM, usual)


@pytest.mark.slow
def test_videos_of_every_kind_leave_no_file_thread_or_descriptor(engines, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    maker = Maker(engines, tmp_path, backend="cpu", threads=1)
    held = []
    for _ in range(VIDEOS):
        maker.make()
        gc.collect()
        held.append(usage_of(places=(maker.outputs,)))
    maker.close()
    assert len(maker.kinds) > 5
    assert {(usage.threads, usage.descriptors, usage.files) for usage in held[WARM:]} == {
        (held[WARM].threads, held[WARM].descriptors, 0)
    }


# Python itself frees a folder's iterator late where the signal comes before its `with` block (pathlib, shutil).
@pytest.mark.filterwarnings("ignore:Exception ignored in.*ScandirIterator:pytest.PytestUnraisableExceptionWarning")
def test_after_every_cancel_nothing_is_left_and_the_next_video_is_right(engines, tmp_path, alarms):
    cancelled = Cancelled(engines, tmp_path, backend="cpu", threads=1)
    for _ in range(CANCELS):
        cancelled.once()
    cancelled.close()
    in_time = sum(count for what, count in cancelled.counts.items() if what.endswith(", cancelled"))
    assert in_time > CANCELS / 2, cancelled.counts


@pytest.mark.parametrize("name", ["private_mb", "threads", "descriptors", "files"])
def test_a_leak_is_told_and_noise_is_not(name):
    """A leak of 0.1 MB, thread, descriptor or file with every video."""
    flat = [Usage(200.0, 150.0 + (index % 3), 2, 6, 0) for index in range(50)]
    leaking = [replace(usage, **{name: getattr(usage, name) + 0.1 * index}) for index, usage in enumerate(flat)]
    assert grown([*enumerate(flat, 1)]) == []
    (told,) = grown([*enumerate(leaking, 1)])
    assert told.startswith(f"{name} by ")
