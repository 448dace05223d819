"""Small pictures of latents by a linear map to colours: approximate, and made in no time while a video is denoised."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ltx_runtime.folder.manifest import Preview


def pictures_of(latents: NDArray[np.float32], preview: Preview) -> NDArray[np.uint8]:
    """Maps normalized latents (1, C, F, H, W) float32 to a picture for each latent frame, (F, H, W, 3) uint8 RGB."""
    weights, bias = np.array(preview.weights, np.float32), np.array(preview.bias, np.float32)
    colours = np.einsum("kc,cfhw->fhwk", weights, latents[0]) + bias
    pictures: NDArray[np.uint8] = np.clip((colours + 1) * np.float32(127.5) + np.float32(0.5), 0, 255).astype(np.uint8)
    return pictures
