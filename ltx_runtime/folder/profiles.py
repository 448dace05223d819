"""Which sizes an engine serves: a few buckets, each tuned for one size, instead of one wide range.

From one table come an engine's optimization profiles, and the check of a request before the engine is loaded. Knows
nothing of sessions, files or TensorRT.
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
    """Sizes an engine serves along one axis, and the one it is tuned for."""

    min: int
    best: int
    max: int

    def __contains__(self, size: object) -> bool:
        return isinstance(size, int) and self.min <= size <= self.max

    def below(self, limit: int) -> Span:
        """What is left of it up to `limit`, which is at least `min`."""
        return replace(self, best=min(self.best, limit), max=min(self.max, limit))


Profile = dict[str, Span]  # by axis name

# By tokens, for the transformer: 256x384x97 up to 512x512x57, 512x768x97, 704x1216x121; the last holds 896x1600x121 and
# what it is conditioned on. No number between them is left out.
_TOKENS = (Span(1, 1248, 2048), Span(2049, 4992, 8192), Span(8193, 13376, 32768))
# By (frames, rows, columns), for all that works on grids: up to 512x512x97, 768x768x257, 896x1600x121 and 1600x896x121.
# A decoder's widest tensor has 128 channels for every 4x4 pixels, and TensorRT has tensors below 2^31 values.
_GRIDS = (
    (Span(1, 13, 13), Span(1, 8, 16), Span(1, 12, 16)),
    (Span(1, 13, 33), Span(1, 16, 24), Span(1, 24, 24)),
    (Span(1, 16, 16), Span(1, 22, 28), Span(1, 38, 50)),
    (Span(1, 16, 16), Span(1, 38, 50), Span(1, 22, 28)),
)
_TEXT_TOKENS = Span(1, 256, 256)
_PROMPTS = Span(1, 1, 2)  # the negative one beside the positive
_CONDITIONS = Span(1, 1, 3)  # of guidance, side by side in one batch
_ONE = Span(1, 1, 1)
_CLIPS = 2  # how many images or clips a narrowed transformer takes besides the video; a clip adds two latent frames
_CLIP_FRAMES = 2


@dataclass(frozen=True)
class Limits:
    """Narrows what an engine serves to the grids of a version's passes at one size.

    exact: serve these grids alone, for the fastest engine; else everything up to them.
    given: serve images and clips, of which every token has a timestep of its own.
    """

    grids: tuple[Grid, ...]
    exact: bool = False
    given: bool = True


def profiles(component: Component, limits: Limits | None = None) -> list[Profile]:
    """The optimization profiles of an engine: one span per axis name in each, the narrowest first.

    A transformer has each bucket twice, with one timestep for all tokens and with one per token.
    """
    names = component.axis_names()
    if component.name == "text_encoder":
        return [{"batch": _PROMPTS, "text_tokens": _TEXT_TOKENS}]
    if "tokens" in names:
        # What can skip layers has presets with both kinds of guidance, at most of their steps.
        guided = any(port.name == "skip_mask" for port in component.inputs)
        conditions = replace(_CONDITIONS, best=_CONDITIONS.max) if guided else _CONDITIONS
        shared = {"batch": conditions, "text_tokens": _TEXT_TOKENS}
        return [shared | {"tokens": tokens, "timesteps": steps} for tokens, steps in _tokens(limits)]
    boxes = [dict(zip(("frames", "rows", "columns"), box, strict=True)) for box in _boxes(component, limits)]
    return [{"batch": _ONE} | box for box in boxes]


def _tokens(limits: Limits | None) -> list[tuple[Span, Span]]:
    """Tokens and timesteps of every profile; tokens that clips add come with a timestep per token only."""
    if limits is None:
        return [(span, steps) for span in _TOKENS for steps in (_ONE, span)]
    most = {grid.tokens: grid.tokens + _CLIPS * _CLIP_FRAMES * grid.rows * grid.columns for grid in limits.grids}
    if limits.exact:
        exact = [(Span(count, count, count), Span(count, count, most[count])) for count in sorted(most)]
        pairs = [pair for alone, with_clips in exact for pair in ((alone, _ONE), (with_clips, with_clips))]
    else:
        spans = [span.below(max(most.values())) for span in _TOKENS if span.min <= max(most.values())]
        pairs = [(span, steps) for span in spans for steps in (_ONE, span)]
    return [pair for pair in pairs if limits.given or pair[1] == _ONE]


def _boxes(component: Component, limits: Limits | None) -> list[tuple[Span, Span, Span]]:
    if limits is None:
        return list(_GRIDS)
    if limits.exact:
        return list(dict.fromkeys(_exactly(component, grid) for grid in limits.grids))
    frames, rows, columns = (
        max(getattr(grid, axis) for grid in limits.grids) for axis in ("frames", "rows", "columns")
    )
    narrowed = [(f.below(frames), r.below(rows), c.below(columns)) for f, r, c in _GRIDS]
    return [box for i, box in enumerate(narrowed) if not any(_within(box, other) for other in narrowed[:i])]


def _exactly(component: Component, grid: Grid) -> tuple[Span, Span, Span]:
    """An encoder is given images, and clips shorter than the video, too."""
    frames = Span(1, 1, grid.frames) if component.name == "vae_encoder" else Span(*(grid.frames,) * 3)
    return frames, Span(*(grid.rows,) * 3), Span(*(grid.columns,) * 3)


def _within(box: Sequence[Span], other: Sequence[Span]) -> bool:
    return all(theirs.min <= mine.min and mine.max <= theirs.max for mine, theirs in zip(box, other, strict=True))


def sizes_of(component: Component, feeds: Mapping[str, np.ndarray[Any, Any]]) -> dict[str, int]:
    """The size of every dynamic axis of feeds that fit the ports, by axis name."""
    sizes: dict[str, int] = {}
    for port in component.inputs:
        for axis, size in zip(port.axes, feeds[port.name].shape, strict=True):
            if isinstance(axis, str):
                line = line_of(axis)
                sizes[line.name] = (size - line.offset) // line.factor
    return sizes


def profile_for(served: Sequence[Profile], sizes: Mapping[str, int]) -> int | None:
    """The index of the first profile that serves these sizes, which is the narrowest; None if none does.

    Axes that `sizes` does not name are not looked at.
    """
    for index, profile in enumerate(served):
        if all(sizes[name] in span for name, span in profile.items() if name in sizes):
            return index
    return None
