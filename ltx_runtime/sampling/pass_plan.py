"""A pass and what holds for all passes, decided before anything runs."""

from __future__ import annotations

from dataclasses import dataclass

from ltx_runtime.sampling.schedule import Sigmas
from ltx_runtime.spec.geometry import Grid
from ltx_runtime.spec.presets import Guidance, StgMode


@dataclass(frozen=True)
class PassPlan:
    """One pass of the denoising loop.

    Attributes:
        grid: the latent grid.
        sigmas: noise levels (n,) float32, from the first step to the last.
        guidance: the guidance of each step.
        stochastic: whether every step goes to the predicted data and noises it anew, instead of an Euler step.
    """

    grid: Grid
    sigmas: Sigmas
    guidance: tuple[Guidance, ...]
    stochastic: bool


@dataclass(frozen=True)
class Settings:
    """What holds for every step of all passes.

    Attributes:
        fps: frames per second as the model is told; a temporal upscale doubles those of the file afterwards.
        stg_mode: what STG skips in a layer.
        image_noise_scale: noise on wholly given tokens before every step.
    """

    fps: float
    stg_mode: StgMode
    image_noise_scale: float
