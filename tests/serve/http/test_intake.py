"""Taking requests in: uploads named twice or not at all, large bodies, and what keeps a request from acceptance."""

import asyncio
import json
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from fakes.servers import serving
from samples.pictures import png

from ltx_serve.http import bodies
from ltx_serve.http.fields import Draft

SMALL = {"prompt": "A fox", "size": "96x64", "num_frames": 9}
AS_JSON = {"Content-Type": "application/json"}


def post(server, conditions, *names):
    """Asks for a video with conditions, and uploads with these names."""
    uploads = [
        ("conditions[]", (name, png(colour=colour))) for name, colour in zip(names, ("red", "blue"), strict=False)
    ]
    return server.client.post("/v1/videos", data={**SMALL, "conditions": json.dumps(conditions)}, files=uploads)


def test_one_upload_can_be_named_in_two_conditions(server):
    conditions = [{"media": "a.png"}, {"media": "a.png", "frame": 8, "strength": 0.5}]
    answer = post(server, conditions, "a.png")
    assert answer.status_code == 200, answer.text
    inputs = [condition["media"] for condition in answer.json()["request"]["conditions"]]
    assert inputs == ["input-1", "input-1"]
    assert (server.folders.of(answer.json()["id"]) / "input-1").read_bytes() == png(colour="red")


def test_uploads_that_share_a_name_or_that_nothing_names_are_refused_rather_than_dropped(server):
    for conditions, names, sentence in (
        ([{"media": "a.png"}], ("a.png", "a.png"), "two uploads are named 'a.png'"),
        ([{"media": "a.png"}], ("a.png", "b.png"), "no condition names the upload 'b.png'"),
        ([], ("a.png",), "no condition names the upload 'a.png'"),
    ):
        answer = post(server, conditions, *names)
        assert answer.status_code == 400, answer.text
        assert (answer.json()["error"]["param"], sentence in answer.json()["error"]["message"]) == ("conditions", True)


def test_a_large_body_in_json_keeps_nobody_waiting(server):
    numbers = b"0.5," * 7_000_000
    many = b'{"prompt": "A fox", "timesteps": [' + numbers + b"1]}"
    long = b'{"prompt": "' + b"x" * 30_000_000 + b'"}'
    for body in (many, long):
        with ThreadPoolExecutor(1) as thread:
            posting = thread.submit(server.client.post, "/v1/videos", content=body, headers=AS_JSON)
            longest_s = 0.0
            while not posting.done():
                began = time.monotonic()
                server.client.get("/healthz")
                longest_s = max(longest_s, time.monotonic() - began)
        assert posting.result().status_code == 400
        assert longest_s < 1.5, longest_s


def test_numbers_that_are_not_finite_are_refused_wherever_they_are(server):
    for text in ("1e999", "NaN", "-Infinity"):
        for body in ('{"prompt": "x", "fps": %s}', '{"prompt": "x", "timesteps": [1, [%s]]}', '{"prompt": {"a": %s}}'):
            answer = server.client.post("/v1/videos", content=body % text, headers=AS_JSON)
            assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_body"), body % text


def test_a_full_queue_refuses_before_anything_is_received(tmp_path):
    with serving(tmp_path, max_queue=1) as server:
        server.makers[0].may_go_on.clear()
        try:
            id = server.client.post("/v1/videos", json=SMALL).json()["id"]
            while server.client.get(f"/v1/videos/{id}").json()["status"] == "queued":
                time.sleep(0.01)
            assert server.client.post("/v1/videos", json=SMALL).status_code == 200
            large = {"input_reference": bytes(50_000_000)}
            full = server.client.post("/v1/videos", data=SMALL, files=large)
            assert (full.status_code, full.json()["error"]["code"]) == (429, "queue_full")
            assert "Retry-After" in full.headers
            assert server.client.post(f"/v1/videos/{id}/remix", json={}).status_code == 429
        finally:
            server.makers[0].may_go_on.set()


def test_only_some_large_bodies_are_received_at_a_time_and_small_ones_do_not_wait_for_them(tmp_path, monkeypatch):
    monkeypatch.setattr(bodies, "_MOST_LARGE", 1)
    monkeypatch.setattr(bodies, "_PLACE_S", 0.3)
    form_in, is_received, may_end = bodies._form_in, threading.Event(), threading.Event()

    async def form_in_its_place(request):
        is_received.set()
        return await form_in(request)

    def slow():
        yield b"--x\r\nContent-Disposition: form-data; name="
        may_end.wait(20)
        yield b'"prompt"\r\n\r\nA fox\r\n--x--\r\n'

    monkeypatch.setattr(bodies, "_form_in", form_in_its_place)
    with serving(tmp_path) as server:
        headers = {"Content-Type": "multipart/form-data; boundary=x"}
        answers = []
        first = threading.Thread(
            target=lambda: answers.append(server.client.post("/v1/videos", content=slow(), headers=headers))
        )
        first.start()
        assert is_received.wait(10)  # else the next body would have the place, and the first one might be refused
        large = {"input_reference": bytes(2_000_000)}
        refused = server.client.post("/v1/videos", data=SMALL, files=large)
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "too_many_uploads")
        assert server.client.post("/v1/videos", json=SMALL).status_code == 200
        may_end.set()
        first.join()
        assert answers[0].status_code == 200
        assert server.client.post("/v1/videos", data=SMALL, files=large).status_code == 400  # it is read, and no image


def test_uploads_are_spooled_on_the_disk_of_the_data(server):
    assert tempfile.gettempdir() == str(server.settings.data)


def test_a_crew_that_is_busy_with_its_queue_does_not_keep_the_server_waiting(server, monkeypatch):
    may_go_on, is_told = threading.Event(), threading.Event()

    def slow_notify():
        is_told.set()
        assert may_go_on.wait(20)

    monkeypatch.setattr(server.crew, "notify", slow_notify)
    answers = []
    posting = threading.Thread(target=lambda: answers.append(server.client.post("/v1/videos", json=SMALL)))
    posting.start()
    assert is_told.wait(20)
    try:
        assert server.client.get("/healthz", timeout=5).status_code == 200
    finally:
        may_go_on.set()
        posting.join()
    assert answers[0].status_code == 200
    monkeypatch.undo()
    server.crew.notify()


def test_a_job_that_is_being_recorded_when_the_server_stops_keeps_its_folder(server, monkeypatch):
    desk, add = server.app.state.desk, server.store.add
    is_adding, may_add = threading.Event(), threading.Event()

    def slow_add(job):
        is_adding.set()
        assert may_add.wait(20)
        return add(job)

    monkeypatch.setattr(server.store, "add", slow_add)
    fields = {"prompt": "A fox", "height": 64, "width": 96, "num_frames": 9, "conditions": [{"media": "input-1"}]}
    draft = Draft(None, fields, {"input-1": png()}, {}, frozenset(fields))

    async def cut_off():
        task = asyncio.create_task(desk.accept(draft, desk.models.find(None)))
        while not is_adding.is_set():
            await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.sleep(0.1)
        may_add.set()
        with pytest.raises(asyncio.CancelledError):
            await task

    before = server.store.ids()
    asyncio.run(cut_off())
    while not (new := server.store.ids() - before):
        time.sleep(0.01)
    assert (server.folders.of(*new) / "input-1").exists()


def test_a_checker_that_is_not_there_is_an_error_of_the_server(tmp_path, monkeypatch):
    monkeypatch.setattr("ltx_serve.checking.checker._START_S", 0.0)
    with serving(tmp_path) as server:
        answer = server.client.post("/v1/videos", json=SMALL)
        assert (answer.status_code, answer.json()["error"]["type"]) == (503, "server_error")
        assert "Retry-After" in answer.headers
        monkeypatch.undo()
        assert server.client.post("/v1/videos", json=SMALL).status_code == 200
