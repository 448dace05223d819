"""Reads clips with FFmpeg's libraries, whatever their suffix: frames come upright and with square pixels."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ltx_runtime.errors import LtxError
from ltx_runtime.media.facts import Facts, Frame, Opened, Picture
from ltx_runtime.media.images import over_black

# Only formats that are one file: a playlist, a list of files or a session description would make FFmpeg open others.
# Those of sound alone are among them so that such a file is told from a damaged one.
_FORMATS = (
    *("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "avi", "mpegts", "mpeg", "mpegvideo", "asf", "flv", "ogg", "mxf"),
    *("dv", "rm", "nut", "ivf", "gxf", "wtv", "h264", "hevc", "vvc", "m4v", "obu", "av1", "vc1", "dirac"),
    *("mjpeg", "yuv4mpegpipe", "flic", "swf", "wav", "mp3", "aac", "flac", "aiff"),
)
_OPTIONS = {
    "format_whitelist": ",".join(_FORMATS),
    "protocol_whitelist": "none",
    "max_streams": "256",  # FFmpeg keeps a decoder for each
}
# Frames that the largest levels of H.264, HEVC, VP9 and AV1 let a decoder keep for later ones, in pixels (5 of 8K) and
# in number; and what it keeps of a frame beside its pixels, such as motion vectors.
_KEPT_PIXELS, _MOST_KEPT, _FRAME_OVERHEAD = 178_000_000, 16, 1.15
# While a frame is converted, blurred and compressed, for each of its pixels; and what the allocator does not give back.
_PIXEL_BYTES, _FIXED_BYTES = 16, 48_000_000
_MOST_THREADS = 4  # each decodes a frame of its own, and a decoder is faster than what follows anyway
_TRANSFERS = {16: "PQ", 18: "HLG"}
# Decoders that see the transparency of WebM; FFmpeg's own do not.
_TRANSPARENT_DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}


@contextmanager
def open_clip(path: Path, most_bytes: int) -> Iterator[Opened]:
    """Yields a clip with every stored frame of its first video stream, whatever the frame rate.

    Args:
        path: the file.
        most_bytes: the most memory that reading a frame may take. A clip that claims more is yielded, and only refuses
            to read its frames.

    Raises:
        LtxError: there is sound only.
        ValueError: the format or codec is unknown, or the file is damaged; av's exceptions are OSError, too.
    """
    # FFmpeg gets a file without a name: it would let the suffix decide, and read a:b.mp4 as a protocol and an address.
    with (
        open(os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0)), "rb") as file,
        opened_container(file, most_bytes // _PIXEL_BYTES) as container,
    ):
        streams = [stream for stream in container.streams.video if not _is_cover(stream)]
        if not streams:
            raise LtxError(f"{path} has no video stream", "give a clip with pictures")
        stream = streams[0]
        if stream.codec_context is None:  # unknown codec: decoding would crash the process
            raise ValueError
        facts = _with_threads(_facts(container, stream), stream, most_bytes)
        yield Opened(facts, _frames(container, stream, facts.pixel_aspect, str(path)))


@contextmanager
def opened_container(file: BinaryIO, most_pixels: int) -> Iterator[Any]:
    """Yields the container of av in a file, for which nothing but the file is opened.

    Args:
        file: the file, which may be of any of the formats that are one file.
        most_pixels: the most pixels of a frame that are decoded, also while FFmpeg looks at the first ones.

    Raises:
        ValueError: it has too many streams, or claims more than any file has.
    """
    import av  # noqa: PLC0415

    options = {"max_pixels": str(most_pixels)}
    # What to do about tags in no known encoding; from 19 on av replaces what it cannot read, and has no such option.
    about_tags: dict[str, Any] = {"metadata_errors": "replace"} if int(av.__version__.partition(".")[0]) < 19 else {}
    try:
        container = av.open(file, options=options, container_options=_OPTIONS, **about_tags)
    except MemoryError as error:  # what FFmpeg says of numbers that it refuses to allocate anything for
        raise ValueError from error
    with container:
        for stream in container.streams.video:
            if stream.codec_context is not None:
                stream.codec_context.options = options
        yield container


def _is_cover(stream: Any) -> bool:
    """Whether a stream is the attached picture of a song or film."""
    import av  # noqa: PLC0415

    return bool(stream.disposition & av.stream.Disposition.attached_pic)


def _facts(container: Any, stream: Any) -> Facts:
    """Returns what the header of a clip says; its size may have to be turned, as its first frame will say."""
    context = stream.codec_context
    rate = stream.average_rate
    frames, about = stream.frames or None, False
    if frames is None and rate:
        lasts_s = stream.duration * stream.time_base if stream.duration else (container.duration or 0) / 1e6
        frames, about = round(float(lasts_s * rate)) or None, True
    aspect = stream.sample_aspect_ratio or Fraction(1)
    size = squared(context.height, context.width, aspect)
    pixels, of_frame = max(size[0] * size[1], context.height * context.width), _frame_bytes(context)
    facts = Facts(
        *size,
        frames,
        read_bytes=_FIXED_BYTES + pixels * _PIXEL_BYTES + _frames_kept(context) * of_frame,
        about=about,
        fps=float(rate) if rate else None,
        sound=bool(container.streams.audio),
        transfer=_TRANSFERS.get(int(context.color_trc or 0), ""),
        bits=max((component.bits for component in context.format.components), default=8) if context.format else 8,
    )
    if size == (context.height, context.width):
        return facts
    return replace(facts, stored_size=(context.height, context.width), pixel_aspect=aspect)


def _frame_bytes(context: Any) -> int:
    """Returns the memory of a frame as a decoder keeps it."""
    samples = 3 * context.height * context.width  # of the most common formats, one byte each: at most that many
    if context.format is not None:
        samples = sum(-(-plane.bits // 8) * plane.height * plane.width for plane in context.format.components)
    return int(samples * _FRAME_OVERHEAD)


def _frames_kept(context: Any) -> int:
    """Returns the most frames that a decoder keeps for later ones, and the one that it decodes."""
    pixels: int = max(1, context.height * context.width)
    return min(_MOST_KEPT, max(1, _KEPT_PIXELS // pixels)) + 1


def _with_threads(facts: Facts, stream: Any, most_bytes: int) -> Facts:
    """Lets a stream be decoded on as many threads as there is memory for, since each keeps a frame."""
    of_frame = _frame_bytes(stream.codec_context)
    spare = max(0, most_bytes - facts.read_bytes) // max(1, of_frame)
    stream.thread_type = "AUTO"
    stream.thread_count = threads = int(min(_MOST_THREADS, 1 + spare))
    return replace(facts, read_bytes=facts.read_bytes + (threads - 1) * of_frame)


def squared(height: int, width: int, aspect: Fraction) -> tuple[int, int]:
    """Returns the size with square pixels of a picture whose pixels are `aspect` times as wide as high.

    The side that is too short grows, so that no pixel is lost.
    """
    return (height, round(width * aspect)) if aspect >= 1 else (round(height / aspect), width)


def _frames(container: Any, stream: Any, aspect: Fraction, name: str) -> Iterator[Frame]:
    matrix: bytes | None = None
    convert: _Converter | None = None
    stored_size: tuple[int, int] | None = None
    for frame in _decoded(container, stream):
        if (frame.height, frame.width) != (stored_size or (frame.height, frame.width)):
            raise LtxError(f"the frames of {name} differ in size", "convert it to .mp4")
        stored_size = frame.height, frame.width
        convert = convert or _Converter(stream, frame)
        stored_matrix: Any = frame.side_data.get("DISPLAYMATRIX")
        matrix = matrix if stored_matrix is None else bytes(stored_matrix)
        size = squared(frame.height, frame.width, aspect)
        height, width = size if matrix is None or not _lies_down(matrix) else size[::-1]
        begins_s = None if frame.time is None else float(frame.time)
        convert.push(frame)
        picture, interlaced = partial(convert.picture, size, matrix), bool(frame.interlaced_frame)
        yield Frame(height, width, picture, begins_s, interlaced, convert.transparent)


def _decoded(container: Any, stream: Any) -> Iterator[Any]:
    import av  # noqa: PLC0415

    decoder: Any = None
    name = _TRANSPARENT_DECODERS.get(stream.codec_context.name)
    if name in av.codecs_available and stream.metadata.get("alpha_mode") == "1":
        decoder = av.CodecContext.create(name, "r")
        decoder.options, decoder.thread_count = stream.codec_context.options, stream.thread_count
    for packet in container.demux(stream):
        if packet.is_corrupt:  # decoders would invent the missing pixels
            raise EOFError
        yield from packet.decode() if decoder is None else decoder.decode(packet if packet.size else None)
    # FFmpeg skips frames that the index places behind the end of a file that was cut off.
    index = stream.index_entries
    if any(entry.pos + entry.size > container.size for entry in index):
        raise EOFError


class _Converter:
    """Converts frames of a stream to RGB as the ffmpeg command does, those of more than 8 bits as well."""

    def __init__(self, stream: Any, frame: Any) -> None:
        import av  # noqa: PLC0415

        self._transparent = any(component.is_alpha for component in frame.format.components)
        self._graph: Any = av.filter.Graph()
        if self._transparent:
            source = self._graph.add_buffer(
                width=frame.width, height=frame.height, format=frame.format, time_base=stream.time_base
            )
        else:
            source = self._graph.add_buffer(template=stream)
        layout = self._graph.add("format", "rgba" if self._transparent else "rgb24")
        self._graph.link_nodes(source, layout, self._graph.add("buffersink")).configure()
        self._frame: Any = None
        self._pixels: Picture | None = None

    def push(self, frame: Any) -> None:
        """Sets the frame to convert."""
        self._frame, self._pixels = frame, None

    def _stored(self) -> Picture:
        """Returns the pixels of the frame as they are stored, RGBA if the stream has transparency."""
        if self._pixels is None:
            self._graph.push(self._frame)
            self._pixels = self._graph.pull().to_ndarray()
        return self._pixels

    def transparent(self) -> bool:
        """Whether a pixel of the frame is not opaque."""
        return self._transparent and bool((self._stored()[..., 3] < 255).any())

    def picture(self, size: tuple[int, int], matrix: bytes | None) -> Picture:
        """Returns the frame in RGB, resized to the size that it has with square pixels, then rotated."""
        from PIL import Image  # noqa: PLC0415

        pixels = self._stored()
        self._frame = self._pixels = None
        if self._transparent:
            pixels = np.asarray(over_black(Image.fromarray(pixels)))
        if pixels.shape[:2] != size:
            pixels = np.asarray(Image.fromarray(pixels).resize(size[::-1]))
        return pixels if matrix is None else _oriented(pixels, matrix)


def _lies_down(matrix: bytes) -> bool:
    """Whether a display matrix exchanges rows and columns."""
    right_to_x, right_to_y = struct.unpack("=2i", matrix[:8])
    return bool(abs(right_to_x) < abs(right_to_y))


def _oriented(pixels: Picture, matrix: bytes) -> Picture:
    """Rotates a picture by quarter turns and mirrors it, as a display matrix says."""
    right_to_x, right_to_y, _, down_to_x, down_to_y = struct.unpack("=5i", matrix[:20])
    if _lies_down(matrix):
        pixels, right_to_x, down_to_y = pixels.transpose(1, 0, 2), down_to_x, right_to_y
    return pixels[:: -1 if down_to_y < 0 else 1, :: -1 if right_to_x < 0 else 1]
