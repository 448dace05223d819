"""The decoder: it starts as the inverse of the linear code, and learns to draw what the encoder says of a clip."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ltx_export.models.vae import Decoder
from ltx_export.models.vae_blocks import Upsample, modulate, patchify, pixel_norm
from ltx_export.models.vae_encoder import Encoder
from ltx_runtime.spec.encodings import sinusoid_of
from training.clips import Batches, Clips
from training.optimizing import Losses
from training.vae.encoder import initialize, means_of
from training.vae.least_squares import fit_convolution
from training.vae.linear_code import LinearCode

# Start: one channel of the last level is a constant, beside which a norm over channels hardly changes the others.
CONSTANT = 8.0
SHIFT = 1.0  # of the others before the last activation
UNUSED = 0.02  # deviation of weights for the latent channels that the code does not use
RIDGE = 1e-5
FITTED = 20  # clips for the last convolution

# Loss: mean values first, then edges and motion.
SCALE, BETA = 30.0, 0.5
WEIGHT_OF_THINGS = 3.0
WEIGHT_OF_GRADIENTS = 0.02
WEIGHT_OF_MOTION = 0.05
MOST_NOISE = 0.1  # a decoder is given latents with the noise of a timestep; half of those in training have none
ALWAYS_NOISE = 0.02


@torch.no_grad()
def start_as_inverse(decoder: Decoder, encoder: Encoder, code: LinearCode, clips: Clips) -> None:
    """Sets a decoder's convolutions to the synthesis of the code, level by level, and the last one by least squares."""
    initialize(decoder)
    kept = len(code.deviations)
    kernel = decoder.conv_in.conv.weight
    kernel[:, kept:] = UNUSED * torch.randn(kernel[:, kept:].shape)
    kernel[:, :kept] = 0.0
    kernel[:kept, :kept, 1, 1, 1] = torch.diag(code.deviations.sqrt())
    upsamplings = [block for block in decoder.up_blocks if isinstance(block, Upsample)]
    for upsampling, synthesis in zip(upsamplings, reversed(code.synthesis[1:]), strict=True):
        _start_upsampling(upsampling, synthesis)
    _start_last_level(decoder, upsamplings[-1])

    def pairs() -> Iterator[tuple[Tensor, Tensor]]:
        for video in clips.some(FITTED):
            yield _before_last(decoder, means_of(encoder, video)), patchify(video)

    fit_convolution(decoder.conv_out, pairs(), RIDGE)


def _start_upsampling(upsampling: Upsample, synthesis: Tensor) -> None:
    """Makes an upsampling multiply each cell's components with `synthesis` (components, features of its halves)."""
    convolution = upsampling.conv.conv
    rows, columns = convolution.weight.shape[:2]
    matrix = torch.zeros(rows, columns)
    matrix[: synthesis.shape[1], : synthesis.shape[0]] = synthesis.T
    out = torch.arange(rows)  # the shortcut adds channels of the input, which are taken away here
    matrix[out, out % columns] -= 1.0
    nn.init.zeros_(convolution.weight)
    convolution.weight[:, :, 1, 1, 1] = matrix


def _start_last_level(decoder: Decoder, last: Upsample) -> None:
    """Makes the last channel a constant, and the modulation undo the norm of the others."""
    channels = decoder.last_scale_shift_table.shape[1]
    convolution = last.conv.conv
    assert convolution.bias is not None
    convolution.bias[-8:] = CONSTANT  # its eight halves
    undone = CONSTANT / math.sqrt(channels)
    shift, scale = decoder.last_scale_shift_table
    shift[:-1], scale[:-1], scale[-1] = SHIFT, undone - 1, -1.0
    for block in decoder.up_blocks[-1].res_blocks:  # type: ignore[union-attr]
        scale = block.scale_shift_table[1]
        scale[:-1], scale[-1] = undone - 1, -1.0


def _before_last(decoder: Decoder, latents: Tensor) -> Tensor:
    """Returns what the last convolution of a decoder gets at timestep 0."""
    x = decoder.conv_in(latents)
    sinusoid = torch.from_numpy(sinusoid_of(torch.zeros(1).numpy()))
    for block in decoder.up_blocks:
        x = block(x) if isinstance(block, Upsample) else block(x, sinusoid)
    shift, scale = decoder.last_scale_shift_table.reshape(-1, 1, 1, 1).chunk(2)
    return F.silu(modulate(pixel_norm(x), shift[None], scale[None]))


def decoder_losses(decoder: Decoder, encoder: Encoder, batches: Batches, seed: int) -> Callable[[int], Losses]:
    """Returns the function that computes the loss of a step, and the PSNR in dB of what is drawn from means.

    The means are those of `encoder`, which is not trained. `batches` returns video and coverage for a step, see
    `windows`; noise on latents has the seed plus the step.
    """

    def losses_at(step: int) -> Losses:
        video, masks = batches(step)
        drawn = drawn_with_noise(decoder, means_of(encoder, video), seed + step)
        return {"loss": drawing_loss(drawn, video, masks), "psnr": psnr(drawn, video)}

    return losses_at


def drawn_with_noise(decoder: Decoder, latents: Tensor, seed: int) -> Tensor:
    """Returns the video that a decoder draws from latents with some noise, every second with that of a timestep."""
    generator = torch.Generator().manual_seed(seed)
    timesteps = MOST_NOISE * torch.rand(len(latents), generator=generator)
    timesteps[::2] = 0.0
    share = timesteps[:, None, None, None, None]
    noise = torch.randn((2, *latents.shape), generator=generator)
    noisy = (1 - share) * latents + share * noise[0] + ALWAYS_NOISE * noise[1]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        drawn: Tensor = decoder(noisy, torch.from_numpy(sinusoid_of(timesteps.numpy())), [])
    return drawn.float()


def drawing_loss(drawn: Tensor, video: Tensor, masks: Tensor) -> Tensor:
    """Returns the distance between two videos (B, 3, F, H, W), in which things count more than their surroundings."""
    weights = 1 + WEIGHT_OF_THINGS * masks
    values = F.smooth_l1_loss(drawn, video, beta=BETA, reduction="none")
    error = drawn - video
    motion = (error[:, :, 1:] - error[:, :, :-1]).abs()
    gradients = error.diff(dim=3).abs().mean() + error.diff(dim=4).abs().mean()
    return (
        SCALE * _weighted_mean(values, weights)
        + WEIGHT_OF_MOTION * _weighted_mean(motion, weights[:, :, 1:])
        + WEIGHT_OF_GRADIENTS * gradients
    )


def _weighted_mean(values: Tensor, weights: Tensor) -> Tensor:
    return (values * weights).mean() / weights.mean()


def psnr(drawn: Tensor, video: Tensor) -> Tensor:
    """Returns the peak signal-to-noise ratio in dB of values in [-1, 1]."""
    return -10 * torch.log10((drawn.detach() - video).div(2).square().mean())
