"""Readers of images, clips, and of the record that a video carries."""

import io
import tempfile
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
from fuzz.reader import Reader
from PIL import Image
from samples.clips import noisy, save_with

from ltx_runtime.media.pictures import opened
from ltx_runtime.media.video import save_video
from ltx_runtime.outputs.record import read_record

MOST_FRAMES = 4
HEIGHT, WIDTH = 32, 48
# Formats of Pillow's that a test can write, by the format's name.
IMAGES = (
    *("PNG", "JPEG", "MPO", "WEBP", "AVIF", "GIF", "TIFF", "BMP", "DIB", "JPEG2000", "PPM", "ICO", "ICNS", "QOI"),
    *("DDS", "SGI", "TGA", "PCX", "XBM", "MSP", "IM"),
)
ONE_BIT = ("XBM", "MSP")
MANY = ("PNG", "WEBP", "AVIF", "GIF", "TIFF", "MPO")
# FFmpeg's names of a container and a codec.
CLIPS = {
    "mp4": ("mp4", "libx264"),
    "hevc": ("mp4", "libx265"),
    "webm": ("webm", "libvpx-vp9"),
    "mkv": ("matroska", "mpeg4"),
    "avi": ("avi", "mpeg4"),
    "ts": ("mpegts", "mpeg2video"),
    "mpg": ("mpeg", "mpeg1video"),
    "asf": ("asf", "wmv2"),
    "flv": ("flv", "flv"),
    "ogg": ("ogg", "libvpx"),
    "mxf": ("mxf", "mpeg2video"),
    "nut": ("nut", "ffv1"),
    "y4m": ("yuv4mpegpipe", "wrapped_avframe"),
    "av1": ("ivf", "libsvtav1"),
}


def read_pictures(path: Path) -> None:
    """Reads the first frames of an image or clip."""
    with opened(path) as pictures:
        for frame in islice(pictures.frames, MOST_FRAMES):
            frame.transparent()
            frame.picture()


def image_seeds(name: str) -> list[bytes]:
    mode = "1" if name in ONE_BIT else "RGB"
    picture = Image.fromarray(noisy(64, 64) // 8).convert(mode)
    options = [{}, {"save_all": True, "append_images": [picture, picture]}] if name in MANY else [{}]
    seeds = []
    for one in options:
        file = io.BytesIO()
        picture.save(file, name, **one)
        seeds.append(file.getvalue())
    return seeds


def clip_seeds(name: str) -> list[bytes]:
    frames = [np.repeat(np.repeat(noisy(8, 12, seed) // 4, 8, 0), 8, 1) for seed in range(3)]
    with tempfile.TemporaryDirectory() as folder:
        return [save_with(Path(folder, "clip"), frames, *CLIPS[name]).read_bytes()]


def video_seeds(suffix: str) -> list[bytes]:
    frames = [noisy(HEIGHT, WIDTH, seed) for seed in range(2)]
    with tempfile.TemporaryDirectory() as folder:
        target = save_video(frames, Path(folder, f"clip{suffix}"), (HEIGHT, WIDTH), 24.0, comment='{"prompt": "A fox"}')
        return [(target / "frame_0000.png" if target.is_dir() else target).read_bytes()]


MEDIA = {
    **{f"image-{name.lower()}": Reader(read_pictures, partial(image_seeds, name)) for name in IMAGES},
    **{f"clip-{name}": Reader(read_pictures, partial(clip_seeds, name)) for name in CLIPS},
    **{
        f"record-of-{suffix[1:]}": Reader(read_record, partial(video_seeds, suffix))
        for suffix in (".mp4", ".webm", ".gif", ".png")
    },
}
