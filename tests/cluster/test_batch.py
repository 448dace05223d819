"""A batch on a cluster whose nodes and processes are killed: every video is made once, and is that of one machine."""

import json
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from cluster.conftest import ENGINES, SIZE
from fakes.ray_nodes import ROOT
from PIL import Image

from ltx_runtime.packages import RELEASE

pytestmark = pytest.mark.ray


def is_hidden(path: Path) -> bool:
    """Returns whether a file is not whole yet, or was only made to see whether it can be."""
    return any(part.startswith(".") for part in path.parts)


def videos(folder: Path) -> dict[str, bytes]:
    """Returns what is whole in a folder beside files of results, by path."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not path.name.endswith(".results.jsonl") and not is_hidden(path.relative_to(folder))
    }


def results(folder: Path) -> list[dict]:
    """Returns the lines of the file of results that tell what became of a task."""
    (file,) = folder.glob("*.results.jsonl")
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    return [line for line in lines if line.get("status") in ("done", "failed")]


def when(count: int, folder: Path, process: subprocess.Popen) -> None:
    """Waits until a folder has so many videos."""
    deadline = time.monotonic() + 120
    while len(videos(folder)) < count:
        assert time.monotonic() < deadline and process.poll() is None, process.communicate()
        time.sleep(0.02)


def test_with_a_node_killed_halfway_every_video_is_made_once_with_the_bytes_of_one_machine(cluster, program, tmp_path):
    Image.new("RGB", (96, 64), (200, 30, 30)).save(tmp_path / "first.png")
    rows = [{"prompt": f"A red fox, number {number}", "seed": number, **SIZE} for number in range(60)]
    program.write([row | ({"image": "first.png"} if row["seed"] % 5 == 0 else {}) for row in rows])
    cluster.add("north", "east", "south")
    process = program.start(
        "--prompts", program.prompts, "--output-dir", tmp_path / "many", "--ray", cluster.address, "--json"
    )
    when(20, tmp_path / "many", process)
    cluster.kill("east")
    output, told = process.communicate(timeout=300)
    assert process.returncode == 0, told
    assert "east" in told
    lines = [json.loads(line) for line in output.splitlines()]  # nothing of Ray's is among them
    assert sorted(line["number"] for line in lines) == [*range(1, 61)]
    assert sorted(line["number"] for line in results(tmp_path / "many")) == [*range(1, 61)]
    makers = {line["node"].split()[0] for line in lines}
    assert makers == {"north", "east", "south"}
    assert "raylet" not in told and "Traceback" not in told

    one = program.run("--prompts", program.prompts, "--output-dir", tmp_path / "one")
    assert one.returncode == 0, one.stderr
    assert len(videos(tmp_path / "one")) == 60
    assert videos(tmp_path / "many") == videos(tmp_path / "one")


def test_a_batch_whose_driver_is_killed_goes_on_and_makes_only_what_is_missing(cluster, program, tmp_path):
    cluster.add("north", "east")
    folder = tmp_path / "out"
    process = program.start("--prompts", program.prompts, "--output-dir", folder, "--ray", cluster.address)
    when(5, folder, process)
    process.kill()
    process.communicate()
    before = {name: (folder / name).stat().st_mtime_ns for name in videos(folder)}
    assert 5 <= len(before) < 12

    ended = program.run("--resume", folder / "foxes.results.jsonl", "--ray", cluster.address)
    assert ended.returncode == 0, ended.stderr
    assert len(videos(folder)) == 12
    assert {name: (folder / name).stat().st_mtime_ns for name in before} == before
    assert sorted(line["number"] for line in results(folder)) == [*range(1, 13)]


def test_ctrl_c_ends_a_batch_with_the_command_that_goes_on_and_frees_the_nodes(cluster, program, tmp_path):
    cluster.add("north")
    process = program.start("--prompts", program.prompts, "--output-dir", tmp_path / "out", "--ray", cluster.address)
    when(2, tmp_path / "out", process)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 130
    assert f"--ray {cluster.address}" in told and "Traceback" not in told
    deadline = time.monotonic() + 30
    while cluster.makers():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_a_node_without_the_version_folder_is_named_and_left_out(cluster, program, tmp_path):
    cluster.add("bare", mounts={ENGINES: "size=100k"})
    only = program.run("--prompts", program.prompts, "--output-dir", tmp_path / "none", "--ray", cluster.address)
    assert only.returncode == 2
    assert only.stderr.splitlines()[-1].startswith("error: no node of the Ray cluster can make videos: bare (")
    assert videos(tmp_path / "none") == {}

    cluster.add("north")
    ended = program.run("--prompts", program.prompts, "--output-dir", tmp_path / "out", "--ray", cluster.address)
    assert ended.returncode == 0, ended.stderr
    assert "note: bare (" in ended.stderr and f"it has no version folder {ENGINES}" in ended.stderr
    assert {line["node"].split()[0] for line in results(tmp_path / "out")} == {"north"}
    assert len(videos(tmp_path / "out")) == 12


def test_the_version_folder_can_be_sent_to_nodes_that_have_none(cluster, program, tmp_path):
    cluster.add("bare", mounts={ENGINES: "size=100k"})
    options = ("--prompts", program.prompts, "--ray", cluster.address, "--send-engines")
    ended = program.run(*options, "--output-dir", tmp_path / "out")
    assert ended.returncode == 0, ended.stderr
    assert {line["node"].split()[0] for line in results(tmp_path / "out")} == {"bare"}


def test_a_node_whose_videos_would_differ_is_named_and_left_out(cluster, program, tmp_path):
    other = tmp_path / "packages"
    shutil.copytree(ROOT / "ltx_runtime", other / "ltx_runtime")
    stated = other / "ltx_runtime" / "packages.py"
    stated.write_text(stated.read_text().replace(f'"{RELEASE}"', '"0.0.9"'))
    engines = tmp_path / "engines"
    shutil.copytree(ENGINES, engines)
    manifest = engines / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()), indent=3))
    cluster.add("older", packages=other)
    cluster.add("another", mounts={ENGINES: engines})
    cluster.add("north")
    ended = program.run("--prompts", program.prompts, "--output-dir", tmp_path / "out", "--ray", cluster.address)
    assert ended.returncode == 0, ended.stderr
    assert "release 0.0.9" in ended.stderr and "its version folder is another one" in ended.stderr
    assert {line["node"].split()[0] for line in results(tmp_path / "out")} == {"north"}


def test_a_node_that_fails_at_what_others_can_make_costs_no_video(cluster, program, tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    cluster.add("full", mounts={small: "size=16k"}, temporary=small)
    cluster.add("north")
    ended = program.run("--prompts", program.prompts, "--output-dir", tmp_path / "out", "--ray", cluster.address)
    assert ended.returncode == 0, ended.stderr
    assert {line["node"].split()[0] for line in results(tmp_path / "out")} == {"north"}
    assert "full" in ended.stderr and "failed at 3 videos that other nodes could make" in ended.stderr


def test_a_video_that_fails_everywhere_is_told_and_does_not_end_the_rest(cluster, program, tmp_path):
    cluster.add("north", "east")
    picture = tmp_path / "first.png"
    Image.new("RGB", (96, 64)).save(picture)
    rows = [{"prompt": "A red fox", "seed": seed, **SIZE} for seed in range(40)]
    rows[-1]["image"] = "first.png"
    program.write(rows)
    process = program.start("--prompts", program.prompts, "--output-dir", tmp_path / "out", "--ray", cluster.address)
    when(1, tmp_path / "out", process)
    picture.unlink()
    _, told = process.communicate(timeout=120)
    assert process.returncode == 3, told
    assert "error: line 40, " in told and "first.png" in told
    assert len(videos(tmp_path / "out")) == 39


def test_makers_that_always_die_end_the_batch_with_the_name_of_the_node(cluster, program, tmp_path):
    cluster.add("north")
    process = program.start("--prompts", program.prompts, "--output-dir", tmp_path / "out", "--ray", cluster.address)
    while process.poll() is None:
        for maker in cluster.makers():
            maker.kill()
        time.sleep(0.05)
    _, told = process.communicate()
    assert process.returncode == 2
    assert told.splitlines()[-1].startswith("error: no node of the Ray cluster can make videos: north (")
    assert "3 makers in a row were lost there" in told


@pytest.mark.parametrize("place", ["file", "folder of frames"])
def test_videos_go_to_a_uri(cluster, program, tmp_path, place):
    rows = [{"prompt": "A fox", "seed": 1, **SIZE}, {"prompt": "A fox", "seed": 2, **SIZE}]
    if place == "folder of frames":
        rows = [row | {"output": f"{row['seed']}.png"} for row in rows]
    program.write(rows)
    cluster.add("north")
    uri = (tmp_path / "bucket").as_uri()
    options = ("--prompts", program.prompts, "--output-dir", tmp_path / "results", "--ray", cluster.address)
    ended = program.run(*options, "--output-uri", uri)
    assert ended.returncode == 0, ended.stderr
    assert videos(tmp_path / "results") == {}
    one = program.run("--prompts", program.prompts, "--output-dir", tmp_path / "one")
    assert one.returncode == 0, one.stderr
    assert videos(tmp_path / "bucket") == videos(tmp_path / "one") != {}
    again = program.run("--resume", tmp_path / "results" / "foxes.results.jsonl")
    assert again.returncode == 2 and "--ray auto" in again.stderr


def test_a_node_without_this_program_is_named_with_what_it_lacks(cluster, program, tmp_path):
    packages = tmp_path / "packages"
    (packages / "ltx_runtime").mkdir(parents=True)
    (packages / "ltx_runtime" / "__init__.py").touch()
    cluster.add("empty", packages=packages)
    ended = program.run("--prompts", program.prompts, "--output-dir", tmp_path / "out", "--ray", cluster.address)
    assert ended.returncode == 2
    assert ended.stderr.splitlines()[-1].startswith("error: no node of the Ray cluster can make videos: empty (")
    assert "No module named 'ltx_runtime." in ended.stderr
