"""The VAE encoders of generations A and B (0.9.0, 0.9.1) and C (0.9.5 and later), from video to the posterior."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ltx_export.models.vae_blocks import (
    PATCH,
    RGB,
    ChannelStatistics,
    Conv,
    Downsample,
    PaddingMode,
    ResBlock,
    ResStack,
    patchify,
    pixel_norm,
)

EncoderBlockKind = Literal[
    "res_x", "res_x_y", "compress_all", "compress_space_res", "compress_time_res", "compress_all_res"
]
# Factors by which a block divides frames, rows and columns; other blocks keep them.
COMPRESSED: dict[EncoderBlockKind, tuple[int, int, int]] = {
    "compress_all": (2, 2, 2),
    "compress_space_res": (1, 2, 2),
    "compress_time_res": (2, 1, 1),
    "compress_all_res": (2, 2, 2),
}
FOLDING = ("compress_space_res", "compress_time_res", "compress_all_res")
_LOG_VARIANCES = (-30.0, 20.0)


@dataclass(frozen=True)
class EncoderBlock:
    """One entry of a checkpoint's block list; `multiplier` multiplies the channels."""

    kind: EncoderBlockKind
    layers: int = 1
    multiplier: int = 1


@dataclass(frozen=True)
class EncoderConfig:
    """Configuration of an encoder; `blocks` are in the order they are applied, which is that of a checkpoint's list."""

    blocks: tuple[EncoderBlock, ...]
    latent_channels: int = 128
    base_channels: int = 128
    padding_mode: PaddingMode = "zeros"


def _block(block: EncoderBlock, channels: int, mode: PaddingMode) -> nn.Module:
    out_channels = channels * block.multiplier
    if block.kind == "res_x":
        return ResStack(channels, block.layers, mode, causal=True)
    if block.kind == "res_x_y":
        return ResBlock(channels, out_channels, mode, causal=True)
    if block.kind == "compress_all":
        return Conv(channels, out_channels, mode, causal=True, stride=2)
    return Downsample(channels, out_channels, mode, COMPRESSED[block.kind])


class Encoder(nn.Module):
    """Encodes video (B, 3, 8F-7, 32H, 32W) as means and one log-variance (B, C+1, F, H, W) in the VAE's own scale."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        channels = config.base_channels
        self.conv_in = Conv(RGB * PATCH**2, channels, config.padding_mode, causal=True)
        self.down_blocks = nn.ModuleList()
        for block in config.blocks:
            self.down_blocks.append(_block(block, channels, config.padding_mode))
            channels *= block.multiplier
        self.conv_out = Conv(channels, config.latent_channels + 1, config.padding_mode, causal=True)

    def forward(self, video: Tensor) -> Tensor:
        x = self.conv_in(patchify(video))
        for block in self.down_blocks:
            x = block(x)
        return self.conv_out(F.silu(pixel_norm(x)))


class Normalization(ChannelStatistics):
    """Converts a posterior in the VAE's own scale to that of latents of unit variance."""

    def forward(self, means: Tensor, deviations: Tensor) -> Tensor:
        """Returns normalized means, then deviations, (B, 2C, F, H, W).

        `means` is (B, C, F, H, W); `deviations` (B, 1, F, H, W) is shared by all channels.
        """
        return torch.cat([(means - self.mean()) / self.deviation(), deviations / self.deviation()], dim=1)


class VaeEncoder(nn.Module):
    """VAE encoder with the ports of `ltx_runtime.spec.components.vae_encoder`."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.per_channel_statistics = Normalization(config.latent_channels)
        self.encoder = Encoder(config)
        self.latent_channels = config.latent_channels

    def forward(self, video: Tensor) -> Tensor:
        """Returns the posterior, (B, 2C, F, H, W) float32: normalized means, then deviations in the same scale."""
        moments = self.encoder(video.to(self.encoder.conv_in.conv.weight.dtype)).float()
        means, log_variance = moments.split([self.latent_channels, 1], dim=1)
        return self.per_channel_statistics(means, torch.exp(0.5 * log_variance.clamp(*_LOG_VARIANCES)))
