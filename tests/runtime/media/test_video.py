"""Laws of written files: they show the given frames at the requested rate; for errors see test_video_refusals."""

import av
import numpy as np
import pytest
from fakes.processors import CAN_CHANGE, one_core
from PIL import Image

from ltx_runtime.media.video import WRITERS, save_video

EVERY_WRITER = pytest.mark.parametrize("suffix", WRITERS)
EVERY_VIDEO = pytest.mark.parametrize("suffix", [".mp4", ".webm"])
HEIGHT, WIDTH = 64, 96
COLOURS = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (200, 120, 40), (40, 90, 160), (0, 0, 0), (128,) * 3, (255,) * 3]


def flat(colour):
    return np.full((HEIGHT, WIDTH, 3), colour, np.uint8)


def write(output, frames, fps=24.0):
    """Writes frames and returns the path of the file or folder."""
    return save_video(frames, output, frames[0].shape[:2], fps, overwrite=True)


def read(target):
    """Returns the frames of a written target as arrays, whatever its format."""
    if target.is_dir():
        return [np.array(Image.open(path)) for path in sorted(target.iterdir())]
    if target.suffix == ".gif":
        with Image.open(target) as gif:
            frames = []
            for i in range(gif.n_frames):
                gif.seek(i)
                frames.append(np.array(gif.convert("RGB")))
            return frames
    with av.open(str(target)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def placed(folder):
    """Returns every name below a folder, hidden ones too."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@EVERY_WRITER
def test_what_is_read_back_has_the_size_and_number_of_the_frames_given(tmp_path, suffix):
    frames = [flat(colour) for colour in COLOURS]
    target = write(tmp_path / f"clip{suffix}", frames)
    assert [frame.shape for frame in read(target)] == [(HEIGHT, WIDTH, 3)] * len(frames)


@pytest.mark.parametrize("colour", COLOURS, ids=str)
@EVERY_WRITER
def test_a_flat_colour_survives_within_a_few_levels(tmp_path, suffix, colour):
    for frame in read(write(tmp_path / f"clip{suffix}", [flat(colour)] * 3)):
        assert np.abs(frame.astype(int) - colour).max() <= 6


@EVERY_WRITER
def test_red_is_the_first_channel_rows_come_before_columns_and_frames_keep_their_order(tmp_path, suffix):
    frames = []
    for i in range(4):
        frame = flat((0, 0, 0))
        frame[:16, 16 * i : 16 * i + 16] = (220, 30, 30)
        frames.append(frame)
    for i, frame in enumerate(read(write(tmp_path / f"clip{suffix}", frames))):
        rows, columns = np.nonzero(frame[..., 0].astype(int) - frame[..., 2] > 90)
        assert rows.max() < 18
        assert (columns.mean() - 7.5 - 16 * i) ** 2 < 4


@EVERY_WRITER
def test_a_single_frame_can_be_written(tmp_path, suffix):
    assert len(read(write(tmp_path / f"clip{suffix}", [flat((200, 120, 40))]))) == 1


@EVERY_WRITER
def test_frames_that_are_views_into_a_larger_array_are_written_as_they_look(tmp_path, suffix):
    whole = np.zeros((3, HEIGHT, 2 * WIDTH), np.uint8)
    whole[0, :, ::2] = 200
    target = write(tmp_path / f"clip{suffix}", [whole.transpose(1, 2, 0)[:, ::2]] * 2)
    assert np.abs(read(target)[0].astype(int) - (200, 0, 0)).max() <= 6


@pytest.mark.parametrize("fps", [1, 8, 24, 25, 30, 60, 1000, 24000 / 1001])
@EVERY_VIDEO
def test_a_video_plays_at_the_frame_rate_asked_for(tmp_path, suffix, fps):
    output = tmp_path / f"clip{suffix}"
    write(output, [flat((i, 0, 0)) for i in range(0, 250, 10)], fps)
    with av.open(str(output)) as container:
        times = [float(frame.time) for frame in container.decode(video=0)]
        assert float(container.streams.video[0].average_rate) == pytest.approx(fps, rel=1e-4)
    np.testing.assert_allclose(times, np.arange(25) / fps, atol=1e-3)  # WebM stores times in milliseconds


@EVERY_VIDEO
def test_a_video_says_that_its_colours_are_bt709_in_limited_range(tmp_path, suffix):
    write(tmp_path / f"clip{suffix}", [flat((200, 120, 40))] * 2)
    with av.open(str(tmp_path / f"clip{suffix}")) as container:
        context = container.streams.video[0].codec_context
        assert (context.colorspace, context.color_primaries, context.color_trc, context.color_range) == (1, 1, 1, 1)
        assert context.pix_fmt == "yuv420p"


@pytest.mark.parametrize(("suffix", "codec"), [(".mp4", "h264"), (".webm", "vp9")])
def test_a_suffix_means_the_codec_that_players_expect(tmp_path, suffix, codec):
    write(tmp_path / f"clip{suffix}", [flat((200, 120, 40))])
    with av.open(str(tmp_path / f"clip{suffix}")) as container:
        assert container.streams.video[0].codec_context.name == codec


@pytest.mark.parametrize("fps", [1, 8, 24, 30, 50])
def test_a_gif_keeps_time_over_all_its_frames(tmp_path, fps):
    write(tmp_path / "clip.gif", [flat((10 * i, 0, 255 - 10 * i)) for i in range(25)], fps)
    with Image.open(tmp_path / "clip.gif") as gif:
        assert gif.info["loop"] == 0
        delays_ms = []
        for i in range(gif.n_frames):
            gif.seek(i)
            delays_ms.append(gif.info["duration"])
    assert len(delays_ms) == 25
    # A GIF stores times in hundredths of a second, so every frame starts within half of one of its time.
    np.testing.assert_allclose(np.cumsum(delays_ms), 1000 * np.arange(1, 26) / fps, atol=5.001)


def test_pngs_hold_every_pixel_and_are_numbered_in_order(tmp_path):
    frames = [np.random.RandomState(i).randint(0, 256, (HEIGHT, WIDTH, 3)).astype(np.uint8) for i in range(3)]
    write(tmp_path / "clip.png", frames)
    assert placed(tmp_path) == ["clip", *(f"clip/frame_000{i}.png" for i in range(3))]
    np.testing.assert_array_equal(read(tmp_path / "clip"), frames)


@pytest.mark.skipif(not CAN_CHANGE, reason="this system does not bind processes to cores")
@EVERY_WRITER
def test_the_same_frames_make_the_same_bytes_on_one_core_and_on_all(tmp_path, suffix):
    """A frame of 128 rows has two slices, if an encoder makes one for each core."""
    frames = [np.random.RandomState(i).randint(0, 256, (128, WIDTH, 3)).astype(np.uint8) for i in range(9)]

    def content(name):
        target = write(tmp_path / f"{name}{suffix}", frames)
        return [path.read_bytes() for path in (sorted(target.iterdir()) if target.is_dir() else [target])]

    with one_core():
        on_one = content("one")
    assert content("all") == on_one
