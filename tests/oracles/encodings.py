"""Converts times and places, which other implementations take, to what our networks take in their place."""

from oracles.networks import tensor
from torch import Tensor

from ltx_export.models.dit import DitConfig
from ltx_runtime.spec.encodings import sinusoid_of


def sinusoids(timesteps: Tensor) -> Tensor:
    """Returns the sinusoids (..., 256) of timesteps (...) in 0..1."""
    return tensor(sinusoid_of(timesteps.numpy()))


def encoded(config: DitConfig, timesteps: Tensor, coords: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the sinusoid, cosines and sines of timesteps (B, T) and of coords (B, 3, N), equal for all samples."""
    assert (coords == coords[:1]).all()
    cosines, sines = config.rope.rotation(coords[:1].numpy(), config.width)
    return sinusoids(timesteps), tensor(cosines), tensor(sines)
