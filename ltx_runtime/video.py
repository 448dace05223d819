"""A video: planned and checked when it is asked for, made when its latents, its frames or its file are."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from ltx_runtime.declared import path_of
from ltx_runtime.errors import LtxError
from ltx_runtime.media.video import TakenError, check_output, save_video, target_of
from ltx_runtime.noise.noise import Noise
from ltx_runtime.outputs.places import Places
from ltx_runtime.outputs.record import Recorded, check_recordable, parse_record, read_record, record_of, weights_of
from ltx_runtime.outputs.state import State
from ltx_runtime.outputs.unfinished import Unfinished, about_of, claim, place_beside
from ltx_runtime.packages import RELEASE
from ltx_runtime.planning.media import NO_MEDIA, GivenMedia
from ltx_runtime.planning.plan import Plan
from ltx_runtime.planning.report import Memory, describe, lines_of, memory_of
from ltx_runtime.planning.request import Request
from ltx_runtime.planning.work import work_of
from ltx_runtime.progress import Progress, silent
from ltx_runtime.replacing.tidying import tidy
from ltx_runtime.road import Floats, Frame, Road, decoder_feeds, frames_of, noise_of, run_passes
from ltx_runtime.sampling.step import Step
from ltx_runtime.spec.components import ComponentName
from ltx_runtime.vae.saved_latents import Ending, read_initial

# Fields of RunOptions that say how much of the machine a run uses.
_OF_MACHINE = ("backend", "cpu_mode", "threads", "memory_bytes", "gpu_memory_bytes")
Frames = Generator[Frame, None, None]
Watch = Callable[[Step], None]


def unwatched(step: Step) -> None:
    """Implements Watch without doing anything."""


class Video:
    """A video that is planned and not made yet.

    It is denoised once, when its frames or its latents are first asked for, and decoded every time its frames are.

    Attributes:
        plan: passes, steps, guidance and sizes; None for latents that were saved.
        ending: size, length, frame rate and seed of what is written.
    """

    def __init__(
        self,
        road: Road,
        places: Places,
        ending: Ending,
        planned: Plan | None = None,
        media: GivenMedia = NO_MEDIA,
        unfinished: Unfinished | None = None,
    ) -> None:
        self.plan = planned
        self.ending = ending
        self._road, self._places, self._media, self._unfinished = road, places, media, unfinished
        self._state = State()
        self._latents: Floats | None = None
        self._noise: Noise | None = None
        self._feeds: dict[str, Floats] | None = None

    @property
    def seconds(self) -> dict[str, float]:
        """Duration of each finished stage in seconds, by its name."""
        return self._road.seconds

    @property
    def remarks(self) -> dict[str, str]:
        """Sentences on what is odd about the video, such as that every frame is black. Keys are for programs.

        Keys: zero_text, constant_text, zero_velocity, black, constant and frozen; the last three once it is decoded.
        """
        return self._road.remarks

    @property
    def backends(self) -> dict[ComponentName, str]:
        """The backend of each network, in the order in which they run."""
        chosen = self._road.chosen
        return {name: chosen.found[name].backend for name in chosen.names}

    @property
    def weights(self) -> dict[str, str]:
        """The first characters of the checksum of each network's files, by its name, as a record has them."""
        return weights_of(self._road.engines, self._road.chosen)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        left, right, top, bottom = self.ending.crop
        return self.ending.size[0] - top - bottom, self.ending.size[1] - left - right

    @property
    def has_unkept_files(self) -> bool:
        """Whether an interrupted run has saved files that the file to go on from may not know as its own."""
        kept = self._unfinished
        return kept is not None and kept.is_behind and bool(kept.state.saved)

    def report(self) -> dict[str, Any]:
        """The plan as plain data: steps, guidance, backends, tiles and estimates of memory."""
        if self.plan is None:
            return asdict(self.ending) | {"backends": self.backends}
        return describe(self.plan, self._road.chosen, self._road.engines, self._media)

    def result(self, file: Path) -> dict[str, Any]:
        """Returns the result as plain data: the file, its size, length, frame rate, seed, times and remarks."""
        height, width = self.size
        return {
            "file": str(file),
            "width": width,
            "height": height,
            "frames": self.ending.num_frames,
            "fps": self.ending.fps,
            "seed": self.ending.seed,
            "seconds": self.seconds,
            "backends": self.backends,
            "remarks": self.remarks,
        }

    def memory(self) -> Memory | None:
        """Estimates how much memory is needed, and how much there is; None for latents that were saved."""
        if self.plan is None:
            return None
        return memory_of(self.plan, self._road.version, self._road.chosen, self._media)

    def work(self) -> dict[str, float]:
        """Estimates the floating-point operations of every stage by its name, for the total progress of a run."""
        if self.plan is None:
            return {}
        count = len(self.plan.request.conditions) + (self.plan.request.video is not None)
        return work_of(self.plan, self._road.version, self._road.chosen.names, count)

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
        self.remarks.clear()
        road = self._running(progress)
        self._state = state = State() if self._unfinished is None else self._unfinished.state
        given = {}
        self._places.try_writing(self._road.note)
        if road.options.initial_latents is not None:
            given["pass1/initial"] = read_initial(road.options.initial_latents, self.plan.passes[0].grid, road.channels)
        noise = noise_of(road.options, self.ending.seed, given)
        self._tell(road)
        self._use((yield from run_passes(road, self.plan, self._media.frames, noise, state)), noise)

    def _tell(self, road: Road) -> None:
        """Notes which backends were chosen, what differs of given media, and too little memory, each thing once."""
        memory = self.memory()
        for line in (*road.chosen.lines(), *self._media.lines(), *(() if memory is None else memory.lines())):
            road.note_once(line)

    def _use(self, latents: Floats, noise: Noise) -> None:
        """Sets the latents to decode, and the source of the decoder's noise."""
        self._latents, self._noise = latents, noise

    def latents(self, progress: Progress = silent, *, each_step: Watch = unwatched) -> Floats:
        """Returns the normalized latents to decode, (1, C, F, H, W) float32; the first call makes them.

        Args:
            progress: shows how far each stage is.
            each_step: is called with every denoising step, for example to show its preview.

        Raises:
            LtxError: a file cannot be used, or there is too little memory.
        """
        if self._latents is None:
            for step in self.steps(progress):
                each_step(step)
        assert self._latents is not None
        return self._latents

    def frames(self, progress: Progress = silent, *, each_step: Watch = unwatched) -> Frames:
        """Yields every frame in order, (height, width, 3) uint8 RGB; makes the latents first if need be.

        Args:
            progress: shows how far each stage is.
            each_step: is called with every denoising step.

        Raises:
            LtxError: a file cannot be used, there is too little memory, or the decoder's output is not finite.
        """
        latents = self.latents(progress, each_step=each_step)
        road = self._running(progress)
        if self.plan is None:  # otherwise steps has tried and told
            self._places.try_writing(self._road.note)
            self._tell(road)
        if self._feeds is None:
            assert self._noise is not None
            self._feeds = decoder_feeds(road, latents, self.ending, self._noise, self._state)
        yield from frames_of(road, self._feeds, self.ending)

    def __iter__(self) -> Iterator[Frame]:
        return self.frames()

    def report_lines(self) -> list[str]:
        """The plan as lines of text."""
        if self.plan is None:
            return [f"decode: {self.ending.num_frames} frames at {self.ending.fps:g} fps, seed {self.ending.seed}"]
        return list(lines_of(self.report()))

    def reads_also(self, label: str, path: Path) -> None:
        """Adds a file that was read for this video to those that it must not write.

        Args:
            label: what the file is for the user.
            path: the file.

        Raises:
            LtxError: the video is to write it.
        """
        self._places = self._places.adding(reads={label: path})
        self._places.check_distinct()

    def check_output(self, path: Path | str, *, folder_exists: bool = True) -> Path:
        """Checks that `save` could write this file, and returns the file, or for .png the folder of frames.

        Args:
            path: the file, as for `save`.
            folder_exists: whether the folder of the file must exist already.

        Raises:
            LtxError: the name is taken or that of another file of the run, the format is unknown or cannot hold this
                size or frame rate, or there is no such folder.
        """
        path, overwrite = path_of(path, "path"), self._road.options.overwrite
        target = check_output(path, *self.size, self.ending.fps, overwrite=overwrite, folder_exists=folder_exists)
        self._places.adding({"the output": target, "the file to go on from": place_beside(path)}).check_distinct()
        return target

    def is_of(self, recorded: Recorded, output: Path) -> bool:
        """Returns whether a record is that of this video, whatever part of the machine its run used.

        Args:
            recorded: what the record says.
            output: the output that it belongs to.
        """

        def compared(record: Recorded) -> tuple[str, Request, dict[str, Any]]:
            options = {name: value for name, value in record.options.items() if name not in _OF_MACHINE}
            return record.version, record.request, options

        return compared(recorded) == compared(parse_record(self._record(output), target_of(output)))

    def is_saved_as(self, output: Path) -> bool:
        """Returns whether an output holds this video, as its record says; without a record, it is not known to."""
        try:
            return self.is_of(read_record(output), output)
        except LtxError:
            return False

    def save(
        self,
        path: Path | str,
        progress: Progress = silent,
        *,
        each_step: Watch = unwatched,
        unfinished: Callable[[Path], None] | None = None,
    ) -> Path:
        """Makes the video and writes it to a file, which appears when it is whole.

        Args:
            path: .mp4, .webm, .gif, or NAME.png for a folder NAME of frames.
            progress: shows how far each stage is.
            each_step: is called with every denoising step.
            unfinished: is called with a file beside the output that holds the state of the run until the video is
                whole. If the process is killed or the video cannot be written, `Pipeline.resume` goes on from it.
                Without this function, there is no such file, unless the run goes on from one.

        Returns:
            The file, or the folder of frames. If the name was taken meanwhile, it ends in -2, -3 and so on.

        Raises:
            TakenError: the name is taken already, or another run is making this file.
            LtxError: a file cannot be used or written, there is too little memory, or the output is not finite.
        """
        path = path_of(path, "path")
        tidy(target_of(path).parent, self._road.note)
        if self._unfinished is not None and self._unfinished.is_finished():
            target, given = target_of(self._unfinished.output), target_of(path)
            self._unfinished.remove()
            return given if given.absolute() == target else target
        target = self.check_output(path)
        record = "" if self.plan is None else self._record(path)
        begin = partial(self.frames, progress, each_step=each_step)
        if record and (unfinished is not None or self._unfinished is not None):
            with self._kept(path, record, unfinished) as finished:
                written = self._written(path, record, begin, finished)
        else:
            written = self._written(path, record, begin, lambda video: None)
        if written != target:
            self._road.note(f"{target} was made by another program meanwhile; the video is {written}")
        return written

    def _written(
        self,
        path: Path,
        record: str,
        begin: Callable[[], Frames],
        finished: Callable[[Path], None],
    ) -> Path:
        options = self._road.options
        comment = record if options.metadata else ""
        with closing(begin()) as frames:
            return save_video(
                frames,
                path,
                self.size,
                self.ending.fps,
                comment=comment,
                overwrite=options.overwrite,
                finished=finished,
            )

    def _record(self, output: Path) -> str:
        assert self.plan is not None
        road, target = self._road, target_of(output)
        return record_of(self.plan.request, road.options, road.version, self.weights, target, RELEASE)

    @contextmanager
    def _kept(self, output: Path, record: str, told: Callable[[Path], None] | None) -> Iterator[Callable[[Path], None]]:
        """Keeps the state of the run in a file beside the output, until the block succeeds.

        Yields a function to call with the whole video before it gets its name. After an error, the file stays if
        something in it would have to be computed again; after an interruption it stays in any case, and if the output
        exists already, so that a file that is gone means that the run has ended well.
        """
        road = self._road
        if self.plan is not None:
            check_recordable(self.plan.request)
        about = about_of(record, road.engines.folder, road.options, output)
        if self._unfinished is not None and not self._unfinished.path.exists():
            self._unfinished = None
        if self._unfinished is None:
            state = State() if self._latents is None else self._state
            self._unfinished = claim(about, state, overwrite=road.options.overwrite)
        self._unfinished.lock()
        if self._unfinished.about != about:  # goes on elsewhere, or with other options
            self._unfinished.about = about
            self._unfinished.keep()
        kept = self._unfinished
        kept.note = road.note_once
        try:
            if told is not None:
                told(kept.path)
            yield kept.finish
        except BaseException as error:
            is_refused = isinstance(error, TakenError) or (
                isinstance(error, Exception) and not target_of(output).exists()
            )
            if is_refused and not kept.state.is_begun:
                kept.remove()
                self._unfinished = None
                raise
            if kept.is_behind:  # the half-written video is gone, which may have made room
                kept.keep(at_once=True)
            # A folder that has gone, such as that of a disk that was unplugged, takes the file with it.
            if not kept.path.exists() and kept.moved_to(Path.cwd()) and told is not None:
                told(kept.path)
            kept.unlock()
            raise
        kept.remove()
        self._unfinished = None

    def _running(self, progress: Progress) -> Road:
        return replace(self._road, progress=progress)


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
