"""Building blocks of the VAEs: convolutions over time, residual blocks, patches, up- and downsampling."""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ltx_export.models.layers import TimestepEmbedding

PaddingMode = Literal["zeros", "replicate", "reflect"]
PADDING_MODES: tuple[PaddingMode, ...] = get_args(PaddingMode)

PATCH = 4
RGB = 3

_PIXEL_NORM_EPS = 1e-8
_SHORTCUT_NORM_EPS = 1e-6


def pixel_norm(x: Tensor) -> Tensor:
    """Divides x (B, C, F, H, W) by its root mean square over channels, in float32 with an epsilon of 1e-8."""
    wide = x.float()
    return (wide / torch.sqrt((wide * wide).mean(dim=1, keepdim=True) + _PIXEL_NORM_EPS)).to(x.dtype)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Modulates x (B, C, F, H, W) with shift and scale, each (B, C, 1, 1, 1)."""
    return x * (1 + scale) + shift


def over_space(x: Tensor) -> Tensor:
    """Reshapes (B, C) to (B, C, 1, 1, 1), to be broadcast over frames, rows and columns."""
    return x.unsqueeze(-1).unsqueeze(-1).unsqueeze(-1)


def frames(x: Tensor, start: int, end: int | None = None) -> Tensor:
    """Returns x[:, :, start:end] as one slice; tracing that expression would add a slice for each earlier axis too."""
    return torch.ops.aten.slice.Tensor(x, 2, start, end)


class Conv(nn.Module):
    """A 3x3x3 convolution with spatial padding by `padding_mode`.

    In time it pads by repeating the first and the last frame once or, if it is causal, the first one twice. A causal
    convolution with a stride of 2 turns H rows into H/2, W columns into W/2, and an odd number F of frames into
    (F+1)/2.
    """

    def __init__(
        self, channels: int, out_channels: int, padding_mode: PaddingMode, *, causal: bool = False, stride: int = 1
    ) -> None:
        super().__init__()
        self.causal = causal
        self.conv = nn.Conv3d(channels, out_channels, 3, stride=stride, padding=(0, 1, 1), padding_mode=padding_mode)

    def forward(self, x: Tensor) -> Tensor:
        first = frames(x, 0, 1)
        return self.conv(torch.cat([first, first, x] if self.causal else [first, x, frames(x, -1)], dim=2))


class ShortcutNorm(nn.Module):
    """Layer norm over channels, named `norm3.norm` in checkpoints."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels, eps=_SHORTCUT_NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.permute(0, 2, 3, 4, 1)).permute(0, 4, 1, 2, 3)


class ResBlock(nn.Module):
    """Residual block: twice norm, [modulation], SiLU, convolution, [noise]; then the input is added.

    The input is projected if the number of channels changes. Parts in brackets are optional.
    """

    def __init__(
        self,
        channels: int,
        out_channels: int,
        padding_mode: PaddingMode,
        *,
        causal: bool = False,
        timestep: bool = False,
        inject_noise: bool = False,
    ) -> None:
        super().__init__()
        self.conv1 = Conv(channels, out_channels, padding_mode, causal=causal)
        self.conv2 = Conv(out_channels, out_channels, padding_mode, causal=causal)
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
        """Applies the block with a timestep embedding `embedded` (B, 4C, 1, 1, 1) and two maps `noise` (2, H, W).

        The noise maps are shared by batch and frames.
        """
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
    """Residual blocks of equal width (`res_x`), with one timestep embedding for all of them."""

    def __init__(
        self,
        channels: int,
        layers: int,
        padding_mode: PaddingMode,
        *,
        causal: bool = False,
        timestep: bool = False,
        inject_noise: bool = False,
    ) -> None:
        super().__init__()
        if timestep:
            self.time_embedder = TimestepEmbedding(4 * channels)
        kind = {"causal": causal, "timestep": timestep, "inject_noise": inject_noise}
        self.res_blocks = nn.ModuleList([ResBlock(channels, channels, padding_mode, **kind) for _ in range(layers)])

    def forward(self, x: Tensor, sinusoid: Tensor | None = None, noise: Tensor | None = None) -> Tensor:
        """Applies all blocks; `sinusoid` (B, 256) is that of the timestep, `noise` is (2 * layers, H, W)."""
        embedded = None if sinusoid is None else over_space(self.time_embedder(sinusoid))
        for i, block in enumerate(self.res_blocks):
            x = block(x, embedded, None if noise is None else noise[2 * i : 2 * i + 2])
        return x


def patchify(x: Tensor) -> Tensor:
    """Moves 4x4 pixels to channels, ordered (c, column, row): (B, 3, F, 4H, 4W) -> (B, 48, F, H, W)."""
    batch, channels, frames, height, width = x.shape
    rows, columns = height // PATCH, width // PATCH
    x = x.reshape(batch, channels, frames, rows, PATCH, columns, PATCH)
    x = x.permute(0, 1, 6, 4, 2, 3, 5)
    return x.reshape(batch, channels * PATCH**2, frames, rows, columns)


def unpatchify(x: Tensor) -> Tensor:
    """Moves channels, ordered (c, column, row), to 4x4 pixels: (B, 48, F, H, W) -> (B, 3, F, 4H, 4W)."""
    batch, channels, frames, rows, columns = x.shape
    x = x.reshape(batch, channels // PATCH**2, PATCH, PATCH, frames, rows, columns)
    x = x.permute(0, 1, 4, 5, 3, 6, 2)
    return x.reshape(batch, channels // PATCH**2, frames, PATCH * rows, PATCH * columns)


def fold(x: Tensor, factors: tuple[int, int, int]) -> Tensor:
    """Moves time and space to channels: (B, C, tF, hH, wW) -> (B, Cthw, F, H, W) ordered (c, pt, ph, pw)."""
    batch, channels, *sizes = x.shape
    (t, h, w), (frames, rows, columns) = factors, (size // factor for size, factor in zip(sizes, factors, strict=True))
    x = x.reshape(batch, channels, frames, t, rows, h, columns, w)
    x = x.permute(0, 1, 3, 5, 7, 2, 4, 6)
    return x.reshape(batch, channels * t * h * w, frames, rows, columns)


def unfold(x: Tensor) -> Tensor:
    """Moves channels to space and time: (B, 8C, F, H, W) ordered (c, pt, ph, pw) -> (B, C, 2F, 2H, 2W)."""
    batch, channels, frames, rows, columns = x.shape
    x = x.reshape(batch, channels // 8, 2, 2, 2, frames, rows, columns)
    x = x.permute(0, 1, 5, 2, 6, 3, 7, 4)
    return x.reshape(batch, channels // 8, 2 * frames, 2 * rows, 2 * columns)


class Upsample(nn.Module):
    """Doubles frames, rows and columns and drops the first frame.

    Block lists call it `compress_all`, the name of its inverse in the encoder.
    """

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


class Downsample(nn.Module):
    """Folds a convolution of x into channels, and adds x folded and averaged over groups of channels.

    Block lists call it `compress_*_res`. Before it halves frames, it repeats the first one, so that an odd F becomes
    (F+1)/2.
    """

    def __init__(
        self, channels: int, out_channels: int, padding_mode: PaddingMode, factors: tuple[int, int, int]
    ) -> None:
        super().__init__()
        self.conv = Conv(channels, out_channels // math.prod(factors), padding_mode, causal=True)
        self.factors = factors
        self.averaged = channels * math.prod(factors) // out_channels

    def forward(self, x: Tensor) -> Tensor:
        if self.factors[0] > 1:
            x = torch.cat([frames(x, 0, 1), x], dim=2)
        mean = fold(x, self.factors)
        if self.averaged > 1:
            mean = mean.unflatten(1, (-1, self.averaged)).mean(dim=2)
        return fold(self.conv(x), self.factors) + mean


class ChannelStatistics(nn.Module):
    """Per-channel mean and standard deviation of latents, under the checkpoint's hyphenated names.

    Subclasses use them in their own forward, because a layer's weights may be loaded only while that layer runs.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_parameter("mean-of-means", nn.Parameter(torch.empty(channels)))
        self.register_parameter("std-of-means", nn.Parameter(torch.empty(channels)))

    def mean(self) -> Tensor:
        """Returns the means, (C, 1, 1, 1) in float32."""
        return self.get_parameter("mean-of-means").float()[:, None, None, None]

    def deviation(self) -> Tensor:
        """Returns the standard deviations, (C, 1, 1, 1) in float32."""
        return self.get_parameter("std-of-means").float()[:, None, None, None]
