"""The road from a request to frames: each stage opens its session, so that the one before has left the memory.

text -> media -> [ first pass -> upsampler -> ] last pass -> [ temporal upsampler -> ] frames
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ltx_runtime.chosen import Chosen, Size, choose, needed
from ltx_runtime.components import ComponentName
from ltx_runtime.embeddings import Text, read_text, write_text
from ltx_runtime.errors import LtxError
from ltx_runtime.geometry import Grid, latents_of
from ltx_runtime.latents import adain
from ltx_runtime.manifest import Engines
from ltx_runtime.noise import RNGS, FileNoise, GivenNoise, Noise, RecordingNoise
from ltx_runtime.options import DEFAULT_OPTIONS, Options
from ltx_runtime.plan import Plan, Request, plan
from ltx_runtime.resize import resize_bilinear
from ltx_runtime.saved_latents import Ending, read_initial, read_latents, write_latents
from ltx_runtime.sessions import Session, UnsupportedError, open_session
from ltx_runtime.stages import decode, decode_pixels, encode_prompt, make_latents, ready_to_decode, upsample
from ltx_runtime.start import Encoded, Media, encode_for, read_media, start_of
from ltx_runtime.tiling import Tiling
from ltx_runtime.tokenizer import Tokenizer
from ltx_runtime.versions import find_version

Frame = NDArray[np.uint8]
Floats = NDArray[np.float32]
FrameSink = Callable[[Frame], None]
# Opens a stage of so many units of work; what it yields is called after each unit.
ProgressOf = Callable[[str, int], AbstractContextManager[Callable[[], None]]]


@dataclass(frozen=True)
class _Road:
    """What every stage needs to open its session and to tell how far it is."""

    engines: Engines
    options: Options
    chosen: Chosen
    progress: ProgressOf
    note: Callable[[str], None]

    @contextmanager
    def stage(self, label: str, units: int, name: ComponentName) -> Iterator[tuple[Session, Callable[[], None]]]:
        with self.progress(label, units) as done, ExitStack() as opened:
            try:
                session = opened.enter_context(open_session(self.chosen.found[name]))
            except UnsupportedError as error:
                instead = self.chosen.instead(self.engines, name, error)
                self.note(f"{name} on {instead.backend} ({error})")
                session = opened.enter_context(open_session(instead))
            yield session, done


@dataclass(frozen=True)
class Ready:
    """A request that nothing stands against but the files it names."""

    planned: Plan
    chosen: Chosen


def generate(
    engines: Engines,
    request: Request,
    sink: FrameSink,
    progress: ProgressOf,
    options: Options = DEFAULT_OPTIONS,
    note: Callable[[str], None] = lambda text: None,
) -> None:
    """Makes a video: every decoded frame, (height, width, 3) uint8 RGB, goes to `sink` in order.

    Args:
        engines: a verified version folder.
        request: what to make.
        sink: takes the frames.
        progress: is told every unit of work.
        options: how.
        note: hears what the user should know but need not change.

    Raises:
        LtxError: the request cannot be made, a file cannot be used, or the engines do not fit the backend.
    """
    found = ready(engines, request, options)
    planned = found.planned
    road = _Road(engines, options, found.chosen, progress, note)
    given = {}
    if options.initial_latents is not None:
        grid = planned.passes[0].grid
        given["pass1/initial"] = read_initial(options.initial_latents, grid, _channels(engines))
    noise = _noise(options, request.seed, given)
    media = read_media(request, planned, options.crf)
    found.chosen.check_passes(planned, media.added_frames, conditioned=bool(media.clips))
    for line in found.chosen.lines():
        note(line)
    latents = _latents(road, planned, _text(road, planned, request), media, noise)
    _write_frames(road, latents, planned.ending, noise, sink)


def ready(engines: Engines, request: Request, options: Options) -> Ready:
    """A request, planned, and what runs each component of it; nothing is loaded yet.

    Raises:
        LtxError: the request cannot be made, a place cannot be written, the memory is too little, or nothing runs it.
    """
    version = find_version(engines.manifest.version)
    planned = plan(request, version, engines.manifest.schedule, engines.manifest.allowed_sigmas)
    names = needed(planned, request, options)
    size = Size(*planned.ending.size, planned.passes[-1].grid.num_frames, request.single_pass)
    chosen = choose(engines, names, options, size)
    options.check_places()
    if "vae_encoder" in names:
        for one in planned.passes:
            chosen.tiling(one.grid, encoding=True)
    chosen.check_passes(planned, 0, conditioned=bool(request.conditions))
    return Ready(planned, chosen)


def saved_of(engines: Engines, path: Path) -> tuple[Floats, Ending]:
    """Latents that a run saved, and how they end; raises LtxError if they are of no run, or of another version."""
    latents, ending = read_latents(path, _channels(engines))
    if ending.version != engines.manifest.version:
        raise LtxError(
            f"{path} is of {ending.version}, not {engines.manifest.version} - add --version {ending.version}"
        )
    return latents, ending


def decode_saved(
    engines: Engines,
    path: Path,
    sink: FrameSink,
    progress: ProgressOf,
    options: Options,
    note: Callable[[str], None] = lambda text: None,
) -> None:
    """Makes frames of latents that a run saved, as that run would have; see `generate` and `saved_of`."""
    latents, ending = saved_of(engines, path)
    grid = Grid(*latents.shape[2:])
    size = Size(*ending.size, ending.num_frames, single_pass=ending.size == (grid.height, grid.width))
    chosen = choose(engines, ["vae_decoder"], options, size)
    options.check_places()
    for line in chosen.lines():
        note(line)
    noise = _noise(options, ending.seed, {})
    _write_frames(_Road(engines, options, chosen, progress, note), latents, ending, noise, sink)


def _channels(engines: Engines) -> int:
    """Of the latents."""
    channels = engines.component("transformer").signature.inputs[0].axes[-1]
    assert isinstance(channels, int)
    return channels


def _noise(options: Options, seed: int, given: Mapping[str, Floats]) -> Noise:
    noise: Noise = RNGS[options.rng](seed) if options.noise is None else FileNoise(options.noise)
    if given:
        noise = GivenNoise(noise, given)
    return noise if options.save_noise is None else RecordingNoise(noise)


def _text(road: _Road, planned: Plan, request: Request) -> Text:
    options = road.options
    if options.embeddings is not None:
        ports = {port.name: port for port in road.engines.component("transformer").signature.inputs}
        channels = ports["text"].axes[-1]
        assert isinstance(channels, int)
        text = read_text(options.embeddings, channels, negative=planned.uses_negative_prompt)
        road.chosen.check_text(text.mask.shape[1])
        if len(text.embeddings) > 1:
            raise LtxError(f"{options.embeddings} has {len(text.embeddings)} prompts - give one, for one video")
    else:
        version = find_version(road.engines.manifest.version)
        tokenizer = Tokenizer(road.engines.folder / road.engines.manifest.tokenizer, version.text_tokens)
        negative = request.negative_prompt if planned.uses_negative_prompt else None
        for prompt in filter(None, (request.prompt, negative)):
            if (tokens := tokenizer.count(prompt)) > version.text_tokens:
                road.note(
                    f"the prompt {prompt[:30]!r}... has {tokens} tokens; the model sees the first {version.text_tokens}"
                )
        with road.stage("text", 1, "text_encoder") as (session, done):
            text = encode_prompt(session, tokenizer, request.prompt, negative)
            done()
    if options.save_embeddings is not None:
        write_text(options.save_embeddings, text)
    return text


def _latents(road: _Road, planned: Plan, text: Text, media: Media, noise: Noise) -> Floats:
    """All passes, and the temporal upscale; what is saved is saved after each, before anything else can fail."""
    made: dict[str, Floats] = {}

    def keep(name: str, latents: Floats) -> Floats:
        made[name] = latents
        if road.options.save_latents is not None:
            write_latents(road.options.save_latents, made, planned.ending)
        return latents

    encoded = _encoded(road, planned, media)
    latents = keep("pass1", _pass(road, planned, 1, text, None, media, encoded[0], noise))
    for number in range(2, len(planned.passes) + 1):
        with road.stage("upscale", 1, "upsampler") as (session, done):
            before = adain(upsample(session, latents), latents)
            done()
        latents = keep(f"pass{number}", _pass(road, planned, number, text, before, media, encoded[number - 1], noise))
    if planned.temporal_upscale:
        with road.stage("frame rate", 1, "temporal_upsampler") as (session, done):
            latents = keep("temporal", upsample(session, latents))
            done()
    return latents


def _encoded(road: _Road, planned: Plan, media: Media) -> list[Encoded]:
    """The media at the size of every pass, with the encoder opened once."""
    count = len(media.clips) + (media.whole is not None)
    if not count:
        return [Encoded()] * len(planned.passes)
    with road.stage("media", count * len(planned.passes), "vae_encoder") as (session, done):
        tiling_of = partial(road.chosen.tiling, encoding=True)
        return [encode_for(session, media, one.grid, tiling_of, done) for one in planned.passes]


def _pass(
    road: _Road,
    planned: Plan,
    number: int,
    text: Text,
    before: Floats | None,
    media: Media,
    encoded: Encoded,
    noise: Noise,
) -> Floats:
    """Latents (1, C, F, H, W) of one pass, from noise or from the latents of the one before."""
    one = planned.passes[number - 1]
    grid = one.grid

    def draw(name: str, shape: tuple[int, ...]) -> Floats:
        return noise.draw(f"pass{number}/{name}", shape)

    start = start_of(
        one,
        planned,
        (1, _channels(road.engines), grid.frames, grid.rows, grid.columns),
        before,
        media,
        encoded,
        draw,
        causal=road.engines.manifest.causal_positions,
        sampled=road.options.sample_posterior,
    )
    label = "denoise" if len(planned.passes) == 1 else f"denoise {number}"
    with road.stage(label, len(one.sigmas), "transformer") as (session, done):
        steps = make_latents(session, text, start, one, planned, draw, low_memory=road.options.low_memory)
        for step in steps:  # noqa: B007  (the last step holds the result)
            done()
    return latents_of(step.tokens[:, start.extra :], grid)


def _write_frames(road: _Road, latents: Floats, ending: Ending, noise: Noise, sink: FrameSink) -> None:
    """Decodes, resizes to the size asked for, crops, and hands over so many frames as were asked for."""
    _, _, frames, rows, columns = latents.shape
    ports = road.engines.component("vae_decoder").signature.inputs
    feeds = ready_to_decode(latents, ending, ports, noise)
    if isinstance(noise, RecordingNoise) and road.options.save_noise is not None:
        noise.save(road.options.save_noise)
    tiling = road.chosen.tiling(Grid(frames, rows, columns))
    with road.stage("decode", ending.num_frames, "vae_decoder") as (session, done):
        for frame in islice(_pixels(session, feeds, tiling, ending), ending.num_frames):
            sink(frame)
            done()


def _pixels(session: Session, feeds: dict[str, Floats], tiling: Tiling, ending: Ending) -> Iterator[Frame]:
    """Frames (height, width, 3) uint8 of the size asked for; made where the decoder runs if that is all there is to do.

    Pixels are floor(255 y), as the official code has them.
    """
    left, right, top, bottom = ending.crop
    height, width = ending.size
    grid = Grid(*feeds["latents"].shape[2:])
    whole = tiling.window(grid.frames, grid.rows, grid.columns) == (grid.frames, grid.rows, grid.columns)
    if whole and (height, width) == (grid.height, grid.width) and "frames" in session.outputs:
        for pixels in decode_pixels(session, feeds):
            yield pixels[top : height - bottom, left : width - right]
        return
    for frame in decode(session, feeds, tiling):
        sized = resize_bilinear(frame, height, width)[:, top : height - bottom, left : width - right]
        yield (sized * np.float32(255.0)).astype(np.uint8).transpose(1, 2, 0)
