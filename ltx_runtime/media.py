"""Images and clips -> what the VAE encoder is given, exactly as the official command line prepares them: cut to the
video's shape, blurred, every frame compressed by H.264 as the model's training data was, scaled to [-1, 1], padded.

READERS is keyed by suffix; what is not in it is an image. Knows nothing of models: sizes and padding are told.
"""

from __future__ import annotations

import io
import itertools
import math
import struct
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ltx_runtime.errors import LtxError, explaining

if TYPE_CHECKING:
    from PIL import Image

# Pillow and FFmpeg are imported where a file is read: a run without images and clips needs neither.
Pixels = NDArray[np.float32]
Reader = Callable[[Path], Iterator["Image.Image"]]

CRF = 29
PREPARED = ".safetensors"
_LARGEST_CRF = 51
_SMALLEST_SIDE = 2  # the blur mirrors pixels at the border, and H.264's colours are stored for 2x2 pixels
_BAND_ROWS = 32


def _image(path: Path) -> Iterator[Image.Image]:
    """One picture, turned as its EXIF orientation says.

    The official code does not turn it, and a photo taken upright would be animated lying on its side.
    """
    from PIL import Image, ImageOps  # noqa: PLC0415

    with Image.open(path) as opened:
        yield _rgb(ImageOps.exif_transpose(opened), path)


def _gif(path: Path) -> Iterator[Image.Image]:
    """Every frame of an animation."""
    from PIL import Image  # noqa: PLC0415

    with Image.open(path) as opened:
        for index in itertools.count():
            try:
                opened.seek(index)
            except EOFError:
                return
            yield _rgb(opened, path)


def _rgb(picture: Image.Image, path: Path) -> Image.Image:
    if picture.mode[0] in "IF":  # Pillow would make them white or black
        raise LtxError(f"{path} stores grey in more than 8 bits - save it with 8 bits")
    return picture.convert("RGB")


def _clip(path: Path) -> Iterator[Image.Image]:
    """Every frame of a video as it is stored, whatever the frame rate, turned as the file says."""
    import av  # noqa: PLC0415
    from PIL import Image  # noqa: PLC0415

    matrix: bytes | None = None
    graph: Any = None
    # A relative name such as a:b.mp4 would be taken for a protocol.
    with av.open(str(path.absolute()), metadata_errors="ignore") as container:
        if not container.streams.video:
            raise LtxError(f"{path} has no pictures, only sound - give a clip with pictures")
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        for frame in container.decode(stream):
            if graph is None:  # colours as the ffmpeg command makes them, of 10 bits too
                graph = av.filter.Graph()
                nodes = graph.add_buffer(template=stream), graph.add("format", "rgb24"), graph.add("buffersink")
                graph.link_nodes(*nodes).configure()
            stored: Any = frame.side_data.get("DISPLAYMATRIX")
            matrix = matrix if stored is None else bytes(stored)
            graph.push(frame)
            pixels = graph.pull().to_ndarray()
            yield Image.fromarray(pixels if matrix is None else _turned(pixels, matrix))


def _turned(pixels: NDArray[np.uint8], matrix: bytes) -> NDArray[np.uint8]:
    """Turns and mirrors (H, W, 3) as a display matrix says, by quarter turns."""
    right_to_x, right_to_y, _, down_to_x, down_to_y = struct.unpack("=5i", matrix[:20])
    if abs(right_to_x) < abs(right_to_y):
        pixels, right_to_x, down_to_y = pixels.transpose(1, 0, 2), down_to_x, right_to_y
    turned = pixels[:: -1 if down_to_y < 0 else 1, :: -1 if right_to_x < 0 else 1]
    return np.ascontiguousarray(turned)


READERS: dict[str, Reader] = {
    ".mp4": _clip,
    ".avi": _clip,
    ".mov": _clip,
    ".mkv": _clip,
    ".webm": _clip,
    ".gif": _gif,
}


def count_frames(path: Path, most_frames: int | None = None) -> int:
    """How many frames an image or clip has, which are read to be sure; clips are not read beyond `most_frames`.

    Raises:
        LtxError: see load_media.
    """
    if path.suffix.lower() == PREPARED:
        frames: int = _prepared(path).shape[2]
        return frames if most_frames is None else min(frames, most_frames)
    return sum(1 for _ in itertools.islice(_pictures(path), most_frames))


def load_media(
    path: Path,
    height: int,
    width: int,
    *,
    most_frames: int,
    resize: bool,
    padding: tuple[int, int, int, int] = (0, 0, 0, 0),
    crf: int = CRF,
    blur: bool = True,
) -> NDArray[np.float32]:
    """An image or clip, prepared: (1, 3, F, H, W) float32 in [-1, 1], F at most `most_frames`.

    Frames are cut from the middle to the shape of `height` x `width`. A .safetensors file holds an item that is
    prepared already, as `media` of that form; only its frames are counted.

    Args:
        path: an image, a clip with a suffix of READERS, or a .safetensors file.
        height: of the video, without padding.
        width: of the video, without padding.
        most_frames: clips are not read beyond it.
        resize: to `height` x `width`, as in video-to-video; otherwise frames keep their own size.
        padding: how many pixels of mid-grey to add on the left, right, top and bottom of frames of either size.
        crf: H.264's, for the compression; 0 leaves it out.
        blur: by a Gaussian of deviation 1 over 3x3 pixels.

    Raises:
        LtxError: no such file, damaged, not what its suffix says, too small, or crf is not in 0..51.
    """
    if not 0 <= crf <= _LARGEST_CRF:
        raise LtxError(f"crf must be from 0 (no compression) to {_LARGEST_CRF}; got {crf} - use {CRF}")
    if min(height, width) < _SMALLEST_SIDE:
        raise LtxError(f"images cannot be cut to a video of {width}x{height} pixels - use 32x32 or more")
    if path.suffix.lower() == PREPARED:
        return _prepared(path)[:, :, :most_frames]
    left, right, top, bottom = padding
    media = np.zeros((3, 0, 0, 0), np.float32)
    count = 0
    for picture in itertools.islice(_pictures(path), most_frames):
        pixels = _compressed(_softened(_cut(picture, height, width, resize, path), blur), crf)
        if resize:  # an odd size lost a row or column
            pixels = np.pad(pixels, ((0, height - len(pixels)), (0, width - pixels.shape[1]), (0, 0)), "edge")
        rows, columns = pixels.shape[:2]
        size = (top + rows + bottom, left + columns + right)
        if not count:  # memory is taken as frames arrive
            media = np.zeros((3, most_frames, *size), np.float32)
        if media.shape[2:] != size:
            raise LtxError(f"the frames of {path} change their size - convert it to .mp4")
        scaled = pixels * np.float32(255.0) / np.float32(127.5) - np.float32(1.0)
        media[:, count, top : top + rows, left : left + columns] = scaled.transpose(2, 0, 1)
        count += 1
    return media[None, :, :count]


def _prepared(path: Path) -> NDArray[np.float32]:
    from ltx_runtime.tensors import read_tensors  # noqa: PLC0415  (most media are no tensors)

    media: NDArray[np.float32] = read_tensors(path, ["media"])["media"]
    if media.dtype != np.float32 or media.ndim != 5 or media.shape[:2] != (1, 3) or 0 in media.shape:
        raise LtxError(
            f"media in {path} is {media.dtype} of shape {list(media.shape)} - save it as float32 of (1, 3, frames, "
            "height, width)"
        )
    if (largest := float(np.abs(media).max())) > 1 + 1e-6:
        raise LtxError(f"media in {path} reaches {largest:g} - scale it to -1..1")
    return media


def _pictures(path: Path) -> Iterator[Image.Image]:
    """The frames of a file, one after another.

    Raises:
        LtxError: it cannot be read as far as is asked for, or has no frames.
    """
    with explaining(f"read {path}"), path.open("rb"):
        pass
    reader = READERS.get(path.suffix.lower(), _image)
    pictures = reader(path)
    for index in itertools.count():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of large images and of odd tags: an error follows if it matters
                picture = next(pictures, None)
        except (LtxError, MemoryError):
            raise
        except Exception as error:  # decoders raise nearly anything for what is damaged
            kind, advice = ("image", "save it as PNG or JPEG") if reader is _image else ("clip", "convert it to .mp4")
            raise LtxError(f"{path} is damaged or no {kind} of a known format - {advice}") from error
        if picture is None and not index:
            raise LtxError(f"{path} has no frames - give another clip")
        if picture is None:
            return
        yield picture


def _cut(picture: Image.Image, height: int, width: int, resize: bool, path: Path) -> Image.Image:
    """The largest middle part of the same shape as `height` x `width`, resized to that if wanted."""
    own_width, own_height = picture.size
    shape = width / height
    new_width, new_height = own_width, own_height
    if own_width / own_height > shape:
        new_width = int(own_height * shape)
    else:
        new_height = int(own_width / shape)
    if min(new_width, new_height) < _SMALLEST_SIDE:
        raise LtxError(
            f"{path} has {own_width}x{own_height} pixels, too few to cut the shape of {width}x{height} from - "
            "give a larger picture"
        )
    x, y = (own_width - new_width) // 2, (own_height - new_height) // 2
    part = picture.crop((x, y, x + new_width, y + new_height))
    return part.resize((width, height)) if resize else part


def _softened(picture: Image.Image, blur: bool) -> Pixels:
    """A picture as (H, W, 3) float32 in 0..1, blurred by a Gaussian over 3x3 pixels, mirrored at the border.

    Each product is added without being rounded first, in the order of the official convolution. Pixels are floored
    to bytes later: with other rounding every fifth shade of a flat area would end one level off.
    """
    pixels: Pixels = np.asarray(picture, np.float32) / np.float32(255.0)
    if not blur:
        return pixels
    side = np.array([math.exp(-0.5), 1.0, math.exp(-0.5)])
    side = (side / side.sum()).astype(np.float32)
    kernel = np.outer(side, side)
    mirrored = np.pad(pixels, ((1, 1), (1, 1), (0, 0)), "reflect")
    blurred = np.zeros_like(pixels)
    height, width = pixels.shape[:2]
    for first in range(0, height, _BAND_ROWS):  # so that the doubles stay in the cache
        band = blurred[first : first + _BAND_ROWS]
        around = mirrored[first : first + len(band) + 2].astype(np.float64)
        for i, j in itertools.product(range(3), repeat=2):
            band[:] = around[i : i + len(band), j : j + width] * np.float64(kernel[i, j]) + band
    return blurred


def _compressed(pixels: Pixels, crf: int) -> Pixels:
    """(H, W, 3) float32 in 0..1 through one frame of H.264 and back; an odd last row or column is lost.

    x264 cuts a frame into as many slices as there are processors, so the result depends on the machine, as that of
    the official code does.
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
