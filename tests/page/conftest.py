"""A server with the demo version and a browser, for the tests of the page. `make test-page` runs them."""

from collections.abc import Iterator

import pytest
from page.browser import Watched, opened, running_chromium
from page.server import Server
from playwright.sync_api import Browser, BrowserContext, Page, expect

expect.set_options(timeout=30_000)  # a busy machine takes its time


@pytest.fixture(scope="session")
def started(tmp_path_factory) -> Iterator[Server]:
    """One server for all tests that do not stop it."""
    server = Server(tmp_path_factory.mktemp("data")).start()
    yield server
    server.stop()


@pytest.fixture
def server(started) -> Server:
    """Returns the server, with no videos."""
    for video in started.videos():
        started.answer("DELETE", f"v1/videos/{video['id']}")
    return started


@pytest.fixture
def own_server(tmp_path) -> Iterator[Server]:
    """A server that a test starts itself, and may stop."""
    server = Server(tmp_path)
    yield server
    server.stop()


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    """The browser."""
    with running_chromium() as browser:
        yield browser


@pytest.fixture
def watched() -> Watched:
    """Collects errors of the browser; a test adds to `allowed` what must happen in it."""
    return Watched()


@pytest.fixture
def context(chromium, watched) -> Iterator[BrowserContext]:
    """A fresh browser profile. A test fails if the browser complains of anything, or asks any other server."""
    context = chromium.new_context(viewport={"width": 1280, "height": 900}, color_scheme="light")
    context.set_default_timeout(60_000)
    asked: list[str] = []
    context.on("request", lambda request: asked.append(request.url))
    watched.watch(context)
    yield context
    context.close()
    assert watched.unexpected() == []
    assert [url for url in asked if not url.startswith(("http://127.0.0.1:", "data:", "blob:"))] == []


@pytest.fixture
def page(context, server) -> Page:
    """Returns the page, open and ready."""
    return opened(context, server)
