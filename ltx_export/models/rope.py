"""Rotary position embedding over (time, row, column): the angles, and the rotation of queries and keys."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

THETA = 10000.0
_WIDEST = 1024  # channels of a head
MAX_POSITION = (20.0, 2048.0, 2048.0)  # seconds, pixel rows, pixel columns


class RotaryEmbedding(nn.Module):
    """Angles of every token, the three axes interleaved, unrotated channels in front.

    Source: `Transformer3DModel.precompute_freqs_cis` of the official `ltx-video` package.
    """

    frequencies: Tensor
    max_position: Tensor

    def __init__(
        self, width: int, theta: float = THETA, max_position: tuple[float, float, float] = MAX_POSITION
    ) -> None:
        super().__init__()
        self.unrotated_pairs = width % 6 // 2
        # Real constants computed by torch, even where parameters are on the meta device: folded by another
        # library's pow they differ by 6.6e-7, and times 15708 rad that shows in the velocity.
        exponents = torch.linspace(0.0, 1.0, width // 6, dtype=torch.float32, device="cpu")
        maximum = torch.tensor(max_position, dtype=torch.float32, device="cpu")
        self.register_buffer("frequencies", theta**exponents * math.pi / 2, persistent=False)
        self.register_buffer("max_position", maximum, persistent=False)

    def forward(self, coords: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, N) float32 in (s, px, px) -> cosines and sines, both (B, N, width // 2) float32."""
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
    """Cosines and sines (B, N, width // 2) as `rotate` takes them: (1, B * N * pieces, width // pieces // 2).

    ONNX Runtime's CUDA kernel has a thread for every channel of a head, 1,024 at most, and our one head is as wide as
    the model: 2,048 or 4,096. It has a block for every position of a sequence, of which there may be any number, so all
    pieces of all tokens become one sequence. Exact: only adjacent channels are rotated with each other.
    """
    width = cosines.shape[-1]
    piece = width // -(-2 * width // _WIDEST)
    return cosines.reshape(1, -1, piece), sines.reshape(1, -1, piece)


def rotate(x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Rotates adjacent channel pairs of (B, N, width) float32, before the split into heads.

    Args:
        x: queries or keys.
        cosines, sines: of every token, in pieces.
    """
    pieces = x.reshape(1, -1, 2 * cosines.shape[-1])
    return torch.onnx.ops.rotary_embedding(pieces, cosines, sines, interleaved=True, num_heads=1).reshape(x.shape)
