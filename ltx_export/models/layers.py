"""Layers that several networks use: RMS norm in float32, the timestep embedding, attention."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ltx_runtime.spec.encodings import SINUSOID_CHANNELS


class RMSNorm(nn.Module):
    """Root mean square norm over the last axis; the result is float32 whatever x's dtype, so callers cast if needed."""

    weight: Tensor

    def __init__(self, width: int, eps: float, *, affine: bool = True) -> None:
        super().__init__()
        self.eps = eps
        if affine:
            self.weight = nn.Parameter(torch.empty(width))
        else:  # ONNX's operator needs a weight; without one the exporter would add a tensor of ones in x's whole shape
            self.register_buffer("weight", torch.ones(width, dtype=torch.float32, device="cpu"), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), x.shape[-1:], self.weight.float(), self.eps)


class TimestepEmbedder(nn.Module):
    """Two-layer perceptron on the sinusoid of the timestep."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(SINUSOID_CHANNELS, width)
        self.linear_2 = nn.Linear(width, width)

    def forward(self, sinusoid: Tensor) -> Tensor:
        return self.linear_2(F.silu(self.linear_1(sinusoid.to(self.linear_1.weight.dtype))))


class TimestepEmbedding(nn.Module):
    """Embeds the sinusoid (..., 256) of a timestep as (..., width); it only adds a level to the checkpoint's names."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.timestep_embedder = TimestepEmbedder(width)

    def forward(self, sinusoid: Tensor) -> Tensor:
        return self.timestep_embedder(sinusoid)


def attention(
    query: Tensor, key: Tensor, value: Tensor, heads: int, bias: Tensor | None = None, scale: float | None = None
) -> Tensor:
    """Computes multi-head attention, (B, N, width), with ONNX's own Attention operator.

    Args:
        query, key, value: tensors (B, N, width), (B, L, width) and (B, L, width).
        heads: number of heads that split the width.
        bias: added to the scores, broadcastable to (B, heads, N, L).
        scale: factor of the scores; 1/sqrt(width / heads) if None.
    """
    return torch.onnx.ops.attention(query, key, value, bias, q_num_heads=heads, kv_num_heads=heads, scale=scale)[0]
