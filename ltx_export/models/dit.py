"""The diffusion transformer (`Transformer3DModel` of the official package), which predicts velocity from latents."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ltx_export.models.layers import RMSNorm, TimestepEmbedding, attention
from ltx_export.models.rope import MAX_POSITION, THETA, in_pieces, rope_of, rotate
from ltx_runtime.spec.encodings import Rope

_MASKED = -10000.0  # added to masked scores; the official code uses this value, not -inf
_NORM_EPS = 1e-6
_QK_NORM_EPS = 1e-5
_PARTS = 6  # parts of a modulation: shift, scale and gate for self-attention, and the same for the feed-forward


@dataclass(frozen=True)
class Kept:
    """Masks of the batch rows that one block computes as usual, (B, 1, 1) bool for each of the runtime's STG_MODES.

    Where several masks are false, the last of them decides.
    """

    attention_values: Tensor  # where false, each token's own value replaces the attention's result, before `to_out`
    attention_skip: Tensor  # where false, self-attention's input replaces the attention's result, before `to_out`
    transformer_block: Tensor  # where false, the block returns its input


@dataclass(frozen=True)
class DitConfig:
    """Sizes and RoPE constants of a DiT."""

    layers: int
    heads: int
    head_dim: int
    channels: int = 128
    text_channels: int = 4096
    theta: float = THETA
    max_position: tuple[float, float, float] = MAX_POSITION

    @property
    def width(self) -> int:
        return self.heads * self.head_dim

    @property
    def rope(self) -> Rope:
        return rope_of(self.width, self.theta, self.max_position)


class AdaLayerNormSingle(nn.Module):
    """Computes one modulation for all blocks from the sinusoid of the timestep (B, T, 256).

    Returns the six parts of the modulation and the timestep embedding, each (B, T, width).
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.emb = TimestepEmbedding(width)
        self.linear = nn.Linear(width, _PARTS * width)

    def forward(self, sinusoid: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
        embedded = self.emb(sinusoid)
        return self.linear(F.silu(embedded)).chunk(_PARTS, -1), embedded


class CaptionProjection(nn.Module):
    """Projects prompt embeddings to the DiT's width."""

    def __init__(self, text_channels: int, width: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(text_channels, width)
        self.linear_2 = nn.Linear(width, width)

    def forward(self, text: Tensor) -> Tensor:
        return self.linear_2(F.gelu(self.linear_1(text), approximate="tanh"))


class Attention(nn.Module):
    """Attention with queries and keys RMS-normalized over the whole width, before rotation and the split into heads."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(width, width)
        self.to_k = nn.Linear(width, width)
        self.to_v = nn.Linear(width, width)
        self.q_norm = RMSNorm(width, _QK_NORM_EPS)
        self.k_norm = RMSNorm(width, _QK_NORM_EPS)
        self.to_out = nn.ModuleList([nn.Linear(width, width)])

    def forward(
        self,
        x: Tensor,
        source: Tensor,
        rope: tuple[Tensor, Tensor] | None = None,
        bias: Tensor | None = None,
        kept: Kept | None = None,
    ) -> Tensor:
        """Lets x (B, N, width) attend to source (B, L, width); where `kept` is false, values or x are passed on."""
        query, key, value = self.q_norm(self.to_q(x)), self.k_norm(self.to_k(source)), self.to_v(source)
        if rope is not None:
            query, key = rotate(query, *rope), rotate(key, *rope)
        attended = attention(query.to(x.dtype), key.to(x.dtype), value, self.heads, bias)
        if kept is not None:
            attended = torch.where(kept.attention_values, attended, value)
            attended = torch.where(kept.attention_skip, attended, x)
        return self.to_out[0](attended)


class GeluProjection(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Linear(width, 4 * width)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.proj(x), approximate="tanh")


class FeedForward(nn.Module):
    """Feed-forward with the checkpoint's names, net.0.proj and net.2; net.1 is an identity in place of dropout."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = nn.ModuleList([GeluProjection(width), nn.Identity(), nn.Linear(4 * width, width)])

    def forward(self, x: Tensor) -> Tensor:
        return self.net[2](self.net[0](x))


class Block(nn.Module):
    """A transformer block: modulated self-attention, unmodulated cross-attention, modulated feed-forward."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.scale_shift_table = nn.Parameter(torch.empty(_PARTS, width))
        self.norm1 = RMSNorm(width, _NORM_EPS, affine=False)
        self.norm2 = RMSNorm(width, _NORM_EPS, affine=False)
        self.attn1 = Attention(width, heads)
        self.attn2 = Attention(width, heads)
        self.ff = FeedForward(width)

    def forward(
        self,
        x: Tensor,
        modulation: tuple[Tensor, ...],
        rope: tuple[Tensor, Tensor],
        text: Tensor,
        text_bias: Tensor,
        skip_mask: Tensor | None,
    ) -> tuple[Tensor, Tensor | None]:
        """Returns x (B, N, width), and the rows of `skip_mask` (remaining layers, 3, B) for the blocks after this one.

        A block takes the first row as its own, so that all blocks have the same graph whatever their index.
        """
        masks, block_input = None, x
        if skip_mask is not None:
            masks, skip_mask = _masks_of(skip_mask[0]), skip_mask[1:]
        # The table is added to the modulation here in each block: with one timestep per token, the six sums of all
        # blocks at once would fill a GPU's memory. No reshape here contains the number of timesteps, so that one graph
        # accepts one timestep or one per token.
        rows = self.scale_shift_table.chunk(_PARTS)
        shift_msa, scale_msa, gate_msa, shift_mlp, scale_mlp, gate_mlp = map(torch.add, rows, modulation)
        h = self.norm1(x).to(x.dtype) * (1 + scale_msa) + shift_msa
        x = x + gate_msa * self.attn1(h, h, rope=rope, kept=masks)
        x = x + self.attn2(x, text, bias=text_bias)  # the raw residual stream: no norm, no gate
        h = self.norm2(x).to(x.dtype) * (1 + scale_mlp) + shift_mlp
        x = x + gate_mlp * self.ff(h)
        return x if masks is None else torch.where(masks.transformer_block, x, block_input), skip_mask


def _masks_of(modes: Tensor) -> Kept:
    """Converts a block's own row (3, B) of the skip mask (1 = keep, 0 = skip) to boolean masks."""
    masks = (modes > 0.5)[:, :, None, None]
    return Kept(masks[0], masks[1], masks[2])


class Transformer(nn.Module):
    """The whole DiT, with the ports of `ltx_runtime.spec.components.transformer`."""

    def __init__(self, config: DitConfig) -> None:
        super().__init__()
        width = config.width
        self.patchify_proj = nn.Linear(config.channels, width)
        self.adaln_single = AdaLayerNormSingle(width)
        self.caption_projection = CaptionProjection(config.text_channels, width)
        self.transformer_blocks = nn.ModuleList([Block(width, config.heads) for _ in range(config.layers)])
        self.scale_shift_table = nn.Parameter(torch.empty(2, width))
        self.proj_out = nn.Linear(width, config.channels)

    def forward(
        self,
        latents: Tensor,
        sinusoid: Tensor,
        cosines: Tensor,
        sines: Tensor,
        text: Tensor,
        text_mask: Tensor,
        skip_mask: Tensor | None = None,
    ) -> Tensor:
        """Returns the velocity, (B, N, channels) float32."""
        dtype = self.patchify_proj.weight.dtype
        x = self.patchify_proj(latents.to(dtype))
        modulation, embedded = self.adaln_single(sinusoid)
        text = self.caption_projection(text.to(dtype))
        text_bias = ((text_mask == 0).float() * _MASKED).to(dtype)  # (B, L)
        # ONNX Runtime's Attention does not broadcast the bias over queries.
        text_bias = text_bias[:, None, None, :].expand(-1, 1, x.shape[1], -1)
        rope = in_pieces(cosines, sines, x.shape[0])
        for block in self.transformer_blocks:
            x, skip_mask = block(x, modulation, rope, text, text_bias, skip_mask)
        shift, scale = (self.scale_shift_table.reshape(-1) + torch.cat([embedded, embedded], -1)).chunk(2, -1)
        x = F.layer_norm(x.float(), (x.shape[-1],), eps=_NORM_EPS).to(dtype)
        return self.proj_out(x * (1 + scale) + shift).float()
