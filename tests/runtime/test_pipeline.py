"""Laws of the whole pipeline: a request is checked before anything is loaded, and stages run one at a time."""

from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
from fakes import stages as fake_stages
from fakes.encodings import places_of, timesteps_of
from fakes.runs import generate, make
from fakes.stages import ROPE, engines_of

from ltx_runtime.errors import LtxError
from ltx_runtime.planning.options import RunOptions
from ltx_runtime.planning.plan import plan
from ltx_runtime.planning.request import Condition, Request
from ltx_runtime.spec.presets import Schedule
from ltx_runtime.spec.versions import VERSIONS
from ltx_runtime.tensors import write_tensors
from ltx_runtime.text.tokenizer import Tokenizer

EVERY_VERSION = pytest.mark.parametrize("version", VERSIONS.values(), ids=VERSIONS)
TWO_PASSES = [version for version in VERSIONS.values() if len(version.passes) > 1]
EVERY_TWO_PASS_VERSION = pytest.mark.parametrize("version", TWO_PASSES, ids=lambda version: version.name)
DEMO = VERSIONS["demo"]
REQUEST = Request("a cat walks", "blurry", 64, 96, 17, 24.0, seed=7)


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "image.safetensors"
    write_tensors(path, {"media": np.full((1, 3, 1, 64, 96), 0.25, np.float32)})
    return path


def given(image, *frames):
    return replace(REQUEST, conditions=tuple(Condition(image, frame) for frame in frames))


def two(version):
    return len(version.passes) > 1


# --- every version --------------------------------------------------------------------------------


@EVERY_VERSION
def test_every_version_makes_the_frames_asked_for_and_announces_what_it_does(version, spiece, diary):
    made = make(engines_of(version, spiece), REQUEST)
    assert [frame.shape for frame in made.frames] == [(64, 96, 3)] * 17
    assert {frame.dtype for frame in made.frames} == {np.dtype(np.uint8)}
    steps = [len(one.sigmas) for one in plan(REQUEST, version).passes]
    denoised = {"denoise": steps[0]}
    if two(version):
        denoised = {"denoise 1": steps[0], "upscale": 1, "denoise 2": steps[1]}
    assert made.units == {name: [n, n] for name, n in ({"text": 1} | denoised | {"decode": 17}).items()}


@EVERY_VERSION
def test_one_stage_is_closed_before_the_next_is_opened(version, spiece, diary, image):
    make(engines_of(version, spiece), replace(given(image, 0, 3), temporal_upscale=True))
    marks = [note for note in diary if not note.startswith("run")]
    again = ["upsampler", "transformer"] * two(version)
    order = ["text_encoder", "vae_encoder", "transformer", *again, "temporal_upsampler", "vae_decoder"]
    assert marks == [f"{verb} {name}" for name in order for verb in ("open", "close")]


@EVERY_VERSION
def test_media_are_encoded_for_both_passes_in_one_opening_and_counted(version, spiece, diary, image):
    made = make(engines_of(version, spiece), given(image, 0, 3, 16))
    sizes = [(one.grid.height, one.grid.width) for one in plan(REQUEST, version).passes]
    assert [fed["video"].shape[3:] for fed in diary.fed("vae_encoder")] == [size for size in sizes for _ in range(3)]
    assert diary.opened().count("vae_encoder") == 1
    assert made.units["media"] == [3 * len(sizes), 3 * len(sizes)]
    assert list(made.units)[:2] == ["text", "media"]


@EVERY_VERSION
def test_a_prompt_alone_opens_no_encoder_and_one_pass_no_upsampler(version, spiece, diary):
    make(engines_of(version, spiece), replace(REQUEST, single_pass=True))
    assert diary.opened() == ["text_encoder", "transformer", "vae_decoder"]


@EVERY_VERSION
def test_a_folder_without_what_is_not_needed_makes_the_same_video(version, spiece, diary):
    request = replace(REQUEST, single_pass=True)
    optional = ("vae_encoder", "upsampler", "temporal_upsampler")
    whole, lacking = (make(engines_of(version, spiece, names), request) for names in ((), optional))
    np.testing.assert_array_equal(whole.video, lacking.video)


@EVERY_VERSION
def test_the_negative_prompt_is_encoded_only_where_cfg_will_use_it(version, spiece, diary):
    make(engines_of(version, spiece), REQUEST)
    uses_cfg = any(entry.cfg_scale > 1 for one in version.passes for entry in one.guidance)
    assert diary.count("run text_encoder with 1") == 1 + uses_cfg


@EVERY_VERSION
def test_the_same_seed_makes_the_same_video_and_another_seed_another(version, spiece, diary):
    engines = engines_of(version, spiece)
    first, again, other = (make(engines, replace(REQUEST, seed=seed)).video for seed in (7, 7, 8))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


@EVERY_VERSION
def test_the_prompt_matters_and_the_negative_prompt_exactly_where_cfg_is_on(version, spiece, diary):
    engines = engines_of(version, spiece)
    for change in ({}, {"prompt": "a red boat"}, {"negative_prompt": "jittery snow"}):
        make(engines, replace(REQUEST, **change))
    first, another_prompt, another_negative = (fed["latents"] for fed in diary.fed("vae_decoder"))
    assert not np.array_equal(first, another_prompt)
    assert np.array_equal(first, another_negative) == (not plan(REQUEST, version).uses_negative_prompt)


@EVERY_VERSION
def test_conditions_one_after_another_make_the_video_that_they_make_together(version, spiece, diary):
    engines = engines_of(version, spiece)
    together, after_another = (make(engines, REQUEST, low_memory=low).video for low in (False, True))
    np.testing.assert_allclose(after_another.astype(int), together, atol=1)
    rows = {note for note in diary if note.startswith("run transformer")}
    assert "run transformer with 1" in rows


@pytest.mark.parametrize(
    "change",
    [
        {"steps": 5},
        {"timesteps": (1.0, 0.5)},
        {"skip_final_steps": 2},
        {"stochastic": True},
        {"guidance_scale": 4.0},
        {"stg_scale": 2.0, "skip_blocks": (2,)},
        {"rescaling_scale": 0.2},
        {"stg_mode": "attention_skip"},
        {"stg_mode": "transformer_block"},
        {"skip_blocks": (0, 3)},
        {"cfg_star": True},
        {"single_pass": True},
        {"fps": 30.0},
        {"tone_map": 0.6},
        {"decode_timestep": 0.3},
        {"decode_noise_scale": 0.5},
    ],
    ids=str,
)
def test_every_wish_changes_the_video(change, spiece, diary):
    engines = engines_of(DEMO, spiece)
    request = replace(REQUEST, height=96, width=160)
    assert not np.array_equal(make(engines, request).video, make(engines, replace(request, **change)).video)


# --- refusals -------------------------------------------------------------------------------------


def refused(engines, request, diary, match, **options):
    """Checks that a request is refused in one sentence before anything is opened."""
    with pytest.raises(LtxError, match=match) as raised:
        make(engines, request, **options)
    assert "\n" not in str(raised.value)
    assert diary == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"height": 500}, "height must be a multiple of 32; got 500"),
        ({"width": 0}, "width must be a multiple of 32; got 0"),
        ({"num_frames": 24}, r"num-frames must be 8n\+1; got 24"),
        ({"fps": 0.0}, "fps must be a positive number; got 0"),
        ({"seed": -1}, "seed must be from 0"),
        ({"guidance_scale": 0.5}, "guidance-scale must be at least 1; got 0.5"),
        ({"image_noise_scale": 2.0}, "image-cond-noise-scale must be at least 0 and at most 1; got 2"),
    ],
    ids=str,
)
@EVERY_VERSION
def test_a_request_that_cannot_be_made_is_refused_before_anything_is_opened(version, change, message, spiece, diary):
    refused(engines_of(version, spiece), replace(REQUEST, **change), diary, message)


@pytest.mark.parametrize("name", ["text_encoder", "transformer", "vae_decoder"])
def test_a_graph_that_the_backend_lacks_is_said_before_the_first_stage(name, spiece, diary):
    engines = engines_of(DEMO, spiece)
    components = dict(engines.manifest.components)
    components[name] = replace(components[name], graphs={"bf16": "graph.onnx"})
    lacking = replace(engines, manifest=replace(engines.manifest, components=components))
    refused(lacking, REQUEST, diary, f"has no fp32 graph of {name}, which backend fake needs")


def test_an_encoder_that_was_not_exported_is_missed_as_soon_as_an_image_or_a_clip_is_given(spiece, diary, image):
    engines = engines_of(DEMO, spiece, ("vae_encoder",))
    match = "has no vae_encoder, which images and clips need - export the version again"
    refused(engines, given(image, 0), diary, match)
    refused(engines, replace(REQUEST, video=image, num_frames=1, single_pass=True, strength=0.5), diary, match)


@EVERY_TWO_PASS_VERSION
def test_an_upsampler_that_was_not_exported_is_missed_by_two_passes_only(version, spiece, diary):
    engines = engines_of(version, spiece, ("upsampler",))
    refused(engines, REQUEST, diary, "has no upsampler, which the second pass needs - add --single-pass, or export")
    assert len(make(engines, replace(REQUEST, single_pass=True)).frames) == 17


def test_a_temporal_upsampler_that_was_not_exported_is_missed_by_who_asks_for_it(spiece, diary):
    engines = engines_of(DEMO, spiece, ("temporal_upsampler",))
    match = "has no temporal_upsampler, which --temporal-upscale needs - export the version again"
    refused(engines, replace(REQUEST, temporal_upscale=True), diary, match)
    assert len(make(engines, REQUEST).frames) == 17


def test_media_are_read_before_anything_is_opened(spiece, diary, tmp_path, image):
    engines = engines_of(DEMO, spiece)
    refused(engines, given(tmp_path / "missing.png", 0), diary, "cannot read .*missing.png")
    refused(engines, given(image, 17), diary, "cannot begin at frame 17 of 17")


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_sink_that_fails_closes_the_stage(spiece, diary, error):
    @contextmanager
    def progress(name, total):
        yield lambda done: None

    def sink(frame):
        raise error

    with pytest.raises(error):
        generate(engines_of(DEMO, spiece), REQUEST, sink, progress, RunOptions("fake"))
    assert diary[-1] == "close vae_decoder"


# --- settings of the version folder ---------------------------------------------------------------


def test_the_schedule_of_the_checkpoint_replaces_that_of_the_version(spiece, diary):
    engines = engines_of(VERSIONS["0.9.0"], spiece)
    other = replace(engines, manifest=replace(engines.manifest, schedule=Schedule("Uniform")))
    assert not np.array_equal(make(engines, REQUEST).video, make(other, REQUEST).video)
    timesteps = [float(timesteps_of(fed["sinusoid"])[0, 0]) for fed in diary.fed("transformer")[-40:]]
    np.testing.assert_allclose(timesteps, [1 - i / 40 for i in range(40)], atol=1e-7)


def test_the_noise_levels_of_the_checkpoint_replace_those_of_the_version(spiece, diary):
    engines = engines_of(VERSIONS["0.9.6-distilled"], spiece)
    free = replace(engines, manifest=replace(engines.manifest, allowed_sigmas=()))
    request = replace(REQUEST, timesteps=(1.0, 0.5))
    refused(engines, request, diary, r"distilled for the timesteps 1, 0.9937.* got 0.5")
    assert len(make(free, request).frames) == 17


@pytest.mark.parametrize("causal", [False, True])
def test_the_positions_are_those_of_the_checkpoint(causal, spiece, diary):
    engines = engines_of(DEMO, spiece)
    make(replace(engines, manifest=replace(engines.manifest, causal_positions=causal)), REQUEST)
    frames = [0, 1, 9] if causal else [0, 8, 16]
    for fed in diary.fed("transformer"):
        cells = fed["latents"].shape[1] // len(frames)
        np.testing.assert_allclose(places_of(fed, ROPE)[:, 0] * 24, np.repeat(frames, cells), atol=1e-4)


def test_the_position_embedding_is_that_of_the_checkpoint(spiece, diary):
    engines = engines_of(DEMO, spiece)
    first = make(engines, REQUEST).video
    for rope in (replace(ROPE, frequencies=(1.0, 20.0)), replace(ROPE, max_position=(20.0, 1024.0, 2048.0))):
        other = replace(engines, manifest=replace(engines.manifest, rope=rope))
        assert not np.array_equal(first, make(other, REQUEST).video)


def test_a_prompt_longer_than_the_model_sees_is_noted(spiece, diary):
    engines, tokenizer = engines_of(DEMO, spiece), Tokenizer(spiece, 256)
    texts = {tokenizer.read(text).tokens: text for text in ("snow " * count for count in range(1, 400))}
    seen, longer = max(n for n in texts if n <= 256), min(n for n in texts if n > 256)
    for name in ("prompt", "negative_prompt"):
        assert make(engines, replace(REQUEST, **{name: texts[seen]})).notes == []
        (note,) = make(engines, replace(REQUEST, **{name: texts[longer]})).notes
        assert note.endswith(f"has {longer} tokens; the model sees the first 256")
    assert max(fed["ids"].shape[1] for fed in diary.fed("text_encoder")) == 256


def test_text_that_the_text_encoder_cannot_read_is_noted_and_encoded_all_the_same(spiece, diary):
    engines = engines_of(DEMO, spiece)
    for name, told in (("prompt", "prompt"), ("negative_prompt", "negative prompt")):
        (note,) = make(engines, replace(REQUEST, **{name: "雪"})).notes
        assert note.startswith(f"1 of 2 pieces of the {told} are unknown to the text encoder: '雪'; ")
    assert sum(2 in fed["ids"] for fed in diary.fed("text_encoder")) == 2  # once for each of the two videos


# --- pixels ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("offset", [0.05, 0.5, 0.95])
def test_pixels_are_the_floor_of_255_times_the_value(offset, spiece, diary, monkeypatch):
    levels = np.arange(17 * 64 * 96 * 3).reshape(1, 3, 17, 64, 96) % 255
    video = (2 * (levels + offset) / 255 - 1).astype(np.float32)
    monkeypatch.setitem(fake_stages.STAGES, "vae_decoder", lambda feeds: {"video": video})
    made = make(engines_of(VERSIONS["0.9.5"], spiece), REQUEST)
    np.testing.assert_array_equal(made.video, levels[0].transpose(1, 2, 3, 0))


@pytest.mark.parametrize(("value", "pixel"), [(-9.0, 0), (-1.0, 0), (1.0, 255), (1.5, 255), (300.0, 255)])
def test_values_outside_are_clamped(value, pixel, spiece, diary, monkeypatch):
    video = np.full((1, 3, 17, 64, 96), value, np.float32)
    monkeypatch.setitem(fake_stages.STAGES, "vae_decoder", lambda feeds: {"video": video})
    made = make(engines_of(VERSIONS["0.9.5"], spiece), REQUEST)
    np.testing.assert_array_equal(made.video, pixel)
