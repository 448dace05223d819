"""The T5 v1.1 encoder with Hugging Face's parameter names, from token ids to the last hidden state."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ltx_export.models.layers import RMSNorm, attention

_EPS = 1e-6
# Low enough to outweigh every score, and finite in fp16 and bf16.
_MASKED = -30000.0
# The products before the last projection, and its results, exceed the range of fp16, so they are divided by this;
# a power of two costs no accuracy.
_HALF_RANGE = 64.0
_BUCKETS = 32
# Distances n at which the next logarithmic bucket starts: 8 + floor(ln(n/8) / ln(128/8) * 8), capped at 15.
_BUCKET_STARTS = (12, 16, 23, 32, 46, 64, 91)
_EXACT_BUCKETS = 8


@dataclass(frozen=True)
class T5Config:
    """Sizes of a T5 encoder with a gated tanh-GELU and relative positions in 32 buckets."""

    layers: int
    width: int
    heads: int
    head_dim: int
    hidden: int
    vocabulary: int


class SelfAttention(nn.Module):
    """Unscaled self-attention; only the first block owns the relative position table, which all blocks use."""

    def __init__(self, config: T5Config, has_positions: bool) -> None:
        super().__init__()
        inner = config.heads * config.head_dim
        self.heads = config.heads
        self.q = nn.Linear(config.width, inner, bias=False)
        self.k = nn.Linear(config.width, inner, bias=False)
        self.v = nn.Linear(config.width, inner, bias=False)
        self.o = nn.Linear(inner, config.width, bias=False)
        if has_positions:
            self.relative_attention_bias = nn.Embedding(_BUCKETS, config.heads)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        return self.o(attention(self.q(x), self.k(x), self.v(x), self.heads, bias, scale=1.0))


class AttentionLayer(nn.Module):
    def __init__(self, config: T5Config, has_positions: bool) -> None:
        super().__init__()
        self.SelfAttention = SelfAttention(config, has_positions)
        self.layer_norm = RMSNorm(config.width, _EPS)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        dtype = self.SelfAttention.q.weight.dtype
        return x + self.SelfAttention(self.layer_norm(x).to(dtype), bias.to(dtype)).float()


class DenseReluDense(nn.Module):
    """Gated feed-forward; wi_0 is the activated branch, wi_1 the linear one."""

    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.wi_0 = nn.Linear(config.width, config.hidden, bias=False)
        self.wi_1 = nn.Linear(config.width, config.hidden, bias=False)
        self.wo = nn.Linear(config.hidden, config.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the output of the gated feed-forward in float32."""
        gated = F.gelu(self.wi_0(x), approximate="tanh").float() * self.wi_1(x).float()
        return self.wo((gated * (1 / _HALF_RANGE)).to(x.dtype)).float() * _HALF_RANGE


class FeedForwardLayer(nn.Module):
    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.DenseReluDense = DenseReluDense(config)
        self.layer_norm = RMSNorm(config.width, _EPS)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.DenseReluDense(self.layer_norm(x).to(self.DenseReluDense.wo.weight.dtype))


class Block(nn.Module):
    def __init__(self, config: T5Config, has_positions: bool) -> None:
        super().__init__()
        self.layer = nn.ModuleList([AttentionLayer(config, has_positions), FeedForwardLayer(config)])

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        return self.layer[1](self.layer[0](x, bias))


class Stack(nn.Module):
    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.block = nn.ModuleList([Block(config, has_positions=i == 0) for i in range(config.layers)])
        self.final_layer_norm = RMSNorm(config.width, _EPS)

    def position_table(self) -> nn.Module:
        """Returns the first block's relative position table, which all blocks use."""
        return self.get_submodule("block.0.layer.0.SelfAttention.relative_attention_bias")


def position_buckets(length: int, device: torch.device) -> Tensor:
    """Returns the bidirectional bucket of every (query, key) pair, (length, length) int64, by integer arithmetic."""
    position = torch.arange(length, device=device)
    relative = position[None, :] - position[:, None]  # key - query
    distance = relative.abs()
    bucket = torch.clamp(distance, max=_EXACT_BUCKETS)
    for start in _BUCKET_STARTS:
        bucket = bucket + (distance >= start).to(torch.int64)
    return bucket + (relative > 0).to(torch.int64) * (_BUCKETS // 2)


class TextEncoder(nn.Module):
    """T5 encoder with the ports of `ltx_runtime.spec.components.text_encoder`.

    The residual stream is float32 because its values exceed the range of fp16.
    """

    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.shared = nn.Embedding(config.vocabulary, config.width)
        self.encoder = Stack(config)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Returns the prompt embeddings, (B, T, width) float32."""
        x = self.shared(ids).float()
        positions = self.encoder.position_table()(position_buckets(ids.shape[1], ids.device))
        positions = positions.permute(2, 0, 1).unsqueeze(0)  # (1, heads, T, T)
        masked = (mask == 0).float()[:, None, None, :] * _MASKED
        bias = positions.float() + masked  # (B, heads, T, T)
        for block in self.encoder.block:
            x = block(x, bias)
        return self.encoder.final_layer_norm(x)
