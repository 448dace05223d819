"""A Hugging Face hub on 127.0.0.1 that answers huggingface_hub like the real one, with faults on demand.

Large files (LFS) lie on a second host to which the hub redirects, as with the real hub. It takes uploads, and requests
for any host name, as a proxy does.
"""

import base64
import gzip
import hashlib
import json
import random
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from math import inf
from pathlib import Path
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest
from safetensors.numpy import save

from ltx_export.sources.download import GGUF_REPOSITORY, T5_CHOICES, TEXT_ENCODER_INDEX, TOKENIZER, download
from ltx_runtime.spec.versions import VERSIONS, Version

TOKEN = "hf_of_the_tests"
RELEASE = replace(VERSIONS["0.9.8-2b-distilled"], repository="tests/video", text_repository="tests/text")
UPSCALER = str(RELEASE.upscaler)
GGUF = T5_CHOICES["Q8_0"]
WITH_GGUF = (RELEASE.checkpoint, UPSCALER, TOKENIZER, GGUF)
LFS_BYTES = 1000  # larger files are uploaded to the storage
SHARDS = tuple(f"text_encoder/model-0000{number}-of-00002.safetensors" for number in (1, 2))


def checksum_of(content: bytes, in_lfs: bool) -> str:
    """Returns the hub's checksum of a file: SHA-256 in LFS, else the git blob id."""
    if in_lfs:
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()


@dataclass(frozen=True)
class Stored:
    """A stored file at one commit."""

    content: bytes
    in_lfs: bool

    @property
    def checksum(self) -> str:
        return checksum_of(self.content, self.in_lfs)


@dataclass(frozen=True)
class Request:
    """A request that one of the hosts ("hub" or "storage") received."""

    host: str
    method: str
    path: str
    start: int | None
    token: str | None

    @property
    def name(self) -> str:
        """The file's name without its folder."""
        return self.path.rpartition("/")[2]


@dataclass
class Fault:
    """A fault in answering requests for a file (named without its folder; "" is any file): an error status instead of
    the file, or a body that breaks off at an offset of the file.
    """

    name: str = ""
    times: float = inf
    method: str = ""
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    break_at: int | None = None
    reset: bool = False
    stall: bool = False


class FakeHub:
    """The two servers and their files. Change `faults`, `send_instead` and the flags to make them misbehave."""

    def __init__(self, address: str = "127.0.0.1") -> None:
        self.requests: list[Request] = []
        self.faults: list[Fault] = []
        self.send_instead: dict[str, bytes] = {}  # file name -> bytes that do not match its checksum
        self.claimed_sizes: dict[str, int] = {}
        self.other_headers: dict[str, str] = {}  # headers to change in answers; "" omits one
        self.ignores_ranges = False
        self.waits_s: list[float] = []
        self.bytes_sent = 0
        self.contents: dict[str, bytes] = {}  # the release's files by path in the weights folder
        self.stalled, self.closing = threading.Event(), threading.Event()
        self.states: list[dict[str, Stored]] = [{}]
        self.repositories: dict[str, bool] = {}  # created ones, and whether they are private
        self.uploaded: dict[str, bytes] = {}  # content of large files by checksum, before they are committed
        self.hosts: set[str] = set()  # names of the hosts that were asked for
        self._servers = [_Host(self, "hub", address), _Host(self, "storage", "127.0.0.1")]
        # Two host names, because huggingface_hub tells hosts apart by name.
        names = (f"[{address}]" if ":" in address else address, "localhost")
        self.url, self.storage_url = (
            f"http://{name}:{server.server_port}" for name, server in zip(names, self._servers, strict=True)
        )
        for server in self._servers:
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def close(self) -> None:
        self.closing.set()
        for server in self._servers:
            server.shutdown()
            server.server_close()

    def publish(self, repository: str, name: str, content: bytes, in_lfs: bool = True) -> Stored:
        """Commits a file; earlier commits stay as they are."""
        stored = Stored(content, in_lfs)
        self.states.append({**self.states[-1], f"{repository}/{name}": stored})
        return stored

    def remove(self, repository: str, name: str) -> None:
        """Commits the removal of a file."""
        kept = self.states[-1].items()
        self.states.append({path: stored for path, stored in kept if path != f"{repository}/{name}"})

    @property
    def commit(self) -> str:
        return f"{len(self.states) - 1:040x}"

    def state(self, revision: str) -> dict[str, Stored] | None:
        number = len(self.states) - 1 if revision == "main" else int(revision, 16)
        return self.states[number] if number < len(self.states) else None

    def blob(self, checksum: str) -> Stored:
        return next(one for state in self.states for one in state.values() if one.checksum == checksum)

    def fault(self, request: Request, *, of_body: bool) -> Fault | None:
        """Returns the first fault that matches a request, and counts down how often it still happens."""
        for one in self.faults:
            concerns = one.name in ("", request.name) and one.method in ("", request.method)
            if concerns and one.times > 0 and of_body == (one.break_at is not None):
                one.times -= 1
                return one
        return None

    def asked(self, method: str, host: str = "hub") -> list[Request]:
        return [one for one in self.requests if (one.method, one.host) == (method, host)]


class _Host(ThreadingHTTPServer):
    """One of the two servers, which knows its hub and its name."""

    def __init__(self, hub: FakeHub, name: str, address: str) -> None:
        self.address_family = socket.AF_INET6 if ":" in address else socket.AF_INET
        super().__init__((address, 0), _Handler)
        self.hub, self.name = hub, name


class _Handler(BaseHTTPRequestHandler):
    server: _Host

    def log_message(self, *_: object) -> None:
        """Prints no log messages."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        request = self.received()
        with suppress(ConnectionError):  # the client may have closed the connection
            (self.resolve if self.server.name == "hub" else self.store)(request)

    def do_POST(self) -> None:
        self.take()

    def do_PUT(self) -> None:
        self.take()

    def received(self) -> Request:
        """Notes the request; one that comes as to a proxy has the host's name in its path."""
        span, token = self.headers["Range"], self.headers["Authorization"]
        start = int(span.removeprefix("bytes=").rstrip("-")) if span else None
        token = token and token.removeprefix("Bearer ")
        address = urlsplit(self.path)
        self.server.hub.hosts.add(address.hostname or self.headers["Host"].rpartition(":")[0])
        request = Request(self.server.name, self.command, unquote(address.path), start, token)
        self.server.hub.requests.append(request)
        return request

    def take(self) -> None:
        """Answers the requests of an upload: a new repository, how and where to upload each file, a commit."""
        request = self.received()
        content = self.rfile.read(int(self.headers["Content-Length"]))
        hub = self.server.hub
        if fault := hub.fault(request, of_body=False):
            return self.answer(fault.status, fault.headers)
        if request.host == "storage":
            hub.uploaded[request.name] = content
            return self.answer(200, {})
        kinds = {"create": self.create, "preupload": self.preupload, "batch": self.batch, "commit": self.commit}
        kind = next(kind for kind in kinds if kind in request.path.split("/"))
        repository = request.path.removeprefix("/api/models/").partition(f"/{kind}/")[0]
        self.answer_json(kinds[kind](repository, content))

    def create(self, _: str, content: bytes) -> dict:
        wanted = json.loads(content)
        repository = f"{wanted.get('organization') or 'tests'}/{wanted['name']}"
        self.server.hub.repositories.setdefault(
            repository, wanted.get("visibility") == "private" or bool(wanted.get("private"))
        )
        return {"url": f"{self.server.hub.url}/{repository}"}

    def preupload(self, _: str, content: bytes) -> dict:
        modes = {one["path"]: "lfs" if one["size"] > LFS_BYTES else "regular" for one in json.loads(content)["files"]}
        return {"files": [{"path": path, "uploadMode": mode, "shouldIgnore": False} for path, mode in modes.items()]}

    def batch(self, _: str, content: bytes) -> dict:
        hub = self.server.hub
        known = {*hub.uploaded, *(stored.checksum for state in hub.states for stored in state.values())}
        objects = json.loads(content)["objects"]
        for one in (one for one in objects if one["oid"] not in known):
            one["actions"] = {"upload": {"href": f"{hub.storage_url}/{one['oid']}"}}
        return {"objects": objects}

    def commit(self, repository: str, content: bytes) -> dict:
        hub = self.server.hub
        state = dict(hub.states[-1])
        for line in map(json.loads, content.splitlines()):
            value = line["value"]
            path = f"{repository}/{value.get('path')}"
            if line["key"] == "file":
                state[path] = Stored(base64.b64decode(value["content"]), False)
            elif line["key"] == "lfsFile":
                uploaded = hub.uploaded.get(value["oid"])
                state[path] = hub.blob(value["oid"]) if uploaded is None else Stored(uploaded, True)
        hub.states.append(state)
        return {"commitUrl": f"{hub.url}/{repository}/commit/{hub.commit}", "commitOid": hub.commit}

    def answer_json(self, answer: dict) -> None:
        body = json.dumps(answer).encode()
        self.answer(200, {"Content-Length": str(len(body)), "Content-Type": "application/json"})
        self.wfile.write(body)

    def resolve(self, request: Request) -> None:
        hub = self.server.hub
        repository, _, rest = request.path[1:].partition("/resolve/")
        revision, _, name = rest.partition("/")
        state = hub.state(revision) if rest else None
        stored = state.get(f"{repository}/{name}") if state else None
        if fault := hub.fault(request, of_body=False):
            self.answer(fault.status, fault.headers)
        elif stored is None:
            known = state and any(key.startswith(f"{repository}/") for key in state)
            self.answer(404, {"X-Error-Code": "EntryNotFound" if known else "RepoNotFound"})
        else:
            headers = {"X-Repo-Commit": hub.commit if revision == "main" else revision}
            headers |= {"ETag": f'"{stored.checksum}"'}
            if not stored.in_lfs:
                return self.send(request, stored, headers)
            size = hub.claimed_sizes.get(request.name, len(stored.content))
            linked = {"X-Linked-Etag": f'"{stored.checksum}"', "X-Linked-Size": str(size)}
            place = f"{hub.storage_url}/{stored.checksum}/{request.name}"
            self.answer(302, {**headers, **linked, "Location": place, "ETag": '"of the pointer"'})

    def store(self, request: Request) -> None:
        self.send(request, self.server.hub.blob(request.path.split("/")[1]), {})

    def answer(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": "0", **headers, **self.server.hub.other_headers}.items():
            if value:
                self.send_header(name, value)
        self.end_headers()

    def send(self, request: Request, stored: Stored, headers: dict[str, str]) -> None:
        hub = self.server.hub
        content = hub.send_instead.get(request.name, stored.content)
        if not stored.in_lfs and "gzip" in self.headers["Accept-Encoding"]:
            content, headers["Content-Encoding"] = gzip.compress(content), "gzip"
        start = None if hub.ignores_ranges or "Content-Encoding" in headers else request.start
        body = content[start or 0 :]
        if start is not None:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        self.answer(200 if start is None else 206, {**headers, "Content-Length": str(len(body))})
        if self.command == "HEAD":
            return
        fault = hub.fault(request, of_body=True)
        if fault is None or fault.break_at is None:
            hub.bytes_sent += len(body)
            self.wfile.write(body)
            return
        until = max(fault.break_at - (start or 0), 0)
        hub.bytes_sent += len(body[:until])
        self.wfile.write(body[:until])
        if fault.stall:
            hub.stalled.set()
            hub.closing.wait(30)
        if fault.reset:
            hub.closing.wait(0.05)  # let the bytes that were sent arrive first
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.rfile.close()
            self.connection.close()


def publish_release(hub: FakeHub) -> None:
    """Publishes RELEASE with every text encoder."""
    draw = random.Random(0).randbytes
    shards = {name: save({name: np.frombuffer(draw(8000), np.float32)}) for name in SHARDS}
    weight_map = {name: name.rpartition("/")[2] for name in SHARDS}
    text = {TOKENIZER: draw(700), TEXT_ENCODER_INDEX: json.dumps({"weight_map": weight_map}).encode(), **shards}
    video = {RELEASE.checkpoint: draw(50_000), UPSCALER: draw(9000)}
    quantized = {name: draw(3000) for name in T5_CHOICES.values() if name.endswith(".gguf")}
    places = {"tests/video": video, "tests/text": text, GGUF_REPOSITORY: quantized}
    for repository, files in places.items():
        for name, content in files.items():
            hub.publish(repository, name, content, in_lfs=name != TEXT_ENCODER_INDEX)
    hub.contents = {**video, **text, **quantized}


def bring(folder: Path, t5: str = "Q8_0", release: Version = RELEASE) -> list[str]:
    """Downloads a release and returns the reported lines."""
    lines: list[str] = []
    download(release, folder, t5, lines.append)
    return lines


def found(folder: Path) -> dict[str, bytes]:
    """Returns the files of a folder by path, without the download state in `.cache`."""
    files = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return {str(path): (folder / path).read_bytes() for path in files if path.parts[0] != ".cache"}


def lent_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeHub]:
    """Yields a hub with RELEASE that replaces the real one in this process, with its own cache and token."""
    import huggingface_hub
    from huggingface_hub import constants

    hub, home = FakeHub(), tmp_path / "huggingface"
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # another way of uploading, which this hub has not
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
    for name in ("HF_TOKEN_PATH", "HF_STORED_TOKENS_PATH", "HF_XET_CACHE"):
        monkeypatch.setattr(constants, name, str(home / name))
    # An interrupted transfer loses its current chunk, so small files need small chunks.
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1024)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setattr(time, "sleep", hub.waits_s.append)
    publish_release(hub)
    yield hub
    huggingface_hub.close_session()
    hub.close()
