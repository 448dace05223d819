"""Rotary position embedding over (time, row, column): its frequencies, and the rotation of queries and keys."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ltx_runtime.spec.encodings import Rope

THETA = 10000.0
_MAX_PIECE_CHANNELS = 1024  # most channels in one piece, see `in_pieces`
MAX_POSITION = (20.0, 2048.0, 2048.0)  # seconds, pixel rows, pixel columns


def rope_of(width: int, theta: float = THETA, max_position: tuple[float, float, float] = MAX_POSITION) -> Rope:
    """Returns the position embedding of a transformer of this width.

    The frequencies are torch's powers, like those of the official code: another library's would differ by 6.6e-7, and
    multiplied by 15708 rad that shows in the velocity.

    Source: `Transformer3DModel.precompute_freqs_cis` of the official `ltx-video` package.
    """
    exponents = torch.linspace(0.0, 1.0, width // 6, dtype=torch.float32)
    return Rope(tuple((theta**exponents * math.pi / 2).tolist()), max_position)


def in_pieces(cosines: Tensor, sines: Tensor, batch: int) -> tuple[Tensor, Tensor]:
    """Repeats cosines and sines (N, width // 2) for a batch, to (1, B * N * pieces, width // pieces // 2) for `rotate`.

    ONNX Runtime's CUDA kernel has one thread per channel of a head, 1,024 at most, and our single head is as wide as
    the model: 2,048 or 4,096. It has one block per position of a sequence, whose length is not limited, so all pieces
    of all tokens become one sequence. This is exact: only adjacent channels are rotated with each other.
    """
    half = cosines.shape[-1]
    fewest = -(-2 * half // _MAX_PIECE_CHANNELS)
    piece = half // next(pieces for pieces in range(fewest, half + 1) if half % pieces == 0)
    return cosines.reshape(1, -1, piece).repeat(1, batch, 1), sines.reshape(1, -1, piece).repeat(1, batch, 1)


def rotate(x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Rotates pairs of adjacent channels of x, before the split into heads.

    Args:
        x: queries or keys, (B, N, width) float32.
        cosines, sines: values for every token, as `in_pieces` returns them.
    """
    pieces = x.reshape(1, -1, 2 * cosines.shape[-1])
    return torch.onnx.ops.rotary_embedding(pieces, cosines, sines, interleaved=True, num_heads=1).reshape(x.shape)
