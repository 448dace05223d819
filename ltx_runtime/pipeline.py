"""The library: a version folder becomes a Pipeline, and a request becomes a Video that is made when it is asked for.

with Pipeline("engines/0.9.8-2b-distilled") as pipe:
    pipe("A red fox runs through deep snow", seed=7).save("fox.mp4")
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from ltx_runtime.errors import LtxError
from ltx_runtime.folder.manifest import Engines, find_folder, open_engines
from ltx_runtime.media.prepare import count_frames
from ltx_runtime.media.video import check_output, open_writer
from ltx_runtime.noise.noise import Noise
from ltx_runtime.planning.backends import Chosen, Size, choose, needed
from ltx_runtime.planning.media import frames_of as media_frames_of
from ltx_runtime.planning.options import RunOptions, bytes_of, check_options
from ltx_runtime.planning.plan import Plan, plan
from ltx_runtime.planning.report import describe, lines_of
from ltx_runtime.planning.request import Request, resolved
from ltx_runtime.progress import Progress, silent
from ltx_runtime.road import Floats, Frame, Road, Step, channels_of, decoder_feeds, frames_of, noise_of, run_passes
from ltx_runtime.sampling.conditioning import added_frames
from ltx_runtime.sessions import AUTO, Found
from ltx_runtime.sessions.pool import SessionPool
from ltx_runtime.spec.components import ComponentName
from ltx_runtime.spec.geometry import TEMPORAL_SCALE, Grid
from ltx_runtime.spec.versions import find_version
from ltx_runtime.vae.saved_latents import Ending, read_initial, read_latents

_GIGABYTE = 1e9
_REQUEST_FIELDS = tuple(one.name for one in fields(Request))
# What the pipeline decides for all its videos, and not each for itself.
_PIPELINE_FIELDS = ("backend", "memory_bytes", "gpu_memory_bytes", "threads")
_RUN_FIELDS = tuple(one.name for one in fields(RunOptions) if one.name not in _PIPELINE_FIELDS)
_PATH_FIELDS = ("embeddings", "initial_latents", "noise", "save_embeddings", "save_latents", "save_noise")

Note = Callable[[str], None]


class Pipeline:
    """A version folder, opened and checked. Use it in a `with` block, or call `close` at the end.

    No network is loaded before a video is made.

    Args:
        folder: a version folder such as engines/0.9.8-2b-distilled, or a folder of version folders.
        version: which of several.
        backend: tensorrt, tensorrt_rtx, cuda or cpu; auto takes, for each network, the first that can run it.
        memory: GB of activations that the VAE may take; tiles are cut to fit. None: 8, or what the GPU has.
        gpu_memory: GB of the GPU to plan with; None for all that is free.
        threads: of the CPU; None for one a core.
        keep_loaded: True keeps every network open from one video to the next. A number keeps as many as have weights
            of so many GB together; the first of the road leaves first. On a GPU, what does not fit leaves.
        note: hears what should be known but need not be changed; by default the logger `ltx_runtime`.

    Attributes:
        engines: the version folder and its manifest.
        version: the release that it holds.

    Raises:
        LtxError: there is no such folder, a file of it is missing or changed, or an argument cannot be used.
    """

    def __init__(
        self,
        folder: Path | str | Engines,
        version: str | None = None,
        *,
        backend: str = AUTO,
        memory: float | None = None,
        gpu_memory: float | None = None,
        threads: int | None = None,
        keep_loaded: bool | float = False,
        note: Note | None = None,
    ) -> None:
        """Opens the folder and verifies its files; see the class."""
        self._options = check_options(
            RunOptions(
                backend=backend,
                memory_bytes=bytes_of("memory", memory, "use 8"),
                gpu_memory_bytes=bytes_of("gpu-memory", gpu_memory, "leave it out"),
                threads=threads,
            )
        )
        if isinstance(folder, Engines):
            self.engines = folder
        else:
            name = None if version is None else find_version(version).name
            self.engines = open_engines(find_folder(Path(folder), name))
        self.version = find_version(self.engines.manifest.version)
        kept_bytes = None if isinstance(keep_loaded, bool) else keep_loaded * _GIGABYTE
        self._sessions = SessionPool(bool(keep_loaded), kept_bytes)
        self._found: dict[ComponentName, Found] = {}
        self._noted: set[str] = set()
        self._note: Note = note or logging.getLogger("ltx_runtime").warning

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Frees every network that is kept loaded."""
        self._sessions.close()

    def __call__(self, request: Request | str = "", /, **changes: Any) -> Video:
        """Plans a video and checks all that can be checked; nothing is loaded and nothing runs.

        Args:
            request: what to make, or its prompt.
            changes: fields of Request and of RunOptions by name, in place of the request's own.

        Raises:
            LtxError: a name is unknown, a value cannot be used, a file cannot be read, or nothing here runs it.
        """
        request, options = self._changed(Request(request) if isinstance(request, str) else request, changes)
        if request.video is not None and request.num_frames is None:
            frames = count_frames(request.video)
            request = replace(request, num_frames=max(1, (frames - 1) // TEMPORAL_SCALE * TEMPORAL_SCALE + 1))
        manifest = self.engines.manifest
        planned = plan(resolved(request, self.version), self.version, manifest.schedule, manifest.allowed_sigmas)
        # A preset of one pass needs what --single-pass does of a version of two.
        single_pass = request.single_pass or len(planned.passes) < len(self.version.passes)
        size = Size(*planned.ending.size, planned.passes[-1].grid.num_frames, single_pass)
        chosen = choose(self.engines, needed(planned, options), options, size, self._found)
        options.check_places()
        if "vae_encoder" in chosen.names:
            for one in planned.passes:
                chosen.tiling(one.grid, encoding=True)
        used = media_frames_of(planned)
        added = added_frames(zip((one.frame for one in request.conditions), used, strict=True))
        chosen.check_passes(planned, added, conditioned=bool(request.conditions))
        return Video(self, chosen, planned.ending, planned, used)

    def _changed(self, request: Request, changes: dict[str, Any]) -> tuple[Request, RunOptions]:
        """The request and the options with some fields changed."""
        asked = {name: value for name, value in changes.items() if name in _REQUEST_FIELDS}
        of_run = {name: value for name, value in changes.items() if name not in _REQUEST_FIELDS}
        return replace(request, **asked), self._options_with(of_run, (*_REQUEST_FIELDS, *_RUN_FIELDS))

    def _options_with(self, changes: dict[str, Any], known: Sequence[str]) -> RunOptions:
        """The options with some fields changed; `known` are all names that may be given beside them."""
        unknown = sorted(changes.keys() - {*_RUN_FIELDS})
        if unknown:
            raise LtxError(f"there is nothing called {unknown[0]!r} to ask for", f"use one of {', '.join(known)}")
        paths = {name: Path(changes[name]) for name in _PATH_FIELDS if changes.get(name) is not None}
        return check_options(replace(self._options, **{**changes, **paths}))

    def decode(self, path: Path | str, **changes: Any) -> Video:
        """A video of latents that a run saved with `save_latents`; see __call__ for `changes` of options.

        Raises:
            LtxError: the file holds no such latents, or those of another version.
        """
        options = self._options_with(changes, _RUN_FIELDS)
        latents, ending = read_latents(Path(path), channels_of(self.engines))
        if ending.version != self.version.name:
            raise LtxError(f"{path} is of {ending.version}, not {self.version.name}", f"add --version {ending.version}")
        grid = Grid(*latents.shape[2:])
        size = Size(*ending.size, ending.num_frames, single_pass=ending.size == (grid.height, grid.width))
        chosen = choose(self.engines, ["vae_decoder"], options, size, self._found)
        options.check_places()
        chosen.tiling(grid)
        video = Video(self, chosen, ending)
        video._use(latents, noise_of(options, ending.seed, {}))
        return video

    def map(
        self, requests: Iterable[Request | str], save: Callable[[int, Video], Path | str] | None = None, **changes: Any
    ) -> Iterator[Result]:
        """Makes many videos one after another, with all networks kept loaded; one that fails does not end the others.

        Args:
            requests: what to make, or prompts.
            save: the file to save a video to, by its number from 0; without it only latents are made, and frames are
                decoded when the video is iterated over.
            changes: see __call__; for all of them.

        Yields:
            A result for every request, in order.
        """
        kept, self._sessions.keep = self._sessions.keep, True
        try:
            for index, request in enumerate(requests):
                yield self._result(index, request, save, changes)
        finally:
            self._sessions.keep = kept
            if not kept:
                self._sessions.close()

    def _result(
        self,
        index: int,
        request: Request | str,
        save: Callable[[int, Video], Path | str] | None,
        changes: dict[str, Any],
    ) -> Result:
        try:
            video = self(request, **changes)
            path = None if save is None else video.save(save(index, video))
            video.latents()
            return Result(index, video, path)
        except (LtxError, MemoryError) as error:
            return Result(index, error=error)


class Video:
    """A video that is planned and not made yet.

    It is denoised once, when its frames or its latents are first asked for, and decoded every time its frames are.

    Attributes:
        plan: passes, steps, guidance and sizes; None for latents that were saved.
        ending: size, length, frame rate and seed of what is written.
        seconds: what each stage took, by its name; filled as stages end.
    """

    def __init__(
        self, pipeline: Pipeline, chosen: Chosen, ending: Ending, planned: Plan | None = None, media: Sequence[int] = ()
    ) -> None:
        self.plan = planned
        self.ending = ending
        self.seconds: dict[str, float] = {}
        self._pipeline, self._chosen, self._media = pipeline, chosen, media
        self._latents: Floats | None = None
        self._noise: Noise | None = None
        self._feeds: dict[str, Floats] | None = None

    @property
    def backends(self) -> dict[ComponentName, str]:
        """The backend of each network, in the order of the road."""
        return {name: self._chosen.found[name].backend for name in self._chosen.names}

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        left, right, top, bottom = self.ending.crop
        return self.ending.size[0] - top - bottom, self.ending.size[1] - left - right

    def report(self) -> dict[str, Any]:
        """The plan as plain data: steps, guidance, backends, tiles and estimates of memory."""
        if self.plan is None:
            return asdict(self.ending) | {"backends": self.backends}
        return describe(self.plan, self._chosen, self._pipeline.engines.manifest, self._media)

    def steps(self, progress: Progress = silent) -> Generator[Step, None, None]:
        """Makes the latents, step by step. Leaving the loop early frees the network and leaves nothing behind.

        Args:
            progress: is told how far each stage is.

        Raises:
            LtxError: a file cannot be used, or memory does not suffice.
            ValueError: these are latents that were saved.
        """
        if self.plan is None:
            raise ValueError("latents that were saved have no steps")
        self._latents = self._feeds = None
        road = self._road(progress)
        given = {}
        if road.options.initial_latents is not None:
            given["pass1/initial"] = read_initial(road.options.initial_latents, self.plan.passes[0].grid, road.channels)
        noise = noise_of(road.options, self.ending.seed, given)
        self._tell_backends(road)
        self._use((yield from run_passes(road, self.plan, self._media, noise)), noise)

    def _tell_backends(self, road: Road) -> None:
        """Notes which backend runs each network, where it was chosen of several; once for all videos alike."""
        for line in self._chosen.lines():
            if line not in self._pipeline._noted:
                self._pipeline._noted.add(line)
                road.note(line)

    def _use(self, latents: Floats, noise: Noise) -> None:
        """Latents to decode, and where the decoder's noise comes from."""
        self._latents, self._noise = latents, noise

    def latents(self, progress: Progress = silent) -> Floats:
        """The normalized latents to decode, (1, C, F, H, W) float32; makes them if they are not made yet.

        Raises:
            LtxError: see steps.
        """
        if self._latents is None:
            for _ in self.steps(progress):
                pass
        assert self._latents is not None
        return self._latents

    def frames(self, progress: Progress = silent) -> Generator[Frame, None, None]:
        """Every frame, (height, width, 3) uint8 RGB, in order; makes the latents first if they are not made yet.

        Raises:
            LtxError: see steps; or the decoder makes numbers that are not finite.
        """
        latents = self.latents(progress)
        road = self._road(progress)
        if self.plan is None:  # otherwise steps has told
            self._tell_backends(road)
        if self._feeds is None:
            assert self._noise is not None
            self._feeds = decoder_feeds(road, latents, self.ending, self._noise)
        yield from frames_of(road, self._feeds, self.ending)

    def __iter__(self) -> Iterator[Frame]:
        return self.frames()

    def report_lines(self) -> list[str]:
        """The plan for people."""
        if self.plan is None:
            ending = self.ending
            return [f"decode: {ending.num_frames} frames at {ending.fps:g} fps, seed {ending.seed}"]
        return list(lines_of(self.report()))

    def check_output(self, path: Path | str, *, folder_exists: bool = True) -> Path:
        """What `save` would write: the file, or for .png the folder of frames.

        Args:
            path: see save.
            folder_exists: whether the folder of the file must be there already.

        Raises:
            LtxError: the format, the size or the frame rate does not fit, or there is no such folder.
        """
        return check_output(Path(path), *self.size, self.ending.fps, folder_exists=folder_exists)

    def save(self, path: Path | str, progress: Progress = silent) -> Path:
        """Makes the video and writes it to a file, which appears when it is whole.

        Args:
            path: .mp4, .webm, .gif, or NAME.png for a folder NAME of frames.
            progress: is told how far each stage is.

        Returns:
            The file, or the folder of frames.

        Raises:
            LtxError: see steps; or the file cannot be written.
        """
        target = self.check_output(path)
        # An output that fails closes the frames, which frees the decoder.
        with open_writer(Path(path), self.ending.fps) as write, closing(self.frames(progress)) as frames:
            for frame in frames:
                write(frame)
        return target

    def _road(self, progress: Progress) -> Road:
        pipe = self._pipeline
        return Road(
            pipe.engines,
            pipe.version,
            self._chosen.options,
            self._chosen,
            pipe._sessions,
            progress,
            pipe._note,
            self.seconds,
        )


@dataclass(frozen=True)
class Result:
    """One of many videos.

    Attributes:
        index: number of the request, from 0.
        video: with its latents made; None if it failed.
        path: what was written; None if nothing was to be.
        error: why it failed; None if it did not.
    """

    index: int
    video: Video | None = None
    path: Path | None = None
    error: Exception | None = None
