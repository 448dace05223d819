"""The stages of the road, each of which is given an open session: text, media and noise in, latents and frames out.

Someone who serves many prompts opens all sessions once and calls these; `pipeline.generate` opens one after another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ltx_runtime.components import Port
from ltx_runtime.conditioning import Conditioned
from ltx_runtime.denoise import Step, VelocityOf, denoise
from ltx_runtime.embeddings import Text
from ltx_runtime.errors import LtxError
from ltx_runtime.guidance import combine
from ltx_runtime.latents import tone_mapped
from ltx_runtime.noise import Noise
from ltx_runtime.passes import STG_MODES
from ltx_runtime.plan import PassPlan, Plan
from ltx_runtime.saved_latents import Ending
from ltx_runtime.sessions import Session
from ltx_runtime.tiling import Tiling, decode_tiled, encode_tiled
from ltx_runtime.tokenizer import Tokenizer

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Posterior:
    """What the VAE encoder makes of a clip: mean and deviation of its normalized latents, (B, C, F, H, W) float32."""

    mean: Floats
    deviation: Floats

    def sample(self, noise: Floats) -> Floats:
        """Latents drawn with standard normal noise of the same shape."""
        sampled: Floats = self.mean + self.deviation * noise
        return sampled


def encode_prompt(session: Session, tokenizer: Tokenizer, prompt: str, negative_prompt: str | None) -> Text:
    """Text embeddings of one prompt and, unless None, its negative prompt, both padded to the longer one."""
    ids, mask = tokenizer.encode([prompt] if negative_prompt is None else [prompt, negative_prompt])
    embeddings = session.run({"ids": ids, "mask": mask})["text"]
    if negative_prompt is None:
        return Text(embeddings, mask)
    return Text(embeddings[:1], mask[:1], embeddings[1:], mask[1:])


def encode_media(session: Session, video: Floats, tiling: Tiling) -> Posterior:
    """The posterior of a clip (1, 3, 8F-7, 32H, 32W) float32 in [-1, 1], encoded whole or in tiles."""

    def encode(clip: Floats) -> Floats:
        return np.asarray(session.run({"video": clip[None]})["posterior"][0])

    made = encode_tiled(video[0], encode, tiling)[None]
    mean, deviation = np.split(made, 2, axis=1)
    return Posterior(mean, deviation)


def make_latents(
    session: Session,
    text: Text,
    start: Conditioned,
    one: PassPlan,
    planned: Plan,
    draw: Callable[[str, tuple[int, ...]], Floats],
    *,
    low_memory: bool = False,
) -> Iterator[Step]:
    """One pass; yields a step after another, the last with the result as tokens (B, E + N, C) float32.

    Args:
        session: of the transformer.
        text: of the batch, or of one sample for all.
        start: tokens at the pass's first noise level, with what is given in place.
        one: the pass.
        planned: what holds for all passes.
        draw: (name, shape) -> fresh noise of this pass.
        low_memory: run conditions one after another instead of in one batch.

    Raises:
        LtxError: the transformer was exported without STG, which a step uses.
    """
    velocity_of = velocity_function(session, text, start.coords, one, planned, low_memory=low_memory)
    return denoise(
        start.tokens,
        one.sigmas,
        velocity_of,
        draw,
        stochastic=one.stochastic,
        mask=start.mask,
        image_noise_scale=planned.image_noise_scale,
    )


def velocity_function(
    session: Session, text: Text, coords: Floats, one: PassPlan, planned: Plan, *, low_memory: bool = False
) -> VelocityOf:
    """The guided velocity of a step. Conditions are: with the prompt, with the negative one if CFG, perturbed if STG.

    In a batch its samples of one condition lie side by side, [B with the prompt, B with the negative one, ...]. What
    does not change from step to step is made once and read-only, so that a session may keep it where it computes.
    """
    ports = {port.name: port for port in session.component.inputs}
    kept: dict[tuple[Any, ...], dict[str, NDArray[Any]]] = {}
    if "skip_mask" not in ports and any(step.uses_stg for step in one.guidance):
        raise LtxError("this transformer was exported without STG - export it again with --stg, or use --stg-scale 0")

    def velocity_of(tokens: Floats, timesteps: Floats, index: int) -> Floats:
        now = one.guidance[index]
        conditions = ("text", *("negative",) * now.uses_cfg, *("perturbed",) * now.uses_stg)
        made: list[Floats] = []
        for group in [(each,) for each in conditions] if low_memory else [conditions]:
            skipped = now.skip_blocks if "perturbed" in group else ()
            key = (group, skipped, len(tokens))
            if key not in kept:
                kept[key] = _constant_feeds(ports, text, coords, *key, STG_MODES.index(planned.stg_mode))
            rows = len(group) * len(tokens)
            feeds = {
                "latents": np.concatenate([tokens] * len(group)),
                "timestep": np.ascontiguousarray(np.broadcast_to(timesteps, (rows, timesteps.shape[1]))),
            }
            made += np.split(session.run({**feeds, **kept[key]})["velocity"], len(group))
        velocities = dict(zip(conditions, made, strict=True))
        return combine(now, velocities["text"], velocities.get("negative"), velocities.get("perturbed"))

    return velocity_of


def _constant_feeds(
    ports: dict[str, Port],
    text: Text,
    coords: Floats,
    group: tuple[str, ...],
    skipped: tuple[int, ...],
    batch: int,
    mode: int,
) -> dict[str, NDArray[Any]]:
    """The transformer's inputs that are the same at every step, for conditions side by side."""

    def side_by_side(arrays: list[NDArray[Any]]) -> NDArray[Any]:
        return np.concatenate([np.broadcast_to(array, (batch, *array.shape[1:])) for array in arrays])

    said: list[tuple[NDArray[Any], NDArray[Any]]] = []
    for each in group:
        if each == "negative":
            assert text.negative_embeddings is not None and text.negative_mask is not None
            said.append((text.negative_embeddings, text.negative_mask))
        else:
            said.append((text.embeddings, text.mask))
    feeds = {
        "coords": side_by_side([coords] * len(group)),
        "text": side_by_side([embeddings for embeddings, _ in said]),
        "text_mask": side_by_side([mask for _, mask in said]),
    }
    if "skip_mask" in ports:
        skip_mask = np.ones(ports["skip_mask"].shape({"batch": batch * len(group)}), np.float32)
        if "perturbed" in group:
            skip_mask[list(skipped), mode, batch * group.index("perturbed") :] = 0.0  # it is the last of a group
        feeds["skip_mask"] = skip_mask
    for array in feeds.values():
        array.flags.writeable = False
    return feeds


def upsample(session: Session, latents: Floats) -> Floats:
    """Normalized latents (B, C, F, H, W) of twice the size, or with the temporal upsampler twice the frame rate."""
    return np.asarray(session.run({"latents": latents})["upsampled"])


def ready_to_decode(latents: Floats, ending: Ending, decoder_inputs: Sequence[Port], noise: Noise) -> dict[str, Floats]:
    """All inputs of a decoder for normalized latents (1, C, F, H, W) float32, with their noise drawn.

    A decoder that takes a timestep gets latents mixed with noise, as the official pipeline does before the tone map
    and before un-normalizing.
    """
    _, _, frames, rows, columns = latents.shape
    feeds = {"latents": latents}
    for port in decoder_inputs[1:]:
        if port.name == "timestep":
            feeds["timestep"] = np.full((1,), ending.decode_timestep, np.float32)
            scale = np.float32(ending.decode_noise_scale)
            feeds["latents"] = (np.float32(1.0) - scale) * latents + scale * noise.draw("decode", latents.shape)
        else:
            shape = port.shape({"frames": frames, "rows": rows, "columns": columns})
            feeds[port.name] = noise.draw(f"decoder/{port.name}", shape)
    if ending.tone_map > 0:
        feeds["latents"] = tone_mapped(feeds["latents"], ending.tone_map)
    return feeds


def decode(session: Session, feeds: dict[str, Floats], tiling: Tiling) -> Iterator[Floats]:
    """Frames (3, height, width) float32 in 0..1, one after another; see `ready_to_decode` for the inputs.

    Raises:
        LtxError: the decoder makes numbers that are not finite.
    """
    _, _, frames, rows, columns = feeds["latents"].shape

    def window(over_frames: slice, over_rows: slice, over_columns: slice) -> Floats:
        cut = dict(feeds)
        cut["latents"] = np.ascontiguousarray(feeds["latents"][:, :, over_frames, over_rows, over_columns])
        for name in feeds:
            if name.startswith("noise_"):
                cut[name] = _map_of(feeds[name], rows, columns, over_rows, over_columns)
        video: Floats = session.run(cut)["video"][0]
        if not np.isfinite(video).all():
            raise _unfinite()
        return video

    for frame in decode_tiled((frames, rows, columns), window, tiling):
        yield np.clip(frame * np.float32(0.5) + np.float32(0.5), 0.0, 1.0)


def decode_pixels(session: Session, feeds: dict[str, Floats]) -> NDArray[np.uint8]:
    """Frames (F, height, width, 3) uint8, made where the decoder runs; for a session whose outputs have `frames`.

    Raises:
        LtxError: the decoder makes numbers that are not finite.
    """
    made = session.run(feeds, ["frames", "mean"])
    if not np.isfinite(made["mean"]).all():
        raise _unfinite()
    pixels: NDArray[np.uint8] = made["frames"][0]
    return pixels


def _unfinite() -> LtxError:
    return LtxError("the decoder made numbers that are not finite - try another checkpoint or report it")


def _map_of(maps: Floats, rows: int, columns: int, over_rows: slice, over_columns: slice) -> Floats:
    """The part of noise maps (count, s * rows, s * columns) that belongs to a window of latents."""
    scale = maps.shape[1] // rows
    assert maps.shape[1:] == (scale * rows, scale * columns)
    return np.ascontiguousarray(maps[:, _scaled(over_rows, scale), _scaled(over_columns, scale)])


def _scaled(part: slice, scale: int) -> slice:
    return slice(scale * part.start, scale * part.stop)
