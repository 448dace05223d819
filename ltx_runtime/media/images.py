"""Reads images and animated images with Pillow: GIF, PNG, WebP and AVIF files of several frames are clips.

Frames come upright as EXIF says, in the colours of sRGB, and with black where they are transparent.
"""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
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
# In other formats further pictures are pages, layers, sizes, or a second view of the same moment.
_ANIMATED = ("GIF", "PNG", "WEBP", "AVIF")
_ORIENTATION = 0x0112
_MOST_BITS = 8
_SHADES = 17  # of each channel, to tell whether a profile differs from sRGB
_UNSEEN = 2  # difference of levels between sRGB and a profile that says the same in other numbers

_limit = threading.Lock()


@contextmanager
def open_image(path: Path) -> Iterator[Opened | None]:
    """Yields an image of a format with clear marks, or None if the file is none."""
    with _open(path, _FORMATS) as image:
        yield None if image is None else opened_image(image, str(path))


@contextmanager
def open_weakly_marked(path: Path) -> Iterator[Opened | None]:
    """Yields an image of one of the formats that are tried last, or None if the file is none."""
    with _open(path, _WEAK_FORMATS) as image:
        yield None if image is None else opened_image(image, str(path))


@contextmanager
def _open(path: Path, formats: tuple[str, ...]) -> Iterator[Image.Image | None]:
    from PIL import Image, UnidentifiedImageError  # noqa: PLC0415

    Image.init()
    with path.open("rb") as file:
        try:
            with _any_size():
                image = Image.open(file, formats=[one for one in formats if one in Image.OPEN])
        except UnidentifiedImageError:
            yield None
            return
        with image:
            yield image


@contextmanager
def _any_size() -> Iterator[None]:
    """Lifts Pillow's own limit of pixels: the memory that an image needs is compared with what is allowed."""
    from PIL import Image  # noqa: PLC0415

    with _limit:
        usual, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = usual


def opened_image(image: Image.Image, name: str) -> Opened:
    """Returns the frames of an image that Pillow has opened, and what its header says.

    Raises:
        LtxError: it stores more than 8 bits of grey; the message begins with `name`.
    """
    if image.mode[0] in "IF":  # Pillow would clip such values to white or black
        raise LtxError(f"{name} stores more than 8 bits per channel", "save it with 8 bits per channel")
    first, count = _first_frame(image), _frames_in(image)
    frames: int | None = count if count is None else count - first
    # Not turned upright yet, since Pillow decodes a PNG to know its orientation.
    facts = Facts(image.height, image.width, frames, bits=_bits(image), profile=_profile(image))
    return Opened(facts, _frames(image, first, count))


def _frames_in(image: Image.Image) -> int | None:
    """Returns the number of frames of an animated image, 1 for any other image; None if the file is damaged."""
    if image.format not in _ANIMATED:
        return 1
    with suppress(Exception), _any_size():  # reading the frames will say what is wrong
        return int(getattr(image, "n_frames", 1))
    return None


def _first_frame(image: Image.Image) -> int:
    """Returns 1 for an animated PNG whose first picture is only for programs that do not animate, otherwise 0."""
    return int(image.format == "PNG" and bool(image.info.get("default_image")) and getattr(image, "n_frames", 1) > 1)


def _frames(image: Image.Image, first: int, count: int | None) -> Iterator[Frame]:
    begins_s: float | None = 0.0
    index = first
    if count and image.format == "PNG" and image.tell():  # Pillow rewinds an animated PNG rightly from its end alone
        image.seek(count - 1)
        image.load()
    while count is None or index < count:
        try:
            with _any_size():
                if count != 1:
                    image.seek(index)
                turned = _upright(image)
                turned.load()
        except EOFError:
            return
        yield Frame(
            turned.height, turned.width, partial(_rgb, turned), begins_s, transparent=partial(_transparent, turned)
        )
        lasts_ms = image.info.get("duration")
        begins_s = begins_s + lasts_ms / 1000 if begins_s is not None and lasts_ms else None
        index += 1


def _upright(image: Image.Image) -> Image.Image:
    """Returns the image rotated and mirrored as its EXIF orientation says.

    The official code does not rotate it, so a photo taken upright would be animated lying on its side.
    """
    from PIL import ImageOps  # noqa: PLC0415

    # Without an orientation Pillow would return a copy.
    return image if image.getexif().get(_ORIENTATION, 1) == 1 else ImageOps.exif_transpose(image)


def _rgb(image: Image.Image) -> Picture:
    """Returns the pixels in sRGB, over black where they are transparent."""
    image = over_black(image)
    if image.mode == "P":
        image = image.convert("RGB")
    in_srgb = _to_srgb(image)
    if in_srgb is not None:
        image = in_srgb.apply(image)
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


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


def _transparent(image: Image.Image) -> bool:
    """Whether a pixel is not opaque."""
    if not _can_be_transparent(image):
        return False
    lowest: Any = _rgba(image).getchannel("A").getextrema()[0]
    return bool(lowest < (1 << _MOST_BITS) - 1)


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
