"""Variations of a video, and videos that end or are deleted between one look and the next."""

import pytest
from samples.pictures import png

from ltx_serve.jobs.job import COMPLETED

SMALL = {"prompt": "A fox", "size": "96x64", "num_frames": 9}


def remixed(server, source, **changes):
    """Returns the request of a variation."""
    answer = server.client.post(f"/v1/videos/{source}/remix", json=changes)
    assert answer.status_code == 200, answer.text
    return answer.json()["request"]


def created(server, **fields):
    """Returns the id of a new video."""
    answer = server.client.post("/v1/videos", json={**SMALL, **fields})
    assert answer.status_code == 200, answer.text
    return answer.json()["id"]


def test_a_variation_sets_what_its_source_has_set_in_another_way(server):
    by_timesteps = created(server, timesteps=[1.0, 0.9, 0.5])
    assert remixed(server, by_timesteps, seed=1)["timesteps"] == [1.0, 0.9, 0.5]
    changed = remixed(server, by_timesteps, steps=4)
    assert changed["steps"] == 4 and not changed.get("timesteps")
    by_steps = created(server, steps=4)
    changed = remixed(server, by_steps, timesteps=[1.0, 0.5])
    assert changed["timesteps"] == [1.0, 0.5] and not changed.get("steps")
    assert remixed(server, by_steps, seconds=1)["num_frames"] == 25


def test_a_variation_of_another_size_is_padded_only_if_that_size_needs_it(server):
    padded = created(server, size="100x60")
    assert remixed(server, padded, seed=1)["pad"]
    assert not remixed(server, padded, size="96x64").get("pad")
    assert remixed(server, padded, size="98x66")["pad"]


def test_a_variation_may_take_its_size_from_an_image(server):
    source = server.client.post("/v1/videos", data=SMALL, files={"input_reference": png((200, 100))}).json()["id"]
    varied = remixed(server, source, fit="size-from-image")
    assert varied["width"] == 2 * varied["height"]


def test_a_variation_by_another_model_is_wrong_rather_than_not_found(server):
    source = created(server)
    assert remixed(server, source, model="demo")
    for model in ("0.9.8-2b-distilled", "nowhere"):
        answer = server.client.post(f"/v1/videos/{source}/remix", json={"model": model})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "model"), answer.text


def test_a_source_that_is_deleted_meanwhile_is_not_found(server, monkeypatch):
    source = server.client.post("/v1/videos", data=SMALL, files={"input_reference": png()}).json()["id"]
    desk = server.app.state.desk
    monkeypatch.setattr(desk.models, "find", lambda name: server.crew.delete(source) and next(iter(desk.models)))
    answer = server.client.post(f"/v1/videos/{source}/remix", json={"prompt": "An owl"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "video_not_found")


def test_a_video_that_ends_before_it_is_cancelled_is_told_as_what_it_is_then(server, monkeypatch):
    (maker,) = server.makers
    maker.may_go_on.clear()
    id = created(server)
    cancel = server.crew.cancel

    def late(id):
        maker.may_go_on.set()
        with server.crew.subscribe(id) as events:
            while not events.get(timeout=20).is_last:
                pass
        return cancel(id)

    monkeypatch.setattr(server.crew, "cancel", late)
    answer = server.client.post(f"/v1/videos/{id}/cancel")
    assert answer.status_code == 409
    assert f"the video is {COMPLETED}" in answer.json()["error"]["message"]


@pytest.mark.parametrize("headers", [{}, {"Range": "bytes=0-9"}])
def test_a_file_that_is_removed_before_it_is_opened_is_told(server, monkeypatch, headers):
    id = created(server)
    server.wait(id)
    path = server.folders.video(id)

    class Removed(type(path)):
        """The path of a video that retention removes right after its size was read."""

        def stat(self, **options):
            facts = path.stat(**options)
            path.unlink()
            return facts

    monkeypatch.setattr(server.folders, "video", lambda id: Removed(path))
    answer = server.client.get(f"/v1/videos/{id}/content", headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "content_gone")
