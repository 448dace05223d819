"""A server in a thread of the tests, over a real socket, whose makers are fakes."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
from fakes.makers import QuickMaker
from fakes.stages import write_engines
from fastapi import FastAPI

from ltx_runtime import VERSIONS
from ltx_serve.cli.server import listener_on, server_of
from ltx_serve.http.application import application
from ltx_serve.jobs.folders import Folders
from ltx_serve.jobs.store import Store
from ltx_serve.making.crew import Crew
from ltx_serve.settings import Settings, check_settings


@dataclass
class Server:
    """What a test can reach of a server: over HTTP by `url` and `client`, and behind it."""

    url: str
    settings: Settings
    app: FastAPI
    store: Store
    folders: Folders
    crew: Crew
    makers: Sequence[QuickMaker]
    client: httpx.Client = field(repr=False)

    @property
    def port(self) -> int:
        return httpx.URL(self.url).port

    def wait(self, id: str, status: str = "completed") -> dict[str, object]:
        """Follows a video until it has ended, and returns it."""
        self.client.get(f"/v1/videos/{id}/events").raise_for_status()
        video = self.client.get(f"/v1/videos/{id}").json()
        assert video["status"] == status, video
        return video


def write_demo(engines: Path, lacking: Sequence[str] = ()) -> None:
    """Writes a version folder of the demo without graphs, of which a server without workers reads the manifest."""
    engines.mkdir(parents=True)
    tokenizer = engines / "tokenizer.model"
    tokenizer.touch()
    write_engines(engines / "demo", VERSIONS["demo"], tokenizer, lacking)


@contextmanager
def serving(folder: Path, makers: Sequence[QuickMaker] = (), **settings: object) -> Iterator[Server]:
    """Serves the demo version from a folder, until the end of the block."""
    if not (folder / "engines").exists():
        write_demo(folder / "engines")
    chosen = check_settings(Settings(folder / "engines", folder / "data", port=0, **settings))
    store = Store(chosen.data / "jobs.sqlite", chosen.max_queue, chosen.keep_days)
    folders = Folders(chosen.data / "videos")
    makers = makers or [QuickMaker()]
    crew = Crew(store, folders, chosen, makers)
    app = application(chosen, crew, store, folders)
    crew.start()
    listener = listener_on(chosen.host, chosen.port)
    port = listener.getsockname()[1]
    server = server_of(app)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    headers = {} if chosen.token is None else {"Authorization": f"Bearer {chosen.token}"}
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", headers=headers, timeout=30) as client:
            yield Server(str(client.base_url), chosen, app, store, folders, crew, makers, client)
    finally:
        server.should_exit = True
        thread.join()
        crew.stop(0)
        store.close()
        listener.close()
