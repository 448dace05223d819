"""What every test can rely on: signals are heard, and the workers of a run share what they export."""

import os
import shutil
import signal
import tempfile
from functools import cache

import platformdirs
import pytest
from samples.shared import FOLDER

_made: list[str] = []


def pytest_configure():
    """Makes the folder of what is shared; workers inherit it from the process that starts them."""
    if FOLDER not in os.environ:
        os.environ[FOLDER] = tempfile.mkdtemp(prefix="ltx-shared-")
        _made.append(os.environ[FOLDER])


def pytest_unconfigure():
    """Removes the folder in the process that made it."""
    for folder in _made:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(autouse=True)
def nothing_of_the_user(monkeypatch, tmp_path_factory):
    """Keeps runs from the caches, engines and records in the user's home; a test that wants a folder names it."""
    data = cache(lambda: tmp_path_factory.mktemp("user-data"))
    monkeypatch.setenv("LTX_CACHE", "")
    monkeypatch.setattr(platformdirs, "user_data_path", lambda *_, **__: data())


@pytest.fixture(autouse=True, scope="session")
def signals_are_heard():
    """Restores SIGINT and SIGHUP, which tests send: a background job ignores the first, `nohup` the second."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
