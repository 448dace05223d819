"""Laws of a worker process with the real demo: the same videos as the library, whatever is done to the process."""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
from samples.demo import folder_with_demo

from ltx_runtime import LtxError, Pipeline
from ltx_serve.jobs.job import Job, new_id
from ltx_serve.making import process
from ltx_serve.making.events import DECODING, STEP, CancelledError, MakerLostError
from ltx_serve.making.process import ProcessMaker

SMALL = {"prompt": "a red fox", "height": 64, "width": 64, "num_frames": 9, "fps": 24.0}
LONG = {**SMALL, "height": 256, "width": 256, "num_frames": 33, "steps": 40}
PATIENCE_S = 20


@pytest.fixture(scope="module")
def engines() -> Path:
    return folder_with_demo() / "engines"


@pytest.fixture(scope="module")
def library(engines):
    """The pipeline that the videos of workers are compared with."""
    with Pipeline(engines / "demo", backend="cpu", threads=1, keep_loaded=True) as pipe:
        yield pipe


@pytest.fixture
def maker(engines):
    maker = ProcessMaker("worker-1", {"folder": str(engines), "backend": "cpu", "threads": 1})
    yield maker
    maker.close()
    assert maker.pid is None


def make(maker, folder, told=lambda event: None, model="demo", id=None, **fields):
    """Has a video made in a folder, and returns the result."""
    folder.mkdir(exist_ok=True)
    return maker.make(Job(id or new_id(), model, {**SMALL, **fields}, attempts=1), folder, told)


def until(holds):
    limit = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < limit
        time.sleep(0.01)


def pixels(video: Path) -> str:
    """Returns the checksum of a video's frames."""
    import av

    digest = hashlib.sha256()
    with av.open(str(video)) as container:
        for frame in container.decode(video=0):
            digest.update(frame.to_ndarray(format="rgb24").tobytes())
    return digest.hexdigest()


def test_a_worker_makes_what_the_library_makes_stays_warm_and_tells_every_step(maker, library, tmp_path):
    pid, took = maker.pid, []
    for seed in (1, 2, 3):
        events = []
        result = make(maker, tmp_path / str(seed), events.append, seed=seed)
        took.append(result)
        library(**SMALL, seed=seed).save(tmp_path / f"{seed}.mp4")
        made = tmp_path / str(seed) / "video.mp4"
        assert pixels(made) == pixels(tmp_path / f"{seed}.mp4")
        assert result["bytes"] == made.stat().st_size and result["backends"]["transformer"] == "cpu"
        planned = library(**SMALL, seed=seed).plan
        steps = [event for event in events if event.kind == STEP]
        assert [(event.data["pass"], event.data["step"]) for event in steps] == [
            (number, step + 1) for number, one in enumerate(planned.passes, 1) for step in range(len(one.sigmas))
        ]
        assert [event.kind for event in events[len(steps) :]] == [DECODING] * (len(events) - len(steps))
        assert events[-1].data == {"frame": 9, "frames": 9}
        percents = [event.progress for event in events]
        assert percents == sorted(percents) and percents[0] > 0 and percents[-1] == 99
    assert maker.pid == pid


def test_a_preview_is_a_small_png_of_the_shape_of_the_video_and_the_thumbnail_its_first_frame(maker, tmp_path):
    import av
    import numpy as np
    from PIL import Image

    events = []
    make(maker, tmp_path / "a", events.append, height=64, width=128)
    for event in events:
        if event.kind == STEP:
            (tmp_path / "preview.png").write_bytes(event.preview)
            with Image.open(tmp_path / "preview.png") as picture:
                assert picture.format == "PNG" and picture.width == 2 * picture.height
        else:
            assert event.preview is None
    with av.open(str(tmp_path / "a" / "video.mp4")) as container:
        first = next(container.decode(video=0)).to_ndarray(format="rgb24").astype(int)
    with Image.open(tmp_path / "a" / "thumbnail.webp") as thumbnail:
        assert thumbnail.format == "WEBP" and thumbnail.size == (128, 64)
        difference = np.abs(np.asarray(thumbnail.convert("RGB")).astype(int) - first)
    assert difference.mean() < 12
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["thumbnail.webp", "video.mp4"]


def test_an_image_in_the_folder_of_the_job_is_found_by_its_name(maker, library, tmp_path):
    from PIL import Image

    (tmp_path / "a").mkdir()
    Image.new("RGB", (64, 64), "red").save(tmp_path / "a" / "input-1.png")
    make(maker, tmp_path / "a", seed=1, conditions=[{"media": "input-1.png", "frame": 0}])
    make(maker, tmp_path / "b", seed=1)
    assert pixels(tmp_path / "a" / "video.mp4") != pixels(tmp_path / "b" / "video.mp4")


@pytest.mark.parametrize(
    ("fields", "problem", "advice"),
    [
        ({"height": 65}, "height must be a multiple of 32; got 65", "use 64 or 96"),
        ({"conditions": [{"media": "input-9.png"}]}, "input-9.png", ""),
        ({"colour": "red"}, "a request has no field 'colour'", "use one of"),
    ],
)
def test_what_cannot_be_made_comes_across_with_its_fields_and_the_worker_goes_on(
    maker, tmp_path, fields, problem, advice
):
    pid = maker.pid
    with pytest.raises(LtxError) as refused:
        make(maker, tmp_path / "a", **fields)
    assert problem in refused.value.problem and advice in refused.value.advice
    assert refused.value.code == "failed"
    assert [*(tmp_path / "a").iterdir()] == []
    make(maker, tmp_path / "b")
    assert maker.pid == pid


def test_a_first_frame_that_cannot_be_written_is_told_in_a_sentence(maker, tmp_path):
    (tmp_path / "a" / "thumbnail.webp").mkdir(parents=True)
    with pytest.raises(LtxError, match=r"cannot use \S*thumbnail.webp: is a directory - "):
        make(maker, tmp_path / "a")


def test_a_model_that_is_not_there_is_refused_and_the_next_one_made(maker, tmp_path):
    with pytest.raises(LtxError, match=r"no engines for 0\.9\.5"):
        make(maker, tmp_path / "a", model="0.9.5")
    make(maker, tmp_path / "a")


@pytest.mark.parametrize("after_s", [0.0, 0.05, 0.4, 1.0])
def test_cancelling_ends_the_making_soon_and_leaves_the_worker_warm(maker, tmp_path, after_s):
    make(maker, tmp_path / "warm")
    pid = maker.pid
    id = new_id()
    threading.Timer(after_s, maker.cancel, [id]).start()
    began = time.monotonic()
    if after_s == 0:  # perhaps before there is anything to cancel
        threading.Timer(0.3, maker.cancel, [id]).start()
    with pytest.raises(CancelledError):
        make(maker, tmp_path / "a", id=id, **{**LONG, "steps": 400})  # a fast machine makes 40 in a second
    assert time.monotonic() - began < after_s + 3
    assert not (tmp_path / "a" / "video.mp4").exists()
    make(maker, tmp_path / "b")
    assert maker.pid == pid


def test_a_worker_that_does_not_stop_is_killed_and_another_takes_over(maker, tmp_path):
    make(maker, tmp_path / "warm")
    pid = maker.pid
    os.kill(pid, signal.SIGSTOP)  # as in a step that takes for ever
    id = new_id()
    threading.Timer(0.2, maker.cancel, [id]).start()
    with pytest.raises(CancelledError):
        make(maker, tmp_path / "a", id=id)
    make(maker, tmp_path / "a")
    assert maker.pid not in (None, pid)


def test_cancelling_what_is_not_under_way_does_nothing_to_what_is(maker, tmp_path):
    over = new_id()
    maker.cancel(over)
    make(maker, tmp_path / "a", lambda event: maker.cancel(over), id=new_id())


def test_killed_at_any_moment_a_video_is_the_same_after_it_was_gone_on_with(maker, library, tmp_path):
    chosen = random.Random(5)
    request = {**SMALL, "height": 128, "width": 128, "num_frames": 17, "seed": 3}
    library(**request).save(tmp_path / "whole.mp4")
    expected, kills = pixels(tmp_path / "whole.mp4"), []
    for number in range(4):
        folder, steps = tmp_path / str(number), []
        for _ in range(2):
            moment = chosen.randint(1, 6)

            def kill_then(event, steps=steps, moment=moment, seen=[]):  # noqa: B006
                seen.append(event)
                steps.extend([event.data["step"]] if event.kind == STEP else [])
                if len(seen) == moment:
                    time.sleep(chosen.random() * 0.02)
                    os.kill(maker.pid, signal.SIGKILL)

            try:
                make(maker, folder, kill_then, **request)
            except MakerLostError as lost:
                kills.append(lost.reason)
                assert not lost.out_of_memory and not lost.before_work
        make(maker, folder, **request)
        assert pixels(folder / "video.mp4") == expected
        assert sorted(path.name for path in folder.glob("[!.]*")) == ["thumbnail.webp", "video.mp4"]
    assert len(kills) > 5 and {*kills} == {"its process was ended by SIGKILL"}


def test_a_worker_that_the_system_ends_for_want_of_memory_is_told_apart(maker, tmp_path, monkeypatch):
    counts = tmp_path / "vmstat"
    counts.write_text("pgfault 3\noom_kill 4\noom_kill_other 9\n")
    monkeypatch.setattr(process, "_MEMORY_KILLS", (counts, process._MEMORY_KILLS[1]))

    def kill(event):
        counts.write_text("pgfault 3\noom_kill 5\noom_kill_other 9\n")
        os.kill(maker.pid, signal.SIGKILL)

    with pytest.raises(MakerLostError) as lost:
        make(maker, tmp_path / "a", kill)
    assert lost.value.out_of_memory


@pytest.mark.parametrize("damage", [b"", b"no state", None])
def test_what_an_interrupted_run_has_left_is_put_aside_if_it_is_damaged(maker, library, tmp_path, damage):
    folder = tmp_path / "a"
    events = []

    def kill(event):
        events.append(event)
        if len(events) == 5:
            os.kill(maker.pid, signal.SIGKILL)

    with pytest.raises(MakerLostError):
        make(maker, folder, kill, **LONG, seed=4)
    left = folder / "video.mp4.unfinished"
    content = left.read_bytes()
    left.write_bytes(content[: len(content) // 2] if damage is None else damage)
    again = []
    result = make(maker, folder, again.append, **LONG, seed=4)
    assert again[0].data["step"] == 1
    assert "begun anew" in result["notes"][0]
    assert not left.exists()


def test_a_video_that_is_whole_is_not_made_again_and_gets_the_first_frame_that_it_lacks(maker, tmp_path):
    make(maker, tmp_path / "a", seed=1)
    video, thumbnail = tmp_path / "a" / "video.mp4", tmp_path / "a" / "thumbnail.webp"
    before = video.stat()
    thumbnail.unlink()
    (tmp_path / "a" / "video.mp4.unfinished").touch()
    events = []
    result = make(maker, tmp_path / "a", events.append, seed=1)
    assert (video.stat().st_mtime_ns, video.stat().st_ino) == (before.st_mtime_ns, before.st_ino)
    assert (events, result["bytes"]) == ([], before.st_size)
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["thumbnail.webp", "video.mp4"]


def test_a_worker_that_died_while_idle_is_replaced_without_a_lost_attempt(maker, tmp_path):
    pid = maker.pid
    os.kill(pid, signal.SIGKILL)
    until(lambda: maker.pid is None)
    make(maker, tmp_path / "a")
    assert maker.pid not in (None, pid)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_worker_leaves_signals_to_its_server(maker, tmp_path, number):
    make(maker, tmp_path / "warm")

    def send(event):
        os.kill(maker.pid, number)

    make(maker, tmp_path / "a", send)
    assert os.getsid(maker.pid) != os.getsid(0)  # nor does Ctrl-C in the server's terminal reach it


def test_a_worker_is_what_the_system_ends_first_if_memory_runs_out(maker, tmp_path):
    make(maker, tmp_path / "a")
    assert int(Path(f"/proc/{maker.pid}/oom_score_adj").read_text()) == 500


SERVER = """
import sys, json
from pathlib import Path
from ltx_serve.jobs.job import Job, new_id
from ltx_serve.making import process
from ltx_serve.making.process import ProcessMaker
maker = ProcessMaker("worker-1", json.loads(sys.argv[1]))
print(maker.pid, flush=True)
if sys.argv[3] == "busy":
    job = Job(new_id(), "demo", json.loads(sys.argv[2]))
    maker.make(job, Path(sys.argv[4]), lambda event: print(event.kind, flush=True))
else:
    input()
"""


@pytest.mark.parametrize("work", ["idle", "busy", "loading"])
def test_however_the_server_dies_its_worker_ends_too(engines, tmp_path, work):
    arguments = json.dumps({"folder": str(engines), "backend": "cpu", "threads": 1})
    command = [
        sys.executable,
        "-c",
        SERVER,
        arguments,
        json.dumps(LONG),
        "idle" if work == "idle" else "busy",
        tmp_path,
    ]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        worker = psutil.Process(int(server.stdout.readline()))
        if work == "busy":
            assert server.stdout.readline() == "step\n"
        server.kill()
        worker.wait(3)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"folder": "nowhere"}, "nowhere"),
        ({"folder": 5}, "folder"),
        ({"backend": "tensorrt"}, "tensorrt"),
        ({"backend": "none"}, "unknown backend 'none'"),
    ],
)
def test_a_worker_that_can_make_no_video_is_lost_with_its_reason_and_no_job_is_the_cause(
    engines, tmp_path, arguments, reason
):
    maker = ProcessMaker("worker-1", {"folder": str(engines), **arguments})
    for _ in range(2):
        with pytest.raises(MakerLostError, match=reason) as lost:
            make(maker, tmp_path / "a")
        assert lost.value.before_work
    maker.close()


def test_a_maker_that_is_closed_starts_nothing(engines, tmp_path):
    maker = ProcessMaker("worker-1", {"folder": str(engines)})
    maker.close()
    maker.close()
    with pytest.raises(MakerLostError, match="the server stops"):
        make(maker, tmp_path / "a")
    assert maker.pid is None


def test_a_python_that_cannot_be_started_is_a_lost_maker(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "executable", str(tmp_path / "none"))
    maker = ProcessMaker("worker-1", {"folder": "engines"})
    with pytest.raises(MakerLostError, match="no process can be started: no such file") as lost:
        make(maker, tmp_path / "a")
    assert lost.value.before_work
    maker.close()
