"""Laws of pixels that are stored in an unusual way: with opacity, with a profile of colours, or not square."""

import struct
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image, ImageCms
from samples.clips import flat, noisy, save_image, save_with, stripes

from ltx_runtime.errors import LtxError
from ltx_runtime.media.pictures import opened
from ltx_runtime.media.prepare import look_at

WHITE, BLACK = (255, 255, 255), (0, 0, 0)


def read(source):
    """Reads all frames as (F, H, W, 3) uint8."""
    with opened(source) as pictures:
        return np.stack([frame.picture() for frame in pictures.frames])


# --- transparency ---------------------------------------------------------------------------------


def hidden(*colours):
    """Returns (32, 48, 4) uint8, opaque grey on the left; on the right, colours that are hidden under no opacity."""
    pixels = np.dstack([np.full((32, 48, 3), 90, np.uint8), np.full((32, 48), 255, np.uint8)])
    pixels[:, 24:] = [*colours, 0]
    return pixels


EXPECTED = np.concatenate([np.full((32, 24, 3), 90), np.zeros((32, 24, 3))], 1)


@pytest.mark.parametrize("suffix", [".png", ".webp", ".tif", ".avif"])
def test_what_is_transparent_is_black_whatever_colours_are_hidden_there(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    exact = {".webp": {"lossless": True, "exact": True}, ".avif": {"quality": 100, "subsampling": "4:4:4"}}
    for colours in ((255, 0, 0), (0, 255, 0), (12, 34, 56)):
        Image.fromarray(hidden(*colours)).save(path, **exact.get(suffix, {}))
        np.testing.assert_allclose(read(path)[0], EXPECTED, atol=8 if suffix == ".avif" else 0)
        assert look_at(path).transparent


@pytest.mark.parametrize("mode", ["LA", "PA", "La", "RGBa"])
def test_images_in_memory_of_every_mode_with_opacity_are_put_on_black(mode):
    image = Image.fromarray(hidden(255, 255, 255))
    if mode == "La":
        image = image.convert("LA")
    np.testing.assert_array_equal(read(image.convert(mode))[0], EXPECTED)
    assert look_at(image.convert(mode)).transparent


@pytest.mark.parametrize("mode", ["P", "L", "RGB"])
def test_a_colour_that_a_file_declares_transparent_is_black(tmp_path, mode):
    pixels = np.concatenate([np.full((32, 24, 3), 90, np.uint8), np.full((32, 24, 3), 200, np.uint8)], 1)
    image = Image.fromarray(pixels).convert("L")
    if mode == "P":
        image = image.convert("P")
    if mode == "RGB":
        image = image.convert("RGB")
    image.save(tmp_path / "a.png", transparency=(200,) * 3 if mode == "RGB" else 200)
    np.testing.assert_array_equal(read(tmp_path / "a.png")[0], EXPECTED)
    assert look_at(tmp_path / "a.png").transparent


def test_half_opaque_pixels_are_half_as_bright(tmp_path):
    pixels = np.dstack([noisy(32, 48), np.repeat(np.arange(32, dtype=np.uint8)[:, None] * 8, 48, 1)])
    Image.fromarray(pixels).save(tmp_path / "a.png")
    expected = pixels[..., :3].astype(np.float64) * pixels[..., 3:] / 255
    np.testing.assert_allclose(read(tmp_path / "a.png")[0], expected, atol=0.51)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64])
def test_arrays_with_opacity_are_what_their_image_is(tmp_path, dtype):
    pixels = np.dstack([noisy(32, 48), noisy(32, 48)[..., 0]])
    scale = 1 if dtype == np.uint8 else 255
    Image.fromarray(pixels).save(tmp_path / "a.png")
    for array in (pixels, np.stack([pixels] * 2)):
        frames = read((array / scale).astype(dtype))
        for frame in frames:
            np.testing.assert_array_equal(frame, read(tmp_path / "a.png")[0])
    assert look_at(pixels).transparent and not look_at(pixels[..., :3]).transparent


def test_an_opaque_image_with_opacity_is_unchanged_and_not_called_transparent(tmp_path):
    pixels = np.dstack([noisy(32, 48), np.full((32, 48), 255, np.uint8)])
    Image.fromarray(pixels).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read(tmp_path / "a.png")[0], noisy(32, 48))
    for source in (tmp_path / "a.png", pixels, pixels / 255):
        assert not look_at(source).transparent


@pytest.mark.parametrize("suffix", [".gif", ".png", ".webp"])
def test_every_frame_of_an_animation_is_put_on_black(tmp_path, suffix):
    first, second = Image.fromarray(hidden(255, 0, 0)), Image.fromarray(hidden(0, 255, 0)[:, ::-1])
    options = {"disposal": 2} if suffix == ".gif" else {"disposal": 1} if suffix == ".png" else {"lossless": True}
    first.save(tmp_path / f"a{suffix}", save_all=True, append_images=[second], duration=40, **options)
    np.testing.assert_array_equal(read(tmp_path / f"a{suffix}"), [EXPECTED, EXPECTED[:, ::-1]])


@pytest.mark.parametrize(
    ("muxer", "codec", "pix_fmt", "options"),
    [
        ("mov", "qtrle", "argb", {}),
        ("mov", "prores_ks", "yuva444p10le", {}),
        ("mov", "png", "rgba", {}),
        ("webm", "libvpx-vp9", "yuva420p", {"crf": 10, "b": 0}),
        ("webm", "libvpx", "yuva420p", {"auto-alt-ref": 0, "crf": 10, "b": 1_000_000}),
    ],
)
def test_clips_with_opacity_are_put_on_black(tmp_path, muxer, codec, pix_fmt, options):
    frames = [hidden(255, 255, 255), hidden(255, 0, 0)[:, ::-1].copy()]
    path = save_with(tmp_path / "a", frames, muxer, codec, pix_fmt, **options)
    made = read(path)
    assert np.abs(made[:, :, 30:] - [EXPECTED[:, 30:], EXPECTED[:, ::-1][:, 30:]]).max() <= 6
    assert np.abs(made[:, :, :18] - [EXPECTED[:, :18], EXPECTED[:, ::-1][:, :18]]).max() <= 6
    assert look_at(path).transparent


def test_transparency_that_begins_later_in_a_clip_is_noticed(tmp_path):
    opaque = np.dstack([flat(90), np.full((32, 48), 255, np.uint8)])
    path = save_with(tmp_path / "a", [opaque, opaque, hidden(1, 2, 3)], "mov", "qtrle", "argb")
    assert [look_at(path, most).transparent for most in (1, 2, 3)] == [False, False, True]


# --- profiles -------------------------------------------------------------------------------------

PRIMARIES = {
    "sRGB": ((0.64, 0.33), (0.30, 0.60), (0.15, 0.06)),
    "Display P3": ((0.68, 0.32), (0.265, 0.69), (0.15, 0.06)),
}
D65 = (0.3127, 0.329)


def to_xyz(primaries):
    """Returns the matrix from linear RGB of these primaries and D65 white to XYZ."""
    columns = np.array([[x / y, 1, (1 - x - y) / y] for x, y in primaries]).T
    white = np.array([D65[0] / D65[1], 1, (1 - D65[0] - D65[1]) / D65[1]])
    return columns * np.linalg.solve(columns, white)


def linear(pixels):
    unit = np.asarray(pixels, np.float64) / 255
    return np.where(unit <= 0.04045, unit / 12.92, ((unit + 0.055) / 1.055) ** 2.4)


def profile(name, primaries):
    """Returns an ICC profile with sRGB's curve, as version 2 of the ICC specification stores it."""
    bradford = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
    white, d50 = to_xyz(primaries).sum(1), np.array([0.9642, 1.0, 0.8249])
    adapt = np.linalg.inv(bradford) @ np.diag((bradford @ d50) / (bradford @ white)) @ bradford
    xyz = adapt @ to_xyz(primaries)

    def fixed(values):
        return struct.pack(">3i", *(round(value * 65536) for value in values))

    curve = np.round(linear(np.arange(256)) * 65535).astype(">u2").tobytes()
    text = name.encode() + b"\0"
    tags = {
        b"desc": b"desc\0\0\0\0" + struct.pack(">I", len(text)) + text + bytes(78),
        b"cprt": b"text\0\0\0\0none\0",
        b"wtpt": b"XYZ \0\0\0\0" + fixed(d50),
        **{tag: b"XYZ \0\0\0\0" + fixed(xyz[:, i]) for i, tag in enumerate((b"rXYZ", b"gXYZ", b"bXYZ"))},
        **{tag: b"curv\0\0\0\0" + struct.pack(">I", 256) + curve for tag in (b"rTRC", b"gTRC", b"bTRC")},
    }
    table, data = struct.pack(">I", len(tags)), b""
    for tag, content in tags.items():
        table += tag + struct.pack(">II", 132 + 12 * len(tags) + len(data), len(content))
        data += content + bytes(-len(content) % 4)
    header = struct.pack(">I4sI4s4s4s", 0, b"none", 0x02100000, b"mntr", b"RGB ", b"XYZ ") + bytes(12) + b"acsp"
    header = (header + bytes(28) + fixed(d50)).ljust(128, b"\0")
    whole = header + table + data
    return struct.pack(">I", len(whole)) + whole[4:]


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif", ".avif"])
def test_colours_of_another_profile_are_converted_to_srgb(tmp_path, suffix):
    colour = (200, 90, 60)
    options = {".jpg": {"quality": 100, "subsampling": 0}, ".webp": {"lossless": True}, ".avif": {"quality": 100}}
    path = tmp_path / f"a{suffix}"
    p3 = profile("Display P3", PRIMARIES["Display P3"])
    save_image(path, stripes(32, 48, colour), icc_profile=p3, **options.get(suffix, {}))
    mixed = np.linalg.inv(to_xyz(PRIMARIES["sRGB"])) @ to_xyz(PRIMARIES["Display P3"]) @ linear(colour)
    expected = 255 * (1.055 * mixed ** (1 / 2.4) - 0.055)
    assert np.abs(expected - colour).max() > 10
    np.testing.assert_allclose(read(path)[0], np.broadcast_to(expected, (32, 48, 3)), atol=4)
    assert look_at(path).profile == "Display P3"


def test_srgb_under_any_name_leaves_every_byte_as_it_is(tmp_path):
    for icc in (
        profile("of a camera", PRIMARIES["sRGB"]),
        ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(),
    ):
        path = save_image(tmp_path / "a.png", noisy(32, 48), icc_profile=icc)
        np.testing.assert_array_equal(read(path)[0], noisy(32, 48))
        assert look_at(path).profile == ""


@pytest.mark.parametrize("icc", [b"no profile", profile("x", PRIMARIES["Display P3"])[:200]])
def test_a_damaged_profile_is_as_none(tmp_path, icc):
    path = save_image(tmp_path / "a.png", noisy(32, 48), icc_profile=icc)
    np.testing.assert_array_equal(read(path)[0], noisy(32, 48))


@pytest.mark.parametrize("mode", ["P", "RGBA", "L", "LA", "CMYK"])
def test_a_profile_of_colours_on_an_image_of_any_mode_does_no_harm(tmp_path, mode):
    path = tmp_path / "a.tif"
    p3 = profile("Display P3", PRIMARIES["Display P3"])
    image = Image.fromarray(stripes(32, 48, WHITE, BLACK)).convert(mode)
    image.save(path, icc_profile=p3)
    np.testing.assert_allclose(read(path)[0], stripes(32, 48, WHITE, BLACK), atol=2)


def test_a_turned_photo_with_a_profile_is_turned_and_converted(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    p3 = profile("Display P3", PRIMARIES["Display P3"])
    pixels = noisy(32, 48) // 2 + 64
    plain = read(save_image(tmp_path / "a.png", pixels, icc_profile=p3))[0]
    turned = read(save_image(tmp_path / "b.png", pixels, icc_profile=p3, exif=exif))[0]
    np.testing.assert_array_equal(turned, np.rot90(plain, 3))
    facts = look_at(tmp_path / "b.png")
    assert (facts.height, facts.width) == (48, 32)


# --- pixels that are not square -------------------------------------------------------------------


@pytest.mark.parametrize("muxer", ["mp4", "matroska", "mpegts"])
@pytest.mark.parametrize(
    ("aspect", "size"),
    [
        (Fraction(16, 11), (64, 140)),  # PAL 16:9
        (Fraction(12, 11), (64, 105)),  # PAL 4:3
        (Fraction(8, 9), (72, 96)),  # NTSC 4:3
        (Fraction(1), (64, 96)),
        (Fraction(500, 501), (64, 96)),
    ],
)
def test_pixels_become_square_and_none_is_lost(tmp_path, muxer, aspect, size):
    stored = stripes(64, 96, (200, 40, 40), (40, 200, 40), (40, 40, 200))
    path = save_with(tmp_path / "a", [stored] * 30, muxer, "libx264", context={"sample_aspect_ratio": aspect})
    facts = look_at(path)
    assert (facts.height, facts.width) == size
    assert facts.stored_size == (None if size == (64, 96) else (64, 96))
    expected = np.asarray(Image.fromarray(stored).resize(size[::-1]))
    for frame in read(path):
        assert frame.shape == expected.shape
        assert np.abs(frame.astype(int) - expected).mean() < 6


def test_a_clip_with_wide_pixels_that_lies_on_its_side_is_stretched_before_it_is_turned(tmp_path):
    stored = stripes(64, 96, (200, 40, 40), (40, 40, 200))
    path = save_with(
        tmp_path / "a.mp4", [stored] * 2, "mp4", "libx264", context={"sample_aspect_ratio": Fraction(3, 2)}
    )
    raw = bytearray(path.read_bytes())
    place = raw.index(b"tkhd") + 44  # offset of the matrix in the track header
    raw[place : place + 36] = struct.pack(">9i", *[n << 16 for n in (0, 1, 0, -1, 0, 0, 0, 0)], 1 << 30)
    path.write_bytes(raw)
    expected = np.rot90(np.asarray(Image.fromarray(stored).resize((144, 64))), 3)
    (first, _) = read(path)
    assert first.shape == (144, 64, 3)
    assert np.abs(first.astype(int) - expected).mean() < 6
    facts = look_at(path)
    assert (facts.height, facts.width, facts.stored_size) == (144, 64, (64, 96))


# --- arrays ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "shape", [(64, 96), (64, 96, 1), (64, 96, 5), (2, 3, 64, 96), (1, 1, 64, 96, 3), (0, 64, 96, 3)]
)
def test_an_array_of_another_shape_is_refused(shape):
    with pytest.raises(LtxError, match=r"must be \(F, H, W, 3\) or \(H, W, 3\); got"):
        look_at(np.zeros(shape, np.uint8))
