"""The settings of a server, and the check of those that cannot work together."""

from __future__ import annotations

import ipaddress
import math
import socket
from dataclasses import dataclass, fields
from pathlib import Path

from ltx_runtime.errors import LtxError
from ltx_runtime.sessions import AUTO

STOPPING = "stopping: videos under way are finished, or queued again"  # what a server says when it is told to end
_LARGEST_PORT = 65_535
_MOST_WORKERS = 64
# The least value of each number that can be set; None means unlimited, or the default, where a field allows it.
_LEAST = {
    "max_queue": 1,
    "max_upload_bytes": 1,
    "max_pixels": 32 * 32,
    "max_frames": 1,
    "max_attempts": 1,
    "keep_bytes": 0,
    "threads": 1,
}
_POSITIVE = ("max_job_s", "keep_days", "memory")


@dataclass(frozen=True)
class Settings:
    """The settings of a server.

    Attributes:
        engines: a version folder, or a folder of version folders.
        data: the folder of the queue and of all videos.
        host: the address to listen on.
        port: the port to listen on; 0 for any free one.
        token: what clients must send; None if everyone on the address may ask.
        workers: number of worker processes; None for one per GPU, or one on the CPU.
        max_queue: most jobs that may wait at a time.
        max_upload_bytes: most bytes of one request, with everything that it uploads.
        max_pixels: most pixels of a frame.
        max_frames: most frames of a video.
        max_job_s: most seconds that one attempt at a video may take.
        max_attempts: how often a video is begun, if the workers that make it are lost.
        keep_days: days after which what is finished is removed; None to keep it.
        keep_bytes: most bytes of all videos together, above which the oldest are removed; None for no limit.
        backend: a name of BACKENDS, or AUTO.
        memory: GB for the activations of the VAE, as in Pipeline.
        threads: number of CPU threads of all workers together; None for one per core.
        trust_engines: whether engines and links in the folder are used that the user of the server has not made here.
        grace_s: seconds that a running video is given to finish when the server stops; after that it is queued again.
    """

    engines: Path
    data: Path
    host: str = "127.0.0.1"
    port: int = 8000
    token: str | None = None
    workers: int | None = None
    max_queue: int = 1000
    max_upload_bytes: int = 100_000_000
    max_pixels: int = 1920 * 1088
    max_frames: int = 257
    max_job_s: float = 3600.0
    max_attempts: int = 5
    keep_days: float | None = None
    keep_bytes: int | None = None
    backend: str = AUTO
    memory: float | None = None
    threads: int | None = None
    trust_engines: bool = False
    grace_s: float = 30.0


def check_settings(settings: Settings) -> Settings:
    """Returns the settings if a server can be started with them.

    Raises:
        LtxError: a number is out of range, or the address can be reached from other machines and there is no token.
    """
    for name, least in _LEAST.items():
        value = getattr(settings, name)
        if value is not None and not value >= least:
            raise LtxError(f"{_option(name)} must be at least {least}; got {value}", _advice(name))
    for name in _POSITIVE:
        value = getattr(settings, name)
        if value is not None and not (value > 0 and math.isfinite(value)):
            raise LtxError(f"{_option(name)} must be a positive number; got {value:g}", _advice(name))
    if not (settings.grace_s >= 0 and math.isfinite(settings.grace_s)):
        raise LtxError(f"grace-s must be a number of seconds from 0; got {settings.grace_s:g}", _advice("grace_s"))
    if not 0 <= settings.port <= _LARGEST_PORT:
        raise LtxError(f"port must be from 0 to {_LARGEST_PORT}; got {settings.port}", _advice("port"))
    if settings.workers is not None and not 1 <= settings.workers <= _MOST_WORKERS:
        raise LtxError(f"workers must be from 1 to {_MOST_WORKERS}; got {settings.workers}", _advice("workers"))
    _check_token(settings)
    return settings


def _check_token(settings: Settings) -> None:
    if settings.token is None and not is_loopback(settings.host):
        raise LtxError(
            f"{settings.host} can be reached from other machines, and there is no token",
            "set LTX_TOKEN, or listen on 127.0.0.1",
        )
    if settings.token is not None and not (
        settings.token.isascii() and settings.token.isprintable() and settings.token
    ):
        raise LtxError("the token must be printable ASCII characters, at least one", "choose another token")


def is_loopback(host: str) -> bool:
    """Returns whether an address can be reached from this machine only; a name other than localhost counts as not."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def url_of(host: str, port: int) -> str:
    """Returns the address of the page; of a server on all addresses of its machine, the one that others can open."""
    if host in ("0.0.0.0", "::"):
        host = socket.gethostname()
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"


def _option(name: str) -> str:
    return name.replace("_", "-")


def _advice(name: str) -> str:
    default = next(field.default for field in fields(Settings) if field.name == name)
    return "leave it out" if default is None else f"leave it out for {default}"
