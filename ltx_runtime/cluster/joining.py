"""Joins a cluster of Ray that runs already, within a bounded time and without Ray's own messages."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ltx_runtime.errors import LtxError, first_line
from ltx_runtime.files import amount
from ltx_runtime.packages import need

AUTO = "auto"
_PORT = 6379
_PROBE_S = 5.0
_LOST_S, _RETRY_S = 20.0, 0.5  # how long the head node may not answer
# What an HTTP/2 client says first, and the type of the frame with which every such server, as Ray's is, answers.
_HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + b"\x04" + bytes(5)
_FRAME_BYTES, _TYPE, _SETTINGS = 9, 3, 4
_ADVICE = "give the HOST:PORT that `ray start --head` printed"
# Ray prints the events of the cluster to standard output, and those of its libraries to standard error.
_SILENT = {
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".",
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_TQDM_PATCH_PRINT": "0",
}
_MOST_SENT_BYTES = 500_000_000  # Ray takes packages of 512 MiB, and it keeps them in the memory of its head node


class ClusterLostError(LtxError):
    """The head node, or the node of this machine, has ended."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"this machine has lost the Ray cluster: {reason}", "start it again, and go on")


@dataclass(frozen=True)
class Node:
    """A machine of the cluster.

    Attributes:
        id: its id, which Ray draws.
        name: what people know it by.
        gpus: number of its GPUs.
        cpus: number of its CPU cores.
    """

    id: str
    name: str
    gpus: int
    cpus: int


@contextmanager
def joined(address: str, sent: Path | None = None) -> Iterator[None]:
    """Joins a cluster inside the block; at its end, everything that was started there ends.

    Args:
        address: HOST:PORT of its head node; AUTO for the one in RAY_ADDRESS, or that this machine belongs to.
        sent: a folder that Ray copies to every node, where it is the working folder of what is started; None for none.

    Raises:
        LtxError: Ray is not installed, there is no such cluster, or it runs other versions of Ray or Python.
    """
    if sent is not None:
        _check_sendable(sent)
    _join(address, {} if sent is None else {"working_dir": str(sent)})
    import ray  # noqa: PLC0415

    try:
        yield
    finally:
        ray.shutdown()


def _join(address: str, runtime_env: dict[str, Any]) -> None:
    """Joins a cluster until `ray.shutdown`; see `joined`.

    Args:
        address: as for `joined`.
        runtime_env: Ray's runtime environment of everything that is started.
    """
    for name, value in _SILENT.items():
        os.environ.setdefault(name, value)  # before Ray is imported, which reads some of them then
    need("ray", extra="ray")
    address = _answering(address)
    import ray  # noqa: PLC0415

    try:
        with _own_signals(), _no_standard_error():
            ray.init(address, log_to_driver=False, logging_level=logging.FATAL, runtime_env=runtime_env)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        raise LtxError(f"cannot join the Ray cluster at {address}: {first_line(error)}", _ADVICE) from None


@contextmanager
def still_joined() -> Iterator[None]:
    """Converts the errors of a process whose own node, or the head node, has ended.

    Raises:
        ClusterLostError: it has.
    """
    from ray.exceptions import RayError  # noqa: PLC0415

    try:
        yield
    except (RayError, OSError) as error:
        raise ClusterLostError(first_line(error)) from None


def nodes() -> list[Node]:
    """Returns the nodes of the cluster that are alive.

    Raises:
        ClusterLostError: the cluster is gone.
    """
    import ray  # noqa: PLC0415

    _wait_for(ray.get_runtime_context().gcs_address)  # Ray itself would end the process after a minute
    with still_joined():
        states = ray.nodes()
    alive = []
    for node in states:
        if node["Alive"]:
            address, resources = node["NodeManagerAddress"], node["Resources"]
            # Ray's name is the address, unless the node was started with a name of its own.
            own = node["NodeName"] if node["NodeName"] != address else node["NodeManagerHostname"]
            name = f"{own} ({address}, id {node['NodeID'][:8]})"
            gpus, cpus = int(resources.get("GPU", 0)), int(resources.get("CPU", 0))
            alive.append(Node(node["NodeID"], name, gpus, cpus))
    return alive


@contextmanager
def _own_signals() -> Iterator[None]:
    """Keeps what SIGTERM does in this program, for which Ray has a way of its own."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, handler)


@contextmanager
def _no_standard_error() -> Iterator[None]:
    """Discards what is written to standard error inside the block: Ray's C++ code writes there whatever its level."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _check_sendable(folder: Path) -> None:
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    if size > _MOST_SENT_BYTES:
        raise LtxError(
            f"{folder} has {amount(size)}, and Ray sends at most {amount(_MOST_SENT_BYTES)}",
            "copy the folder to the same path on every node or use a shared disk, and leave --send-engines out",
        )


def _answering(address: str) -> str:
    """Returns the address of a cluster that answers."""
    if address == AUTO:
        address = os.environ.get("RAY_ADDRESS", "")
    if address in ("", AUTO):
        address = _of_this_machine()
    if "://" in address:
        raise LtxError(f"{address!r} is the address of a Ray client, which cannot be used", _ADVICE)
    host, _, port = address.rpartition(":") if ":" in address else (address, "", str(_PORT))
    if not host or not port.isdecimal() or int(port) > 65_535:
        raise LtxError(f"{address!r} is no address of a Ray cluster", _ADVICE)
    try:
        answer = _answer_of(host, int(port))
    except OSError as error:
        raise LtxError(f"no Ray cluster answers at {address}: {first_line(error)}", _ADVICE) from None
    if len(answer) < _FRAME_BYTES or answer[_TYPE] != _SETTINGS:
        raise LtxError(f"what answers at {address} is no Ray cluster", _ADVICE)
    return f"{host}:{port}"


def _answer_of(host: str, port: int) -> bytes:
    """Returns the first bytes that a server of HTTP/2 answers with. Raises OSError if none answers."""
    with socket.create_connection((host.strip("[]"), port), _PROBE_S) as connection:
        connection.sendall(_HELLO)
        return connection.recv(_FRAME_BYTES)


def _wait_for(address: str) -> None:
    """Waits until the head node answers, since it may only start again. Raises ClusterLostError if it does not."""
    host, _, port = address.rpartition(":")
    deadline = time.monotonic() + _LOST_S
    while True:
        try:
            if _answer_of(host, int(port)):
                return
        except OSError as error:
            if time.monotonic() > deadline:
                raise ClusterLostError(first_line(error)) from None
        time.sleep(_RETRY_S)


def _of_this_machine() -> str:
    """Returns the address that `ray start` has left on this machine."""
    file = Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir(), "ray", "ray_current_cluster")
    try:
        return file.read_text().strip()
    except OSError:
        raise LtxError("no Ray cluster runs on this machine", "give its HOST:PORT", "ray start --head") from None
