"""Laws of the start of a pass: which frames of a file are used, at which size they are encoded, what noise is drawn."""

from dataclasses import replace

import numpy as np
import pytest
from fakes.sessions import session_of
from fakes.stages import CHANNELS, posterior
from PIL import Image
from samples.clips import save_clip

from ltx_runtime.errors import LtxError
from ltx_runtime.media.prepare import load_media
from ltx_runtime.noise.noise import SeededNoise
from ltx_runtime.planning.media import media_of, read_media
from ltx_runtime.planning.plan import plan
from ltx_runtime.planning.request import Condition, Request
from ltx_runtime.sampling.start import Clip, Media, encode_for, start_of
from ltx_runtime.spec.components import vae_encoder
from ltx_runtime.spec.geometry import Grid, coords_of, tokens_of
from ltx_runtime.spec.versions import VERSIONS
from ltx_runtime.tensors import write_tensors
from ltx_runtime.vae.encode import encode_media
from ltx_runtime.vae.resize import resize_bilinear
from ltx_runtime.vae.tiling import Tiling

REQUEST = Request("a cat", "blurry", 96, 160, 25, 24.0, seed=7)
DEMO, SINGLE = VERSIONS["demo"], VERSIONS["0.9.5"]


def encoding(session, units=None):
    """Returns a function that encodes whole clips with a session, and notes the grid of each in `units`."""

    def encode(clip, grid):
        if units is not None:
            units.append(grid)
        return encode_media(session, clip, Tiling())

    return encode


def drawn(seed, *shape):
    return np.random.RandomState(seed).standard_normal(shape).astype(np.float32)


def shades(frames, height=96, width=160):
    """Returns a clip whose frame n has the value n/100 everywhere."""
    values = np.arange(frames, dtype=np.float32).reshape(1, 1, -1, 1, 1) / 100
    return np.broadcast_to(values, (1, 3, frames, height, width)).copy()


@pytest.fixture
def clip(tmp_path):
    """Writes a prepared clip of a number of frames."""

    def made(frames, name="clip", **size):
        path = tmp_path / f"{name}.safetensors"
        write_tensors(path, {"media": shades(frames, **size)})
        return path

    return made


def read(version=SINGLE, **changes):
    request = replace(REQUEST, **changes)
    planned = plan(request, version)
    (media,) = read_media(planned, media_of(planned).frames, crf=0)
    return media


# --- which frames are used ------------------------------------------------------------------------


def test_without_media_there_is_nothing_to_read():
    assert read() == Media()


@pytest.mark.parametrize(
    ("length", "frame", "used"),
    [
        *((1, 0, 1), (1, 13, 1), (1, 24, 1), (2, 24, 1), (9, 0, 9), (10, 0, 9), (16, 0, 9), (25, 0, 25)),
        *((99, 0, 25), (99, 8, 17), (99, 16, 9), (9, 16, 9), (8, 16, 1), (3, 5, 1), (99, 24, 1)),
    ],
)
def test_of_a_clip_as_many_frames_are_used_as_the_video_has_room_for(clip, length, frame, used):
    (made,) = read(conditions=(Condition(clip(length), frame, 0.6),)).clips
    assert (made.frame, made.strength) == (frame, 0.6)
    np.testing.assert_array_equal(made.video, shades(length)[:, :, :used])


@pytest.mark.parametrize(
    ("length", "frame", "message"),
    [
        (1, 25, "cannot begin at frame 25 of 25 - use 0 to 24"),
        (9, 100, "cannot begin at frame 100 of 25"),
        (9, 4, "a clip must begin at a multiple of 8; got frame 4 - use 0"),
    ],
)
def test_what_has_no_place_in_the_video_is_refused(clip, length, frame, message):
    with pytest.raises(LtxError, match=message):
        read(conditions=(Condition(clip(length), frame),))


def test_media_keep_the_order_in_which_they_were_given(clip):
    given = tuple(Condition(clip(frames, f"clip{frames}"), frame) for frames, frame in ((9, 16), (1, 0), (17, 8)))
    media = read(conditions=given)
    assert [(one.video.shape[2], one.frame) for one in media.clips] == [(9, 16), (1, 0), (17, 8)]


@pytest.mark.parametrize("length", [25, 26, 99])
def test_a_clip_to_start_from_is_cut_to_the_length_of_the_video(clip, length):
    media = read(video=clip(length), strength=0.5)
    np.testing.assert_array_equal(media.whole, shades(25))
    assert media.clips == ()


@pytest.mark.parametrize(("length", "advice"), [(24, 17), (9, 9), (8, 1), (1, 1)])
def test_a_clip_to_start_from_that_is_too_short_is_refused_with_the_length_that_it_has(clip, length, advice):
    path = clip(length)
    with pytest.raises(LtxError) as raised:
        read(video=path, strength=0.5)
    expected = f"{path} has {length} frames, but the new video needs 25 - use --num-frames {advice} or fewer"
    assert str(raised.value) == expected


def test_a_missing_file_is_refused(tmp_path):
    for changes in (
        {"conditions": (Condition(tmp_path / "x.png", 0),)},
        {"video": tmp_path / "x.mp4", "strength": 0.5},
    ):
        with pytest.raises(LtxError, match=r"cannot read .*x.* no such file or directory - check the path"):
            read(**changes)


@pytest.fixture
def noisy(tmp_path):
    """Writes a picture of 300x200 random pixels."""
    path = tmp_path / "noisy.png"
    Image.fromarray(np.random.RandomState(1).randint(0, 256, (200, 300, 3), np.uint8)).save(path)
    return path


PADDED = {"height": 90, "width": 150, "num_frames": 1, "pad": True}
MARGINS = (5, 5, 3, 3)  # left, right, top and bottom, which pad to 96x160


def test_images_are_cut_and_padded_in_their_own_size_and_then_resized_to_that_of_the_pass(noisy):
    (made,) = read(conditions=(Condition(noisy, 0),), **PADDED).clips
    expected = load_media(noisy, 90, 150, most_frames=1, resize=False, crf=0, padding=MARGINS)
    assert expected.shape == (1, 3, 1, 180 + 3 + 3, 300 + 5 + 5)
    np.testing.assert_array_equal(made.video, resize_bilinear(expected, 96, 160))


def test_what_is_made_over_is_resized_to_the_size_asked_for_and_padded(noisy):
    whole = read(video=noisy, strength=0.5, **PADDED).whole
    expected = load_media(noisy, 90, 150, most_frames=1, resize=True, crf=0, padding=MARGINS)
    assert whole.shape == (1, 3, 1, 96, 160)
    np.testing.assert_array_equal(whole, expected)


@pytest.mark.parametrize("crf", [0, 29, 51])
def test_media_are_compressed_as_is_asked_for(noisy, crf):
    request = replace(REQUEST, num_frames=1, conditions=(Condition(noisy, 0),), video=noisy, strength=0.5)
    planned = plan(request, SINGLE)
    (media,) = read_media(planned, media_of(planned).frames, crf)
    for made, resize in ((media.clips[0].video, False), (media.whole, True)):
        expected = load_media(noisy, 96, 160, most_frames=1, resize=resize, crf=crf)
        np.testing.assert_array_equal(made, resize_bilinear(expected, 96, 160))


@pytest.mark.parametrize("crf", [0, 29])
def test_a_clip_has_the_size_of_each_pass_to_the_bit_of_resizing_it_whole(tmp_path, crf):
    frames = [np.roll(np.random.RandomState(1).randint(0, 256, (150, 250, 3), np.uint8), n, 1) for n in range(9)]
    path = save_clip(tmp_path / "a.mp4", frames)
    planned = plan(replace(REQUEST, conditions=(Condition(path, 0),)), VERSIONS["0.9.8-2b-distilled"])
    whole = load_media(path, 96, 160, most_frames=9, resize=False, crf=crf)
    read = read_media(planned, media_of(planned).frames, crf)
    assert len(read) == len(planned.passes) == 2
    for media, one in zip(read, planned.passes, strict=True):
        expected = resize_bilinear(whole, one.grid.height, one.grid.width)
        np.testing.assert_array_equal(media.clips[0].video, expected)


def test_clips_have_room_in_the_video_that_is_kept_not_in_its_padding(clip):
    (made,) = read(conditions=(Condition(clip(25), 0),), num_frames=20, pad=True).clips
    np.testing.assert_array_equal(made.video, shades(17))
    with pytest.raises(LtxError, match="cannot begin at frame 20 of 20"):
        read(conditions=(Condition(clip(1), 20),), num_frames=20, pad=True)


# --- how they are encoded -------------------------------------------------------------------------


def encoder():
    return session_of(vae_encoder(CHANNELS), posterior)


@pytest.mark.parametrize("grid", [Grid(4, 2, 3), Grid(4, 4, 6), Grid(4, 1, 1)], ids=str)
def test_media_are_encoded_at_the_size_of_the_pass(grid):
    media = Media((Clip(shades(9), 16, 1.0), Clip(shades(1, 40, 40), 3, 0.5)), shades(25))
    session, units = encoder(), []
    encoded = encode_for(media, grid, encoding(session, units))
    assert [fed["video"].shape for fed in session.runner.fed] == [
        (1, 3, frames, grid.height, grid.width) for frames in (9, 1, 25)
    ]
    assert units == [Grid(frames, grid.rows, grid.columns) for frames in (2, 1, 4)]
    for one, frames in zip((*encoded.clips, encoded.whole), (9, 1, 25), strict=True):
        expected = shades(frames)[:, :1, ::8, :1, :1]
        assert one.mean.shape == (1, CHANNELS, (frames + 7) // 8, grid.rows, grid.columns)
        np.testing.assert_allclose(one.mean, np.broadcast_to(expected, one.mean.shape), atol=1e-6)


def test_media_of_the_pass_s_size_reach_the_encoder_bit_for_bit():
    video = drawn(1, 1, 3, 9, 64, 96).clip(-1, 1)
    session = encoder()
    encode_for(Media((Clip(video, 0, 1.0),)), Grid(4, 2, 3), encoding(session))
    np.testing.assert_array_equal(session.runner.fed[0]["video"], video)


# --- tokens at the start of a pass ----------------------------------------------------------------


class Draws:
    """Draws noise by name, and notes every draw."""

    def __init__(self):
        self.noise, self.notes = SeededNoise(7), []

    def __call__(self, name, shape):
        self.notes.append((name, shape))
        return self.noise.draw(name, shape)


GRID = Grid(4, 2, 3)
SHAPE = (1, CHANNELS, 4, 2, 3)
PLANNED = plan(replace(REQUEST, height=64, width=96), SINGLE)
# An image or clip at the start needs no extra tokens; one at a later frame does.
MEDIA = Media(
    (
        Clip(shades(1), 0, 1.0),
        Clip(shades(1), 13, 0.6),
        Clip(shades(9), 0, 0.5),
        Clip(shades(17), 8, 1.0),
    )
)
KEYFRAME, CLIP_LATER = (1, CHANNELS, 1, 2, 3), (1, CHANNELS, 2, 2, 3)


NOTHING = Media()


def started(media=NOTHING, before=None, sigma=1.0, *, sampled=False, causal=True):
    encoded = encode_for(media, GRID, encoding(encoder()))
    one = replace(PLANNED.passes[0], sigmas=np.array([sigma, sigma / 2], np.float32))
    draws = Draws()
    return start_of(
        one, PLANNED.settings, SHAPE, before, media, encoded, draws, causal=causal, sampled=sampled
    ), draws.notes


def test_noise_alone_is_the_draw_called_initial_cell_by_cell():
    start, notes = started()
    assert notes == [("initial", SHAPE)]
    np.testing.assert_array_equal(start.tokens, tokens_of(SeededNoise(7).draw("initial", SHAPE)))
    assert (start.mask, start.extra) == (None, 0)


@pytest.mark.parametrize("causal", [True, False])
def test_coordinates_follow_the_frame_rate_and_the_kind_of_positions(causal):
    start, _ = started(causal=causal)
    np.testing.assert_array_equal(start.coords, coords_of(GRID, PLANNED.settings.fps, causal=causal))


@pytest.mark.parametrize("sigma", [1.0, 0.9094, 0.25])
def test_latents_of_the_pass_before_are_moved_to_the_first_noise_level(sigma):
    before = drawn(1, *SHAPE)
    start, notes = started(before=before, sigma=sigma)
    assert notes == [("initial", SHAPE)]
    expected = (1 - sigma) * before + sigma * SeededNoise(7).draw("initial", SHAPE)
    np.testing.assert_allclose(start.tokens, tokens_of(expected), atol=1e-6)


def test_a_clip_to_start_from_is_moved_to_the_first_noise_level_as_its_mean():
    start, notes = started(Media(whole=shades(25)), sigma=0.75)
    assert notes == [("initial", SHAPE)]
    mean = posterior({"video": shades(25, 64, 96)})["posterior"][:, :CHANNELS]
    expected = 0.25 * mean + 0.75 * SeededNoise(7).draw("initial", SHAPE)
    np.testing.assert_allclose(start.tokens, tokens_of(expected), atol=1e-6)
    assert start.mask is None


def test_draws_come_in_the_order_of_the_road_and_only_where_they_are_used():
    _, notes = started(MEDIA)
    assert notes == [("initial", SHAPE), ("keyframe_1", KEYFRAME), ("keyframe_3", CLIP_LATER)]


def test_a_posterior_that_is_drawn_from_is_drawn_right_before_its_item_and_of_a_whole_clip_first():
    _, notes = started(replace(MEDIA, whole=shades(25)), sigma=0.5, sampled=True)
    assert notes == [
        ("posterior_video", SHAPE),
        ("initial", SHAPE),
        ("posterior_0", KEYFRAME),
        ("posterior_1", KEYFRAME),
        ("keyframe_1", KEYFRAME),
        ("posterior_2", (1, CHANNELS, 2, 2, 3)),
        ("posterior_3", (1, CHANNELS, 3, 2, 3)),
        ("keyframe_3", CLIP_LATER),
    ]


@pytest.mark.parametrize("sampled", [False, True], ids=["mean", "sampled"])
def test_an_image_at_the_start_is_its_posterior_s_mean_or_a_draw_of_it(sampled):
    start, _ = started(Media((Clip(shades(2)[:, :, 1:], 0, 1.0),)), sampled=sampled)
    made = posterior({"video": shades(2, 64, 96)[:, :, 1:]})["posterior"]
    expected = made[:, :CHANNELS]
    if sampled:
        expected = expected + made[:, CHANNELS:] * SeededNoise(7).draw("posterior_0", KEYFRAME)
    np.testing.assert_allclose(start.tokens[:, :6], tokens_of(expected), atol=1e-6)
    np.testing.assert_array_equal(start.mask[0], [1] * 6 + [0] * 18)


def test_a_keyframe_s_tokens_come_first_mixed_with_its_noise():
    start, _ = started(Media((Clip(shades(2)[:, :, 1:], 13, 0.6),)))
    mean = posterior({"video": shades(2, 64, 96)[:, :, 1:]})["posterior"][:, :CHANNELS]
    expected = 0.6 * mean + 0.4 * SeededNoise(7).draw("keyframe_0", KEYFRAME)
    assert start.extra == 6
    np.testing.assert_allclose(start.tokens[:, :6], tokens_of(expected), atol=1e-6)
    np.testing.assert_allclose(start.mask[0], [0.6] * 6 + [0] * 24)
    np.testing.assert_array_equal(start.coords[0, 0, :6], np.full(6, np.float32(13) * np.float32(1 / 24)))
