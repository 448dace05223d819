"""The encoder: it starts from principal components of its own features, and learns to compute the linear code."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ltx_export.models.vae_blocks import Conv, Downsample, patchify, pixel_norm
from ltx_export.models.vae_encoder import Encoder
from training.clips import Batches, Clips
from training.optimizing import Losses
from training.vae.least_squares import fit_convolution
from training.vae.linear_code import LinearCode, principal_components, rows_of

RIDGE = 1e-7
POWER = 0.5  # features are divided by their deviations to this power, so that small ones need no large weights later
CONSTANT = 3.0  # in deviations of the last features
FITTED = 100  # clips for the convolutions of the start
# What a downsampling's convolution weighs beside its shortcut, the mean of groups; divided by the root of the number of
# cells in a clip, so that it is a few percent.
OVER_SHORTCUT = 8.0
WEIGHT_OF_UNUSED = 0.01
LOG_VARIANCE = -12.0  # of the posterior, whose deviation is then 0.0025


def initialize(module: nn.Module) -> None:
    """Sets random weights so that all residual blocks return their input."""
    for name, parameter in module.named_parameters():
        if parameter.ndim >= 2 and not name.endswith("scale_shift_table"):
            small = 0.3 if parameter.ndim == 2 else 1.0
            nn.init.normal_(parameter, 0.0, small / math.sqrt(parameter[0].numel()))
        else:
            nn.init.constant_(parameter, 1.0 if name.endswith("std-of-means") else 0.0)
        if name.endswith(("conv2.conv.weight", "linear_2.weight")):
            nn.init.zeros_(parameter)


@torch.no_grad()
def start_from_components(encoder: Encoder, code: LinearCode, clips: Clips) -> None:
    """Sets an encoder's convolutions to the principal components of what they get, and the last to the linear code.

    Each downsampling keeps the components that vary most. The last one adds a constant to all channels, so that the
    norm and the activation after it lose little.
    """
    initialize(encoder)
    videos = list(clips.some(FITTED))
    features = [patchify(video) for video in videos]
    scales = _start_at_pixels(encoder.conv_in, features, code.mean)
    features = [encoder.conv_in(x) for x in features]
    downsamplings = [block for block in encoder.down_blocks if isinstance(block, Downsample)]
    for block in encoder.down_blocks:
        if isinstance(block, Downsample):
            scales = _start_downsampling(block, features, scales)
        features = [block(x) for x in features]
    constant = CONSTANT * float(torch.cat([rows_of(x) for x in features]).square().mean().sqrt())
    nn.init.constant_(_bias(downsamplings[-1].conv), constant)
    pairs = ((F.silu(pixel_norm(x + constant)), code.encode(video)) for x, video in zip(features, videos, strict=True))
    fit_convolution(encoder.conv_out, pairs, RIDGE, alone=True)
    _bias(encoder.conv_out)[-1] = LOG_VARIANCE


def _start_at_pixels(conv: Conv, patches: list[Tensor], mean: Tensor) -> Tensor:
    """Makes the first convolution give principal components of pixels, and returns the factors that each has."""
    centred = (rows_of(x) - mean for x in patches)
    basis, deviations = principal_components(_equally_weighted(centred), conv.conv.out_channels)
    scales = deviations**-POWER
    scales /= (scales * deviations).square().mean().sqrt()
    _set_newest(conv, basis * scales)
    _bias(conv).copy_(-mean @ (basis * scales))
    return scales


def _start_downsampling(block: Downsample, features: list[Tensor], scales: Tensor) -> Tensor:
    """Makes a downsampling keep the components with most energy, and returns the factors that each has.

    `scales` (C,) are the factors of its inputs; what is principal is decided without them.
    """
    unscaled = (rows_of(x) / scales for x in features)
    basis, deviations = principal_components(_equally_weighted(unscaled), block.conv.conv.out_channels)
    factors = deviations**-POWER
    factors *= OVER_SHORTCUT / (factors * deviations).square().mean().sqrt()
    _set_newest(block.conv, basis * factors / scales[:, None])
    results = torch.cat([rows_of(block(x)) for x in features[: FITTED // 2]])
    factors /= results.square().mean().sqrt()
    _set_newest(block.conv, basis * factors / scales[:, None])
    return factors.repeat_interleave(math.prod(block.factors))


def _equally_weighted(clips: Iterable[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    """Gives each clip's rows the weight 1 together, so deviations are those of a clip's sum and not of a row."""
    return ((rows, torch.ones(())) for rows in clips)


def _set_newest(conv: Conv, matrix: Tensor) -> None:
    """Makes a causal convolution multiply each position of the newest frame that it sees with a matrix (C, D)."""
    nn.init.zeros_(conv.conv.weight)
    conv.conv.weight[:, :, -1, 1, 1] = matrix.T
    nn.init.zeros_(_bias(conv))


def _bias(conv: Conv) -> Tensor:
    assert conv.conv.bias is not None
    return conv.conv.bias


def encoder_losses(encoder: Encoder, code: LinearCode, batches: Batches) -> Callable[[int], Losses]:
    """Returns the function that computes the loss of a step, and the share of the code's energy that is wrong.

    `batches` returns video and coverage for a step, see `windows`.
    """

    def losses_at(step: int) -> Losses:
        video, _ = batches(step)
        return distance_from_code(moments_of(encoder, video), code.encode(video))

    return losses_at


def moments_of(encoder: Encoder, video: Tensor) -> Tensor:
    """Returns means and log variance (B, 129, F, H, W) of the posterior in the VAE's own scale."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        moments: Tensor = encoder(video).float()
    return moments


@torch.no_grad()
def means_of(encoder: Encoder, video: Tensor) -> Tensor:
    """Returns the means (B, 128, F, H, W) of the posterior in the VAE's own scale, without a gradient."""
    return moments_of(encoder, video)[:, :-1]


def distance_from_code(moments: Tensor, wanted: Tensor) -> Losses:
    """Compares an encoder's moments with codes (B, K, F, H, W); also gives the share of their energy that is wrong.

    Channels that the code does not use are to be zero, and the log variance a constant.
    """
    kept = wanted.shape[1]
    error = (moments[:, :kept] - wanted).square().mean()
    unused = moments[:, kept:-1].square().mean() + (moments[:, -1] - LOG_VARIANCE).square().mean()
    return {"loss": error + WEIGHT_OF_UNUSED * unused, "wrong": error.detach() / wanted.square().mean()}
