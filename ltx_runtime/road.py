"""The road from a request to frames: each stage opens its session when it begins, after the one before was closed.

text -> media -> [ first pass -> upsampler -> ] last pass -> [ temporal upsampler -> ] frames
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from ltx_runtime.errors import LtxError, advised
from ltx_runtime.files import amount
from ltx_runtime.folder.commands import check_command
from ltx_runtime.folder.manifest import Engines
from ltx_runtime.noise.noise import RNGS, FileNoise, GivenNoise, Noise, RecordingNoise
from ltx_runtime.outputs.frames import SENTENCES, Watched
from ltx_runtime.outputs.state import ReplayedNoise, State
from ltx_runtime.planning.backends import Chosen
from ltx_runtime.planning.media import read_media
from ltx_runtime.planning.options import RunOptions
from ltx_runtime.planning.plan import Plan
from ltx_runtime.planning.work import DECODE, FRAME_RATE, MEDIA, TEXT, UPSCALE, denoise_label
from ltx_runtime.progress import Progress
from ltx_runtime.sampling import denoise
from ltx_runtime.sampling.pass_plan import PassPlan
from ltx_runtime.sampling.start import Encoded, Media, encode_for, start_of
from ltx_runtime.sampling.step import Step
from ltx_runtime.sampling.velocity import make_latents
from ltx_runtime.sessions import Session, UnsupportedError
from ltx_runtime.sessions.found import Found
from ltx_runtime.sessions.numbers import NotFiniteError, computing, finite
from ltx_runtime.sessions.pool import SessionPool
from ltx_runtime.spec.components import ComponentName
from ltx_runtime.spec.geometry import Grid
from ltx_runtime.spec.versions import Version
from ltx_runtime.text.cache import EmbeddingsCache
from ltx_runtime.text.embeddings import Text, faults_of, read_text, text_of, write_text
from ltx_runtime.text.encode import encode_prompts, tokenizer_of
from ltx_runtime.vae.decode import pixels_of, ready_to_decode
from ltx_runtime.vae.encode import Posterior, encode_media
from ltx_runtime.vae.latents import adain
from ltx_runtime.vae.saved_latents import Ending, write_latents
from ltx_runtime.vae.upsample import upsample

Frame = NDArray[np.uint8]
Floats = NDArray[np.float32]
STILL = "zero_velocity"  # the key of a remark


@dataclass(frozen=True)
class Road:
    """Everything that the stages share: sessions, the decisions of the plan, and where progress is shown.

    Attributes:
        engines: the version folder.
        version: the release that the folder holds.
        options: how the request is run.
        chosen: the graph or engine that runs each component.
        sessions: opens sessions, and keeps those that stay loaded.
        progress: shows how far each stage is.
        note: is called with each remark that the user should know of.
        note_once: the same, but a remark that was made for an earlier video is not made again.
        seconds: duration of each finished stage, by its label.
        remarks: sentences on what is odd about the video but does not end it, by a key for programs.
    """

    engines: Engines
    version: Version
    options: RunOptions
    chosen: Chosen
    sessions: SessionPool
    progress: Progress
    note: Callable[[str], None]
    note_once: Callable[[str], None]
    seconds: dict[str, float] = field(default_factory=dict)
    remarks: dict[str, str] = field(default_factory=dict)

    @contextmanager
    def stage(
        self, label: str, units: int, name: ComponentName, unit: str = ""
    ) -> Iterator[tuple[Session, Callable[[], None]]]:
        """Opens a stage: yields a session of its component, and a function to call after each unit of work.

        Args:
            label: the name of the stage, for its progress and its duration.
            units: number of units of work.
            name: the component.
            unit: the word for a unit, if messages are to tell in which one a problem came up.

        Raises:
            NotFiniteError: numbers of the stage are not finite; it says where, what computed them, and what to try.
        """
        started, finished = perf_counter(), 0

        def done() -> None:
            nonlocal finished
            finished += 1
            advance(1)

        def place() -> str:
            return f"{label}, {unit} {finished + 1} of {units}" if unit else label

        with self.placing(place, name), self.progress(label, units) as advance, self._session(name) as session:
            yield session, done
        self.seconds[label] = perf_counter() - started

    @contextmanager
    def placing(self, place: Callable[[], str], name: ComponentName) -> Iterator[None]:
        """Explains numbers that are not finite.

        Args:
            place: returns the stage, and the part of it.
            name: the component that computed them, or that from which they were computed.

        Raises:
            NotFiniteError: numbers are not finite; it says where, what computed them, and what to try.
        """
        try:
            yield
        except NotFiniteError as error:
            raise error.explained(place(), self.chosen.found[name], self.engines.folder) from None

    def computing(self, name: ComponentName) -> str:
        """Names what computes a network, for messages."""
        return computing(self.chosen.found[name])

    def remark(self, key: str, sentence: str) -> None:
        """Adds a remark on the video, unless it has it already, and notes it."""
        if key not in self.remarks:
            self.remarks[key] = sentence
            self.note(advised(sentence, command=check_command(self.engines.folder)))

    @contextmanager
    def _session(self, name: ComponentName) -> Iterator[Session]:
        """Opens the session of the chosen backend, or of the next one if the library cannot run the graph."""
        merging = self.chosen.found[name].merging
        if merging is not None and merging.path is not None and not merging.is_kept:
            self.note(f"merging the LoRAs into the {name}, once: {amount(merging.size_bytes)} in {merging.path}")

        def replacement(error: UnsupportedError) -> Found:
            found = self.chosen.replace_failed(self.engines, name, error)
            self.note(f"{name} on {found.backend} ({error})")
            return found

        with self.sessions.replaceable(self.chosen.found[name], replacement) as session:
            yield session

    @property
    def channels(self) -> int:
        """Number of channels of the latents."""
        return channels_of(self.engines)


def channels_of(engines: Engines, port: str = "latents") -> int:
    """Number of channels of the latents of a version folder, or of another input of its transformer."""
    channels = engines.component("transformer").signature.input(port).axes[-1]
    assert isinstance(channels, int)
    return channels


def noise_of(options: RunOptions, seed: int, given: Mapping[str, Floats]) -> Noise:
    """Returns the source of a run's noise, in which some draws are given."""
    noise: Noise = RNGS[options.rng](seed) if options.noise is None else FileNoise(options.noise)
    if given:
        noise = GivenNoise(noise, given)
    return noise if options.save_noise is None else RecordingNoise(noise)


def run_passes(
    road: Road, planned: Plan, media_frames: Sequence[int], noise: Noise, state: State
) -> Generator[Step, None, Floats]:
    """Makes the latents: text, media, all passes, temporal upscale. What is to be saved is saved as soon as it is made.

    What `state` holds is not computed again.

    Yields:
        Every step of every pass.

    Returns:
        Normalized latents (1, C, F, H, W) float32.

    Raises:
        LtxError: a file cannot be used, or a size does not fit an engine.
    """
    listed = ReplayedNoise(noise, state.drawn)

    def finish(name: str, latents: Floats) -> None:
        state.finished(name, latents, listed.drawn)
        _save_latents(road, planned, state)

    _save_latents(road, planned, state)  # a run may have ended between keeping latents and saving them
    names = [f"pass{number}" for number in range(1, len(planned.passes) + 1)]
    if names[-1] not in state.latents:
        media = read_media(planned, media_frames, road.options.crf, road.options.memory_bytes)
        state.text = text = state.text or _text(road, planned, state)
        encoded = _encoded(road, planned, media)
        state.keep()
        for number, name in enumerate(names, start=1):
            if name in state.latents:
                continue
            before = None if number == 1 else _upscaled(road, state.latents[names[number - 2]])
            of_pass = media[number - 1], encoded[number - 1]
            run = _run_pass(road, planned, number, text, before, *of_pass, listed, state)
            finish(name, (yield from run))
        state.text = None
    if planned.temporal_upscale and "temporal" not in state.latents:
        with road.stage(FRAME_RATE, 1, "temporal_upsampler") as (session, done):
            finish("temporal", upsample(session, state.latents[names[-1]]))
            done()
    return state.latents["temporal" if planned.temporal_upscale else names[-1]]


def _save_latents(road: Road, planned: Plan, state: State) -> None:
    if state.latents:

        def write(path: Path, replace: bool) -> Path:
            return write_latents(path, state.latents, planned.ending, replace=replace)

        _save(road, state, road.options.save_latents, write)


def _save(road: Road, state: State, path: Path | None, write: Callable[[Path, bool], Path]) -> None:
    """Saves a file if that was asked for; under the next free name, if another run has taken the name meanwhile."""
    if path is None:
        return
    name = str(path.absolute())
    replace = road.options.overwrite or name in state.saved
    if name not in state.saved:  # said first, so that after an interruption the file is known as this run's own
        state.saved[name] = name
        state.keep()
    written = write(Path(state.saved[name]), replace)
    if str(written) != state.saved[name]:
        state.saved[name] = str(written)
        state.keep()
        road.note(f"{path} was made by another program meanwhile; it is saved as {written}")


def _upscaled(road: Road, latents: Floats) -> Floats:
    """Returns the latents of a pass at twice their height and width, from which the next pass begins."""
    with road.stage(UPSCALE, 1, "upsampler") as (session, done):
        upscaled = finite(adain(upsample(session, latents), latents), "the statistics of the upscaled latents gave")
        done()
    return upscaled


def _text(road: Road, planned: Plan, state: State) -> Text:
    options = road.options
    if options.embeddings is not None:
        text = read_text(options.embeddings, channels_of(road.engines, "text"), negative=planned.uses_negative_prompt)
        road.chosen.check_text(text.mask.shape[1])
        if len(text.embeddings) > 1:
            raise LtxError(f"{options.embeddings} has {len(text.embeddings)} prompts", "give one, for one video")
    else:
        tokenizer = tokenizer_of(road.engines, road.chosen.found["text_encoder"], road.version.text_tokens)
        for name, prompt in planned.prompts.items():
            for note in tokenizer.read(prompt).notes(name):
                road.note(note)
        text = text_of(_embeddings(road, [tokenizer.tokens(prompt) for prompt in planned.prompts.values()]))
    for key, sentence in faults_of(text).items():
        road.remark(
            key, sentence if options.embeddings is not None else f"{sentence} ({road.computing('text_encoder')})"
        )
    _save(road, state, options.save_embeddings, lambda path, replace: write_text(path, text, replace=replace))
    return text


def _embeddings(road: Road, prompts: list[list[int]]) -> list[Floats]:
    """Returns the embeddings of prompts, given their token ids; loads the text encoder only for those not cached."""
    cache = EmbeddingsCache(_encoder_of(road)) if road.options.cache else None
    embeddings = [None if cache is None else cache.read(prompt) for prompt in prompts]
    missing = [prompt for prompt, row in zip(prompts, embeddings, strict=True) if row is None]
    if not missing:
        with road.progress(TEXT, 1) as advance:
            advance(1)
        road.seconds[TEXT] = 0.0
        return [row for row in embeddings if row is not None]
    with road.stage(TEXT, 1, "text_encoder") as (session, done):
        encoded = encode_prompts(session, missing)
        done()
    if cache is not None and _encoder_of(road) == cache.encoder:  # otherwise another backend had to take over
        for prompt, row in zip(missing, encoded, strict=True):
            cache.write(prompt, row)
    rest = iter(encoded)
    return [next(rest) if row is None else row for row in embeddings]


def _encoder_of(road: Road) -> str:
    """Identifies what encodes the prompts: the backend, and the checksums of the graph and its weights."""
    found = road.chosen.found["text_encoder"]
    return repr((found.backend, found.precision, road.engines.checksums("text_encoder", found.precision)))


def _encoded(road: Road, planned: Plan, media: Sequence[Media]) -> list[Encoded]:
    """Encodes the media of every pass at its size, with one session of the encoder."""
    count = len(media[0].clips) + (media[0].whole is not None)
    if not count:
        return [Encoded()] * len(planned.passes)
    with road.stage(MEDIA, count * len(planned.passes), "vae_encoder", "clip") as (session, done):

        def encode(clip: Floats, grid: Grid) -> Posterior:
            posterior = encode_media(session, clip, road.chosen.tiling(grid, encoding=True))
            done()
            return posterior

        return [encode_for(of_pass, one.grid, encode) for of_pass, one in zip(media, planned.passes, strict=True)]


def _run_pass(
    road: Road,
    planned: Plan,
    number: int,
    text: Text,
    before: Floats | None,
    media: Media,
    encoded: Encoded,
    noise: Noise,
    state: State,
) -> Generator[Step, None, Floats]:
    """Yields the steps of one pass and returns its latents (1, C, F, H, W).

    The pass starts from noise, or from the upscaled latents `before` of the first pass.
    """
    one, count = planned.passes[number - 1], len(planned.passes)
    grid, manifest = one.grid, road.engines.manifest

    def draw(name: str, shape: tuple[int, ...]) -> Floats:
        return noise.draw(f"pass{number}/{name}", shape)

    shape = (1, road.channels, grid.frames, grid.rows, grid.columns)
    causal, sampled = manifest.causal_positions, road.options.sample_posterior
    with road.placing(lambda: MEDIA, "vae_encoder"):
        start = start_of(one, planned.settings, shape, before, media, encoded, draw, causal=causal, sampled=sampled)
    label = denoise_label(number, count)
    with road.stage(label, len(one.sigmas), "transformer", "step") as (session, done):
        for _ in range(state.steps):
            done()
        resumed = None if state.tokens is None else (state.steps, state.tokens)
        low_memory = road.options.low_memory
        inputs = (text, manifest.rope, start, one, planned.settings)
        made = make_latents(session, *inputs, draw, low_memory=low_memory, resumed=resumed)
        for each in made:
            _look_at(road, label, each, one)
            step = Step(each.index, len(one.sigmas), number, count, each.sigma, each, grid, start.extra, road.engines)
            done()
            if each.index + 1 < len(one.sigmas):  # after the last one, the pass is kept as a whole
                state.stepped(each.tokens, each.index + 1)
            yield step
    return step.latents


def _look_at(road: Road, label: str, step: denoise.Step, of_pass: PassPlan) -> None:
    """Checks the tokens after a step, which guidance may have spoiled, and remarks on a velocity of zeros."""
    guidance = of_pass.guidance[step.index]
    if guidance.uses_cfg or guidance.uses_stg:
        finite(step.tokens, "guidance made of constant or too large velocities")
    if not (step.velocity[:, :1].any() or step.velocity.any()):
        here = f"{label}, step {step.index + 1} of {len(of_pass.sigmas)}"
        road.remark(STILL, f"{here}: the velocity is nothing but zeros ({road.computing('transformer')})")


def decoder_feeds(road: Road, latents: Floats, ending: Ending, noise: Noise, state: State) -> dict[str, Floats]:
    """Returns all inputs of the decoder for normalized latents, and saves the noise of the run if asked to."""
    feeds = ready_to_decode(latents, ending, road.engines.component("vae_decoder").signature.inputs, noise)
    if isinstance(noise, RecordingNoise):
        _save(road, state, road.options.save_noise, lambda path, replace: noise.save(path, replace=replace))
    return feeds


def frames_of(road: Road, feeds: dict[str, Floats], ending: Ending) -> Iterator[Frame]:
    """Decodes latents, resizes and crops the frames, and yields as many as were asked for.

    Yields:
        Frames (height, width, 3) uint8 RGB.
    """
    tiling, watched = road.chosen.tiling(Grid(*feeds["latents"].shape[2:])), Watched()
    with road.stage(DECODE, ending.num_frames, "vae_decoder") as (session, done):
        for frame in islice(pixels_of(session, feeds, tiling, ending), ending.num_frames):
            watched.see(frame)
            yield frame
            done()
    if watched.fault is not None:
        road.remark(watched.fault, SENTENCES[watched.fault])
