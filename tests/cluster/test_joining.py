"""Addresses where there is no cluster are refused in a sentence, within seconds."""

import socket
import threading
import time

import pytest

from ltx_runtime.cluster.joining import AUTO, joined
from ltx_runtime.errors import LtxError

pytestmark = pytest.mark.ray
SECONDS = 8.0


def refusal(address: str) -> LtxError:
    """Returns the error of joining at an address; it comes within SECONDS."""
    started = time.monotonic()
    with pytest.raises(LtxError) as told, joined(address):
        pass
    assert time.monotonic() - started < SECONDS
    return told.value


@pytest.fixture
def no_cluster(monkeypatch, tmp_path):
    """A machine that belongs to no cluster."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    return tmp_path


def test_a_machine_that_belongs_to_no_cluster_is_told_how_to_start_one(no_cluster):
    assert refusal(AUTO).command == "ray start --head"


def test_an_address_where_nothing_listens_is_named(no_cluster, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    assert refusal(address).problem.startswith(f"no Ray cluster answers at {address}: ")
    (no_cluster / "ray").mkdir()
    (no_cluster / "ray" / "ray_current_cluster").write_text(address)  # of a cluster that has ended
    assert address in refusal(AUTO).problem
    monkeypatch.setenv("RAY_ADDRESS", address)
    assert address in refusal(AUTO).problem


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n"], ids=["silence", "HTTP/1.1"])
def test_what_is_no_cluster_is_recognized(no_cluster, answer):
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            connection.sendall(answer)
            time.sleep(SECONDS if not answer else 0.5)
            connection.close()

        threading.Thread(target=serve, daemon=True).start()
        problem = refusal(f"127.0.0.1:{server.getsockname()[1]}").problem
    assert "no Ray cluster" in problem


@pytest.mark.parametrize("address", ["", ":", "host:", "host:port", "host:70000", "ray://host:10001", "a b:c"])
def test_what_is_no_address_is_refused(no_cluster, address):
    assert repr(address) in str(refusal(address)) or address == ""


def test_without_ray_the_command_that_installs_it_is_told(no_cluster, monkeypatch):
    monkeypatch.setattr("ltx_runtime.packages.find_spec", lambda name: None)
    assert "ray[serve]" in refusal("host:1").command or "[ray]" in refusal("host:1").command


def test_a_version_folder_that_is_too_large_to_send_is_refused(no_cluster, tmp_path):
    with (tmp_path / "weights").open("wb") as file:
        file.truncate(600_000_000)
    with pytest.raises(LtxError, match=r"at most 0\.50 GB"), joined("host:1", sent=tmp_path):
        pass
