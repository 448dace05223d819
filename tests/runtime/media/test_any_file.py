"""Laws of files of every kind: what a file contains decides how it is read, and nothing else is opened for it."""

import io
import os
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image
from samples.clips import flat, noisy, save_clip, save_image, save_with

from ltx_runtime.errors import LtxError
from ltx_runtime.media.pictures import opened
from ltx_runtime.media.prepare import load_media, look_at
from ltx_runtime.media.video import save_video
from ltx_runtime.tensors import write_tensors

SHADES = [10, 60, 110, 160, 210]
FRAMES = [flat(shade) for shade in SHADES]
# Large enough to be known as MPEG by its bytes, as every real clip is.
TEXTURED = [np.repeat(np.repeat(noisy(16, 24) // 8, 8, 0), 8, 1) + np.uint8(shade) for shade in SHADES]
# FFmpeg's names of a container, a codec and a pixel format, by a suffix that people know.
CONTAINERS = {
    ".m4v": ("ipod", "libx264", "yuv420p"),
    ".ts": ("mpegts", "libx264", "yuv420p"),
    ".mts": ("mpegts", "mpeg2video", "yuv420p"),
    ".mpg": ("mpeg", "mpeg1video", "yuv420p"),
    ".vob": ("vob", "mpeg2video", "yuv420p"),
    ".3gp": ("3gp", "libx264", "yuv420p"),
    ".wmv": ("asf", "wmv2", "yuv420p"),
    ".flv": ("flv", "flv", "yuv420p"),
    ".mxf": ("mxf", "mpeg2video", "yuv420p"),
    ".nut": ("nut", "ffv1", "yuv420p"),
    ".y4m": ("yuv4mpegpipe", "wrapped_avframe", "yuv420p"),
    ".h264": ("h264", "libx264", "yuv420p"),
}
ANIMATED = (".gif", ".png", ".webp", ".avif")
EVERY_ANIMATION = pytest.mark.parametrize("suffix", ANIMATED)


def animation(path, shades=SHADES, durations=40, **options):
    first, *others = [Image.fromarray(flat(shade)) for shade in shades]
    first.save(path, save_all=True, append_images=others, duration=durations, **options)
    return path


def shades_of(source):
    """Returns the mean of every frame."""
    with opened(source) as pictures:
        return [float(frame.picture().mean()) for frame in pictures.frames]


def refusal(source):
    with pytest.raises(LtxError) as refused:
        load_media(source, 32, 48, most_frames=9, resize=False)
    return str(refused.value)


# --- clips ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a{}", "a", "a.mp4", "a.png", "a.safetensors"])
@pytest.mark.parametrize("suffix", CONTAINERS)
def test_a_clip_is_read_whatever_its_name_says(tmp_path, suffix, name):
    path = save_with(tmp_path / name.format(suffix), TEXTURED, *CONTAINERS[suffix], rate=25)
    np.testing.assert_allclose(shades_of(path), np.mean(TEXTURED, (1, 2, 3)), atol=4)
    facts = look_at(path)
    assert (facts.seen, facts.frames, facts.fps) == (5, 5, pytest.approx(25, rel=0.002))


@EVERY_ANIMATION
def test_an_animated_image_is_a_clip_with_its_own_frame_rate(tmp_path, suffix):
    path = animation(tmp_path / f"a{suffix}")
    np.testing.assert_allclose(shades_of(path), SHADES, atol=4)
    facts = look_at(path, 2)
    assert (facts.seen, facts.frames, facts.fps, facts.varying) == (2, 5, 25, False)


@pytest.mark.parametrize(("suffix", "codec"), [(".png", "apng"), (".webp", "libwebp_anim"), (".avif", "libsvtav1")])
def test_animations_that_ffmpeg_wrote_are_clips(tmp_path, suffix, codec):
    pix_fmt = "rgb24" if codec == "apng" else "yuv420p"
    muxer = {"apng": "apng", "libwebp_anim": "webp"}.get(codec, "avif")
    frames = [np.full((64, 96, 3), shade, np.uint8) for shade in SHADES]
    np.testing.assert_allclose(
        shades_of(save_with(tmp_path / f"a{suffix}", frames, muxer, codec, pix_fmt)), SHADES, atol=4
    )


@EVERY_ANIMATION
def test_an_animation_is_read_under_any_name_and_a_still_of_its_format_is_an_image(tmp_path, suffix):
    path = animation(tmp_path / f"a{suffix}").rename(tmp_path / "a.jpg")
    assert len(shades_of(path)) == 5
    facts = look_at(save_image(tmp_path / f"b{suffix}", flat(90)))
    assert (facts.seen, facts.frames, facts.fps) == (1, 1, None)


def test_the_picture_of_an_animated_png_for_programs_that_do_not_animate_is_no_frame(tmp_path):
    path = animation(tmp_path / "a.png", durations=[40] * 4, default_image=True)
    np.testing.assert_allclose(shades_of(path), SHADES[1:], atol=1)


@pytest.mark.parametrize("suffix", [".tif", ".mpo", ".ico"])
def test_pages_views_and_sizes_are_no_frames(tmp_path, suffix):
    others = {} if suffix == ".ico" else {"save_all": True, "append_images": [Image.fromarray(flat(200))]}
    Image.fromarray(flat(90)).save(tmp_path / f"a{suffix}", **others)
    assert shades_of(tmp_path / f"a{suffix}") == pytest.approx([90], abs=1)


@EVERY_ANIMATION
def test_an_animation_that_pillow_has_opened_is_the_clip_that_its_file_is(tmp_path, suffix):
    with Image.open(animation(tmp_path / f"a{suffix}")) as image:
        image.seek(3)
        np.testing.assert_allclose(shades_of(image), SHADES, atol=4)


def test_the_cover_of_a_song_is_no_clip_and_that_of_a_film_is_not_read_for_it(tmp_path):
    cover = io.BytesIO()
    Image.fromarray(flat(250)).save(cover, "JPEG")
    with av.open(str(tmp_path / "film.mp4"), "w") as container:
        attached = container.add_stream("mjpeg", rate=1)
        attached.height, attached.width, attached.pix_fmt = 32, 48, "yuvj420p"
        attached.disposition = av.stream.Disposition.attached_pic.value
        stream = container.add_stream("libx264", rate=24)
        stream.height, stream.width, stream.pix_fmt = 32, 48, "yuv420p"
        packet = av.Packet(cover.getvalue())
        packet.stream = attached
        container.mux(packet)
        for frame in FRAMES:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    np.testing.assert_allclose(shades_of(tmp_path / "film.mp4"), SHADES, atol=4)


# --- images and tensors ---------------------------------------------------------------------------


@pytest.mark.parametrize("written", [".jpg", ".png", ".webp", ".bmp", ".tga", ".pcx", ".ppm", ".jp2", ".avif", ".qoi"])
@pytest.mark.parametrize("name", ["a", "a.jpg", "a.mp4", "a.safetensors"])
def test_an_image_is_read_whatever_its_name_says(tmp_path, written, name):
    pixels = np.repeat(np.repeat(noisy(4, 6), 8, 0), 8, 1)
    path = save_image(tmp_path / f"b{written}", pixels)
    with Image.open(path) as image:
        expected = np.asarray(image.convert("RGB"))
    path = path.rename(tmp_path / name)
    with opened(path) as pictures:
        (frame,) = pictures.frames
        np.testing.assert_array_equal(frame.picture(), expected)


def test_prepared_media_are_read_whatever_their_name_says(tmp_path):
    media = np.random.RandomState(0).uniform(-1, 1, (1, 3, 2, 6, 7)).astype(np.float32)
    for name in ("a", "a.png", "a.mp4"):
        write_tensors(tmp_path / name, {"media": media})
        assert look_at(tmp_path / name).prepared
        np.testing.assert_array_equal(load_media(tmp_path / name, 32, 48, most_frames=9, resize=False), media)


# --- what is not opened ---------------------------------------------------------------------------


TEXTS = {
    "a.m3u8": "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{0}\n#EXT-X-ENDLIST\n",
    "a.txt": "ffconcat version 1.0\nfile '{0}'\n",
    "a.sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n",
    "a.mpd": "<?xml version='1.0'?><MPD xmlns='urn:mpeg:dash:schema:mpd:2011'><BaseURL>{0}</BaseURL></MPD>",
    "a.eps": "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n(%s) run\n",
    "a.svg": "<svg xmlns='http://www.w3.org/2000/svg'><image href='{0}'/></svg>",
    "a.srt": "1\n00:00:00,000 --> 00:00:01,000\nhello\n",
    "a.mp4": "a text that was named as a clip",
}


@pytest.mark.parametrize("name", TEXTS)
def test_playlists_lists_and_texts_are_refused_and_lead_to_no_other_file(tmp_path, name):
    clip = save_with(tmp_path / "clip.ts", FRAMES, "mpegts", "libx264")
    path = tmp_path / name
    path.write_text(TEXTS[name].replace("{0}", str(clip)))
    said = f"{path} is damaged or not an image or clip of a known format - convert it to .png or .mp4"
    assert refusal(path) == said


@pytest.mark.parametrize("brand", [b"heic", b"mif1", b"avif"])
def test_a_photo_of_tiles_is_refused_where_pillow_cannot_read_it(tmp_path, brand):
    path = tmp_path / "a.heic"
    path.write_bytes(b"\0\0\0\x18ftyp" + brand + bytes(99))
    assert refusal(path) == (
        f"{path} is damaged, or a HEIF or AVIF image that this Pillow cannot read - save it as PNG or JPEG"
    )


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no pipes with a path")
def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.mp4")
    assert refusal(tmp_path / "a.mp4") == f"{tmp_path / 'a.mp4'} is a pipe or a device - give a file"


# --- names ----------------------------------------------------------------------------------------


def test_a_path_may_begin_with_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    save_image(tmp_path / "a.png", flat(90))
    assert look_at("~/a.png").seen == 1
    missing = tmp_path / "b.png"
    assert refusal("~/b.png") == f"cannot read {missing}: no such file or directory - check the path"


def test_a_file_whose_name_begins_like_the_home_folder_is_that_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_image(tmp_path / "~a.png", flat(90))
    assert look_at("~a.png").seen == 1


@pytest.mark.parametrize(
    "url",
    [
        *("https://example.org/a.png", "http://localhost:8000/a.mp4", "hf://owner/name/a.png", "s3://bucket/a.png"),
        *("file:///a.png", "rtsp://camera/stream", "data:image/png;base64,iVBORw0KGgo="),
    ],
)
def test_a_url_is_told_as_a_url(url):
    for given in (url, Path(url)):
        said = refusal(given)
        assert said.endswith(" is a URL - give a file; download it first")
        assert said.startswith(url.split(":")[0])
    assert "example.org" not in url or said.startswith("https://example.org/a.png is a URL")


def test_a_long_url_is_shortened_in_the_message():
    said = refusal("data:image/png;base64," + "A" * 100_000)
    assert len(said) < 300 and "... is a URL" in said


def test_a_file_whose_name_looks_like_a_url_is_that_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "http:").mkdir()
    save_clip(tmp_path / "http:" / "a.mp4", FRAMES)
    assert look_at("http://a.mp4").seen == 5


# --- what a file says of itself -------------------------------------------------------------------


@pytest.mark.parametrize("muxer", ["mp4", "webm"])
def test_a_rate_that_varies_is_noticed_and_averaged(tmp_path, muxer):
    codec = {"mp4": "libx264", "webm": "libvpx-vp9"}[muxer]
    path = save_with(tmp_path / "a", FRAMES, muxer, codec, times=[0, 40, 80, 400, 440])
    facts = look_at(path)
    assert facts.varying and facts.fps == pytest.approx(4 / 0.44)
    assert not look_at(path, 3).varying


@EVERY_ANIMATION
def test_durations_of_an_animation_that_vary_are_noticed(tmp_path, suffix):
    assert look_at(animation(tmp_path / f"a{suffix}", durations=[40, 40, 300, 40, 40])).varying


@pytest.mark.parametrize("rate", [Fraction(24000, 1001), 24, 30, 50])
@pytest.mark.parametrize("muxer", ["mp4", "webm", "mpegts"])
def test_a_steady_rate_does_not_vary_however_coarse_the_times_are(tmp_path, muxer, rate):
    codec = "libvpx-vp9" if muxer == "webm" else "libx264"
    facts = look_at(save_with(tmp_path / "a", FRAMES * 5, muxer, codec, rate=rate))
    assert (facts.varying, facts.fps) == (False, pytest.approx(float(rate), rel=0.005))


@pytest.mark.parametrize("fps", [10, 24, 25, 30, 50])
def test_the_rounded_delays_of_a_gif_do_not_vary(tmp_path, fps):
    frames = [flat(10 * index) for index in range(25)]
    save_video(frames, tmp_path / "a.gif", frames[0].shape[:2], fps)
    facts = look_at(tmp_path / "a.gif", 9)
    assert not facts.varying and facts.speed_at(fps) == 1


def test_a_clip_that_was_cut_off_anywhere_is_never_taken_for_a_shorter_one(tmp_path):
    """Files of ltx-run begin with their index, so that a part of one can still be opened."""
    clip = save_video([noisy(64, 96, seed=i) for i in range(9)], tmp_path / "clip.mp4", (64, 96), 24.0)
    whole = clip.read_bytes()
    for length in range(1, len(whole), max(1, len(whole) // 97)):
        clip.write_bytes(whole[:length])
        with pytest.raises(LtxError, match="is damaged"):
            look_at(clip, 9)


def test_sound_is_noticed(tmp_path):
    for sound in (False, True):
        assert look_at(save_with(tmp_path / "a", FRAMES, "mp4", "libx264", sound=sound)).sound is sound


@pytest.mark.parametrize(("transfer", "name"), [(1, ""), (16, "PQ"), (18, "HLG")])
def test_more_than_8_bits_and_the_transfer_of_hdr_are_noticed(tmp_path, transfer, name):
    path = save_with(tmp_path / "a", FRAMES, "mp4", "libx264", "yuv420p10le", context={"color_trc": transfer})
    facts = look_at(path)
    assert (facts.bits, facts.transfer) == (10, name)
    assert look_at(save_with(path, FRAMES, "mp4", "libx264")).bits == 8


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts"])
def test_the_number_of_frames_beyond_those_read_is_the_file_s_or_an_estimate(tmp_path, suffix):
    muxer = {".mp4": "mp4", ".mkv": "matroska", ".ts": "mpegts"}[suffix]
    path = save_with(tmp_path / f"a{suffix}", FRAMES * 20, muxer, "libx264")
    facts = look_at(path, 17)
    assert facts.seen == 17 and facts.frames == pytest.approx(100, abs=2)
    assert facts.about is (suffix != ".mp4")
    for most in (100, 101, None):
        facts = look_at(path, most)
        assert (facts.seen, facts.frames, facts.about) == (100, 100, False)


def test_where_a_file_does_not_say_it_the_number_of_frames_stays_open(tmp_path):
    path = save_with(tmp_path / "a", FRAMES * 4, "h264", "libx264")
    assert look_at(path, 17).frames is None
    assert look_at(path, 20).frames == 20
