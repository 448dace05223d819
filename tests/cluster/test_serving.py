"""The server on a cluster: OpenAI's own client, two replicas that make videos, and nodes that are killed."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import av
import pytest
from cluster.conftest import ENGINES
from fakes.ray_nodes import ROOT, until

pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("ignore:The Sora API:DeprecationWarning")]
SERVE = "from ltx_serve.cli.main import main; main()"


class Server:
    """ltx-serve in a process of its own."""

    def __init__(self, address: str, data: Path, *options: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.log = data.with_suffix(".log")
        command = [sys.executable, "-c", SERVE, "--ray", address, "--port", str(self.port), "--data", str(data)]
        command += options
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "LTX_ENGINES": str(ENGINES), "OMP_NUM_THREADS": "1"}
        with self.log.open("w") as log:
            self.process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        import openai

        self.client = openai.OpenAI(base_url=f"http://127.0.0.1:{self.port}/v1", api_key="none", max_retries=0)
        until(lambda: "serves demo" in self.log.read_text() or self.process.poll() is not None, self.log.read_text())
        assert self.process.poll() is None, self.log.read_text()

    def stop(self) -> None:
        """Ends the server as Ctrl-C does."""
        if self.process.poll() is None:
            self.process.terminate()
        self.process.wait(90)


@pytest.fixture
def serve(tmp_path):
    """Starts servers, which end with the test."""
    servers = []

    def start(address, *options):
        servers.append(Server(address, tmp_path / "data", *options))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


def test_openais_client_gets_every_video_although_a_node_is_killed(cluster, serve, tmp_path):
    cluster.add("north", "east")
    server = serve(cluster.address)
    videos = [
        server.client.videos.create(prompt=f"A red fox, number {number}", size="192x128", extra_body={"num_frames": 33})
        for number in range(8)
    ]
    until(lambda: any(server.client.videos.retrieve(video.id).status == "completed" for video in videos), "none made")
    cluster.kill("east")
    ended = [server.client.videos.poll(video.id, poll_interval_ms=200) for video in videos]
    assert [video.status for video in ended] == ["completed"] * 8, [video.error for video in ended]
    for video in ended:
        content = server.client.videos.download_content(video.id).read()
        path = tmp_path / f"{video.id}.mp4"
        path.write_bytes(content)
        with av.open(str(path)) as container:
            assert sum(1 for _ in container.decode(video=0)) == 33
    assert sorted(video.id for video in server.client.videos.list(limit=20)) == sorted(video.id for video in videos)


def test_a_video_that_is_cancelled_stops_on_its_node_and_the_next_one_is_made(cluster, serve):
    cluster.add("north")
    server = serve(cluster.address)
    long = server.client.videos.create(prompt="A fox", size="704x512", extra_body={"num_frames": 121})
    until(lambda: server.client.videos.retrieve(long.id).status == "in_progress", "it has not begun")
    time.sleep(1.0)
    server.client.post(f"/videos/{long.id}/cancel", cast_to=object)
    assert server.client.videos.retrieve(long.id).error.code == "cancelled"
    short = server.client.videos.create(prompt="A fox", size="96x64", extra_body={"num_frames": 9})
    assert server.client.videos.poll(short.id, poll_interval_ms=200).status == "completed"


def test_what_waits_when_the_server_stops_is_made_after_the_next_start(cluster, serve):
    cluster.add("north")
    first = serve(cluster.address)
    videos = [
        first.client.videos.create(prompt="A fox", size="192x128", extra_body={"num_frames": 33}) for _ in range(6)
    ]
    first.stop()
    assert "Traceback" not in first.log.read_text()
    second = serve(cluster.address)
    ended = [second.client.videos.poll(video.id, poll_interval_ms=200) for video in videos]
    assert [video.status for video in ended] == ["completed"] * 6


def test_a_server_does_not_start_with_a_node_that_lacks_the_engines(cluster, serve):
    cluster.add("bare", mounts={ENGINES: "size=100k"})
    with pytest.raises(AssertionError, match=r"bare .*has no version folder"):
        serve(cluster.address)


def test_a_server_that_cannot_work_does_not_start(cluster, serve):
    cluster.add("north")
    with pytest.raises(AssertionError, match=r"has 1 nodes that make videos; got --workers 2"):
        serve(cluster.address, "--workers", "2")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(AssertionError, match=rf"error: cannot listen on port {port} of 127.0.0.1"):
            serve(cluster.address, "--port", str(port))
    with pytest.raises(AssertionError, match=r"error: port 0 cannot be used"):
        serve(cluster.address, "--port", "0")
