"""The loss of text encoder and transformer together: how far the velocity is from noise minus data."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from sentencepiece import SentencePieceProcessor
from torch import Tensor, nn

from ltx_export.models.dit import DitConfig, Transformer
from ltx_export.models.t5 import TextEncoder
from ltx_runtime.spec.encodings import sinusoid_of
from ltx_runtime.spec.geometry import Grid, coords_of
from training.optimizing import Losses
from training.transformer.latents import Halves, Latents
from training.transformer.prompts import ids_of, prompt_of

FPS = 24.0
# Weight of a token that is covered by things, beside 1 for all, times the square of what is not noise. Where noise
# hides what is covered, such a weight would make the velocity show things wherever they may be, twice or larger.
WEIGHT_OF_THINGS = 6.0
# Half of the noise levels are evenly spread, the others near 1, and most of these very near: there it is decided where
# things are.
NEAR_NOISE = 0.15
# Programs add noise to given images before each step, this much times the square of the noise level.
IMAGE_NOISE = 0.15


@dataclass(frozen=True)
class Lesson:
    """A kind of batch.

    Attributes:
        latents: where its clips are taken from.
        batch: number of clips.
        frames: number of latent frames, from the first one on.
        share: how often it comes up among the lessons of a stage.
        most_noise: the highest noise level.
        given: shares of clips whose first one and first two latent frames are given.
        keyframe: whether a later frame is given, in tokens of its own before the others.
    """

    latents: Latents
    batch: int
    frames: int = 4
    share: float = 1.0
    most_noise: float = 1.0
    given: tuple[float, float] = (0.0, 0.0)
    keyframe: bool = False

    @property
    def grid(self) -> Grid:
        rows, columns = self.latents.clips.shape[3:]
        return Grid(self.frames, rows, columns)


class Denoiser(nn.Module):
    """Text encoder and transformer, from ids of a prompt to the velocity of tokens."""

    def __init__(self, text_encoder: TextEncoder, transformer: Transformer) -> None:
        super().__init__()
        self.text_encoder, self.transformer = text_encoder, transformer

    def forward(
        self, ids: Tensor, mask: Tensor, tokens: Tensor, sinusoid: Tensor, cosines: Tensor, sines: Tensor
    ) -> Tensor:
        """Returns the velocity (B, N, 128)."""
        text = self.text_encoder(ids, mask)
        velocity: Tensor = self.transformer(tokens, sinusoid, cosines, sines, text, mask)
        return velocity


@dataclass(frozen=True)
class _Batch:
    """Data (B, N, C), which tokens of it are given (B, N), how far things cover them (B, N), and what is said."""

    data: Tensor
    given: Tensor
    coverage: Tensor
    coords: NDArray[np.float32]
    prompts: list[str]


def velocity_losses(
    compute: Callable[..., Tensor],
    config: DitConfig,
    lessons: list[Lesson],
    tokenizer: SentencePieceProcessor,
    scale: float,
    seed: int,
) -> Callable[[int], Losses]:
    """Returns the function that computes the loss of a step.

    Args:
        compute: a `Denoiser`.
        config: of its transformer.
        lessons: of which each step takes one.
        tokenizer: of prompts.
        scale: by which latents are divided.
        seed: with the step, it decides all that is random.
    """
    shares = np.array([lesson.share for lesson in lessons])

    def losses_at(step: int) -> Losses:
        random = np.random.default_rng([seed, step])
        lesson = lessons[random.choice(len(lessons), p=shares / shares.sum())]
        batch = _batch(lesson, scale, random)
        noise = torch.from_numpy(random.standard_normal(batch.data.shape, np.float32))
        levels = torch.from_numpy(_noise_levels(lesson, random))[:, None]
        noisy = torch.where(
            batch.given[..., None],
            batch.data + IMAGE_NOISE * levels[..., None].square() * noise,
            batch.data + levels[..., None] * (noise - batch.data),
        )
        unused = config.channels - noise.shape[-1]
        ids, mask = ids_of(batch.prompts, tokenizer)
        sinusoid = torch.from_numpy(sinusoid_of(torch.where(batch.given, 0.0, levels).numpy()))
        rotation = map(torch.from_numpy, config.rope.rotation(batch.coords, config.width))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            velocity = compute(ids, mask, F.pad(noisy, (0, unused)), sinusoid, *rotation)
        error = F.pad(velocity.float(), (0, -unused)) - (noise - batch.data)
        weights = (1 + WEIGHT_OF_THINGS * batch.coverage * (1 - levels).square()) * ~batch.given
        return {"loss": (error.square().mean(-1) * weights).sum() / weights.sum()}

    return losses_at


def _noise_levels(lesson: Lesson, random: np.random.Generator) -> NDArray[np.float32]:
    levels = lesson.most_noise * random.random(lesson.batch, np.float32)
    levels[::2] = lesson.most_noise * (1 - NEAR_NOISE * random.random(len(levels[::2]), np.float32) ** 2)
    return levels


def _batch(lesson: Lesson, scale: float, random: np.random.Generator) -> _Batch:
    latents, frames, keyframe = lesson.latents, lesson.frames, 0
    among = np.arange(len(latents.clips))
    if lesson.keyframe:  # tokens have one place for all clips of a batch
        keyframe = int(random.choice(latents.keyframe_numbers))
        among = np.flatnonzero(latents.keyframe_numbers == keyframe)
    numbers = random.choice(among, lesson.batch)
    data = _tokens(latents.clips[numbers, :, :frames])
    coverage = torch.from_numpy(latents.coverage[numbers, :frames].astype(np.float32)).flatten(1)
    given_frames = torch.from_numpy(random.choice(3, lesson.batch, p=(1 - sum(lesson.given), *lesson.given)))
    given_frames = given_frames[:, None] > torch.arange(frames)
    given = given_frames.repeat_interleave(lesson.grid.rows * lesson.grid.columns, 1)
    coords = coords_of(lesson.grid, FPS, causal=True)
    if lesson.keyframe:
        image = _tokens(latents.keyframes[numbers][:, :, None])
        place = Grid(1, lesson.grid.rows, lesson.grid.columns)
        coords = np.concatenate([coords_of(place, FPS, causal=True, first_frame=keyframe), coords], 2)
        data = torch.cat([image, data], 1)
        given = torch.cat([torch.ones(image.shape[:2], dtype=torch.bool), given], 1)
        coverage = F.pad(coverage, (image.shape[1], 0))
    prompts = [prompt_of(latents.scenes[number], random) for number in numbers]
    return _Batch(data / scale, given, coverage, coords, prompts)


def _tokens(latents: Halves) -> Tensor:
    """Converts latents (B, C, F, H, W) to tokens (B, F*H*W, C) float32."""
    return torch.from_numpy(latents.astype(np.float32)).flatten(2).transpose(1, 2)


def deviation_of(latents: Latents) -> float:
    """Returns the root of the mean square of latents, by which they are divided."""
    return float(np.sqrt(np.square(latents.clips[:500].astype(np.float32)).mean()))


def start_of(denoiser: Denoiser, channels: int) -> None:
    """Sets random weights: blocks that return their input, and a last layer that is the first one's transpose.

    Latent channels from `channels` on are not looked at, and their velocity is zero.
    """
    for name, parameter in denoiser.named_parameters():
        if parameter.ndim == 1:
            nn.init.constant_(parameter, 1.0 if "norm" in name else 0.0)
        elif name.endswith(("scale_shift_table", "relative_attention_bias.weight")):
            nn.init.zeros_(parameter)
        else:
            nn.init.normal_(parameter, 0.0, 1 / math.sqrt(parameter.shape[1]))
        if name.endswith(("to_out.0.weight", "net.2.weight", "adaln_single.linear.weight")):
            nn.init.normal_(parameter, 0.0, 0.02)
    nn.init.normal_(denoiser.text_encoder.shared.weight)
    with torch.no_grad():
        first, last = denoiser.transformer.patchify_proj.weight, denoiser.transformer.proj_out.weight
        first[:, channels:] = 0.0
        last.copy_(first.T)


def is_inner_matrix(name: str, parameter: nn.Parameter) -> bool:
    """Tells which weights are for Muon: all matrices but tables, and those at latents, whose rows differ in size."""
    outer = ("shared", "relative_attention_bias", "scale_shift_table", "patchify_proj", "proj_out")
    return parameter.ndim == 2 and not any(part in name for part in outer)
