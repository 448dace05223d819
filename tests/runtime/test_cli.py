"""Laws of ltx-run: one prompt, one file, one line; what the user can fix ends with code 2 and no traceback."""

import re
import sys
from dataclasses import replace

import av
import pytest
from fake_stages import engines_of

from ltx_runtime import cli, pipeline
from ltx_runtime.manifest import describe_files, write_manifest
from ltx_runtime.sessions import BACKENDS
from ltx_runtime.versions import VERSIONS

EVERY_VERSION = pytest.mark.parametrize("version", VERSIONS.values(), ids=VERSIONS)
SMALL = ("--height", "64", "--width", "96", "--num-frames", "9")


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Runs `ltx-run` in an empty folder; returns exit code, standard output and standard error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LTX_ENGINES", raising=False)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["ltx-run", *arguments])
        with pytest.raises(SystemExit) as left:
            cli.main()
        captured = capsys.readouterr()
        return left.value.code or 0, captured.out, captured.err

    return run


@pytest.fixture
def engines(tmp_path, spiece, diary, monkeypatch):
    """Makes version folders that run on the fake stages."""
    monkeypatch.setitem(BACKENDS, "cpu", BACKENDS["fake"])

    def make(version):
        folder = tmp_path / "engines" / version.name
        folder.mkdir(parents=True)
        (folder / spiece.name).write_bytes(spiece.read_bytes())
        manifest = engines_of(version, spiece).manifest
        entries = manifest.components.values()
        names = {name for entry in entries for name in (*entry.weights, *entry.graphs.values())}
        for name in names:
            (folder / name).touch()
        files = describe_files({name: folder / name for name in {spiece.name, *names}})
        write_manifest(folder, replace(manifest, files=files))
        return folder

    return make


def left_behind(folder):
    return [path.name for path in folder.iterdir() if path.name != "engines"]


@EVERY_VERSION
def test_a_prompt_becomes_a_video_of_the_size_asked_for(run, engines, tmp_path, version):
    engines(version)
    code, out, err = run("--prompt", "a cat", *SMALL, "--output", "clip.mp4", "--seed", "3")
    assert (code, left_behind(tmp_path)) == (0, ["clip.mp4"]), err
    with av.open("clip.mp4") as container:
        stream = container.streams.video[0]
        assert (stream.width, stream.height, stream.frames) == (96, 64, 9)
        assert float(stream.average_rate) == version.fps
    assert "clip.mp4" in out
    assert "seed 3" in out


def test_a_video_without_a_name_is_called_after_prompt_and_seed_and_replaces_nothing(run, engines, tmp_path):
    engines(VERSIONS["demo"])
    for _ in range(2):
        assert run("--prompt", "A cat, walking!", *SMALL, "--seed", "3")[0] == 0
    assert sorted(left_behind(tmp_path)) == ["a-cat-walking-3-2.mp4", "a-cat-walking-3.mp4"]


def test_a_seed_that_was_not_given_is_told_and_makes_the_same_video_again(run, engines, tmp_path):
    engines(VERSIONS["demo"])
    _, out, _ = run("--prompt", "a cat", *SMALL, "--output", "first.png")
    seed = re.search(r"seed (\d+)", out)[1]
    run("--prompt", "a cat", *SMALL, "--output", "again.png", "--seed", seed)
    first, again = ([path.read_bytes() for path in sorted((tmp_path / n).iterdir())] for n in ("first", "again"))
    assert first == again


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--height", "500"), "height must be a multiple of 32; got 500 - use 480 or 512"),
        (("--num-frames", "24"), "use 17 or 25"),
        (("--steps", "0"), "steps must be"),
        (("--seed", "-1"), "seed must be"),
        (("--fps", "0"), "fps must be"),
        (("--version", "0.9.2"), "unknown version '0.9.2'"),
        (("--version", "0.9.5"), "no engines for 0.9.5"),
        (("--output", "clip.avi"), "unknown output suffix"),
        (("--output", "missing/clip.mp4"), "cannot write missing/clip.mp4"),
        (("--engines", "missing"), "missing"),
    ],
    ids=str,
)
def test_what_the_user_can_fix_ends_with_code_2_and_one_line(run, engines, tmp_path, diary, arguments, message):
    engines(VERSIONS["demo"])
    code, _, err = run("--prompt", "a cat", *arguments)
    assert code == 2
    assert message in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert (left_behind(tmp_path), diary) == ([], [])


def test_ctrl_c_leaves_no_file_and_ends_with_code_130_and_one_line(run, engines, tmp_path, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    engines(VERSIONS["demo"])
    monkeypatch.setattr(pipeline, "generate", interrupted)
    code, _, err = run("--prompt", "a cat", *SMALL, "--output", "clip.mp4")
    assert (code, left_behind(tmp_path)) == (130, [])
    assert "interrupted" in err


def test_help_names_every_option_and_ends_well(run):
    code, out, _ = run("--help")
    assert code == 0
    for option in ("--prompt", "--engines", "--version", "--seed", "--output"):
        assert option in out
