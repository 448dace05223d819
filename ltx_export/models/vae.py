"""The VAE decoders of generations A (0.9.0), B (0.9.1) and C (0.9.5 and later), from normalized latents to video."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ltx_export.models.layers import TimestepEmbedding
from ltx_export.models.vae_blocks import (
    PATCH,
    RGB,
    ChannelStatistics,
    Conv,
    PaddingMode,
    ResBlock,
    ResStack,
    Upsample,
    modulate,
    over_space,
    pixel_norm,
    unpatchify,
)

# A checkpoint's tensor that is no weight: in every release it is TIMESTEP_SCALE, by which the sinusoid is made.
TIMESTEP_SCALE_KEY = "decoder.timestep_scale_multiplier"

BlockKind = Literal["res_x", "res_x_y", "compress_all"]


@dataclass(frozen=True)
class VaeBlock:
    """One entry of a checkpoint's block list; `multiplier` divides the channels in a decoder."""

    kind: BlockKind
    layers: int = 1
    multiplier: int = 1
    residual: bool = False
    inject_noise: bool = False


@dataclass(frozen=True)
class VaeConfig:
    """Configuration of a decoder; its `blocks` are in the order of use, the reverse of a checkpoint's list."""

    blocks: tuple[VaeBlock, ...]
    latent_channels: int = 128
    base_channels: int = 128
    timestep: bool = False
    padding_mode: PaddingMode = "zeros"

    @property
    def first_channels(self) -> int:
        channels = self.base_channels
        for block in self.blocks:
            channels *= block.multiplier
        return channels

    def noise_maps(self) -> dict[int, tuple[int, int]]:
        """Returns, for each block that injects noise, its number of noise maps and its scale over the latent grid."""
        maps, scale = {}, 1
        for i, block in enumerate(self.blocks):
            if block.kind == "compress_all":
                scale *= 2
            if block.inject_noise:
                maps[i] = (2 * block.layers, scale)
        return maps


def _block(config: VaeConfig, block: VaeBlock, channels: int) -> nn.Module:
    mode = config.padding_mode
    out_channels = channels // block.multiplier
    if block.kind == "res_x":
        return ResStack(channels, block.layers, mode, timestep=config.timestep, inject_noise=block.inject_noise)
    if block.kind == "res_x_y":
        return ResBlock(channels, out_channels, mode)
    return Upsample(channels, out_channels, mode, residual=block.residual)


class Decoder(nn.Module):
    """Decodes latents in the VAE's own scale to video (B, 3, 8F-7, 32H, 32W)."""

    def __init__(self, config: VaeConfig) -> None:
        super().__init__()
        channels = config.first_channels
        self.conv_in = Conv(config.latent_channels, channels, config.padding_mode)
        self.up_blocks = nn.ModuleList()
        for block in config.blocks:
            self.up_blocks.append(_block(config, block, channels))
            channels //= block.multiplier
        self.conv_out = Conv(channels, RGB * PATCH**2, config.padding_mode)
        self.noisy_blocks = tuple(config.noise_maps())
        if config.timestep:
            self.last_time_embedder = TimestepEmbedding(2 * channels)
            self.last_scale_shift_table = nn.Parameter(torch.empty(2, channels))

    def forward(self, x: Tensor, sinusoid: Tensor | None, noise: Sequence[Tensor]) -> Tensor:
        noise_of = dict(zip(self.noisy_blocks, noise, strict=True))
        x = self.conv_in(x)
        for i, block in enumerate(self.up_blocks):
            x = block(x, sinusoid, noise_of.get(i)) if isinstance(block, ResStack) else block(x)
        x = pixel_norm(x)
        if sinusoid is not None:
            embedded = over_space(self.last_time_embedder(sinusoid))
            shift, scale = (self.last_scale_shift_table.reshape(-1, 1, 1, 1) + embedded).chunk(2, dim=1)
            x = modulate(x, shift, scale)
        return unpatchify(self.conv_out(F.silu(x)))


class Unnormalization(ChannelStatistics):
    """Converts latents of unit variance to the VAE's own scale."""

    def forward(self, latents: Tensor) -> Tensor:
        """Returns latents (B, C, F, H, W) in the VAE's own scale, in float32."""
        return latents * self.deviation() + self.mean()


class VaeDecoder(nn.Module):
    """VAE decoder with the ports of `ltx_runtime.spec.components.vae_decoder`."""

    def __init__(self, config: VaeConfig) -> None:
        super().__init__()
        self.per_channel_statistics = Unnormalization(config.latent_channels)
        self.decoder = Decoder(config)

    def forward(self, latents: Tensor, sinusoid: Tensor | None = None, *noise: Tensor) -> Tensor:
        """Returns video (B, 3, 8F-7, 32H, 32W), float32 in about [-1, 1]."""
        dtype = self.decoder.conv_in.conv.weight.dtype
        x = self.per_channel_statistics(latents).to(dtype)
        return self.decoder(x, sinusoid, [maps.to(dtype) for maps in noise]).float()
