"""Reads images and clips as upright pictures, one after another and only as many as are requested.

READERS maps a suffix to its reader; a file with any other suffix is read as an image. This module knows nothing about
models or generated videos.
"""

from __future__ import annotations

import itertools
import struct
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ltx_runtime.errors import LtxError, explaining

if TYPE_CHECKING:
    from PIL import Image

# (height, width, 3) uint8 RGB
Picture = NDArray[np.uint8]
# A file, a PIL image, or an array of frames (F, H, W, 3) or of one picture (H, W, 3), uint8 or float in 0..1.
Source: TypeAlias = "Path | str | Image.Image | NDArray[np.generic]"
Reader = Callable[[Path], Iterator[Picture]]


def _image(path: Path) -> Iterator[Picture]:
    """Yields the picture of an image file, rotated as its EXIF orientation says.

    The official code does not rotate it, so a photo taken upright would be animated lying on its side.
    """
    from PIL import Image  # noqa: PLC0415

    with Image.open(path) as image:
        yield _rgb(_turned_upright(image), str(path))


def _turned_upright(picture: Image.Image) -> Image.Image:
    """Returns the picture rotated and mirrored as its EXIF orientation says."""
    from PIL import ImageOps  # noqa: PLC0415

    return ImageOps.exif_transpose(picture)


def _gif(path: Path) -> Iterator[Picture]:
    """Yields every frame of an animated GIF."""
    from PIL import Image  # noqa: PLC0415

    with Image.open(path) as image:
        for index in itertools.count():
            try:
                image.seek(index)
            except EOFError:
                return
            yield _rgb(image, str(path))


def _rgb(picture: Image.Image, name: str) -> Picture:
    if picture.mode[0] in "IF":  # Pillow would clip such values to white or black
        raise LtxError(f"{name} stores more than 8 bits per channel", "save it with 8 bits per channel")
    return np.asarray(picture.convert("RGB"))


def _clip(path: Path) -> Iterator[Picture]:
    """Yields every stored frame of a video, whatever its frame rate, rotated as the file says."""
    import av  # noqa: PLC0415

    matrix: bytes | None = None
    graph: Any = None
    # FFmpeg would read a relative name such as a:b.mp4 as a protocol and an address.
    with av.open(str(path.absolute()), metadata_errors="ignore") as container:
        if not container.streams.video:
            raise LtxError(f"{path} has no video stream", "give a clip with pictures")
        stream = container.streams.video[0]
        if stream.codec_context is None:  # unknown codec: decoding would crash the process
            raise ValueError
        stream.thread_type = "AUTO"
        for frame in _frames(container, stream):
            if graph is None:  # converts colours like the ffmpeg command, 10-bit ones too
                graph = av.filter.Graph()
                nodes = graph.add_buffer(template=stream), graph.add("format", "rgb24"), graph.add("buffersink")
                graph.link_nodes(*nodes).configure()
            stored_matrix: Any = frame.side_data.get("DISPLAYMATRIX")
            matrix = matrix if stored_matrix is None else bytes(stored_matrix)
            graph.push(frame)
            pixels = graph.pull().to_ndarray()
            yield pixels if matrix is None else _oriented(pixels, matrix)


def _frames(container: Any, stream: Any) -> Iterator[Any]:
    for packet in container.demux(stream):
        if packet.is_corrupt:  # decoders would invent the missing pixels
            raise EOFError
        yield from packet.decode()


def _oriented(pixels: Picture, matrix: bytes) -> Picture:
    """Rotates a picture by quarter turns and mirrors it, as a display matrix says."""
    right_to_x, right_to_y, _, down_to_x, down_to_y = struct.unpack("=5i", matrix[:20])
    if abs(right_to_x) < abs(right_to_y):
        pixels, right_to_x, down_to_y = pixels.transpose(1, 0, 2), down_to_x, right_to_y
    return pixels[:: -1 if down_to_y < 0 else 1, :: -1 if right_to_x < 0 else 1]


_CHANNELS = 3

READERS: dict[str, Reader] = {
    ".mp4": _clip,
    ".avi": _clip,
    ".mov": _clip,
    ".mkv": _clip,
    ".webm": _clip,
    ".gif": _gif,
}


def label_of(source: Source) -> str:
    """Returns the name of an image or clip in messages: its path, or the type of the object."""
    return str(source) if isinstance(source, (str, Path)) else f"the given {type(source).__name__}"


def pictures_of(source: Source) -> Iterator[Picture]:
    """Yields the frames of an image or clip, (height, width, 3) uint8 RGB, lazily and whatever its frame rate.

    Raises:
        LtxError: the file does not exist, is damaged in the part that is read, has another format than its suffix
            says or has no pictures; or an array has another shape, dtype or range.
    """
    if isinstance(source, (str, Path)):
        yield from _pictures_in(Path(source))
    elif isinstance(source, np.ndarray):
        yield from _frames_of_array(source)
    else:
        yield _rgb(_turned_upright(source), label_of(source))


def _frames_of_array(array: NDArray[Any]) -> Picture:
    """Returns the frames of an array as (F, H, W, 3) uint8; floats are scaled from 0..1 and rounded."""
    frames = array[None] if array.ndim == 3 else array
    if frames.ndim != 4 or frames.shape[-1] != _CHANNELS or 0 in frames.shape:
        raise LtxError(f"an array of pictures must be (F, H, W, 3) or (H, W, 3); got {array.shape}", "move its axes")
    if frames.dtype == np.uint8:
        return frames
    if not np.issubdtype(frames.dtype, np.floating):
        raise LtxError(f"an array of pictures must be uint8, or float from 0 to 1; got {array.dtype}", "convert it")
    lowest, highest = float(frames.min()), float(frames.max())
    if not 0 <= lowest <= highest <= 1:
        raise LtxError(f"an array of float pictures must be from 0 to 1; got {lowest:g} to {highest:g}", "scale it")
    return np.round(frames * 255).astype(np.uint8)


def _pictures_in(path: Path) -> Iterator[Picture]:
    with explaining(f"read {path}"), path.open("rb"):
        pass
    reader = READERS.get(path.suffix.lower(), _image)
    pictures = reader(path)
    for index in itertools.count():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of large images and odd tags; if they matter, an error follows
                picture = next(pictures, None)
        except (LtxError, MemoryError, ImportError):
            raise
        except Exception as error:  # decoders raise nearly any exception for a damaged file
            kind, advice = "a clip", "convert it to .mp4"
            if reader is _image:
                kind, advice = "an image", "save it as PNG or JPEG"
            raise LtxError(f"{path} is damaged or not {kind} of a known format", advice) from error
        if picture is None and not index:
            raise LtxError(f"{path} has no frames that can be read", "give another clip")
        if picture is None:
            return
        yield picture
