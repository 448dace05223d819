"""The latent upsamplers (`LatentUpsampler` of the official package): double height and width, or the frame rate.

The network works on latents in the VAE's own scale, but the pipeline's latents are normalized, so the VAE's statistics
are constants of the graph. Knows nothing of files, nor of what is done with the latents before and after.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

GROUPS = 32  # number of groups in every group norm
_NORM_EPS = 1e-5

Resampling = Literal["spatial", "temporal"]
# Number of channels that are unfolded into one channel at twice the size.
UNFOLDED: dict[Resampling, int] = {"spatial": 4, "temporal": 2}


@dataclass(frozen=True)
class UpsamplerConfig:
    """Sizes of an upsampler.

    Attributes:
        channels: number of latent channels.
        mid_channels: number of channels inside the network, a multiple of GROUPS.
        blocks_per_stage: number of residual blocks before the upsampling, and again after it.
        dims: dimensions of the convolutions; with 2, every frame is upsampled alone, so a temporal upsampler needs 3.
        resampling: `spatial` doubles height and width, `temporal` doubles the frame rate.
    """

    channels: int
    mid_channels: int
    blocks_per_stage: int
    dims: int = 3
    resampling: Resampling = "spatial"


@dataclass(frozen=True)
class Statistics:
    """The VAE's mean and standard deviation of every latent channel, each (C,) float32."""

    mean: NDArray[np.float32]
    deviation: NDArray[np.float32]


class GroupNorm(nn.Module):
    """Group norm with GROUPS groups, computed in float32 whatever x's dtype; the result has x's dtype."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels))
        self.bias = nn.Parameter(torch.empty(channels))

    def forward(self, x: Tensor) -> Tensor:
        return F.group_norm(x.float(), GROUPS, self.weight.float(), self.bias.float(), _NORM_EPS).to(x.dtype)


def _conv(channels: int, out_channels: int, dims: int) -> nn.Conv2d | nn.Conv3d:
    return (nn.Conv2d if dims == 2 else nn.Conv3d)(channels, out_channels, 3, padding=1)


class UpsamplerBlock(nn.Module):
    """Residual block: convolution, norm, SiLU, convolution, norm, addition of the input, SiLU."""

    def __init__(self, channels: int, dims: int) -> None:
        super().__init__()
        self.conv1 = _conv(channels, channels, dims)
        self.norm1 = GroupNorm(channels)
        self.conv2 = _conv(channels, channels, dims)
        self.norm2 = GroupNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        h = F.silu(self.norm1(self.conv1(x)))
        return F.silu(self.norm2(self.conv2(h)) + x)


def _contiguous(x: Tensor) -> Tensor:
    """Returns a contiguous copy, because tracing would depend on the sizes of permuted axes where they are merged."""
    return x.clone(memory_format=torch.contiguous_format)


def framewise(x: Tensor) -> Tensor:
    """Reshapes (B, C, F, H, W) to (B*F, C, H, W), so that every frame is processed alone."""
    return _contiguous(x.transpose(1, 2)).flatten(0, 1)


def clips(x: Tensor, batch: int) -> Tensor:
    """Reshapes (B*F, C, H, W) back to (B, C, F, H, W)."""
    return _contiguous(x.unflatten(0, (batch, -1)).transpose(1, 2))


def unfold_time(x: Tensor) -> Tensor:
    """Unfolds (B, 2C, F, H, W) ordered (c, pt) to (B, C, 2F-1, H, W): the first of the 2F frames is dropped."""
    batch, channels, frames, rows, columns = x.shape
    x = _contiguous(x.reshape(batch, channels // 2, 2, frames, rows, columns).permute(0, 1, 3, 2, 4, 5))
    return torch.ops.aten.slice.Tensor(x.reshape(batch, channels // 2, 2 * frames, rows, columns), 2, 1)


class LatentUpsampler(nn.Module):
    """Upsampler with the ports of `ltx_runtime.spec.components.upsampler` or `temporal_upsampler`."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, config: UpsamplerConfig, statistics: Statistics) -> None:
        super().__init__()
        mid, dims = config.mid_channels, config.dims
        self.resampling, self.is_framewise = config.resampling, dims == 2
        # Constants are created on the CPU because parameters may be on the meta device.
        for name, values in (("mean", statistics.mean), ("deviation", statistics.deviation)):
            constant = torch.tensor(values, dtype=torch.float32, device="cpu")[:, None, None, None]
            self.register_buffer(name, constant, persistent=False)
        self.initial_conv = _conv(config.channels, mid, dims)
        self.initial_norm = GroupNorm(mid)
        self.res_blocks = nn.ModuleList([UpsamplerBlock(mid, dims) for _ in range(config.blocks_per_stage)])
        out_channels = UNFOLDED[config.resampling] * mid
        self.upsampler = nn.ModuleList([_conv(mid, out_channels, 2 if config.resampling == "spatial" else 3)])
        self.post_upsample_res_blocks = nn.ModuleList(
            [UpsamplerBlock(mid, dims) for _ in range(config.blocks_per_stage)]
        )
        self.final_conv = _conv(mid, config.channels, dims)

    def forward(self, latents: Tensor) -> Tensor:
        """Upsamples normalized latents (B, C, F, H, W) float32; the result is float32 and normalized too."""
        x = (latents * self.deviation + self.mean).to(self.final_conv.weight.dtype)
        batch = x.shape[0]
        x = clips(self._upsampled(framewise(x)), batch) if self.is_framewise else self._upsampled(x)
        return (x.float() - self.mean) / self.deviation

    def _upsampled(self, x: Tensor) -> Tensor:
        x = F.silu(self.initial_norm(self.initial_conv(x)))
        for block in self.res_blocks:
            x = block(x)
        x = self._resampled(x)
        for block in self.post_upsample_res_blocks:
            x = block(x)
        return self.final_conv(x)

    def _resampled(self, x: Tensor) -> Tensor:
        if self.resampling == "temporal":
            return unfold_time(self.upsampler[0](x))
        if self.is_framewise:
            return F.pixel_shuffle(self.upsampler[0](x), 2)
        return clips(F.pixel_shuffle(self.upsampler[0](framewise(x)), 2), x.shape[0])
