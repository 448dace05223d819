"""Laws of prepared images and clips; test_media_official compares with torch, test_prepare_refusals has errors."""

import numpy as np
import pytest
from fakes.processors import CAN_CHANGE, one_core
from PIL import Image
from samples.clips import flat, noisy, save_clip, save_image, stripes

from ltx_runtime.media import pictures
from ltx_runtime.media.facts import Facts, Frame, Opened
from ltx_runtime.media.prepare import load_media, look_at
from ltx_runtime.tensors import write_tensors

RED, GREEN, BLUE, GREY = (200, 40, 40), (40, 200, 40), (40, 40, 200), (128, 128, 128)
SHADES = [10, 60, 110, 160, 210]
PLAIN = {"most_frames": 99, "resize": False, "crf": 0, "blur": False}
SIDE = np.exp([-0.5, 0, -0.5]) / np.exp([-0.5, 0, -0.5]).sum()  # blur kernel along one axis


def bytes_of(loaded):
    """Converts (1, 3, F, H, W) in [-1, 1] to (F, H, W, 3) in 0..255."""
    return (loaded[0].transpose(1, 2, 3, 0) + 1) * 127.5


# --- images ---------------------------------------------------------------------------------------


def test_an_image_as_it_is_is_its_pixels_from_minus_one_to_one(tmp_path):
    pixels = noisy(32, 48)
    loaded = load_media(save_image(tmp_path / "a.png", pixels), 32, 48, **PLAIN)
    assert (loaded.shape, loaded.dtype) == ((1, 3, 1, 32, 48), np.float32)
    np.testing.assert_allclose(bytes_of(loaded)[0], pixels, atol=1e-4)
    assert load_media(save_image(tmp_path / "b.png", flat(0)), 32, 48, **PLAIN).max() == -1
    assert load_media(save_image(tmp_path / "w.png", flat(255)), 32, 48, **PLAIN).min() == 1


@pytest.mark.parametrize("size", [(32, 16), (16, 32)])
def test_the_middle_of_an_image_of_another_shape_is_cut_out(tmp_path, size):
    pixels = stripes(32, 96, *[RED] * 4, *[GREEN] * 4, *[BLUE] * 4)
    if size[0] < size[1]:
        pixels = pixels.transpose(1, 0, 2)
    path = save_image(tmp_path / "a.png", np.ascontiguousarray(pixels))
    loaded = bytes_of(load_media(path, *size, **PLAIN))[0]
    assert loaded.shape[:2] == size
    np.testing.assert_allclose(loaded, np.broadcast_to(np.float32(GREEN), loaded.shape), atol=1e-4)


@pytest.mark.parametrize(
    ("own", "video", "cut"),
    [
        ((101, 333), (480, 704), (101, 148)),  # 101 * 704 / 480 = 148.13
        ((333, 101), (480, 704), (68, 101)),  # 101 * 480 / 704 = 68.86
        ((64, 64), (704, 1216), (37, 64)),
        ((480, 704), (480, 704), (480, 704)),
        ((5, 5), (32, 64), (2, 5)),
    ],
)
def test_the_cut_is_rounded_down_and_its_odd_pixel_is_lost_on_the_far_side(tmp_path, own, video, cut):
    pixels = noisy(*own)
    loaded = bytes_of(load_media(save_image(tmp_path / "a.png", pixels), *video, **PLAIN))[0]
    top, left = (own[0] - cut[0]) // 2, (own[1] - cut[1]) // 2
    np.testing.assert_allclose(loaded, pixels[top : top + cut[0], left : left + cut[1]], atol=1e-4)


@pytest.mark.parametrize("crf", [0, 29])
@pytest.mark.parametrize("video", [(64, 96), (31, 47), (33, 64)])
def test_for_video_to_video_frames_get_the_size_of_the_video_even_an_odd_one(tmp_path, video, crf):
    path = save_image(tmp_path / "a.png", noisy(50, 40))
    assert load_media(path, *video, most_frames=1, resize=True, crf=crf).shape == (1, 3, 1, *video)


def test_resizing_is_pillows_own_for_pictures(tmp_path):
    pixels = noisy(40, 60)
    path = save_image(tmp_path / "a.png", pixels)
    resized = np.array(Image.fromarray(pixels).resize((96, 64), Image.Resampling.BICUBIC))
    np.testing.assert_allclose(bytes_of(load_media(path, 64, 96, **{**PLAIN, "resize": True}))[0], resized, atol=1e-4)


def test_padding_is_mid_grey_around_the_picture(tmp_path):
    path = save_image(tmp_path / "a.png", flat(255))
    padded = load_media(path, 32, 48, padding=(1, 2, 3, 4), **PLAIN)
    assert padded.shape == (1, 3, 1, 39, 51)
    assert padded[..., 3:-4, 1:-2].min() == 1
    padded[..., 3:-4, 1:-2] = 0
    assert not padded.any()


# --- blur and compression -------------------------------------------------------------------------


def test_the_blur_spreads_a_point_as_a_gaussian_over_3x3_pixels(tmp_path):
    pixels = flat(0)
    pixels[10, 20] = 255
    path = save_image(tmp_path / "a.png", pixels)
    blurred = bytes_of(load_media(path, 32, 48, **{**PLAIN, "blur": True}))[0] / 255
    expected = np.zeros(blurred.shape)
    expected[9:12, 19:22] = np.outer(SIDE, SIDE)[..., None]
    np.testing.assert_allclose(blurred, expected, atol=1e-6)


def test_the_blur_mirrors_pixels_at_the_border(tmp_path):
    pixels = stripes(4, 4, (255, 255, 255), (0, 0, 0), (0, 0, 0), (100, 100, 100))
    path = save_image(tmp_path / "a.png", pixels)
    blurred = bytes_of(load_media(path, 4, 4, **{**PLAIN, "blur": True}))[0, :, :, 0]
    row = [255 * SIDE[1], 255 * SIDE[0], 100 * SIDE[0], 100 * SIDE[1]]
    np.testing.assert_allclose(blurred, np.broadcast_to(row, (4, 4)), atol=1e-3)


def test_pictures_higher_than_a_band_are_blurred_as_one(tmp_path):
    pixels = noisy(100, 20)
    path = save_image(tmp_path / "a.png", pixels)
    mirrored = np.pad(pixels.astype(np.float64), ((1, 1), (1, 1), (0, 0)), "reflect")
    expected = sum(SIDE[i] * SIDE[j] * mirrored[i : i + 100, j : j + 20] for i in range(3) for j in range(3))
    np.testing.assert_allclose(bytes_of(load_media(path, 100, 20, **{**PLAIN, "blur": True}))[0], expected, atol=1e-3)


def test_compression_loses_more_at_a_higher_crf_and_an_odd_row_and_column_always(tmp_path):
    pixels = noisy(63, 95)
    path = save_image(tmp_path / "a.png", pixels)
    losses = []
    for crf in (1, 15, 29, 51):
        loaded = bytes_of(load_media(path, 63, 95, **{**PLAIN, "crf": crf}))[0]
        assert loaded.shape == (62, 94, 3)
        losses.append(np.abs(loaded - pixels[:62, :94]).mean())
    assert losses == sorted(losses) and losses[0] < losses[-1]


@pytest.mark.skipif(not CAN_CHANGE, reason="this system does not bind processes to cores")
def test_a_picture_is_compressed_alike_on_one_core_and_on_all(tmp_path):
    path = save_image(tmp_path / "a.png", noisy(256, 384))
    with one_core():
        on_one = load_media(path, 256, 384, most_frames=1, resize=False)
    np.testing.assert_array_equal(load_media(path, 256, 384, most_frames=1, resize=False), on_one)


@pytest.mark.parametrize("colour", [RED, GREEN, BLUE, GREY], ids=str)
def test_a_flat_colour_survives_all_preparation_within_a_few_levels(tmp_path, colour):
    path = save_image(tmp_path / "a.png", stripes(64, 96, colour))
    loaded = bytes_of(load_media(path, 64, 96, most_frames=1, resize=False))[0]
    np.testing.assert_allclose(loaded, np.broadcast_to(np.float32(colour), loaded.shape), atol=6)


# --- clips ----------------------------------------------------------------------------------------


def test_a_clip_is_cut_to_the_number_of_frames_that_are_wanted(tmp_path):
    path = save_clip(tmp_path / "a.mp4", [flat(shade) for shade in SHADES])
    assert [look_at(path, most).seen for most in (None, 3, 9)] == [5, 3, 5]
    loaded = bytes_of(load_media(path, 32, 48, **{**PLAIN, "most_frames": 3}))
    np.testing.assert_allclose(loaded.mean((1, 2, 3)), SHADES[:3], atol=4)


def test_every_frame_of_a_clip_is_prepared_as_an_image_would_be(tmp_path):
    frames = [noisy(32, 48), 255 - noisy(32, 48)]
    path = save_clip(tmp_path / "a.mp4", frames)
    stored = bytes_of(load_media(path, 32, 48, **PLAIN)).round().astype(np.uint8)
    together = load_media(path, 30, 40, padding=(1, 1, 2, 2), most_frames=2, resize=False)
    for index, frame in enumerate(stored):
        image = save_image(tmp_path / f"{index}.png", frame)
        alone = load_media(image, 30, 40, padding=(1, 1, 2, 2), most_frames=1, resize=False)
        np.testing.assert_array_equal(together[:, :, [index]], alone)


def test_a_clip_is_not_read_beyond_what_is_wanted(tmp_path, monkeypatch):
    def frames():
        for shade in SHADES[:3]:
            yield Frame(32, 48, lambda shade=shade: flat(shade))
        raise AssertionError("a fourth frame was read")

    monkeypatch.setattr(pictures, "_opened_file", lambda path, stack, most_bytes: Opened(Facts(32, 48, 5), frames()))
    (tmp_path / "a.mp4").touch()
    assert look_at(tmp_path / "a.mp4", 3).seen == 3
    assert load_media(tmp_path / "a.mp4", 32, 48, **{**PLAIN, "most_frames": 3}).shape[2] == 3


# --- media that are prepared already --------------------------------------------------------------


def test_a_prepared_item_is_taken_as_it_stands_but_for_its_number_of_frames(tmp_path):
    given = np.random.RandomState(0).uniform(-1, 1, (1, 3, 5, 6, 7)).astype(np.float32)
    path = tmp_path / "a.safetensors"
    write_tensors(path, {"media": given})
    assert [look_at(path, most).seen for most in (None, 3, 9)] == [5, 3, 5]
    for most in (3, 5, 9):
        loaded = load_media(path, 64, 96, padding=(1, 2, 3, 4), most_frames=most, resize=True)
        np.testing.assert_array_equal(loaded, given[:, :, :most])
