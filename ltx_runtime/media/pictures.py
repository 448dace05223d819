"""Opens images and clips by what they contain, not by their names: files, PIL images and arrays alike.

Frames are upright, have square pixels, and are read one after another and only as many as are requested. This module
knows nothing about models or generated videos.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ltx_runtime.errors import LtxError, explaining
from ltx_runtime.files import amount
from ltx_runtime.media.clips import open_clip
from ltx_runtime.media.facts import Facts, Frame, Opened, Picture
from ltx_runtime.media.images import open_image, open_weakly_marked, opened_image, over_black

if TYPE_CHECKING:
    from PIL import Image

# A file, a PIL image, or an array of frames (F, H, W, 3) or of one picture (H, W, 3), uint8 or float in 0..1. A fourth
# channel is opacity.
Source: TypeAlias = "Path | str | Image.Image | NDArray[np.generic]"

# Memory that reading a picture may take if nobody says otherwise; 71 megapixels of JPEG or PNG take as much.
READING_BYTES = 1_000_000_000
_ARRAY_BYTES = 14  # for each pixel of a picture in memory, to blur and compress it
_RGB, _RGBA = 3, 4
_LONGEST_URL = 200  # characters that a message shows
# A drive of Windows has one letter.
_URL = re.compile(r"data:|[a-z][a-z0-9+.-]+:/", re.IGNORECASE)
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1", b"avif", b"avis")


def label_of(source: Source) -> str:
    """Returns the name of an image or clip in messages: its path, or the type of the object."""
    return str(source) if isinstance(source, (str, Path)) else f"the given {type(source).__name__}"


def is_url(name: str) -> bool:
    """Returns whether a name is a URL rather than a path."""
    return _URL.match(name) is not None


def file_of(source: Path | str) -> Path:
    """Returns the path of a file that is there to be read; `~` at its start is the home folder.

    Raises:
        LtxError: there is no such file, it cannot be read, or a URL was given.
    """
    path = Path(source)
    there = _is_there(path)
    if not there and str(path).startswith("~"):
        with suppress(RuntimeError):  # a user without a home
            path = path.expanduser()
        there = _is_there(path)
    if not there and is_url(str(source)):
        url = re.sub(":/+", "://", str(source), count=1)  # Path has made one slash of two
        shown = url if len(url) <= _LONGEST_URL else f"{url[:_LONGEST_URL]}..."
        raise LtxError(f"{shown} is a URL", "give a file; download it first")
    if there and not path.is_file() and not path.is_dir():  # a pipe could be read only once, and might never end
        raise LtxError(f"{path} is a pipe or a device", "give a file")
    with explaining(f"read {path}"), path.open("rb"):
        pass
    return path


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # such as a name that is too long
        return False


@contextmanager
def opened(source: Source, most_bytes: int | None = None) -> Iterator[Opened]:
    """Yields an image or clip of which nothing but the header was read.

    Args:
        source: the image or clip.
        most_bytes: the most memory that reading a frame may take; None for READING_BYTES.

    Raises:
        LtxError: the file does not exist, is no image or clip, is damaged in the part that is read or has no pictures;
            its frames are too large; or an array has another shape, dtype or range. Reading frames raises it, too.
    """
    name, most_bytes = label_of(source), most_bytes or READING_BYTES
    with ExitStack() as stack:
        with _explained(name):
            if isinstance(source, np.ndarray):
                found = _opened_array(source)
            elif isinstance(source, (str, Path)):
                found = _opened_file(file_of(source), stack, most_bytes)
            else:
                found = opened_image(source, name, most_bytes)
        _check_size(found.facts, name, most_bytes)
        yield replace(found, frames=_checked(found.frames, name))


def _check_size(facts: Facts, name: str, most_bytes: int) -> None:
    """Raises LtxError if reading a frame takes too much memory, before it is read."""
    if facts.read_bytes > most_bytes:
        height, width = facts.stored_size or (facts.height, facts.width)
        raise LtxError(
            f"{name} is {width}x{height} pixels and needs about {amount(facts.read_bytes)} of memory, more than the "
            f"{amount(most_bytes)} that reading a picture may take",
            "make it smaller, or give a larger --memory",
        )


def _opened_file(path: Path, stack: ExitStack, most_bytes: int) -> Opened:
    image = stack.enter_context(open_image(path, most_bytes))
    if image is not None:
        return image
    with path.open("rb") as file:
        head = file.read(12)
    if head[4:8] == b"ftyp" and head[8:12] in _HEIF_BRANDS:  # FFmpeg would show one of the tiles of a photo
        raise LtxError(
            f"{path} is damaged, or a HEIF or AVIF image that this Pillow cannot read", "save it as PNG or JPEG"
        )
    try:
        return stack.enter_context(open_clip(path, most_bytes))
    except (OSError, ValueError):
        image = stack.enter_context(open_weakly_marked(path, most_bytes))
        if image is None:
            raise
        return image


@contextmanager
def _explained(name: str) -> Iterator[None]:
    """Turns whatever decoders raise for a damaged file, which is nearly any exception, into one sentence."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd tags; if they matter, an error follows
            yield
    except (LtxError, ImportError):
        raise
    except Exception as error:
        if type(error) is MemoryError:  # FFmpeg's says that it refuses to allocate as much as a damaged file claims
            raise
        raise LtxError(
            f"{name} is damaged or not an image or clip of a known format", "convert it to .png or .mp4"
        ) from error


def _checked(frames: Iterator[Frame], name: str) -> Iterator[Frame]:
    """Yields frames that explain what is wrong with them, and at least one."""
    count = 0
    while True:
        with _explained(name):
            frame = next(frames, None)
        if frame is None:
            break
        convert, look = partial(_called, frame.picture, name), partial(_called, frame.transparent, name)
        yield replace(frame, picture=convert, transparent=look)
        count += 1
    if not count:
        raise LtxError(f"{name} has no frames that can be read", "give another clip")


def _called(read: Callable[[], Any], name: str) -> Any:
    with _explained(name):
        return read()


def _opened_array(array: NDArray[Any]) -> Opened:
    """Returns the frames of an array; floats are scaled from 0..1 and rounded."""
    frames = array[None] if array.ndim == 3 else array
    if frames.ndim != 4 or frames.shape[-1] not in (_RGB, _RGBA) or 0 in frames.shape:
        raise LtxError(
            f"an array of pictures must be (F, H, W, 3) or (H, W, 3); got {array.shape}",
            "move its axes; a fourth channel may be opacity",
        )
    if frames.dtype != np.uint8:
        if not np.issubdtype(frames.dtype, np.floating):
            raise LtxError(f"an array of pictures must be uint8, or float from 0 to 1; got {array.dtype}", "convert it")
        lowest, highest = float(frames.min()), float(frames.max())
        if not 0 <= lowest <= highest <= 1:
            raise LtxError(f"an array of float pictures must be from 0 to 1; got {lowest:g} to {highest:g}", "scale it")
    height, width = frames.shape[1:3]
    facts = Facts(height, width, len(frames), read_bytes=height * width * _ARRAY_BYTES)
    return Opened(
        facts,
        (Frame(height, width, partial(_rgb, one), transparent=partial(_transparent, one)) for one in frames),
    )


def _rgb(frame: NDArray[Any]) -> Picture:
    from PIL import Image  # noqa: PLC0415

    if frame.dtype != np.uint8:
        frame = np.round(frame * 255).astype(np.uint8)
    if frame.shape[-1] == _RGB:
        return frame
    return np.asarray(over_black(Image.fromarray(np.ascontiguousarray(frame))))


def _transparent(frame: NDArray[Any]) -> bool:
    opaque = 255 if frame.dtype == np.uint8 else 1
    return frame.shape[-1] == _RGBA and bool((frame[..., -1] < opaque).any())
