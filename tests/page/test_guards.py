"""What the page must withstand: hostile prompts, a token, a server that is gone, and errors of every kind."""

import json
import re
import urllib.request

import pytest
from page.asking import MIDDLING, ask, expect_playing, expect_ready, put_away
from page.browser import opened
from playwright.sync_api import expect

TOKEN = "open sesame"
SOON_MS = 8000  # to notice what happens elsewhere
HOSTILE = (
    "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>",
    '"><svg onload=alert(1)> javascript:alert(1) {{7*7}} ${7*7} </textarea></title>',
)


@pytest.mark.parametrize("prompt", HOSTILE)
def test_a_prompt_is_only_ever_text(page, prompt):
    ask(page, prompt)
    expect_ready(page)
    expect(page.locator(".making .prompt")).to_have_text(prompt)
    put_away(page)
    expect(page.locator(".tile .prompt")).to_have_text(prompt)
    page.locator(".tile button").click()
    expect(page.locator("#player-title")).to_have_text(prompt)
    page.get_by_role("button", name="Use these settings").click()
    expect(page.locator("#prompt")).to_have_value(prompt)
    page.reload()
    expect(page.locator(".tile .prompt")).to_have_text(prompt)
    assert page.title() == "LTX-Video"


def test_scripts_and_styles_in_the_page_itself_are_not_run(page, watched):
    watched.allowed += ("Content Security Policy",)
    page.evaluate(
        """() => {
            const script = document.createElement("script");
            script.textContent = "document.title = 'owned'";
            document.head.append(script);
            const probe = "<p id=probe style='color: rgb(1, 2, 3)' onclick='document.title = 1'>x</p>";
            document.body.insertAdjacentHTML("beforeend", probe);
            document.getElementById("probe").click();
        }"""
    )
    assert page.title() == "LTX-Video"
    assert page.eval_on_selector("#probe", "probe => getComputedStyle(probe).color") != "rgb(1, 2, 3)"
    assert page.evaluate("fetch('https://example.org').then(() => 'sent', () => 'refused')") == "refused"


def test_the_token_is_asked_for_sent_with_everything_and_forgotten_with_the_tab(context, own_server, watched):
    watched.allowed += ("401",)
    own_server.token = TOKEN
    own_server.start()
    page = context.new_page()
    page.goto(own_server.url)
    expect(page.locator("#token-dialog")).to_be_visible()
    page.fill("#token", "wrong ☃")
    page.keyboard.press("Enter")
    expect(page.locator("#token-title")).to_have_text("The server refused this token")
    page.fill("#token", TOKEN)
    page.keyboard.press("Enter")
    ask(page, "A red fox")
    expect_ready(page)
    expect_playing(page, ".making video")
    put_away(page)
    expect(page.locator(".tile img")).to_be_visible()
    assert page.locator(".tile img").get_attribute("src").startswith("blob:")
    page.reload()
    expect(page.locator(".tile img")).to_be_visible()
    assert page.evaluate("[localStorage.length, document.cookie]") == [0, ""]
    page.get_by_role("button", name="Token").click()
    page.fill("#token", "wrong")
    page.keyboard.press("Enter")
    expect(page.locator("#token-title")).to_have_text("The server refused this token")
    page.keyboard.press("Escape")
    expect(page.locator("#token-dialog")).to_be_hidden()
    page.get_by_role("button", name="Token").click()
    page.fill("#token", TOKEN)
    page.keyboard.press("Enter")
    expect(page.locator("#token-dialog")).to_be_hidden()


def test_a_server_that_is_gone_is_told_and_its_work_found_again_when_it_is_back(context, own_server, watched):
    watched.allowed += (
        "ERR_CONNECTION_REFUSED",
        "ERR_CONNECTION_RESET",
        "ERR_INCOMPLETE_CHUNKED_ENCODING",
        "ERR_EMPTY_RESPONSE",
    )
    page = opened(context, own_server.start())
    ask(page, "A red fox", MIDDLING)
    expect(page.locator(".making[data-status=in_progress]")).to_be_visible()
    own_server.process.kill()
    own_server.process.wait()
    expect(page.locator("#connection")).to_have_text("The server does not answer. Trying again…")
    page.fill("#prompt", "A grey owl")
    page.click("#submit")
    expect(page.locator("#problem")).to_have_text("The server does not answer.")
    own_server.start()
    expect(page.locator("#connection")).to_have_text("Connected again.")
    expect_ready(page)
    expect(page.locator("#prompt")).to_have_value("A grey owl")
    expect(page.locator("#connection")).to_be_hidden()


def test_an_idle_page_soon_shows_what_others_ask_for_and_that_the_server_is_gone(context, own_server, watched):
    watched.allowed += ("ERR_CONNECTION_REFUSED", "ERR_CONNECTION_RESET", "ERR_EMPTY_RESPONSE")
    page = opened(context, own_server.start())
    expect(page.locator("#empty")).to_be_visible()
    page.wait_for_timeout(500)  # the page has looked, and found nothing
    body = json.dumps({"prompt": "A red fox", "size": "96x64", "num_frames": 9}).encode()
    headers = {"Content-Type": "application/json"}
    urllib.request.urlopen(urllib.request.Request(own_server.url + "v1/videos", body, headers)).close()
    expect(page.locator("#empty")).to_be_hidden(timeout=SOON_MS)
    expect(page.locator(".tile .prompt")).to_have_text("A red fox", timeout=30_000)
    own_server.process.kill()
    own_server.process.wait()
    expect(page.locator("#connection")).to_be_visible(timeout=SOON_MS)
    bar, header = page.locator("#connection").bounding_box(), page.locator("header").bounding_box()
    assert bar["y"] + bar["height"] <= header["y"]


def test_what_the_server_refuses_is_shown_at_its_field(page, watched):
    watched.allowed += ("400",)
    page.set_viewport_size({"width": 1280, "height": 700})
    page.click("#more summary")
    page.fill("#steps", "many")
    page.fill("#prompt", "A red fox")
    page.click("#submit")
    expect(page.locator("#problem")).to_contain_text("steps must be a whole number")
    expect(page.locator("#steps")).to_be_focused()
    assert page.get_attribute("#steps", "aria-invalid") == "true"
    steps, send = page.locator("#steps").bounding_box(), page.locator("#send").bounding_box()
    assert steps["y"] + steps["height"] <= send["y"]  # the button that stays in sight does not cover it
    page.fill("#steps", "")
    page.fill("#prompt", " ")
    page.click("#submit")
    expect(page.locator("#problem")).to_have_text("Please say what the video should show.")
    expect(page.locator("#prompt")).to_be_focused()


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("out_of_memory", "It needs more memory than this machine has."),
        ("timed_out", "It took longer than this server allows."),
        ("no_space", "The disk of the server is full."),
        ("worker_lost", "The process that made it ended without saying why"),
        ("failed", "this is what the server says"),
    ],
)
def test_a_video_that_failed_says_why(page, code, words):
    def fail(route) -> None:
        answer = route.fetch()
        listed = answer.json()
        for video in listed["data"]:
            video |= {"status": "failed", "error": {"code": code, "message": "this is what the server says"}}
        route.fulfill(response=answer, json=listed)

    ask(page, "A red fox")
    expect_ready(page)
    page.route("**/v1/videos?*", fail)
    page.reload()
    expect(page.locator(".tile .failure")).to_contain_text(words)
    page.locator(".tile button").click()
    expect(page.locator("#player-problem")).to_contain_text(words)
    expect(page.get_by_role("link", name="Download")).to_be_hidden()
    expect(page.get_by_role("button", name="Try again")).to_be_visible()


def test_a_seed_longer_than_a_number_holds_stays_what_it_is(page, server):
    ask(page, "A red fox", seed=str(2**64 - 1))
    expect_ready(page)
    assert [video["seed"] for video in server.videos()] == [2**64 - 1]
    expect(page.locator(".making .facts")).to_contain_text(str(2**64 - 1))


def test_the_page_is_made_of_these_files_alone(page, server):
    for path in ("page/__init__.py", "page/routes.py", "page/..%2froutes.py", "page/index.html", "page/"):
        assert page.request.get(server.url + path).status in (404, 405), path
    policy = page.request.get(server.url).headers["content-security-policy"]
    assert "default-src 'none'" in policy and not re.search(r"unsafe|\*|https?:", policy)
