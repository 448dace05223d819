"""A backup that is taken as docs/deploying.md says while the server runs: every job is in it, made or waiting."""

import re
import shutil
import sqlite3
from pathlib import Path

from fakes.makers import QuickMaker
from fakes.servers import serving

PAGE = Path(__file__).parents[2] / "docs" / "deploying.md"


def test_a_server_with_the_backup_has_every_video_and_makes_those_that_waited(tmp_path):
    small = {"size": "96x64", "num_frames": 9}
    maker, data, backup = QuickMaker(), tmp_path / "old" / "data", tmp_path / "new" / "data"
    (statement,) = re.findall(r'"(VACUUM INTO .*)"', PAGE.read_text())
    backup.mkdir(parents=True)
    with serving(tmp_path / "old", [maker]) as server:
        finished = server.client.post("/v1/videos", json={"prompt": "finished", **small}).json()["id"]
        server.wait(finished)
        content = server.client.get(f"/v1/videos/{finished}/content").content
        maker.may_go_on.clear()
        waiting = [server.client.post("/v1/videos", json={"prompt": text, **small}).json()["id"] for text in "ab"]
        with sqlite3.connect(data / "jobs.sqlite") as database:
            database.execute(statement.replace("/backup/", f"{backup}/"))
        database.close()
        (backup / "new.sqlite").rename(backup / "jobs.sqlite")
        shutil.copytree(data / "videos", backup / "videos")
        maker.may_go_on.set()
    with serving(tmp_path / "new") as server:
        assert server.client.get(f"/v1/videos/{finished}/content").content == content
        for id in waiting:
            server.wait(id)
        assert {job.id for job in server.store.list(after=None, limit=10, order="asc")[0]} == {finished, *waiting}
