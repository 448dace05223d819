"""Laws of the results of a run: the second pass, sizes, lengths and frame rates, and effects of images and clips."""

from dataclasses import replace

import numpy as np
import pytest
from fakes import stages as fake_stages
from fakes.runs import make
from fakes.stages import CHANNELS, ROPE, WIDTH, engines_of, posterior

from ltx_runtime.errors import LtxError
from ltx_runtime.noise.noise import SeededNoise
from ltx_runtime.planning.plan import plan
from ltx_runtime.planning.request import Condition, Request
from ltx_runtime.spec.geometry import coords_of, latents_of
from ltx_runtime.spec.versions import VERSIONS
from ltx_runtime.tensors import read_tensors, write_tensors
from ltx_runtime.vae.resize import resize_bilinear

EVERY_VERSION = pytest.mark.parametrize("version", VERSIONS.values(), ids=VERSIONS)
TWO_PASSES = [version for version in VERSIONS.values() if len(version.passes) > 1]
EVERY_TWO_PASS_VERSION = pytest.mark.parametrize("version", TWO_PASSES, ids=lambda version: version.name)
DEMO, SINGLE = VERSIONS["demo"], VERSIONS["0.9.5"]
REQUEST = Request("a cat walks", "blurry", 96, 160, 17, 24.0, seed=7)


def waves(frames, height=96, width=160):
    """Returns a clip of smooth, moving colours in [-1, 1]."""
    channel, time, row, column = np.meshgrid(*map(np.arange, (3, frames, height, width)), indexing="ij")
    return np.sin(0.05 * (channel + 1) * row + 0.03 * column + 0.2 * time).astype(np.float32)[None]


@pytest.fixture
def clip(tmp_path):
    """Writes a prepared clip of a number of frames."""

    def made(frames):
        path = tmp_path / f"clip{frames}.safetensors"
        write_tensors(path, {"media": waves(frames)})
        return path

    return made


def kept(path, *names):
    """Returns the latents that a run saved."""
    return [read_tensors(path, names)[name] for name in names]


# --- two passes -----------------------------------------------------------------------------------


@EVERY_TWO_PASS_VERSION
@pytest.mark.parametrize(("height", "width", "first"), [(96, 160, (32, 96)), (64, 64, (32, 32)), (160, 128, (96, 64))])
def test_the_second_pass_has_twice_the_first_s_size_and_frames_have_the_size_asked_for(
    version, height, width, first, spiece, diary, tmp_path
):
    path = tmp_path / "latents.safetensors"
    made = make(engines_of(version, spiece), replace(REQUEST, height=height, width=width), save_latents=path)
    one, two = kept(path, "pass1", "pass2")
    assert one.shape == (1, CHANNELS, 3, first[0] // 32, first[1] // 32)
    assert two.shape == (1, CHANNELS, 3, first[0] // 16, first[1] // 16)
    (latents,) = (fed["latents"] for fed in diary.fed("vae_decoder"))
    assert latents.shape == two.shape
    assert {frame.shape for frame in made.frames} == {(height, width, 3)}


@EVERY_TWO_PASS_VERSION
def test_the_second_pass_begins_from_the_upsampled_first_with_its_statistics_and_noise_of_its_own(
    version, spiece, diary, tmp_path
):
    path = tmp_path / "latents.safetensors"
    make(engines_of(version, spiece), REQUEST, save_latents=path)
    (before,) = kept(path, "pass1")
    np.testing.assert_array_equal(diary.fed("upsampler")[0]["latents"], before)

    upsampled = before.astype(np.float64).repeat(2, 3).repeat(2, 4)
    axes, options = (2, 3, 4), {"ddof": 1, "keepdims": True}
    expected = (upsampled - upsampled.mean(axes, keepdims=True)) / upsampled.std(axes, **options)
    expected = expected * before.std(axes, **options) + before.mean(axes, keepdims=True)
    one, two = plan(REQUEST, version).passes
    level = two.sigmas[0]
    expected = (1 - level) * expected + level * SeededNoise(7).draw("pass2/initial", upsampled.shape)
    begun = latents_of(diary.fed("transformer")[len(one.sigmas)]["latents"][:1], two.grid)
    np.testing.assert_allclose(begun, expected, atol=1e-5)


@EVERY_TWO_PASS_VERSION
def test_frames_of_the_second_pass_s_size_are_resized_bilinearly(version, spiece, diary, monkeypatch):
    pixels = waves(17, 64, 192)
    monkeypatch.setitem(fake_stages.STAGES, "vae_decoder", lambda feeds: {"video": pixels})
    made = make(engines_of(version, spiece), REQUEST)
    expected = 255 * resize_bilinear(pixels[0] / 2 + 0.5, 96, 160).transpose(1, 2, 3, 0)
    above = expected - made.video
    assert above.min() > -1e-3
    assert above.max() < 1 + 1e-3


def test_a_grid_too_small_for_two_passes_is_refused(spiece, diary):
    with pytest.raises(LtxError, match="height must be at least 64 for two passes; got 32 - use 64"):
        make(engines_of(DEMO, spiece), replace(REQUEST, height=32))
    assert diary == []


@EVERY_TWO_PASS_VERSION
def test_a_first_pass_of_one_latent_which_has_no_statistics_is_refused(version, spiece, diary):
    """The second pass of the official pipeline is not finite in this case."""
    request = replace(REQUEST, height=64, width=64, num_frames=1)
    with pytest.raises(LtxError, match="--single-pass"):
        make(engines_of(version, spiece), request)
    assert diary == []
    assert len(make(engines_of(version, spiece), replace(request, single_pass=True)).frames) == 1


# --- size and length ------------------------------------------------------------------------------


@EVERY_VERSION
def test_a_padded_video_is_the_middle_of_the_next_larger_one(version, spiece, diary):
    engines = engines_of(version, spiece)
    small = make(engines, replace(REQUEST, height=91, width=151, num_frames=12, pad=True)).video
    large = make(engines, REQUEST).video
    assert small.shape == (12, 91, 151, 3)
    np.testing.assert_array_equal(small, large[:12, 2:93, 4:155])


@EVERY_VERSION
def test_a_size_that_needs_no_padding_is_not_padded(version, spiece, diary):
    engines = engines_of(version, spiece)
    plain, padded = (make(engines, replace(REQUEST, pad=pad)).video for pad in (False, True))
    np.testing.assert_array_equal(plain, padded)


@EVERY_VERSION
@pytest.mark.parametrize("pad", [0, 3])
def test_doubling_the_frame_rate_makes_twice_the_frames_less_one_in_the_same_time(version, pad, spiece, diary):
    request = replace(REQUEST, num_frames=17 - pad, pad=bool(pad), temporal_upscale=True)
    made = make(engines_of(version, spiece), request)
    frames = 2 * (17 - pad) - 1
    assert [frame.shape for frame in made.frames] == [(96, 160, 3)] * frames
    assert made.units["decode"] == [frames, frames]
    assert made.units["frame rate"] == [1, 1]
    assert plan(request, version).ending.fps == 48
    (before,), (after,) = diary.fed("temporal_upsampler"), diary.fed("vae_decoder")
    assert after["latents"].shape[2] == 2 * before["latents"].shape[2] - 1
    grid = plan(request, version).passes[0].grid
    rotation = ROPE.rotation(coords_of(grid, 24.0, causal=version.causal_positions), WIDTH)
    for name, expected in rotation._asdict().items():  # the model gets the requested frame rate
        np.testing.assert_array_equal(diary.fed("transformer")[0][name], expected)


# --- images and clips -----------------------------------------------------------------------------


@EVERY_VERSION
def test_what_is_given_wholly_at_the_start_is_what_is_shown_there(version, spiece, diary, clip, tmp_path):
    path = tmp_path / "latents.safetensors"
    request = replace(REQUEST, conditions=(Condition(clip(9), 0),), image_noise_scale=0.0, single_pass=True)
    make(engines_of(version, spiece), request, save_latents=path)
    (latents,) = kept(path, "pass1")
    mean = posterior({"video": waves(9)})["posterior"][:, :CHANNELS]
    np.testing.assert_allclose(latents[:, :, :2], mean, atol=1e-6)
    assert np.abs(latents[:, :, 2] - mean[:, :, 1]).max() > 0.1


@EVERY_VERSION
def test_tokens_of_keyframes_leave_before_decoding_and_matter(version, spiece, diary, clip):
    engines = engines_of(version, spiece)
    request = replace(REQUEST, conditions=(Condition(clip(1), 3), Condition(clip(9), 8)))
    plain, made = make(engines, REQUEST), make(engines, request)
    assert made.video.shape == plain.video.shape
    one = plan(REQUEST, version).passes[0].grid
    assert diary.fed("transformer")[-1]["latents"].shape[1] > diary.fed("vae_decoder")[-1]["latents"][0, 0].size
    cells = one.rows * one.columns
    extra = [fed["latents"].shape[1] - one.tokens for fed in diary.fed("transformer")]
    assert {0, 3 * cells} <= set(extra)


@pytest.mark.parametrize("field", ["frame", "strength", "image_noise_scale", "sample_posterior"])
def test_place_strength_noise_and_sampling_of_an_image_change_the_video(field, spiece, diary, clip):
    engines, path = engines_of(SINGLE, spiece), clip(1)
    place = {"frame": 3, "strength": 1.0}
    options = {"sample_posterior": True} if field == "sample_posterior" else {}
    base = replace(REQUEST, conditions=(Condition(path, **place),))
    other = {
        "frame": replace(base, conditions=(Condition(path, **place | {"frame": 5}),)),
        "strength": replace(base, conditions=(Condition(path, **place | {"strength": 0.5}),)),
        "image_noise_scale": replace(base, image_noise_scale=0.5),
        "sample_posterior": base,
    }[field]
    make(engines, base)
    make(engines, other, **options)
    first, changed = (fed["latents"] for fed in diary.fed("vae_decoder"))
    assert not np.array_equal(first, changed)


def test_the_fewer_steps_of_a_clip_to_make_over_are_left_the_nearer_it_stays(spiece, diary, clip, tmp_path):
    engines, path, saved = engines_of(SINGLE, spiece), clip(17), tmp_path / "latents.safetensors"
    mean = posterior({"video": waves(17)})["posterior"][:, :CHANNELS]
    distances = []
    for strength in (0.9, 0.5, 0.1):
        made = make(engines, replace(REQUEST, video=path, strength=strength), save_latents=saved)
        distances.append(np.linalg.norm(kept(saved, "pass1")[0] - mean))
        assert made.units["media"] == [1, 1]
        assert made.units["denoise"] == [int(40 * strength)] * 2
    assert distances == sorted(distances, reverse=True)
    assert distances[2] < distances[0] / 2


def test_a_clip_may_be_made_over_with_images_in_it(spiece, diary, clip):
    request = replace(REQUEST, video=clip(17), strength=0.5, conditions=(Condition(clip(1), 0), Condition(clip(1), 3)))
    made = make(engines_of(SINGLE, spiece), request)
    assert made.video.shape == (17, 96, 160, 3)
    assert made.units["media"] == [3, 3]
    assert [fed["video"].shape[2] for fed in diary.fed("vae_encoder")] == [1, 1, 17]


@pytest.mark.parametrize("frames", [1, 9, 16])
def test_a_clip_to_make_over_that_is_too_short_is_refused_before_anything_is_opened(frames, spiece, diary, clip):
    with pytest.raises(LtxError, match=f"has {frames} frames, but the new video needs 17 - use --num-frames"):
        make(engines_of(SINGLE, spiece), replace(REQUEST, video=clip(frames), strength=0.5))
    assert diary == []


@pytest.mark.parametrize("version", TWO_PASSES, ids=lambda version: version.name)
def test_an_image_is_shown_by_both_passes_at_their_sizes(version, spiece, diary, clip, tmp_path):
    path = tmp_path / "latents.safetensors"
    request = replace(REQUEST, conditions=(Condition(clip(1), 0),), image_noise_scale=0.0)
    make(engines_of(version, spiece), request, save_latents=path)
    for latents, one in zip(kept(path, "pass1", "pass2"), plan(request, version).passes, strict=True):
        sized = resize_bilinear(waves(1), one.grid.height, one.grid.width)
        mean = posterior({"video": sized})["posterior"][:, :CHANNELS]
        np.testing.assert_allclose(latents[:, :, :1], mean, atol=1e-6)
