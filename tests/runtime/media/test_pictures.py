"""Laws of reading images and clips; for errors see test_prepare_refusals."""

import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from samples.clips import flat, save_clip, save_image, stripes

from ltx_runtime.media.pictures import opened

RED, GREEN, BLUE, GREY = (200, 40, 40), (40, 200, 40), (40, 40, 200), (128, 128, 128)
CLIPS = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".gif")
BLACK, WHITE = (0, 0, 0), (255, 255, 255)
SHADES = [10, 60, 110, 160, 210]
EVERY_CLIP = pytest.mark.parametrize("suffix", CLIPS)
# Quarter turns to the left -> directions of a pixel's right and lower neighbour, (x, y, x, y).
TURNS = {0: (1, 0, 0, 1), 1: (0, -1, 1, 0), 2: (-1, 0, 0, -1), 3: (0, 1, -1, 0)}


def quarters():
    """Returns a picture that looks different in every orientation."""
    return np.concatenate([stripes(32, 48, RED, GREEN), stripes(32, 48, BLUE, GREY)])


def read(path):
    """Reads all frames as (F, H, W, 3) uint8."""
    with opened(path) as pictures:
        return np.stack([frame.picture() for frame in pictures.frames])


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "CMYK", "1"])
def test_images_of_every_mode_become_rgb(tmp_path, mode):
    path = tmp_path / "a.tif"
    Image.fromarray(stripes(32, 48, WHITE, BLACK)).convert(mode).save(path)
    np.testing.assert_allclose(read(path), stripes(32, 48, WHITE, BLACK)[None], atol=2)


@pytest.mark.parametrize(("orientation", "turned"), [(1, 0), (3, 2), (6, 3), (8, 1)])
def test_a_photo_is_turned_as_its_camera_was_held(tmp_path, orientation, turned):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save_image(tmp_path / "a.png", quarters(), exif=exif)
    np.testing.assert_array_equal(read(path)[0], np.rot90(quarters(), turned))


@pytest.mark.parametrize("suffix", [".png", ".gif"])
def test_a_still_image_is_one_frame(tmp_path, suffix):
    assert read(save_image(tmp_path / f"a{suffix}", flat(90))).shape == (1, 32, 48, 3)


@EVERY_CLIP
def test_frames_of_a_clip_come_in_order(tmp_path, suffix):
    frames = read(save_clip(tmp_path / f"a{suffix}", [flat(shade) for shade in SHADES]))
    assert frames.shape == (len(SHADES), 32, 48, 3)
    np.testing.assert_allclose(frames.mean((1, 2, 3)), SHADES, atol=4)


@EVERY_CLIP
def test_red_is_the_first_channel_and_rows_come_before_columns(tmp_path, suffix):
    (frame,) = read(save_clip(tmp_path / f"a{suffix}", [quarters()]))
    assert np.abs(frame.astype(int) - quarters()).mean() < 6


@EVERY_CLIP
def test_suffixes_are_known_in_capitals(tmp_path, suffix):
    path = save_clip(tmp_path / f"a{suffix}", [flat(shade) for shade in SHADES])
    assert len(read(path.rename(tmp_path / f"B{suffix.upper()}"))) == len(SHADES)


@pytest.mark.parametrize("name", ["a:b.mp4", "http:a.mp4", "a@b c.mp4", "ä-猫.mp4", "-i.mp4", "%03d.mp4"])
def test_clips_may_have_any_name(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    save_clip(tmp_path / "a.mp4", [flat(shade) for shade in SHADES]).rename(tmp_path / name)
    assert len(read(Path(name))) == len(SHADES)


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("turned", TURNS)
def test_a_clip_is_turned_and_mirrored_as_its_file_says(tmp_path, turned, mirrored):
    path = save_clip(tmp_path / "a.mp4", [quarters()] * 2)
    right_x, right_y, down_x, down_y = TURNS[turned]
    if mirrored:
        right_x, down_x = -right_x, -down_x
    raw = bytearray(path.read_bytes())
    place = raw.index(b"tkhd") + 44  # offset of the matrix in the track header
    matrix = [n << 16 for n in (right_x, right_y, 0, down_x, down_y, 0, 0, 0)]
    raw[place : place + 36] = struct.pack(">9i", *matrix, 1 << 30)
    path.write_bytes(raw)
    expected = np.rot90(quarters(), turned)
    expected = expected[:, ::-1] if mirrored else expected
    for frame in read(path):
        assert frame.shape == expected.shape
        assert np.abs(frame.astype(int) - expected).mean() < 6
