"""Reads noise levels and places back from the angles that networks take in their stead, in closed form."""

import numpy as np

from ltx_runtime.spec.encodings import Rope


def timesteps_of(sinusoids):
    """Returns the timesteps (...) of sinusoids (..., 256), which have 128 cosines, then 128 sines.

    Like two hands of a clock: the slowest angle, which stays below 0.11, says how often the fastest has gone round.
    """
    angles = np.arctan2(sinusoids[..., 128:].astype(np.float64), sinusoids[..., :128])
    fastest, slowest = 1000, 1000 * 10_000 ** (-127 / 128)  # radians at timestep 1
    rounds = np.round((angles[..., -1] / slowest * fastest - angles[..., 0]) / (2 * np.pi))
    return (angles[..., 0] + 2 * np.pi * rounds) / fastest


def places_of(feeds, rope: Rope):
    """Returns the places (N, 3) in (seconds, pixel row, pixel column) from a transformer's cosines and sines.

    Read at the slowest frequency of `rope`, which is unambiguous while its angles stay between -pi and pi.
    """
    first = feeds["cosines"].shape[1] - 3 * len(rope.frequencies)  # pairs in front of it are not rotated
    angles = np.arctan2(feeds["sines"].astype(np.float64), feeds["cosines"])[:, first : first + 3]
    return (angles / rope.frequencies[0] + 1) / 2 * np.array(rope.max_position)
