"""The plan of one pass and the settings of all passes, decided before anything runs."""

from __future__ import annotations

from dataclasses import dataclass

from ltx_runtime.sampling.schedule import Sigmas
from ltx_runtime.spec.geometry import Grid
from ltx_runtime.spec.presets import Guidance, StgMode


@dataclass(frozen=True)
class PassPlan:
    """Plan of one pass of the denoising loop.

    Attributes:
        grid: the latent grid.
        sigmas: noise levels (n,) float32, from the first step to the last.
        guidance: the guidance of each step.
        stochastic: whether every step goes to the predicted data and adds fresh noise, instead of an Euler step.
    """

    grid: Grid
    sigmas: Sigmas
    guidance: tuple[Guidance, ...]
    stochastic: bool


@dataclass(frozen=True)
class Settings:
    """Settings for every step of all passes.

    Attributes:
        fps: frames per second for the model's coordinates; a temporal upscale doubles the frame rate of the file.
        stg_mode: the part of a layer that STG skips.
        image_noise_scale: scale of the noise that fully conditioned tokens get before every step.
    """

    fps: float
    stg_mode: StgMode
    image_noise_scale: float
