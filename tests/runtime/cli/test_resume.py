"""Laws of interrupted runs: whatever ended them, the printed command makes the same video, byte for byte."""

import errno
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
from fakes import program
from fakes import stages as fake_stages
from PIL import Image

from ltx_runtime.folder.manifest import describe_files, write_manifest
from ltx_runtime.folder.reading import read_manifest
from ltx_runtime.outputs import unfinished
from ltx_runtime.outputs.record import read_record
from ltx_runtime.pipeline import Pipeline
from ltx_runtime.spec.versions import VERSIONS
from ltx_runtime.tensors import packed
from ltx_runtime.vae.saved_latents import write_latents

DEMO, SINGLE = VERSIONS["demo"], VERSIONS["0.9.5"]
SMALL = ("a cat", "--seed", "3", "--height", "64", "--width", "96", "--num-frames", "9")
MOMENTS = 12


def left_behind(folder):
    return sorted(path.name for path in folder.iterdir() if path.name != "engines")


def command_in(err):
    """Returns the words of the command that was printed last, without the program."""
    return shlex.split(re.findall(r"go on with: ltx-run (.*)", err)[-1])


def content(target):
    """Returns the bytes of a file, or of every file in a folder."""
    return [path.read_bytes() for path in (sorted(target.iterdir()) if target.is_dir() else [target])]


@pytest.mark.parametrize(
    ("stage", "after"), [*((stage, 0) for stage in fake_stages.STAGES), *(("transformer", i) for i in (1, 3, 8, 9))]
)
def test_ctrl_c_in_any_stage_leaves_no_half_video_and_can_be_gone_on_from(
    run, engines, tmp_path, monkeypatch, stage, after
):
    engines(DEMO)
    Image.new("RGB", (96, 64)).save(tmp_path / "engines" / "image.png")
    wishes = (*SMALL, "--temporal-upscale", "--image", "engines/image.png", "--rng", "torch")
    assert run(*wishes, "--output", "whole.mp4")[0] == 0
    with monkeypatch.context() as patch:
        patch.setitem(fake_stages.STAGES, stage, fake_stages.interrupting(stage, after))
        code, out, err = run(*wishes, "--output", "clip.mp4")
    assert (code, out) == (130, "")
    assert err.splitlines()[-1] == "error: interrupted; no half-written video was left"
    assert left_behind(tmp_path) == ["clip.mp4.unfinished", "whole.mp4"]
    assert run(*command_in(err))[0] == 0
    assert left_behind(tmp_path) == ["clip.mp4", "whole.mp4"]
    assert content(tmp_path / "clip.mp4") == content(tmp_path / "whole.mp4")


def started(moment, *arguments):
    """Runs ltx-run on the fake stages in another process, which is killed at a moment."""
    command = [sys.executable, program.__file__, str(moment), *arguments]
    environment = program.environment()
    ended = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=False)
    return ended.returncode, ended.stderr


@pytest.mark.kills
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
@pytest.mark.parametrize("output", ["clip.mp4", pytest.param("clip.png", marks=pytest.mark.slow)])
def test_a_run_that_is_killed_at_any_moment_goes_on_with_the_printed_command(engines, tmp_path, monkeypatch, output):
    engines(DEMO)
    monkeypatch.chdir(tmp_path)
    kept = ("--save-latents", "latents.safetensors", "--rng", "diffusers")
    code, err = started(0, *SMALL, *kept, "--overwrite", "--output", output.replace("clip", "whole"))
    assert code == 0, err
    whole = content(tmp_path / output.replace("clip", "whole").removesuffix(".png"))
    events = int(re.findall(r"(\d+) events", err)[-1])
    assert events > 2 * MOMENTS
    target, gone_on = tmp_path / output.removesuffix(".png"), 0
    for moment in np.linspace(1, events, MOMENTS, dtype=int):
        (tmp_path / "latents.safetensors").unlink(missing_ok=True)
        code, err = started(moment, *SMALL, *kept, "--output", output)
        assert code == -9
        if "go on with" not in err:  # nothing has begun
            assert not target.exists()
            code, err = started(0, *SMALL, *kept, "--overwrite", "--output", output)
        else:
            gone_on += 1
            code, err = started(0, *command_in(err))
        assert code == 0, err
        assert content(target) == whole
        for path in [target] if target.is_file() else [*target.iterdir(), target]:
            path.rmdir() if path.is_dir() else path.unlink()
        assert [name for name in left_behind(tmp_path) if not name.startswith("whole")] == ["latents.safetensors"]
    assert gone_on > MOMENTS / 2


def steps_in(diary):
    return sum(note.startswith("run transformer") for note in diary)


def test_a_finished_step_is_not_computed_again(run, interrupted, diary):
    diary.clear()
    assert run("--resume", "clip.mp4.unfinished")[0] == 0
    assert "open text_encoder" not in diary
    resumed = steps_in(diary)
    diary.clear()
    assert run(*SMALL, "--image", "image.png", "--output", "whole.mp4")[0] == 0
    assert steps_in(diary) == resumed + 3


def test_the_output_names_its_unfinished_run_and_can_get_another_name(run, interrupted, tmp_path):
    assert run("--resume", "clip.mp4", "--output", "other.webm")[0] == 0
    assert left_behind(tmp_path) == ["image.png", "other.webm"]


def test_a_video_that_goes_on_ends_its_file_even_if_the_caller_does_not_ask_for_one(interrupted, tmp_path):
    with Pipeline(interrupted, backend="cpu") as pipe:
        video = pipe.resume("clip.mp4")
        assert video.save("clip.mp4") == Path("clip.mp4")
    assert left_behind(tmp_path) == ["clip.mp4", "image.png"]


def test_an_output_behind_links_can_be_gone_on_from(run, interrupted, tmp_path):
    (tmp_path / "disk" / "videos").mkdir(parents=True)
    (tmp_path / "videos").symlink_to("disk/videos")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(fake_stages.STAGES, "transformer", fake_stages.interrupting("transformer", 3))
        assert run(*SMALL, "--image", "image.png", "--output", "videos/clip.mp4")[0] == 130
    code, _, err = run("--resume", "videos/clip.mp4.unfinished")
    assert code == 0, err
    assert (tmp_path / "disk" / "videos" / "clip.mp4").is_file()


def test_latents_that_could_not_be_saved_are_saved_when_the_run_goes_on(run, engines, tmp_path, monkeypatch):
    engines(DEMO)
    assert run(*SMALL, "--save-latents", "whole.safetensors", "--output", "whole.mp4")[0] == 0

    def full(path, latents, ending, *, replace):
        if len(latents) > 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return write_latents(path, latents, ending, replace=replace)

    with monkeypatch.context() as patch:
        patch.setattr("ltx_runtime.road.write_latents", full)
        code, _, err = run(*SMALL, "--save-latents", "latents.safetensors", "--output", "clip.mp4")
    assert code == 2
    assert run(*command_in(err))[0] == 0
    assert (tmp_path / "latents.safetensors").read_bytes() == (tmp_path / "whole.safetensors").read_bytes()


def test_a_run_that_has_ended_is_told_and_not_repeated(run, interrupted, diary):
    assert run("--resume", "clip.mp4.unfinished")[0] == 0
    diary.clear()
    code, out, _ = run("--resume", "clip.mp4.unfinished")
    assert (code, out) == (0, "clip.mp4 is whole: its run has ended\n")
    assert diary == []


def test_an_interrupted_run_is_not_overwritten_unless_that_is_asked_for(run, interrupted, tmp_path):
    before = content(tmp_path / "clip.mp4.unfinished")
    code, _, err = run(*SMALL, "--output", "clip.mp4")
    assert code == 2
    assert err.splitlines()[-1] == (
        "error: an earlier run of clip.mp4 was interrupted - run: ltx-run --resume clip.mp4.unfinished, "
        "or add --overwrite to start again"
    )
    assert content(tmp_path / "clip.mp4.unfinished") == before
    assert run(*SMALL, "--output", "clip.mp4", "--overwrite")[0] == 0
    assert left_behind(tmp_path) == ["clip.mp4", "image.png"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("image.png", "is not what it was when the run began - put it back, or start again"),
        ("engines", "is not the one with which the run began"),
    ],
)
def test_what_a_run_was_made_from_must_not_change(run, interrupted, tmp_path, name, message):
    if name == "image.png":
        Image.new("RGB", (96, 64), (0, 200, 0)).save(tmp_path / name)
    else:
        manifest = read_manifest(interrupted)
        for path in interrupted.glob("transformer*"):
            path.write_bytes(b"another checkpoint")
        files = describe_files({file: interrupted / file for file in manifest.files})
        write_manifest(interrupted, replace(manifest, files=files))
    before = content(tmp_path / "clip.mp4.unfinished")
    code, _, err = run("--resume", "clip.mp4.unfinished")
    assert code == 2
    assert message in err.splitlines()[-1]
    assert content(tmp_path / "clip.mp4.unfinished") == before


@pytest.mark.parametrize("option", [("--seed", "4"), ("--steps", "9"), ("--fps", "12"), ("--image", "image.png")])
def test_what_would_make_it_another_run_is_refused(run, interrupted, option):
    code, _, err = run("--resume", "clip.mp4.unfinished", *option)
    assert code == 2
    assert f"{option[0]} has no effect on a run that goes on" in err


@pytest.mark.parametrize("damage", ["missing", "empty", "half", "other", "folder"])
def test_a_damaged_file_is_refused_in_one_line(run, interrupted, tmp_path, damage):
    path = tmp_path / "clip.mp4.unfinished"
    raw = path.read_bytes()
    path.unlink()
    if damage == "folder":
        path.mkdir()
    elif damage != "missing":
        other = packed({"tokens": np.zeros((1, 2, 3), np.float32)}, {"ltx-unfinished": "[1]"})
        path.write_bytes({"empty": b"", "half": raw[: len(raw) // 2], "other": other}[damage])
    code, out, err = run("--resume", "clip.mp4.unfinished")
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1


def test_latents_are_kept_if_the_decoder_fails(run, engines, tmp_path, monkeypatch):
    engines(SINGLE)
    assert run(*SMALL, "--output", "whole.gif")[0] == 0
    with monkeypatch.context() as patch:
        patch.setitem(fake_stages.STAGES, "vae_decoder", lambda feeds: (_ for _ in ()).throw(MemoryError()))
        code, _, err = run(*SMALL, "--output", "clip.gif")
    assert code == 2
    assert err.splitlines()[-1].startswith("error: not enough memory")
    with monkeypatch.context() as patch:
        patch.setitem(fake_stages.STAGES, "transformer", lambda feeds: pytest.fail("a step was computed again"))
        assert run(*command_in(err), "--memory", "1", "--threads", "2")[0] == 0
    with Image.open(tmp_path / "clip.gif") as made, Image.open(tmp_path / "whole.gif") as whole:
        assert made.n_frames == whole.n_frames
        for index in range(made.n_frames):
            made.seek(index), whole.seek(index)
            assert made.tobytes() == whole.tobytes()


@pytest.mark.parametrize("keeps", [(), ("--no-metadata",)])
@pytest.mark.parametrize("output", ["clip.mp4", "clip.png"])
def test_a_run_that_was_killed_between_its_video_and_its_end_has_ended(run, engines, monkeypatch, output, keeps):
    engines(DEMO)

    def killed(held):
        held.unlock()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(unfinished.Unfinished, "remove", killed)
        code, _, err = run(*SMALL, *keeps, "--output", output)
    assert code == 130
    before = content(Path(output.removesuffix(".png")))
    assert run(*command_in(err))[0] == 0
    assert content(Path(output.removesuffix(".png"))) == before
    assert not list(Path().glob("*.unfinished"))


def test_an_older_video_is_never_taken_for_that_of_a_run_that_was_interrupted_at_its_start(run, engines, monkeypatch):
    engines(DEMO)
    assert run("yesterday", *SMALL[1:], "--output", "clip.mp4")[0] == 0
    for error in (KeyboardInterrupt(), MemoryError()):
        with monkeypatch.context() as patch:
            patch.setitem(fake_stages.STAGES, "text_encoder", Mock(side_effect=error))
            code, _, err = run(*SMALL, "--output", "clip.mp4", "--overwrite")
        assert code in (2, 130)
        assert run(*command_in(err))[0] == 0
        assert read_record("clip.mp4").request.prompt == "a cat"


def test_what_was_given_anew_holds_for_the_next_interruption_too(run, interrupted, tmp_path, monkeypatch):
    shutil.copytree(tmp_path / "engines", tmp_path / "moved")
    shutil.rmtree(tmp_path / "engines")
    with monkeypatch.context() as patch:
        patch.setitem(fake_stages.STAGES, "vae_decoder", fake_stages.interrupting("vae_decoder", 0))
        words = ("--engines", "moved", "--output", "other.webm", "--vae-tiling")
        code, _, err = run("--resume", "clip.mp4.unfinished", *words)
    assert code == 130
    assert run(*command_in(err))[0] == 0
    assert left_behind(tmp_path) == ["image.png", "moved", "other.webm"]
    assert read_record("other.webm").options == {"tiled": True}


def test_a_file_to_save_that_another_run_has_made_meanwhile_is_left_alone(run, interrupted, tmp_path, monkeypatch):
    assert run("--resume", "clip.mp4.unfinished")[0] == 0
    kept = ("--save-noise", "noise.safetensors", "--save-latents", "latents.safetensors")
    with monkeypatch.context() as patch:
        patch.setitem(fake_stages.STAGES, "transformer", fake_stages.interrupting("transformer", 3))
        code, _, err = run(*SMALL, *kept, "--output", "second.mp4")
    assert code == 130
    (tmp_path / "latents.safetensors").write_bytes(b"another's")
    code, _, err = run("--resume", "second.mp4")
    assert code == 2
    assert "latents.safetensors exists" in err
    assert (tmp_path / "latents.safetensors").read_bytes() == b"another's"


def test_two_runs_that_save_the_same_file_get_two(run, engines, tmp_path, monkeypatch):
    engines(DEMO)

    def upsample(feeds):
        (tmp_path / "noise.safetensors").write_bytes(b"of a run that was faster")
        return fake_stages.upsample(feeds)

    with monkeypatch.context() as patch:
        patch.setitem(fake_stages.STAGES, "upsampler", upsample)
        code, _, err = run(*SMALL, "--save-noise", "noise.safetensors", "--output", "clip.mp4")
    assert code == 0
    assert "it is saved as" in err
    assert (tmp_path / "noise.safetensors").read_bytes() == b"of a run that was faster"
    assert (tmp_path / "noise-2.safetensors").exists()


def test_the_folder_of_an_output_may_go_without_the_state(run, engines, tmp_path, monkeypatch):
    engines(DEMO)
    (tmp_path / "disk").mkdir()
    assert run(*SMALL, "--output", "whole.mp4")[0] == 0

    def unplugged(feeds):
        shutil.rmtree(tmp_path / "disk")
        return fake_stages.decode(feeds)

    with monkeypatch.context() as patch:
        patch.setitem(fake_stages.STAGES, "vae_decoder", unplugged)
        code, _, err = run(*SMALL, "--output", "disk/clip.mp4")
    assert code == 2
    assert left_behind(tmp_path) == ["clip.mp4.unfinished", "whole.mp4"]
    (tmp_path / "disk").mkdir()
    assert run(*command_in(err))[0] == 0
    assert content(tmp_path / "disk" / "clip.mp4") == content(tmp_path / "whole.mp4")


def test_a_long_name_is_claimed_by_a_shorter_one(run, engines, tmp_path, monkeypatch):
    engines(DEMO)
    name = "狐" * 83 + ".gif"  # 253 bytes
    with monkeypatch.context() as patch:
        patch.setitem(fake_stages.STAGES, "vae_decoder", fake_stages.interrupting("vae_decoder", 0))
        code, _, err = run(*SMALL, "--output", name)
    assert code == 130
    assert run(*command_in(err))[0] == 0
    assert left_behind(tmp_path) == [name]
