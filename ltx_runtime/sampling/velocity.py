"""Computes the guided velocity of every step with an open session of the transformer.

To serve many prompts, open a session once and call `make_latents` for each of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ltx_runtime.errors import LtxError
from ltx_runtime.sampling.conditioning import Conditioned
from ltx_runtime.sampling.denoise import Step, VelocityOf, denoise
from ltx_runtime.sampling.guidance import combine
from ltx_runtime.sampling.pass_plan import PassPlan, Settings
from ltx_runtime.sessions import Session
from ltx_runtime.sessions.numbers import finite
from ltx_runtime.spec.components import Port
from ltx_runtime.spec.encodings import Rope, Rotation, sinusoid_of
from ltx_runtime.spec.presets import STG_MODES
from ltx_runtime.text.embeddings import Text

Floats = NDArray[np.float32]
_MADE = {
    "text": "the transformer computed",
    "negative": "the transformer computed with the negative prompt",
    "perturbed": "the transformer computed with skipped blocks",
}


def make_latents(
    session: Session,
    text: Text,
    rope: Rope,
    start: Conditioned,
    one: PassPlan,
    settings: Settings,
    draw: Callable[[str, tuple[int, ...]], Floats],
    *,
    low_memory: bool = False,
    resumed: tuple[int, Floats] | None = None,
) -> Iterator[Step]:
    """Runs one pass and yields its steps; the last one has the result as tokens (B, E + N, C) float32.

    Args:
        session: an open session of the transformer.
        text: prompt embeddings of the batch, or of one sample for all.
        rope: position embedding of the transformer.
        start: tokens at the pass's first noise level, with all conditioned tokens in place.
        one: plan of the pass.
        settings: settings of all passes.
        draw: (name, shape) -> fresh noise of this pass.
        low_memory: whether to run conditions one after another instead of in one batch.
        resumed: a number of steps that are finished already, and the tokens after them.

    Raises:
        LtxError: the tokens of finished steps have another shape than the pass.
    """
    if resumed is not None and resumed[1].shape != start.tokens.shape:
        raise LtxError("what is kept of the interrupted run does not fit its request", "start the run again")
    half = session.component.input("cosines").axes[-1]
    assert isinstance(half, int)
    rotation = rope.rotation(start.coords, 2 * half)
    velocity_of = velocity_function(session, text, rotation, one, settings, low_memory=low_memory)
    return denoise(
        start.tokens,
        one.sigmas,
        velocity_of,
        draw,
        stochastic=one.stochastic,
        mask=start.mask,
        image_noise_scale=settings.image_noise_scale,
        resumed=resumed,
    )


def velocity_function(
    session: Session, text: Text, rotation: Rotation, one: PassPlan, settings: Settings, *, low_memory: bool = False
) -> VelocityOf:
    """Returns the function that computes the guided velocity of a step.

    A step has up to three conditions: prompt, negative prompt with CFG, and perturbed with STG. In a batch the samples
    of one condition are adjacent: [B with the prompt, B with the negative prompt, ...]. Inputs that do not change from
    step to step are built once and read-only, so that a session may keep them on its device. Velocities come back to
    main memory from every device; the function raises NotFiniteError if one of them has a value that is not finite.
    """
    ports = {port.name: port for port in session.component.inputs}
    constant_feeds: dict[tuple[Any, ...], dict[str, NDArray[Any]]] = {}

    def velocity_of(tokens: Floats, timesteps: Floats, index: int) -> Floats:
        guidance = one.guidance[index]
        conditions = ("text", *("negative",) * guidance.uses_cfg, *("perturbed",) * guidance.uses_stg)
        outputs: list[Floats] = []
        for group in [(condition,) for condition in conditions] if low_memory else [conditions]:
            skipped = guidance.skip_blocks if "perturbed" in group else ()
            key = (group, skipped, len(tokens))
            if key not in constant_feeds:
                constant_feeds[key] = _constant_feeds(ports, text, rotation, *key, STG_MODES.index(settings.stg_mode))
            rows = len(group) * len(tokens)
            feeds = {
                "latents": np.concatenate([tokens] * len(group)),
                "sinusoid": sinusoid_of(np.broadcast_to(timesteps, (rows, timesteps.shape[1]))),
            }
            velocity = session.run({**feeds, **constant_feeds[key]})["velocity"]
            outputs += map(finite, np.split(velocity, len(group)), [_MADE[condition] for condition in group])
        velocities = dict(zip(conditions, outputs, strict=True))
        return combine(guidance, velocities["text"], velocities.get("negative"), velocities.get("perturbed"))

    return velocity_of


def _constant_feeds(
    ports: dict[str, Port],
    text: Text,
    rotation: Rotation,
    group: tuple[str, ...],
    skipped: tuple[int, ...],
    batch: int,
    mode: int,
) -> dict[str, NDArray[Any]]:
    """Returns the transformer's inputs that are the same at every step, for a batch of the conditions in `group`."""

    def side_by_side(arrays: list[NDArray[Any]]) -> NDArray[Any]:
        return np.concatenate([np.broadcast_to(array, (batch, *array.shape[1:])) for array in arrays])

    texts: list[tuple[NDArray[Any], NDArray[Any]]] = []
    for condition in group:
        if condition == "negative":
            assert text.negative_embeddings is not None and text.negative_mask is not None
            texts.append((text.negative_embeddings, text.negative_mask))
        else:
            texts.append((text.embeddings, text.mask))
    feeds = {
        "cosines": rotation.cosines,
        "sines": rotation.sines,
        "text": side_by_side([embeddings for embeddings, _ in texts]),
        "text_mask": side_by_side([mask for _, mask in texts]),
    }
    if "skip_mask" in ports:
        skip_mask = np.ones(ports["skip_mask"].shape({"batch": batch * len(group)}), np.float32)
        if "perturbed" in group:
            skip_mask[list(skipped), mode, batch * group.index("perturbed") :] = 0.0  # perturbed comes last
        feeds["skip_mask"] = skip_mask
    for array in feeds.values():
        array.flags.writeable = False
    return feeds
