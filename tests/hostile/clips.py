"""Clips that claim more than they hold, or lead elsewhere: small files, changed byte by byte."""

import io
import struct
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from hostile.pictures import jpeg, patched, saved

FRAMES = [np.full((32, 48, 3), shade, np.uint8) for shade in range(10, 190, 20)]
HUGE = 16_384


def clip(muxer: str, codec: str, frames: list[np.ndarray] = FRAMES, pix_fmt: str = "yuv420p", **options: str) -> bytes:
    """Returns the bytes of a clip that FFmpeg wrote; `options` are those of the container."""
    file = io.BytesIO()
    with av.open(file, "w", format=muxer, options=options) as container:
        stream = container.add_stream(codec, rate=24, options={"preset": "ultrafast"} if codec == "libx264" else {})
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = pix_fmt
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    return file.getvalue()


def mp4(**options: str) -> bytes:
    """Returns a clip of nine frames as MP4, with its index at the end."""
    return clip("mp4", "libx264", **options)


def box(raw: bytes, name: bytes) -> tuple[int, int]:
    """Returns where the first box of a name begins in an MP4, and how long it is."""
    begin = raw.index(name) - 4
    return begin, struct.unpack_from(">I", raw, begin)[0]


def in_box(raw: bytes, name: bytes, offset: int, value: bytes) -> bytes:
    """Returns an MP4 in which a value stands at an offset behind a box's name."""
    return patched(raw, {box(raw, name)[0] + 8 + offset: value})


def with_tracks(count: int) -> bytes:
    """Returns an MP4 whose only track is there many times."""
    raw = mp4()
    (movie, movie_size), (track, track_size) = box(raw, b"moov"), box(raw, b"trak")
    more = raw[track : track + track_size] * (count - 1)
    raw = raw[: track + track_size] + more + raw[track + track_size :]
    return patched(raw, {movie: struct.pack(">I", movie_size + len(more))})


def with_box(raw: bytes, parent: bytes, child: bytes) -> bytes:
    """Returns an MP4, whose index is at the end, with one more box in `moov`."""
    begin, size = box(raw, parent)
    raw = raw[: begin + size] + child + raw[begin + size :]
    return patched(raw, {begin: struct.pack(">I", size + len(child))})


def named(name: bytes, *parts: bytes) -> bytes:
    """Returns a box of an MP4."""
    body = b"".join(parts)
    return struct.pack(">I", 8 + len(body)) + name + body


def fragment(samples: int) -> bytes:
    """Returns a fragmented MP4 whose fragment claims a number of samples, all alike."""
    raw = clip("mp4", "libx264", movflags="frag_keyframe+empty_moov+default_base_moof")
    return in_box(raw, b"trun", 0, struct.pack(">II", 0, samples))


def of_packets(*packets: bytes, codec: str = "mjpeg") -> bytes:
    """Returns an AVI with these packets."""
    file = io.BytesIO()
    with av.open(file, "w", format="avi") as container:
        stream = container.add_stream(codec, rate=24)
        stream.height, stream.width, stream.pix_fmt = 32, 48, "yuvj420p"
        for number, data in enumerate(packets):
            packet = av.Packet(data)
            packet.stream, packet.time_base = stream, Fraction(1, 24)
            packet.pts = packet.dts = number
            packet.is_keyframe = True
            container.mux(packet)
    return file.getvalue()


def vp8(width: int, height: int) -> bytes:
    """Returns an IVF whose key frame claims a size, as its header does."""
    raw = clip("ivf", "libvpx")
    size = struct.pack("<HH", width, height)
    return patched(raw, {12: size, raw.index(b"\x9d\x01\x2a") + 3: size})


def grown_vp8(width: int, height: int) -> bytes:
    """Returns an IVF whose second key frame claims a larger size."""
    raw = clip("ivf", "libvpx")
    first = raw[32 : 32 + 12 + struct.unpack_from("<I", raw, 32)[0]]
    second = patched(
        first, {4: struct.pack("<Q", 1), first.index(b"\x9d\x01\x2a") + 3: struct.pack("<HH", width, height)}
    )
    return raw[:32] + first + second


def boasting_ivf() -> bytes:
    """Returns an IVF whose second frame claims to have 4 GB, which FFmpeg refuses to allocate."""
    raw = clip("ivf", "libvpx")
    return patched(raw, {32 + 12 + struct.unpack_from("<I", raw, 32)[0]: b"\xff" * 4})


def referring(path: Path) -> bytes:
    """Returns a QuickTime film whose only track names another file that holds its samples."""
    raw = clip("mov", "libx264")
    begin, size = box(raw, b"dref")
    name = str(path).encode()
    alias = bytes(4) + struct.pack(">HHH", 150, 2, 0) + bytes([len(name) % 64]) + name[:27].ljust(27, b"\0")
    alias = alias.ljust(154, b"\0") + struct.pack(">HH", 18, len(name)) + name + bytes(len(name) % 2)
    alias += struct.pack(">HH", 0xFFFF, 0)
    grown = named(b"dref", bytes(4), struct.pack(">I", 1), named(b"alis", alias))
    changed = raw[:begin] + grown + raw[begin + size :]
    for parent in (b"dinf", b"minf", b"mdia", b"trak", b"moov"):
        # The box that is around `dref`: for some names there are others before it.
        place = changed.rindex(parent, 0, begin) - 4
        old = struct.unpack_from(">I", changed, place)[0]
        changed = patched(changed, {place: struct.pack(">I", old + len(grown) - size)})
    return changed


def reference_movie(path: Path) -> bytes:
    """Returns a QuickTime film that is nothing but the name of another."""
    url = f"file://{path}".encode() + b"\0"
    named_film = named(b"rmda", named(b"rdrf", bytes(4), b"url ", struct.pack(">I", len(url)), url))
    return named(b"ftyp", b"qt  ", bytes(4), b"qt  ") + named(b"moov", named(b"rmra", named_film))


def only_sound() -> bytes:
    """Returns a song with a cover."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        attached = container.add_stream("mjpeg", rate=1)
        attached.height, attached.width, attached.pix_fmt = 32, 48, "yuvj420p"
        attached.disposition = av.stream.Disposition.attached_pic
        sound = container.add_stream("aac", rate=48000)
        packet = av.Packet(saved("JPEG"))
        packet.stream = attached
        container.mux(packet)
        silence = av.AudioFrame.from_ndarray(np.zeros((2, 1024), np.float32), format="fltp", layout="stereo")
        silence.sample_rate = 48000
        container.mux(sound.encode(silence))
        container.mux(sound.encode(None))
    return file.getvalue()


# Each claims frames, tracks or samples for which there is no memory, or that are not there.
CLAIMING: dict[str, Callable[[], bytes]] = {
    "a raw clip with frames of 16384x16384": lambda: b"YUV4MPEG2 W16384 H16384 F24:1 Ip A1:1 C420\n" + b"FRAME\n" * 9,
    "a raw clip with frames of 2^31 pixels a side": lambda: b"YUV4MPEG2 W2147483647 H2147483647 F24:1\nFRAME\n",
    "a clip of VP8 with the largest frames": lambda: vp8(16_383, 16_383),
    "an IVF whose second frame has 4 GB": boasting_ivf,
    "a clip of VP8 whose frames grow": lambda: grown_vp8(16_383, 16_383),
    "a clip of JPEGs whose frames grow": lambda: of_packets(saved("JPEG"), jpeg(60_000, 60_000)),
    "a clip of JPEGs whose frames change their size": lambda: of_packets(
        saved("JPEG"), saved("JPEG", av.VideoFrame(96, 64, "rgb24").to_image())
    ),
    "an MP4 of 2,000 tracks": lambda: with_tracks(2_000),
    "an MP4 of a billion samples": lambda: in_box(mp4(), b"stsz", 4, struct.pack(">II", 1, 1_000_000_000)),
    "an MP4 with a fragment of a billion samples": lambda: fragment(1_000_000_000),
    "a song with a cover": only_sound,
    "an MP4 cut off": lambda: mp4()[:-200],
}
# Each is odd, and a clip nevertheless.
ODD: dict[str, Callable[[], bytes]] = {
    "an MP4 whose decoder needs 2 GB of headers": lambda: in_box(mp4(), b"avcC", -8, struct.pack(">I", 0x7FFF_FFFF)),
    "a Matroska with an element of 2^56 bytes": lambda: clip("matroska", "mpeg4").replace(
        b"\x16\x54\xae\x6b", b"\x16\x54\xae\x6b\x01\xff\xff\xff\xff\xff\xff\xfe", 1
    ),
    "an MP4 whose frames all last 2^31 ticks": lambda: in_box(mp4(), b"stts", 8, struct.pack(">II", 9, 0x7FFF_FFFF)),
    "an MP4 of two billion durations": lambda: in_box(mp4(), b"stts", 8, struct.pack(">II", 0x7FFF_FFFF, 512)),
    "an MP4 of a billion ticks a second": lambda: in_box(mp4(), b"mdhd", 12, struct.pack(">I", 1_000_000_000)),
    "an MP4 of no ticks a second": lambda: in_box(mp4(), b"mdhd", 12, bytes(4)),
    "an MP4 without end": lambda: in_box(in_box(mp4(), b"mdhd", 16, b"\xff" * 4), b"mvhd", 16, b"\xff" * 4),
    "an MP4 that claims another size": lambda: in_box(mp4(), b"avc1", 24, struct.pack(">HH", 65_535, 65_535)),
    "an MP4 with 60,000 chapters": lambda: with_box(
        mp4(), b"moov", named(b"udta", named(b"chpl", bytes(4) + bytes(4) + b"\xff", (bytes(8) + b"\1a") * 60_000))
    ),
    "an AVI with a frame rate of 0": lambda: patched(of_packets(*[saved("JPEG")] * 9), {32: bytes(4), 132: bytes(4)}),
}


# Each leads to another file, whose path is filled in.
LEADING: dict[str, Callable[[Path], bytes]] = {
    "a playlist": lambda path: f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{path}\n#EXT-X-ENDLIST\n".encode(),
    "a list of files": lambda path: f"ffconcat version 1.0\nfile '{path}'\n".encode(),
    "a DASH manifest": lambda path: (
        "<?xml version='1.0'?><MPD xmlns='urn:mpeg:dash:schema:mpd:2011' type='static'><Period><AdaptationSet "
        f"mimeType='video/mp4'><Representation id='1'><BaseURL>file://{path}</BaseURL></Representation>"
        "</AdaptationSet></Period></MPD>"
    ).encode(),
    "a session description": lambda path: (
        b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n"
        b"a=rtpmap:96 H264/90000\n"
    ),
    "a script of AviSynth": lambda path: f'AVISource("{path}")\n'.encode(),
    "an IMF list": lambda path: (
        "<?xml version='1.0'?><CompositionPlaylist xmlns='http://www.smpte-ra.org/schemas/2067-3/2016'>"
        f"<Id>{path}</Id></CompositionPlaylist>"
    ).encode(),
    "a VobSub index": lambda path: f"# VobSub index file, v7\nsize: 48x32\nid: en, index: 0\n{path}\n".encode(),
    "a reference film": reference_movie,
    "a text": lambda path: f"see {path}\n".encode(),
}


def film_of_8k() -> bytes:
    """Returns a clip of 8K."""
    small = np.random.RandomState(0).randint(0, 256, (54, 96, 3)).astype(np.uint8)
    return clip("mp4", "libx264", [small.repeat(80, 0).repeat(80, 1)] * 2)
