"""Requests of people who mean no good: too large, too slow, damaged, smuggled, or naming what is not theirs."""

import contextlib
import io
import json
import socket
import struct
import threading
import time
import zlib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import ClassVar

import httpx
import numpy as np
import psutil
import pytest
from fakes.servers import Server, serving
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from ltx_runtime.media.video import save_video
from ltx_serve.cli import connections
from ltx_serve.http import guard

LIMIT = 1_000_000
SMALL = {"prompt": "A fox", "size": "96x64", "num_frames": 9}


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[Server]:
    """A server that takes uploads of one MB."""
    with serving(tmp_path_factory.mktemp("hostile"), max_upload_bytes=LIMIT) as server:
        yield server


@pytest.fixture(autouse=True)
def nothing_is_left(server):
    """After a test, the server answers, and has no folder without a job and no job that was refused."""
    before = {job.id for job in server.store.list(limit=1000)[0]}
    yield
    assert server.client.get("/healthz").json()["status"] == "ok"
    until = time.monotonic() + 10
    while left := {path.name for path in server.folders.root.iterdir()} - server.store.ids():
        assert time.monotonic() < until, left  # those that were being made when they were deleted take a moment
        time.sleep(0.01)
    for job in server.store.ids() - before:
        server.crew.delete(job)


def refused(response: httpx.Response, status: int, code: str | None = None) -> str:
    """Checks that an answer is an error in OpenAI's shape, and returns its message."""
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert code in (None, error["code"]), error
    return error["message"]


def raw(server: Server, data: bytes, wait_s: float = 5) -> bytes:
    """Sends bytes as they are, and returns what comes back."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=wait_s) as connection:
        connection.sendall(data)
        answer = b""
        with contextlib.suppress(TimeoutError, ConnectionResetError):
            while chunk := connection.recv(65536):
                answer += chunk
        return answer


# Large


def test_an_upload_above_the_limit_is_refused_by_its_length_before_it_is_sent(server):
    head = b"POST /v1/videos HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: multipart/form-data; boundary=x\r\n"
    answer = raw(server, head + b"Expect: 100-continue\r\nContent-Length: 10000000000\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 413") and b"body_too_large" in answer and b"100 Continue" not in answer


def test_an_upload_that_hides_its_length_is_cut_off_at_the_limit(server):
    sent = 0

    def endless():
        nonlocal sent
        yield b'--x\r\nContent-Disposition: form-data; name="input_reference"; filename="a"\r\n\r\n'
        while sent < 10_000_000_000:
            sent += 100_000
            yield bytes(100_000)

    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    with contextlib.suppress(httpx.WriteError, httpx.ReadError, httpx.RemoteProtocolError):
        refused(server.client.post("/v1/videos", content=endless(), headers=headers), 413, "body_too_large")
    assert sent < 100 * LIMIT


def png_bomb() -> bytes:
    header = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(bytes(100_000))), (b"IEND", b"")]
    framed = [
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(framed)


def gif_bomb() -> bytes:
    content = bytearray(saved("GIF", "P"))
    content[6:10] = struct.pack("<HH", 65_535, 65_535)
    return bytes(content)


def webp_bomb() -> bytes:
    content = bytearray(saved("WEBP", "RGB", lossless=True))
    place = content.index(b"VP8L") + 9  # after the length and the signature: 14 bits each of width and height, less one
    content[place : place + 4] = struct.pack("<I", 16_382 | 16_382 << 14)
    return bytes(content)


def tiff_bomb() -> bytes:
    content = bytearray(saved("TIFF", "L"))
    for tag in (256, 257, 278):  # width, height, rows per strip
        place = content.index(struct.pack("<H", tag), 8)
        content[place + 2 : place + 12] = struct.pack("<HII", 4, 1, 60_000)
    return bytes(content)


def saved(kind: str, mode: str, **options: object) -> bytes:
    content = io.BytesIO()
    Image.new(mode, (8, 8)).save(content, kind, **options)
    return content.getvalue()


@pytest.mark.parametrize("bomb", [png_bomb, gif_bomb, webp_bomb, tiff_bomb])
def test_a_picture_that_would_unpack_to_gigabytes_is_refused_by_its_header(server, bomb):
    content = bomb()
    assert len(content) < 10_000
    answer = server.client.post("/v1/videos", data=SMALL, files={"input_reference": content})
    assert "that reading a picture may take" in refused(answer, 400)
    assert resident_bytes_of_checkers() < 1e9


def resident_bytes_of_checkers() -> int:
    """Returns the memory of the largest process that checks requests."""
    return max((process.memory_info().rss for process in psutil.Process().children(recursive=True)), default=0)


def test_a_damaged_clip_is_refused_and_the_next_one_is_checked(server, tmp_path):
    clip = clip_in(tmp_path)
    for content in (clip[: len(clip) // 2], clip[:200] + bytes(500)):
        refused(server.client.post("/v1/videos", data=SMALL, files={"input_reference": content}), 400)
    whole = server.client.post("/v1/videos", data=SMALL, files={"input_reference": clip})
    assert whole.status_code == 200, whole.text


def test_a_clip_whose_container_claims_to_be_huge_is_read_by_the_size_of_its_pictures(server, tmp_path):
    clip = clip_in(tmp_path)
    lying = clip.replace(struct.pack(">HH", 96, 64), struct.pack(">HH", 65_000, 65_000))
    assert lying != clip
    answer = server.client.post("/v1/videos", data=SMALL, files={"input_reference": lying})
    assert answer.status_code == 200, answer.text
    assert resident_bytes_of_checkers() < 1e9


def clip_in(folder: Path) -> bytes:
    """Returns an MP4 of 9 frames, 96 wide and 64 high."""
    save_video((np.zeros((64, 96, 3), np.uint8) for _ in range(9)), folder / "clip.mp4", (64, 96), 24)
    return (folder / "clip.mp4").read_bytes()


def test_a_video_larger_or_longer_than_the_server_makes_is_refused(server):
    for fields in ({"size": "4096x4096"}, {"num_frames": 16_001}, {"seconds": "100"}, {"num_frames": 10**30}):
        refused(server.client.post("/v1/videos", json={"prompt": "A fox", **fields}), 400)


# Damaged


def test_bodies_that_are_no_request_are_refused_in_openais_shape(server):
    as_json = {"Content-Type": "application/json"}
    as_form = {"Content-Type": "multipart/form-data; boundary=x"}
    bodies = [
        (b"", as_json),
        (b"\xff\xfe{}", as_json),
        (b'{"prompt": "\xe9"}', as_json),
        (b"[" * 100_000, as_json),
        (b'{"prompt": ' * 50_000, as_json),
        (b'{"prompt": "A fox", "guidance_scale": NaN}', as_json),
        (b'{"prompt": "A fox", "guidance_scale": 1e999}', as_json),
        (b'{"prompt": "A fox", "seed": ' + b"9" * 10_000 + b"}", as_json),
        (b'{"prompt": "\\ud800"}', as_json),
        (b'{"prompt": ["A fox"]}', as_json),
        (b'"A fox"', as_json),
        (b"null", as_json),
        (b"no form", as_form),
        (b"--x\r\nContent-Disposition: form-data\r\n\r\nA fox\r\n--x--\r\n", as_form),
        (b'--x\r\nContent-Disposition: form-data; name="prompt"\r\n\r\nA fox', as_form),
        (b"x", {"Content-Type": "multipart/form-data"}),
        (b"x", {"Content-Type": "multipart/form-data; boundary=x; charset=zlib"}),
    ]
    for body, headers in bodies:
        refused(server.client.post("/v1/videos", content=body, headers=headers), 400)
    for kind in ("text/plain", "application/x-www-form-urlencoded", ""):
        refused(server.client.post("/v1/videos", content=b"prompt=x", headers={"Content-Type": kind}), 415)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from(["prompt", "seed", "size", "seconds", "conditions", "video", "fit", "steps", "timesteps"]),
    value=JSON_VALUES,
)
def test_a_field_of_any_value_is_accepted_or_refused(server, name, value):
    body = json.dumps({**SMALL, name: value}).encode()
    answer = server.client.post("/v1/videos", content=body, headers={"Content-Type": "application/json"})
    if answer.status_code == 200:
        server.crew.delete(answer.json()["id"])
    else:
        refused(answer, 400)


def test_ids_that_are_no_ids_lead_nowhere(server):
    for id in ("x", "video_" + "0" * 32, "..%2f..%2fjobs.sqlite", "video_%00", "%2e%2e", "video_" + "A" * 32, "é" * 50):
        for method, path in (("GET", ""), ("GET", "/content"), ("GET", "/events"), ("DELETE", ""), ("POST", "/cancel")):
            answer = server.client.request(method, f"/v1/videos/{id}{path}")
            refused(answer, 404 if answer.status_code == 404 else 405)
    refused(server.client.get("/v1/videos?after=x"), 400)
    refused(server.client.get("/v1/videos?limit=0"), 400)
    refused(server.client.get("/v1/videos?limit=1000000"), 400)


# Naming what is not theirs


class Tempting(BaseHTTPRequestHandler):
    """Notes every request that the server would make."""

    asked: ClassVar[list[str]] = []

    def do_GET(self):
        self.asked.append(self.path)
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_):
        pass


def test_no_url_and_no_file_of_the_server_is_ever_read(server):
    with HTTPServer(("127.0.0.1", 0), Tempting) as tempting:
        thread = threading.Thread(target=tempting.serve_forever)
        thread.start()
        own = f"http://127.0.0.1:{tempting.server_port}/"
        (server.settings.data / "secret.png").write_bytes(b"secret")
        names = [
            own,
            "http://169.254.169.254/latest",
            "file:///etc/passwd",
            "/etc/passwd",
            "../../secret.png",
            "~/.ssh",
        ]
        try:
            for name in names:
                for fields in (
                    {"input_reference": {"image_url": name}},
                    {"input_reference": name},
                    {"conditions": [{"media": name}]},
                    {"conditions": [{"media": {"path": name}}]},
                    {"video": name},
                    {"loras": [{"file": name}]},
                    {"preset": name},
                    {"image": name},
                ):
                    refused(server.client.post("/v1/videos", json={**SMALL, **fields}), 400)
                playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{name}\n".encode()
                concat = f"ffconcat version 1.0\nfile '{name}'\n".encode()
                svg = f'<svg xmlns="http://www.w3.org/2000/svg"><image href="{name}"/></svg>'.encode()
                for content in (playlist, concat, svg):
                    refused(server.client.post("/v1/videos", data=SMALL, files={"input_reference": content}), 400)
        finally:
            tempting.shutdown()
            thread.join()
    assert Tempting.asked == []


# Smuggled


def test_two_lengths_or_a_length_and_chunks_are_refused_and_the_connection_is_closed(server):
    hidden = b"GET /v1/models HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
    head = b"POST /v1/videos HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    for framing in (
        b"Content-Length: 2\r\nContent-Length: 60\r\n\r\n{}",
        b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
        b"Transfer-Encoding: xchunked\r\nContent-Length: 2\r\n\r\n{}",
        b"Content-Length: +2\r\n\r\n{}",
        b"Content-Length : 2\r\n\r\n{}",
        b"Transfer-Encoding:\x0bchunked\r\n\r\n0\r\n\r\n",
    ):
        answer = raw(server, head + framing + hidden)
        assert answer.count(b"HTTP/1.1 ") == 1, (framing, answer)
        assert answer.startswith((b"HTTP/1.1 400", b"HTTP/1.1 501")), (framing, answer)


def test_headers_without_end_are_refused(server):
    assert raw(server, b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\nX: " + b"x" * 200_000).startswith(b"HTTP/1.1 400")


# Slow


def test_sockets_that_send_nothing_do_not_keep_others_waiting_and_are_closed(server, monkeypatch):
    monkeypatch.setattr(connections, "_HEADERS_S", 0.5)
    with contextlib.ExitStack() as stack:
        sockets = [
            stack.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=10)) for _ in range(200)
        ]
        for connection in sockets[::2]:
            connection.sendall(b"POST /v1/videos HTTP/1.1\r\nHost: 127")
        began = time.monotonic()
        assert server.client.get("/healthz").status_code == 200
        assert time.monotonic() - began < 2
        assert all(connection.recv(1) == b"" for connection in sockets)


def test_a_body_that_stops_coming_is_answered_and_leaves_nothing(server, monkeypatch):
    monkeypatch.setattr(guard, "_SILENCE_S", 0.3)
    head = (
        b"POST /v1/videos HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{"
    )
    answer = raw(server, head)
    assert answer.startswith(b"HTTP/1.1 408") and b"timeout" in answer


def test_a_client_that_does_not_read_its_answer_is_cut_off(server, monkeypatch):
    monkeypatch.setattr(connections, "_READING_S", 0.5)
    id = server.client.post("/v1/videos", json=SMALL).json()["id"]
    server.wait(id)
    size = 100_000_000  # more than the system keeps on the way
    with server.folders.video(id).open("r+b") as file:
        file.truncate(size)
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", server.port))
        connection.sendall(f"GET /v1/videos/{id}/content HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
        time.sleep(1.5)
        received = 0
        with contextlib.suppress(ConnectionResetError):
            while chunk := connection.recv(1 << 20):
                received += len(chunk)
    assert 0 < received < size


def test_a_client_that_leaves_while_it_uploads_leaves_nothing(server):
    head = b"POST /v1/videos HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: multipart/form-data; boundary=x\r\n"
    part = b'--x\r\nContent-Disposition: form-data; name="input_reference"; filename="a"\r\n\r\n' + bytes(100_000)
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(head + b"Content-Length: 900000\r\n\r\n" + part)
