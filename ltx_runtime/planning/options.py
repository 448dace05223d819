"""How a request is run: on which backend, in how much memory, with which files. Nothing here changes the request."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path

from ltx_runtime.declared import declared, number_of
from ltx_runtime.errors import LtxError
from ltx_runtime.folder.profiles import Profile, profile_for
from ltx_runtime.media.prepare import CRF, LARGEST_CRF
from ltx_runtime.noise.noise import RNGS
from ltx_runtime.packages import install_command
from ltx_runtime.sessions import AUTO, CPU_MODES
from ltx_runtime.spec.geometry import Grid
from ltx_runtime.vae.tile_sizes import BYTES_PER_PIXEL, tiling_for
from ltx_runtime.vae.tiling import Tiling

# Tiles of 73 frames of 512x512 pixels, for `tiled` where the whole video would fit into memory.
_BY_HAND = Tiling(10, 16, 16)
CPU_MEMORY_BYTES = 8_000_000_000
_MOST_MEMORY_GB = 1e6
_MOST_THREADS = 256  # more than a machine has cores only cost memory


@dataclass(frozen=True)
class RunOptions:
    """Options that say how a request is run.

    Attributes:
        backend: a name of BACKENDS, or AUTO.
        cpu_mode: a name of CPU_MODES, which AUTO follows for the networks that run on the CPU.
        gpu_memory_bytes: how much GPU memory may be used; None for all that is free.
        threads: number of CPU threads; None for one per core.
        rng: a name of RNGS, the source of noise unless `noise` is given.
        low_memory: run the conditions of guidance one after another instead of in one batch.
        memory_bytes: memory that the VAE's activations may take; tiles are sized to stay within it. None for what the
            GPU has left, and for CPU_MEMORY_BYTES on a CPU, so that a seed makes the same pixels on every CPU. Also
            the main memory that images and clips may take; None for CPU_MEMORY_BYTES.
        tiled: cut tiles even where the whole video would fit.
        crf: constant rate factor of the H.264 compression that makes images and clips resemble the model's training
            data; 0 for no compression.
        sample_posterior: sample the latents of images and clips from the VAE's posterior instead of using its mean.
        cache: whether embeddings of prompts are read from, and kept in, the cache on disk; see text.cache.
        embeddings, initial_latents, noise: files to read these from instead of computing them.
        save_embeddings, save_latents, save_noise: files to save them to.
        overwrite: whether files that exist are replaced: the output, and those to save to.
        metadata: whether the video's file says how it was made.
    """

    backend: str = AUTO
    cpu_mode: str = AUTO
    gpu_memory_bytes: int | None = None
    threads: int | None = None
    rng: str = "numpy"
    low_memory: bool = False
    memory_bytes: int | None = None
    tiled: bool = False
    crf: int = CRF
    sample_posterior: bool = False
    cache: bool = True
    embeddings: Path | None = None
    initial_latents: Path | None = None
    noise: Path | None = None
    save_embeddings: Path | None = None
    save_latents: Path | None = None
    save_noise: Path | None = None
    overwrite: bool = False
    metadata: bool = True

    def tiling(
        self,
        grid: Grid,
        *,
        encoding: bool = False,
        bytes_per_pixel: int = BYTES_PER_PIXEL,
        served: Sequence[Profile] = (),
        gpu_bytes: int | None = None,
    ) -> Tiling:
        """Returns how the VAE's latents are cut into tiles for decoding or encoding.

        Args:
            grid: the grid of all latents.
            encoding: whether to encode instead of decode.
            bytes_per_pixel: estimated memory for activations, see tile_sizes.
            served: the sizes that an engine serves; empty if it serves all.
            gpu_bytes: estimated GPU memory for activations; None on a CPU.

        Raises:
            LtxError: the memory is too small even for the smallest tiles. With `served`, the smallest tiles are tried
                all the same.
            UnservedError: the engine serves no tile of any size.
        """

        def serves(window: Grid) -> bool:
            return not served or profile_for(served, asdict(window)) is not None

        found = tiling_for(
            grid,
            self.memory_bytes or gpu_bytes or CPU_MEMORY_BYTES,
            encoding=encoding,
            bytes_per_pixel=bytes_per_pixel,
            serves=serves,
            or_smallest=bool(served),
        )
        if found is None and self.tiled and serves(_BY_HAND.window(grid)):
            return _BY_HAND
        return found or Tiling()


def bytes_of(name: str, gigabytes: float | None, advice: str) -> int | None:
    """Converts GB to bytes; None stays None. The error message uses `name` and `advice`.

    Raises:
        LtxError: the number is not positive, or is larger than 1e6.
    """
    if gigabytes is None:
        return None
    gigabytes = number_of(gigabytes, name)
    if not 0 < gigabytes <= _MOST_MEMORY_GB:
        raise LtxError(f"{name} must be a positive number of GB; got {gigabytes:g}", advice)
    return round(gigabytes * 1e9)


def check_options(options: RunOptions) -> RunOptions:
    """Returns the options, with values of their declared types, if all of them can be used.

    Raises:
        LtxError: a value has another type, rng or cpu_mode is unknown, cpu_mode has no effect or needs a library that
            is not installed, or threads or crf is out of range.
    """
    options = declared(options)
    if options.threads is not None and not 1 <= options.threads <= _MOST_THREADS:
        raise LtxError(
            f"threads must be from 1 to {_MOST_THREADS}; got {options.threads}", "leave it out for one thread per core"
        )
    if options.cpu_mode not in CPU_MODES:
        raise LtxError(f"unknown cpu-mode {options.cpu_mode!r}", f"use one of {', '.join(CPU_MODES)}")
    if AUTO not in (options.cpu_mode, options.backend):
        raise LtxError(
            f"cpu-mode {options.cpu_mode} has no effect on backend {options.backend}", "leave one of them out"
        )
    if options.cpu_mode not in (AUTO, "exact") and find_spec("openvino") is None:
        raise LtxError(
            f"cpu-mode {options.cpu_mode} needs OpenVINO, which is not installed",
            command=install_command("openvino"),
        )
    if options.rng not in RNGS:
        raise LtxError(f"unknown rng {options.rng!r}", f"use one of {', '.join(RNGS)}")
    if not 0 <= options.crf <= LARGEST_CRF:
        raise LtxError(f"crf must be from 0 to {LARGEST_CRF}; got {options.crf}", "use 29, or 0 for no compression")
    return options
