"""Laws of a disk that fills up under way: what is finished is kept, and the printed command goes on from there."""

import json

import numpy as np
import pytest
from fakes.forks import can_mount, command_in
from fakes.stages import write_engines

from ltx_runtime.cli.streams import UNTOLD
from ltx_runtime.spec.versions import VERSIONS

DEMO = VERSIONS["demo"]
FOX = ("a fox", "--seed", "3", "--height", "64", "--width", "96", "--num-frames", "25")
KEPT = ("--save-latents", "l.safetensors", "--save-embeddings", "e.safetensors", "--save-noise", "n.safetensors")

pytestmark = pytest.mark.skipif(
    not can_mount(), reason="needs `unshare -rm`: Linux that lets users make namespaces, see user_namespaces(7)"
)


@pytest.fixture
def disk(forks, tmp_path, spiece):
    """A small disk, on which nothing is yet, and a version folder beside it."""
    write_engines(tmp_path / "engines" / "demo", DEMO, spiece)
    return forks("4m")


@pytest.fixture
def engines_option(tmp_path):
    return ("--engines", str(tmp_path / "engines"))


def contents(disk):
    """Returns the bytes of every file of the disk, but what was told and the ballast, by its name."""
    return {
        str(path.relative_to(disk.place)): path.read_bytes()
        for path in disk.place.rglob("*")
        if path.is_file() and path.name not in ("stdout", "stderr", "ballast")
    }


def clear(disk):
    disk.make_room()
    for path in sorted(disk.place.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()


def went_on(disk, code, err, words):
    """Goes on as the last run has told, or begins again if nothing was finished; returns whether it went on."""
    assert code in (0, 2, UNTOLD), err
    assert "Traceback" not in err and "Exception ignored" not in err, err
    assert not list(disk.place.rglob(".ltx-*")), err
    disk.make_room()
    command = command_in(err) if code == 2 and "what is finished is kept" in err else []
    if code == 2:
        assert err.splitlines()[-1].startswith("error: cannot write "), err
        assert "no space left on device - free some space or choose another disk" in err.splitlines()[-1]
        code, _, err, _ = disk.run(*(command or words))
        assert code == 0, err
    return bool(command)


@pytest.mark.parametrize(("output", "moments"), [("fox.mp4", 14), ("fox.webm", 3), ("fox.gif", 3), ("fox.png", 4)])
def test_a_run_whose_disk_fills_up_at_any_moment_keeps_what_it_has_and_goes_on(disk, engines_option, output, moments):
    words = (*FOX, *engines_option, "--output", output, *KEPT)
    code, _, err, events = disk.run(*words)
    assert code == 0, err
    whole, gone_on = contents(disk), 0
    assert set(whole) >= {"l.safetensors", "e.safetensors", "n.safetensors"}
    clear(disk)
    for moment in np.linspace(1, events, moments, dtype=int):
        code, _, err, _ = disk.run(*words, fill_at=int(moment))
        gone_on += went_on(disk, code, err, (*words, "--overwrite"))
        assert contents(disk) == whole, moment
        clear(disk)
    assert gone_on >= moments // 5


def test_progress_and_result_on_the_disk_that_fills_up_do_not_matter(disk, engines_option):
    words = (*FOX, *engines_option, "--output", "fox.mp4", *KEPT)
    code, _, err, events = disk.run(*words)
    assert code == 0, err
    whole = contents(disk)
    for moment in np.linspace(1, events, 5, dtype=int):
        clear(disk)
        code, _, _, _ = disk.run(*words, fill_at=int(moment), on_disk=True)
        assert not list(disk.place.rglob(".ltx-*"))
        assert (code in (0, UNTOLD)) == ("fox.mp4" in contents(disk)), code
        disk.make_room()
        if code == 2:  # the sentences are where there was no room for them
            resumed = ("--resume", "fox.mp4.unfinished") if (disk.place / "fox.mp4.unfinished").exists() else words
            assert disk.run(*resumed, "--overwrite")[0] == 0
        assert contents(disk) == whole


def test_a_batch_whose_disk_fills_up_goes_on_from_its_results(disk, engines_option):
    disk.place.joinpath("p.txt").write_text("a fox\nan owl\n")
    words = ("--prompts", "p.txt", *FOX[3:], *engines_option, "--seeds", "1", "--output-dir", "out")
    code, _, err, events = disk.run(*words)
    assert code == 0, err

    def videos():
        return {name: raw for name, raw in contents(disk).items() if name.endswith(".mp4")}

    whole, gone_on = videos(), 0
    for moment in np.linspace(1, events, 6, dtype=int):
        clear(disk)
        disk.place.joinpath("p.txt").write_text("a fox\nan owl\n")
        code, _, err, _ = disk.run(*words, fill_at=int(moment))
        assert "Traceback" not in err, err
        assert not list(disk.place.rglob(".ltx-*"))
        disk.make_room()
        command = command_in(err)
        gone_on += bool(command)
        code, _, err, _ = disk.run(*(command or words))
        assert code == 0, err
        assert videos() == whole, moment
        lines = [json.loads(line) for line in (disk.place / "out" / "p.results.jsonl").read_text().splitlines()]
        assert sum(line.get("status") == "done" for line in lines) == 2
    assert gone_on > 1
