"""The encoder: it starts from principal components of its own features, and learns to compute the linear code."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ltx_export.models.vae_blocks import Conv, Downsample, patchify, pixel_norm
from ltx_export.models.vae_encoder import Encoder
from training.clips import Clips
from training.optimizing import Losses
from training.vae.decoder import initialize
from training.vae.least_squares import fit_convolution
from training.vae.linear_code import LinearCode, principal_components, rows_of

RIDGE = 3e-5
FITTED = 60  # clips for the convolutions of the start
OVER_SHORTCUT = 2.0  # what a downsampling's convolution weighs beside its shortcut, which is the mean of groups
LOG_VARIANCE = -12.0  # of the posterior, whose deviation is then 0.0025


@torch.no_grad()
def start_from_components(encoder: Encoder, code: LinearCode, clips: Clips) -> None:
    """Sets an encoder's convolutions to the principal components of what they get, and the last to the linear code.

    Each downsampling keeps the components that vary most. The last one adds a constant to all channels, so that the
    norm and the activation after it lose little.
    """
    initialize(encoder)
    videos = list(clips.some(FITTED))
    features = [patchify(video) for video in videos]
    _start_at_pixels(encoder.conv_in, features, code.mean)
    features = [encoder.conv_in(x) for x in features]
    downsamplings = [block for block in encoder.down_blocks if isinstance(block, Downsample)]
    for block in encoder.down_blocks:
        if isinstance(block, Downsample):
            _start_downsampling(block, features)
        features = [block(x) for x in features]
    constant = float(torch.cat([rows_of(x) for x in features]).square().mean().sqrt())
    nn.init.constant_(_bias(downsamplings[-1].conv), constant)
    pairs = ((F.silu(pixel_norm(x + constant)), code.encode(video)) for x, video in zip(features, videos, strict=True))
    fit_convolution(encoder.conv_out, pairs, RIDGE)
    _bias(encoder.conv_out)[-1] = LOG_VARIANCE


def _start_at_pixels(conv: Conv, patches: list[Tensor], mean: Tensor) -> None:
    centred = [(rows_of(x) - mean, torch.ones(())) for x in patches]
    basis, deviations = principal_components(lambda: iter(centred), conv.conv.out_channels)
    matrix = basis / deviations.square().mean().sqrt()
    _set_newest(conv, matrix)
    _bias(conv).copy_(-mean @ matrix)


def _start_downsampling(block: Downsample, features: list[Tensor]) -> None:
    rows = [(rows_of(x), torch.ones(())) for x in features]
    basis, _ = principal_components(lambda: iter(rows), block.conv.conv.out_channels)
    _set_newest(block.conv, OVER_SHORTCUT * basis)
    results = torch.cat([rows_of(block(x)) for x in features[: FITTED // 2]])
    _set_newest(block.conv, OVER_SHORTCUT * basis / results.square().mean().sqrt())


def _set_newest(conv: Conv, matrix: Tensor) -> None:
    """Makes a causal convolution multiply each position of the newest frame that it sees with a matrix (C, D)."""
    nn.init.zeros_(conv.conv.weight)
    conv.conv.weight[:, :, -1, 1, 1] = matrix.T
    nn.init.zeros_(_bias(conv))


def _bias(conv: Conv) -> Tensor:
    assert conv.conv.bias is not None
    return conv.conv.bias


def encoder_losses(
    encoder: Encoder, code: LinearCode, batches: Iterator[tuple[Tensor, Tensor]]
) -> Callable[[int], Losses]:
    """Returns the function that computes the loss of a step, and the share of the code's energy that is wrong.

    `batches` yields video and coverage, see `windows`. The loss weighs components by their standard deviations.
    """
    kept = len(code.deviations)
    deviations = code.deviations[:, None, None, None]

    def losses_at(step: int) -> Losses:
        video, _ = next(batches)
        wanted = code.encode(video)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            moments = encoder(video).float()
        error = (moments[:, :kept] - wanted).square()
        energy = (deviations * wanted).square().sum()
        wrong = (deviations.square() * error.detach()).sum() / energy
        loss = (error * deviations / deviations.mean()).mean()
        unused = moments[:, kept:-1].square().mean() + (moments[:, -1] - LOG_VARIANCE).square().mean()
        return {"loss": loss + 0.01 * unused, "wrong": wrong}

    return losses_at
