"""Laws of the stages, with sessions made of functions."""

from dataclasses import replace

import numpy as np
import pytest
from fakes import session_of

from ltx_runtime.components import text_encoder, transformer, vae_decoder
from ltx_runtime.errors import LtxError
from ltx_runtime.geometry import Grid, coords_of, latents_of
from ltx_runtime.noise import NoiseStream
from ltx_runtime.passes import Guidance
from ltx_runtime.pipeline import (
    Plan,
    Request,
    Text,
    decode_frames,
    encode_prompt,
    make_latents,
    plan,
    velocity_function,
)
from ltx_runtime.schedule import linear_quadratic
from ltx_runtime.tokenizer import Tokenizer
from ltx_runtime.versions import VERSIONS

EVERY_VERSION = pytest.mark.parametrize("version", VERSIONS.values(), ids=VERSIONS)
CHANNELS, TEXT_CHANNELS, LAYERS = 4, 6, 3
GRID = Grid(2, 2, 3)
REQUEST = Request("a cat", "blurry", 64, 96, 9, 24.0, seed=7)
NOISE_MAPS_091 = {2: (14, 2), 4: (12, 4), 6: (10, 8)}
FOUR_KINDS = [
    Guidance(),
    Guidance(3.0, cfg_star=True),
    Guidance(1.0, 2.0, 0.7, (1,)),
    Guidance(3.0, 1.0, 0.7, (0, 2)),
]


def drawn(seed, *shape):
    return np.random.RandomState(seed).standard_normal(shape).astype(np.float32)


def text_of(prompts):
    """Different embeddings and masks for every prompt."""
    mask = (np.arange(5) <= np.arange(2, 2 + prompts)[:, None]).astype(np.int64)
    return Text(drawn(3, prompts, 5, TEXT_CHANNELS), mask)


def one_row(latents, timestep, coords, text, text_mask, skip):
    """A transformer of one row (N, C): every input and every skipped layer matters."""
    said = (text * text_mask[:, None]).sum() / text_mask.sum()
    where = np.sin(coords.sum(0))[:, None]
    kept = (skip * [1, 10, 100]).sum() / 111
    return (np.tanh(latents + said * where) * (1 + timestep[0]) * (0.5 + kept)).astype(np.float32)


def by_rows(feeds):
    skips = feeds["skip_mask"].T if "skip_mask" in feeds else np.ones((len(feeds["text"]), LAYERS), np.float32)
    names = ("latents", "timestep", "coords", "text", "text_mask")
    return {"velocity": np.stack([one_row(*row) for row in zip(*(feeds[n] for n in names), skips, strict=True)])}


def by_hand(guidance, latents, sigma, coords, text):
    """The official formulas on rows that are computed one after another."""

    def velocity(prompt, skipped=()):
        skip = np.array([layer not in skipped for layer in range(LAYERS)], np.float32)
        timestep = np.array([sigma], np.float32)
        given = latents[0], timestep, coords[0], text.embeddings[prompt], text.mask[prompt], skip
        return one_row(*given).astype(np.float64)

    c = guided = velocity(0)
    if guidance.cfg_scale > 1:
        u = velocity(1)
        u = u * (c * u).sum() / (u * u).sum() if guidance.cfg_star else u
        guided = u + guidance.cfg_scale * (c - u)
    if guidance.stg_scale > 0:
        guided = guided + guidance.stg_scale * (c - velocity(0, guidance.skip_blocks))
        if guidance.rescale != 1:
            guided = guided * (guidance.rescale * c.std(ddof=1) / guided.std(ddof=1) + 1 - guidance.rescale)
    return guided[None]


@pytest.mark.parametrize("guidance", FOUR_KINDS, ids=["none", "cfg", "stg", "cfg_and_stg"])
def test_one_batch_gives_what_separate_rows_and_the_formulas_give(guidance):
    latents, coords, text = drawn(1, 1, GRID.tokens, CHANNELS), coords_of(GRID, 24, causal=True), text_of(2)
    session = session_of(transformer(CHANNELS, TEXT_CHANNELS, LAYERS), by_rows)
    made = velocity_function(session, text, coords, (guidance,))(latents, 0.8)
    assert (made.dtype, made.shape) == (np.float32, latents.shape)
    np.testing.assert_allclose(made, by_hand(guidance, latents, 0.8, coords, text), rtol=1e-4, atol=1e-5)
    assert len(session.runner.fed) == 1


@pytest.mark.parametrize(
    ("guidance", "prompts"), list(zip(FOUR_KINDS, ([0], [0, 1], [0, 0], [0, 1, 0]), strict=True)), ids=str
)
def test_rows_are_positive_then_negative_then_perturbed_and_only_the_last_skips(guidance, prompts):
    text, coords = text_of(2), coords_of(GRID, 24, causal=False)
    latents = drawn(1, 1, GRID.tokens, CHANNELS)
    session = session_of(transformer(CHANNELS, TEXT_CHANNELS, LAYERS), by_rows)
    velocity_function(session, text, coords, (guidance,))(latents, 0.8)
    (feeds,) = session.runner.fed
    np.testing.assert_array_equal(feeds["text"], text.embeddings[prompts])
    np.testing.assert_array_equal(feeds["text_mask"], text.mask[prompts])
    np.testing.assert_array_equal(feeds["timestep"], np.full((len(prompts), 1), 0.8, np.float32))
    for row in range(len(prompts)):
        np.testing.assert_array_equal(feeds["latents"][row], latents[0])
        np.testing.assert_array_equal(feeds["coords"][row], coords[0])
    expected = np.ones((LAYERS, len(prompts)), np.float32)
    expected[list(guidance.skip_blocks), -1] = 0
    np.testing.assert_array_equal(feeds["skip_mask"], expected)


def test_a_transformer_without_skip_mask_is_not_fed_one():
    session = session_of(transformer(CHANNELS, TEXT_CHANNELS), by_rows)
    coords = coords_of(GRID, 24, causal=True)
    velocity_function(session, text_of(2), coords, (Guidance(3.0),))(drawn(1, 1, GRID.tokens, CHANNELS), 0.5)
    assert "skip_mask" not in session.runner.fed[0]


def test_stg_on_a_transformer_that_can_not_skip_is_no_silent_nothing():
    session = session_of(transformer(CHANNELS, TEXT_CHANNELS), by_rows)
    coords = coords_of(GRID, 24, causal=True)
    with pytest.raises((LtxError, ValueError)):
        velocity_function(session, text_of(1), coords, (FOUR_KINDS[2],))(drawn(1, 1, GRID.tokens, CHANNELS), 0.5)


def towards(data):
    """A transformer whose velocity, for every row, leads straight to `data` (N, C)."""
    return lambda feeds: {"velocity": (feeds["latents"] - data) / feeds["timestep"][..., None]}


def session_for(version, data):
    stg_layers = version.transformer.layers if version.uses_stg else 0
    return session_of(transformer(CHANNELS, TEXT_CHANNELS, stg_layers), towards(data))


@EVERY_VERSION
def test_a_transformer_that_knows_the_data_is_led_to_it_by_every_version(version):
    data = drawn(2, GRID.tokens, CHANNELS)
    planned = plan(REQUEST, version)
    session = session_for(version, data)
    given = {"fps": 24.0, "seed": 7, "causal": version.causal_positions}
    *_, last = make_latents(session, text_of(2), planned, **given)
    np.testing.assert_allclose(last.latents[0], data, atol=1e-3)
    assert len(session.runner.fed) == len(planned.sigmas)


@EVERY_VERSION
def test_every_evaluation_has_the_rows_its_guidance_needs(version):
    planned = plan(REQUEST, version)
    session = session_for(version, drawn(2, GRID.tokens, CHANNELS))
    list(make_latents(session, text_of(2), planned, fps=24.0, seed=7, causal=True))
    for feeds, sigma in zip(session.runner.fed, planned.sigmas, strict=True):
        in_force = [entry for entry in planned.guidance if np.float32(entry.from_sigma) <= sigma] or planned.guidance[
            -1:
        ]
        assert len(feeds["latents"]) == 1 + (in_force[0].cfg_scale > 1) + (in_force[0].stg_scale > 0)


@EVERY_VERSION
def test_only_a_stochastic_version_draws_noise_between_steps(version):
    data = drawn(2, GRID.tokens, CHANNELS)
    planned = plan(REQUEST, version)
    steps = list(make_latents(session_for(version, data), text_of(2), planned, fps=24.0, seed=7, causal=True))
    start = NoiseStream(7, "latents").draw((1, CHANNELS, GRID.frames, GRID.rows, GRID.columns))
    start = start.reshape(CHANNELS, -1).T
    fresh = NoiseStream(7, "step")
    for step in steps:
        noise = fresh.draw((1, GRID.tokens, CHANNELS))[0] if version.passes[0].stochastic else start
        np.testing.assert_allclose(step.latents[0], (1 - step.sigma) * data + step.sigma * noise, atol=1e-3)


def first_feeds(seed=7, causal=True, fps=24.0):
    session = session_of(transformer(CHANNELS, TEXT_CHANNELS), by_rows)
    planned = Plan(GRID, linear_quadratic(2), (Guidance(),), False)
    list(make_latents(session, text_of(1), planned, fps=fps, seed=seed, causal=causal))
    return session.runner.fed[0]


def test_the_first_latents_are_the_noise_of_the_seed_cell_by_cell():
    noise = NoiseStream(7, "latents").draw((1, CHANNELS, GRID.frames, GRID.rows, GRID.columns))
    np.testing.assert_array_equal(latents_of(first_feeds()["latents"], GRID), noise)
    assert (first_feeds(seed=8)["latents"] != first_feeds(seed=7)["latents"]).all()


@pytest.mark.parametrize("causal", [True, False])
def test_coordinates_follow_the_frame_rate_and_the_kind_of_positions(causal):
    coords = first_feeds(causal=causal, fps=25.0)["coords"]
    np.testing.assert_array_equal(coords, coords_of(GRID, 25.0, causal=causal))


def test_prompts_are_encoded_together_and_keep_their_masks(spiece):
    session = session_of(
        text_encoder(TEXT_CHANNELS), lambda feeds: {"text": np.repeat(feeds["ids"][..., None], 6, 2).astype(np.float32)}
    )
    text = encode_prompt(session, Tokenizer(spiece, 256), ["a cat walks on wet grass", "blurry"])
    (feeds,) = session.runner.fed
    np.testing.assert_array_equal(text.embeddings[..., 0], feeds["ids"])
    np.testing.assert_array_equal(text.mask, feeds["mask"])
    assert text.mask[0].sum() == text.mask.shape[1] > text.mask[1].sum()


def decoded(version, latents, component, video=None, seed=7):
    """The frames and the feeds of a decoder that gives `video`, or black."""
    sizes = dict(zip(("batch", "frames", "rows", "columns"), np.array(latents.shape)[[0, 2, 3, 4]], strict=True))
    shape = component.outputs[0].shape(sizes)
    session = session_of(component, lambda feeds: {"video": np.zeros(shape, np.float32) if video is None else video})
    return list(decode_frames(session, latents, version, seed)), session.runner.fed[0]


LATENTS = drawn(5, 1, CHANNELS, 2, 2, 3)


def test_pixels_are_the_floor_of_255_times_the_clamped_value():
    levels = np.arange(9 * 64 * 96 * 3).reshape(1, 3, 9, 64, 96) % 256
    for offset in (0.25, 0.5, 0.95):
        video = (2 * (levels + offset) / 255 - 1).astype(np.float32)
        frames, _ = decoded(VERSIONS["0.9.0"], LATENTS, vae_decoder(CHANNELS, timestep=False), video)
        assert {frame.dtype for frame in frames} == {np.dtype(np.uint8)}
        np.testing.assert_array_equal(frames, levels[0].transpose(1, 2, 3, 0))


@pytest.mark.parametrize(("value", "pixel"), [(-9.0, 0), (-1.0, 0), (1.0, 255), (1.5, 255), (300.0, 255)])
def test_values_outside_are_clamped(value, pixel):
    video = np.full((1, 3, 9, 64, 96), value, np.float32)
    frames, _ = decoded(VERSIONS["0.9.0"], LATENTS, vae_decoder(CHANNELS, timestep=False), video)
    assert {int(level) for frame in frames for level in np.unique(frame)} == {pixel}


def test_a_decoder_without_timestep_gets_the_latents_as_they_are():
    frames, feeds = decoded(VERSIONS["0.9.0"], LATENTS, vae_decoder(CHANNELS, timestep=False))
    assert set(feeds) == {"latents"}
    np.testing.assert_array_equal(feeds["latents"], LATENTS)
    assert [frame.shape for frame in frames] == [(64, 96, 3)] * 9


@pytest.mark.parametrize("version", [v for v in VERSIONS.values() if v.vae != "A"], ids=lambda v: v.name)
def test_a_decoder_with_timestep_gets_005_and_latents_with_noise_of_0025(version):
    _, feeds = decoded(version, LATENTS, vae_decoder(CHANNELS, timestep=True))
    np.testing.assert_array_equal(feeds["timestep"], np.array([0.05], np.float32))
    noise = NoiseStream(7, "decode").draw(LATENTS.shape)
    np.testing.assert_allclose(feeds["latents"], 0.975 * LATENTS + 0.025 * noise, atol=1e-6)


def test_without_decode_noise_the_latents_stay_as_they_are():
    version = replace(VERSIONS["0.9.5"], decode_noise_scale=0.0, decode_timestep=0.3)
    _, feeds = decoded(version, LATENTS, vae_decoder(CHANNELS, timestep=True))
    np.testing.assert_array_equal(feeds["latents"], LATENTS)
    np.testing.assert_array_equal(feeds["timestep"], np.array([0.3], np.float32))


def test_a_decoder_that_injects_noise_gets_maps_in_the_sizes_of_its_ports():
    component = vae_decoder(CHANNELS, timestep=True, noise_maps=NOISE_MAPS_091)
    latents = drawn(5, 1, CHANNELS, 2, 12, 16)
    _, feeds = decoded(VERSIONS["0.9.1"], latents, component)
    maps = [feeds[f"noise_{block}"] for block in NOISE_MAPS_091]
    assert [one.shape for one in maps] == [(14, 24, 32), (12, 48, 64), (10, 96, 128)]
    for one in maps:
        assert one.dtype == np.float32
        assert abs(one.std() - 1) < 0.05
        assert abs(one.mean()) < 0.05
    flat = np.concatenate([one.reshape(-1) for one in maps])
    assert len(np.unique(flat)) > 0.99 * flat.size  # no map repeats another


def test_noise_maps_depend_on_the_seed_alone():
    component = vae_decoder(CHANNELS, timestep=True, noise_maps=NOISE_MAPS_091)
    first, again, other = (
        decoded(VERSIONS["0.9.1"], latents, component, seed=seed)[1]
        for latents, seed in ((LATENTS, 7), (2 * LATENTS, 7), (LATENTS, 8))
    )
    for block in NOISE_MAPS_091:
        np.testing.assert_array_equal(first[f"noise_{block}"], again[f"noise_{block}"])
        assert (first[f"noise_{block}"] != other[f"noise_{block}"]).all()
