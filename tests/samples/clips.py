"""Images and clips for tests, written with Pillow and FFmpeg in the format of their suffix."""

import av
import numpy as np
from PIL import Image

CODECS = {".avi": "mpeg4", ".webm": "libvpx-vp9"}


def stripes(height, width, *colours):
    """Returns (H, W, 3) uint8 with vertical stripes of equal width."""
    return np.repeat(np.array([colours], np.uint8), width // len(colours), 1).repeat(height, 0)


def flat(shade):
    """Returns (32, 48, 3) uint8 in one shade of grey."""
    return np.full((32, 48, 3), shade, np.uint8)


def noisy(height, width):
    """Returns (H, W, 3) uint8 noise, always the same."""
    return np.random.RandomState(0).randint(0, 256, (height, width, 3)).astype(np.uint8)


def save_image(path, pixels, **options):
    Image.fromarray(pixels).save(path, **options)
    return path


def save_clip(path, frames):
    """Writes a clip of frames (H, W, 3) uint8 at 24 frames per second, or at 25 as a GIF."""
    if path.suffix == ".gif":
        first, *others = [Image.fromarray(frame) for frame in frames]
        first.save(path, save_all=True, append_images=others, duration=40)
        return path
    with av.open(str(path), "w") as container:
        stream = container.add_stream(CODECS.get(path.suffix, "libx264"), rate=24, options={"crf": "10"})
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    return path
