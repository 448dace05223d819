"""Reads images and animated images with Pillow: GIF, PNG, WebP and AVIF files of several frames are clips.

Frames come upright as EXIF says, in the colours of sRGB, and with black where they are transparent.
"""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ltx_runtime.errors import LtxError
from ltx_runtime.media.facts import Facts, Frame, Opened, Picture

if TYPE_CHECKING:
    from PIL import Image

# Formats that Pillow recognizes by several bytes. What it would take for others may be a clip.
_FORMATS = (
    *("PNG", "JPEG", "MPO", "WEBP", "AVIF", "HEIF", "GIF", "TIFF", "BMP", "DIB", "JPEG2000", "PPM", "ICO", "CUR"),
    *("ICNS", "PSD", "QOI", "DDS", "SGI", "JXL"),
)
# Formats with weak marks, which are tried when nothing else can read a file.
_WEAK_FORMATS = ("TGA", "PCX", "DCX", "SUN", "XBM", "XPM", "MSP", "IM", "FITS")
# Pillow unpacks with these whatever a file holds, at hundreds of bytes for each pixel.
_REFUSED_DECODERS = ("fits_gzip",)
# In other formats further pictures are pages, layers, sizes, or a second view of the same moment.
_ANIMATED = ("GIF", "PNG", "WEBP", "AVIF")
# Memory for each pixel while a picture is decoded, converted, blurred and compressed. Measured: 9 to 12 for JPEG and
# PNG; some decoders keep copies of their own, those of animations whole frames.
_USUAL_BYTES, _ANIMATED_BYTES = 14, 32
_PIXEL_BYTES = dict.fromkeys(("WEBP", "AVIF", "HEIF", "JXL", "JPEG2000", "ICNS"), 20)
_ORIENTATION, _UPRIGHT = 0x0112, 1
# How an array (H, W, 3) is turned upright, by EXIF orientation. In the latter half, rows and columns are exchanged.
_TURNED: dict[int, Callable[[Picture], Picture]] = {
    _UPRIGHT: lambda pixels: pixels,
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.transpose(1, 0, 2),
    6: lambda pixels: pixels[::-1].transpose(1, 0, 2),
    7: lambda pixels: pixels[::-1, ::-1].transpose(1, 0, 2),
    8: lambda pixels: pixels[:, ::-1].transpose(1, 0, 2),
}
_LYING = (5, 6, 7, 8)
_BAND_ROWS = 64
_MOST_BITS = 8
_SHADES = 17  # of each channel, to tell whether a profile differs from sRGB
_UNSEEN = 2  # difference of levels between sRGB and a profile that says the same in other numbers

_limit = threading.Lock()


@contextmanager
def open_image(path: Path, most_bytes: int) -> Iterator[Opened | None]:
    """Yields an image of a format with clear marks, or None if the file is none.

    Args:
        path: the file.
        most_bytes: the most memory that reading a frame may take. An image that claims more is yielded, and only
            refuses to read its frames.
    """
    with _open(path, _FORMATS, most_bytes) as opened:
        yield opened


@contextmanager
def open_weakly_marked(path: Path, most_bytes: int) -> Iterator[Opened | None]:
    """Yields an image of one of the formats that are tried last, or None if the file is none; see `open_image`."""
    with _open(path, _WEAK_FORMATS, most_bytes) as opened:
        yield opened


@contextmanager
def _open(path: Path, formats: tuple[str, ...], most_bytes: int) -> Iterator[Opened | None]:
    from PIL import Image, UnidentifiedImageError  # noqa: PLC0415

    Image.init()
    with path.open("rb") as file:
        try:
            with _most_pixels(None):
                image = Image.open(file, formats=[name for name in formats if name in Image.OPEN])
        except UnidentifiedImageError:
            yield None
            return
        opened = opened_image(image, str(path), most_bytes)
        del image  # whose pixels are freed as soon as they have been converted
        yield opened


@contextmanager
def _most_pixels(pixels: int | None) -> Iterator[None]:
    """Makes Pillow refuse to decode more pixels than this, and replaces its own limit.

    Headers are read without a limit, so that the refusal can say what they claim. Frames may be larger than that: those
    of a GIF, and the pictures in an icon.
    """
    from PIL import Image  # noqa: PLC0415

    with _limit:
        # Pillow warns above its limit, and refuses above twice as much.
        usual, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None if pixels is None else pixels // 2
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = usual


def opened_image(image: Image.Image, name: str, most_bytes: int) -> Opened:
    """Returns the frames of an image that Pillow has opened, and what its header says; see `open_image`.

    Raises:
        LtxError: it stores more than 8 bits of grey, or is a compressed FITS; the message begins with `name`.
    """
    if image.mode[0] in "IF":  # Pillow would clip such values to white or black
        raise LtxError(f"{name} stores more than 8 bits per channel", "save it with 8 bits per channel")
    if any(tile[0] in _REFUSED_DECODERS for tile in getattr(image, "tile", None) or []):
        raise LtxError(f"{name} is a compressed FITS image, which is not read", "save it as PNG")
    first, count = _first_frame(image), _frames_in(image)
    pixel_bytes = _PIXEL_BYTES.get(image.format or "", _USUAL_BYTES) if count == 1 else _ANIMATED_BYTES
    most_pixels = most_bytes // pixel_bytes
    # Not turned upright yet, since Pillow decodes a PNG to know its orientation.
    facts = Facts(
        image.height,
        image.width,
        count if count is None else count - first,
        bits=_bits(image),
        profile=_profile(image),
        read_bytes=image.height * image.width * pixel_bytes,
    )
    frames = _still(image, most_pixels) if count == 1 else _frames(image, first, count, most_pixels)
    return Opened(facts, frames)


def _frames_in(image: Image.Image) -> int | None:
    """Returns the number of frames of an animated image, 1 for any other image; None if the file is damaged."""
    if image.format not in _ANIMATED:
        return 1
    with suppress(Exception), _most_pixels(None):  # reading the frames will say what is wrong
        return int(getattr(image, "n_frames", 1))
    return None


def _first_frame(image: Image.Image) -> int:
    """Returns 1 for an animated PNG whose first picture is only for programs that do not animate, otherwise 0."""
    return int(image.format == "PNG" and bool(image.info.get("default_image")) and getattr(image, "n_frames", 1) > 1)


def _still(image: Image.Image, most_pixels: int) -> Iterator[Frame]:
    """Yields the only frame of an image; its pixels as Pillow has them are freed with the call of `picture`."""
    kept = [image]
    del image
    with _most_pixels(most_pixels):
        orientation = _orientation(kept[0])
        kept[0].load()
    height, width = _upright_size(kept[0], orientation)
    yield Frame(height, width, lambda: _rgb(kept.pop(), orientation), 0.0, transparent=lambda: _is_transparent(kept[0]))


def _frames(image: Image.Image, first: int, count: int | None, most_pixels: int) -> Iterator[Frame]:
    begins_s: float | None = 0.0
    index = first
    if count and image.format == "PNG" and image.tell():  # Pillow rewinds an animated PNG rightly from its end alone
        image.seek(count - 1)
        image.load()
    while count is None or index < count:
        try:
            with _most_pixels(most_pixels):
                image.seek(index)
                orientation = _orientation(image)
                image.load()
        except EOFError:
            return
        height, width = _upright_size(image, orientation)
        picture, transparent = partial(_rgb, image, orientation), partial(_is_transparent, image)
        yield Frame(height, width, picture, begins_s, transparent=transparent)
        lasts_ms = image.info.get("duration")
        begins_s = begins_s + lasts_ms / 1000 if begins_s is not None and lasts_ms else None
        index += 1


def _orientation(image: Image.Image) -> int:
    """Returns the EXIF orientation of an image, from 1 (upright) to 8.

    The official code does not turn photos, so one taken upright would be animated lying on its side.
    """
    orientation = image.getexif().get(_ORIENTATION, _UPRIGHT)
    return orientation if orientation in _TURNED else _UPRIGHT


def _upright_size(image: Image.Image, orientation: int) -> tuple[int, int]:
    """Returns height and width of an image after turning it."""
    return (image.width, image.height) if orientation in _LYING else (image.height, image.width)


def _rgb(image: Image.Image, orientation: int) -> Picture:
    """Returns the pixels in sRGB, over black where they are transparent, and upright."""
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    for top, band in _bands(image):
        pixels[top : top + band.height] = np.asarray(_band_in_srgb(band))
    return _TURNED[orientation](pixels)


def _bands(image: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    """Yields an image in bands of rows, each with its first row, so that converting it takes little memory."""
    for top in range(0, image.height, _BAND_ROWS):
        yield top, image.crop((0, top, image.width, min(top + _BAND_ROWS, image.height)))


def _band_in_srgb(image: Image.Image) -> Image.Image:
    image = over_black(image)
    if image.mode == "P":
        image = image.convert("RGB")
    in_srgb = _to_srgb(image)
    if in_srgb is not None:
        image = in_srgb.apply(image)
    return image if image.mode == "RGB" else image.convert("RGB")


def over_black(image: Image.Image) -> Image.Image:
    """Returns an image without transparency: black shows through, whatever colours are hidden there."""
    from PIL import Image  # noqa: PLC0415

    if not _can_be_transparent(image):
        return image
    image = _rgba(image)
    black = Image.new("RGB", image.size)
    black.paste(image, mask=image.getchannel("A"))
    black.info = image.info
    return black


def _rgba(image: Image.Image) -> Image.Image:
    if image.mode == "La":  # which Pillow converts to one mode only
        image = image.convert("LA")
    return image.convert("RGBA")


def _can_be_transparent(image: Image.Image) -> bool:
    palette = image.palette.mode if image.mode == "P" and image.palette else ""
    return image.mode[-1] in "Aa" or palette[-1:] == "A" or "transparency" in image.info


def _is_transparent(image: Image.Image) -> bool:
    """Whether a pixel is not opaque."""
    if not _can_be_transparent(image):
        return False
    opaque = (1 << _MOST_BITS) - 1
    lowest: list[Any] = [_rgba(band).getchannel("A").getextrema()[0] for _, band in _bands(image)]
    return bool(min(lowest) < opaque)


def _bits(image: Image.Image) -> int:
    """Returns the number of bits per channel that the file stores; Pillow keeps the upper 8 of them."""
    tiles = getattr(image, "tile", None) or []
    return 2 * _MOST_BITS if any(";16" in str(tile) for tile in tiles) else _MOST_BITS


@dataclass(frozen=True)
class _ToSrgb:
    """Converts the colours of a profile to sRGB."""

    profile: str
    transform: Any

    def apply(self, image: Image.Image) -> Image.Image:
        from PIL import ImageCms  # noqa: PLC0415

        converted = ImageCms.applyTransform(image, self.transform)
        assert converted is not None  # as it would be if the image were changed in place
        return converted


def _profile(image: Image.Image) -> str:
    """Returns the name of the profile from which the colours of an image are converted; empty if they are not."""
    in_srgb = _to_srgb(image)
    return "" if in_srgb is None else in_srgb.profile


def _to_srgb(image: Image.Image) -> _ToSrgb | None:
    """Returns what converts an image to sRGB; None if it has no profile, or one that differs from sRGB in name only."""
    profile = image.info.get("icc_profile")
    if not profile:
        return None
    mode = "RGB" if _can_be_transparent(image) or image.mode == "P" else image.mode
    return _transform(profile, mode)


@lru_cache(maxsize=8)
def _transform(profile: bytes, mode: str) -> _ToSrgb | None:
    from PIL import Image, ImageCms  # noqa: PLC0415

    if mode not in ("RGB", "L", "CMYK"):
        return None
    try:
        given = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        transform = ImageCms.buildTransform(given, ImageCms.createProfile("sRGB"), mode, "RGB")
        name = ImageCms.getProfileDescription(given).strip()
    except (ImageCms.PyCMSError, OSError, ValueError, ImportError):  # damaged, for other colours, or no LittleCMS
        return None
    if mode != "CMYK":
        shades = np.linspace(0, 255, _SHADES).astype(np.uint8)
        colours = np.stack(np.meshgrid(shades, shades, shades), -1).reshape(1, -1, 3)
        swatch = Image.fromarray(colours).convert(mode)
        converted = _ToSrgb(name, transform).apply(swatch)
        difference = np.asarray(converted, np.int16) - np.asarray(swatch.convert("RGB"), np.int16)
        if np.abs(difference).max() <= _UNSEEN:
            return None
    return _ToSrgb(name, transform)
