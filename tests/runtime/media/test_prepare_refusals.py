"""Laws of images and clips that cannot be used: one sentence says what is wrong and what to do."""

import io
import wave

import av
import numpy as np
import pytest
from PIL import Image
from samples.clips import noisy, save_clip, save_image

from ltx_runtime.errors import LtxError
from ltx_runtime.media import pictures
from ltx_runtime.media.facts import Facts, Frame, Opened
from ltx_runtime.media.prepare import load_media, look_at
from ltx_runtime.tensors import write_tensors

IMAGES = (".png", ".jpg", ".webp", ".bmp", ".tif", ".avif")
CLIPS = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".gif")
EVERY_IMAGE = pytest.mark.parametrize("suffix", IMAGES)
EVERY_CLIP = pytest.mark.parametrize("suffix", CLIPS)
EVERY_FILE = pytest.mark.parametrize("suffix", [*IMAGES, *CLIPS])


def save(path, frames=6):
    """Writes an image or clip of noise in the format of its suffix."""
    if path.suffix in CLIPS:
        return save_clip(path, [np.roll(noisy(32, 48), index, 0) for index in range(frames)])
    return save_image(path, noisy(32, 48))


def load(path, height=32, width=48, **options):
    return load_media(path, height, width, **{"most_frames": 9, "resize": False, "crf": 0, **options})


def refusal(path, **options):
    """Returns the sentence with which loading refuses a file; counting its frames must refuse it in the same words."""
    with pytest.raises(LtxError) as refused:
        load(path, **options)
    with pytest.raises(LtxError) as refused_too:
        look_at(path)
    assert str(refused_too.value) == str(refused.value)
    return str(refused.value)


def unreadable(path):
    return f"{path} is damaged or not an image or clip of a known format - convert it to .png or .mp4"


# --- files ----------------------------------------------------------------------------------------


@EVERY_FILE
def test_a_missing_file(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    assert refusal(path) == f"cannot read {path}: no such file or directory - check the path"


@EVERY_FILE
def test_a_folder(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    path.mkdir()
    assert refusal(path) == f"cannot read {path}: is a directory - give a file instead of a folder"


@EVERY_FILE
@pytest.mark.parametrize("content", [b"", b"\n", b"This is no picture at all, but a text. " * 99], ids=len)
def test_a_file_that_is_not_what_its_name_says(tmp_path, suffix, content):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(content)
    assert refusal(path) == unreadable(path)


@EVERY_IMAGE
@pytest.mark.parametrize("kept", [0.1, 0.5, 0.9])
def test_an_image_of_which_the_end_is_missing(tmp_path, suffix, kept):
    path = save(tmp_path / f"a{suffix}")
    raw = path.read_bytes()
    path.write_bytes(raw[: int(kept * len(raw))])
    assert refusal(path).startswith(f"{path} is damaged")


@pytest.mark.parametrize("suffix", [".mp4", ".mov"])
def test_a_clip_of_which_the_end_is_missing_and_with_it_the_index(tmp_path, suffix):
    path = save(tmp_path / f"a{suffix}")
    raw = path.read_bytes()
    path.write_bytes(raw[: len(raw) // 2])
    assert refusal(path) == unreadable(path)


def with_its_index_first(path):
    """Writes the same clip with its index first, so that it can be played while it is loaded."""
    target = path.with_name(f"first_{path.name}")
    with av.open(str(path)) as given, av.open(str(target), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream_from_template(given.streams.video[0])
        for packet in given.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                container.mux(packet)
    return target


def test_a_clip_is_read_up_to_where_it_is_damaged_and_no_further(tmp_path):
    path = with_its_index_first(save(tmp_path / "a.mp4", frames=60))
    whole = load(path)
    path.write_bytes(path.read_bytes()[:-500])
    assert look_at(path, 9).seen == 9
    np.testing.assert_array_equal(load(path), whole)
    for read_all in (lambda: look_at(path), lambda: load(path, most_frames=60)):
        with pytest.raises(LtxError) as refused:
            read_all()
        assert str(refused.value) == unreadable(path)


@EVERY_FILE
def test_whatever_is_damaged_a_file_is_read_or_refused(tmp_path, suffix):
    path = save(tmp_path / f"a{suffix}", frames=3)
    raw = path.read_bytes()
    chance = np.random.RandomState(0)
    outcomes = []
    for _ in range(40):
        changed = bytearray(raw)
        for place in chance.randint(0, min(len(raw), 600), 3):
            changed[place] = chance.randint(0, 256)
        path.write_bytes(changed[: chance.randint(len(raw) // 2, 2 * len(raw))])
        try:
            outcomes.append(load(path).shape[1] == 3)
        except LtxError as error:
            outcomes.append(" - " in str(error))
    assert all(outcomes)


# --- contents of files ----------------------------------------------------------------------------


def test_sound_without_pictures(tmp_path):
    sound = io.BytesIO()
    with wave.open(sound, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(bytes(8000))
    path = tmp_path / "a.mkv"
    path.write_bytes(sound.getvalue())
    assert refusal(path) == f"{path} has no video stream - give a clip with pictures"


def test_a_clip_without_frames(tmp_path, monkeypatch):
    path = tmp_path / "a.mp4"
    path.touch()
    monkeypatch.setattr(pictures, "_opened_file", lambda path, stack, most_bytes: Opened(Facts(32, 48), iter(())))
    assert refusal(path) == f"{path} has no frames that can be read - give another clip"


def test_a_clip_whose_frames_change_their_size(tmp_path, monkeypatch):
    path = tmp_path / "a.mp4"
    path.touch()
    sizes = ((32, 48), (64, 96))
    frames = (Frame(*size, lambda size=size: noisy(*size)) for size in sizes)
    monkeypatch.setattr(pictures, "_opened_file", lambda path, stack, most_bytes: Opened(Facts(32, 48), frames))
    with pytest.raises(LtxError, match=r"^the frames of .*a\.mp4 differ in size - convert it to \.mp4$"):
        load(path)


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float32])
def test_an_image_of_more_than_8_bits_of_grey(tmp_path, dtype):
    path = tmp_path / "a.tif"
    Image.fromarray(np.full((32, 48), 9000, dtype)).save(path)
    assert refusal(path) == f"{path} stores more than 8 bits per channel - save it with 8 bits per channel"


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (500, 1), (40, 2)])
def test_an_image_too_small_to_cut_the_shape_from(tmp_path, size):
    path = save_image(tmp_path / "a.png", noisy(*size))
    with pytest.raises(LtxError) as refused:
        load(path)
    said = (
        f"{path} is {size[1]}x{size[0]} pixels, too small to crop to the aspect ratio of 48x32 - give a larger picture"
    )
    assert str(refused.value) == said


@pytest.mark.parametrize("video", [(1, 64), (64, 1), (1, 1)])
def test_a_video_too_small_to_be_given_by_images(tmp_path, video):
    with pytest.raises(LtxError, match=r"^images cannot be cropped to \d+x\d+ pixels - use 32x32 or more$"):
        load(save(tmp_path / "a.png"), *video)


def test_the_smallest_picture_that_can_be_used_is_of_2x2_pixels(tmp_path):
    path = save_image(tmp_path / "a.png", noisy(2, 2))
    assert load(path, 32, 32, crf=29).shape == (1, 3, 1, 2, 2)


@pytest.mark.parametrize("crf", [-1, 52])
def test_a_crf_that_h264_does_not_have(tmp_path, crf):
    with pytest.raises(LtxError, match=rf"^crf must be from 0 \(no compression\) to 51; got {crf} - use 29$"):
        load(save(tmp_path / "a.png"), crf=crf)


@pytest.mark.parametrize(
    "tensor",
    [
        np.zeros((1, 3, 9, 32), np.float32),
        np.zeros((3, 9, 32, 48), np.float32),
        np.zeros((2, 3, 1, 32, 48), np.float32),
        np.zeros((1, 4, 1, 32, 48), np.float32),
        np.zeros((1, 3, 0, 32, 48), np.float32),
        np.zeros((1, 3, 1, 32, 48), np.int64),
    ],
    ids=lambda tensor: f"{tensor.dtype}{tensor.shape}",
)
def test_a_prepared_item_of_another_form(tmp_path, tensor):
    path = tmp_path / "a.safetensors"
    write_tensors(path, {"media": tensor})
    stored = {np.dtype(np.float32): "F32", np.dtype(np.int64): "I64"}[tensor.dtype]
    said = f"are stored as {stored} of shape {list(tensor.shape)}"
    assert refusal(path) == f"media in {path} {said} - save it as float32 of (1, 3, frames, height, width)"


def test_a_prepared_item_that_is_not_scaled(tmp_path):
    path = tmp_path / "a.safetensors"
    write_tensors(path, {"media": np.full((1, 3, 1, 32, 48), 255, np.float32)})
    assert refusal(path) == f"media in {path} has absolute values up to 255 - scale it to -1..1"


def test_a_tensor_file_without_media(tmp_path):
    path = tmp_path / "a.safetensors"
    write_tensors(path, {"latents": np.zeros(3, np.float32)})
    assert "media" in refusal(path) and "latents" in refusal(path)
