"""How a request is run: by what, in how much memory, with which files. Nothing here changes what is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ltx_runtime.media import CRF
from ltx_runtime.tensors import check_place
from ltx_runtime.tiling import Tiling, tiling_for

# What tiles are where they are asked for although all would fit: 512 pixels wide and high, 73 frames long.
_BY_HAND = Tiling(10, 16, 16)


@dataclass(frozen=True)
class Options:
    """How a request is run.

    Attributes:
        backend: a name of BACKENDS.
        rng: a name of RNGS, where no file has the noise.
        low_memory: run guidance's conditions one after another.
        memory_bytes: of activations that the VAE may take; tiles are cut so that it does not take more.
        tiled: cut tiles even where all would fit.
        crf: H.264's, at which images and clips are compressed as what the model was trained on; 0 for not at all.
        sample_posterior: draw latents of images and clips from the VAE's distribution instead of taking its mean.
        embeddings, initial_latents, noise: files to take these from instead of making them.
        save_embeddings, save_latents, save_noise: files to keep them in.
    """

    backend: str = "cpu"
    rng: str = "numpy"
    low_memory: bool = False
    memory_bytes: int = 8_000_000_000
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

    def tiling(self, frames: int, rows: int, columns: int, *, encoding: bool = False) -> Tiling:
        """How the VAE's latents, so many of them, are cut for decoding or encoding.

        Raises:
            LtxError: the memory is too little for the smallest tiles.
        """
        found = tiling_for(frames, rows, columns, self.memory_bytes, encoding=encoding)
        return found or (_BY_HAND if self.tiled else Tiling())


DEFAULT_OPTIONS = Options()
