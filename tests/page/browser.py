"""Chromium, and what it complains of."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from page.server import Server
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright

FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"),
    *("--disable-sync", "--no-first-run"),
)


@contextmanager
def running_chromium() -> Iterator[Browser]:
    """Runs the system's Chromium, or the one that the environment variable CHROMIUM names."""
    program = os.environ.get("CHROMIUM") or shutil.which("chromium")
    assert program, "there is no chromium - install it, or name it in the environment variable CHROMIUM"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=list(FLAGS))
        yield browser
        browser.close()


@dataclass
class Watched:
    """What went wrong in a browser, as it tells in its console; a test names what it expects."""

    allowed: tuple[str, ...] = ()
    problems: list[str] = field(default_factory=list)

    def watch(self, context: BrowserContext) -> None:
        context.on("console", lambda line: line.type in ("error", "warning") and self.problems.append(line.text))
        context.on("weberror", lambda error: self.problems.append(str(error.error)))
        context.on("requestfailed", lambda request: self._note_failed(request))

    def _note_failed(self, request) -> None:
        # The page itself ends a stream of events, and a media element the rest of a file that it need not load.
        if request.failure != "net::ERR_ABORTED":
            self.problems.append(f"{request.url} {request.failure}")

    def unexpected(self) -> list[str]:
        return [text for text in self.problems if not any(word in text for word in self.allowed)]


def opened(context: BrowserContext, server: Server) -> Page:
    """Opens the page of a server, and waits until it knows the models."""
    page = context.new_page()
    page.goto(server.url)
    page.wait_for_selector(".size")
    return page
