"""Writes frames to files, one frame at a time.

WRITERS maps a suffix to its writer, which gets the path of a temporary file of the same name. This module knows nothing
about models: frames are (height, width, 3) uint8 RGB. `comment` is a text that is stored in the file; media.comments
reads it.
"""

from __future__ import annotations

import errno
import itertools
import math
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ltx_runtime.errors import LtxError, explaining
from ltx_runtime.files import partial_folder, place_new, placed
from ltx_runtime.media.comments import PNG_KEYWORD, ascii_of
from ltx_runtime.replacing.exchange import exchanged

if TYPE_CHECKING:
    from PIL import Image

Frame = NDArray[np.uint8]
Write = Callable[[Frame], None]
Writer = Callable[[Path, float, str], AbstractContextManager[Write]]

_BT709 = 1
# Of the encoders, on any machine: x264 cuts frames into a slice for each thread, and VP9 computes otherwise with one.
_THREADS = 8


class TakenError(LtxError):
    """The name of an output is taken by something else."""


@contextmanager
def _encoded(
    path: Path, fps: float, comment: str, codec: str, options: dict[str, str], of_file: dict[str, str]
) -> Iterator[Write]:
    """Encodes one video stream with FFmpeg as yuv420p in BT.709, tagged so that players show the right colours."""
    import av  # noqa: PLC0415  (33 MB of codecs, loaded only when a video is written)
    from av.video.reformatter import VideoReformatter  # noqa: PLC0415

    # Absolute, since libav takes what precedes a colon in `12:30.mp4` for a protocol.
    with av.open(str(path.absolute()), "w", options=of_file) as container:
        if comment:
            container.metadata["comment"] = comment
        stream: Any = container.add_stream(codec, rate=Fraction(fps).limit_denominator(1001), options=options)
        stream.pix_fmt = "yuv420p"
        context = stream.codec_context
        context.thread_count = _THREADS
        context.color_primaries = context.color_trc = context.colorspace = _BT709
        context.color_range = 1
        reformatter: Any = VideoReformatter()  # of all frames, since making its tables takes longer than a small frame

        def write(frame: Frame) -> None:
            if not context.is_open:
                stream.height, stream.width = frame.shape[:2]
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            converted = reformatter.reformat(picture, format="yuv420p", dst_colorspace="ITU709", dst_color_range="MPEG")
            container.mux(stream.encode(converted))

        yield write
        container.mux(stream.encode(None))


def _mp4(path: Path, fps: float, comment: str) -> AbstractContextManager[Write]:
    # x264's mbtree with AVX-512 uses memory that it never set: one video in twenty got other bytes (x264 165). With
    # faststart, the index stands at the beginning, so that browsers play a file before they have all of it.
    options = {"crf": "18", "preset": "medium", "mbtree": "0"}
    return _encoded(path, fps, comment, "libx264", options, {"movflags": "faststart"})


def _webm(path: Path, fps: float, comment: str) -> AbstractContextManager[Write]:
    options = {"crf": "30", "b": "0", "deadline": "good", "cpu-used": "4", "row-mt": "1"}
    # Otherwise the file would get a random number, and the same video never the same bytes.
    return _encoded(path, fps, comment, "libvpx-vp9", options, {"fflags": "bitexact"})


@contextmanager
def _gif(path: Path, fps: float, comment: str) -> Iterator[Write]:
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
    more: dict[str, Any] = {"comment": ascii_of(comment)} if comment else {}
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=delays_ms, loop=0, **more)


@contextmanager
def _png_folder(path: Path, fps: float, comment: str) -> Iterator[Write]:
    """Writes frame_0000.png, frame_0001.png, ... to a folder; the frame rate is not stored."""
    from PIL import Image, PngImagePlugin  # noqa: PLC0415

    path.mkdir()
    text = PngImagePlugin.PngInfo()
    if comment:
        text.add_itxt(PNG_KEYWORD, comment)
    count = 0

    def write(frame: Frame) -> None:
        nonlocal count
        Image.fromarray(frame).save(path / f"frame_{count:04d}.png", pnginfo=text)
        count += 1

    yield write


WRITERS: dict[str, Writer] = {".mp4": _mp4, ".webm": _webm, ".gif": _gif, ".png": _png_folder}

_EVEN_SIDES = (".mp4",)
# Frame rates that formats can store. GIF delays are whole hundredths of a second, and players slow down delays under 2.
FPS_RANGES: dict[str, tuple[int, int]] = {".mp4": (1, 1000), ".webm": (1, 1000), ".gif": (1, 50)}
_FRAME_NAME = re.compile(r"frame_\d{4,}\.png")


def target_of(output: Path) -> Path:
    """Returns the path that is written for `output`: the file, or for `.png` the folder of that name without suffix.

    Raises:
        LtxError: the suffix has no writer.
    """
    if output.suffix.lower() not in WRITERS:
        suffixes = ", ".join(WRITERS)
        raise LtxError(f"unknown output suffix {output.suffix!r} of {output}", f"use one of {suffixes}")
    return output.with_suffix("") if output.suffix.lower() == ".png" else output


def is_frame(path: Path) -> bool:
    """Returns whether a file has the name of one of the frames in a folder."""
    return _FRAME_NAME.fullmatch(path.name) is not None


def check_output(
    output: Path, height: int, width: int, fps: float, *, overwrite: bool = False, folder_exists: bool = True
) -> Path:
    """Returns the path that is written for frames of this size and rate: the file, or for `.png` the folder of frames.

    Raises:
        TakenError: something exists under that name, and `overwrite` is false.
        LtxError: the suffix is unknown, the format cannot store the size or frame rate, what exists cannot be replaced,
            or, if `folder_exists`, the folder of the output does not exist.
    """
    with explaining(f"write {output}"):
        target = target_of(output)
        if folder_exists and not output.parent.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, "", str(output.parent))
        _check_free(target, overwrite=overwrite, of_frames=target != output)
    _check_size(output, height, width)
    _check_fps(output, fps)
    return target


def _check_free(target: Path, *, overwrite: bool, of_frames: bool) -> None:
    """Raises LtxError if something is under the name of a file, or of a folder of frames, that must not be replaced."""
    if not os.path.lexists(target):
        return
    if not of_frames and target.is_dir():
        raise LtxError(f"cannot write {target}: it is a folder", "give a file name")
    names = [entry.name for entry in target.iterdir()] if target.is_dir() else None
    if of_frames and os.path.ismount(target):
        raise LtxError(f"cannot write {target}: another disk is mounted there", "give the name of a folder in it")
    if of_frames and names == []:
        return
    if not overwrite:
        raise TakenError(f"{target} exists", "choose another name, or add --overwrite (in Python: overwrite=True)")
    if of_frames and (names is None or not all(map(_FRAME_NAME.fullmatch, names))):
        raise LtxError(f"{target} holds other things than frames, which are not replaced", "choose another name")
    if not of_frames and target.exists() and not target.is_file():
        raise LtxError(f"cannot write {target}: it is no ordinary file", "choose another name")


def _check_size(output: Path, height: int, width: int) -> None:
    """Raises LtxError if the format cannot store frames of this size: libx264 needs even sides for yuv420p."""
    if output.suffix.lower() in _EVEN_SIDES and (height % 2 or width % 2):
        raise LtxError(f"{output.suffix} takes even sizes; got {width}x{height}", "use an even size, .gif or .png")


def _check_fps(output: Path, fps: float) -> None:
    """Raises LtxError if the format cannot store the frame rate."""
    suffix = output.suffix.lower()
    slowest, fastest = FPS_RANGES.get(suffix, (0, math.inf))
    if not slowest <= fps <= fastest:
        raise LtxError(f"{suffix} takes {slowest} to {fastest} frames a second; got fps {fps:g}", "use 24 or 30")


def save_video(
    frames: Iterable[Frame],
    output: Path,
    size: tuple[int, int],
    fps: float,
    *,
    comment: str = "",
    overwrite: bool = False,
    finished: Callable[[Path], None] = lambda path: None,
) -> Path:
    """Writes frames to a file, which appears under its name when it is whole.

    Before the first frame is asked for, a video of one frame is written and deleted, so that whatever the disk or the
    library of the format refuses is known before anything is computed.

    Args:
        frames: (height, width, 3) uint8 RGB.
        output: .mp4, .webm, .gif, or NAME.png for a folder NAME of frames.
        size: height and width of every frame.
        fps: frames per second.
        comment: a text to store in the file.
        overwrite: whether what exists under that name is replaced.
        finished: is called with the whole video, a file or a folder, before it gets its name.

    Returns:
        The file, or the folder of frames. If the name was taken meanwhile, it ends in -2, -3 and so on.

    Raises:
        LtxError: the output cannot be written, see `check_output`, or the disk is full.
    """
    target = check_output(output, *size, fps, overwrite=overwrite)
    real = Path(os.path.realpath(target))  # a link is kept, and what it leads to replaced
    writer = WRITERS[output.suffix.lower()]
    with ExitStack() as opened:
        with _explained(target):
            folder = opened.enter_context(partial_folder(real.parent))
            (folder / "trial").mkdir()
            with writer(folder / "trial" / real.name, fps, comment) as write:
                write(np.zeros((*size, 3), np.uint8))
        _write(frames, writer, folder / real.name, (target, fps, comment))
        finished(folder / real.name)
        with _explained(target):
            return _published(folder / real.name, target, real, overwrite=overwrite)


def _write(frames: Iterable[Frame], writer: Writer, path: Path, described: tuple[Path, float, str]) -> None:
    """Writes all frames; errors of the code that makes them pass as they are, those of the output as LtxError."""
    target, fps, comment = described
    opened = ExitStack()
    with _explained(target):
        write = opened.enter_context(writer(path, fps, comment))
    try:
        for frame in frames:
            with _explained(target):
                write(frame)
    except BaseException:
        with suppress(Exception):  # closing may fail for the same reason, and would tell of the temporary file
            opened.__exit__(*sys.exc_info())
        raise
    with _explained(target):
        opened.close()


@contextmanager
def _explained(target: Path) -> Iterator[None]:
    """Converts every error inside the block, which may be of any type that a library raises, to an LtxError."""
    try:
        with explaining(f"write {target}"):
            yield
    except (LtxError, MemoryError):
        raise
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise LtxError(f"cannot write {target}: {reason}", "choose another name, format or place") from error


def _published(temporary: Path, target: Path, real: Path, *, overwrite: bool) -> Path:
    """Gives a finished video its name, or the next free one after it, and returns that name."""
    if overwrite:
        # What is never replaced may have come there meanwhile, and a file that is mounted cannot be replaced.
        with suppress(LtxError, OSError):
            _check_free(target, overwrite=True, of_frames=temporary.is_dir())
            if real.is_dir():
                exchanged(temporary, real)
            else:
                temporary.replace(real)
            return target
    try:
        place_new(temporary, real)
        return target
    except FileExistsError:
        return placed(temporary, target)
