"""How a request is run: by what, in how much memory, with which files. Nothing here changes what is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from ltx_runtime.errors import LtxError
from ltx_runtime.folder.profiles import Profile, profile_for
from ltx_runtime.media.prepare import CRF, LARGEST_CRF
from ltx_runtime.noise.noise import RNGS
from ltx_runtime.spec.geometry import Grid
from ltx_runtime.tensors import check_place
from ltx_runtime.vae.tile_sizes import BYTES_PER_PIXEL, HALF_BYTES_PER_PIXEL, tiling_for
from ltx_runtime.vae.tiling import Tiling

# What tiles are where they are asked for although all would fit: 512 pixels wide and high, 73 frames long.
_BY_HAND = Tiling(10, 16, 16)
CPU_MEMORY_BYTES = 8_000_000_000
_MOST_MEMORY_GB = 1e6


@dataclass(frozen=True)
class RunOptions:
    """How a request is run.

    Attributes:
        backend: a name of BACKENDS, or AUTO.
        gpu_memory_bytes: of the GPU that may be used; None for all that is free.
        threads: of the CPU that ONNX Runtime uses; None for one a core.
        rng: a name of RNGS, where no file has the noise.
        low_memory: run guidance's conditions one after another.
        memory_bytes: of activations that the VAE may take; tiles are cut so that it does not take more. None for
            what a GPU has, and for CPU_MEMORY_BYTES on a CPU, so that a seed makes the same pixels on all of them.
        tiled: cut tiles even where all would fit.
        crf: H.264's, at which images and clips are compressed as what the model was trained on; 0 for not at all.
        sample_posterior: draw latents of images and clips from the VAE's distribution instead of taking its mean.
        embeddings, initial_latents, noise: files to take these from instead of making them.
        save_embeddings, save_latents, save_noise: files to keep them in.
    """

    backend: str = "auto"
    gpu_memory_bytes: int | None = None
    threads: int | None = None
    rng: str = "numpy"
    low_memory: bool = False
    memory_bytes: int | None = None
    tiled: bool = False
    crf: int = CRF
    sample_posterior: bool = False
    embeddings: Path | None = None
    initial_latents: Path | None = None
    noise: Path | None = None
    save_embeddings: Path | None = None
    save_latents: Path | None = None
    save_noise: Path | None = None

    def check_places(self) -> None:
        """Raises LtxError if a file cannot be kept where it is to be kept."""
        for place in (self.save_embeddings, self.save_latents, self.save_noise):
            if place is not None:
                check_place(place)

    def tiling(
        self,
        grid: Grid,
        *,
        encoding: bool = False,
        half: bool = False,
        served: Sequence[Profile] = (),
        gpu_bytes: int | None = None,
    ) -> Tiling:
        """How the VAE's latents are cut into tiles for decoding or encoding.

        Args:
            grid: the grid of all latents.
            encoding: instead of decoding.
            half: whether the VAE computes in 16 bits.
            served: the sizes that an engine serves; empty if all.
            gpu_bytes: what a GPU has for activations, as estimated; None on a CPU.

        Raises:
            LtxError: the memory is too little for the smallest tiles; an engine that serves few sizes may try.
            UnservedError: the engine serves no tiles of any size.
        """

        def serves(window: Grid) -> bool:
            return not served or profile_for(served, asdict(window)) is not None

        found = tiling_for(
            grid,
            self.memory_bytes or gpu_bytes or CPU_MEMORY_BYTES,
            encoding=encoding,
            bytes_per_pixel=HALF_BYTES_PER_PIXEL if half else BYTES_PER_PIXEL,
            serves=serves,
            or_smallest=bool(served),
        )
        if found is None and self.tiled and serves(_BY_HAND.window(grid)):
            return _BY_HAND
        return found or Tiling()


def bytes_of(name: str, gigabytes: float | None, advice: str) -> int | None:
    """So many GB in bytes; None stays None.

    Raises:
        LtxError: it is no positive number.
    """
    if gigabytes is None:
        return None
    if not 0 < gigabytes <= _MOST_MEMORY_GB:
        raise LtxError(f"{name} must be a positive number of GB; got {gigabytes:g}", advice)
    return round(gigabytes * 1e9)


def check_options(options: RunOptions) -> RunOptions:
    """The options themselves, if every one of them can be used.

    Raises:
        LtxError: threads are no positive number, or a name or the compression is unknown.
    """
    if options.threads is not None and options.threads < 1:
        raise LtxError(f"threads must be at least 1; got {options.threads}", "leave it out for one a core")
    if options.rng not in RNGS:
        raise LtxError(f"unknown rng {options.rng!r}", f"use one of {', '.join(RNGS)}")
    if not 0 <= options.crf <= LARGEST_CRF:
        raise LtxError(f"crf must be from 0 to {LARGEST_CRF}; got {options.crf}", "use 29, or 0 for no compression")
    return options
