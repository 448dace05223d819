"""Laws of the stages around denoising: prompts and media to inputs of the model, latents to frames."""

from dataclasses import replace

import numpy as np
import pytest
from fakes.sessions import session_of
from fakes.stages import CHANNELS, TEXT_CHANNELS, posterior
from fakes.stages import decode as in_cells

from ltx_runtime.noise.noise import SeededNoise
from ltx_runtime.sessions.numbers import NotFiniteError
from ltx_runtime.spec.components import temporal_upsampler, text_encoder, upsampler, vae_decoder, vae_encoder
from ltx_runtime.spec.encodings import sinusoid_of
from ltx_runtime.text.embeddings import text_of
from ltx_runtime.text.encode import encode_prompts
from ltx_runtime.text.tokenizer import Tokenizer
from ltx_runtime.vae.decode import decode, ready_to_decode
from ltx_runtime.vae.encode import Posterior, encode_media
from ltx_runtime.vae.saved_latents import Ending
from ltx_runtime.vae.tiling import Tiling
from ltx_runtime.vae.upsample import upsample

NOISE_MAPS_091 = {2: (14, 2), 4: (12, 4), 6: (10, 8)}
ENDING = Ending("demo", (64, 96), (0, 0, 0, 0), 9, 24.0, 7, 0.0, 0.05, 0.025)
PLAIN = vae_decoder(CHANNELS, timestep=False)
TIMED = vae_decoder(CHANNELS, timestep=True)
MAPPED = vae_decoder(CHANNELS, timestep=True, noise_maps=NOISE_MAPS_091)


def drawn(seed, *shape):
    return np.random.RandomState(seed).standard_normal(shape).astype(np.float32)


LATENTS = drawn(5, 1, CHANNELS, 2, 2, 3)
WHOLE = Tiling()
EVERY_TILING = pytest.mark.parametrize(
    "tiling",
    [
        Tiling(frames=2, frame_overlap=1),
        Tiling(rows=4, space_overlap=2),
        Tiling(columns=2, space_overlap=1),
        Tiling(3, 3, 5, frame_overlap=1, space_overlap=1),
    ],
    ids=str,
)


# --- prompts --------------------------------------------------------------------------------------


def ids_as_text(feeds):
    return {"text": np.repeat(feeds["ids"][..., None], TEXT_CHANNELS, 2).astype(np.float32)}


def test_every_prompt_is_encoded_alone_to_a_row_of_its_own_length(spiece):
    session, tokenizer = session_of(text_encoder(TEXT_CHANNELS), ids_as_text), Tokenizer(spiece, 256)
    prompts = [tokenizer.tokens(prompt) for prompt in ("a cat walks on wet grass", "blurry")]
    rows = encode_prompts(session, prompts)
    for feeds, prompt in zip(session.runner.fed, prompts, strict=True):
        np.testing.assert_array_equal(feeds["ids"], [prompt])
        np.testing.assert_array_equal(feeds["mask"], np.ones((1, len(prompt))))
    assert [row[:, 0].tolist() for row in rows] == prompts


def test_a_prompt_and_its_negative_one_are_padded_to_the_longer_and_keep_their_masks():
    long, short = np.ones((5, TEXT_CHANNELS), np.float32), np.full((2, TEXT_CHANNELS), 3, np.float32)
    text = text_of([long, short])
    np.testing.assert_array_equal(text.embeddings[0], long)
    np.testing.assert_array_equal(text.negative_embeddings[0], np.pad(short, ((0, 3), (0, 0))))
    assert (text.mask.tolist(), text.negative_mask.tolist()) == ([[1] * 5], [[1, 1, 0, 0, 0]])
    alone = text_of([short])
    assert alone.mask.tolist() == [[1, 1]] and alone.negative_embeddings is None


# --- media and upsampling -------------------------------------------------------------------------


def test_the_first_half_of_a_posterior_are_means_and_the_second_deviations():
    posterior = drawn(1, 1, 2 * CHANNELS, 2, 2, 3)
    session = session_of(vae_encoder(CHANNELS), lambda feeds: {"posterior": posterior})
    video = drawn(2, 1, 3, 9, 64, 96)
    made = encode_media(session, video, Tiling())
    np.testing.assert_array_equal(session.runner.fed[0]["video"], video)
    np.testing.assert_array_equal(made.mean, posterior[:, :CHANNELS])
    np.testing.assert_array_equal(made.deviation, posterior[:, CHANNELS:])


@EVERY_TILING
def test_a_clip_is_encoded_in_tiles_to_what_it_is_encoded_to_as_a_whole(tiling):
    """The encoder uses one place of the video per latent, so that tile borders cause no error."""
    video = drawn(2, 1, 3, 33, 160, 224).clip(-1, 1)
    whole, tiled = (session_of(vae_encoder(CHANNELS), posterior) for _ in range(2))
    expected, made = encode_media(whole, video, Tiling()), encode_media(tiled, video, tiling)
    np.testing.assert_allclose(made.mean, expected.mean, atol=1e-6)
    np.testing.assert_allclose(made.deviation, expected.deviation, atol=1e-6)
    assert len(tiled.runner.fed) > len(whole.runner.fed) == 1
    assert max(fed["video"].size for fed in tiled.runner.fed) < video.size


def test_latents_drawn_from_a_posterior_have_its_mean_and_deviation():
    shape = (1, CHANNELS, 20, 30, 40)
    posterior = Posterior(np.full(shape, 3, np.float32), np.full(shape, 0.5, np.float32))
    made = posterior.sample(drawn(1, *shape))
    assert made.dtype == np.float32
    np.testing.assert_allclose((made.mean(), made.std()), (3, 0.5), atol=0.01)
    np.testing.assert_array_equal(posterior.sample(np.zeros(shape, np.float32)), posterior.mean)
    np.testing.assert_array_equal(posterior.sample(np.ones(shape, np.float32)), posterior.mean + posterior.deviation)


@pytest.mark.parametrize(
    ("component", "shape"), [(upsampler, (2, CHANNELS, 2, 4, 6)), (temporal_upsampler, (2, CHANNELS, 3, 2, 3))]
)
def test_latents_go_through_an_upsampler_as_they_are(component, shape):
    upsampled, latents = drawn(1, *shape), drawn(2, 2, CHANNELS, 2, 2, 3)
    session = session_of(component(CHANNELS), lambda feeds: {"upsampled": upsampled})
    np.testing.assert_array_equal(upsample(session, latents), upsampled, strict=True)
    np.testing.assert_array_equal(session.runner.fed[0]["latents"], latents)


# --- inputs of a decoder --------------------------------------------------------------------------


class Draws:
    """Seeded draws, and a list of them."""

    def __init__(self, seed=7):
        self.noise, self.notes = SeededNoise(seed), []

    def draw(self, key, shape):
        self.notes.append((key, shape))
        return self.noise.draw(key, shape)


def ready(component, latents=LATENTS, seed=7, **changes):
    draws = Draws(seed)
    return ready_to_decode(latents, replace(ENDING, **changes), component.inputs, draws), draws.notes


def test_a_decoder_without_timestep_gets_the_latents_as_they_are_and_draws_nothing():
    feeds, notes = ready(PLAIN)
    assert feeds.keys() == {"latents"}
    np.testing.assert_array_equal(feeds["latents"], LATENTS)
    assert notes == []


@pytest.mark.parametrize(("timestep", "scale"), [(0.05, 0.025), (0.3, 0.5), (0.0, 0.0)])
def test_a_decoder_with_timestep_gets_it_and_latents_mixed_with_noise(timestep, scale):
    feeds, notes = ready(TIMED, decode_timestep=timestep, decode_noise_scale=scale)
    np.testing.assert_array_equal(feeds["sinusoid"], sinusoid_of(np.array([timestep], np.float32)), strict=True)
    noise = SeededNoise(7).draw("decode", LATENTS.shape)
    np.testing.assert_allclose(feeds["latents"], (1 - scale) * LATENTS + scale * noise, atol=1e-6)
    assert feeds["latents"].dtype == np.float32
    assert notes == [("decode", LATENTS.shape)]


def tone_mapped_by_hand(latents, ratio):
    """Computes x (1 - 0.8 s sigmoid(4 s (|x| - 1))) with s = 0.75 ratio."""
    s = 0.75 * ratio
    x = latents.astype(np.float64)
    return x * (1 - 0.8 * s / (1 + np.exp(-4 * s * (abs(x) - 1))))


@pytest.mark.parametrize("component", [PLAIN, TIMED], ids=["without_timestep", "with_timestep"])
def test_the_tone_map_comes_after_the_noise(component):
    feeds, _ = ready(component, tone_map=0.6, decode_noise_scale=0.5)
    mixed = LATENTS
    if component is TIMED:
        mixed = 0.5 * LATENTS + 0.5 * SeededNoise(7).draw("decode", LATENTS.shape)
    np.testing.assert_allclose(feeds["latents"], tone_mapped_by_hand(mixed, 0.6), atol=1e-6)


def test_a_decoder_that_injects_noise_gets_maps_in_the_sizes_of_its_ports_after_the_noise_of_the_latents():
    feeds, notes = ready(MAPPED, drawn(5, 1, CHANNELS, 2, 12, 16))
    shapes = {2: (14, 24, 32), 4: (12, 48, 64), 6: (10, 96, 128)}
    assert notes == [("decode", (1, CHANNELS, 2, 12, 16))] + [(f"decoder/noise_{b}", s) for b, s in shapes.items()]
    for block, shape in shapes.items():
        expected = SeededNoise(7).draw(f"decoder/noise_{block}", shape)
        np.testing.assert_array_equal(feeds[f"noise_{block}"], expected, strict=True)


def test_what_is_made_ready_is_what_the_decoder_takes():
    for component in (PLAIN, TIMED, MAPPED):
        sizes = {"batch": 1, "frames": 2, "rows": 2, "columns": 3}
        feeds, _ = ready(component)
        assert {name: array.shape for name, array in feeds.items()} == {
            port.name: port.shape(sizes) for port in component.inputs
        }


def test_latents_are_left_as_they_are():
    kept = LATENTS.copy()
    ready(TIMED, tone_map=0.6)
    np.testing.assert_array_equal(LATENTS, kept)


# --- frames ---------------------------------------------------------------------------------------


def decoded(component, function, latents=LATENTS, tiling=WHOLE):
    """Returns the frames (n, 3, height, width) and the feeds of the decoder."""
    feeds, _ = ready(component, latents)
    session = session_of(component, function)
    return np.stack(list(decode(session, feeds, tiling))), session.runner.fed


def test_frames_come_in_order_with_values_in_0_to_1():
    video = drawn(1, 1, 3, 9, 64, 96) * 2
    frames, fed = decoded(PLAIN, lambda feeds: {"video": video})
    assert (frames.dtype, frames.shape, len(fed)) == (np.float32, (9, 3, 64, 96), 1)
    expected = (video[0].transpose(1, 0, 2, 3).astype(np.float64) + 1) / 2
    np.testing.assert_allclose(frames, expected.clip(0, 1), atol=1e-6)
    assert (frames.min(), frames.max()) == (0, 1)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("frame", [0, 8])
def test_numbers_that_are_not_finite_make_no_frames(value, frame):
    video = np.zeros((1, 3, 9, 64, 96), np.float32)
    video[0, 2, frame, 63, 95] = value
    with pytest.raises(NotFiniteError, match=r"1 of \d+ numbers that the vae_decoder computed are (NaN|infinite)"):
        decoded(PLAIN, lambda feeds: {"video": video})


@EVERY_TILING
@pytest.mark.parametrize("component", [PLAIN, TIMED, MAPPED], ids=["plain", "timed", "mapped"])
def test_frames_are_decoded_in_tiles_to_what_they_are_decoded_to_as_a_whole(component, tiling):
    """Every output uses one place of the latents and of the noise maps, and the maps are cut like the latents."""
    latents = drawn(5, 1, CHANNELS, 5, 5, 7)
    (whole, _), (made, fed) = (decoded(component, in_cells, latents, tiling=one) for one in (WHOLE, tiling))
    np.testing.assert_allclose(made, whole, atol=1e-6)
    assert whole.shape == (33, 3, 160, 224)
    assert max(one["latents"].size for one in fed) < latents.size


@EVERY_TILING
def test_numbers_that_are_not_finite_are_found_in_every_tile(tiling):
    latents = drawn(5, 1, CHANNELS, 5, 5, 7)
    for place in ((0, 0, 0), (4, 4, 6), (2, 2, 3)):
        broken = latents.copy()
        broken[(0, 1, *place)] = np.nan
        with pytest.raises(NotFiniteError):
            decoded(PLAIN, in_cells, broken, tiling=tiling)
