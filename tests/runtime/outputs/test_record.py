"""Laws of the record in a video: others can read it, it holds all that was asked for, and makes the video again."""

import json
import os
from dataclasses import fields, replace
from pathlib import Path

import av
import numpy as np
import pytest
from fakes.requests import FILES, REQUESTS, with_files_in
from fakes.stages import CHANNELS, engines_of
from hypothesis import given
from PIL import Image

from ltx_runtime.errors import LtxError
from ltx_runtime.folder.manifest import describe_files, write_manifest
from ltx_runtime.folder.reading import read_manifest
from ltx_runtime.media.comments import ascii_of
from ltx_runtime.media.video import save_video
from ltx_runtime.outputs.record import OPTIONS, parse_record, read_record, record_of
from ltx_runtime.pipeline import Pipeline
from ltx_runtime.planning.options import RunOptions
from ltx_runtime.planning.request import Condition, Request, resolved
from ltx_runtime.spec.versions import VERSIONS
from ltx_runtime.tensors import write_tensors

DEMO, SINGLE = VERSIONS["demo"], VERSIONS["0.9.5"]
PROMPT = 'Лиса "狐" \\ 🦊\n läuft\t'
SMALL = ("--seed", "3", "--height", "64", "--width", "96", "--num-frames", "9")
EVERY_OUTPUT = pytest.mark.parametrize("output", ["clip.mp4", "clip.webm", "clip.gif", "clip.png"])


def target_of(output):
    return Path(output.removesuffix(".png"))


def content(target):
    return [path.read_bytes() for path in (sorted(target.iterdir()) if target.is_dir() else [target])]


def stored(target):
    """Returns the text that other programs find in a video."""
    if target.is_dir():
        with Image.open(target / "frame_0003.png") as picture:
            return picture.text["Comment"]
    if target.suffix == ".gif":
        with Image.open(target) as picture:
            return picture.info["comment"].decode("ascii")
    with av.open(str(target)) as container:
        return next(text for name, text in container.metadata.items() if name.lower() == "comment")


@EVERY_OUTPUT
def test_other_programs_find_how_a_video_was_made_and_from_makes_it_again(run, engines, tmp_path, output):
    engines(SINGLE)
    Image.new("RGB", (200, 100), (200, 40, 10)).save("red 狐.png")
    write_tensors(Path("noise.safetensors"), {"initial_latents": np.ones((1, 2 * 2 * 3, CHANNELS), np.float32)})
    asked = (PROMPT, *SMALL, "--condition", "red 狐.png@3:0.5", "--steps", "7", "--fps", "12.5", "--crf", "20")
    asked += ("--negative-prompt", "snow", "--initial-latents-file", "noise.safetensors", "--memory", "2")
    asked += ("--rng", "torch")
    assert run(*asked, "--output", output)[0] == 0
    record = json.loads(stored(target_of(output)))
    assert record["version"] == "0.9.5"
    assert record["request"] | {"prompt": PROMPT, "seed": 3, "height": 64, "fps": 12.5, "steps": 7} == record["request"]
    assert record["request"]["conditions"] == [{"media": {"path": "red 狐.png"}, "frame": 3, "strength": 0.5}]
    assert record["options"]["rng"] == "torch"
    assert set(record["inputs"]) == {"red 狐.png", "noise.safetensors"}
    assert {"text_encoder", "vae_encoder", "transformer", "vae_decoder"} == set(record["weights"])
    before = content(target_of(output))
    code, _, err = run("--from", str(target_of(output)), "--output", output, "--overwrite")
    assert code == 0, err
    assert content(target_of(output)) == before
    assert "first video" not in err


@EVERY_OUTPUT
def test_without_metadata_a_video_tells_nothing(run, engines, output):
    engines(SINGLE)
    assert run("secret plans", *SMALL, "--no-metadata", "--output", output)[0] == 0
    assert all(b"secret" not in raw and b"ltx-engines" not in raw for raw in content(target_of(output)))
    code, _, err = run("--from", str(target_of(output)))
    assert code == 2
    assert err.endswith(
        "does not say how it was made - give a video that ltx-run made from a prompt, and without --no-metadata\n"
    )


def test_a_recorded_video_is_changed_by_what_is_typed(run, engines, tmp_path):
    engines(SINGLE)
    assert run("a cat", *SMALL, "--fps", "12", "--output", "cat.mp4")[0] == 0
    assert run("--from", "cat.mp4", "--seed", "4", "--output", "other.mp4")[0] == 0
    assert run("--from", "cat.mp4", "a dog", "--duration", "1.5", "--steps", "5")[0] == 0
    request = read_record(tmp_path / "a-dog-3.mp4").request
    assert (request.prompt, request.num_frames, request.fps, request.steps, request.seed) == ("a dog", 17, 12, 5, 3)
    before = replace(read_record(tmp_path / "cat.mp4").request, seed=4)
    assert read_record(tmp_path / "other.mp4").request == before


def test_what_is_typed_counts_even_as_a_default_and_replaces_files_that_would_hide_it(run, engines, tmp_path):
    engines(SINGLE)
    kept = ("--save-embeddings", "text.safetensors", "--save-noise", "noise.safetensors")
    assert run("a cat", *SMALL, *kept, "--output", "kept.gif")[0] == 0
    files = ("--embeddings-file", "text.safetensors", "--noise-file", "noise.safetensors")
    odd = ("--crf", "20", "--rng", "torch", "--fit", "pad", "--vae-tiling", "--pad")
    assert run(*SMALL, *files, *odd, "--output", "odd.gif")[0] == 0
    assert set(read_record("odd.gif").options) == {"crf", "rng", "tiled", "embeddings", "noise"}
    usual = ("--crf", "29", "--rng", "numpy", "--fit", "crop", "--no-vae-tiling", "--no-pad")
    assert run("--from", "odd.gif", "a dog", "--seed", "9", *usual, "--output", "plain.gif")[0] == 0
    assert run("a dog", *SMALL, "--seed", "9", "--output", "direct.gif")[0] == 0
    assert content(Path("plain.gif")) == content(Path("direct.gif"))


def test_a_folder_of_frames_is_named_as_it_was_typed_or_by_a_frame(run, engines, tmp_path):
    engines(SINGLE)
    Image.new("RGB", (96, 64)).save("image.png")
    assert run("a cat", *SMALL, "--image", "image.png", "--output", "cat.png")[0] == 0
    for number, name in enumerate(("cat", "cat.png", "cat/frame_0005.png")):
        code, _, err = run("--from", name, "--output", f"again{number}.png")
        assert code == 0, err
        assert content(Path(f"again{number}")) == content(Path("cat"))


def test_only_files_that_are_used_are_read_again(run, engines, tmp_path):
    engines(SINGLE)
    text = json.dumps({"ltx-engines": "1", "version": "0.9.5", "inputs": {"/dev/zero": "0"}})
    save_video([np.zeros((64, 96, 3), np.uint8)], tmp_path / "clip.webm", (64, 96), 24.0, comment=text)
    assert read_record(tmp_path / "clip.webm").inputs == {}


def test_what_is_another_than_the_first_time_is_told(run, engines, tmp_path):
    folder = engines(SINGLE)
    Image.new("RGB", (96, 64)).save("image.png")
    assert run("a cat", *SMALL, "--image", "image.png", "--output", "cat.mp4")[0] == 0
    Image.new("RGB", (96, 64), (9, 9, 9)).save("image.png")
    manifest = read_manifest(folder)
    for name in manifest.components["transformer"].files():
        (folder / name).write_bytes(b"a fine-tune")
    write_manifest(folder, replace(manifest, files=describe_files({name: folder / name for name in manifest.files})))
    code, _, err = run("--from", "cat.mp4", "--output", "again.mp4")
    assert code == 0
    assert "note: image.png is not what it was for the first video" in err
    assert "note: transformer is another one than for the first video" in err
    assert "vae_decoder is another one" not in err


def test_a_video_can_be_moved_together_with_its_images(run, engines, tmp_path):
    engines(SINGLE)
    (tmp_path / "work" / "in").mkdir(parents=True)
    (tmp_path / "work" / "out").mkdir()
    Image.new("RGB", (96, 64)).save(tmp_path / "work" / "in" / "image.png")
    assert run("a cat", *SMALL, "--image", "work/in/image.png", "--output", "work/out/cat.mp4")[0] == 0
    before = content(tmp_path / "work" / "out" / "cat.mp4")
    (tmp_path / "work").rename(tmp_path / "moved")
    assert run("--from", "moved/out/cat.mp4", "--output", "moved/out/again.mp4")[0] == 0
    assert content(tmp_path / "moved" / "out" / "again.mp4") == before


@EVERY_OUTPUT
def test_links_and_bytes_in_names_do_not_keep_a_video_from_being_made_again(run, engines, tmp_path, output):
    engines(SINGLE)
    (tmp_path / "disk" / "videos").mkdir(parents=True)
    (tmp_path / "videos").symlink_to("disk/videos")
    Image.new("RGB", (96, 64)).save("caf\udce9.png")
    (tmp_path / "link.png").symlink_to("caf\udce9.png")
    for image in ("caf\udce9.png", "videos/../../link.png", str(tmp_path / "link.png")):
        asked = ("a cat", *SMALL, "--image", image, "--overwrite", "--output", f"videos/{output}")
        code, _, err = run(*asked)
        assert code == 0, err
        target = target_of(f"videos/{output}")
        before = content(target)
        target.rename(target.with_stem("moved"))
        (tmp_path / "moved").unlink(missing_ok=True)
        (tmp_path / "moved").symlink_to(target.with_stem("moved"))
        code, _, err = run("--from", "moved", "--output", f"videos/{output}", "--overwrite")
        assert (code, "first video" in err) == (0, False), err
        assert content(target) == before
        for path in [*target.iterdir(), *target.with_stem("moved").iterdir()] if target.is_dir() else []:
            path.unlink()
        for path in (target, target.with_stem("moved")):
            path.rmdir() if path.is_dir() else path.unlink()


def test_a_video_made_from_pictures_in_memory_says_so(spiece, diary, tmp_path):
    picture = np.zeros((64, 96, 3), np.uint8)
    with Pipeline(engines_of(DEMO, spiece), backend="fake") as pipe:
        request = Request("a cat", height=64, width=96, num_frames=9, conditions=(Condition(picture),))
        path = pipe(request).save(tmp_path / "clip.mp4")
        with pytest.raises(LtxError, match="pictures in memory cannot be kept in a file to go on from - save them"):
            pipe(request).save(tmp_path / "kept.mp4", unfinished=lambda path: None)
    with pytest.raises(LtxError, match="made from pictures in memory, which no file holds - type the options instead"):
        read_record(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Returns a folder for videos, with the files that REQUESTS name."""
    folder = tmp_path_factory.mktemp("records") / "videos"
    for name in FILES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(os.fsencode(name))
    return folder


@given(request=REQUESTS)
def test_every_request_comes_back_from_its_record(folder, request):
    asked = resolved(with_files_in(folder, request), SINGLE)
    text = record_of(asked, RunOptions(crf=7, tiled=True), SINGLE, {"transformer": "12"}, folder / "clip.mp4", "1")
    recorded = parse_record(text, folder / "clip.mp4")
    expected = Request(**{one.name: getattr(asked, one.name) for one in fields(Request)})
    if expected.negative_prompt == SINGLE.negative_prompt:
        expected = replace(expected, negative_prompt=None)
    assert recorded.request == expected
    assert (recorded.version, recorded.options) == ("0.9.5", {"crf": 7, "tiled": True})
    assert recorded.weights == {"transformer": "12"}
    assert recorded.changed_inputs() == []
    assert text.encode()
    assert json.loads(ascii_of(text)) == json.loads(text)


def test_every_option_is_recorded_or_known_to_leave_the_pixels_alone():
    without_effect = {"cache", "overwrite", "metadata"}
    saves = {"save_embeddings", "save_latents", "save_noise"}
    assert {*OPTIONS} | without_effect | saves == {one.name for one in fields(RunOptions)}


DAMAGES = [
    *("", "{}", "[]", "null", "text", "[" * 10_000, '{"ltx-engines": "1"}'),
    *('{"ltx-engines": "1", "version": "0.9.5", "request": 3}', '{"ltx-engines": "1", "version": "9"}'),
    '{"ltx-engines": "1", "version": "0.9.5", "request": {"unknown": 3}}',
    '{"ltx-engines": "1", "version": "0.9.5", "request": {"seed": "three"}}',
    '{"ltx-engines": "1", "version": "0.9.5", "request": {"conditions": [3]}}',
    '{"ltx-engines": "1", "version": "0.9.5", "request": {"conditions": [{"frame": 1}]}}',
    '{"ltx-engines": "1", "version": "0.9.5", "request": {"preset": {"passes": [[1]]}}}',
    '{"ltx-engines": "1", "version": "0.9.5", "options": {"save_latents": "/etc/passwd"}}',
    '{"ltx-engines": "1", "version": "0.9.5", "options": {"crf": []}}',
    '{"ltx-engines": "1", "version": "0.9.5", "inputs": 3}',
]


@pytest.mark.parametrize("text", DAMAGES, ids=lambda text: text[:80])
def test_a_record_that_cannot_be_used_is_refused_in_one_sentence(tmp_path, text):
    frames = [np.zeros((64, 96, 3), np.uint8)]
    path = save_video(frames, tmp_path / "clip.webm", (64, 96), 24.0, comment=text)
    with pytest.raises(LtxError, match=r"does not say how it was made|cannot be used: ") as refused:
        read_record(path)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["missing.mp4", "folder", "text.mp4", "half.mp4", "image.png"])
def test_a_file_without_a_record_is_refused_by_from(run, engines, tmp_path, name):
    engines(SINGLE)
    (tmp_path / "folder").mkdir()
    (tmp_path / "text.mp4").write_text("This is no film.")
    Image.new("RGB", (96, 64)).save(tmp_path / "image.png")
    whole = save_video([np.zeros((64, 96, 3), np.uint8)], tmp_path / "whole.mp4", (64, 96), 24.0, comment="{}")
    (tmp_path / "half.mp4").write_bytes(whole.read_bytes()[:200])
    code, out, err = run("--from", name)
    assert (code, out, err.count("\n")) == (2, "", 1)
