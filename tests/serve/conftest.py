"""Fixtures shared by the tests of the server."""

from collections.abc import Iterator

import pytest
from fakes.servers import Server, serving


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[Server]:
    """A server without a token whose maker makes noise at once; one for all tests of a file."""
    with serving(tmp_path_factory.mktemp("server")) as server:
        yield server
