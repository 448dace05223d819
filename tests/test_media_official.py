"""Media as the official command line and pipeline treat them, implemented again with torch, Pillow and PyAV."""

import io

import av
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from ltx_runtime.media.prepare import load_media
from ltx_runtime.sampling.conditioning import Item, condition
from ltx_runtime.spec.geometry import Grid, latents_of
from ltx_runtime.vae.resize import resize_bilinear

SIZES = [
    ((436, 640), (480, 704)),
    ((1080, 1584), (480, 704)),
    ((896, 1600), (704, 1216)),
    ((1344, 1344), (1024, 1024)),
    ((173, 48), (118, 193)),
    ((3, 4000), (2, 3001)),
    ((1, 2), (7, 1)),
]


def random(*shape):
    return np.random.RandomState(0).uniform(-1, 1, shape).astype(np.float32)


def photo(height, width):
    """Returns (H, W, 3) uint8 with edges, slopes, noise and flat areas of every shade."""
    row, column = np.mgrid[:height, :width]
    waves = [np.sin(column / 9 + row / 31), np.cos(row / 7), np.sin((row + column) / 55)]
    pixels = 127 + 100 * np.stack(waves, -1) + np.random.RandomState(0).normal(0, 5, (height, width, 3))
    pixels[: height // 2] = (column[: height // 2, :, None] // 8 * 8 + np.arange(3)) % 256
    return pixels.clip(0, 255).astype(np.uint8)


def blurred(picture):
    """Blurs (H, W, 3) uint8 to (3, H, W) float32 in 0..1 like torchvision's gaussian_blur of 3x3 pixels and sigma 1."""
    pixels = torch.from_numpy(picture).permute(2, 0, 1).to(torch.float32) / 255
    bell = torch.exp(-0.5 * torch.tensor([-1.0, 0.0, 1.0]) ** 2)
    bell = bell / bell.sum()
    kernel = torch.outer(bell, bell).expand(3, 1, 3, 3)
    return F.conv2d(F.pad(pixels[None], (1, 1, 1, 1), mode="reflect"), kernel, groups=3)[0]


def through_h264(pixels, crf):
    """Encodes (H, W, 3) uint8 as one frame of an MP4 file on one processor, and decodes it."""
    file = io.BytesIO()
    writer = av.open(file, "w", format="mp4")
    stream = writer.add_stream("libx264", rate=1, options={"crf": str(crf), "preset": "veryfast"})
    stream.height, stream.width = pixels.shape[:2]
    stream.codec_context.thread_count = 1  # the official code has as many slices as processors
    for packet in stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(format="yuv420p")):
        writer.mux(packet)
    for packet in stream.encode(None):
        writer.mux(packet)
    writer.close()
    with av.open(io.BytesIO(file.getvalue())) as reader:
        (frame,) = reader.decode(video=0)
    return frame.to_ndarray(format="rgb24")


@pytest.mark.parametrize(("old", "new"), SIZES, ids=str)
def test_resizing_is_torchs_bilinear_interpolation(old, new):
    video = random(1, 3, 1, *old)
    expected = F.interpolate(torch.from_numpy(video[:, :, 0]), size=new, mode="bilinear", align_corners=False)
    np.testing.assert_allclose(resize_bilinear(video, *new)[:, :, 0], expected.numpy(), atol=1e-6)


@pytest.mark.parametrize("size", [(480, 704), (33, 101), (2, 2), (2, 9)])
def test_the_blur_is_the_mirrored_convolution_to_the_byte(tmp_path, size):
    picture = photo(*size)
    Image.fromarray(picture).save(tmp_path / "a.png")
    loaded = load_media(tmp_path / "a.png", *size, most_frames=1, resize=False, crf=0)
    pixels = blurred(picture).numpy()
    np.testing.assert_allclose(loaded[0, :, 0], 2 * pixels - 1, atol=1e-6)


def test_flat_areas_of_every_shade_are_floored_to_the_same_bytes(tmp_path):
    shades = np.repeat(np.arange(256, dtype=np.uint8), 4 * 8).reshape(256, 4, 8)
    for first in range(0, 256, 64):
        picture = np.repeat(shades[first : first + 64].reshape(256, 8)[..., None], 3, 2)
        Image.fromarray(picture).save(tmp_path / "a.png")
        loaded = load_media(tmp_path / "a.png", 256, 8, most_frames=1, resize=False)
        expected = through_h264((blurred(picture) * 255).byte().permute(1, 2, 0).numpy(), 29)
        np.testing.assert_array_equal(((loaded[0, :, 0] + 1) * 127.5).round().transpose(1, 2, 0), expected)


@pytest.mark.parametrize("crf", [29, 10])
@pytest.mark.parametrize("resize", [False, True])
@pytest.mark.parametrize(("own", "video"), [((480, 640), (256, 384)), ((101, 333), (128, 96)), ((200, 90), (64, 160))])
def test_a_whole_image_is_prepared_to_the_last_bit(tmp_path, own, video, resize, crf):
    picture = Image.fromarray(photo(*own))
    picture.save(tmp_path / "a.png")
    (height, width), aspect = own, video[1] / video[0]
    wide, high = (int(height * aspect), height) if width / height > aspect else (width, int(width / aspect))
    left, top = (width - wide) // 2, (height - high) // 2
    picture = picture.crop((left, top, left + wide, top + high))
    if resize:
        picture = picture.resize((video[1], video[0]))
    pixels = (blurred(np.array(picture)) * 255.0).byte().permute(1, 2, 0)
    pixels = pixels[: pixels.shape[0] // 2 * 2, : pixels.shape[1] // 2 * 2].numpy()
    restored = torch.from_numpy(through_h264(pixels, crf)).permute(2, 0, 1).to(torch.float32) / 255.0
    expected = F.pad(restored * 255.0 / 127.5 - 1.0, (5, 6, 7, 8))[None, :, None]
    loaded = load_media(tmp_path / "a.png", *video, padding=(5, 6, 7, 8), most_frames=1, resize=resize, crf=crf)
    np.testing.assert_array_equal(loaded, expected.numpy())


@pytest.mark.parametrize("strength", [0.0, 0.3, 0.5, 0.7, 1.0])
def test_strength_is_torchs_lerp(strength):
    noise, given = random(1, 4, 3, 2, 5), random(1, 4, 2, 2, 5)[:, :, ::-1].copy()
    made = condition(noise, [Item(given, 0, strength)], lambda index, shape: noise, Grid(3, 2, 5), 24, causal=True)
    mixed = torch.lerp(torch.from_numpy(noise[:, :, :2]), torch.from_numpy(given), strength)
    np.testing.assert_allclose(latents_of(made.tokens, Grid(3, 2, 5))[:, :, :2], mixed.numpy(), atol=1e-7)
