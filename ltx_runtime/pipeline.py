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

from ltx_runtime.declared import declared, path_of
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
from ltx_runtime.planning.work import work_of
from ltx_runtime.progress import Progress, silent
from ltx_runtime.road import Floats, Frame, Road, Step, channels_of, decoder_feeds, frames_of, noise_of, run_passes
from ltx_runtime.sampling.conditioning import added_frames
from ltx_runtime.sessions import AUTO, Found
from ltx_runtime.sessions.pool import pool_of
from ltx_runtime.spec.components import ComponentName
from ltx_runtime.spec.geometry import TEMPORAL_SCALE, Grid
from ltx_runtime.spec.versions import find_version
from ltx_runtime.vae.saved_latents import Ending, read_initial, read_latents

_REQUEST_FIELDS = tuple(one.name for one in fields(Request))
# Fields of RunOptions that are set for the pipeline, and so not for a single video.
_PIPELINE_FIELDS = ("backend", "cpu_mode", "memory_bytes", "gpu_memory_bytes", "threads")
_RUN_FIELDS = tuple(one.name for one in fields(RunOptions) if one.name not in _PIPELINE_FIELDS)
# Fields of RunOptions that matter for latents that were saved, of which nothing is left to do but decode them.
_DECODE_FIELDS = ("rng", "noise", "tiled", "save_noise")

Note = Callable[[str], None]
Name = Callable[[int, "Video"], "Path | str"]  # the file of one of many videos, by its number


class Pipeline:
    """A version folder, opened and checked. Use it in a `with` block, or call `close` at the end.

    No network is loaded before a video is made.

    Args:
        folder: a version folder such as engines/0.9.8-2b-distilled, or a folder of version folders.
        version: the release to use, if the folder holds several.
        backend: a name of BACKENDS, such as cuda or cpu; auto chooses, for each network, the first that runs it.
        cpu_mode: how networks compute that run on the CPU with backend auto: exact in fp32 by ONNX Runtime; bf16 or q8
            by OpenVINO, with errors of about 1 %; int8 by OpenVINO, if it was calibrated; auto takes the fastest of the
            first three that was measured on this processor.
        memory: GB for the activations of the VAE; larger videos are decoded in tiles. None for 8, or what the GPU has.
        gpu_memory: GB of GPU memory to plan with; None for all that is free.
        threads: number of CPU threads; None for one per core.
        keep_loaded: True keeps every network loaded from one video to the next; a number limits the weights of all
            loaded networks to this many GB. To make room, or if a GPU is full, the network that a video needs first is
            unloaded first.
        note: is called with each remark that the user should know of; by default the logger `ltx_runtime` warns.

    Attributes:
        engines: the version folder and its manifest.
        version: the release that the folder holds.

    Raises:
        LtxError: there is no such folder, one of its files is missing or changed, or an argument is invalid.
    """

    def __init__(
        self,
        folder: Path | str | Engines,
        version: str | None = None,
        *,
        backend: str = AUTO,
        cpu_mode: str = AUTO,
        memory: float | None = None,
        gpu_memory: float | None = None,
        threads: int | None = None,
        keep_loaded: bool | float = False,
        note: Note | None = None,
    ) -> None:
        """Opens the folder and verifies its files; the class describes the arguments."""
        self._options = check_options(
            RunOptions(
                backend=backend,
                cpu_mode=cpu_mode,
                memory_bytes=bytes_of("memory", memory, "use 8"),
                gpu_memory_bytes=bytes_of("gpu-memory", gpu_memory, "leave it out"),
                threads=threads,
            )
        )
        if isinstance(folder, Engines):
            self.engines = folder
        else:
            name = None if version is None else find_version(version).name
            # Absolute, so that the pipeline still finds its files if the program changes its working directory.
            self.engines = open_engines(find_folder(path_of(folder, "folder"), name).absolute())
        self.version = find_version(self.engines.manifest.version)
        self._sessions = pool_of(keep_loaded)
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
        """Plans a video and checks everything that can be checked without loading a network.

        Args:
            request: the video to make, or just its prompt.
            changes: fields of Request and RunOptions by name, which replace those of the request.

        Raises:
            LtxError: a name is unknown, a value is invalid, a file cannot be read, or no backend here can run it.
        """
        request, options = self._changed(request if isinstance(request, Request) else Request(request), changes)
        if not request.prompt and options.embeddings is None:
            raise LtxError("there is no prompt", "give a prompt, or the file of its embeddings")
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
        """Returns the request and the pipeline's options with some fields changed."""
        asked = {name: value for name, value in changes.items() if name in _REQUEST_FIELDS}
        of_run = {name: value for name, value in changes.items() if name not in _REQUEST_FIELDS}
        return declared(replace(request, **asked)), self._options_with(of_run, (*_REQUEST_FIELDS, *_RUN_FIELDS))

    def _options_with(self, changes: dict[str, Any], known: Sequence[str]) -> RunOptions:
        """Returns the pipeline's options with some fields changed; `known` lists all valid names, for the message."""
        unknown = sorted(changes.keys() - {*known})
        if unknown:
            raise LtxError(f"there is nothing called {unknown[0]!r} to ask for", f"use one of {', '.join(known)}")
        return check_options(replace(self._options, **changes))

    def decode(self, path: Path | str, **changes: Any) -> Video:
        """Returns the video of latents that were saved with `save_latents`.

        Args:
            path: the file of latents.
            changes: fields of RunOptions by name.

        Raises:
            LtxError: the file holds no such latents, or those of another version.
        """
        options = self._options_with(changes, _DECODE_FIELDS)
        latents, ending = read_latents(path_of(path, "path"), channels_of(self.engines))
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

    def map(self, requests: Iterable[Request | str], save: Name | None = None, **changes: Any) -> Iterator[Result]:
        """Makes many videos one after another, with all networks kept loaded; one that fails does not end the others.

        Args:
            requests: videos to make, or just their prompts.
            save: returns the file to save a video to, given its number from 0. Without it only latents are made, and
                frames are decoded when you iterate over the video.
            changes: fields of Request and RunOptions by name, which replace those of every request.

        Yields:
            A result for every request, in their order.
        """
        if isinstance(requests, (str, Request)):
            raise LtxError("map takes a list of requests; got a single one", "put it in a list, or call the pipeline")
        return self._mapped(requests, save, changes)

    def _mapped(
        self, requests: Iterable[Request | str], save: Name | None, changes: dict[str, Any]
    ) -> Iterator[Result]:
        with self._sessions.keeping():
            for index, request in enumerate(requests):
                yield self._result(index, request, save, changes)

    def _result(self, index: int, request: Request | str, save: Name | None, changes: dict[str, Any]) -> Result:
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
        """The backend of each network, in the order in which they run."""
        return {name: self._chosen.found[name].backend for name in self._chosen.names}

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        left, right, top, bottom = self.ending.crop
        return self.ending.size[0] - top - bottom, self.ending.size[1] - left - right

    def report(self) -> dict[str, Any]:
        """The plan as plain data: prompts, steps, guidance, backends, tiles and estimates of memory."""
        if self.plan is None:
            return asdict(self.ending) | {"backends": self.backends}
        return describe(self.plan, self._chosen, self._pipeline.engines, self._media)

    def work(self) -> dict[str, float]:
        """Estimates the floating-point operations of every stage by its name, for the total progress of a run."""
        if self.plan is None:
            return {}
        count = len(self.plan.request.conditions) + (self.plan.request.video is not None)
        return work_of(self.plan, self._pipeline.version, self._chosen.names, count)

    def steps(self, progress: Progress = silent) -> Generator[Step, None, None]:
        """Makes the latents, step by step. Leaving the loop early frees the network and leaves nothing behind.

        Args:
            progress: shows how far each stage is.

        Raises:
            LtxError: a file cannot be used, or there is too little memory.
            ValueError: the video is made of saved latents, which have no steps.
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
        """Notes the backend of each network if it was chosen automatically; a pipeline says the same thing once."""
        for line in self._chosen.lines():
            if line not in self._pipeline._noted:
                self._pipeline._noted.add(line)
                road.note(line)

    def _use(self, latents: Floats, noise: Noise) -> None:
        """Sets the latents to decode, and the source of the decoder's noise."""
        self._latents, self._noise = latents, noise

    def latents(self, progress: Progress = silent) -> Floats:
        """Returns the normalized latents to decode, (1, C, F, H, W) float32; the first call makes them.

        Raises:
            LtxError: a file cannot be used, or there is too little memory.
        """
        if self._latents is None:
            for _ in self.steps(progress):
                pass
        assert self._latents is not None
        return self._latents

    def frames(self, progress: Progress = silent) -> Generator[Frame, None, None]:
        """Yields every frame in order, (height, width, 3) uint8 RGB; makes the latents first if need be.

        Raises:
            LtxError: a file cannot be used, there is too little memory, or the decoder's output is not finite.
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
        """The plan as lines of text."""
        if self.plan is None:
            ending = self.ending
            return [f"decode: {ending.num_frames} frames at {ending.fps:g} fps, seed {ending.seed}"]
        return list(lines_of(self.report()))

    def check_output(self, path: Path | str, *, folder_exists: bool = True) -> Path:
        """Checks that `save` could write this file, and returns the file, or for .png the folder of frames.

        Args:
            path: the file, as for `save`.
            folder_exists: whether the folder of the file must exist already.

        Raises:
            LtxError: the format is unknown or cannot hold this size or frame rate, or there is no such folder.
        """
        return check_output(path_of(path, "path"), *self.size, self.ending.fps, folder_exists=folder_exists)

    def save(self, path: Path | str, progress: Progress = silent) -> Path:
        """Makes the video and writes it to a file, which appears when it is whole.

        Args:
            path: .mp4, .webm, .gif, or NAME.png for a folder NAME of frames.
            progress: shows how far each stage is.

        Returns:
            The file, or the folder of frames.

        Raises:
            LtxError: a file cannot be used or written, there is too little memory, or the output is not finite.
        """
        path = path_of(path, "path")
        target = self.check_output(path)
        # An output that fails closes the frames, which frees the decoder.
        with open_writer(path, self.ending.fps) as write, closing(self.frames(progress)) as frames:
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
    """The result of one of many requests.

    Attributes:
        index: number of the request, from 0.
        video: the video, with its latents made; None if the request failed.
        path: the file that was written; None if there is none.
        error: why the request failed; None if it did not.
    """

    index: int
    video: Video | None = None
    path: Path | None = None
    error: Exception | None = None
