"""Facts about an image or clip: those that its file states, and those that were seen when frames were read.

Readers fill Facts; planning turns them into sentences about what is used of a file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from itertools import islice, pairwise
from statistics import median

import numpy as np
from numpy.typing import NDArray

# (height, width, 3) uint8 RGB
Picture = NDArray[np.uint8]

_UNEVEN = 0.25  # part of the usual time between frames by which a frame of a steady clip may be early or late
_TICK_S = 0.0105  # GIF rounds times to hundredths of a second
_SAME_RATE = 0.02  # part by which rates may differ and still be told as the same, such as 23.976 and 24


@dataclass(frozen=True)
class Facts:
    """An image or clip as its file describes it, and as far as it was read.

    Attributes:
        height, width: size of a picture in pixels, with square pixels, and upright if one was read.
        frames: number of frames; as far as it was read it is exact, beyond that it is what the file says. None if the
            file does not say it.
        seen: number of frames that were read.
        about: whether `frames` is estimated from the duration.
        fps: frames per second; None for an image, and if the file does not say it.
        varying: whether the time between frames varies.
        sound: whether there is sound beside the pictures.
        stored_size: height and width as stored, if the pixels are not square.
        pixel_aspect: width of a pixel divided by its height.
        interlaced: whether a frame that was read has lines of two moments.
        transfer: PQ or HLG for HDR; empty for other pictures.
        bits: bits per channel.
        transparent: whether parts of a picture that was read are transparent.
        profile: the name of the colour profile from which colours are converted to sRGB; empty if they are not.
        prepared: whether these are prepared media, which are used as they are.
        read_bytes: the most memory that reading, blurring and compressing a frame takes; 0 for prepared media.
    """

    height: int
    width: int
    frames: int | None = 1
    seen: int = 0
    about: bool = False
    fps: float | None = None
    varying: bool = False
    sound: bool = False
    stored_size: tuple[int, int] | None = None
    pixel_aspect: Fraction = Fraction(1)
    interlaced: bool = False
    transfer: str = ""
    bits: int = 8
    transparent: bool = False
    profile: str = ""
    prepared: bool = False
    read_bytes: int = 0

    def speed_at(self, fps: float) -> float:
        """Returns how many times as fast the clip plays if its frames are shown at `fps`; 1 for nearly its own rate."""
        speed = fps / self.fps if self.fps else 1.0
        return 1.0 if abs(speed - 1) < _SAME_RATE else speed


@dataclass(frozen=True)
class Frame:
    """A frame that was read and not converted yet. Its picture must be asked for before the next frame is read.

    Attributes:
        height, width: size of its picture.
        picture: converts it to RGB; may be called once, and `transparent` not after it, since it frees what was read.
        begins_s: when it is shown, in seconds; None if that is unknown.
        interlaced: whether it has lines of two moments.
        transparent: says whether a part of it is transparent, which takes a look at all its pixels.
    """

    height: int
    width: int
    picture: Callable[[], Picture]
    begins_s: float | None = None
    interlaced: bool = False
    transparent: Callable[[], bool] = field(default=lambda: False)


@dataclass(frozen=True)
class Opened:
    """An image or clip of which nothing but the header was read.

    Attributes:
        facts: what the header says.
        frames: reads the frames in order.
    """

    facts: Facts
    frames: Iterator[Frame]


def seen(opened: Opened, most_frames: int | None = None) -> Facts:
    """Returns the facts after reading the frames, up to `most_frames`; pictures are not converted to RGB."""
    facts, times, count = opened.facts, [], 0
    for frame in islice(opened.frames, most_frames):
        if not count:
            facts = replace(facts, height=frame.height, width=frame.width)
        transparent, interlaced = facts.transparent or frame.transparent(), facts.interlaced or frame.interlaced
        facts = replace(facts, transparent=transparent, interlaced=interlaced)
        count += 1
        if frame.begins_s is not None:
            times.append(frame.begins_s)
    facts = _timed(replace(facts, seen=count), times)
    uncertain = facts.frames is None or facts.about or facts.frames < count
    if count != most_frames or (uncertain and _ended(opened.frames)):
        return replace(facts, frames=count, about=False)
    if uncertain and (facts.frames or 0) <= count:
        return replace(facts, frames=None)
    return facts


def _ended(frames: Iterator[Frame]) -> bool:
    """Whether there are no more frames; a damaged one counts, although it is not needed."""
    try:
        return next(frames, None) is None
    except Exception:
        return False


def _timed(facts: Facts, times: Sequence[float]) -> Facts:
    """Returns the facts with the frame rate of frames that begin at these times, if they come unevenly."""
    gaps = [after - before for before, after in pairwise(times)]
    if not gaps:
        return facts
    usual = median(gaps)
    varying = any(abs(gap - usual) > max(_UNEVEN * usual, _TICK_S) for gap in gaps)
    if (facts.fps is None or varying) and times[-1] > times[0]:
        facts = replace(facts, fps=len(gaps) / (times[-1] - times[0]))
    return replace(facts, varying=varying)
