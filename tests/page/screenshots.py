"""Takes the pictures of docs/page.md: before, while and after a video is made, wide and narrow, in light and dark.

    PYTHONPATH=tests python tests/page/screenshots.py docs/pictures

It needs `make demo` and Chromium, and takes a few minutes. The page of the documentation shows some of them.
"""

import re
import sys
import tempfile
from io import BytesIO
from pathlib import Path

from page.asking import LONG, ask, expect_playing, expect_ready, put_away
from page.browser import opened, running_chromium
from page.server import Server
from PIL import Image
from playwright.sync_api import Page, expect

SCREENS = {"wide": {"width": 1440, "height": 900}, "narrow": {"width": 360, "height": 780}}
PROMPTS = (
    "Paper boats drift down a gutter in the rain",
    "A lighthouse in fog, seen from a small boat",
    "Steam rises from a cup of tea on a windowsill",
    "A grey owl turns its head",
)
FOX = "A red fox runs through deep snow at dawn, seen from close to the ground, its breath white in the cold air"


def take(page: Page, path: Path) -> None:
    """Saves what the page shows as WebP."""
    Image.open(BytesIO(page.screenshot())).save(path, quality=70, method=6)


def fill_gallery(page: Page, url: str) -> None:
    """Asks for a few videos of every shape, and waits for them."""
    for seed, (prompt, size) in enumerate(zip(PROMPTS, ("384x256", "256x384", "416x224", "320x320"), strict=True)):
        page.request.post(f"{url}v1/videos", data={"prompt": prompt, "size": size, "num_frames": 25, "seed": seed})
    expect(page.locator(".tile img:visible")).to_have_count(len(PROMPTS), timeout=120_000)


def take_all(folder: Path, server: Server) -> None:
    """Takes every picture."""
    with running_chromium() as chromium:
        for colours in ("light", "dark"):
            for screen, viewport in SCREENS.items():
                context = chromium.new_context(viewport=viewport, color_scheme=colours)
                page = opened(context, server)
                name = f"{screen}-{colours}"
                if not server.videos():
                    take(page, folder / f"page-empty-{name}.webp")
                    fill_gallery(page, server.url)
                take(page, folder / f"page-before-{name}.webp")
                ask(page, FOX, LONG)
                ask(page, "A brown hare sits in long grass")
                expect(page.locator(".making .percent").first).to_have_text(re.compile(r"[3-9]\d %"), timeout=300_000)
                take(page, folder / f"page-during-{name}.webp")
                for _ in range(2):
                    page.get_by_role("button", name="Cancel").last.click()
                    expect(page.locator(".making[data-status=failed]")).to_be_visible()
                for video in server.videos():
                    if video["status"] == "failed":
                        server.answer("DELETE", f"v1/videos/{video['id']}")
                page.reload()
                ask(page, FOX)
                expect_ready(page)
                expect_playing(page, ".making video")
                take(page, folder / f"page-after-{name}.webp")
                put_away(page)
                page.locator(".tile button", has_text=FOX).first.click()
                expect_playing(page, "#player video")
                take(page, folder / f"page-player-{name}.webp")
                context.close()


if __name__ == "__main__":
    pictures = Path(sys.argv[1])
    pictures.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as data:
        server = Server(Path(data)).start()
        try:
            take_all(pictures, server)
        finally:
            server.stop()
