"""The page for everyone: by keyboard, by screen reader, on a small screen, in light and dark, and with less motion."""

import pytest
from page.asking import MIDDLING, SHORT, ask, expect_playing, expect_ready, put_away, set_length
from page.browser import opened
from playwright.sync_api import Page, expect

FOX = "A red fox runs through deep snow"

# Every element whose own text has less contrast than 4.5:1 against the first opaque background behind it (WCAG 2.2,
# 1.4.3), and its ratio. Colours are drawn on a canvas, which knows every way to write them.
LOW_CONTRAST = """() => {
    const canvas = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
    const rgba = (colour) => {
        canvas.clearRect(0, 0, 1, 1);
        canvas.fillStyle = colour;
        canvas.fillRect(0, 0, 1, 1);
        return [...canvas.getImageData(0, 0, 1, 1).data];
    };
    const luminance = (colour) => {
        const linear = colour.slice(0, 3).map((byte) => byte / 255)
            .map((value) => (value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4));
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
    };
    const behind = (element) => {
        for (let place = element; place; place = place.parentElement) {
            const colour = rgba(getComputedStyle(place).backgroundColor);
            if (colour[3] === 255) return colour;
        }
        return [255, 255, 255, 255];
    };
    const opacity = (element) => (element ? getComputedStyle(element).opacity * opacity(element.parentElement) : 1);
    const texts = [...document.querySelectorAll("body *")].filter((element) => element.checkVisibility()
        && [...element.childNodes].some((node) => node.nodeType === Node.TEXT_NODE && node.data.trim()));
    return texts.map((element) => {
        const colours = [rgba(getComputedStyle(element).color), behind(element)];
        const alpha = opacity(element);
        colours[0] = colours[0].map((byte, index) => byte * alpha + colours[1][index] * (1 - alpha));
        const [light, dark] = colours.map(luminance).sort((a, b) => b - a);
        return [element.textContent.trim().slice(0, 40), (light + 0.05) / (dark + 0.05)];
    }).filter(([, ratio]) => ratio < 4.5);
}"""


def test_everything_from_load_to_submit_can_be_done_by_keyboard(page, server):
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the videos")).to_be_focused()
    names = []
    while names[-1:] != ["prompt"]:
        page.keyboard.press("Tab")
        names.append(page.evaluate("document.activeElement.id"))
        assert len(names) < 10
    page.keyboard.type(FOX)
    reached = []
    while reached[-1:] != ["submit"]:
        page.keyboard.press("Tab")
        reached.append(
            page.evaluate("document.activeElement.id || document.activeElement.name || document.activeElement.tagName")
        )
        assert len(reached) < 20
        if reached[-1] == "size":
            page.keyboard.press("ArrowRight")
        if reached[-1] == "length":
            page.keyboard.press("Home")
        if reached[-1] == "seed":
            page.keyboard.type("7")
    assert reached == ["file", "size", "length", "seed", "dice", "SUMMARY", "submit"]
    page.keyboard.press("Enter")
    expect_ready(page)
    (video,) = server.videos()
    assert (video["prompt"], video["seed"], video["size"] != "384x256") == (FOX, 7, True)


@pytest.mark.parametrize("key", ["Control+Enter", "Meta+Enter"])
def test_control_and_enter_send_the_prompt(page, key):
    set_length(page, SHORT)
    page.fill("#prompt", FOX)
    page.press("#prompt", key)
    expect(page.locator(".making .prompt")).to_have_text(FOX)
    expect_ready(page)


def test_escape_closes_the_player_and_returns_to_the_video(page):
    ask(page, FOX)
    expect_ready(page)
    put_away(page)
    tile = page.locator(".tile button")
    tile.focus()
    page.keyboard.press("Enter")
    expect(page.locator("#player")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("#player")).to_be_hidden()
    expect(tile).to_be_focused()


def test_focus_can_be_seen_on_everything_that_takes_it(page):
    ask(page, FOX)
    expect_ready(page)
    page.locator("#prompt").focus()
    seen = set()
    for _ in range(25):
        page.keyboard.press("Tab")
        # Of what is drawn by its label, the label has the outline.
        outlined = page.evaluate(
            """() => {
                const active = document.activeElement;
                return [active, active.closest("label"), active.nextElementSibling]
                    .some((element) => element && getComputedStyle(element).outlineStyle !== "none");
            }"""
        )
        name = page.evaluate("document.activeElement.outerHTML.slice(0, 80)")
        assert outlined or name.startswith(("<body", "<video")), name  # the browser draws what is inside of a video
        seen.add(name)
    assert len(seen) > 10


def unnamed(page: Page) -> list[str]:
    """Returns the controls and pictures of the page that a screen reader has no name for, by their roles."""
    tree = page.context.new_cdp_session(page).send("Accessibility.getFullAXTree")["nodes"]
    named = {
        "button",
        "link",
        "textbox",
        "combobox",
        "slider",
        "radio",
        "progressbar",
        "dialog",
        "form",
        "image",
        "Video",
    }
    found = [node for node in tree if not node["ignored"] and node["role"]["value"] in named]
    assert len(found) > 10
    return [node["role"]["value"] for node in found if not node.get("name", {}).get("value")]


def test_a_screen_reader_has_a_name_for_everything(page):
    assert unnamed(page) == []
    ask(page, FOX, MIDDLING)
    expect(page.locator(".making[data-status=in_progress] progress")).to_be_visible()
    assert unnamed(page) == []
    expect_ready(page)
    assert unnamed(page) == []
    put_away(page)
    page.locator(".tile button").click()
    assert unnamed(page) == []


def test_few_things_are_announced_while_a_video_is_made(page):
    page.evaluate(
        """() => {
            window.heard = [];
            const region = document.getElementById("announcements");
            new MutationObserver(() => window.heard.push(region.textContent)).observe(region, { childList: true });
        }"""
    )
    ask(page, FOX, MIDDLING)
    expect_ready(page)
    heard = page.evaluate("heard")
    assert heard[-1] == "Your video is ready." and len(set(heard)) == len(heard) <= 5, heard


@pytest.mark.parametrize("colours", ["light", "dark"])
def test_all_text_stands_out_from_what_is_behind_it(chromium, server, watched, colours):
    context = chromium.new_context(color_scheme=colours)
    watched.watch(context)
    page = opened(context, server)
    page.click("#more summary")
    page.click("#submit")  # without a prompt: a problem is shown
    expect(page.locator("#problem")).to_be_visible()
    assert page.evaluate(LOW_CONTRAST) == []
    ask(page, FOX)
    expect_ready(page)
    assert page.evaluate(LOW_CONTRAST) == []
    put_away(page)
    page.locator(".tile button").click()
    assert page.evaluate(LOW_CONTRAST) == []
    context.close()
    assert watched.unexpected() == []


def test_the_colours_are_those_of_the_system_until_another_choice_is_made(page):
    def ground() -> str:
        return page.evaluate("getComputedStyle(document.body).backgroundColor")

    light = ground()
    page.emulate_media(color_scheme="dark")
    page.wait_for_function("light => getComputedStyle(document.body).backgroundColor !== light", arg=light)
    page.get_by_role("button", name="Switch to the light colours").click()
    assert ground() == light
    page.reload()
    assert ground() == light
    page.get_by_role("button", name="Switch to the dark colours").click()
    page.emulate_media(color_scheme="light")
    page.wait_for_function("light => getComputedStyle(document.body).backgroundColor === light", arg=light)


@pytest.mark.parametrize("width", [320, 360, 768, 1280, 2560])
def test_nothing_is_wider_than_the_screen(page, width):
    page.set_viewport_size({"width": width, "height": 800})
    page.click("#more summary")
    ask(page, "Fox" * 100, "99")
    fits = "document.documentElement.scrollWidth <= innerWidth"
    expect(page.locator(".making[data-status=in_progress]")).to_be_visible()
    assert page.evaluate(fits)
    page.get_by_role("button", name="Cancel").click()
    put_away(page)
    assert page.evaluate(fits)
    page.locator(".tile button").click()
    assert page.evaluate(fits)
    assert page.eval_on_selector("#player", "dialog => dialog.scrollWidth <= dialog.clientWidth")


def test_nothing_moves_for_those_who_want_less_motion(page):
    page.emulate_media(reduced_motion="reduce")
    ask(page, FOX)
    expect_ready(page)
    assert page.eval_on_selector(".making video", "video => video.paused")
    assert page.evaluate("document.getAnimations().length") == 0
    page.eval_on_selector(".making video", "video => video.play()")
    expect_playing(page, ".making video")


def test_nothing_jumps_when_the_page_loads_or_a_thumbnail_comes(page):
    ask(page, FOX)
    expect_ready(page)
    page.reload()
    page.wait_for_function("() => document.querySelector('.tile img')?.complete")
    shift = page.evaluate(
        """() => new Promise((resolve) => {
            let sum = 0;
            new PerformanceObserver((list) => list.getEntries().forEach((entry) => (sum += entry.value)))
                .observe({ type: "layout-shift", buffered: true });
            setTimeout(() => resolve(sum), 300);
        })"""
    )
    assert shift < 0.1  # what the Web Vitals call good
