"""Positions and noise levels as networks take them: against the official formulas in torch, diffusers and numbers."""

import math

import numpy as np
import pytest
import torch
from diffusers.models.embeddings import get_timestep_embedding
from diffusers.models.transformers.transformer_ltx import LTXVideoRotaryPosEmbed
from oracles.networks import RELATIVE_L2, distance, normal, tensor

from ltx_export.models.rope import MAX_POSITION, THETA, in_pieces, rope_of, rotate
from ltx_runtime.spec.encodings import sinusoid_of
from ltx_runtime.spec.geometry import Grid, coords_of

WIDTHS = (18, 20, 22, 2048, 4096)  # all remainders that an even width can have modulo 6, and those of the releases
# (theta, largest position): that of the releases, and that of no release
POSITIONS = ((THETA, MAX_POSITION), (500.0, (4.0, 512.0, 300.0)))
EVERY_WIDTH = pytest.mark.parametrize("width", WIDTHS)
EVERY_POSITION = pytest.mark.parametrize(("theta", "max_position"), POSITIONS, ids=["released", "other"])
SINUSOID = 1e-4  # an ulp of a frequency below 1 times 1,000 rad is 6e-5

# Token at 9/25 s, row 480, column 736: width -> {channel: (cosine, sine)}
ANCHORS = {
    2048: {
        0: (1, 0), 1: (1, 0), 2: (0.0565185, -0.9984015), 3: (0.0565185, -0.9984015), 4: (0.6715589, -0.7409511),
        5: (0.6715589, -0.7409511), 6: (0.9039893, -0.4275551), 7: (0.9039893, -0.4275551),
        8: (0.0149677, -0.9998880), 100: (0.2797870, -0.9600621), 2047: (0.7070524, -0.7071612),
    },
    4096: {
        0: (1, 0), 1: (1, 0), 2: (1, 0), 3: (1, 0), 4: (0.0565185, -0.9984015), 8: (0.9039893, -0.4275551),
        100: (-0.3043765, -0.9525518),
    },
}  # fmt: skip


@pytest.mark.parametrize("width", ANCHORS)
def test_rotary_angles_are_the_published_ones(width):
    coords = np.array([9 / 25, 480.0, 736.0], np.float32).reshape(1, 3, 1)
    cosines, sines = rope_of(width).rotation(coords, width)
    assert cosines.shape == sines.shape == (1, width // 2)
    for channel, expected in ANCHORS[width].items():
        pair = cosines[0, channel // 2], sines[0, channel // 2]
        np.testing.assert_allclose(pair, expected, atol=1e-5)


def test_rotary_angles_at_the_origin_are_the_published_ones():
    cosines, sines = rope_of(2048).rotation(np.zeros((1, 3, 1), np.float32), 2048)
    np.testing.assert_allclose(cosines[0, 1:5], [0, 0, 0, -0.0431199], atol=1e-5)
    np.testing.assert_allclose(sines[0, 1:5], [-1, -1, -1, -0.9990699], atol=1e-5)


@pytest.mark.parametrize(("width", "count", "second"), [(2048, 341, 1.6139296), (4096, 682, 1.5921853)])
def test_rotary_frequencies_go_from_half_pi_to_5000_pi(width, count, second):
    frequencies = np.array(rope_of(width).frequencies)
    assert frequencies.shape == (count,)
    np.testing.assert_array_equal(frequencies, frequencies.astype(np.float32))
    np.testing.assert_allclose(frequencies[[0, 1, -1]], [math.pi / 2, second, 5000 * math.pi], rtol=1e-6)


@EVERY_POSITION
@EVERY_WIDTH
def test_rotary_frequencies_are_bit_for_bit_those_of_the_official_code(width, theta, max_position):
    rope = rope_of(width, theta, max_position)
    ends = math.log(1, theta), math.log(theta, theta)
    official = theta ** torch.linspace(*ends, width // 6, dtype=torch.float32) * math.pi / 2
    assert torch.equal(torch.tensor(rope.frequencies, dtype=torch.float32), official)
    assert rope.max_position == max_position


def positions_up_to(seconds: float, row: float, column: float) -> torch.Tensor:
    """Returns coords (1, 3, N) float32 at random in a space, and at all of its corners."""
    space = torch.tensor([seconds, row, column])[:, None]
    corners = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 3).T
    inside = torch.rand((3, 500), generator=torch.Generator().manual_seed(1))
    return (space * torch.cat([corners, inside], dim=1))[None]


@pytest.mark.parametrize("factor", [1, 5])
@EVERY_POSITION
@EVERY_WIDTH
def test_rotations_are_those_of_torch_at_the_largest_positions_and_beyond(width, theta, max_position, factor):
    """Angles there are 15,708 and 141,372 rad, whose cosines and sines depend on the last bit of a float32 angle."""
    coords = positions_up_to(*(factor * largest for largest in max_position))
    rotation = rope_of(width, theta, max_position).rotation(coords.numpy(), width)
    official = LTXVideoRotaryPosEmbed(width, *max_position, theta=theta)(coords, video_coords=coords)
    for ours, theirs in zip(rotation, official, strict=True):  # theirs have each value twice, for both channels
        assert ours.dtype == np.float32
        np.testing.assert_allclose(ours.repeat(2, axis=1), theirs[0].numpy(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("width", [20, 1024, 2048, 4096])
def test_rotation_turns_adjacent_pairs_as_complex_numbers_in_pieces_that_every_kernel_takes(width):
    x, coords = normal(4, 2, 12, width), coords_of(Grid(2, 2, 3), 24, causal=True)
    cosines, sines = map(tensor, rope_of(width).rotation(coords, width))
    turned = torch.view_as_complex(x.reshape(2, 12, -1, 2)) * torch.complex(cosines, sines)
    pieces = in_pieces(cosines, sines, len(x))
    assert pieces[0].shape == (1, 2 * 12 * max(1, width // 1024), min(width, 1024) // 2)
    assert distance(rotate(x, *pieces), torch.view_as_real(turned).flatten(2)) <= RELATIVE_L2


def test_sinusoids_are_those_of_diffusers():
    inside = torch.rand(1000, generator=torch.Generator().manual_seed(2))
    timesteps = torch.cat([torch.tensor([0.0, 0.05, 1.0]), inside])
    official = get_timestep_embedding(1000 * timesteps, 256, flip_sin_to_cos=True, downscale_freq_shift=0)
    sinusoids = sinusoid_of(timesteps.numpy())
    assert sinusoids.dtype == np.float32
    np.testing.assert_allclose(sinusoids, official.numpy(), rtol=0, atol=SINUSOID)
