"""How far an unfinished run is, and whether what a file says of that can be so."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ltx_runtime.errors import LtxError
from ltx_runtime.noise.noise import Noise
from ltx_runtime.planning.plan import Plan
from ltx_runtime.text.embeddings import Text

Floats = NDArray[np.float32]

_DRAWS_OF_STEP = 4  # at most, for each condition and for the video itself
_KEY_OF_DRAW = re.compile(r"pass[1-9]/[a-z]+(_[a-z0-9]+)?")
_TEMPORAL = "temporal"


@dataclass
class State:
    """How far a run is. The run updates it as it goes, and goes on from it if it is not empty.

    Attributes:
        text: the encoded prompts; None before they are encoded, and after the last pass.
        latents: normalized latents (1, C, F, H, W) of finished stages, by name: pass1, pass2, temporal.
        tokens: the latents of the pass under way as tokens (1, N, C), after `steps` of its steps; None at its start.
        steps: number of finished steps of the pass under way.
        drawn: key and shape of every random draw of the finished passes, in order.
        saved: the absolute path of each file that was saved, by the path that was asked for.
        keep: is called whenever the state has changed.
    """

    text: Text | None = None
    latents: dict[str, Floats] = field(default_factory=dict)
    tokens: Floats | None = None
    steps: int = 0
    drawn: list[tuple[str, tuple[int, ...]]] = field(default_factory=list)
    saved: dict[str, str] = field(default_factory=dict)
    keep: Callable[[], None] = lambda: None

    @property
    def is_begun(self) -> bool:
        """Whether there is anything that would have to be computed again."""
        return self.tokens is not None or bool(self.latents)

    def stepped(self, tokens: Floats, steps: int) -> None:
        """Sets the tokens of the pass under way after some of its steps."""
        self.tokens, self.steps = tokens, steps
        self.keep()

    def finished(self, name: str, latents: Floats, drawn: Sequence[tuple[str, tuple[int, ...]]]) -> None:
        """Adds the latents of a finished stage, and all draws until then; the tokens of its steps are forgotten."""
        self.latents[name], self.drawn = latents, [*drawn]
        self.tokens, self.steps = None, 0
        self.keep()


class ReplayedNoise:
    """Noise of a run that may go on: the draws of finished passes are repeated at once, and all draws are listed.

    Sources that draw from one stream then continue where they would have been.

    Attributes:
        drawn: key and shape of all draws, in order.
    """

    def __init__(self, noise: Noise, drawn: Sequence[tuple[str, tuple[int, ...]]]) -> None:
        self._noise = noise
        self.drawn: list[tuple[str, tuple[int, ...]]] = []
        for key, shape in drawn:
            self.draw(key, shape)

    def draw(self, key: str, shape: tuple[int, ...]) -> Floats:
        self.drawn.append((key, shape))
        return self._noise.draw(key, shape)


def check_state(state: State, planned: Plan, path: Path, channels: int, text_channels: int) -> None:
    """Checks that the state of an unfinished run is one of the run that is planned.

    Args:
        state: the state.
        planned: the plan of the same request.
        path: the file that holds the state, for messages.
        channels, text_channels: channels of latents, and of embeddings.

    Raises:
        LtxError: something of it does not fit.
    """
    if not all(_fits(state, planned, channels, text_channels)):
        raise LtxError(f"{path} holds a state that is none of its run", "start the run again")


def _fits(state: State, planned: Plan, channels: int, text_channels: int) -> Iterator[bool]:
    """Yields whether each part of a state fits."""
    names = [f"pass{number}" for number in range(1, len(planned.passes) + 1)]
    finished = [name for name in names if name in state.latents]
    yield finished == names[: len(finished)]
    yield state.latents.keys() <= {*names, *([_TEMPORAL] if planned.temporal_upscale else [])}
    yield _TEMPORAL not in state.latents or finished == names
    for one, name in zip(planned.passes, names, strict=True):
        of_pass = state.latents.get(name)
        yield of_pass is None or of_pass.shape == (1, channels, one.grid.frames, one.grid.rows, one.grid.columns)
    if (temporal := state.latents.get(_TEMPORAL)) is not None:
        grid = planned.passes[-1].grid
        yield temporal.shape == (1, channels, 2 * grid.frames - 1, grid.rows, grid.columns)
    if state.tokens is None:
        yield state.steps == 0
    else:
        yield len(finished) < len(names) and 0 < state.steps < len(planned.passes[len(finished)].sigmas)
        yield state.tokens.ndim == 3 and state.tokens.shape[::2] == (1, channels)
    yield from _fits_text(state, text_channels)
    yield from _fits_draws(state, planned, channels)


def _fits_text(state: State, channels: int) -> Iterator[bool]:
    if (text := state.text) is None:
        return
    for embeddings, mask in ((text.embeddings, text.mask), (text.negative_embeddings, text.negative_mask)):
        yield (embeddings is None) == (mask is None)
        if embeddings is not None and mask is not None:
            yield embeddings.ndim == 3 and embeddings.shape[::2] == (1, channels) and embeddings.dtype.kind == "f"
            yield mask.shape == embeddings.shape[:2] and mask.dtype.kind == "i"


def _fits_draws(state: State, planned: Plan, channels: int) -> Iterator[bool]:
    """Yields whether there are no more draws, and none larger, than the finished passes can have made."""
    sources = 1 + len(planned.request.conditions) + (planned.request.video is not None)
    steps = sum(len(one.sigmas) for one in planned.passes)
    yield len(state.drawn) <= _DRAWS_OF_STEP * (steps + len(planned.passes)) * sources
    largest = max(one.grid.tokens for one in planned.passes) * channels * (1 + sources)
    for key, shape in state.drawn:
        yield _KEY_OF_DRAW.fullmatch(key) is not None
        yield min(shape, default=0) > 0 and math.prod(shape) <= largest
