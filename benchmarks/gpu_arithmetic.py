"""What the numbers of benchmarks/gpu.py are: operations of a step by a closed formula, medians, shares and ratios."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from ltx_runtime.spec.versions import TransformerSize

TEXT_TOKENS = 256
_TIMESTEP_CHANNELS = 256
_TEXT_LAYERS = 2

# What this repository wants to reach.
STEP_SPEEDUP = 1.3  # at least, of a step, over compiled diffusers
STEP_SHARE = 0.55  # more than that, of the measured peak
DECODE_RATIO = 0.6  # at most, of the time of diffusers


def step_flops(size: TransformerSize, tokens: int, text_tokens: int = TEXT_TOKENS) -> int:
    """Floating-point operations of one transformer step at batch 1 with one timestep; a product and its sum are two.

    Linear layers, attention and cross attention alone: norms, rotations and activations take time but no products.
    """
    width = size.width
    # Of each token: queries, keys, values and output; queries and output of cross attention; feed-forward of 4 widths.
    of_token = 2 * tokens * (4 + 2 + 8) * width**2
    of_text = 2 * text_tokens * 2 * width**2  # keys and values of cross attention
    attention = 4 * tokens * (tokens + text_tokens) * width
    ends = 2 * tokens * 2 * size.channels * width
    text = 2 * text_tokens * (size.text_channels + width) * width
    timestep = 2 * (_TIMESTEP_CHANNELS + width + 6 * width) * width
    return size.layers * (of_token + of_text + attention) + ends + text + timestep


@dataclass(frozen=True)
class Timing:
    """Seconds of several runs: their median, least and most; `first_s` is the first of all, with all preparation."""

    median_s: float
    least_s: float
    most_s: float
    rounds: int
    first_s: float


def timing_of(seconds: Sequence[float], first_s: float) -> Timing:
    """The median of runs and how far they spread."""
    return Timing(median(seconds), min(seconds), max(seconds), len(seconds), first_s)


def share_of_peak(flops: float, seconds: float, peak_flops: float) -> float:
    """What part of the operations that the GPU could have done in that time were needed."""
    return flops / seconds / peak_flops


@dataclass(frozen=True)
class Goal:
    """A goal and what was measured of it; `reached` is None where nothing was."""

    says: str
    measured: float | None
    reached: bool | None


def goals_of(speedups: Sequence[float], shares: Sequence[float], decodes: Sequence[float]) -> list[Goal]:
    """The goals, each held against the worst size.

    Args:
        speedups: of the fastest backend's step over compiled diffusers, one for each size.
        shares: of the measured peak.
        decodes: the fastest backend's decode time over diffusers'.
    """
    slowest, least, longest = (min(speedups, default=None), min(shares, default=None), max(decodes, default=None))
    return [
        Goal(
            f"a step at least {STEP_SPEEDUP} times as fast as compiled diffusers",
            slowest,
            None if slowest is None else slowest >= STEP_SPEEDUP,
        ),
        Goal(
            f"a step above {STEP_SHARE:.0%} of the measured matrix-product peak",
            least,
            None if least is None else least > STEP_SHARE,
        ),
        Goal(
            f"a decode in at most {DECODE_RATIO} of the time of diffusers",
            longest,
            None if longest is None else longest <= DECODE_RATIO,
        ),
    ]
