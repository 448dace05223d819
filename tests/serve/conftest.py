"""Fixtures shared by the tests of the server."""

from collections.abc import Iterator

import pytest
from fakes.servers import Server, serving

from ltx_serve.making import health


@pytest.fixture(autouse=True)
def short_rests(monkeypatch):
    """Lets makers that were lost go on at once; a server makes them wait for seconds."""
    monkeypatch.setattr(health, "_FIRST_REST_S", 0.01)
    monkeypatch.setattr(health, "_MOST_REST_S", 0.1)


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[Server]:
    """A server without a token whose maker makes noise at once; one for all tests of a file."""
    with serving(tmp_path_factory.mktemp("server")) as server:
        yield server
