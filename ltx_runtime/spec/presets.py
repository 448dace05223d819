"""Passes of the denoising loop as data (guidance, schedule, steps), and the official presets.

The numbers are those of the official inference presets (Lightricks/LTX-Video, `configs/*.yaml`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

# How STG skips a layer: self-attention returns each token's own value or its input, or the whole block its input.
StgMode = Literal["attention_values", "attention_skip", "transformer_block"]
STG_MODES: tuple[StgMode, ...] = ("attention_values", "attention_skip", "transformer_block")


@dataclass(frozen=True)
class Guidance:
    """Guidance of the steps whose sigma is at or above `from_sigma`.

    CFG is on if `cfg_scale` > 1, STG if `stg_scale` > 0. `rescale` acts only with STG, and 1 means off.
    """

    cfg_scale: float = 1.0
    stg_scale: float = 0.0
    rescale: float = 1.0
    skip_blocks: tuple[int, ...] = ()
    cfg_star: bool = False
    from_sigma: float = 0.0

    @property
    def uses_cfg(self) -> bool:
        return self.cfg_scale > 1.0

    @property
    def uses_stg(self) -> bool:
        return self.stg_scale > 0.0


@dataclass(frozen=True)
class Schedule:
    """Schedule that turns a number of steps into sigmas, with the names of a checkpoint's `scheduler` header.

    Attributes:
        sampler: spacing of the sigmas, LinearQuadratic or Uniform.
        shifting: SD3 to shift the sigmas towards noise by the number of tokens; None for no shift.
        target_shift_terminal: the last sigma, to which shifted sigmas are stretched; None for no stretching.
    """

    sampler: str = "LinearQuadratic"
    shifting: str | None = None
    target_shift_terminal: float | None = None


SAMPLERS, SHIFTINGS = ("LinearQuadratic", "Uniform"), ("SD3", None)
LINEAR_QUADRATIC = Schedule()
SD3 = Schedule("Uniform", "SD3", 0.1)


@dataclass(frozen=True)
class Pass:
    """One run of the denoising loop: the listed `sigmas`, or `steps` of the version's schedule minus skipped ones."""

    steps: int
    guidance: tuple[Guidance, ...]
    sigmas: tuple[float, ...] = ()
    skip_initial_steps: int = 0
    skip_final_steps: int = 0
    stochastic: bool = False
    tone_map: float = 0.0

    @property
    def uses_stg(self) -> bool:
        return any(guidance.uses_stg for guidance in self.guidance)


def as_one(passes: tuple[Pass, ...]) -> Pass:
    """Returns one pass at full size with the sigmas of both passes and the guidance of the first."""
    first, last = passes[0], passes[-1]
    rest = tuple(sigma for sigma in last.sigmas if sigma < first.sigmas[-1]) if first.sigmas else ()
    sigmas = first.sigmas + rest
    return replace(first, steps=len(sigmas) or first.steps, sigmas=sigmas, skip_final_steps=0, tone_map=last.tone_map)


_NO_GUIDANCE = (Guidance(),)
BASE = Pass(steps=40, guidance=(Guidance(3.0, 1.0, 0.7, (19,)),))
DISTILLED_SINGLE = Pass(steps=8, guidance=_NO_GUIDANCE, stochastic=True)

DEV_13B = (
    Pass(
        steps=30,
        skip_final_steps=3,
        guidance=(
            Guidance(1.0, 0.0, 1.0, (), True, from_sigma=1.0),
            Guidance(1.0, 0.0, 1.0, (11, 25, 35, 39), True, from_sigma=0.996),
            Guidance(6.0, 4.0, 0.5, (22, 35, 39), True, from_sigma=0.9933),
            Guidance(8.0, 4.0, 0.5, (28,), True, from_sigma=0.9850),
            Guidance(6.0, 4.0, 1.0, (28,), True, from_sigma=0.9767),
            Guidance(1.0, 2.0, 1.0, (28,), True, from_sigma=0.9008),
            Guidance(1.0, 1.0, 1.0, (28,), True, from_sigma=0.6180),
        ),
    ),
    Pass(steps=30, skip_initial_steps=17, guidance=(Guidance(1.0, 1.0, 1.0, (27,), True),)),
)

# Sigmas that a distilled transformer was trained on, from `allowed_inference_steps` in the header of its file.
DISTILLED_SIGMAS = (1.0, 0.9937, 0.9875, 0.9812, 0.9750, 0.9094, 0.7250, 0.4219)
_SIGMAS_FIRST = DISTILLED_SIGMAS[:7]
_SIGMAS_SECOND = DISTILLED_SIGMAS[5:]


def distilled(tone_map: float = 0.0) -> tuple[Pass, ...]:
    """Returns the passes of a distilled version: seven steps, then three at twice the size."""
    return (
        Pass(steps=len(_SIGMAS_FIRST), sigmas=_SIGMAS_FIRST, guidance=_NO_GUIDANCE),
        Pass(steps=len(_SIGMAS_SECOND), sigmas=_SIGMAS_SECOND, guidance=_NO_GUIDANCE, tone_map=tone_map),
    )
