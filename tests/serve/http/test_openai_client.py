"""OpenAI's own Python client, unmodified, against the server."""

import base64
import io
import json
import time

import openai
import pytest
from fakes.makers import STAGES, QuickMaker
from fakes.servers import serving
from PIL import Image
from samples.pictures import png

from ltx_runtime.media.pictures import opened

pytestmark = pytest.mark.filterwarnings("ignore:The Sora API:DeprecationWarning")
SMALL = {"size": "96x64", "extra_body": {"num_frames": 9}}


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
        yield client


@pytest.fixture(scope="module")
def completed(client):
    """A video that is completed."""
    return client.videos.create_and_poll(prompt="A fox", **SMALL, poll_interval_ms=20)


def test_a_video_is_queued_with_everything_that_was_asked_for_and_what_was_filled_in(client):
    video = client.videos.create(
        prompt="A fox",
        model="demo",
        size="96x64",
        seconds="1",
        extra_body={"seed": 7, "guidance_scale": 2.5, "single_pass": True, "skip_blocks": [1, 2], "steps": 8},
    )
    assert (video.object, video.status, video.prompt, video.model) == ("video", "queued", "A fox", "demo")
    assert (video.size, video.seconds, video.seed, video.num_frames, video.fps) == ("96x64", "1.04", 7, 25, 24.0)
    fields = {"guidance_scale": 2.5, "single_pass": True, "skip_blocks": [1, 2], "steps": 8}
    assert {name: video.request[name] for name in fields} == fields
    assert client.videos.poll(video.id, poll_interval_ms=20).status == "completed"


def test_a_completed_video_says_how_long_its_stages_took(completed, client):
    video = client.videos.retrieve(completed.id)
    assert (video.status, video.progress, video.error, video.stages) == ("completed", 100, None, STAGES)
    assert video.created_at <= video.started_at <= video.completed_at


def test_the_downloaded_file_is_the_video_that_was_asked_for(completed, client, tmp_path):
    client.videos.download_content(completed.id).write_to_file(tmp_path / "video")
    with opened(tmp_path / "video") as clip:
        facts = clip.facts
    assert (facts.width, facts.height, facts.frames, facts.fps) == (96, 64, 9, 24)


def test_the_thumbnail_is_a_picture_of_the_same_size(completed, client):
    content = client.videos.download_content(completed.id, variant="thumbnail").read()
    assert Image.open(io.BytesIO(content)).size == (96, 64)


def test_an_uploaded_image_becomes_the_first_frame_under_a_name_of_the_server(client, server):
    name = "../../escaped.png"
    video = client.videos.create(prompt="A fox", **SMALL, input_reference=(name, png(), "image/png"))
    (condition,) = video.request["conditions"]
    assert condition == {"media": "input-1"}
    assert (server.folders.of(video.id) / "input-1").read_bytes() == png()
    assert not list(server.settings.data.rglob("*escaped*"))


def test_images_in_the_request_itself_are_conditions_in_json_or_as_the_client_spells_lists_of_objects(client):
    url = "data:image/png;base64," + base64.b64encode(png()).decode()
    conditions = [{"media": url, "frame": 0, "strength": 1}, {"media": url, "frame": 8, "strength": 0.5}]
    for spelled in (conditions, json.dumps(conditions), json.dumps([{"media": url}, conditions[1]])):
        fields = {"num_frames": 9, "conditions": spelled, "input_reference": {"image_url": url}}
        video = client.videos.create(prompt="A fox", size="96x64", extra_body=fields)
        kept = [
            (condition["media"], condition.get("frame", 0), condition.get("strength", 1))
            for condition in video.request["conditions"]
        ]
        assert kept == [("input-1", 0, 1), ("input-2", 0, 1), ("input-3", 8, 0.5)]


def test_a_remix_keeps_the_request_and_its_images_and_changes_what_is_given(client, server):
    first = client.videos.create(
        prompt="A fox", size="96x64", input_reference=png(), extra_body={"num_frames": 9, "seed": 3}
    )
    again = client.videos.remix(first.id, prompt="An owl")
    assert (again.prompt, again.remixed_from_video_id, again.seed) == ("An owl", first.id, 3)
    assert again.request == {**first.request, "prompt": "An owl"}
    client.videos.delete(first.id)
    assert (server.folders.of(again.id) / "input-1").read_bytes() == png()
    other = client.videos.remix(again.id, prompt="An owl", extra_body={"seed": None, "seconds": "2", "size": "64x64"})
    assert (other.size, other.num_frames) == ("64x64", 49)
    assert other.seed != 3


def test_videos_are_listed_page_by_page_newest_first(client):
    ids = [client.videos.create(prompt=f"Fox {n}", **SMALL).id for n in range(5)]
    listed = [video.id for video, _ in zip(client.videos.list(limit=2), range(5), strict=False)]
    assert listed == ids[::-1]
    page = client.videos.list(limit=2)
    assert page.has_more and page.last_id == ids[-2]
    oldest = client.videos.list(limit=1, order="asc").data[0]
    assert oldest.id not in ids


def test_a_deleted_video_is_gone_with_its_files(client, server):
    video = client.videos.create_and_poll(prompt="A fox", **SMALL, poll_interval_ms=20)
    deleted = client.videos.delete(video.id)
    assert (deleted.id, deleted.deleted, deleted.object) == (video.id, True, "video.deleted")
    with pytest.raises(openai.NotFoundError):
        client.videos.retrieve(video.id)
    assert not server.folders.of(video.id).exists()


def test_a_video_that_fails_says_why(client):
    video = client.videos.create_and_poll(prompt="What cannot be", **SMALL, poll_interval_ms=20)
    assert video.status == "failed"
    assert (video.error.code, video.error.message) == ("failed", "it cannot be made - ask for another")
    with pytest.raises(openai.NotFoundError, match="it cannot be made"):
        client.videos.download_content(video.id)


def test_the_models_are_listed_with_sizes_and_lengths_that_can_be_made(client):
    (model,) = client.models.list().data
    assert (model.id, model.object, model.defaults["width"]) == ("demo", "model", 384)
    assert client.models.retrieve("demo") == model
    for size in model.sizes:
        client.videos.create(prompt="A fox", size=size, extra_body={"num_frames": model.lengths[0]["num_frames"]})
    assert all(length["num_frames"] % 8 == 1 for length in model.lengths)


def test_errors_become_the_clients_own_exceptions_and_name_the_field(client):
    wrong = [
        ({"prompt": ""}, "prompt"),
        ({"size": "1000"}, "size"),
        ({"seconds": "long"}, "seconds"),
        ({"extra_body": {"sed": 7}}, "sed"),
        ({"extra_body": {"height": 65}}, "height"),
        ({"extra_body": {"seed": -1}}, "seed"),
        ({"extra_body": {"loras": "a.safetensors"}}, "loras"),
        ({"extra_body": {"steps": 10**9}}, "steps"),
        ({"input_reference": b"no image"}, "input_reference"),
    ]
    for arguments, param in wrong:
        with pytest.raises(openai.BadRequestError) as caught:
            client.videos.create(**{"prompt": "A fox", **arguments})
        assert caught.value.param == param, caught.value
        assert caught.value.type == "invalid_request_error"
    with pytest.raises(openai.NotFoundError) as unknown:
        client.videos.create(prompt="A fox", model="sora-2")
    assert unknown.value.code == "model_not_found"


def test_what_is_not_made_yet_is_a_conflict_that_the_client_does_not_try_again(client, server):
    (maker,) = server.makers
    maker.may_go_on.clear()
    try:
        video = client.videos.create(prompt="A fox", **SMALL)
        with pytest.raises(openai.ConflictError) as caught:
            client.videos.download_content(video.id)
        assert caught.value.code == "video_not_ready"
        answered = 'ltx_requests_total{method="GET",route="/v1/videos/{id}/content",status="409"} 1.0'
        assert answered in server.client.get("/metrics").text
    finally:
        maker.may_go_on.set()


def test_a_full_queue_is_told_as_too_many_requests(tmp_path):
    maker = QuickMaker()
    maker.may_go_on.clear()
    with (
        serving(tmp_path, [maker], max_queue=1) as server,
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client,
    ):
        first = client.videos.create(prompt="A fox", **SMALL)
        while client.videos.retrieve(first.id).status == "queued":
            time.sleep(0.01)
        client.videos.create(prompt="A fox", **SMALL)
        with pytest.raises(openai.RateLimitError) as caught:
            client.videos.create(prompt="A fox", **SMALL)
        assert caught.value.code == "queue_full"
        assert caught.value.response.headers["retry-after"] == "5"
        assert len(list(server.folders.root.iterdir())) == 2  # nothing is left of the one that was refused
        maker.may_go_on.set()
