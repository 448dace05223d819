"""Writes frames to files, one frame at a time.

WRITERS maps a suffix to its writer, which gets a temporary path that is renamed at the end. This module knows nothing
about models: frames are (height, width, 3) uint8 RGB.
"""

from __future__ import annotations

import errno
import itertools
import math
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ltx_runtime.errors import LtxError, explaining

if TYPE_CHECKING:
    from PIL import Image

Frame = NDArray[np.uint8]
Write = Callable[[Frame], None]
Writer = Callable[[Path, float], AbstractContextManager[Write]]

_BT709 = 1


@contextmanager
def _encoded(path: Path, fps: float, codec: str, options: dict[str, str]) -> Iterator[Write]:
    """Encodes one video stream with FFmpeg as yuv420p in BT.709, tagged so that players show the right colours."""
    import av  # noqa: PLC0415  (33 MB of codecs, loaded only when a video is written)

    # Absolute, since libav takes what precedes a colon in `12:30.mp4` for a protocol.
    with av.open(str(path.absolute()), "w") as container:
        stream: Any = container.add_stream(codec, rate=Fraction(fps).limit_denominator(1001), options=options)
        stream.pix_fmt = "yuv420p"
        context = stream.codec_context
        context.color_primaries = context.color_trc = context.colorspace = _BT709
        context.color_range = 1

        def write(frame: Frame) -> None:
            if not context.is_open:
                stream.height, stream.width = frame.shape[:2]
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            picture = picture.reformat(format="yuv420p", dst_colorspace="ITU709", dst_color_range="MPEG")
            container.mux(stream.encode(picture))

        yield write
        container.mux(stream.encode(None))


def _mp4(path: Path, fps: float) -> AbstractContextManager[Write]:
    return _encoded(path, fps, "libx264", {"crf": "18", "preset": "medium"})


def _webm(path: Path, fps: float) -> AbstractContextManager[Write]:
    options = {"crf": "30", "b": "0", "deadline": "good", "cpu-used": "4", "row-mt": "1"}
    return _encoded(path, fps, "libvpx-vp9", options)


@contextmanager
def _gif(path: Path, fps: float) -> Iterator[Write]:
    """Writes a looping GIF with one palette per frame; delays are rounded so that rounding errors do not add up."""
    from PIL import Image  # noqa: PLC0415

    frames: list[Image.Image] = []

    def write(frame: Frame) -> None:
        frames.append(Image.fromarray(frame).quantize(dither=Image.Dither.FLOYDSTEINBERG))

    yield write
    if not frames:
        return
    ticks = [round(100 * i / fps) for i in range(len(frames) + 1)]
    delays_ms = [10 * (after - before) for before, after in itertools.pairwise(ticks)]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=delays_ms, loop=0)


@contextmanager
def _png_folder(path: Path, fps: float) -> Iterator[Write]:
    """Writes frame_0000.png, frame_0001.png, ... to a folder; the frame rate is not stored."""
    from PIL import Image  # noqa: PLC0415

    path.unlink()
    path.mkdir()
    count = 0

    def write(frame: Frame) -> None:
        nonlocal count
        Image.fromarray(frame).save(path / f"frame_{count:04d}.png")
        count += 1

    yield write


WRITERS: dict[str, Writer] = {".mp4": _mp4, ".webm": _webm, ".gif": _gif, ".png": _png_folder}

_EVEN_SIDES = (".mp4",)
# Frame rates that formats can store. GIF delays are whole hundredths of a second, and players slow down delays under 2.
FPS_RANGES: dict[str, tuple[int, int]] = {".mp4": (1, 1000), ".webm": (1, 1000), ".gif": (1, 50)}


def target_of(output: Path) -> Path:
    """Returns the path that is written for `output`: the file, or for `.png` the folder of that name without suffix.

    Raises:
        LtxError: the suffix has no writer, the file is a folder, or the folder of PNGs exists and is not empty.
    """
    if output.suffix.lower() not in WRITERS:
        suffixes = ", ".join(WRITERS)
        raise LtxError(f"unknown output suffix {output.suffix!r} of {output}", f"use one of {suffixes}")
    if output.suffix.lower() != ".png":
        if output.is_dir():
            raise LtxError(f"cannot write {output}: it is a folder", "give a file name")
        return output
    folder = output.with_suffix("")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise LtxError(f"cannot write frames to {folder}: it exists and is not empty", "choose another name")
    return folder


def check_size(output: Path, height: int, width: int) -> None:
    """Raises LtxError if the format cannot store frames of this size: libx264 needs even sides for yuv420p."""
    if output.suffix.lower() in _EVEN_SIDES and (height % 2 or width % 2):
        raise LtxError(f"{output.suffix} takes even sizes; got {width}x{height}", "use an even size, .gif or .png")


def check_output(output: Path, height: int, width: int, fps: float, *, folder_exists: bool = True) -> Path:
    """Returns the path that is written for frames of this size and rate: the file, or for `.png` the folder of frames.

    Raises:
        LtxError: the suffix is unknown, the format cannot store the size or frame rate, or, if `folder_exists`, the
            folder of the output does not exist.
    """
    with explaining(f"write {output}"):
        target = target_of(output)
        if folder_exists and not output.parent.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, "", str(output.parent))
    check_size(output, height, width)
    _check_fps(output, fps)
    return target


def _check_fps(output: Path, fps: float) -> None:
    """Raises LtxError if the format cannot store the frame rate."""
    suffix = output.suffix.lower()
    slowest, fastest = FPS_RANGES.get(suffix, (0, math.inf))
    if not slowest <= fps <= fastest:
        raise LtxError(f"{suffix} takes {slowest} to {fastest} frames a second; got fps {fps:g}", "use 24 or 30")


@contextmanager
def open_writer(output: Path, fps: float) -> Iterator[Write]:
    """Yields a function that writes frames in order; the output appears under its name only if the block succeeds.

    The path is tested before the first frame, so that an unwritable folder is found before any denoising.

    Raises:
        LtxError: the suffix is unknown, the format cannot store the frame rate, the path cannot be written, or the
            disk is full.
    """
    with explaining(f"write {output}"):
        target = target_of(output)
    suffix = output.suffix.lower()
    _check_fps(output, fps)
    temporary = target.with_name(f".{target.name}.partial{suffix}")
    doing = f"write {target}"
    with explaining(doing):
        _remove(temporary)
        temporary.touch()
    foreign: OSError | None = None
    try:
        with WRITERS[suffix](temporary, fps) as write:
            try:
                yield _explained(write, doing)
            except OSError as error:
                foreign = error  # raised by the code that makes the frames, not by the output
                raise
        temporary.replace(target)
    except OSError as error:
        if error is foreign:
            raise
        with explaining(doing):
            raise
    finally:
        _remove(temporary)


def _explained(write: Write, doing: str) -> Write:
    def explained(frame: Frame) -> None:
        with explaining(doing):
            write(frame)

    return explained


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
