"""Prepares images and clips for the VAE encoder, exactly as the official command line does.

Frames are cropped to the video's aspect ratio, blurred, compressed by H.264 as the model's training data was, scaled
to [-1, 1] and padded. This module knows nothing about models: the caller gives the video's size and padding.
"""

from __future__ import annotations

import io
import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ltx_runtime.errors import LtxError
from ltx_runtime.media.pictures import Picture, Source, label_of, pictures_of

Pixels = NDArray[np.float32]

CRF = 29
PREPARED = ".safetensors"
LARGEST_CRF = 51
_SMALLEST_SIDE = 2  # the blur mirrors pixels at the border, and H.264 stores one colour for each 2x2 pixels
_BAND_ROWS = 32


def count_frames(source: Source, most_frames: int | None = None) -> int:
    """Counts the frames of an image or clip by reading them, up to `most_frames`.

    Raises:
        LtxError: the image or clip cannot be read, see `load_media`.
    """
    if (path := _prepared_file(source)) is not None:
        frames: int = _prepared(path).shape[2]
        return frames if most_frames is None else min(frames, most_frames)
    return sum(1 for _ in itertools.islice(pictures_of(source), most_frames))


def _prepared_file(source: Source) -> Path | None:
    """Returns the path of a source that is a file of prepared media, or None for any other source."""
    path = Path(source) if isinstance(source, (str, Path)) else None
    return path if path is not None and path.suffix.lower() == PREPARED else None


def load_media(
    source: Source,
    height: int,
    width: int,
    *,
    most_frames: int,
    resize: bool,
    padding: tuple[int, int, int, int] = (0, 0, 0, 0),
    crf: int = CRF,
    blur: bool = True,
) -> NDArray[np.float32]:
    """Reads and prepares an image or clip as (1, 3, F, H, W) float32 in [-1, 1], with F at most `most_frames`.

    Frames are center-cropped to the aspect ratio of `height` x `width`. A .safetensors file holds prepared media as a
    tensor `media` of the same shape and range, which is only cut to `most_frames`.

    Args:
        source: path of an image, clip (see pictures.READERS) or .safetensors file, or pictures in memory, see Source.
        height, width: size of the video in pixels, without padding.
        most_frames: the most frames to read.
        resize: whether to resize to `height` x `width`, as in video-to-video; otherwise frames keep their own size.
        padding: pixels of mid-grey to add on the left, right, top and bottom of frames, resized or not.
        crf: constant rate factor of the H.264 compression; 0 for no compression.
        blur: whether to blur by a Gaussian of standard deviation 1 over 3x3 pixels.

    Raises:
        LtxError: the file cannot be read as media, a frame is too small or of another size, or crf is not in 0..51.
    """
    _check(height, width, crf)
    if (path := _prepared_file(source)) is not None:
        return _prepared(path)[:, :, :most_frames]
    left, right, top, bottom = padding
    media = np.zeros((3, 0, 0, 0), np.float32)
    count = 0
    for picture in itertools.islice(pictures_of(source), most_frames):
        frame = _frame_of(_cropped(picture, height, width, resize, label_of(source)), crf, blur, keep_size=resize)
        frame = np.pad(frame, ((0, 0), (top, bottom), (left, right)))
        if not count:
            media = np.zeros((3, most_frames, *frame.shape[1:]), np.float32)
        if media[:, 0].shape != frame.shape:
            raise LtxError(f"the frames of {label_of(source)} differ in size", "convert it to .mp4")
        media[:, count] = frame
        count += 1
    return media[None, :, :count]


def _check(height: int, width: int, crf: int) -> None:
    if not 0 <= crf <= LARGEST_CRF:
        raise LtxError(f"crf must be from 0 (no compression) to {LARGEST_CRF}; got {crf}", f"use {CRF}")
    if min(height, width) < _SMALLEST_SIDE:
        raise LtxError(f"images cannot be cropped to {width}x{height} pixels", "use 32x32 or more")


def _prepared(path: Path) -> NDArray[np.float32]:
    from ltx_runtime.tensors import read_tensors  # noqa: PLC0415  (only for .safetensors files)

    media: NDArray[np.float32] = read_tensors(path, ["media"])["media"]
    if media.dtype != np.float32 or media.ndim != 5 or media.shape[:2] != (1, 3) or 0 in media.shape:
        raise LtxError(
            f"media in {path} is {media.dtype} of shape {list(media.shape)}",
            "save it as float32 of (1, 3, frames, height, width)",
        )
    if (largest := float(np.abs(media).max())) > 1 + 1e-6:
        raise LtxError(f"media in {path} has absolute values up to {largest:g}", "scale it to -1..1")
    return media


def _cropped(picture: Picture, height: int, width: int, resize: bool, name: str) -> Picture:
    """Returns the largest centered part with the aspect ratio of `height` x `width`, resized to that if `resize`."""
    own_height, own_width = picture.shape[:2]
    aspect_ratio = width / height
    new_width, new_height = own_width, own_height
    if own_width / own_height > aspect_ratio:
        new_width = int(own_height * aspect_ratio)
    else:
        new_height = int(own_width / aspect_ratio)
    if min(new_width, new_height) < _SMALLEST_SIDE:
        raise LtxError(
            f"{name} is {own_width}x{own_height} pixels, too small to crop to the aspect ratio of {width}x{height}",
            "give a larger picture",
        )
    x, y = (own_width - new_width) // 2, (own_height - new_height) // 2
    part = picture[y : y + new_height, x : x + new_width]
    return _resized(part, height, width) if resize else part


def _resized(picture: Picture, height: int, width: int) -> Picture:
    from PIL import Image  # noqa: PLC0415

    return np.asarray(Image.fromarray(np.ascontiguousarray(picture)).resize((width, height)))


def _frame_of(picture: Picture, crf: int, blur: bool, keep_size: bool) -> Pixels:
    """Returns a picture blurred, compressed and scaled, as (3, H, W) float32 in [-1, 1].

    Compression drops an odd last row and column; with `keep_size`, copies of the row and column before replace them.
    """
    pixels = _compressed(_blurred(picture, blur), crf)
    if keep_size:
        dropped = np.subtract(picture.shape, pixels.shape)
        pixels = np.pad(pixels, ((0, dropped[0]), (0, dropped[1]), (0, 0)), "edge")
    scaled: Pixels = (pixels * np.float32(255.0) / np.float32(127.5) - np.float32(1.0)).transpose(2, 0, 1)
    return scaled


def _blurred(picture: Picture, blur: bool) -> Pixels:
    """Returns a picture as (H, W, 3) float32 in 0..1, blurred by a Gaussian over 3x3 pixels, mirrored at the border.

    Each product is added before it is rounded, in the order of the official convolution. Pixels are floored to bytes
    later: with other rounding, every fifth shade of a flat area would end one level off.
    """
    pixels: Pixels = picture.astype(np.float32) / np.float32(255.0)
    if not blur:
        return pixels
    gaussian = np.array([math.exp(-0.5), 1.0, math.exp(-0.5)])
    gaussian = (gaussian / gaussian.sum()).astype(np.float32)
    kernel = np.outer(gaussian, gaussian)
    mirrored = np.pad(pixels, ((1, 1), (1, 1), (0, 0)), "reflect")
    blurred = np.zeros_like(pixels)
    height, width = pixels.shape[:2]
    for first in range(0, height, _BAND_ROWS):  # in bands, so that the float64 values stay in the CPU cache
        band = blurred[first : first + _BAND_ROWS]
        around = mirrored[first : first + len(band) + 2].astype(np.float64)
        for i, j in itertools.product(range(3), repeat=2):
            band[:] = around[i : i + len(band), j : j + width] * np.float64(kernel[i, j]) + band
    return blurred


def _compressed(pixels: Pixels, crf: int) -> Pixels:
    """Compresses (H, W, 3) float32 in 0..1 as one frame of H.264 and decodes it; an odd last row or column is dropped.

    x264 divides a frame into as many slices as there are processors, so the result depends on the machine, as it does
    in the official code.
    """
    if crf == 0:
        return pixels
    import av  # noqa: PLC0415

    height, width = (side // 2 * 2 for side in pixels.shape[:2])
    frame = (pixels[:height, :width] * np.float32(255.0)).astype(np.uint8)
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream: Any = container.add_stream("libx264", rate=1, options={"crf": str(crf), "preset": "veryfast"})
        stream.height, stream.width = height, width
        picture = av.VideoFrame.from_ndarray(frame, format="rgb24").reformat(format="yuv420p")
        container.mux(stream.encode(picture))
        container.mux(stream.encode())
    file.seek(0)
    with av.open(file) as container:
        decoded = next(container.decode(video=0)).to_ndarray(format="rgb24")
    restored: Pixels = decoded.astype(np.float32) / np.float32(255.0)
    return restored
