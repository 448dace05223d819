"""One step of the denoising loop, as the caller of a pipeline sees it."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ltx_runtime.errors import LtxError
from ltx_runtime.folder.manifest import Engines
from ltx_runtime.sampling import denoise
from ltx_runtime.spec.geometry import Grid, latents_of
from ltx_runtime.vae.preview import pictures_of

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Step:
    """One step of the denoising loop.

    Attributes:
        index: number of the step within its pass, from 0.
        steps: number of steps of the pass.
        pass_number: 1, or 2 for the pass that refines.
        passes: number of passes.
        sigma: the noise level of the latents after the step.
    """

    index: int
    steps: int
    pass_number: int
    passes: int
    sigma: float
    _tokens: denoise.Step = field(repr=False, compare=False)
    _grid: Grid = field(repr=False)
    _extra: int = field(repr=False)
    _engines: Engines = field(repr=False, compare=False)

    @cached_property
    def latents(self) -> Floats:
        """The latents after the step, normalized, (1, C, F, H, W) float32; noisy until the last step."""
        return _read_only(latents_of(self._tokens.tokens[:, self._extra :], self._grid))

    @cached_property
    def predicted(self) -> Floats:
        """The noise-free latents that the transformer foresees at this step, shaped like `latents`."""
        return _read_only(latents_of(self._tokens.predicted()[:, self._extra :], self._grid))

    def preview(self) -> NDArray[np.uint8]:
        """Pictures of the video as the transformer foresees it at this step, without the VAE: approximate colours.

        Returns:
            A picture for each latent frame, (F, H, W, 3) uint8 RGB, with a pixel for every 32x32 of the video.

        Raises:
            LtxError: the version folder was exported without the VAE encoder, or by an earlier release.
        """
        encoder = self._engines.manifest.components.get("vae_encoder")
        if encoder is None or encoder.preview is None:
            raise LtxError(
                f"{self._engines.folder} has no colours for previews",
                "export it with its VAE encoder",
                self._engines.export_command(),
            )
        return pictures_of(self.predicted, encoder.preview)


def _read_only(array: Floats) -> Floats:
    """Returns a view that cannot be written to, since the run goes on with these numbers."""
    view: Floats = array.view()
    view.flags.writeable = False
    return view
