"""The spatial upsampler: from latents of a clip to those of the same clip at twice its height and width."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from ltx_export.models.upsampler import LatentUpsampler
from training.optimizing import Losses
from training.transformer.latents import Halves, Latents
from training.transformer.velocity import WEIGHT_OF_THINGS

SMALL = 0.02  # deviation of the last weights of channels that are not looked at, since a pass divides by deviations


def start_upsampler(upsampler: LatentUpsampler, channels: int) -> None:
    """Sets random weights; what becomes of latent channels from `channels` on is small."""
    for name, parameter in upsampler.named_parameters():
        if parameter.ndim == 1:
            nn.init.constant_(parameter, 1.0 if "norm" in name and name.endswith("weight") else 0.0)
        else:
            nn.init.normal_(parameter, 0.0, 1 / math.sqrt(parameter[0].numel()))
    with torch.no_grad():
        upsampler.final_conv.weight[channels:] *= SMALL


def upsampler_losses(
    upsampler: LatentUpsampler, small: Latents, large: Latents, scale: float, batch: int, seed: int
) -> Callable[[int], Losses]:
    """Returns the function that computes the loss of a step, in latents that are divided by `scale`.

    Args:
        upsampler: the network, whose statistics are 0 and 1.
        small, large: latents of the same clips, of which `large` may have fewer.
        scale: by which latents are divided.
        batch: number of clips.
        seed: with the step, it decides which clips are taken.
    """

    def losses_at(step: int) -> Losses:
        random = np.random.default_rng([seed, step])
        numbers = random.integers(len(large.clips), size=batch)
        given, wanted = (_scaled(latents.clips[numbers], scale) for latents in (small, large))
        unused = upsampler.final_conv.out_channels - wanted.shape[1]
        padded = nn.functional.pad(given, (0, 0, 0, 0, 0, 0, 0, unused))
        error = (upsampler(padded)[:, : wanted.shape[1]] - wanted).square().mean(1)
        weights = 1 + WEIGHT_OF_THINGS * torch.from_numpy(large.coverage[numbers].astype(np.float32))
        return {"loss": (error * weights).sum() / weights.sum()}

    return losses_at


def _scaled(latents: Halves, scale: float) -> Tensor:
    return torch.from_numpy(latents.astype(np.float32)) / scale
