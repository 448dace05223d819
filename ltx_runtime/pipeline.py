"""The road from a prompt to frames: encode_prompt -> make_latents -> decode_frames, and `generate`, which opens
one session after another so that the text encoder has left the memory before the transformer arrives.

Each stage is given an open session; someone who serves many prompts opens all of them once and calls the stages.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ltx_runtime.components import COMPONENT_NAMES, ComponentName
from ltx_runtime.denoise import Step, VelocityOf, denoise
from ltx_runtime.errors import LtxError
from ltx_runtime.geometry import Grid, check_fps, coords_of, grid_of, latents_of, tokens_of
from ltx_runtime.guidance import combine, guidance_at
from ltx_runtime.manifest import Engines
from ltx_runtime.noise import NoiseStream, check_seed
from ltx_runtime.schedule import Sigmas, sigmas_of
from ltx_runtime.sessions import Session, graph_of, open_session
from ltx_runtime.tokenizer import Tokenizer
from ltx_runtime.versions import Guidance, Schedule, Version, find_version

Frame = NDArray[np.uint8]
FrameSink = Callable[[Frame], None]
# Opens a stage of so many units of work; what it yields is called after each unit.
ProgressOf = Callable[[str, int], AbstractContextManager[Callable[[], None]]]


@dataclass(frozen=True)
class Request:
    """What to make. `steps` and `guidance_scale` default to the version's own (None)."""

    prompt: str
    negative_prompt: str
    height: int
    width: int
    num_frames: int
    fps: float
    seed: int
    steps: int | None = None
    guidance_scale: float | None = None


@dataclass(frozen=True)
class Plan:
    """A request checked against a version: grid, sigmas (n,) and the guidance entries of the first pass."""

    grid: Grid
    sigmas: Sigmas
    guidance: tuple[Guidance, ...]
    stochastic: bool

    @property
    def uses_negative_prompt(self) -> bool:
        return any(guidance_at(float(sigma), self.guidance).uses_cfg for sigma in self.sigmas)


@dataclass(frozen=True)
class Text:
    """Encoded prompts, the positive one first, then the negative one if there is any.

    embeddings: (P, T, C) float32; mask: (P, T) int64, 1 = a token of the prompt.
    """

    embeddings: NDArray[np.float32]
    mask: NDArray[np.int64]


def default_request(version: Version, prompt: str, seed: int) -> Request:
    """A request with the version's own size, length, frame rate and negative prompt."""
    return Request(
        prompt=prompt,
        negative_prompt=version.negative_prompt,
        height=version.height,
        width=version.width,
        num_frames=version.num_frames,
        fps=version.fps,
        seed=seed,
    )


def plan(request: Request, version: Version, schedule: Schedule | None = None) -> Plan:
    """Checks a request before anything is loaded; a checkpoint's own schedule replaces the version's.

    Raises:
        LtxError: size, frame rate, steps, guidance or seed cannot be used.
    """
    grid = grid_of(request.height, request.width, request.num_frames)
    check_fps(request.fps)
    check_seed(request.seed)
    first = version.passes[0]
    guidance = first.guidance
    if request.guidance_scale is not None:
        if not (np.isfinite(request.guidance_scale) and request.guidance_scale >= 1):
            raise LtxError(f"guidance-scale must be at least 1 (1 = off); got {request.guidance_scale:g} - use 3")
        guidance = tuple(replace(entry, cfg_scale=request.guidance_scale) for entry in guidance)
    sigmas = sigmas_of(schedule or version.schedule, first, grid.tokens, request.steps)
    return Plan(grid, sigmas, guidance, first.stochastic)


def encode_prompt(session: Session, tokenizer: Tokenizer, prompts: Sequence[str]) -> Text:
    """Text embeddings of all prompts, padded to the longest."""
    ids, mask = tokenizer.encode(prompts)
    return Text(session.run({"ids": ids, "mask": mask})["text"], mask)


def make_latents(session: Session, text: Text, planned: Plan, *, fps: float, seed: int, causal: bool) -> Iterator[Step]:
    """Noise -> latents; yields one step after another, the last with the result as tokens (1, N, C) float32."""
    channels = session.component.inputs[0].axes[-1]
    assert isinstance(channels, int)
    noise = NoiseStream(seed, "latents").draw(
        (1, channels, planned.grid.frames, planned.grid.rows, planned.grid.columns)
    )
    coords = coords_of(planned.grid, fps, causal=causal)
    step_noise = NoiseStream(seed, "step").draw if planned.stochastic else None
    velocity_of = velocity_function(session, text, coords, planned.guidance)
    return denoise(tokens_of(noise), planned.sigmas, velocity_of, step_noise)


def velocity_function(
    session: Session, text: Text, coords: NDArray[np.float32], guidance: Sequence[Guidance]
) -> VelocityOf:
    """The guided velocity at a noise level; all conditions go through the transformer in one batch.

    Rows are [positive, negative if CFG, perturbed if STG], each over the batch of one sample.
    """
    ports = {port.name: port for port in session.component.inputs}
    if "skip_mask" not in ports and any(entry.uses_stg for entry in guidance):
        raise LtxError("this transformer was exported without STG, which its version uses - export it again")

    def velocity_of(latents: NDArray[np.float32], sigma: float) -> NDArray[np.float32]:
        now = guidance_at(sigma, guidance)
        prompts = [0] + [1] * now.uses_cfg + [0] * now.uses_stg
        rows = len(prompts)
        feeds: dict[str, NDArray[Any]] = {
            "latents": np.repeat(latents, rows, axis=0),
            "timestep": np.full((rows, 1), sigma, np.float32),
            "coords": np.repeat(coords, rows, axis=0),
            "text": text.embeddings[prompts],
            "text_mask": text.mask[prompts],
        }
        if "skip_mask" in ports:
            feeds["skip_mask"] = np.ones(ports["skip_mask"].shape({"batch": rows}), np.float32)
            if now.uses_stg:
                feeds["skip_mask"][list(now.skip_blocks), -1] = 0.0
        velocity = session.run(feeds)["velocity"]
        return combine(
            now,
            text=velocity[:1],
            unconditional=velocity[1:2] if now.uses_cfg else None,
            perturbed=velocity[-1:] if now.uses_stg else None,
        )

    return velocity_of


def decode_frames(session: Session, latents: NDArray[np.float32], version: Version, seed: int) -> Iterator[Frame]:
    """Frames (height, width, 3) uint8 RGB, one after another, of normalized latents (1, C, F, H, W) float32.

    A decoder that takes a timestep gets the version's, and latents mixed with noise by the version's scale, as
    the official pipeline does before un-normalizing. Pixels are floor(255 y) of y clamped to 0..1.
    """
    batch, _, frames, rows, columns = latents.shape
    assert batch == 1, "frames of one video at a time"
    feeds = {"latents": latents}
    maps = NoiseStream(seed, "decoder_maps")
    for port in session.component.inputs[1:]:
        if port.name == "timestep":
            feeds["timestep"] = np.full((1,), version.decode_timestep, np.float32)
            scale = np.float32(version.decode_noise_scale)
            noise = NoiseStream(seed, "decode").draw(latents.shape)
            feeds["latents"] = (np.float32(1.0) - scale) * latents + scale * noise
        elif port.name.startswith("noise_"):
            feeds[port.name] = maps.draw(port.shape({"frames": frames, "rows": rows, "columns": columns}))
    video = session.run(feeds)["video"][0]
    if not np.isfinite(video).all():
        raise LtxError("the decoder made numbers that are not finite - try another checkpoint or report it")
    for frame in video.transpose(1, 2, 3, 0):
        yield (np.clip(frame * np.float32(0.5) + np.float32(0.5), 0.0, 1.0) * np.float32(255.0)).astype(np.uint8)


def _notes(version: Version, tokenizer: Tokenizer, prompts: Sequence[str]) -> Iterator[str]:
    if len(version.passes) > 1:
        yield f"{version.name} was made for two passes; this is the first one alone, at the size asked for"
    for prompt in prompts:
        tokens = tokenizer.count(prompt)
        if tokens > version.text_tokens:
            yield f"the prompt {prompt[:30]!r}... has {tokens} tokens; the model sees the first {version.text_tokens}"


def generate(
    engines: Engines,
    request: Request,
    sink: FrameSink,
    progress: ProgressOf,
    backend: str = "cpu",
    note: Callable[[str], None] = lambda text: None,
) -> None:
    """Makes a video: every decoded frame goes to `sink`, every unit of work is told to `progress`.

    `note` hears what the user should know but need not change.

    Raises:
        LtxError: the request cannot be made, or the engines do not fit the backend.
    """
    version = find_version(engines.manifest.version)
    planned = plan(request, version, engines.manifest.schedule)
    prompts = [request.prompt] + [request.negative_prompt] * planned.uses_negative_prompt
    tokenizer = Tokenizer(engines.folder / engines.manifest.tokenizer, version.text_tokens)
    for name in COMPONENT_NAMES:  # before the first stage, not minutes later before the last
        graph_of(engines, name, backend)
    for remark in _notes(version, tokenizer, prompts):
        note(remark)

    def stage(name: ComponentName) -> AbstractContextManager[Session]:
        return open_session(engines, name, backend)

    with progress("text", 1) as done, stage("text_encoder") as session:
        text = encode_prompt(session, tokenizer, prompts)
        done()
    with progress("denoise", len(planned.sigmas)) as done, stage("transformer") as session:
        for step in make_latents(  # noqa: B007  (the last step holds the result)
            session,
            text,
            planned,
            fps=request.fps,
            seed=request.seed,
            causal=engines.manifest.causal_positions,
        ):
            done()
    latents = latents_of(step.latents, planned.grid)
    with progress("decode", planned.grid.num_frames) as done, stage("vae_decoder") as session:
        for frame in decode_frames(session, latents, version, request.seed):
            sink(frame)
            done()
