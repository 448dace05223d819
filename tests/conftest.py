"""What every test can rely on."""

import signal

import pytest


@pytest.fixture(autouse=True, scope="session")
def ctrl_c_is_heard():
    """A shell ignores Ctrl-C for what it runs in the background, and tests that press it would wait for ever."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
