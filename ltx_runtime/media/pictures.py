"""Image and clip files -> pictures, one after another and no further than is asked for, turned as they are meant.

READERS is keyed by suffix; what is not in it is an image. Knows nothing of models, and of videos to be made.
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
    """One picture, turned as its EXIF orientation says.

    The official code does not turn it, and a photo taken upright would be animated lying on its side.
    """
    from PIL import Image  # noqa: PLC0415

    with Image.open(path) as opened:
        yield _rgb(_turned_upright(opened), str(path))


def _turned_upright(picture: Image.Image) -> Image.Image:
    """The picture turned as its EXIF orientation says."""
    from PIL import ImageOps  # noqa: PLC0415

    return ImageOps.exif_transpose(picture)


def _gif(path: Path) -> Iterator[Picture]:
    """Every frame of an animation."""
    from PIL import Image  # noqa: PLC0415

    with Image.open(path) as opened:
        for index in itertools.count():
            try:
                opened.seek(index)
            except EOFError:
                return
            yield _rgb(opened, str(path))


def _rgb(picture: Image.Image, name: str) -> Picture:
    if picture.mode[0] in "IF":  # Pillow would make them white or black
        raise LtxError(f"{name} stores grey in more than 8 bits", "save it with 8 bits")
    return np.asarray(picture.convert("RGB"))


def _clip(path: Path) -> Iterator[Picture]:
    """Every frame of a video as it is stored, whatever the frame rate, turned as the file says."""
    import av  # noqa: PLC0415

    matrix: bytes | None = None
    graph: Any = None
    # A relative name such as a:b.mp4 would be taken for a protocol.
    with av.open(str(path.absolute()), metadata_errors="ignore") as container:
        if not container.streams.video:
            raise LtxError(f"{path} has no pictures, only sound", "give a clip with pictures")
        stream = container.streams.video[0]
        if stream.codec_context is None:  # the codec is unknown, and decoding would end the process
            raise ValueError
        stream.thread_type = "AUTO"
        for frame in _frames(container, stream):
            if graph is None:  # colours as the ffmpeg command makes them, of 10 bits too
                graph = av.filter.Graph()
                nodes = graph.add_buffer(template=stream), graph.add("format", "rgb24"), graph.add("buffersink")
                graph.link_nodes(*nodes).configure()
            stored: Any = frame.side_data.get("DISPLAYMATRIX")
            matrix = matrix if stored is None else bytes(stored)
            graph.push(frame)
            pixels = graph.pull().to_ndarray()
            yield pixels if matrix is None else _turned(pixels, matrix)


def _frames(container: Any, stream: Any) -> Iterator[Any]:
    for packet in container.demux(stream):
        if packet.is_corrupt:  # decoders would make something up for what is missing
            raise EOFError
        yield from packet.decode()


def _turned(pixels: Picture, matrix: bytes) -> Picture:
    """Turns and mirrors a picture as a display matrix says, by quarter turns."""
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
    """What messages call an image or clip: its path, or what kind of object it is."""
    return str(source) if isinstance(source, (str, Path)) else f"the {type(source).__name__} that was given"


def pictures_of(source: Source) -> Iterator[Picture]:
    """The frames of an image or clip, (height, width, 3) uint8 RGB, whatever its frame rate, read as asked for.

    Raises:
        LtxError: no such file, damaged as far as it is read, not what its suffix says, or without pictures; or an
            array of another shape, type or range.
    """
    if isinstance(source, (str, Path)):
        yield from _pictures_in(Path(source))
    elif isinstance(source, np.ndarray):
        yield from _frames_of_array(source)
    else:
        yield _rgb(_turned_upright(source), label_of(source))


def _frames_of_array(array: NDArray[Any]) -> Picture:
    """The frames of an array as (F, H, W, 3) uint8; floats are rounded."""
    frames = array[None] if array.ndim == 3 else array
    if frames.ndim != 4 or frames.shape[-1] != _CHANNELS or 0 in frames.shape:
        raise LtxError(f"an array of pictures must be (F, H, W, 3) or (H, W, 3); got {array.shape}", "move its axes")
    if frames.dtype == np.uint8:
        return frames
    if not np.issubdtype(frames.dtype, np.floating):
        raise LtxError(f"an array of pictures must be uint8, or float from 0 to 1; got {array.dtype}", "convert it")
    least, most = float(frames.min()), float(frames.max())
    if not 0 <= least <= most <= 1:
        raise LtxError(f"an array of float pictures must be from 0 to 1; got {least:g} to {most:g}", "scale it")
    return np.round(frames * 255).astype(np.uint8)


def _pictures_in(path: Path) -> Iterator[Picture]:
    with explaining(f"read {path}"), path.open("rb"):
        pass
    reader = READERS.get(path.suffix.lower(), _image)
    pictures = reader(path)
    for index in itertools.count():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of large images and of odd tags: an error follows if it matters
                picture = next(pictures, None)
        except (LtxError, MemoryError, ImportError):
            raise
        except Exception as error:  # decoders raise nearly anything for what is damaged
            kind, advice = ("image", "save it as PNG or JPEG") if reader is _image else ("clip", "convert it to .mp4")
            raise LtxError(f"{path} is damaged or no {kind} of a known format", advice) from error
        if picture is None and not index:
            raise LtxError(f"{path} has no frames that can be read", "give another clip")
        if picture is None:
            return
        yield picture
