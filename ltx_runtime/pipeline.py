"""The library: a version folder becomes a Pipeline, and a request becomes a Video that is made when it is asked for.

with Pipeline("engines/0.9.8-2b-distilled") as pipe:
    pipe("A red fox runs through deep snow", seed=7).save("fox.mp4")
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from ltx_runtime.declared import declared, path_of
from ltx_runtime.errors import LtxError
from ltx_runtime.folder.finding import find_folder
from ltx_runtime.folder.manifest import Engines
from ltx_runtime.folder.reading import open_engines
from ltx_runtime.folder.release import release_of
from ltx_runtime.outputs.places import check_readable, places_of
from ltx_runtime.outputs.state import check_state
from ltx_runtime.outputs.unfinished import Unfinished, open_unfinished
from ltx_runtime.planning.backends import Chosen, Size, choose, needed
from ltx_runtime.planning.choices import FROM_IMAGE
from ltx_runtime.planning.media import filled, media_of
from ltx_runtime.planning.options import RunOptions, bytes_of, check_options
from ltx_runtime.planning.plan import plan
from ltx_runtime.planning.request import Request, resolved
from ltx_runtime.progress import silent
from ltx_runtime.road import Road, channels_of, noise_of
from ltx_runtime.sessions import AUTO
from ltx_runtime.sessions.found import Found
from ltx_runtime.sessions.pool import pool_of
from ltx_runtime.spec.components import ComponentName
from ltx_runtime.spec.geometry import Grid
from ltx_runtime.spec.versions import find_version
from ltx_runtime.vae.saved_latents import read_latents
from ltx_runtime.video import Result, Video

_REQUEST_FIELDS = tuple(one.name for one in fields(Request))
# Fields of RunOptions that are set for the pipeline, and so not for a single video.
_PIPELINE_FIELDS = ("backend", "cpu_mode", "memory_bytes", "gpu_memory_bytes", "threads")
_RUN_FIELDS = tuple(one.name for one in fields(RunOptions) if one.name not in _PIPELINE_FIELDS)
# Fields of RunOptions that matter for latents that were saved, of which nothing is left to do but decode them.
_DECODE_FIELDS = ("rng", "noise", "tiled", "save_noise", "overwrite", "metadata")
# Fields of RunOptions that can be changed for a run that goes on.
RESUMED_FIELDS = ("tiled", "low_memory", "overwrite", "metadata")

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
        trust_engines: whether engines and links in the folder are used that you have not made on this machine. An
            engine of TensorRT is code, so this trusts whoever made the folder like the author of a program.
        keep_loaded: True keeps every network loaded from one video to the next; a number limits the weights of all
            loaded networks to this many GB. To make room, or if the memory of a GPU or of the machine runs short, the
            network that a video needs first is unloaded first.
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
        trust_engines: bool = False,
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
        self._note: Note = note or logging.getLogger("ltx_runtime").warning
        self._opened = not isinstance(folder, Engines)
        if isinstance(folder, Engines):
            self.engines = folder
        else:
            name = None if version is None else find_version(version).name
            # Absolute, so that the pipeline still finds its files if the program changes its working directory.
            found_folder = find_folder(path_of(folder, "folder"), name).absolute()
            self.engines = open_engines(found_folder, trust=trust_engines)
        self.version = release_of(self.engines.manifest)
        self._sessions = pool_of(keep_loaded)
        self._found: dict[ComponentName, Found] = {}
        self._noted: set[str] = set()

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Frees every network that is kept loaded, and lets the folder go if the pipeline has opened it."""
        self._sessions.close()
        if self._opened:
            self.engines.held.release()

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
        asked, request = request, filled(request, self.version, options.memory_bytes)
        return self._planned(request, options, sized=asked.fit == FROM_IMAGE)

    def _planned(
        self, request: Request, options: RunOptions, unfinished: Unfinished | None = None, *, sized: bool = False
    ) -> Video:
        """Plans a video, or the rest of one that is unfinished; `sized` says that an image has decided its size."""
        manifest = self.engines.manifest
        planned = plan(resolved(request, self.version), self.version, manifest.schedule, manifest.allowed_sigmas)
        # A preset of one pass needs what --single-pass does of a version of two.
        single_pass = request.single_pass or len(planned.passes) < len(self.version.passes)
        size = Size(*planned.ending.size, planned.passes[-1].grid.num_frames, single_pass)
        loras = planned.request.loras
        chosen = choose(self.engines, needed(planned, options), options, size, self._found, loras)
        check_readable(options)
        places = places_of(self.engines, request, options)
        places.check(own=() if unfinished is None else unfinished.state.saved)
        if "vae_encoder" in chosen.names:
            for one in planned.passes:
                chosen.tiling(one.grid, encoding=True)
        media = media_of(planned, options.memory_bytes, sized=sized)
        chosen.check_passes(planned, media.added_frames, conditioned=bool(request.conditions))
        return Video(self._road(chosen), places, planned.ending, planned, media, unfinished)

    def resume(self, unfinished: Unfinished | Path | str, **changes: Any) -> Video:
        """Returns the video of a run that was interrupted; saving it goes on from its last finished step.

        Args:
            unfinished: the file that `Video.save` left beside its output.
            changes: fields of RunOptions by name; only some can be changed.

        Raises:
            LtxError: the file is damaged, its run is still under way, or what it was made from has changed.
        """
        if not isinstance(unfinished, Unfinished):
            unfinished = open_unfinished(path_of(unfinished, "unfinished"))
        try:
            _check_known(changes, RESUMED_FIELDS)
            recorded, run = unfinished.recorded()
            own = {name: value for name, value in {**recorded.options, **run}.items() if name in _RUN_FIELDS}
            options = self._options_with({**own, **changes}, _RUN_FIELDS)
            for path in recorded.changed_inputs():
                raise LtxError(f"{path} is not what it was when the run began", "put it back, or start again")
            video = self._planned(recorded.request, options, unfinished)
            assert video.plan is not None  # only latents that were saved have none
            channels = channels_of(self.engines), channels_of(self.engines, "text")
            check_state(unfinished.state, video.plan, unfinished.path, *channels)
            for name in recorded.changed_weights(video.weights):
                raise LtxError(
                    f"{name} in {self.engines.folder} is not the one with which the run began",
                    "use the same version folder and backend, or start again",
                )
        except BaseException:
            unfinished.unlock()
            raise
        return video

    def _road(self, chosen: Chosen) -> Road:
        return Road(
            self.engines, self.version, chosen.options, chosen, self._sessions, silent, self._note, self._note_once
        )

    def _note_once(self, line: str) -> None:
        if line not in self._noted:
            self._noted.add(line)
            self._note(line)

    def _changed(self, request: Request, changes: dict[str, Any]) -> tuple[Request, RunOptions]:
        """Returns the request and the pipeline's options with some fields changed."""
        asked = {name: value for name, value in changes.items() if name in _REQUEST_FIELDS}
        of_run = {name: value for name, value in changes.items() if name not in _REQUEST_FIELDS}
        return declared(replace(request, **asked)), self._options_with(of_run, (*_REQUEST_FIELDS, *_RUN_FIELDS))

    def _options_with(self, changes: dict[str, Any], known: Sequence[str]) -> RunOptions:
        """Returns the pipeline's options with some fields changed; `known` lists all valid names, for the message."""
        _check_known(changes, known)
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
        check_readable(options)
        places = places_of(self.engines, None, options).adding(reads={"the file of latents": path_of(path, "path")})
        places.check()
        chosen.tiling(grid)
        video = Video(self._road(chosen), places, ending)
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


def _check_known(changes: dict[str, Any], known: Sequence[str]) -> None:
    """Raises LtxError if a name is not among those that can be changed."""
    unknown = sorted(changes.keys() - {*known})
    if unknown:
        raise LtxError(f"there is nothing called {unknown[0]!r} to ask for", f"use one of {', '.join(known)}")
