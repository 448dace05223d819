"""Building blocks of the VAE decoders: convolutions over time, residual blocks, upsampling."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ltx_export.models.layers import TimestepEmbedding

PaddingMode = Literal["zeros", "replicate", "reflect"]

_PIXEL_NORM_EPS = 1e-8
_SHORTCUT_NORM_EPS = 1e-6


def pixel_norm(x: Tensor) -> Tensor:
    """Divides (B, C, F, H, W) by the root mean square over channels, in float32: eps is 1e-8."""
    wide = x.float()
    return (wide / torch.sqrt((wide * wide).mean(dim=1, keepdim=True) + _PIXEL_NORM_EPS)).to(x.dtype)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """(B, C, F, H, W) by shift and scale (B, C, 1, 1, 1)."""
    return x * (1 + scale) + shift


def over_space(x: Tensor) -> Tensor:
    """(B, C) to (B, C, 1, 1, 1)."""
    return x.unsqueeze(-1).unsqueeze(-1).unsqueeze(-1)


def frames(x: Tensor, start: int, end: int | None = None) -> Tensor:
    """x[:, :, start:end] as one operation: tracing an index makes one for every axis in front too."""
    return torch.ops.aten.slice.Tensor(x, 2, start, end)


class Conv(nn.Module):
    """A 3x3x3 convolution that repeats the first and the last frame once; spatial padding by `padding_mode`."""

    def __init__(self, channels: int, out_channels: int, padding_mode: PaddingMode) -> None:
        super().__init__()
        self.conv = nn.Conv3d(channels, out_channels, 3, padding=(0, 1, 1), padding_mode=padding_mode)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(torch.cat([frames(x, 0, 1), x, frames(x, -1)], dim=2))


class ShortcutNorm(nn.Module):
    """Layer norm over channels, named `norm3.norm` in checkpoints."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels, eps=_SHORTCUT_NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.permute(0, 2, 3, 4, 1)).permute(0, 4, 1, 2, 3)


class ResBlock(nn.Module):
    """norm, [modulate], SiLU, conv, [noise], twice, plus the input (projected if channels change)."""

    def __init__(
        self,
        channels: int,
        out_channels: int,
        padding_mode: PaddingMode,
        *,
        timestep: bool = False,
        inject_noise: bool = False,
    ) -> None:
        super().__init__()
        self.conv1 = Conv(channels, out_channels, padding_mode)
        self.conv2 = Conv(out_channels, out_channels, padding_mode)
        self.changes_channels = channels != out_channels
        if self.changes_channels:
            self.norm3 = ShortcutNorm(channels)
            self.conv_shortcut = nn.Conv3d(channels, out_channels, 1)
        if inject_noise:
            self.per_channel_scale1 = nn.Parameter(torch.empty(out_channels, 1, 1))
            self.per_channel_scale2 = nn.Parameter(torch.empty(out_channels, 1, 1))
        if timestep:
            self.scale_shift_table = nn.Parameter(torch.empty(4, channels))

    def forward(self, x: Tensor, embedded: Tensor | None = None, noise: Tensor | None = None) -> Tensor:
        """`embedded` (B, 4C, 1, 1, 1) is the timestep's, `noise` two maps (2, H, W) shared by batch and frames."""
        h = pixel_norm(x)
        if embedded is not None:
            modulation = self.scale_shift_table.reshape(-1, 1, 1, 1) + embedded
            shift1, scale1, shift2, scale2 = modulation.chunk(4, dim=1)
            h = modulate(h, shift1, scale1)
        h = self.conv1(F.silu(h))
        if noise is not None:
            h = h + (noise[0] * self.per_channel_scale1)[None, :, None]
        h = pixel_norm(h)
        if embedded is not None:
            h = modulate(h, shift2, scale2)
        h = self.conv2(F.silu(h))
        if noise is not None:
            h = h + (noise[1] * self.per_channel_scale2)[None, :, None]
        if self.changes_channels:
            x = self.conv_shortcut(self.norm3(x))
        return x + h


class ResStack(nn.Module):
    """Residual layers of equal width (`res_x`), with one timestep embedding for all of them."""

    def __init__(
        self, channels: int, layers: int, padding_mode: PaddingMode, *, timestep: bool, inject_noise: bool
    ) -> None:
        super().__init__()
        if timestep:
            self.time_embedder = TimestepEmbedding(4 * channels)
        self.res_blocks = nn.ModuleList(
            [
                ResBlock(channels, channels, padding_mode, timestep=timestep, inject_noise=inject_noise)
                for _ in range(layers)
            ]
        )

    def forward(self, x: Tensor, scaled_timestep: Tensor | None, noise: Tensor | None) -> Tensor:
        """`scaled_timestep` is (B,) in 0..1000, `noise` (2 * layers, H, W)."""
        embedded = None if scaled_timestep is None else over_space(self.time_embedder(scaled_timestep))
        for i, block in enumerate(self.res_blocks):
            x = block(x, embedded, None if noise is None else noise[2 * i : 2 * i + 2])
        return x


def unfold(x: Tensor) -> Tensor:
    """Moves channels to space and time: (B, 8C, F, H, W) ordered (c, pt, ph, pw) -> (B, C, 2F, 2H, 2W)."""
    batch, channels, frames, rows, columns = x.shape
    x = x.reshape(batch, channels // 8, 2, 2, 2, frames, rows, columns)
    x = x.permute(0, 1, 5, 2, 6, 3, 7, 4)
    return x.reshape(batch, channels // 8, 2 * frames, 2 * rows, 2 * columns)


class Upsample(nn.Module):
    """Doubles frames, rows and columns and drops the first frame (`compress_all` written encoder-style)."""

    def __init__(self, channels: int, out_channels: int, padding_mode: PaddingMode, *, residual: bool) -> None:
        super().__init__()
        self.conv = Conv(channels, 8 * out_channels, padding_mode)
        self.residual = residual
        self.repeats = 8 * out_channels // channels

    def forward(self, x: Tensor) -> Tensor:
        h = unfold(self.conv(x))
        if self.residual:
            h = h + unfold(x).repeat(1, self.repeats, 1, 1, 1)
        return frames(h, 1)
