"""Decodes latents to frames with an open session of the VAE decoder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from ltx_runtime.noise.noise import Noise
from ltx_runtime.sessions import Session
from ltx_runtime.sessions.numbers import finite
from ltx_runtime.spec.components import Port
from ltx_runtime.spec.encodings import sinusoid_of
from ltx_runtime.spec.geometry import Grid
from ltx_runtime.vae.latents import tone_mapped
from ltx_runtime.vae.resize import resize_bilinear
from ltx_runtime.vae.saved_latents import Ending
from ltx_runtime.vae.tiling import Tiling, decode_tiled

Floats = NDArray[np.float32]


def ready_to_decode(latents: Floats, ending: Ending, decoder_inputs: Sequence[Port], noise: Noise) -> dict[str, Floats]:
    """Returns all inputs of a decoder for normalized latents (1, C, F, H, W) float32, with the noise drawn.

    A decoder that takes a timestep gets latents mixed with noise. As in the official pipeline, this happens before the
    tone map and before un-normalizing.
    """
    _, _, frames, rows, columns = latents.shape
    feeds = {"latents": latents}
    for port in decoder_inputs[1:]:
        if port.name == "sinusoid":
            feeds["sinusoid"] = sinusoid_of(np.full((1,), ending.decode_timestep, np.float32))
            scale = np.float32(ending.decode_noise_scale)
            feeds["latents"] = (np.float32(1.0) - scale) * latents + scale * noise.draw("decode", latents.shape)
        else:
            shape = port.shape({"frames": frames, "rows": rows, "columns": columns})
            feeds[port.name] = noise.draw(f"decoder/{port.name}", shape)
    if ending.tone_map > 0:
        feeds["latents"] = tone_mapped(feeds["latents"], ending.tone_map)
    return feeds


def decode(session: Session, feeds: dict[str, Floats], tiling: Tiling) -> Iterator[Floats]:
    """Yields frames (3, height, width) float32 in 0..1; `ready_to_decode` returns the inputs in `feeds`.

    Raises:
        NotFiniteError: the decoder's output has values that are not finite.
    """
    grid, made = Grid(*feeds["latents"].shape[2:]), f"the {session.component.name} computed"

    def window(over_frames: slice, over_rows: slice, over_columns: slice) -> Floats:
        window_feeds = dict(feeds)
        window_feeds["latents"] = np.ascontiguousarray(feeds["latents"][:, :, over_frames, over_rows, over_columns])
        for name in feeds:
            if name.startswith("noise_"):
                window_feeds[name] = _map_of(feeds[name], grid.rows, grid.columns, over_rows, over_columns)
        return finite(session.run(window_feeds)["video"][0], made)

    for frame in decode_tiled(grid, window, tiling):
        yield np.clip(frame * np.float32(0.5) + np.float32(0.5), 0.0, 1.0)


def decode_pixels(session: Session, feeds: dict[str, Floats]) -> NDArray[np.uint8]:
    """Returns frames (F, height, width, 3) uint8 RGB that the decoder's engine made; the session must have `frames`.

    Raises:
        NotFiniteError: the decoder's output has values that are not finite.
    """
    outputs = session.run(feeds, ["frames", "mean"])
    finite(outputs["mean"], f"the {session.component.name} computed as means of its videos")
    pixels: NDArray[np.uint8] = outputs["frames"][0]
    return pixels


def pixels_of(
    session: Session, feeds: dict[str, Floats], tiling: Tiling, ending: Ending
) -> Iterator[NDArray[np.uint8]]:
    """Yields frames (height, width, 3) uint8 of the requested size; pixels are floor(255 y), as in the official code.

    A decoder that returns bytes itself is used for them, if the frames need no tiles and no resizing.

    Raises:
        NotFiniteError: the decoder's output has values that are not finite.
    """
    left, right, top, bottom = ending.crop
    height, width = ending.size
    grid = Grid(*feeds["latents"].shape[2:])
    if tiling.window(grid) == grid and (height, width) == (grid.height, grid.width) and "frames" in session.outputs:
        for pixels in decode_pixels(session, feeds):
            yield pixels[top : height - bottom, left : width - right]
        return
    for frame in decode(session, feeds, tiling):
        sized = resize_bilinear(frame, height, width)[:, top : height - bottom, left : width - right]
        yield (sized * np.float32(255.0)).astype(np.uint8).transpose(1, 2, 0)


def _map_of(maps: Floats, rows: int, columns: int, over_rows: slice, over_columns: slice) -> Floats:
    """Returns the part of noise maps (count, s * rows, s * columns) that belongs to a window of latents."""
    scale = maps.shape[1] // rows
    assert maps.shape[1:] == (scale * rows, scale * columns)
    return np.ascontiguousarray(maps[:, _scaled(over_rows, scale), _scaled(over_columns, scale)])


def _scaled(part: slice, scale: int) -> slice:
    return slice(scale * part.start, scale * part.stop)
