"""What the server answers: videos, their files in parts, events, and what operators look at."""

import json
import re
import threading
import time
from contextlib import contextmanager

import pytest
from fakes.makers import REMARKS, STAGES, STEPS, QuickMaker
from fakes.servers import serving, write_demo
from prometheus_client.parser import text_string_to_metric_families
from samples.pictures import png

from ltx_serve.http import events, metrics

SMALL = {"prompt": "A fox, at dawn: «schön»", "size": "96x64", "num_frames": 9, "seed": 5}


@pytest.fixture(scope="module")
def completed(server):
    """A completed video."""
    return server.wait(server.client.post("/v1/videos", json=SMALL).json()["id"])


@pytest.fixture
def held(server):
    """A maker that is held after its first step until the test is over, and has nothing else to do."""
    (maker,) = server.makers
    while any(server.store.counts()[status] for status in ("queued", "in_progress")):
        time.sleep(0.01)
    maker.may_go_on.clear()
    yield maker
    maker.may_go_on.set()


def started(server, id: str) -> None:
    while server.client.get(f"/v1/videos/{id}").json()["status"] == "queued":
        time.sleep(0.01)


def events_of(text: str) -> list[dict[str, object]]:
    """Returns the data of every event in a whole stream, after checking that its name is its kind."""
    events = [block.split("\n") for block in text.strip().split("\n\n") if not block.startswith(":")]
    data = [json.loads(line.removeprefix("data: ")) for _, line in events]
    assert [f"event: {event['kind']}" for event in data] == [name for name, _ in events]
    return data


def test_an_answer_has_the_fields_of_openais_video_and_those_of_this_server(completed, server):
    assert completed == {
        "id": completed["id"],
        "object": "video",
        "model": "demo",
        "status": "completed",
        "progress": 100,
        "created_at": completed["created_at"],
        "started_at": completed["started_at"],
        "completed_at": completed["completed_at"],
        "expires_at": None,
        "seconds": "0.38",
        "size": "96x64",
        "prompt": SMALL["prompt"],
        "remixed_from_video_id": None,
        "error": None,
        "seed": 5,
        "num_frames": 9,
        "fps": 24.0,
        "position": None,
        "request": completed["request"],
        "stages": STAGES,
        "remarks": REMARKS,
    }
    assert re.fullmatch("video_[0-9a-f]{32}", completed["id"])
    assert completed["request"]["negative_prompt"]  # the version's own
    assert server.makers[0].made[-1].fields == completed["request"]


def test_sizes_that_the_model_cannot_make_are_padded_or_refused_if_that_was_ruled_out(server):
    for size in ("100x60", "98x66", "720x400"):
        fields = {"prompt": "A fox", "size": size, "num_frames": 9}
        answer = server.client.post("/v1/videos", json=fields).json()
        assert (answer["size"], answer["request"]["pad"]) == (size, True)
        refused = server.client.post("/v1/videos", json={**fields, "pad": False})
        assert refused.status_code == 400
        assert refused.json()["error"]["param"] == "size"


def test_a_size_or_length_that_cannot_be_made_is_told_in_the_terms_in_which_it_was_asked_for(server):
    for fields, param, *words in (
        ({"size": "99x64"}, "size", "99x64", "an even width and height", "use 100x64"),  # which H.264 in 4:2:0 needs
        ({"width": 99, "height": 64, "pad": True}, "width", "99x64", "even"),
        ({"size": "0x0"}, "size", "0x0", "at least 1x1"),
        ({"size": "1x1"}, "size", "size 1x1 cannot be made", "at least 64"),
        ({"width": 100, "height": 60}, "height", "multiple of 32"),
        ({"size": "96x64", "seconds": 10_000}, "seconds", "10000", "at most 10.71", "257 frames"),
        ({"size": "96x64", "seconds": -1}, "seconds", "-1", "at most 10.71"),
        ({"size": "96x64", "num_frames": 265}, "num_frames", "265", "257"),
        ({"size": "9600x9600"}, "size", "9600x9600"),
    ):
        answer = server.client.post("/v1/videos", json={"prompt": "A fox", **fields})
        error = answer.json()["error"]
        assert (answer.status_code, error["param"]) == (400, param), (fields, error)
        assert all(word in error["message"] for word in words), (fields, error)
        assert ".gif" not in error["message"]


def test_a_size_that_is_padded_has_the_length_that_it_would_have_otherwise_unless_padding_was_asked_for(server):
    fields = {"prompt": "A fox", "size": "100x60", "seconds": 10}
    frames = [
        server.client.post("/v1/videos", json={**fields, **more}).json()["num_frames"]
        for more in ({}, {"size": "96x64"}, {"pad": True})
    ]
    assert frames == [241, 241, 240]


def test_wrong_parameters_and_paths_are_told_with_what_to_do(server):
    for path, *words in (
        ("/nope", "there is nothing at /nope - "),
        ("/v1/videos?limit=0", "limit must be ", "got '0' - "),
        ("/v1/videos?limit=many", "limit must be a valid integer; got 'many' - "),
        ("/v1/videos/video_0/content?variant=x", "variant must be 'video' or 'thumbnail'; got 'x' - "),
    ):
        message = server.client.get(path).json()["error"]["message"]
        assert all(word in message for word in words), message


def test_seconds_are_the_nearest_number_of_frames_that_can_be_made(server):
    for seconds, frames in (("1", 25), (1, 25), ("4", 97), (0.4, 9), ("1.2", 25)):
        answer = server.client.post("/v1/videos", json={"prompt": "A fox", "size": "64x64", "seconds": seconds})
        assert answer.json()["num_frames"] == frames, seconds


def test_a_form_and_json_ask_for_the_same(server):
    fields = {
        "prompt": "A fox",
        "size": "96x64",
        "seconds": "1",
        "seed": 2**64 - 1,
        "fps": 25.5,
        "cfg_star": False,
        "skip_blocks": [1, 3],
        "negative_prompt": "fog",
    }
    as_json = server.client.post("/v1/videos", json=fields).json()
    texts = {name: json.dumps(value) if not isinstance(value, str) else value for name, value in fields.items()}
    as_form = server.client.post("/v1/videos", files={name: (None, text) for name, text in texts.items()}).json()
    assert as_form["request"] == as_json["request"]


def test_an_empty_text_of_a_form_is_a_field_that_was_left_out(server):
    empty = dict.fromkeys(("seed", "model", "negative_prompt", "fps", "pad", "skip_blocks", "conditions", "video"), "")
    texts = {name: (None, str(value)) for name, value in {**SMALL, **empty}.items()}
    answer = server.client.post("/v1/videos", files=texts)
    assert answer.status_code == 200, answer.text
    left_out = server.client.post("/v1/videos", json={**SMALL, "seed": answer.json()["seed"]})
    assert answer.json()["request"] == left_out.json()["request"]
    assert server.client.post("/v1/videos", files={"prompt": (None, "")}).status_code == 400


def test_uploads_are_conditions_under_the_names_that_the_request_gives_them(server):
    conditions = [{"media": "b.png", "frame": 8}, {"media": "a.png", "strength": 0.5}]
    answer = server.client.post(
        "/v1/videos",
        data={"prompt": "A fox", "size": "96x64", "num_frames": "9", "conditions": json.dumps(conditions)},
        files=[("conditions[]", ("a.png", png(colour="red"))), ("conditions[]", ("b.png", png(colour="blue")))],
    ).json()
    assert answer["request"]["conditions"] == [{"media": "input-1", "frame": 8}, {"media": "input-2", "strength": 0.5}]
    folder = server.folders.of(answer["id"])
    assert (folder / "input-1").read_bytes() == png(colour="blue")
    assert (folder / "input-2").read_bytes() == png(colour="red")


def test_a_file_is_sent_whole_or_in_parts(completed, server):
    path = f"/v1/videos/{completed['id']}/content"
    whole = server.client.get(path)
    assert (whole.status_code, whole.headers["content-type"]) == (200, "video/mp4")
    assert whole.headers["content-disposition"] == "inline; filename*=utf-8''A-fox-at-dawn-sch%C3%B6n-5.mp4"
    content = whole.content
    assert content == server.folders.video(completed["id"]).read_bytes()
    for range_, part in (("bytes=0-9", content[:10]), ("bytes=100-", content[100:]), ("bytes=-7", content[-7:])):
        answer = server.client.get(path, headers={"Range": range_})
        assert (answer.status_code, answer.content) == (206, part), range_
        assert answer.headers["content-range"].endswith(f"/{len(content)}")
        stale = server.client.get(path, headers={"Range": range_, "If-Range": '"another"'})
        assert (stale.status_code, stale.content) == (200, content)
        fresh = server.client.get(path, headers={"Range": range_, "If-Range": whole.headers["etag"]})
        assert fresh.status_code == 206
    assert server.client.get(path, headers={"Range": f"bytes={len(content)}-"}).status_code == 416
    assert server.client.get(path, params={"variant": "spritesheet"}).status_code == 400


def test_a_file_that_is_gone_is_told(server):
    id = server.wait(server.client.post("/v1/videos", json=SMALL).json()["id"])["id"]
    server.folders.video(id).unlink()
    answer = server.client.get(f"/v1/videos/{id}/content")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "content_gone")


def test_events_are_told_from_the_present_state_to_the_end_with_a_preview_of_every_step(server, held):
    id = server.client.post("/v1/videos", json=SMALL).json()["id"]
    started(server, id)
    with server.client.stream("GET", f"/v1/videos/{id}/events") as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        assert stream.headers["x-accel-buffering"] == "no"
        lines = stream.iter_lines()
        first = next(lines)
        held.may_go_on.set()
        events = events_of("\n".join([first, *lines]))
    steps = [event for event in events if event["kind"] == "step"]
    assert [event["step"] for event in steps][-1] == STEPS
    for event in steps:
        assert event["id"] == id and event["status"] == "in_progress"
        assert (event["steps"], event["pass"], event["passes"]) == (STEPS, 1, 1)
        assert event["preview"].startswith("data:image/png;base64,iVBOR")
    assert [event["kind"] for event in events][-2:] == ["decoding", "completed"]
    assert events[-1]["status"] == "completed" and events[-1]["progress"] == 100
    progress = [event["progress"] for event in events]
    assert progress == sorted(progress)
    assert [event["kind"] for event in events_of(server.client.get(f"/v1/videos/{id}/events").text)] == ["completed"]


def test_a_silent_stream_is_kept_alive_and_ends_once_its_client_has_left(server, held, monkeypatch):
    subscribed, has_ended = server.crew.subscribe, threading.Event()

    @contextmanager
    def watched(id):
        try:
            with subscribed(id) as queue:
                yield queue
        finally:
            has_ended.set()

    monkeypatch.setattr(server.crew, "subscribe", watched)
    monkeypatch.setattr(events, "_HEARTBEAT_S", 0.05)
    id = server.client.post("/v1/videos", json=SMALL).json()["id"]
    started(server, id)
    with server.client.stream("GET", f"/v1/videos/{id}/events") as stream:
        lines = stream.iter_lines()  # which closes the stream when it is not held any more
        assert any(line.startswith(": ") for line in lines)
        assert not has_ended.is_set()
    assert has_ended.wait(5)


def test_only_so_many_streams_are_open_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(events, "_MOST_STREAMS", 1)
    with serving(tmp_path) as server:
        server.makers[0].may_go_on.clear()
        path = f"/v1/videos/{server.client.post('/v1/videos', json=SMALL).json()['id']}/events"
        with server.client.stream("GET", path) as stream:
            lines = stream.iter_lines()
            next(lines)
            refused = server.client.get(path)
            assert (refused.status_code, refused.json()["error"]["code"]) == (429, "too_many_streams")
            server.makers[0].may_go_on.set()
            assert "event: completed" in [*lines]
        assert server.client.get(path).status_code == 200


def test_a_video_is_cancelled_while_it_waits_and_while_it_is_made(server, held):
    first, second = (server.client.post("/v1/videos", json=SMALL).json()["id"] for _ in range(2))
    started(server, first)
    assert server.client.get(f"/v1/videos/{second}").json()["position"] == 1
    for id in (second, first):
        answer = server.client.post(f"/v1/videos/{id}/cancel").json()
        assert (answer["status"], answer["error"]["code"]) == ("failed", "cancelled")
        again = server.client.post(f"/v1/videos/{id}/cancel")
        assert again.status_code == 409 and "was cancelled before" in again.json()["error"]["message"]
        assert [event["kind"] for event in events_of(server.client.get(f"/v1/videos/{id}/events").text)] == ["failed"]


def test_a_video_that_is_being_made_can_be_deleted(server, held):
    id = server.client.post("/v1/videos", json=SMALL).json()["id"]
    started(server, id)
    with server.client.stream("GET", f"/v1/videos/{id}/events") as stream:
        assert server.client.delete(f"/v1/videos/{id}").json()["deleted"]
        assert events_of(stream.read().decode())[-1]["kind"] == "deleted"
    assert server.client.get(f"/v1/videos/{id}").status_code == 404


def test_retention_is_told_as_the_time_at_which_a_video_expires(tmp_path):
    with serving(tmp_path, keep_days=2) as server:
        video = server.wait(server.client.post("/v1/videos", json=SMALL).json()["id"])
    assert video["expires_at"] == video["completed_at"] + 2 * 86_400


def test_figures_count_requests_and_jobs_and_have_no_label_that_a_client_chooses(tmp_path):
    with serving(tmp_path) as server:
        server.wait(server.client.post("/v1/videos", json=SMALL).json()["id"])
        server.wait(server.client.post("/v1/videos", json={**SMALL, "prompt": "cannot"}).json()["id"], "failed")
        for path in ("/v1/videos/chosen-by-client", "/chosen-by-client", "/v1/models/chosen-by-client"):
            server.client.request("CHOSEN-BY-CLIENT", path)
            server.client.get(path)
        text = server.client.get("/metrics").text
    samples = {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert samples["ltx_jobs", "completed"] == samples["ltx_jobs", "failed"] == 1
    assert samples["ltx_jobs_ended_total", "completed"] == samples["ltx_jobs_ended_total", "failed"] == 1
    assert samples["ltx_stage_seconds_sum", "decode"] == STAGES["decode"]
    assert samples["ltx_stage_seconds_count", "decode"] == 1
    assert samples["ltx_requests_total", "POST", "/v1/videos", "200"] == 2
    assert samples["ltx_request_seconds_count", "POST", "/v1/videos"] == 2
    assert samples["ltx_requests_total", "GET", "/v1/videos/{id}", "404"] == 1
    assert (samples[("ltx_workers",)], samples[("ltx_workers_busy",)], samples[("ltx_workers_lost_total",)]) == (
        1,
        0,
        0,
    )
    assert "chosen" not in text.lower()


def test_a_server_is_ready_while_its_disk_can_be_written_and_it_has_workers(tmp_path, monkeypatch):
    monkeypatch.setattr(metrics, "_LOOK_S", 0)
    with serving(tmp_path) as server:
        assert server.client.get("/readyz").json() == {"status": "ok", "reason": None}
        moved = server.settings.data.rename(tmp_path / "unplugged")
        answer = server.client.get("/readyz")
        assert (answer.status_code, answer.json()["reason"]) == (503, "the folder of the data cannot be written")
        moved.rename(server.settings.data)
        server.crew.stop(0)
        answer = server.client.get("/readyz")
        assert (answer.status_code, answer.json()["reason"]) == (
            503,
            "no worker can make videos at present; the log says why",
        )
        assert server.client.get("/healthz").status_code == 200


def test_whether_a_server_is_ready_is_looked_up_once_a_second_however_often_it_is_asked(tmp_path, monkeypatch):
    looks = []
    with serving(tmp_path) as server:
        counts = server.store.counts
        monkeypatch.setattr(server.store, "counts", lambda: looks.append(1) or counts())
        began = time.monotonic()
        for _ in range(50):
            assert server.client.get("/readyz").status_code == 200
        assert len(looks) <= 1 + (time.monotonic() - began) / metrics._LOOK_S


def test_a_disk_that_cannot_be_written_is_told_and_the_server_lives(tmp_path):
    with serving(tmp_path, [QuickMaker()]) as server:
        moved = server.folders.root.rename(tmp_path / "unplugged")
        server.folders.root.touch()  # a file where the folder was
        answer = server.client.post("/v1/videos", json=SMALL)
        assert (answer.status_code, answer.json()["error"]["code"]) == (507, "no_space")
        server.folders.root.unlink()
        moved.rename(server.folders.root)
        assert server.client.post("/v1/videos", json=SMALL).status_code == 200


def test_a_version_without_an_encoder_refuses_images_when_they_are_asked_for(tmp_path):
    write_demo(tmp_path / "engines", lacking=["vae_encoder"])
    with serving(tmp_path) as server:
        assert server.client.post("/v1/videos", json=SMALL).status_code == 200
        answer = server.client.post("/v1/videos", data=SMALL, files={"input_reference": png()})
        assert answer.status_code == 400
        assert answer.json()["error"]["message"] == "demo has no vae_encoder"
