"""A picture or clip that a video begins with: dropped, pasted or chosen."""

import io

import pytest
from page.asking import ask, expect_ready, put_away
from PIL import Image
from playwright.sync_api import Page, expect
from samples.clips import flat, save_clip


def png(width: int, height: int) -> bytes:
    """Returns a picture of one colour."""
    file = io.BytesIO()
    Image.new("RGB", (width, height), "orange").save(file, "PNG")
    return file.getvalue()


def bring(page: Page, how: str, content: bytes, name: str = "first.png", kind: str = "image/png") -> None:
    """Drops or pastes a file into the page, as a browser does it."""
    page.evaluate(
        """([how, bytes, name, type]) => {
            const data = new DataTransfer();
            data.items.add(new File([new Uint8Array(bytes)], name, { type }));
            const options = { bubbles: true, cancelable: true, dataTransfer: data, clipboardData: data };
            if (how === "paste") return document.body.dispatchEvent(new ClipboardEvent("paste", options));
            for (const kind of ["dragenter", "dragover", "drop"]) {
                document.body.dispatchEvent(new DragEvent(kind, options));
            }
        }""",
        [how, list(content), name, kind],
    )


@pytest.mark.parametrize("how", ["drop", "paste"])
def test_a_picture_becomes_the_first_frame(page, server, how):
    bring(page, how, png(96, 64))
    expect(page.locator("#media-shown")).to_contain_text("first.png")
    expect(page.locator("#media-shown")).to_contain_text("It becomes the first frame.")
    assert page.eval_on_selector("#media-preview img", "image => image.naturalWidth") == 96
    expect(page.locator("#drop")).to_be_hidden()
    ask(page, "A red fox")
    expect_ready(page)
    ((condition,),) = [video["request"]["conditions"] for video in server.videos()]
    assert condition.get("frame", 0) == 0


def test_a_clip_goes_on_where_it_ends(page, server, tmp_path):
    page.set_input_files("#file", save_clip(tmp_path / "clip.mp4", [flat(shade) for shade in range(0, 180, 20)]))
    expect(page.locator("#media-shown")).to_contain_text("The video begins with this clip and goes on from its end.")
    page.wait_for_function("() => document.querySelector('#media-preview video')?.videoWidth === 48")
    ask(page, "A red fox")
    expect_ready(page)
    assert [len(video["request"]["conditions"]) for video in server.videos()] == [1]


def test_a_picture_can_be_chosen_and_removed(page, server):
    page.set_input_files("#file", {"name": "first.png", "mimeType": "image/png", "buffer": png(64, 64)})
    expect(page.locator("#media-shown")).to_be_visible()
    page.get_by_role("button", name="Remove").click()
    expect(page.locator("#media-shown")).to_be_hidden()
    expect(page.locator("#file")).to_be_focused()
    ask(page, "A red fox")
    expect_ready(page)
    assert [video["request"].get("conditions", []) for video in server.videos()] == [[]]


def test_a_picture_of_another_shape_offers_the_size_that_fits(page):
    bring(page, "drop", png(40, 80))
    expect(page.locator("#shape-hint")).to_contain_text("Its top and bottom would be cut off in this size.")
    page.locator("#shape-hint button").click()
    expect(page.locator("#size-words")).to_contain_text("portrait")
    expect(page.locator("#shape-hint")).to_be_hidden()


def test_the_picture_of_a_video_can_be_used_again(page, server):
    bring(page, "drop", png(96, 64))
    ask(page, "A red fox")
    expect_ready(page)
    put_away(page)
    page.locator(".tile button").click()
    page.get_by_role("button", name="Use these settings").click()
    expect(page.locator("#media-shown")).to_contain_text("The same picture or clip")
    ask(page, "A grey owl", seed="8")
    expect_ready(page)
    owl, fox = server.videos()
    assert owl["request"]["conditions"] == fox["request"]["conditions"] and owl["seed"] == 8


def test_what_is_neither_a_picture_nor_a_clip_is_refused_before_it_is_sent(page):
    bring(page, "drop", b"%PDF-1.7", "notes.pdf", "application/pdf")
    expect(page.locator("#problem")).to_have_text("notes.pdf is neither a picture nor a clip.")


def test_what_the_server_cannot_read_is_told_with_the_name_of_the_file(page, watched):
    watched.allowed += ("400",)
    bring(page, "drop", b"this is no picture", "broken.png")
    page.fill("#prompt", "A red fox")
    page.click("#submit")
    expect(page.locator("#problem")).to_contain_text("broken.png")
