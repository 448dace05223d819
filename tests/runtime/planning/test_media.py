"""Laws of what is used of images and clips: which frames, at which size, in how much memory, and what is told of it."""

import struct
import subprocess
import sys
import zlib
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from samples.clips import noisy, save_clip, save_image, save_with

from ltx_runtime.errors import LtxError
from ltx_runtime.media import clips
from ltx_runtime.planning import media as media_module
from ltx_runtime.planning.media import filled, media_of, read_media
from ltx_runtime.planning.plan import plan
from ltx_runtime.planning.request import Condition, Request, resolved
from ltx_runtime.spec.versions import VERSIONS

REQUEST = Request("a cat", height=96, width=160, num_frames=25, fps=24.0, seed=7)
SINGLE, DEMO = VERSIONS["0.9.5"], VERSIONS["demo"]
ALIKE = np.full((96, 160, 3), 90, np.uint8)


def looked_at(request=REQUEST, version=SINGLE, memory_bytes=None, **changes):
    request = replace(request, **changes)
    sized = request.fit == "size-from-image"
    request = filled(request, version, memory_bytes)
    return media_of(plan(resolved(request, version), version), memory_bytes, sized=sized)


def told(source, frame=0, **changes):
    """Returns what is told of one condition, without its name."""
    lines = list(looked_at(conditions=(Condition(source, frame),), **changes).lines())
    name = source if isinstance(source, Path) else "the given"
    assert all(line.startswith(str(name)) for line in lines)
    return [line.split(": ", 1)[1] for line in lines]


def clip(path, count, shape=(96, 160), **options):
    return save_with(path, [np.full((*shape, 3), 90, np.uint8)] * count, "mp4", "libx264", **options)


def refusal(**changes):
    with pytest.raises(LtxError) as refused:
        looked_at(**changes)
    return str(refused.value)


# --- frames ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "frame", "said"),
    [
        (30, 8, ["uses the first 17 of 30 frames"]),
        (9, 16, []),
        (30, 0, ["uses the first 25 of 30 frames"]),
        (24, 0, ["uses the first 17 of 24 frames"]),
        (8, 0, ["uses only the first of 8 frames, as a still image"]),
        (9, 24, ["uses only the first of 9 frames, as a still image"]),
        (25, 0, []),
        (1, 3, []),
    ],
)
def test_frames_that_are_not_used_are_told(tmp_path, count, frame, said):
    assert told(clip(tmp_path / "a.mp4", count), frame) == said
    assert told(np.stack([ALIKE] * count), frame) == said


def test_frames_of_animations_and_of_clips_that_do_not_say_their_number_are_told(tmp_path):
    frames = [ALIKE] * 30
    first, *others = [Image.fromarray(np.full((96, 160, 3), 8 * n, np.uint8)) for n in range(30)]
    first.save(tmp_path / "a.webp", save_all=True, append_images=others, duration=1000 / 24)
    assert "uses the first 25 of 30 frames" in told(tmp_path / "a.webp")
    assert told(save_with(tmp_path / "a.ts", frames, "mpegts", "libx264")) == ["uses the first 25 of about 30 frames"]
    assert told(save_with(tmp_path / "a.h264", frames, "h264", "libx264"), fps=25.0) == [
        "uses the first 25 of more than 25 frames"
    ]


def test_a_clip_to_start_from_is_told_in_the_same_way(tmp_path):
    path = clip(tmp_path / "a.mp4", 30, rate=48)
    lines = [f"{path}: uses the first 25 of 30 frames"]
    lines.append(f"{path}: plays at 0.5 times its speed: it has 48 frames a second, the video 24")
    assert list(looked_at(video=path, strength=0.5).lines()) == lines


def test_a_clip_to_start_from_decides_the_length(tmp_path):
    for count, frames in ((30, 25), (9, 9), (8, 1)):
        path = clip(tmp_path / "a.mp4", count)
        assert filled(replace(REQUEST, video=path, num_frames=None), SINGLE).num_frames == frames
        assert filled(replace(REQUEST, video=path), SINGLE).num_frames == 25


def undecoded(*streams):
    raise AssertionError("a frame was decoded")


def test_a_clip_to_start_from_that_is_far_too_long_is_refused_without_decoding_it(tmp_path, monkeypatch):
    path = clip(tmp_path / "a.mp4", 25)
    monkeypatch.setattr(media_module, "LARGEST", 20)
    monkeypatch.setattr(clips, "_decoded", undecoded)
    said = refusal(video=path, num_frames=None)
    assert said == f"{path} has 25 frames; a video has at most 20 - give --num-frames"


def test_looking_at_a_clip_decodes_no_more_frames_than_the_video_has_room_for(tmp_path, monkeypatch):
    decoded, count = clips._decoded, []

    def counted(*streams):
        for frame in decoded(*streams):
            count.append(frame)
            yield frame

    monkeypatch.setattr(clips, "_decoded", counted)
    path = clip(tmp_path / "a.mp4", 90)
    looked_at(conditions=(Condition(path, 8),))
    assert len(count) == 17


# --- speed, sound, shape, colours -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("rate", "fps", "speed"),
    [(60, 24.0, "0.4"), (12, 24.0, "2"), (25, 30.0, "1.2"), (24, 24.0, None), (Fraction(24000, 1001), 24.0, None)],
)
def test_another_speed_is_told_with_both_rates(tmp_path, rate, fps, speed):
    said = told(clip(tmp_path / "a.mp4", 25, rate=rate), fps=fps)
    expected = f"plays at {speed} times its speed: it has {float(rate):g} frames a second, the video {fps:g}"
    assert said == ([] if speed is None else [expected])


def test_a_varying_rate_and_dropped_sound_are_told(tmp_path):
    times = [0, 40, 80, 400, 440, 480, 520, 560, 600]
    path = save_with(tmp_path / "a.mp4", [ALIKE] * 9, "mp4", "libx264", times=times, sound=True)
    assert told(path) == [
        "its sound is dropped",
        "its frame rate varies around 13.3, and its speed will, too: the video has 24 frames a second throughout",
    ]


def test_a_still_image_of_a_clip_has_no_speed(tmp_path):
    assert told(clip(tmp_path / "a.mp4", 1, rate=60)) == []


@pytest.mark.parametrize(
    ("own", "said"),
    [
        ((96, 160), []),
        ((480, 800), []),
        ((101, 168), []),  # a rounding
        ((160, 96), ["loses 103 of 160 pixels (64%) at the top and bottom to the shape of the video"]),
        ((96, 320), ["loses 160 of 320 pixels (50%) at the left and right to the shape of the video"]),
    ],
)
def test_what_the_crop_cuts_off_is_told_unless_it_is_a_rounding(tmp_path, own, said):
    assert told(save_image(tmp_path / "a.png", noisy(*own))) == said


def test_colours_and_pixels_that_change_are_told(tmp_path):
    pixels = np.dstack([ALIKE, np.full((96, 160), 9, np.uint8)])
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert told(tmp_path / "a.png") == ["what is transparent becomes black"]
    context = {"color_trc": 18, "sample_aspect_ratio": Fraction(4, 3)}
    path = save_with(tmp_path / "a.mp4", [ALIKE[:, :120]], "mp4", "libx264", "yuv420p10le", context=context)
    assert told(path) == [
        "pixels of 4:3 are made square: 120x96 becomes 160x96",
        "10 bits per channel become 8",
        "HDR (HLG) is shown as it is stored, which looks pale: convert it to SDR first",
    ]


def test_interlaced_clips_are_told(tmp_path):
    for name, options in (("a.mp4", {"x264-params": "interlaced=1"}), ("b.mp4", {})):
        said = told(save_with(tmp_path / name, [ALIKE] * 9, "mp4", "libx264", **options))
        comb = "is interlaced, which shows as combs where something moves: deinterlace it first"
        assert said == ([comb] if options else [])


def test_a_16_bit_png_is_told(tmp_path):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = zlib.compress(b"".join(b"\0" + b"\x80\x01" * 3 * 160 for _ in range(96)))
    header = struct.pack(">IIBBBBB", 160, 96, 16, 2, 0, 0, 0)
    whole = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    (tmp_path / "a.png").write_bytes(whole)
    assert told(tmp_path / "a.png") == ["16 bits per channel become 8"]


# --- fit ------------------------------------------------------------------------------------------


def first_pixels(source, **changes):
    """Returns the first frame of the only condition as (H, W, 3) in 0..255, not compressed."""
    request = replace(REQUEST, num_frames=1, conditions=(Condition(source),), **changes)
    planned = plan(request, SINGLE)
    (media,) = read_media(planned, media_of(planned).frames, crf=0)
    return (media.clips[0].video[0, :, 0].transpose(1, 2, 0) + 1) * 127.5


@pytest.mark.parametrize(
    ("own", "inside"),
    [
        ((200, 100), (96, 48)),
        ((100, 400), (40, 160)),
        ((24, 20), (96, 80)),
        ((480, 800), (96, 160)),
        ((9, 4000), (1, 160)),
    ],
)
def test_with_pad_the_whole_picture_is_there_in_the_middle_of_black(tmp_path, own, inside):
    path = save_image(tmp_path / "a.png", np.full((*own, 3), 200, np.uint8))
    pixels = first_pixels(path, fit="pad")
    assert pixels.shape == (96, 160, 3)
    top, left = (96 - inside[0]) // 2, (160 - inside[1]) // 2
    expected = np.zeros((96, 160, 3))
    expected[top : top + inside[0], left : left + inside[1]] = 200
    edge = np.abs(pixels - expected) > 1e-3
    edge[max(top - 1, 0) : top + 1] = edge[top + inside[0] - 1 : top + inside[0] + 1] = False  # the blur
    edge[:, max(left - 1, 0) : left + 1] = edge[:, left + inside[1] - 1 : left + inside[1] + 1] = False
    assert not edge.any()
    said = f"fills {inside[1]}x{inside[0]} of 160x96 pixels; the rest is black"
    assert told(path, fit="pad") == ([] if inside == (96, 160) else [said])


def test_pad_and_crop_are_the_same_for_a_picture_of_the_video_s_size(tmp_path):
    path = save_image(tmp_path / "a.png", noisy(96, 160))
    np.testing.assert_array_equal(first_pixels(path, fit="pad"), first_pixels(path, fit="crop"))


def test_a_clip_to_start_from_is_fitted_too(tmp_path):
    path = clip(tmp_path / "a.mp4", 9, (96, 80))
    request = replace(REQUEST, num_frames=9, video=path, strength=0.5, fit="pad")
    (media,) = read_media(plan(request, SINGLE), [], crf=29)
    assert media.whole.shape == (1, 3, 9, 96, 160)
    assert media.whole[..., :30].max() < -0.9 and media.whole[..., -30:].max() < -0.9
    np.testing.assert_allclose(media.whole[..., 50:110], 90 / 127.5 - 1, atol=0.05)


@pytest.mark.parametrize("version", ["0.9.5", "0.9.8-2b-distilled", "demo"])
def test_a_size_from_an_image_has_its_shape_and_about_the_default_number_of_pixels(version):
    version = VERSIONS[version]
    for aspect in (0.3, 0.5, 9 / 16, 2 / 3, 3 / 4, 1, 4 / 3, 1.5, 16 / 9, 2.39, 4):
        picture = np.zeros((1000, round(1000 * aspect), 3), np.uint8)
        for pad, step in ((False, 32), (True, 2)):
            request = Request("x", conditions=(Condition(picture),), fit="size-from-image", pad=pad)
            sized = filled(request, version)
            assert sized.height % step == sized.width % step == 0
            plan(resolved(sized, version), version)
            if version.name == "demo" and not pad:
                continue  # of so few pixels that multiples of 32 are far apart
            assert sized.width / sized.height == pytest.approx(aspect, rel=0.13 if step == 32 else 0.01)
            assert sized.width * sized.height == pytest.approx(version.width * version.height, rel=0.25)


def test_the_size_is_that_of_the_first_image_as_it_is_shown_and_is_told(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = save_image(tmp_path / "a.jpg", noisy(300, 400), exif=exif)
    given = {"conditions": (Condition(path), Condition(ALIKE, 8)), "height": None, "width": None}
    request = filled(replace(REQUEST, fit="size-from-image", **given), SINGLE)
    assert request.height > request.width and request.fit == "crop"
    line = f"{path}: gives the video its size: 300x400 becomes {request.width}x{request.height}"
    assert next(looked_at(fit="size-from-image", **given).lines()) == line
    lines = list(looked_at(fit="size-from-image", **given).lines())
    assert sum("gives the video its size" in line for line in lines) == 1


def test_the_size_of_a_clip_to_start_from_is_taken_if_there_is_no_image(tmp_path):
    path = clip(tmp_path / "a.mp4", 25, (160, 96))
    request = replace(REQUEST, height=None, width=None, video=path, fit="size-from-image", strength=0.5)
    assert filled(request, SINGLE).height > filled(request, SINGLE).width
    assert "gives the video its size" in next(looked_at(request).lines())


def test_what_does_not_go_together_with_a_fit_is_refused():
    given = {"conditions": (Condition(ALIKE),), "fit": "size-from-image"}
    advice = "leave height and width out, or use --fit crop or pad"
    assert refusal(**given) == f"height is 96, but fit size-from-image takes the size from the image - {advice}"
    assert refusal(height=None, **given) == (
        f"width is 160, but fit size-from-image takes the size from the image - {advice}"
    )
    assert refusal(height=None, width=None, fit="size-from-image") == (
        "fit size-from-image needs an image or clip to take the size from - add --image, or leave it out"
    )
    for refused in (lambda: looked_at(fit="stretch"), lambda: plan(replace(REQUEST, fit="stretch"), SINGLE)):
        with pytest.raises(LtxError, match="unknown fit 'stretch' - use one of crop, pad, size-from-image"):
            refused()


# --- memory ---------------------------------------------------------------------------------------


def bomb(path, width, height):
    """Writes a PNG that claims a size and has no pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = b"IDAT" + zlib.compress(b"")
    chunks = (struct.pack(">I", len(one) - 4) + one + struct.pack(">I", zlib.crc32(one)) for one in (header, data))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))
    return path


def test_an_image_of_more_pixels_than_memory_holds_is_refused_by_its_header(tmp_path):
    path = bomb(tmp_path / "a.png", 48_000, 48_000)
    said = (
        f"{path} is 48000x48000 pixels and needs about 32.26 GB of memory, more than the 1.00 GB that reading a "
        "picture may take - make it smaller, or give a larger --memory"
    )
    for changes in ({"conditions": (Condition(path),)}, {"video": path}, {"video": path, "num_frames": None}):
        assert refusal(**changes) == said
    sized = {"conditions": (Condition(path),), "fit": "size-from-image", "height": None, "width": None}
    assert refusal(**sized) == said
    assert "more than the 0.50 GB that" in refusal(memory_bytes=500_000_000, conditions=(Condition(path),))
    assert "damaged" in refusal(memory_bytes=10**12, conditions=(Condition(path),))


def test_an_image_of_any_size_is_read_if_memory_holds_it(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # beyond twice this, Pillow by itself refuses
    path = save_image(tmp_path / "a.png", ALIKE)
    assert told(path) == []
    assert Image.MAX_IMAGE_PIXELS == 100
    assert "is 160x96 pixels" in refusal(memory_bytes=100_000, conditions=(Condition(path),))


def test_a_clip_of_more_pixels_than_memory_holds_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    path = clip(tmp_path / "a.mp4", 1, (960, 1600))
    monkeypatch.setattr(clips, "_decoded", undecoded)
    said = refusal(memory_bytes=100_000_000, conditions=(Condition(path),))
    assert said.startswith(f"{path} is 1600x960 pixels and needs about 0.12 GB of memory, more than the 0.10 GB that ")


def test_clips_that_fit_one_by_one_but_not_together_are_refused(tmp_path):
    given = tuple(Condition(clip(tmp_path / f"{n}.mp4", count), 0) for n, count in enumerate((25, 9)))
    whole = looked_at(conditions=given)
    assert sum(one.kept_bytes for one in whole.all) == (25 + 9) * 96 * 160 * 3 * 4
    looked_at(conditions=given, memory_bytes=whole.peak_bytes)
    said = refusal(conditions=given, memory_bytes=whole.peak_bytes - 1)
    assert said.startswith("the given images and clips need about 55.04 MB of memory, 25 frames of ")
    assert said.endswith(
        "0.mp4 the most; --memory is 55.04 MB - use a shorter clip or a smaller size, or a larger --memory"
    )


MEASURED = """
import re, sys
from pathlib import Path
from ltx_runtime.planning.media import media_of, read_media
from ltx_runtime.planning.plan import plan
from ltx_runtime.planning.request import Condition, Request
from ltx_runtime.spec.versions import VERSIONS
import av, PIL.Image, PIL.ImageOps
request = Request("x", height=96, width=160, num_frames=int(sys.argv[2]), conditions=(Condition(sys.argv[1]),))
planned = plan(request, VERSIONS["0.9.8-2b-distilled"])
def peak():
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
before = peak()
media = media_of(planned)
read_media(planned, media.frames, 29)
print(peak() - before, media.peak_bytes)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc; the code is the same elsewhere")
@pytest.mark.parametrize(
    ("name", "size", "count"), [("a.jpg", (3000, 4000), 1), ("a.webp", (3000, 4000), 1), ("a.mp4", (1080, 1920), 9)]
)
def test_reading_takes_no_more_memory_than_is_planned(tmp_path, name, size, count):
    pixels = np.asarray(Image.fromarray(noisy(size[0] // 40, size[1] // 40)).resize(size[::-1]))
    path = tmp_path / name
    if count == 1:
        save_image(path, pixels)
    else:
        save_clip(path, [np.roll(pixels, 8 * n, 1) for n in range(count)])
    command = [sys.executable, "-c", MEASURED, str(path), str(count)]
    root = Path(media_module.__file__).parents[2]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=root, timeout=120, check=True)
    taken, planned = map(int, ended.stdout.split())
    assert 0.3 * planned < taken < 1.1 * planned


def test_a_file_that_became_shorter_since_it_was_looked_at_is_refused(tmp_path):
    path = clip(tmp_path / "a.mp4", 25)
    planned = plan(replace(REQUEST, conditions=(Condition(path),)), SINGLE)
    used = media_of(planned).frames
    clip(path, 9)
    with pytest.raises(LtxError, match=r"a\.mp4 has 9 frames now, and had 25 before - run it again"):
        read_media(planned, used, crf=0)
