"""Laws of numbers that are odd: NaN ends a run where it comes up, told with its place; what shows nothing is told."""

import itertools
import json
import shutil
import time
from dataclasses import replace

import numpy as np
import pytest
from fakes import stages as fake_stages
from fakes.requests import SMALL
from fakes.stages import TEXT_CHANNELS, engines_of
from PIL import Image

from ltx_runtime import Condition, LtxError, Pipeline
from ltx_runtime.outputs.frames import BLACK, CONSTANT, FROZEN, Watched
from ltx_runtime.sessions.numbers import NotFiniteError, finite, is_finite
from ltx_runtime.spec.versions import VERSIONS
from ltx_runtime.text.embeddings import Text, faults_of
from ltx_runtime.vae.saved_latents import write_latents

DEMO, SINGLE = VERSIONS["demo"], VERSIONS["0.9.5"]
ADVICE = r'use --backend cpu \(in Python: backend="cpu"\), which computes in fp32'


def spoiled(stage, value, at=1):
    """Returns a stage whose outputs hold a value in one place from a call on, counted from 1."""
    original, calls = fake_stages.STAGES[stage], itertools.count(1)

    def run(feeds):
        outputs = {name: array.copy() for name, array in original(feeds).items()}
        if next(calls) >= at:
            for array in outputs.values():
                array.reshape(-1)[array.size // 2] = value
        return outputs

    return run


# --- NaN and infinity -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stage", "at", "where"),
    [
        ("text_encoder", 1, "text"),
        ("vae_encoder", 1, "media, clip 1 of 2"),
        ("vae_encoder", 2, "media, clip 2 of 2"),
        ("transformer", 1, "denoise 1, step 1 of 8"),
        ("transformer", 3, "denoise 1, step 3 of 8"),
        ("transformer", 9, "denoise 2, step 1 of 2"),
        ("upsampler", 1, "upscale"),
        ("temporal_upsampler", 1, "frame rate"),
        ("vae_decoder", 1, "decode"),
    ],
)
@pytest.mark.parametrize(("value", "word"), [(np.nan, "NaN"), (np.inf, "infinite"), (-np.inf, "infinite")])
def test_a_number_that_is_not_finite_is_told_with_its_stage_and_what_computed_it(
    pipe, monkeypatch, tmp_path, stage, at, where, value, word
):
    Image.new("RGB", (96, 64)).save(tmp_path / "image.png")
    monkeypatch.setitem(fake_stages.STAGES, stage, spoiled(stage, value, at))
    video = pipe("a fox", **SMALL, conditions=(Condition(tmp_path / "image.png"),), temporal_upscale=True)
    with pytest.raises(NotFiniteError) as caught:
        list(video)
    problem = str(caught.value)
    assert problem.startswith(f"{where}: ")
    assert f"the {stage}" in problem and f" are {word}" in problem
    assert f"({stage} on fake in fp32) - " in problem
    assert problem.endswith(f"run: ltx-export check {pipe.engines.folder}, or {caught.value.advice}")


@pytest.mark.parametrize("low_memory", [False, True])
def test_of_guidance_the_prediction_that_is_not_finite_is_named(spiece, diary, monkeypatch, low_memory):
    original, calls = fake_stages.STAGES["transformer"], itertools.count()

    def negative_is_nan(feeds):
        velocity = original(feeds)["velocity"]
        if not low_memory:
            velocity[1] = np.nan
        elif next(calls) % 2:
            velocity[0] = np.nan
        return {"velocity": velocity}

    monkeypatch.setitem(fake_stages.STAGES, "transformer", negative_is_nan)
    with Pipeline(engines_of(SINGLE, spiece), backend="fake") as pipe:
        video = pipe("a fox", **SMALL, guidance_scale=3.0, stg_scale=0.0, steps=2, low_memory=low_memory)
        with pytest.raises(
            NotFiniteError, match=r"step 1 of 2: .* the transformer computed with the negative prompt are"
        ):
            list(video)


def test_guidance_that_divides_by_zero_is_told_as_guidance(spiece, diary, monkeypatch):
    zeros = lambda feeds: {"velocity": np.zeros_like(feeds["latents"])}  # noqa: E731
    monkeypatch.setitem(fake_stages.STAGES, "transformer", zeros)
    with Pipeline(engines_of(SINGLE, spiece), backend="fake") as pipe:
        video = pipe("a fox", **SMALL, stg_scale=1.0, rescaling_scale=0.5, steps=2)
        with pytest.raises(
            NotFiniteError,
            match=r"step 1 of 2: .* that guidance made of constant or too large velocities are NaN",
        ):
            list(video)


def test_upscaled_latents_without_contrast_are_told_as_such(pipe, monkeypatch):
    flat = lambda feeds: {"upsampled": np.ones_like(feeds["latents"]).repeat(2, 3).repeat(2, 4)}  # noqa: E731
    monkeypatch.setitem(fake_stages.STAGES, "upsampler", flat)
    with pytest.raises(NotFiniteError, match=r"upscale: .* the statistics of the upscaled latents gave are NaN"):
        list(pipe("a fox", **SMALL))


@pytest.mark.parametrize("whole", [False, True])
def test_a_sample_of_the_media_that_is_infinite_is_told_of_the_encoder(pipe, monkeypatch, tmp_path, whole):
    """Means and deviations are finite numbers, but their sum with noise is not."""
    image = tmp_path / "image.png"
    Image.new("RGB", (96, 64)).save(image)
    original = fake_stages.STAGES["vae_encoder"]
    huge = lambda feeds: {"posterior": np.full_like(original(feeds)["posterior"], np.finfo(np.float32).max)}  # noqa: E731
    monkeypatch.setitem(fake_stages.STAGES, "vae_encoder", huge)
    media = {"video": image, "single_pass": True, "num_frames": 1} if whole else {"conditions": (Condition(image),)}
    with np.errstate(over="ignore"), pytest.raises(NotFiniteError) as caught:
        list(pipe("a fox", **SMALL | media, sample_posterior=True))
    problem = str(caught.value)
    assert problem.startswith("media: ") and "that sampling from the encoded media gave are infinite" in problem
    assert "(vae_encoder on fake in fp32)" in problem and "transformer" not in problem


def test_commands_in_messages_quote_the_folder(spiece, diary, monkeypatch, tmp_path):
    engines = engines_of(DEMO, spiece)
    folder = shutil.copytree(engines.folder, tmp_path / "a folder of $HOME")
    engines, command = replace(engines, folder=folder), f"ltx-export check '{folder}'"
    monkeypatch.setitem(fake_stages.STAGES, "transformer", spoiled("transformer", np.nan))
    with Pipeline(engines, backend="fake") as pipe, pytest.raises(NotFiniteError) as caught:
        list(pipe("a fox", **SMALL))
    assert caught.value.command == command
    monkeypatch.setitem(fake_stages.STAGES, "transformer", lambda feeds: {"velocity": 0 * feeds["latents"]})
    notes = []
    with Pipeline(engines, backend="fake", note=notes.append) as pipe:
        list(pipe("a fox", **SMALL, rescaling_scale=1.0))
    assert any(note.endswith(f" - run: {command}") for note in notes)


def test_a_step_that_is_not_finite_is_not_kept_and_the_run_goes_on_before_it(pipe, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("ltx_runtime.outputs.unfinished.SHARE_OF_TIME", float("inf"))
    whole = pipe("a fox", **SMALL).save("whole.mp4").read_bytes()
    with monkeypatch.context() as patch:
        patch.setitem(fake_stages.STAGES, "transformer", spoiled("transformer", np.nan, 3))
        with pytest.raises(NotFiniteError):
            pipe("a fox", **SMALL).save("fox.mp4", unfinished=lambda path: None)
    assert pipe.resume("fox.mp4").save("fox.mp4").read_bytes() == whole


def test_other_backends_than_the_exact_one_are_told_to_be_tried_against_it(spiece, diary, monkeypatch):
    engines = engines_of(DEMO, spiece)
    monkeypatch.setitem(fake_stages.STAGES, "text_encoder", spoiled("text_encoder", np.nan))
    with Pipeline(engines, backend="fake") as pipe, pytest.raises(LtxError, match=ADVICE):
        list(pipe("a fox", **SMALL))


def test_finite_numbers_pass_even_if_their_sum_does_not():
    large = np.full((4, 5), np.finfo(np.float32).max, np.float32)
    assert is_finite(large) and finite(large, "x") is large
    for value, rest in itertools.product([np.nan, np.inf, -np.inf], [0.0, 1e38, np.inf]):
        for place in range(6):
            array = np.zeros(6, np.float32)
            array[-1 - place], array[place] = rest, value
            assert not is_finite(array)
    assert is_finite(np.zeros((0,), np.float32))


def test_looking_at_the_latents_of_the_usual_size_takes_no_noticeable_time():
    tokens = np.ones((1, 13_376, 128), np.float32)  # of 704x1216x121, whose steps take seconds
    started = time.process_time()
    for _ in range(20):
        finite(tokens, "x")
    assert (time.process_time() - started) / 20 < 0.02


# --- text and velocity that say nothing -----------------------------------------------------------

FOUR = np.arange(4 * TEXT_CHANNELS, dtype=np.float32).reshape(1, 4, TEXT_CHANNELS)
MASK = np.array([[1, 1, 1, 0]])


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        (Text(FOUR, MASK), []),
        (Text(FOUR, MASK, FOUR, MASK), []),
        (Text(FOUR[:, :1], MASK[:, :1]), []),  # one token
        (Text(np.concatenate([FOUR[:, :1], 0 * FOUR[:, 1:]], 1), MASK), []),
        (Text(0 * FOUR, MASK), ["zero_text"]),
        (Text(0 * FOUR[:, :1], MASK[:, :1]), ["zero_text"]),
        (Text(FOUR, np.array([[1, 0, 0, 0]])), []),
        (Text(FOUR, MASK, 0 * FOUR, MASK), ["zero_text"]),
        (Text(0 * FOUR + 1, MASK), ["constant_text"]),
        (Text(0 * FOUR + FOUR[:, :1], MASK), ["constant_text"]),
        (Text(0 * FOUR + 1, MASK, 0 * FOUR, MASK), ["constant_text", "zero_text"]),
    ],
)
def test_text_that_says_nothing_is_noticed_whatever_is_padding(text, keys):
    assert list(faults_of(text)) == keys


@pytest.mark.parametrize(
    ("stage", "outputs", "key"),
    [
        (
            "text_encoder",
            lambda feeds: {"text": np.zeros((*feeds["ids"].shape, TEXT_CHANNELS), np.float32)},
            "zero_text",
        ),
        (
            "text_encoder",
            lambda feeds: {"text": np.ones((*feeds["ids"].shape, TEXT_CHANNELS), np.float32)},
            "constant_text",
        ),
        ("transformer", lambda feeds: {"velocity": np.zeros_like(feeds["latents"])}, "zero_velocity"),
    ],
)
def test_networks_that_compute_nothing_are_told_once_and_the_video_is_made(
    spiece, diary, monkeypatch, stage, outputs, key
):
    monkeypatch.setitem(fake_stages.STAGES, stage, outputs)
    notes = []
    with Pipeline(engines_of(DEMO, spiece), backend="fake", note=notes.append) as pipe:
        video = pipe("a fox", **SMALL, rescaling_scale=1.0)
        assert len(list(video)) == SMALL["num_frames"]
    assert list(video.remarks) == [key]
    assert f"({stage} on fake in fp32)" in video.remarks[key]
    assert [note for note in notes if note.startswith(video.remarks[key])] == [
        f"{video.remarks[key]} - run: ltx-export check {pipe.engines.folder}"
    ]


# --- frames that show nothing ---------------------------------------------------------------------


def fault_of(frames):
    watched = Watched()
    for frame in frames:
        watched.see(np.asarray(frame, np.uint8))
    return watched.fault


def drawn(*shape, low=0, high=256):
    return np.random.default_rng(7).integers(low, high, (*shape, 3))


def with_pixel(frames, place, value):
    changed = frames.copy()
    changed[place] = value
    return changed


BLACK_VIDEO = np.zeros((9, 64, 96, 3))
STILL = np.repeat(drawn(1, 64, 96), 9, 0)
FAULTY = {
    "black": (BLACK_VIDEO, BLACK),
    "black with the noise of rounding": (drawn(9, 64, 96, high=2), BLACK),
    "one black frame": (BLACK_VIDEO[:1], BLACK),
    "grey": (BLACK_VIDEO + 128, CONSTANT),
    "one white frame": (BLACK_VIDEO[:1] + 255, CONSTANT),
    "colours that change": (BLACK_VIDEO + np.arange(9)[:, None, None, None] * 20, CONSTANT),
    "red": (BLACK_VIDEO + np.array([200, 0, 0]), CONSTANT),
    "frozen": (STILL, FROZEN),
    "two frozen frames": (STILL[:2], FROZEN),
    "a small one": (np.repeat(drawn(1, 3, 5), 2, 0), FROZEN),
}
LEGITIMATE = {
    "any": drawn(9, 64, 96),
    "one image": drawn(1, 64, 96),
    "a dark night": drawn(9, 64, 96, high=4),
    "one star": with_pixel(BLACK_VIDEO, (8, 33, 50, 2), 2),
    "one star in one frame": with_pixel(BLACK_VIDEO[:1], (0, 63, 95, 0), 2),
    "a slow scene": with_pixel(STILL, (8, 63, 95, 1), 255 - STILL[8, 63, 95, 1]),
    "a fade from black": BLACK_VIDEO + np.arange(9)[:, None, None, None] * drawn(1, 64, 96, high=10),
    "a fade to white": 255 - np.arange(9)[::-1, None, None, None] * drawn(1, 64, 96, high=10),
    "a flash": with_pixel(STILL, 4, 255),
    "grey with one pixel": with_pixel(BLACK_VIDEO + 128, (0, 17, 31, 0), 129),
    "an image that moves later": np.concatenate([STILL[:8], drawn(1, 64, 96, high=9)]),
}


@pytest.mark.parametrize("name", FAULTY)
def test_videos_that_show_nothing_are_noticed(name):
    frames, fault = FAULTY[name]
    assert fault_of(frames) == fault


@pytest.mark.parametrize("name", LEGITIMATE)
def test_videos_that_show_something_are_not_accused(name):
    assert fault_of(LEGITIMATE[name]) is None


def test_a_frame_that_is_used_again_by_its_decoder_is_not_taken_for_a_frozen_one():
    watched, frame = Watched(), np.zeros((64, 96, 3), np.uint8)
    for shade in range(3):
        frame[:] = drawn(64, 96) // (shade + 1)
        watched.see(frame)
    assert watched.fault is None
    assert Watched().fault is None


@pytest.mark.parametrize(
    ("value", "key"), [(-1.0, "black"), (0.0, "constant"), (1.0, "constant")], ids=["black", "grey", "white"]
)
def test_a_video_that_shows_nothing_is_made_and_told_of_on_both_streams(
    run, engines, monkeypatch, tmp_path, value, key
):
    engines(SINGLE)

    def decode(feeds):
        return {"video": np.full_like(fake_stages.decode(feeds)["video"], value)}

    monkeypatch.setitem(fake_stages.STAGES, "vae_decoder", decode)
    words = ("a fox", "--height", "64", "--width", "96", "--num-frames", "9", "--steps", "2", "--seed", "3")
    code, out, err = run(*words, "--output", "fox.mp4", "--json")
    assert code == 0
    assert (tmp_path / "fox.mp4").exists()
    assert list(json.loads(out)["remarks"]) == [key]
    assert f"note: {json.loads(out)['remarks'][key]} - run: ltx-export check " in err
    (tmp_path / "p.txt").write_text("a fox\n")
    code, out, _ = run("--prompts", "p.txt", *words[1:], "--json")
    assert (code, list(json.loads(out)["remarks"])) == (0, [key])
    assert (
        json.loads((tmp_path / "p.results.jsonl").read_text().splitlines()[-1])["remarks"] == json.loads(out)["remarks"]
    )


@pytest.mark.parametrize("num_frames", [1, 9, 25])
@pytest.mark.parametrize("shade", [0, 3, 128, 255])
def test_a_video_of_a_still_image_is_not_accused(pipe, tmp_path, num_frames, shade):
    Image.new("RGB", (96, 64), (shade,) * 3).save(tmp_path / "still.png")
    size = SMALL | {"num_frames": num_frames, "single_pass": num_frames == 1}
    video = pipe("nothing moves", **size, conditions=(Condition(tmp_path / "still.png"),))
    list(video)
    assert video.remarks == {}


def test_latents_that_were_saved_are_looked_at_as_well(pipe, tmp_path, monkeypatch):
    video = pipe("a fox", **SMALL)
    saved = pipe.decode(write_latents(tmp_path / "x.safetensors", {"pass1": video.latents()}, video.ending))
    list(saved)
    assert saved.remarks == {}
    with monkeypatch.context() as patch:
        patch.setitem(
            fake_stages.STAGES, "vae_decoder", lambda feeds: {"video": 0 * fake_stages.decode(feeds)["video"]}
        )
        list(saved)
    assert list(saved.remarks) == ["constant"]
