"""The VAEs of every generation in tiles: one tile changes no bit, several come close to the whole.

Weights are random, which spreads an error near a cut as far as possible; the floors are those of docs/tiling.md.
"""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from oracles.networks import filled, normal
from oracles.weight_rule import weight
from samples.tiny import tiny

from ltx_export.models.vae import VaeDecoder
from ltx_export.models.vae_encoder import VaeEncoder
from ltx_export.networks.header import header_config, vae_config
from ltx_export.networks.vae_encoder import encoder_config
from ltx_runtime.spec.encodings import sinusoid_of
from ltx_runtime.spec.geometry import Grid
from ltx_runtime.spec.versions import VaeSize
from ltx_runtime.vae.tiling import Tiling, decode_tiled, encode_tiled

CHANNELS = 8
GENERATIONS = {"A": "0.9.0", "B": "0.9.1", "C": "0.9.5"}
EVERY_GENERATION = pytest.mark.parametrize("generation", GENERATIONS)
# Two tiles along the long axis of each grid.
CUT = {(12, 2, 3): Tiling(frames=8), (2, 12, 3): Tiling(rows=8), (2, 3, 12): Tiling(columns=8)}
WHOLE = pytest.mark.parametrize("tiling", [Tiling(), Tiling(9, None, 9)], ids=["no tile", "tiles larger than all"])
EVERY_CUT = pytest.mark.parametrize("grid", CUT, ids=["frames", "rows", "columns"])
PSNR_FLOORS = {"A": (18, 26), "B": (22, 31), "C": (20, 29)}  # decibels of the worst frame, if cut in time or in space
RELATIVE_L2_CEILING = 0.15  # relative L2 of the worst latent frame


def header(generation):
    return header_config(replace(tiny(GENERATIONS[generation]), vae_size=VaeSize(4, CHANNELS, 1)))["vae"]


def decoder(generation, grid, seed):
    """Returns a small decoder as a function of windows, with its latents and noise maps cut to them."""
    config = vae_config(header(generation))
    module = filled(VaeDecoder(config), weight)
    latents = normal(seed, 1, CHANNELS, *grid)
    sinusoid = torch.from_numpy(sinusoid_of(np.float32([0.05]))) if config.timestep else None
    maps = [
        (normal(seed + block, count, scale * grid[1], scale * grid[2]), scale)
        for block, (count, scale) in config.noise_maps().items()
    ]

    def decode(frames, rows, columns):
        cut = [
            values[:, scale * rows.start : scale * rows.stop, scale * columns.start : scale * columns.stop]
            for values, scale in maps
        ]
        return module(latents[:, :, frames, rows, columns], sinusoid, *cut)[0].numpy()

    return decode


def encoder(generation):
    module = filled(VaeEncoder(encoder_config(header(generation))), weight)
    return lambda video: module(torch.from_numpy(video)[None])[0].numpy()


def whole(grid):
    return tuple(slice(0, size) for size in grid)


def psnr(frame, wanted):
    """Returns the PSNR in decibels of pixels as they are shown, in 0..1."""
    shown, expected = (np.clip(one / 2 + 0.5, 0, 1) for one in (frame, wanted))
    return -10 * np.log10(np.square(shown - expected).mean())


@EVERY_GENERATION
@WHOLE
def test_one_tile_of_a_decoder_is_the_untiled_decode_bit_for_bit(generation, tiling):
    grid = (3, 2, 3)
    decode = decoder(generation, grid, 1)
    expected = decode(*whole(grid)).swapaxes(0, 1)
    made = list(decode_tiled(Grid(*grid), decode, tiling))
    assert [frame.tobytes() for frame in made] == [frame.tobytes() for frame in expected]


@EVERY_GENERATION
@EVERY_CUT
def test_every_frame_of_a_decode_in_tiles_is_close_to_the_untiled_one(generation, grid):
    decode = decoder(generation, grid, 2)
    expected = decode(*whole(grid)).swapaxes(0, 1)
    made = list(decode_tiled(Grid(*grid), decode, CUT[grid]))
    ratios = [psnr(frame, wanted) for frame, wanted in zip(made, expected, strict=True)]
    assert min(ratios) > PSNR_FLOORS[generation][CUT[grid].frames is None]


@EVERY_GENERATION
def test_twice_the_overlap_takes_more_than_half_of_the_squared_error(generation):
    grid = (2, 2, 24)
    decode = decoder(generation, grid, 3)
    expected = decode(*whole(grid))
    tilings = [Tiling(columns=12 + overlap // 2, space_overlap=overlap) for overlap in (2, 4, 8)]  # two tiles each
    made = [np.stack([*decode_tiled(Grid(*grid), decode, tiling)], axis=1) for tiling in tilings]
    errors = [np.square(one - expected).sum() for one in made]
    assert all(after < before / 2 for before, after in pairwise(errors))


@EVERY_GENERATION
@WHOLE
def test_one_tile_of_an_encoder_is_the_untiled_encode_bit_for_bit(generation, tiling):
    encode, video = encoder(generation), normal(4, 3, 17, 64, 96).numpy()
    assert encode_tiled(video, encode, tiling).tobytes() == encode(video).tobytes()


@EVERY_GENERATION
@pytest.mark.parametrize(
    ("grid", "tiling"),
    [
        ((20, 2, 2), Tiling(frames=16, frame_overlap=8)),  # a causal encoder looks back twice as far
        ((2, 12, 3), Tiling(rows=8)),
        ((2, 3, 12), Tiling(columns=8)),
    ],
    ids=["frames", "rows", "columns"],
)
def test_latents_of_a_clip_in_tiles_are_close_to_the_untiled_ones(generation, grid, tiling):
    encode = encoder(generation)
    video = normal(5, 3, 8 * grid[0] - 7, 32 * grid[1], 32 * grid[2]).numpy()
    made, expected = encode_tiled(video, encode, tiling), encode(video)
    wrong, length = (np.sqrt(np.square(one[:CHANNELS]).sum((0, 2, 3))) for one in (made - expected, expected))
    assert (wrong / length).max() < RELATIVE_L2_CEILING
