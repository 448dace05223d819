"""Images that claim more than they hold, byte by byte: small files, each of which asks a reader for gigabytes."""

import gzip
import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

BLACK = Image.new("RGB", (48, 32))


def saved(format: str, image: Image.Image = BLACK, **options: object) -> bytes:
    """Returns the bytes of an image in a format of Pillow's."""
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def patched(raw: bytes, places: dict[int, bytes]) -> bytes:
    """Returns bytes of which some, by their offset, were replaced."""
    changed = bytearray(raw)
    for place, value in places.items():
        changed[place : place + len(value)] = value
    return bytes(changed)


# --- PNG ------------------------------------------------------------------------------------------


def chunk(kind: bytes, data: bytes) -> bytes:
    """Returns a chunk of a PNG, with its length and checksum."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, *chunks: bytes, colour: int = 0, pixels: bytes | None = None) -> bytes:
    """Returns a PNG of 8 bits, with black pixels unless others are given, and with more chunks before them."""
    if pixels is None:
        deflate = zlib.compressobj(1)
        row = bytes(1 + width * {0: 1, 2: 3, 6: 4}[colour])
        pixels = b"".join(deflate.compress(row) for _ in range(height)) + deflate.flush()
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def unpacking_to(size_bytes: int) -> bytes:
    """Returns zeros as zlib packs them, a thousandth of their size."""
    return zlib.compress(bytes(size_bytes), 9)


def texts() -> bytes:
    """Returns a PNG with 80 texts that unpack to 80 MB, for each of which Pillow would take its limit."""
    packed = unpacking_to(1_000_000)
    return png(48, 32, *(chunk(b"zTXt", b"a%d\0\0" % n + packed) for n in range(80)))


def apng(claimed_frames: int, place: tuple[int, int]) -> bytes:
    """Returns an animated PNG that claims frames; the second begins at a place, which may be outside of the canvas."""
    control = chunk(b"acTL", struct.pack(">II", claimed_frames, 0))
    first = chunk(b"fcTL", struct.pack(">IIIIIHHBB", 0, 48, 32, 0, 0, 1, 25, 0, 0))
    second = chunk(b"fcTL", struct.pack(">IIIIIHHBB", 1, 48, 32, *place, 1, 25, 0, 0))
    raw = png(48, 32, control, first)
    data = chunk(b"fdAT", struct.pack(">I", 2) + zlib.compress(bytes(49 * 32)))
    return raw.replace(chunk(b"IEND", b""), second + data + chunk(b"IEND", b""))


# --- GIF, WebP and what is left -------------------------------------------------------------------


def gif(canvas: tuple[int, int], *sizes: tuple[int, int]) -> bytes:
    """Returns a GIF with a canvas of a size, and frames that claim sizes and have a single pixel."""
    frames = b"".join(b"," + struct.pack("<HHHHB", 0, 0, *size, 0) + b"\x02\x02\x44\x01\x00" for size in sizes)
    return b"GIF89a" + struct.pack("<HHBBB", *canvas, 0x80, 0, 0) + bytes(6) + frames + b";"


def webp(width: int, height: int) -> bytes:
    """Returns an animated WebP that claims a canvas, and has a frame of 48x32 pixels."""
    picture = saved("WEBP")[12:]
    frame = bytes(6) + (47).to_bytes(3, "little") + (31).to_bytes(3, "little") + bytes((40, 0, 0, 0)) + picture
    canvas = bytes((2, 0, 0, 0)) + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    parts = (b"VP8X", canvas), (b"ANIM", bytes(6)), (b"ANMF", frame)
    body = b"WEBP" + b"".join(name + struct.pack("<I", len(data)) + data for name, data in parts)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def tiff(*tags: tuple[int, int, int, int]) -> bytes:
    """Returns a TIFF whose only directory has these tags (number, type, count, value) and leads to itself."""
    entries = b"".join(struct.pack("<HHII", *tag) for tag in sorted(tags))
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + struct.pack("<I", 8) + bytes(64)


def huge_tiff(side: int, *more: tuple[int, int, int, int]) -> bytes:
    """Returns a TIFF in grey that claims a size."""
    usual = [(256, 4, 1, side), (257, 4, 1, side), (258, 3, 1, 8), (259, 3, 1, 8), (262, 3, 1, 1), (273, 4, 1, 8)]
    usual += [(277, 3, 1, 1), (278, 4, 1, side), (279, 4, 1, 16)]
    return tiff(*{tag[0]: tag for tag in (*usual, *more)}.values())


def jpeg(width: int, height: int, **options: object) -> bytes:
    """Returns a JPEG that claims a size, and has pixels for 48x32."""
    raw = saved("JPEG", **options)
    return patched(raw, {raw.index(b"\xff\xc0") + 5: struct.pack(">HH", height, width)})


def icon(side: int) -> bytes:
    """Returns an icon that claims to be of 16x16 pixels, and holds a PNG with sides of that many."""
    inside = png(side, side)
    return struct.pack("<HHH", 0, 1, 1) + struct.pack("<BBBBHHII", 16, 16, 0, 0, 1, 32, len(inside), 22) + inside


def icns(side: int) -> bytes:
    """Returns an icon of macOS that claims to be of 128x128 pixels, and holds a PNG with sides of that many."""
    inside = png(side, side)
    return b"icns" + struct.pack(">I", 16 + len(inside)) + b"ic07" + struct.pack(">I", 8 + len(inside)) + inside


def jpeg_2000(side: int) -> bytes:
    """Returns a JPEG 2000 that claims a size, in its header and in its stream."""
    raw = saved("JPEG2000")
    size, stream = struct.pack(">II", side, side), raw.index(b"\xff\x51") + 6
    return patched(raw, {raw.index(b"ihdr") + 4: size, stream: size, stream + 16: size})


def avif(side: int) -> bytes:
    """Returns an AVIF that claims a size in its header."""
    raw = saved("AVIF")
    return patched(raw, {raw.index(b"ispe") + 8: struct.pack(">II", side, side)})


def fits(side: int) -> bytes:
    """Returns a FITS image of 8 bits whose pixels are gzip's, and unpack to a hundred times their size."""
    packed = gzip.compress(bytes(4 * side * side), 1)
    table = (
        {"SIMPLE": "T", "BITPIX": "8", "NAXIS": "0"},
        {
            "XTENSION": "'BINTABLE'",
            **{"BITPIX": "8", "NAXIS": "2", "NAXIS1": "8", "NAXIS2": "1", "ZIMAGE": "T", "ZCMPTYPE": "'GIZP_1  '"},
            **{"ZBITPIX": "8", "ZNAXIS": "2", "ZNAXIS1": str(side), "ZNAXIS2": str(side)},
        },
    )
    raw = b""
    for cards in table:
        lines = [f"{name:<8}= {value:>20}".ljust(80) for name, value in cards.items()] + ["END".ljust(80)]
        raw += "".join(lines).replace("GIZP", "GZIP").encode().ljust(2880)
    return raw + bytes(8) + packed


def with_profile(size_bytes: int) -> bytes:
    """Returns a PNG whose colour profile unpacks to a size."""
    return png(48, 32, chunk(b"iCCP", b"sRGB\0\0" + unpacking_to(size_bytes)), colour=2)


# Each is larger than 1 GB allows, and says so in its header or where it is decoded.
TOO_LARGE: dict[str, Callable[[], bytes]] = {
    "a PNG of 250 KB with 256 megapixels": lambda: png(16_000, 16_000),
    "a PNG of 4 channels": lambda: png(12_000, 12_000, colour=6, pixels=b""),
    "a PNG of 2^31 rows": lambda: png(1, (1 << 31) - 1, pixels=b""),
    "a PNG without pixels": lambda: png(100_000, 100_000, colour=2, pixels=b""),
    "a GIF with the largest canvas": lambda: gif((65_535, 65_535), (1, 1)),
    "a GIF with a frame that makes its canvas larger": lambda: gif((48, 32), (48, 32), (60_000, 60_000)),
    "a WebP with the largest canvas": lambda: webp(16_383, 16_383),
    "a TIFF": lambda: huge_tiff(60_000),
    "a TIFF in tiles of a gigapixel": lambda: huge_tiff(40_000, (322, 4, 1, 1 << 15), (323, 4, 1, 1 << 15)),
    "a JPEG": lambda: jpeg(65_500, 65_500),
    "a progressive JPEG": lambda: saved("JPEG", BLACK, progressive=True).replace(
        b"\xff\xc2\x00\x11\x08" + struct.pack(">HH", 32, 48),
        b"\xff\xc2\x00\x11\x08" + struct.pack(">HH", 65_500, 65_500),
    ),
    "a BMP": lambda: patched(saved("BMP"), {18: struct.pack("<ii", 1 << 30, 1 << 30)}),
    "a BMP upside down": lambda: patched(saved("BMP"), {18: struct.pack("<ii", 100_000, -100_000)}),
    "a PSD": lambda: b"8BPS" + struct.pack(">H6xHIIHH", 1, 3, 30_000, 30_000, 8, 3) + bytes(12) + b"\0\1" + bytes(99),
    "an icon with a PNG inside": lambda: icon(10_000),
    "an icon of macOS with a PNG inside": lambda: icns(10_000),
    "a JPEG 2000": lambda: jpeg_2000(1 << 20),
    "an AVIF": lambda: avif(60_000),
    "a DDS": lambda: patched(saved("DDS"), {12: struct.pack("<II", 1 << 20, 1 << 20)}),
    "a QOI": lambda: b"qoif" + struct.pack(">IIBB", 100_000, 100_000, 3, 0) + b"\xfd" * 99 + bytes(7) + b"\1",
    "a TGA": lambda: struct.pack("<BBBHHBHHHHBB", 0, 0, 10, 0, 0, 0, 0, 0, 65_535, 65_535, 24, 0) + b"\xff\0\0\0" * 99,
    "a PCX": lambda: patched(saved("PCX"), {8: struct.pack("<HH", 65_534, 65_534), 66: struct.pack("<H", 65_535)}),
    "an SGI": lambda: patched(saved("SGI"), {6: struct.pack(">HH", 65_535, 65_535)}),
    "a PPM": lambda: b"P6 1000000 1000000 255\n" + bytes(99),
    "an XBM": lambda: b"#define a_width 99999\n#define a_height 99999\nstatic char a_bits[] = {\n0x00\n};",
}
# Each is damaged, or unpacks to more than an honest file has.
NOT_READ: dict[str, Callable[[], bytes]] = {
    "a PNG with texts that unpack to 80 MB": texts,
    "a PNG with a profile that unpacks to 50 MB": lambda: with_profile(50_000_000),
    "an animated PNG with a frame outside of its canvas": lambda: apng(2, (1 << 30, 1 << 30)),
    "a FITS that unpacks": lambda: fits(4_000),
    "a TIFF with 65,535 tags": lambda: b"II*\0" + struct.pack("<IH", 8, 65_535) + bytes(12 * 65_535),
    "a TIFF with a tag of 2^32 values": lambda: tiff((256, 4, 0xFFFF_FFFF, 0), (257, 4, 0xFFFF_FFFF, 0)),
    "a TIFF that leads to itself and has no pixels": lambda: tiff((256, 4, 1, 48)),
    "a WebP whose frame is smaller than it says": lambda: webp(48, 32)[:-30],
    "a program in PostScript": lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n(/etc/passwd) run\n",
    "an SVG that names a file": lambda: b"<svg xmlns='http://www.w3.org/2000/svg'><image href='/etc/passwd'/></svg>",
}


def honest_photo(path: Path) -> Path:
    """Writes a photo of 48 megapixels that lies on its side, as its EXIF says."""
    small = np.random.RandomState(0).randint(0, 256, (60, 80, 3)).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(small).resize((8000, 6000)).save(path, "JPEG", quality=80, exif=exif)
    return path
