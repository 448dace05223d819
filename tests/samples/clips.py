"""Images and clips for tests, written with Pillow and FFmpeg in the format of their suffix, or in any format."""

from fractions import Fraction

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


def noisy(height, width, seed=0):
    """Returns (H, W, 3) uint8 noise, always the same."""
    return np.random.RandomState(seed).randint(0, 256, (height, width, 3)).astype(np.uint8)


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


def save_with(
    path, frames, muxer, codec, pix_fmt="yuv420p", *, rate=24, times=None, sound=False, context=None, **options
):
    """Writes frames with FFmpeg in any format and codec.

    Args:
        path: the file, whose suffix does not matter.
        frames: (H, W, 3) or (H, W, 4) uint8.
        muxer, codec, pix_fmt: names of FFmpeg's.
        rate: frames per second.
        times: when each frame is shown, in units of 1/1000 s; None for evenly.
        sound: whether a silent track is added.
        context: attributes of the codec context, such as sample_aspect_ratio.
        options: options of the encoder.
    """
    with av.open(str(path), "w", format=muxer) as container:
        stream = container.add_stream(codec, rate=rate, options={key: str(value) for key, value in options.items()})
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = pix_fmt
        for name, value in (context or {}).items():
            setattr(stream.codec_context, name, value)
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        audio = container.add_stream("aac" if muxer != "webm" else "libopus", rate=48000) if sound else None
        for index, frame in enumerate(frames):
            picture = av.VideoFrame.from_ndarray(frame, format="rgba" if frame.shape[-1] == 4 else "rgb24")
            picture = picture.reformat(format=pix_fmt)
            if times is not None:
                picture.pts, picture.time_base = times[index], Fraction(1, 1000)
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
        if audio is not None:
            silence = av.AudioFrame.from_ndarray(np.zeros((2, 960), np.float32), format="fltp", layout="stereo")
            silence.sample_rate = 48000
            container.mux(audio.encode(silence))
            container.mux(audio.encode(None))
    return path
