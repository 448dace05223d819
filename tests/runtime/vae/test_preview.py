"""Laws of previews: a linear map of each cell alone, in whole levels, clipped at black and white."""

import numpy as np

from ltx_runtime.folder.manifest import Preview
from ltx_runtime.vae.preview import pictures_of

PREVIEW = Preview(((1.0, 0.0, 0.0, 0.0), (0.0, 0.5, 0.5, 0.0), (0.0, 0.0, 0.0, -1.0)), (0.0, 0.25, 0.0))


def test_every_cell_has_the_colour_that_the_map_gives_its_channels():
    latents = np.random.RandomState(0).uniform(-0.7, 0.7, (1, 4, 2, 3, 5)).astype(np.float32)
    pictures = pictures_of(latents, PREVIEW)
    assert pictures.shape == (2, 3, 5, 3) and pictures.dtype == np.uint8
    for frame, row, column in np.ndindex(2, 3, 5):
        a, b, c, d = latents[0, :, frame, row, column].astype(np.float64)
        levels = (np.array([a, 0.5 * b + 0.5 * c + 0.25, -d]) + 1) * 127.5
        np.testing.assert_allclose(pictures[frame, row, column], levels, atol=0.51)


def test_colours_beyond_black_and_white_are_clipped():
    latents = np.full((1, 4, 1, 1, 1), 9.0, np.float32)
    assert pictures_of(latents, PREVIEW).tolist() == [[[[255, 255, 0]]]]
    assert pictures_of(-latents, PREVIEW).tolist() == [[[[0, 0, 255]]]]
