"""Laws of errors of ltx-run: one line with problem and advice, exit code 2, nothing opened, no file written."""

from pathlib import Path

import numpy as np
import pytest
from fakes.stages import CHANNELS, TEXT_CHANNELS
from PIL import Image

from ltx_runtime.media.video import save_video
from ltx_runtime.spec.versions import VERSIONS
from ltx_runtime.tensors import write_tensors

DEMO, SINGLE, DISTILLED = VERSIONS["demo"], VERSIONS["0.9.5"], VERSIONS["0.9.6-distilled"]
SMALL = ("--height", "64", "--width", "96", "--num-frames", "17", "--seed", "3")
PROMPT = ("--prompt", "a cat")


@pytest.fixture
def refused(run, tmp_path, diary):
    """Runs ltx-run, which must refuse; returns the message after `error: `."""

    def refused(*arguments):
        before = sorted(tmp_path.rglob("*"))
        sizes = () if "--latents" in arguments else SMALL  # they have no effect on saved latents
        code, out, err = run(*sizes, *arguments)
        assert (code, out) == (2, ""), err
        err = "".join(line for line in err.splitlines(True) if not line.startswith("note: "))
        assert err.startswith("error: ")
        assert err.endswith("\n")
        assert err.count("\n") == 1
        assert "Traceback" not in err
        assert sorted(tmp_path.rglob("*")) == before
        assert diary == []
        return err.removeprefix("error: ")

    return refused


@pytest.fixture
def media(tmp_path):
    """Writes good and bad images and clips to the folder of the run."""
    Image.new("RGB", (96, 64), (200, 40, 10)).save(tmp_path / "image.png")
    whole = (tmp_path / "image.png").read_bytes()
    frames = [np.full((64, 96, 3), 20 * shade, np.uint8) for shade in range(10)]
    save_video(frames, tmp_path / "clip.mp4", (64, 96), 24.0)
    film = (tmp_path / "clip.mp4").read_bytes()
    for name, content in (
        ("text.png", b"This is no picture."),
        ("text.mp4", b"This is no film."),
        ("empty.png", b""),
        ("empty.mp4", b""),
        ("half.png", whole[: len(whole) // 2]),
        ("half.mp4", film[: len(film) // 2]),
        ("text.safetensors", b"These are no tensors."),
    ):
        (tmp_path / name).write_bytes(content)
    (tmp_path / "folder.png").mkdir()


BAD_REQUESTS = [
    ((), "there is no prompt - give a prompt in quotes, or --embeddings-file FILE"),
    ((*PROMPT, "--height", "500"), "height must be a multiple of 32; got 500 - use 480 or 512"),
    ((*PROMPT, "--num-frames", "24"), "num-frames must be 8n+1; got 24 - use 17 or 25"),
    ((*PROMPT, "--steps", "0"), "steps must be"),
    ((*PROMPT, "--steps", "1001"), "steps must be"),
    ((*PROMPT, "--seed", "-1"), "seed must be"),
    ((*PROMPT, "--seed", 2**64), "seed must be"),
    ((*PROMPT, "--fps", "0"), "fps must be"),
    ((*PROMPT, "--fps", "nan"), "fps must be"),
    ((*PROMPT, "--timesteps", "1,x"), "timesteps must be comma-separated numbers; got '1,x'"),
    ((*PROMPT, "--timesteps", ","), "timesteps must be comma-separated numbers"),
    ((*PROMPT, "--timesteps", "0.5,0.7"), "timesteps must descend from at most 1 and stay above 0; got 0.5, 0.7"),
    ((*PROMPT, "--timesteps", "1,0.5,0"), "timesteps must descend from at most 1 and stay above 0; got 1, 0.5, 0"),
    ((*PROMPT, "--timesteps", "2,1"), "timesteps must descend from at most 1"),
    ((*PROMPT, "--timesteps", "1,nan"), "timesteps must descend from at most 1"),
    ((*PROMPT, "--timesteps", "1,0.5", "--steps", "3"), "steps is 3, but the number of timesteps is 2"),
    ((*PROMPT, "--skip-initial-steps", "2"), "skipping initial steps needs a video to start from"),
    ((*PROMPT, "--skip-final-steps", "40"), "40"),
    ((*PROMPT, "--strength", "0.5"), "needs a video to start from - add --video"),
    ((*PROMPT, "--guidance-scale", "0.5"), "guidance-scale must be at least 1"),
    ((*PROMPT, "--stg-mode", "residual"), "stg-mode residual does nothing"),
    ((*PROMPT, "--stg-mode", "nothing"), "unknown stg-mode 'nothing'"),
    ((*PROMPT, "--skip-blocks", "1,two"), "skip-blocks must be comma-separated whole numbers"),
    ((*PROMPT, "--skip-blocks", "28"), "skip-blocks must be from 0 to 27; got 28"),
    ((*PROMPT, "--rng", "cuda"), "unknown rng 'cuda' - use one of numpy, torch, diffusers"),
    ((*PROMPT, "--memory", "0"), "memory must be a positive number of GB; got 0"),
    ((*PROMPT, "--memory", "nan"), "memory must be a positive number of GB; got nan"),
    ((*PROMPT, "--memory", "1e300"), "memory must be a positive number of GB"),
    ((*PROMPT, "--memory", "0.001"), "GB"),
    ((*PROMPT, "--crf", "52"), "crf must be from 0 to 51; got 52"),
    ((*PROMPT, "--backend", "gpu"), "unknown backend 'gpu' - use one of auto, cpu"),
    ((*PROMPT, "--version", "0.9.2"), "unknown version '0.9.2'"),
    ((*PROMPT, "--version", "0.9.1"), "no engines for 0.9.1"),
    ((*PROMPT, "--engines", "missing"), "missing is not a folder"),
    ((*PROMPT, "--output", "clip.avi"), "unknown output suffix '.avi'"),
    ((*PROMPT, "--output", "missing/clip.mp4"), "cannot write missing/clip.mp4"),
    ((*PROMPT, "--output", "a.mp4", "--output-dir", "b"), "--output and --output-dir cannot be combined"),
    ((*PROMPT, "--output-dir", "engines/0.9.5/manifest.json"), "manifest.json"),
    ((*PROMPT, "--save-latents", "missing/x.safetensors"), "cannot write missing/x.safetensors"),
    ((*PROMPT, "--save-noise", "missing/x.safetensors"), "cannot write missing/x.safetensors"),
    ((*PROMPT, "--save-embeddings", "missing/x.safetensors"), "cannot write missing/x.safetensors"),
    ((*PROMPT, "--save-latents", "engines"), "cannot write engines"),
    ((*PROMPT, "--save-noise", ""), "cannot write"),
    (("--prompt", "a \udcff cat"), "prompt"),
    ((*PROMPT, "--height", "71", "--pad", "--output", "clip.mp4"), ".mp4"),
    ((*PROMPT, "--width", "71", "--pad"), ".mp4"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD_REQUESTS, ids=str)
def test_what_cannot_be_made_is_refused(refused, engines, arguments, message):
    engines(SINGLE)
    assert message in refused(*arguments)


BAD_MEDIA = [
    (("--image", "missing.png"), "cannot read missing.png: no such file or directory - check the path"),
    (("--image", "folder.png"), "cannot read folder.png"),
    (("--image", "text.png"), "text.png is damaged or not an image or clip of a known format"),
    (("--image", "empty.png"), "empty.png is damaged or not an image or clip of a known format"),
    (("--image", "half.png"), "half.png is damaged or not an image or clip of a known format"),
    (("--image", "text.safetensors"), "text.safetensors is damaged or not an image or clip of a known format"),
    (("--condition", "text.mp4@0"), "text.mp4 is damaged or not an image or clip of a known format"),
    (("--condition", "empty.mp4@0"), "empty.mp4 is damaged or not an image or clip of a known format"),
    (("--condition", "half.mp4@0"), "half.mp4 is damaged or not an image or clip of a known format"),
    (("--condition", "clip.mp4@3"), "a clip must begin at a multiple of 8; got frame 3"),
    (("--condition", "clip.mp4@17"), "cannot begin at frame 17 of 17"),
    (("--condition", "image.png@17"), "cannot begin at frame 17 of 17 - use 0 to 16"),
    (("--condition", "image.png@-1"), "the frame of a condition must be at least 0; got -1"),
    (("--condition", "image.png"), "a condition is FILE@FRAME or FILE@FRAME:STRENGTH; got 'image.png'"),
    (("--condition", "image.png@"), "a condition is FILE@FRAME"),
    (("--condition", "@0"), "a condition is FILE@FRAME"),
    (("--condition", "image.png@first"), "a condition is FILE@FRAME"),
    (("--condition", "image.png@0.5"), "a condition is FILE@FRAME"),
    (("--condition", "image.png@0:1.5"), "the strength of a condition must be from 0 to 1; got '1.5'"),
    (("--condition", "image.png@0:-0.1"), "the strength of a condition must be from 0 to 1"),
    (("--condition", "image.png@0:nan"), "the strength of a condition must be from 0 to 1"),
    (("--condition", "image.png@0:half"), "the strength of a condition must be from 0 to 1; got 'half'"),
    (("--condition", "image.png@0:"), "the strength of a condition must be from 0 to 1"),
    (("--image", "image.png", "--image-cond-noise-scale", "-1"), "image-cond-noise-scale must be at least 0"),
    (("--video", "missing.mp4"), "cannot read missing.mp4: no such file or directory"),
    (("--video", "text.mp4"), "text.mp4 is damaged or not an image or clip"),
    (("--video", "half.mp4"), "half.mp4 is damaged or not an image or clip"),
    (("--video", "clip.mp4"), "clip.mp4 has 10 frames, but the new video needs 17 - use --num-frames 9 or fewer"),
    (("--video", "image.png", "--num-frames", "9"), "image.png has 1 frames, but the new video needs 9"),
    (("--video", "clip.mp4", "--num-frames", "9", "--strength", "2"), "strength must be at least 0 and at most 1"),
    (("--video", "clip.mp4", "--num-frames", "9", "--strength", "nan"), "strength must be at least 0"),
    (("--video", "clip.mp4", "--num-frames", "9", "--strength", "1"), "use a smaller --strength"),
    (("--video", "clip.mp4", "--strength", "0.5", "--skip-initial-steps", "3"), "set the same thing"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD_MEDIA, ids=str)
def test_images_and_clips_that_cannot_be_used_are_refused(refused, engines, media, arguments, message):
    engines(SINGLE)
    assert message in refused(*PROMPT, *arguments)


@pytest.mark.parametrize("steps", ["5", "20"])
def test_steps_that_a_distilled_version_does_not_know_are_refused(refused, engines, steps):
    engines(DISTILLED)
    assert "distilled for the timesteps 1, 0.9937" in refused(*PROMPT, "--steps", steps)


def test_timesteps_that_a_distilled_version_does_not_know_are_refused(refused, engines):
    engines(DISTILLED)
    assert "got 0.5" in refused(*PROMPT, "--timesteps", "1,0.5")


def test_two_passes_make_no_clip_over(refused, engines, media):
    engines(DEMO)
    assert "runs in one pass only - add --single-pass" in refused(*PROMPT, "--video", "clip.mp4", "--num-frames", "9")


@pytest.mark.parametrize(
    ("component", "arguments", "advice"),
    [
        ("vae_encoder", ("--image", "image.png"), "images and clips need - export the version again"),
        ("upsampler", ("--height", "96"), "add --single-pass, or export the version again with --upscaler FILE"),
        ("temporal_upsampler", ("--temporal-upscale",), "export the version again with --temporal-upscaler FILE"),
    ],
)
def test_what_was_not_exported_is_missed_before_anything_runs(refused, engines, media, component, arguments, advice):
    engines(DEMO, (component,))
    said = refused(*PROMPT, *arguments)
    assert f"has no {component}" in said
    assert advice in said
    assert f"has no {component}" in refused(*PROMPT, *arguments, "--output-dir", "videos")


@pytest.mark.parametrize("option", ["--image", "--video", "--embeddings-file", "--noise-file"])
def test_a_folder_for_a_video_that_is_not_made_is_not_made_either(refused, engines, option):
    engines(SINGLE)
    said = refused(*with_prompt(option, "missing.safetensors"), "--output-dir", "videos/new")
    assert said.startswith("cannot read missing.safetensors")


# --- damaged files --------------------------------------------------------------------------------

FILES = {
    "--noise-file": {"pass1/initial": np.ones((1, CHANNELS, 3, 2, 3), np.float32)},
    "--initial-latents-file": {"initial_latents": np.ones((1, 18, CHANNELS), np.float32)},
    "--embeddings-file": {
        "prompt_embeds": np.ones((1, 5, TEXT_CHANNELS), np.float32),
        "prompt_attention_mask": np.ones((1, 5), np.int64),
        "negative_prompt_embeds": np.ones((1, 5, TEXT_CHANNELS), np.float32),
        "negative_prompt_attention_mask": np.ones((1, 5), np.int64),
    },
    "--latents": {"pass1": np.ones((1, CHANNELS, 3, 2, 3), np.float32)},
    "--image": {"media": np.ones((1, 3, 1, 64, 96), np.float32)},
    "--video": {"media": np.ones((1, 3, 17, 64, 96), np.float32)},
}
EVERY_FILE = pytest.mark.parametrize("option", FILES)


def with_prompt(option, path):
    """Returns an option and its file, with the prompt that all but saved latents need."""
    return (*(() if option == "--latents" else PROMPT), option, path)


def whole(path, option):
    write_tensors(path, FILES[option])
    return path.read_bytes()


def header(text):
    return len(text).to_bytes(8, "little") + text


DAMAGES = {
    "empty": lambda content: b"",
    "text": lambda content: b"These are no tensors.",
    "header_cut": lambda content: content[:20],
    "data_cut": lambda content: content[:-1],
    "longer": lambda content: content + b"more",
    "huge_header": lambda content: b"\xff" * 8 + content[8:],
    "no_json": lambda content: header(b"{" * 100) + content[-400:],
    "a_list": lambda content: header(b"[]      "),
    "no_tensors": lambda content: header(b"{}      "),
}


@EVERY_FILE
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_refused_by_every_option_that_reads_one(refused, engines, option, damage):
    engines(SINGLE)
    path = Path("some.safetensors")
    path.write_bytes(DAMAGES[damage](whole(path, option)))
    assert "some.safetensors" in refused(*with_prompt(option, path))


@EVERY_FILE
def test_a_missing_file_or_a_folder_is_refused_by_every_option_that_reads_one(refused, engines, option):
    engines(SINGLE)
    Path("folder.safetensors").mkdir()
    assert "cannot read missing.safetensors: no such file" in refused(*with_prompt(option, "missing.safetensors"))
    assert "cannot read folder.safetensors: is a directory" in refused(*with_prompt(option, "folder.safetensors"))


@EVERY_FILE
def test_a_file_of_other_tensors_is_refused_by_every_option_that_reads_one(refused, engines, option):
    engines(SINGLE)
    write_tensors(Path("some.safetensors"), {"something": np.ones(3, np.float32)})
    assert "some.safetensors" in refused(*with_prompt(option, "some.safetensors"))


@EVERY_FILE
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_numbers_that_are_not_finite_are_refused_by_every_option_that_reads_a_file(refused, engines, option, value):
    engines(SINGLE)
    first, *others = FILES[option]
    broken = FILES[option][first].copy()
    broken.flat[3] = value
    write_tensors(Path("some.safetensors"), {name: FILES[option][name] for name in others} | {first: broken})
    assert "some.safetensors" in refused(*with_prompt(option, "some.safetensors"))


@pytest.mark.parametrize(
    ("option", "value"), [("--height", "128"), ("--steps", "9"), ("--save-latents", "z"), ("--prompt", "a fox")]
)
def test_options_that_saved_latents_make_meaningless_are_refused_instead_of_ignored(refused, engines, option, value):
    engines(SINGLE)
    named = "the prompt" if option == "--prompt" else option
    assert f"{named} has no effect on saved latents" in refused("--latents", "some.safetensors", option, value)


def test_latents_of_another_version_are_refused(refused, run, engines, tmp_path, diary):
    engines(DEMO)
    assert run(*SMALL, *PROMPT, "--save-latents", "latents.safetensors", "--output", "clip.mp4")[0] == 0
    diary.clear()
    engines(SINGLE)
    said = refused("--latents", "latents.safetensors", "--version", "0.9.5")
    assert said == "latents.safetensors is of demo, not 0.9.5 - add --version demo\n"
