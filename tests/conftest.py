"""Signal handling that every test can rely on."""

import signal

import pytest


@pytest.fixture(autouse=True, scope="session")
def signals_are_heard():
    """Restores SIGINT and SIGHUP, which tests send: a background job ignores the first, `nohup` the second."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
