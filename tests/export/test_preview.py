"""The colours of previews: an exact map is found exactly, and a VAE's latents show the colours of what it encoded."""

import numpy as np
import pytest
from samples.demo import folder_of_trained_demo, folder_with_demo

from ltx_export.preview import averaged, dead_leaves, fit_preview
from ltx_runtime import Pipeline
from ltx_runtime.folder.reading import open_engines
from ltx_runtime.sessions import find, open_session
from ltx_runtime.spec.geometry import Grid
from ltx_runtime.vae.encode import encode_media
from ltx_runtime.vae.preview import pictures_of
from ltx_runtime.vae.tiling import Tiling

LEAST_CORRELATION = 0.8


def smooth(grid: Grid, seed: int) -> np.ndarray:
    """Returns a clip of slow waves of colour, unlike those that the map is fitted to."""
    random = np.random.RandomState(seed)
    time, rows, columns = np.meshgrid(
        *(np.linspace(0, 1, size, dtype=np.float32) for size in (grid.num_frames, grid.height, grid.width)),
        indexing="ij",
    )
    waves = [np.sin(a * rows + b * columns + c * time + d) for a, b, c, d in random.uniform(-4, 4, (3, 4))]
    return np.stack(waves)[None].astype(np.float32)


def correlation(pictures: np.ndarray, colours: np.ndarray) -> float:
    """Correlates pictures (F, H, W, 3) uint8 with colours (1, 3, F, H, W)."""
    return float(np.corrcoef(pictures.transpose(3, 0, 1, 2).ravel(), colours[0].ravel())[0, 1])


@pytest.mark.parametrize("channels", [16, 128])
def test_latents_that_are_a_linear_map_of_colours_give_the_colours_back(channels):
    random = np.random.RandomState(channels)
    mixing, offset = random.standard_normal((channels, 3)), random.standard_normal((channels, 1, 1, 1))

    def encode(clips):
        return [np.einsum("ck,kfhw->cfhw", mixing, averaged(clip)[0])[None] + offset for clip in clips]

    preview = fit_preview(encode)
    clip = smooth(Grid(3, 4, 6), seed=1)
    colours = averaged(clip)
    pictures = pictures_of(encode([clip])[0].astype(np.float32), preview)
    assert pictures.shape == (3, 4, 6, 3) and pictures.dtype == np.uint8
    np.testing.assert_allclose(pictures.transpose(3, 0, 1, 2) / 127.5 - 1, colours[0], atol=0.02)


def test_colours_are_averages_over_the_frames_and_pixels_of_a_latent():
    clip = smooth(Grid(2, 1, 2), seed=2)
    for row, column, frame, frames in ((0, 0, 0, slice(0, 1)), (0, 1, 1, slice(1, 9))):
        pixels = clip[0, :, frames, 32 * row : 32 * row + 32, 32 * column : 32 * column + 32]
        np.testing.assert_allclose(averaged(clip)[0, :, frame, row, column], pixels.mean((1, 2, 3)), atol=1e-6)


def test_made_up_clips_differ_by_seed_move_and_stay_in_range():
    first, again, other = (dead_leaves(Grid(2, 4, 4), seed) for seed in (0, 0, 1))
    assert first.shape == (1, 3, 9, 128, 128) and first.dtype == np.float32
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    assert np.abs(first).max() <= 1 and not np.array_equal(first[:, :, 0], first[:, :, -1])


def test_latents_of_a_clip_that_the_map_was_not_fitted_to_show_its_colours_even_with_random_weights():
    engines = open_engines(folder_with_demo() / "engines" / "demo")
    clip = dead_leaves(Grid(2, 8, 12), seed=77)
    with open_session(find(engines, "vae_encoder", "cpu")) as session:
        latents = encode_media(session, clip, Tiling()).mean
    shown = pictures_of(latents, engines.component("vae_encoder").preview)
    assert correlation(shown, averaged(clip)) > 0.3  # chance is within 0.1


def test_the_last_preview_of_a_run_is_like_its_decoded_frames_made_small():
    with Pipeline(folder_of_trained_demo()) as pipe:
        video = pipe("a red fox runs through deep snow", seed=7, single_pass=True)
        *_, last = video.steps()
        frames = np.stack(list(video)).transpose(3, 0, 1, 2)[None] / np.float32(127.5) - 1
    assert correlation(last.preview(), averaged(frames)) > LEAST_CORRELATION
