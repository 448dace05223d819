"""From a prompt to a video in a browser, and what can be done on the way and afterwards."""

import re

import pytest
from page.asking import LONG, MIDDLING, ask, expect_playing, expect_ready, put_away
from playwright.sync_api import expect

FOX = "A red fox runs through deep snow"


def test_a_prompt_becomes_a_video_that_plays(page, server):
    ask(page, FOX)
    expect_ready(page)
    expect_playing(page, ".making video")
    (video,) = server.videos()
    width, height = page.eval_on_selector(".making video", "video => [video.videoWidth, video.videoHeight]")
    assert f"{width}x{height}" == video["size"]
    assert video["prompt"] == FOX and video["seed"] == 7
    expect(page.locator("#announcements")).to_have_text("Your video is ready.")


def test_what_is_being_made_shows_its_steps_and_a_preview_and_can_be_cancelled(page, server):
    ask(page, FOX, LONG)
    card = page.locator(".making")
    expect(card.locator(".stage")).to_have_text(re.compile(r"Step \d+ of \d+, pass \d of 2"))
    expect(card.locator(".preview")).to_be_visible()
    assert card.locator(".preview").get_attribute("src").startswith("data:image/png;base64,")
    expect(card.locator(".percent")).to_have_text(re.compile(r"[1-9]\d? %"))
    card.get_by_role("button", name="Cancel").click()
    expect(card.locator(".stage")).to_have_text("Stopped")
    assert [video["error"]["code"] for video in server.videos()] == ["cancelled"]


def test_who_waits_sees_the_place_in_the_line_and_can_leave_it(page, server):
    ask(page, FOX, LONG)
    expect(page.locator(".making[data-status=in_progress]")).to_be_visible()
    ask(page, "A grey owl")
    ask(page, "A brown hare")
    expect(page.locator(".making", has_text="A grey owl").locator(".stage")).to_have_text("Waiting: next in line")
    expect(page.locator(".making", has_text="A brown hare").locator(".stage")).to_have_text("Waiting: number 2 in line")
    page.locator(".making", has_text="A grey owl").get_by_role("button", name="Cancel").click()
    expect(page.locator(".making", has_text="A brown hare").locator(".stage")).to_have_text("Waiting: next in line")


def test_a_page_that_is_loaded_again_finds_its_video(page):
    ask(page, FOX, MIDDLING)
    expect(page.locator(".making[data-status=in_progress]")).to_be_visible()
    page.reload()
    expect(page.locator(".making[data-status=in_progress] .prompt")).to_have_text(FOX)
    expect(page.locator("#prompt")).to_have_value(FOX)
    expect_ready(page)


def test_without_a_stream_of_events_the_list_alone_shows_the_progress(page, watched):
    watched.allowed += ("net::ERR_FAILED",)
    page.route("**/events", lambda route: route.abort())
    ask(page, FOX, MIDDLING)
    expect(page.locator(".making .percent")).to_have_text(re.compile(r"[1-9]\d? %"), timeout=20_000)
    expect_ready(page)


def test_again_with_another_seed_keeps_everything_else(page, server):
    ask(page, FOX)
    expect_ready(page)
    page.get_by_role("button", name="Again with another seed").click()
    expect(page.locator(".making", has_text=FOX)).to_have_count(2)
    expect(page.locator(".tile")).to_have_count(1, timeout=60_000)  # the new one has taken its place
    again, first = server.videos()
    assert again["seed"] != first["seed"] and again["remixed_from_video_id"] == first["id"]
    assert {**again["request"], "seed": 7} == first["request"]


def test_the_settings_of_a_video_can_be_used_for_the_next(page):
    page.click("#more summary")
    page.fill("#negative_prompt", "blurry")
    page.fill("#steps", "4")
    ask(page, FOX)
    expect_ready(page)
    put_away(page)
    for field in ("#prompt", "#seed", "#negative_prompt", "#steps"):
        page.fill(field, "")
    page.locator(".tile button").click()
    expect(page.locator("#player")).to_contain_text("Seed7")
    page.get_by_role("button", name="Use these settings").click()
    values = {field: page.input_value(field) for field in ("#prompt", "#seed", "#negative_prompt", "#steps")}
    assert values == {"#prompt": FOX, "#seed": "7", "#negative_prompt": "blurry", "#steps": "4"}


def test_settings_by_another_client_are_shown_and_kept(page, server):
    asked = {"prompt": FOX, "size": "128x64", "num_frames": 17, "single_pass": True, "seed": 7}
    page.request.post(f"{server.url}v1/videos", data=asked)
    page.reload()
    page.locator(".tile button").click()
    expect(page.locator("#player-settings")).to_contain_text("single_pass true")
    page.get_by_role("button", name="Use these settings").click()
    expect(page.locator("#size-words")).to_have_text(re.compile("128 . 64, landscape"))
    expect(page.locator("#length-words")).to_contain_text("17 frames")
    expect(page.locator("#media-shown")).to_contain_text("All its other settings")
    page.fill("#seed", "8")
    page.click("#submit")
    expect_ready(page)
    again, first = server.videos()
    assert again["request"] == {**first["request"], "seed": 8}


def test_a_video_can_be_opened_downloaded_made_with_another_prompt_and_deleted(page, server):
    ask(page, FOX)
    expect_ready(page)
    put_away(page)
    page.locator(".tile button").click()
    expect_playing(page, "#player video")
    with page.expect_download() as download:
        page.get_by_role("link", name="Download").click()
    assert download.value.suggested_filename == "A-red-fox-runs-through-deep-snow-7.mp4"
    assert download.value.path().read_bytes()[4:8] == b"ftyp"
    page.get_by_role("button", name="Change the prompt").click()
    page.fill("#remix-prompt", "A grey owl")
    page.get_by_role("button", name="Make it").click()
    expect(page.locator("#player")).to_be_hidden()
    expect_ready(page)
    assert [(video["prompt"], video["seed"]) for video in server.videos()] == [("A grey owl", 7), (FOX, 7)]
    page.locator(".tile button", has_text=FOX).click()
    page.get_by_role("button", name="Delete").click()
    page.get_by_role("button", name="Keep it").click()
    page.get_by_role("button", name="Delete").click()
    page.get_by_role("button", name="Delete it").click()
    expect(page.locator(".tile")).to_have_count(0)
    assert [video["prompt"] for video in server.videos()] == ["A grey owl"]


def test_older_videos_are_shown_when_they_are_asked_for(page, server):
    prompts = [f"Scene {number}" for number in range(30)]
    for prompt in prompts:
        page.request.post(f"{server.url}v1/videos", data={"prompt": prompt, "size": "64x64", "num_frames": 9})
    while any(video["status"] != "completed" for video in server.videos()):
        page.wait_for_timeout(200)
    page.reload()
    expect(page.locator(".tile")).to_have_count(24)
    page.get_by_role("button", name="Show older ones").click()
    expect(page.locator(".tile")).to_have_count(30)
    assert page.locator(".tile .prompt").all_inner_texts() == prompts[::-1]
    expect(page.get_by_role("button", name="Show older ones")).to_be_hidden()


def test_estimates_are_told_no_more_exactly_than_they_are(page):
    words = page.evaluate(
        """async () => {
            const { timeInWords } = await import("/page/words.js");
            return [0, 5, 17, 54, 58, 89, 150, 3599, 5400].map(timeInWords);
        }"""
    )
    told = ("5 s", "5 s", "20 s", "55 s", "1 min", "1 min", "3 min", "60 min", "1.5 h")
    assert words == [f"about {text}" for text in told]


SEEN_S = """async ([still, rate, until]) => {
    const { Videos } = await import("/page/videos.js");
    let now = 0;
    performance.now = () => now * 1000;
    const videos = new Videos(() => {}, () => {});
    let left = null;
    for (now = 1; now <= until; now += 1) {
        const progress = Math.floor(Math.max(0, now - still) * rate);
        left = videos.secondsLeft({ id: "a", status: "in_progress", progress });
    }
    return left;
}"""


@pytest.mark.parametrize("still", [0, 5, 60, 600])
@pytest.mark.parametrize("rate", [0.05, 0.3, 2])
def test_the_time_that_is_left_is_foreseen_from_the_progress_of_late(page, still, rate):
    assert page.evaluate(SEEN_S, [still, rate, still + 1]) is None
    for done in (30, 60, 90):
        foreseen = page.evaluate(SEEN_S, [still, rate, still + done / rate])
        assert foreseen == pytest.approx((100 - done) / rate, rel=0.25, abs=3), done
