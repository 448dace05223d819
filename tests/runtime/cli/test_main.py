"""Laws of ltx-run: one request, one file, one line; a plan runs nothing; every option reaches its use."""

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import av
import numpy as np
import pytest
from fakes import stages as fake_stages
from PIL import Image

from ltx_runtime import __version__
from ltx_runtime.folder.manifest import write_manifest
from ltx_runtime.folder.reading import read_manifest
from ltx_runtime.sessions import BACKENDS
from ltx_runtime.spec.versions import VERSIONS
from ltx_runtime.tensors import write_tensors

EVERY_VERSION = pytest.mark.parametrize("version", VERSIONS.values(), ids=VERSIONS)
DEMO, SINGLE = VERSIONS["demo"], VERSIONS["0.9.5"]
PROMPT = ("--prompt", "a cat", "--seed", "3")
SMALL = (*PROMPT, "--height", "64", "--width", "96", "--num-frames", "9")


def left_behind(folder):
    return sorted(path.name for path in folder.iterdir() if path.name != "engines")


def pictures(folder):
    return np.stack([np.asarray(Image.open(path)) for path in sorted(Path(folder).iterdir())])


def probe(path):
    """Returns width, height, number of frames and frame rate of a video."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        return stream.width, stream.height, stream.frames, float(stream.average_rate)


# --- videos ---------------------------------------------------------------------------------------


@EVERY_VERSION
def test_a_prompt_becomes_a_video_of_the_size_asked_for(run, engines, tmp_path, version):
    engines(version)
    code, out, err = run(*SMALL, "--output", "clip.mp4")
    assert (code, left_behind(tmp_path)) == (0, ["clip.mp4"]), err
    assert probe("clip.mp4") == (96, 64, 9, version.fps)
    assert "clip.mp4: 96x64, 9 frames" in out
    assert "seed 3" in out
    assert out.count("\n") == 1


def test_a_video_without_a_name_is_called_after_prompt_and_seed_and_replaces_nothing(run, engines, tmp_path):
    engines(DEMO)
    for _ in range(2):
        assert run(*SMALL, "--prompt", "A cat, walking!")[0] == 0
    assert left_behind(tmp_path) == ["a-cat-walking-3-2.mp4", "a-cat-walking-3.mp4"]


def test_a_folder_for_the_video_is_made(run, engines, tmp_path):
    engines(DEMO)
    assert run(*SMALL, "--output-dir", "videos/new")[0] == 0
    assert [path.name for path in (tmp_path / "videos" / "new").iterdir()] == ["a-cat-3.mp4"]


def test_a_seed_that_was_not_given_is_told_and_makes_the_same_video_again(run, engines):
    engines(DEMO)
    asked = [*SMALL[:2], *SMALL[4:]]
    _, out, _ = run(*asked, "--output", "first.png")
    run(*asked, "--output", "again.png", "--seed", re.search(r"seed (\d+)", out)[1])
    np.testing.assert_array_equal(pictures("first"), pictures("again"))


def test_a_seed_of_0_is_a_seed(run, engines):
    engines(DEMO)
    assert "seed 0" in run(*SMALL, "--seed", "0", "--output", "clip.mp4")[1]


def test_the_noise_levels_that_are_allowed_are_the_folder_s_own(run, engines):
    folder = engines(VERSIONS["0.9.6-distilled"])
    wishes = (*SMALL, "--timesteps", "1,0.5", "--output", "clip.mp4")
    assert [run(*wishes, *how)[0] for how in (["--plan"], [])] == [2, 2]
    write_manifest(folder, replace(read_manifest(folder), allowed_sigmas=()))
    assert [run(*wishes, *how)[0] for how in (["--plan"], [])] == [0, 0]


@EVERY_VERSION
def test_twice_the_frame_rate_has_twice_the_frames_less_one(run, engines, version):
    engines(version)
    assert run(*SMALL, "--output", "clip.mp4", "--temporal-upscale", "--fps", "12")[0] == 0
    assert probe("clip.mp4") == (96, 64, 17, 24)


def test_any_size_is_made_with_padding(run, engines):
    engines(DEMO)
    assert run(*PROMPT, "--height", "70", "--width", "102", "--num-frames", "12", "--pad", "--output", "c.mp4")[0] == 0
    assert probe("c.mp4")[:3] == (102, 70, 12)


@pytest.mark.parametrize("output", ["clip.webm", "clip.gif", "clip.png"])
def test_an_odd_size_is_made_in_formats_that_can_store_it(run, engines, output):
    engines(DEMO)
    size = ("--height", "71", "--width", "103", "--num-frames", "10", "--pad")
    assert run(*PROMPT, *size, "--output", output)[0] == 0
    if output == "clip.png":
        assert pictures("clip").shape == (10, 71, 103, 3)
    else:
        assert probe(output)[:2] == (103, 71)


def test_an_image_a_clip_and_a_clip_to_make_over_are_read_from_files(run, engines):
    engines(SINGLE)
    Image.new("RGB", (200, 100), (200, 40, 10)).save("red.png")
    assert run(*SMALL, "--output", "given.mp4", "--image", "red.png", "--condition", "red.png@5:0.5")[0] == 0
    assert run(*SMALL, "--output", "later.mp4", "--condition", "given.mp4@0")[0] == 0
    code, out, _ = run(*SMALL[:8], "--output", "over.mp4", "--video", "given.mp4", "--strength", "0.3")
    assert code == 0
    assert "9 frames" in out


def test_what_differs_from_the_given_media_is_noted_once_and_planned(run, engines):
    engines(SINGLE)
    Image.new("RGBA", (96, 96), (200, 40, 10, 99)).save("logo.png")
    said = ["what is transparent becomes black"]
    said.insert(0, "loses 32 of 96 pixels (33%) at the top and bottom to the shape of the video")
    code, out, err = run(*SMALL, "--image", "logo.png", "--condition", "logo.png@5", "--output", "a.mp4")
    assert code == 0
    assert [line for line in err.splitlines() if "logo" in line] == [f"note: logo.png: {line}" for line in said]
    code, out, err = run(*SMALL, "--image", "logo.png", "--plan")
    lines = out.splitlines()
    place = lines.index("condition: logo.png from frame 0, strength 1")
    assert lines[place + 1 : place + 3] == [f"  {line}" for line in said]
    assert re.fullmatch(r"images and clips: about \d+\.\d\d MB while they are read", lines[place + 3])
    assert "logo" not in err
    planned = json.loads(run(*SMALL, "--image", "logo.png", "--plan", "--json")[1])
    assert planned["given"][0]["remarks"] == said


def test_a_fit_shows_the_whole_image_or_makes_a_video_of_its_size(run, engines, diary):
    engines(SINGLE)
    Image.new("RGB", (64, 64), (255,) * 3).save("white.png")
    for fit, shade in (("crop", 1), ("pad", 1 / 3)):
        assert run(*SMALL, "--image", "white.png", "--fit", fit, "--output", f"{fit}.png")[0] == 0
        assert diary.fed("vae_encoder")[-1]["video"].mean() == pytest.approx(shade, abs=0.05)
    _, out, _ = run(*PROMPT, "--num-frames", "9", "--image", "white.png", "--fit", "size-from-image", "--plan")
    side = round((SINGLE.height * SINGLE.width) ** 0.5 / 32) * 32
    assert f"  gives the video its size: 64x64 becomes {side}x{side}" in out.splitlines()
    assert run(*SMALL, "--image", "white.png", "--fit", "size-from-image")[0] == 2


@pytest.mark.parametrize("option", ["--image", "--video", "--condition"])
def test_a_url_is_told_as_one(run, engines, option):
    engines(SINGLE)
    url = "https://example.org/fox.mp4"
    code, out, err = run(*SMALL, option, f"{url}@0" if option == "--condition" else url)
    assert (code, out) == (2, "")
    assert err.splitlines()[-1] == f"error: {url} is a URL - give a file; download it first"


def test_an_image_is_the_first_condition_wherever_it_stands(run, engines, diary):
    engines(SINGLE)
    for name, colour in (("black", 0), ("white", 255)):
        Image.new("RGB", (96, 64), (colour,) * 3).save(f"{name}.png")
    assert run(*SMALL, "--condition", "black.png@3", "--image", "white.png", "--output", "c.png")[0] == 0
    assert [round(float(fed["video"].mean())) for fed in diary.fed("vae_encoder")] == [1, -1]


@pytest.mark.parametrize("frames", [9, 16, 17])
def test_a_clip_to_make_over_sets_the_length_unless_it_is_said(run, engines, frames):
    engines(SINGLE)
    write_tensors(Path("clip.safetensors"), {"media": np.zeros((1, 3, frames, 64, 96), np.float32)})
    size = ("--height", "64", "--width", "96", "--video", "clip.safetensors")
    assert run(*PROMPT, *size, "--output", "whole.mp4")[0] == 0
    assert probe("whole.mp4")[2] == (frames - 1) // 8 * 8 + 1
    assert run(*PROMPT, *size, "--output", "part.mp4", "--num-frames", "9")[0] == 0
    assert probe("part.mp4")[2] == 9


def test_padding_takes_all_frames_of_a_clip_to_make_over_that_it_can(run, engines):
    engines(SINGLE)
    write_tensors(Path("clip.safetensors"), {"media": np.zeros((1, 3, 20, 70, 100), np.float32)})
    code, _, err = run(
        *PROMPT, "--height", 70, "--width", 100, "--pad", "--video", "clip.safetensors", "--output", "c.mp4"
    )
    assert code == 0, err
    assert probe("c.mp4")[:3] == (100, 70, 17)


# --- files between runs ---------------------------------------------------------------------------


@EVERY_VERSION
def test_a_run_kept_in_files_is_repeated_from_them(run, engines, version):
    engines(version)
    kept = [word for name in ("noise", "latents", "embeddings") for word in (f"--save-{name}", f"{name}.safetensors")]
    assert run(*SMALL, *kept, "--output", "first.png")[0] == 0
    given = ("--noise-file", "noise.safetensors", "--embeddings-file", "embeddings.safetensors")
    assert run(*SMALL[4:], *given, "--output", "again.png")[0] == 0
    code, out, _ = run("--latents", "latents.safetensors", "--noise-file", "noise.safetensors", "--output", "later.png")
    assert code == 0
    assert "9 frames" in out
    assert "seed 3" in out
    for name in ("again", "later"):
        np.testing.assert_array_equal(pictures(name), pictures("first"))


def test_latents_that_a_failing_decoder_left_are_decoded_later_at_their_frame_rate(run, engines, monkeypatch, tmp_path):
    engines(DEMO)

    def broken(feeds):
        return {"video": np.full_like(fake_stages.decode(feeds)["video"], np.nan)}

    with monkeypatch.context() as patch:
        patch.setitem(fake_stages.STAGES, "vae_decoder", broken)
        code, _, err = run(*SMALL, "--fps", "12", "--save-latents", "my kept.safetensors", "--output", "clip.mp4")
    assert (code, left_behind(tmp_path)) == (2, ["clip.mp4.unfinished", "my kept.safetensors"])
    assert re.search(r"\nerror: decode: .* that the vae_decoder computed are NaN \(vae_decoder on cpu in fp32\)", err)
    assert run("--latents", "my kept.safetensors")[0] == 0
    assert left_behind(tmp_path) == ["clip.mp4.unfinished", "my kept.safetensors", "my-kept-3.mp4"]
    assert probe("my-kept-3.mp4") == (96, 64, 9, 12)


def test_text_that_nothing_can_read_is_a_note_of_the_run_and_a_line_of_the_plan(run, engines):
    engines(DEMO)
    told = "of the prompt are unknown to the text encoder: '雪狐'"
    code, out, _ = run("雪狐", *SMALL[2:], "--plan")
    assert (code, told in out) == (0, True)
    code, _, err = run("雪狐", *SMALL[2:], "--output", "clip.mp4")
    assert (code, f"{told}; it cannot tell them apart, so describe them in English\n" in err) == (0, True)


# --- plans ----------------------------------------------------------------------------------------


@EVERY_VERSION
def test_a_plan_runs_nothing_and_writes_nothing(run, engines, diary, tmp_path, version):
    engines(version)
    Image.new("RGB", (96, 64)).save(tmp_path / "engines" / "image.png")
    wishes = (*SMALL, "--temporal-upscale", "--condition", "engines/image.png@3:0.5", "--output-dir", "videos")
    code, lines, _ = run(*wishes, "--plan")
    assert code == 0
    assert lines.startswith(f"{version.name}: 96x64, 17 frames")
    code, text, _ = run(*wishes, "--plan", "--json")
    told = json.loads(text)
    assert (code, told["version"], told["seed"]) == (0, version.name, 3)
    assert len(told["passes"]) == len(version.passes)
    assert {one["backend"] for one in told["components"].values()} == {"cpu"}
    assert (diary, left_behind(tmp_path)) == ([], [])


@pytest.mark.parametrize("how", [("--plan",), ("--plan", "--json"), ()], ids=str)
def test_a_plan_refuses_what_a_run_refuses(run, engines, diary, how):
    folder = engines(DEMO)
    for wish, message in (
        (("--height", "500"), "error: height must be a multiple of 32"),
        (("--image", "missing.png"), "error: cannot read missing.png"),
        (("--memory", "0.001"), "error: "),
        (("--output", "nowhere/fox.mp4"), "error: cannot write nowhere/fox.mp4"),
        (("--output", "fox.xyz"), "error: unknown output suffix"),
        (("--output", "fox.gif", "--fps", "60"), "error: .gif takes 1 to 50 frames a second"),
        (("--save-latents", "nowhere/kept.safetensors"), "error: cannot write nowhere"),
    ):
        code, out, err = run(*SMALL, *how, *wish)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert err.startswith(message)
    (folder / "vae_decoder.data").unlink()
    code, out, err = run(*SMALL, *how)
    assert (code, out) == (2, "")
    assert "vae_decoder.data is missing" in err
    assert diary == []


def test_a_prompt_stands_alone_or_is_an_option_and_not_both(run, engines):
    engines(DEMO)
    size = ("--height", "64", "--width", "96", "--num-frames", "9", "--seed", "3", "--plan")
    alone, long, short = (run(*how, *size) for how in (("a fox",), ("--prompt", "a fox"), ("-p", "a fox")))
    assert alone == long == short
    assert alone[0] == 0
    code, _, err = run("a fox", "--prompt", "a fox", *size)
    assert (code, err) == (2, "error: the prompt was given twice - leave --prompt out\n")


def test_about_names_the_program_and_every_backend(run):
    code, out, err = run("--about")
    assert (code, err) == (0, "")
    first, *backends = out.splitlines()
    assert first == f"ltx-run {__version__}"
    assert [line.partition(":")[0] for line in backends] == list(BACKENDS)
    assert f"cpu: onnxruntime {metadata.version('onnxruntime')}" in backends
    if find_spec("openvino") is not None:
        told = [line for line in backends if line.startswith("openvino")]
        assert len(told) == 3 and all(line.endswith(metadata.version("openvino")) for line in told)


def test_what_was_made_is_told_to_programs(run, engines, tmp_path):
    engines(DEMO)
    code, text, _ = run(*SMALL, "--output", "clip.mp4", "--json")
    told = json.loads(text)
    assert code == 0
    seconds = told.pop("seconds")
    assert set(seconds) == {"text", "denoise 1", "upscale", "denoise 2", "decode"}
    assert all(took >= 0 for took in seconds.values())
    names = ("text_encoder", "transformer", "upsampler", "vae_decoder")
    assert told == {
        "file": "clip.mp4",
        "width": 96,
        "height": 64,
        "frames": 9,
        "fps": 24.0,
        "seed": 3,
        "backends": dict.fromkeys(names, "cpu"),
        "remarks": {},
    }
    assert (tmp_path / "clip.mp4").is_file()


def test_a_plan_of_saved_latents_decodes_nothing(run, engines, diary, tmp_path):
    engines(DEMO)
    run(*SMALL, "--save-latents", "latents.safetensors", "--output", "clip.mp4")
    diary.clear()
    run("--latents", "latents.safetensors", "--plan", "--output", "later.mp4")
    assert (diary, left_behind(tmp_path)) == ([], ["clip.mp4", "latents.safetensors"])


# --- how it runs ----------------------------------------------------------------------------------


def test_a_version_folder_and_the_environment_name_the_engines_too(run, engines, monkeypatch, tmp_path):
    shutil.move(engines(DEMO), tmp_path / "moved")
    assert run(*SMALL, "--engines", "moved", "--output", "a.mp4")[0] == 0
    monkeypatch.setenv("LTX_ENGINES", "moved")
    assert run(*SMALL, "--output", "b.mp4")[0] == 0


@pytest.mark.parametrize("option", ["--version", "--ltxv-version"])
def test_of_several_versions_one_is_named_or_its_alias(run, engines, option):
    for version in (DEMO, VERSIONS["0.9.8-2b-distilled"]):
        engines(version)
    code, _, err = run(*SMALL)
    assert code == 2
    assert "choose one with --version: 0.9.8-2b-distilled, demo" in err
    assert run(*SMALL, option, "0.9.8-distilled", "--output", "c.mp4")[0] == 0


def test_a_prompt_beside_encoded_ones_is_told_to_have_no_effect(run, engines):
    engines(SINGLE)
    assert run(*SMALL, "--save-embeddings", "text.safetensors", "--output", "first.png")[0] == 0
    words = ("a dog", "--seed", "3", *SMALL[4:], "--embeddings-file", "text.safetensors", "--output", "second.png")
    code, _, err = run(*words)
    assert code == 0
    assert "note: the prompt only names the video: --embeddings-file holds encoded ones" in err
    np.testing.assert_array_equal(pictures("first"), pictures("second"))


def test_a_note_is_told_on_standard_error(run, engines):
    engines(DEMO)
    code, out, err = run(*SMALL, "--prompt", "a cat walks " * 90, "--output", "c.mp4")
    assert code == 0
    assert re.search(r"^note: the prompt 'a cat walks.* the model sees the first 256$", err, re.MULTILINE)
    assert "note" not in out


def test_names_of_files_need_not_be_text(run, engines, tmp_path):
    engines(DEMO)
    code, out, err = run(*SMALL, "--output", "a\udcff.mp4")
    assert (code, out[:10]) == (0, "a\\udcff.mp"), err


def test_help_answers_without_loading_what_a_run_needs():
    code = (
        "import sys; sys.argv = ['ltx-run', '--help']\n"
        "from ltx_runtime.cli import main as cli\n"
        "try: cli.main()\n"
        "except SystemExit as left: print(left.code, file=sys.stderr)\n"
        "print(*sys.modules, file=sys.stderr)"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    code, modules = ended.stderr.splitlines()[-2:]
    assert (code, ended.returncode) == ("0", 0)
    heavy = {"numpy", "av", "PIL", "onnxruntime", "sentencepiece", "safetensors", "torch"}
    assert {name.partition(".")[0] for name in modules.split()} & heavy == set()
    assert "--prompt" in ended.stdout


def test_the_line_at_the_end_names_every_stage_with_its_time_in_order(run, engines):
    engines(DEMO)
    _, out, _ = run(*SMALL, "--temporal-upscale", "--output", "c.mp4")
    stages = re.findall(r"([a-z][a-z 0-9]*?) \d+\.\d s", out.partition("seed 3; ")[2])
    assert stages == ["text", "denoise 1", "upscale", "denoise 2", "frame rate", "decode"]
