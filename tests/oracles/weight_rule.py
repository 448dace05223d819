"""Weights that need no file: every tensor is drawn from its own name and shape.

The golden files of `tests/golden` were made with these weights, so a test can reproduce them with numpy alone.
Keys are the official names without the prefixes of a unified file: `transformer_blocks.0.attn1.to_q.weight`
for the transformer, `decoder.conv_in.conv.weight` or `per_channel_statistics.std-of-means` for the VAE.
"""

import math
import zlib

import numpy as np


def weight(key: str, shape: tuple[int, ...]) -> np.ndarray:
    """Draws the float32 tensor called `key`: the same key and shape give the same values everywhere."""
    if key.endswith("timestep_scale_multiplier"):
        return np.full(shape, 1000.0, np.float32)
    normal = np.random.RandomState(zlib.crc32(key.encode())).standard_normal(math.prod(shape)).reshape(shape)
    return np.asarray(_scaled(key.rsplit(".", 1)[-1], normal), np.float32)


def _scaled(leaf: str, normal: np.ndarray) -> np.ndarray:
    """Scales the draw to the spread that a tensor with this last name needs to keep activations near one."""
    if leaf in ("scale_shift_table", "last_scale_shift_table", "mean-of-means"):
        return 0.2 * normal
    if leaf in ("per_channel_scale1", "per_channel_scale2"):
        return 0.5 * normal
    if leaf == "std-of-means":
        return 1 + 0.1 * np.abs(normal)
    if leaf == "bias":
        return 0.1 * normal
    if normal.ndim >= 2:
        return normal / math.sqrt(math.prod(normal.shape[1:]))
    return 1 + 0.1 * normal if leaf == "weight" else normal
