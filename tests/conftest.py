"""What every test can rely on."""

import signal

import pytest


@pytest.fixture(autouse=True, scope="session")
def signals_are_heard():
    """A shell ignores Ctrl-C for what it runs in the background, and `nohup` a closed terminal: tests send both."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
