"""Images and clips for tests: written through Pillow and FFmpeg, of the kind their suffix says."""

import av
import numpy as np
from PIL import Image

CODECS = {".avi": "mpeg4", ".webm": "libvpx-vp9"}


def stripes(height, width, *colours):
    """(H, W, 3) uint8 of vertical stripes of equal width."""
    return np.repeat(np.array([colours], np.uint8), width // len(colours), 1).repeat(height, 0)


def flat(shade):
    """(32, 48, 3) uint8 of one shade of grey."""
    return np.full((32, 48, 3), shade, np.uint8)


def noisy(height, width):
    """(H, W, 3) uint8 of noise, always the same."""
    return np.random.RandomState(0).randint(0, 256, (height, width, 3)).astype(np.uint8)


def save_image(path, pixels, **options):
    Image.fromarray(pixels).save(path, **options)
    return path


def save_clip(path, frames):
    """A clip of frames (H, W, 3) uint8 at 24 frames per second."""
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
