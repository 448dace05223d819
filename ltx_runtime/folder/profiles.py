"""The sizes that an engine serves: a few optimization profiles, each tuned for one size, instead of one wide range.

The same table gives the profiles of an engine and the check of a request before the engine is loaded. This module knows
nothing about sessions, files or TensorRT.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ltx_runtime.spec.components import Component, line_of
from ltx_runtime.spec.geometry import Grid


@dataclass(frozen=True)
class Span:
    """The sizes that an engine serves along one axis, and the size it is tuned for."""

    min: int
    best: int
    max: int

    def __contains__(self, size: object) -> bool:
        return isinstance(size, int) and self.min <= size <= self.max

    def below(self, limit: int) -> Span:
        """Returns the part of the span up to `limit`, which must be at least `min`."""
        return replace(self, best=min(self.best, limit), max=min(self.max, limit))


Profile = dict[str, Span]  # by axis name

# Tokens of the transformer: tuned for 256x384x97 and serving up to 512x512x57, then tuned for 512x768x97 and for
# 704x1216x121. The last span also holds 896x1600x121 with its images and clips. There are no gaps between the spans.
_TOKENS = (Span(1, 1248, 2048), Span(2049, 4992, 8192), Span(8193, 13376, 32768))
# (frames, rows, columns) of the VAE and the upsamplers: up to 512x512x97, 768x768x257, 896x1600x121 and 1600x896x121.
# The decoder's widest tensor has 128 channels for every 4x4 pixels, and TensorRT requires fewer than 2^31 values.
_GRIDS = (
    (Span(1, 13, 13), Span(1, 8, 16), Span(1, 12, 16)),
    (Span(1, 13, 33), Span(1, 16, 24), Span(1, 24, 24)),
    (Span(1, 16, 16), Span(1, 22, 28), Span(1, 38, 50)),
    (Span(1, 16, 16), Span(1, 38, 50), Span(1, 22, 28)),
)
_TEXT_TOKENS = Span(1, 256, 256)
_PROMPTS = Span(1, 1, 2)  # the prompt, and the negative prompt
_CONDITIONS = Span(1, 1, 3)  # the conditions of guidance, in one batch
_ONE = Span(1, 1, 1)
_CLIPS = 2  # images or clips that a transformer with limits takes besides the video
_CLIP_FRAMES = 2  # latent frames that one of them adds


@dataclass(frozen=True)
class Limits:
    """Limits on the sizes that an engine serves.

    Attributes:
        grids: the grids of a version's passes at one video size.
        exact: whether only these grids are served, for the fastest engine; otherwise all sizes up to them.
        given: whether images and clips are served, which need one timestep per token.
    """

    grids: tuple[Grid, ...]
    exact: bool = False
    given: bool = True


def profiles(component: Component, limits: Limits | None = None) -> list[Profile]:
    """Returns the optimization profiles of an engine, the narrowest first; each maps axis names to spans.

    A transformer has each range of tokens twice: with one timestep for all tokens, and with one per token.
    """
    names = component.axis_names()
    if component.name == "text_encoder":
        return [{"batch": _PROMPTS, "text_tokens": _TEXT_TOKENS}]
    if "tokens" in names:
        # Transformers that can skip layers have presets with CFG and STG at most of their steps.
        guided = any(port.name == "skip_mask" for port in component.inputs)
        conditions = replace(_CONDITIONS, best=_CONDITIONS.max) if guided else _CONDITIONS
        shared = {"batch": conditions, "text_tokens": _TEXT_TOKENS}
        return [shared | {"tokens": tokens, "timesteps": steps} for tokens, steps in _tokens(limits)]
    boxes = [dict(zip(("frames", "rows", "columns"), box, strict=True)) for box in _boxes(component, limits)]
    return [{"batch": _ONE} | box for box in boxes]


def _tokens(limits: Limits | None) -> list[tuple[Span, Span]]:
    """Returns the spans of tokens and timesteps of every profile; tokens of clips need one timestep per token."""
    if limits is None:
        return [(span, steps) for span in _TOKENS for steps in (_ONE, span)]
    totals = {grid.tokens: grid.tokens + _CLIPS * _CLIP_FRAMES * grid.rows * grid.columns for grid in limits.grids}
    if limits.exact:
        exact = [(Span(count, count, count), Span(count, count, totals[count])) for count in sorted(totals)]
        pairs = [pair for alone, with_clips in exact for pair in ((alone, _ONE), (with_clips, with_clips))]
    else:
        spans = [span.below(max(totals.values())) for span in _TOKENS if span.min <= max(totals.values())]
        pairs = [(span, steps) for span in spans for steps in (_ONE, span)]
    return [pair for pair in pairs if limits.given or pair[1] == _ONE]


def _boxes(component: Component, limits: Limits | None) -> list[tuple[Span, Span, Span]]:
    if limits is None:
        return list(_GRIDS)
    if limits.exact:
        return list(dict.fromkeys(_exact_box(component, grid) for grid in limits.grids))
    frames, rows, columns = (
        max(getattr(grid, axis) for grid in limits.grids) for axis in ("frames", "rows", "columns")
    )
    boxes = [(f.below(frames), r.below(rows), c.below(columns)) for f, r, c in _GRIDS]
    return [box for i, box in enumerate(boxes) if not any(_within(box, earlier) for earlier in boxes[:i])]


def _exact_box(component: Component, grid: Grid) -> tuple[Span, Span, Span]:
    """Returns spans of this grid only, except that an encoder also takes images and clips shorter than the video."""
    frames = Span(1, 1, grid.frames) if component.name == "vae_encoder" else Span(*(grid.frames,) * 3)
    return frames, Span(*(grid.rows,) * 3), Span(*(grid.columns,) * 3)


def _within(box: Sequence[Span], outer: Sequence[Span]) -> bool:
    return all(limit.min <= span.min and span.max <= limit.max for span, limit in zip(box, outer, strict=True))


def sizes_of(component: Component, feeds: Mapping[str, np.ndarray[Any, Any]]) -> dict[str, int]:
    """Returns the size of every dynamic axis by name, for feeds that fit the component's ports."""
    sizes: dict[str, int] = {}
    for port in component.inputs:
        for axis, size in zip(port.axes, feeds[port.name].shape, strict=True):
            if isinstance(axis, str):
                line = line_of(axis)
                sizes[line.name] = (size - line.offset) // line.factor
    return sizes


def profile_for(served: Sequence[Profile], sizes: Mapping[str, int]) -> int | None:
    """Returns the index of the first and thus narrowest profile that serves these sizes; None if none does.

    Axes that are not in `sizes` are ignored.
    """
    for index, profile in enumerate(served):
        if all(sizes[name] in span for name, span in profile.items() if name in sizes):
            return index
    return None
