"""Steps that several tests of the page take: asking for a video, and waiting for what becomes of it."""

from playwright.sync_api import Page, expect

SHORT, MIDDLING, LONG = "0", "3", "99"  # places of the slider: 1 s, 4 s and as long as it goes
FINISHED_MS = 120_000


def set_length(page: Page, place: str) -> None:
    """Moves the slider of lengths, as far as it goes."""
    page.eval_on_selector(
        "#length",
        "(slider, place) => { slider.value = place; slider.dispatchEvent(new Event('input', { bubbles: true })); }",
        place,
    )


def ask(page: Page, prompt: str, length: str = SHORT, seed: str = "7") -> None:
    """Fills in the form and sends it."""
    page.fill("#prompt", prompt)
    set_length(page, length)
    page.fill("#seed", seed)
    page.click("#submit")
    expect(page.locator(".making .prompt", has_text=prompt).first).to_be_visible()


def expect_ready(page: Page) -> None:
    """Waits until the video that was asked for is shown where it was made."""
    expect(page.locator(".making[data-status=completed] video")).to_be_visible(timeout=FINISHED_MS)


def put_away(page: Page) -> None:
    """Moves the finished video to the others."""
    page.get_by_role("button", name="Put away").click()
    expect(page.locator(".tile")).not_to_have_count(0)


def expect_playing(page: Page, selector: str) -> None:
    """Waits until a video plays."""
    page.wait_for_function("selector => document.querySelector(selector)?.currentTime > 0.1", arg=selector)
