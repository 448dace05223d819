"""Rotary position embedding over (time, row, column): the angles, and the rotation of queries and keys."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

THETA = 10000.0
_MAX_PIECE_CHANNELS = 1024  # most channels in one piece, see `in_pieces`
MAX_POSITION = (20.0, 2048.0, 2048.0)  # seconds, pixel rows, pixel columns


class RotaryEmbedding(nn.Module):
    """Cosines and sines of every token's angles: the three axes are interleaved, unrotated channels come first.

    Source: `Transformer3DModel.precompute_freqs_cis` of the official `ltx-video` package.
    """

    frequencies: Tensor
    max_position: Tensor

    def __init__(
        self, width: int, theta: float = THETA, max_position: tuple[float, float, float] = MAX_POSITION
    ) -> None:
        super().__init__()
        self.unrotated_pairs = width % 6 // 2
        # Constants computed by torch on the CPU, even if parameters are on the meta device: folded with another
        # library's pow they would differ by 6.6e-7, and multiplied by 15708 rad that shows in the velocity.
        exponents = torch.linspace(0.0, 1.0, width // 6, dtype=torch.float32, device="cpu")
        maximum = torch.tensor(max_position, dtype=torch.float32, device="cpu")
        self.register_buffer("frequencies", theta**exponents * math.pi / 2, persistent=False)
        self.register_buffer("max_position", maximum, persistent=False)

    def forward(self, coords: Tensor) -> tuple[Tensor, Tensor]:
        """Returns cosines and sines, each (B, N, width // 2) float32, of coords (B, 3, N) float32 in (s, px, px)."""
        fractions = coords.transpose(1, 2) / self.max_position  # (B, N, 3)
        angles = self.frequencies * (fractions.unsqueeze(-1) * 2 - 1)  # (B, N, 3, n)
        angles = angles.transpose(-1, -2).flatten(2)  # (B, N, 3n)
        cosines, sines = angles.cos(), angles.sin()
        if self.unrotated_pairs:
            front = cosines[:, :, : self.unrotated_pairs]
            cosines = torch.cat([torch.ones_like(front), cosines], dim=-1)
            sines = torch.cat([torch.zeros_like(front), sines], dim=-1)
        return cosines, sines


def in_pieces(cosines: Tensor, sines: Tensor) -> tuple[Tensor, Tensor]:
    """Reshapes cosines and sines (B, N, width // 2) for `rotate`, to (1, B * N * pieces, width // pieces // 2).

    ONNX Runtime's CUDA kernel has one thread per channel of a head, 1,024 at most, and our single head is as wide as
    the model: 2,048 or 4,096. It has one block per position of a sequence, whose length is not limited, so all pieces
    of all tokens become one sequence. This is exact: only adjacent channels are rotated with each other.
    """
    width = cosines.shape[-1]
    piece = width // -(-2 * width // _MAX_PIECE_CHANNELS)
    return cosines.reshape(1, -1, piece), sines.reshape(1, -1, piece)


def rotate(x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Rotates pairs of adjacent channels of x, before the split into heads.

    Args:
        x: queries or keys, (B, N, width) float32.
        cosines, sines: values for every token, as `in_pieces` returns them.
    """
    pieces = x.reshape(1, -1, 2 * cosines.shape[-1])
    return torch.onnx.ops.rotary_embedding(pieces, cosines, sines, interleaved=True, num_heads=1).reshape(x.shape)
