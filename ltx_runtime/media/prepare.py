"""Prepares images and clips for the VAE encoder, exactly as the official command line does.

Frames are cropped to the video's aspect ratio, blurred, compressed by H.264 as the model's training data was, scaled
to [-1, 1] and padded. This module knows nothing about models: the caller gives the video's size and padding.
"""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ltx_runtime.errors import LtxError
from ltx_runtime.media.facts import Facts, Picture, seen
from ltx_runtime.media.pictures import Source, file_of, label_of, opened
from ltx_runtime.tensors import listed, names_in

if TYPE_CHECKING:
    from ltx_runtime.weights.checkpoint import StoredTensor

Pixels = NDArray[np.float32]
Levels: TypeAlias = "NDArray[np.uint8] | NDArray[np.float32]"
Padding = tuple[int, int, int, int]

CRF = 29
LARGEST_CRF = 51
CROP, PAD = "crop", "pad"
NO_PADDING: Padding = (0, 0, 0, 0)
_HEADER_AT = 8  # bytes before the JSON header of a safetensors file
_LONGEST_HEADER = 100_000_000  # bytes, the limit of the format; `header_of` refuses shorter ones
_SMALLEST_SIDE = 2  # the blur mirrors pixels at the border, and H.264 stores one colour for each 2x2 pixels
_BAND_ROWS = 32
_PREPARED_DTYPES = ("F32", "F16", "BF16", "F64")
_LARGEST_PREPARED = 1 << 14  # pixels of a side, or frames


def look_at(
    source: Source,
    most_frames: int | None = None,
    most_bytes: int | None = None,
    check: Callable[[Facts], None] = lambda facts: None,
) -> Facts:
    """Returns the facts about an image or clip after reading its frames, up to `most_frames`.

    Args:
        source: the image or clip.
        most_frames: the most frames to read.
        most_bytes: the most memory that reading a frame may take; None for READING_BYTES.
        check: is called with what the header says, before any frame is read.

    Raises:
        LtxError: the image or clip cannot be read, see `load_media`; or `check` raises it.
    """
    if (path := _prepared_file(source)) is not None:
        stored = _prepared_tensor(path)
        frames, height, width = stored.shape[2:]
        read = frames if most_frames is None else min(frames, most_frames)
        for _ in _planes(stored, read):
            pass
        return Facts(height, width, frames, seen=read, prepared=True)
    with opened(source, most_bytes) as pictures:
        check(pictures.facts)
        return seen(pictures, most_frames)


def _prepared_file(source: Source) -> Path | None:
    """Returns the path of a source that is a file of prepared media, or None for any other source."""
    if not isinstance(source, (str, Path)):
        return None
    path = file_of(source)
    with path.open("rb") as file:
        head = file.read(_HEADER_AT + 1)
    # A safetensors file begins with the length of its JSON header.
    is_tensors = head[_HEADER_AT:] == b"{" and int.from_bytes(head[:_HEADER_AT], "little") <= _LONGEST_HEADER
    return path if is_tensors else None


def prepared_media(source: Source, most_frames: int) -> Pixels | None:
    """Returns the media (1, 3, F, H, W) of a file of prepared media, cut to `most_frames`; None for other sources.

    Raises:
        LtxError: the file holds other tensors, or values outside [-1, 1].
    """
    path = _prepared_file(source)
    if path is None:
        return None
    stored = _prepared_tensor(path)
    frames, height, width = stored.shape[2:]
    media = np.empty((1, 3, min(frames, most_frames), height, width), np.float32)
    for channel, frame, plane in _planes(stored, media.shape[2]):
        media[0, channel, frame] = plane
    return media


def load_media(
    source: Source,
    height: int,
    width: int,
    *,
    most_frames: int,
    resize: bool,
    padding: Padding = NO_PADDING,
    crf: int = CRF,
    blur: bool = True,
    fit: str = CROP,
    most_bytes: int | None = None,
) -> Pixels:
    """Reads and prepares an image or clip as (1, 3, F, H, W) float32 in [-1, 1], with F at most `most_frames`.

    A .safetensors file holds prepared media as a tensor `media` of the same shape and range, which is only cut to
    `most_frames`. For the arguments see `levels_of`; `padding` is of mid-grey, in pixels on the left, right, top and
    bottom of frames, resized or not.

    Raises:
        LtxError: the file cannot be read as media, a frame is too small or of another size, or crf is not in 0..51.
    """
    prepared = prepared_media(source, most_frames)
    if prepared is not None:
        return prepared
    media = np.zeros((3, 0, 0, 0), np.float32)
    count = 0
    how: Any = {"resize": resize, "crf": crf, "blur": blur, "fit": fit, "most_bytes": most_bytes}
    for levels in levels_of(source, height, width, most_frames=most_frames, **how):
        for channel in range(3):
            plane = scaled(levels[..., channel], padding)
            if not media.size:
                media = np.zeros((3, most_frames, *plane.shape), np.float32)
            media[channel, count] = plane
        count += 1
    return media[None, :, :count]


def levels_of(
    source: Source,
    height: int,
    width: int,
    *,
    most_frames: int,
    resize: bool,
    crf: int = CRF,
    blur: bool = True,
    fit: str = CROP,
    most_bytes: int | None = None,
) -> Iterator[Levels]:
    """Yields the frames of an image or clip, blurred and compressed, one at a time.

    Args:
        source: a file of any format, or pictures in memory, see Source.
        height, width: size of the video in pixels, without padding.
        most_frames: the most frames to read.
        resize: whether to resize to `height` x `width`, as in video-to-video; otherwise frames keep their own size.
        crf: constant rate factor of the H.264 compression; 0 for no compression.
        blur: whether to blur by a Gaussian of standard deviation 1 over 3x3 pixels.
        fit: CROP cuts frames to the aspect ratio of the video; PAD scales them to fit into it and adds black.
        most_bytes: the most memory that reading a frame may take; None for READING_BYTES.

    Yields:
        (H, W, 3), uint8 with compression and float32 in 0..1 without; `scaled` makes pixels of it.

    Raises:
        LtxError: the source cannot be read as media, a frame is too small or of another size, or crf is not in 0..51.
    """
    _check(height, width, crf)
    name, size = label_of(source), None
    with opened(source, most_bytes) as pictures:
        for frame in itertools.islice(pictures.frames, most_frames):
            # All under one name, so that what was before, which may be large, is freed.
            levels: Any = frame.picture()
            levels = _fitted(levels, height, width, name, fit, resize=resize)
            fitted = levels.shape
            levels = _blurred(levels, blur, in_bytes=crf > 0)
            if crf:
                levels = _decoded(_encoded(levels := _as_yuv(levels), crf))
            if resize or fit == PAD:
                levels = _filled(levels, fitted)
            size = _same_size(levels, size, name)
            yield levels


def _same_size(levels: Levels, size: tuple[int, ...] | None, name: str) -> tuple[int, ...]:
    """Returns the shape of a frame; raises LtxError if those before it had another."""
    if levels.shape != (size or levels.shape):
        raise LtxError(f"the frames of {name} differ in size", "convert it to .mp4")
    return levels.shape


def scaled(plane: NDArray[Any], padding: Padding = NO_PADDING) -> Pixels:
    """Returns one channel of a frame of `levels_of`, (H, W), as float32 in [-1, 1] with mid-grey around it."""
    in_bytes = plane.dtype == np.uint8
    unit = np.arange(256, dtype=np.float32) / np.float32(255.0) if in_bytes else plane
    pixels: Pixels = unit * np.float32(255.0) / np.float32(127.5) - np.float32(1.0)
    if in_bytes:  # computed for the 256 levels that there are
        pixels = pixels[plane]
    if not any(padding):
        return pixels
    left, right, top, bottom = padding
    return np.pad(pixels, ((top, bottom), (left, right)))


def _check(height: int, width: int, crf: int) -> None:
    if not 0 <= crf <= LARGEST_CRF:
        raise LtxError(f"crf must be from 0 (no compression) to {LARGEST_CRF}; got {crf}", f"use {CRF}")
    if min(height, width) < _SMALLEST_SIDE:
        raise LtxError(f"images cannot be cropped to {width}x{height} pixels", "use 32x32 or more")


def _prepared_tensor(path: Path) -> StoredTensor:
    """Returns where prepared media (1, 3, F, H, W) are in their file."""
    from ltx_runtime.weights.checkpoint import open_safetensors  # noqa: PLC0415  (only for .safetensors files)

    names = names_in(path)  # which refuses a file with more bytes than its tensors have
    media = open_safetensors(path).tensors.get("media")
    if media is None:
        raise LtxError(f"{path} has no tensor media; it holds {listed(names)}", "check the file")
    if media.dtype not in _PREPARED_DTYPES or len(media.shape) != 5 or media.shape[:2] != (1, 3) or 0 in media.shape:
        raise LtxError(
            f"media in {path} are stored as {media.dtype} of shape {list(media.shape)}",
            "save it as float32 of (1, 3, frames, height, width)",
        )
    if max(media.shape) > _LARGEST_PREPARED:
        raise LtxError(f"media in {path} is of shape {list(media.shape)}", "make it smaller")
    return media


def _planes(media: StoredTensor, frames: int) -> Iterator[tuple[int, int, Pixels]]:
    """Yields channel, frame and pixels (H, W) of prepared media, for the first frames of each channel."""
    from ltx_runtime.weights.floats import FLOAT_DTYPES, widened  # noqa: PLC0415

    plane_bytes = media.length // (3 * media.shape[2])
    for channel, frame in itertools.product(range(3), range(frames)):
        begin = (channel * media.shape[2] + frame) * plane_bytes
        raw = media.read(begin, begin + plane_bytes)
        plane: Pixels = widened(raw, media.dtype) if media.dtype in FLOAT_DTYPES else raw.view("<f8").astype(np.float32)
        if not (largest := float(np.abs(plane).max())) <= 1 + 1e-6:
            raise LtxError(f"media in {media.file} has absolute values up to {largest:g}", "scale it to -1..1")
        yield channel, frame, plane.reshape(media.shape[3:])


def crop_of(own_height: int, own_width: int, height: int, width: int) -> tuple[int, int]:
    """Returns the size of the largest part of a picture that has the aspect ratio of `height` x `width`."""
    aspect_ratio = width / height
    if own_width / own_height > aspect_ratio:
        return own_height, int(own_height * aspect_ratio)
    return int(own_width / aspect_ratio), own_width


def fit_of(own_height: int, own_width: int, height: int, width: int) -> tuple[int, int]:
    """Returns the size of a picture that is scaled to fit into `height` x `width`, in whole pixels."""
    scale = min(height / own_height, width / own_width)
    return min(height, max(1, round(own_height * scale))), min(width, max(1, round(own_width * scale)))


def _fitted(picture: Picture, height: int, width: int, name: str, fit: str, *, resize: bool) -> Picture:
    """Returns a picture in the aspect ratio of `height` x `width`, see `levels_of`."""
    if fit == PAD:
        return _letterboxed(picture, height, width)
    part = _cropped(picture, height, width, name)
    return _resized(part, height, width) if resize else part


def _cropped(picture: Picture, height: int, width: int, name: str) -> Picture:
    """Returns the largest centered part with the aspect ratio of `height` x `width`."""
    own_height, own_width = picture.shape[:2]
    new_height, new_width = crop_of(own_height, own_width, height, width)
    if min(new_width, new_height) < _SMALLEST_SIDE:
        raise LtxError(
            f"{name} is {own_width}x{own_height} pixels, too small to crop to the aspect ratio of {width}x{height}",
            "give a larger picture",
        )
    x, y = (own_width - new_width) // 2, (own_height - new_height) // 2
    return picture[y : y + new_height, x : x + new_width]


def _letterboxed(picture: Picture, height: int, width: int) -> Picture:
    """Returns the whole picture, scaled to fit into `height` x `width` and centered on black."""
    new_height, new_width = fit_of(picture.shape[0], picture.shape[1], height, width)
    x, y = (width - new_width) // 2, (height - new_height) // 2
    whole = np.zeros((height, width, 3), np.uint8)
    whole[y : y + new_height, x : x + new_width] = _resized(picture, new_height, new_width)
    return whole


def _resized(picture: Picture, height: int, width: int) -> Picture:
    from PIL import Image  # noqa: PLC0415

    return np.asarray(Image.fromarray(np.ascontiguousarray(picture)).resize((width, height)))


def _filled(levels: Levels, shape: tuple[int, ...]) -> Levels:
    """Returns a frame of this shape: copies of the row and column before replace those that compression dropped."""
    dropped = np.subtract(shape, levels.shape)
    filled: Any = np.pad(levels, ((0, dropped[0]), (0, dropped[1]), (0, 0)), "edge") if dropped.any() else levels
    whole: Levels = filled
    return whole


def _blurred(picture: Picture, blur: bool, *, in_bytes: bool) -> Levels:
    """Returns a picture blurred by a Gaussian over 3x3 pixels, mirrored at the border, as (H, W, 3).

    Each product is added before it is rounded, in the order of the official convolution. Pixels are floored to bytes
    at the end: with other rounding, every fifth shade of a flat area would end one level off.

    Returns:
        float32 in 0..1, or with `in_bytes` 255 times that, floored to uint8.
    """
    blurred: Levels = np.empty(picture.shape, np.uint8 if in_bytes else np.float32)
    # Rows of the picture with the one above and the one below, mirrored at the border.
    around = np.pad(np.arange(len(picture)), 1, "reflect")
    for first in range(0, len(picture), _BAND_ROWS):  # in bands, so that the float64 values stay in the CPU cache
        rows = len(blurred[first : first + _BAND_ROWS])
        if blur:
            picture_band = np.pad(picture[around[first : first + rows + 2]], ((0, 0), (1, 1), (0, 0)), "reflect")
        else:
            picture_band = picture[first : first + rows]
        band = picture_band.astype(np.float32) / np.float32(255.0)
        if blur:
            band = _blurred_band(band)
        blurred[first : first + rows] = band * np.float32(255.0) if in_bytes else band
    return blurred


def _blurred_band(around: Pixels) -> Pixels:
    """Blurs rows of a picture, given with one more pixel on every side."""
    gaussian = np.array([math.exp(-0.5), 1.0, math.exp(-0.5)])
    gaussian = (gaussian / gaussian.sum()).astype(np.float32)
    kernel = np.outer(gaussian, gaussian)
    height, width = around.shape[0] - 2, around.shape[1] - 2
    band = np.zeros((height, width, 3), np.float32)
    wide = around.astype(np.float64)
    for i, j in itertools.product(range(3), repeat=2):
        band[:] = wide[i : i + height, j : j + width] * np.float64(kernel[i, j]) + band
    return band


def _as_yuv(picture: NDArray[np.uint8]) -> Any:
    """Returns (H, W, 3) as a frame of FFmpeg's in yuv420p, without an odd last row or column."""
    import av  # noqa: PLC0415

    height, width = (side // 2 * 2 for side in picture.shape[:2])
    frame: Any = av.VideoFrame(width, height, "rgb24")
    # Written into the frame, whose rows are longer: PyAV's own conversion takes a copy more.
    rows = np.frombuffer(frame.planes[0], np.uint8).reshape(height, -1)
    rows[:, : 3 * width] = picture[:height, :width].reshape(height, -1)
    return frame.reformat(format="yuv420p")


def _encoded(frame: Any, crf: int) -> io.BytesIO:
    """Compresses a frame with H.264 as a file of one frame.

    The frame is one slice, so that the pixels are the same on every machine: those of the official code on one
    processor. There, x264 divides a frame into as many slices as there are processors.
    """
    import av  # noqa: PLC0415

    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream: Any = container.add_stream("libx264", rate=1, options={"crf": str(crf), "preset": "veryfast"})
        stream.height, stream.width = frame.height, frame.width
        stream.codec_context.thread_count = 1
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    file.seek(0)
    return file


def _decoded(file: io.BytesIO) -> NDArray[np.uint8]:
    """Returns the frame of a file of `_encoded` as (H, W, 3)."""
    import av  # noqa: PLC0415

    with av.open(file, "r") as container:
        first: Any = next(container.decode(video=0))
    decoded: NDArray[np.uint8] = first.to_ndarray(format="rgb24")
    return decoded
