"""Formulas behind the numbers of benchmarks/gpu.py: FLOPs of a step in closed form, medians, shares and ratios."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from ltx_runtime.spec.encodings import SINUSOID_CHANNELS
from ltx_runtime.spec.versions import TransformerSize

TEXT_TOKENS = 256
_TEXT_LAYERS = 2

# Performance goals of this repository.
STEP_SPEEDUP = 1.3  # minimum speedup of a transformer step over compiled diffusers
STEP_SHARE = 0.55  # share of the measured peak that a step must exceed
DECODE_RATIO = 0.6  # maximum decode time as a fraction of diffusers'


def step_flops(size: TransformerSize, tokens: int, text_tokens: int = TEXT_TOKENS) -> int:
    """Returns the FLOPs of one transformer step at batch 1 with one timestep; a multiply-add counts as two.

    Counts linear layers, self-attention and cross-attention only: norms, rotary embeddings and activations take time
    but contain no matrix products.
    """
    width = size.width
    # Per token: self-attention (q, k, v, output), cross-attention (q, output), feed-forward layer of 4 widths.
    of_token = 2 * tokens * (4 + 2 + 8) * width**2
    of_text = 2 * text_tokens * 2 * width**2  # keys and values of cross-attention
    attention = 4 * tokens * (tokens + text_tokens) * width
    ends = 2 * tokens * 2 * size.channels * width
    text = 2 * text_tokens * (size.text_channels + width) * width
    timestep = 2 * (SINUSOID_CHANNELS + width + 6 * width) * width
    return size.layers * (of_token + of_text + attention) + ends + text + timestep


@dataclass(frozen=True)
class Timing:
    """Median, minimum and maximum seconds of several runs; `first_s` is the very first run with all preparation."""

    median_s: float
    least_s: float
    most_s: float
    rounds: int
    first_s: float


def timing_of(seconds: Sequence[float], first_s: float) -> Timing:
    """Returns the median, minimum and maximum of the measured seconds."""
    return Timing(median(seconds), min(seconds), max(seconds), len(seconds), first_s)


def share_of_peak(flops: float, seconds: float, peak_flops: float) -> float:
    """Returns the reached FLOP/s as a fraction of the measured peak."""
    return flops / seconds / peak_flops


@dataclass(frozen=True)
class Goal:
    """A performance goal and its measurement; `measured` and `reached` are None if nothing was measured."""

    says: str
    measured: float | None
    reached: bool | None


def goals_of(speedups: Sequence[float], shares: Sequence[float], decodes: Sequence[float]) -> list[Goal]:
    """Compares each goal with the measurement at the worst size.

    Args:
        speedups: speedup of the fastest backend's step over compiled diffusers, one per size.
        shares: share of the measured peak that the fastest backend's step reaches, one per size.
        decodes: the fastest backend's decode time divided by diffusers', one per size.
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
