"""Notices videos that show nothing: black, of one colour, or without motion. They are told of and never refused.

A video that people would call dark or slow is neither black nor frozen here: decoders do not compute the same bytes
for two frames, or the same colour for all pixels, unless something is wrong with what they decode.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Frame = NDArray[np.uint8]

BLACK, CONSTANT, FROZEN = "black", "constant", "frozen"
SENTENCES = {
    BLACK: "every frame is black",
    CONSTANT: "every frame is of one colour",
    FROZEN: "all frames are the same",
}
_BLACK = 1  # the largest value of a black pixel, of 255
_SPACING = 16  # of the pixels that are looked at first, which are enough for nearly all frames


class Watched:
    """Notes what all frames of a video have in common; nearly every frame costs a look at one in 256 pixels.

    Attributes:
        count: number of frames.
    """

    def __init__(self) -> None:
        self.count = 0
        self._first: Frame | None = None
        self._is_black = self._is_constant = self._is_frozen = True

    def see(self, frame: Frame) -> None:
        """Looks at the next frame, (height, width, 3) uint8."""
        self.count += 1
        if self._is_constant:  # so is a black frame that may still be followed by others
            self._is_constant = _is_everywhere(frame, frame[:1, :1])
        self._is_black = self._is_black and _is_dark(frame)
        if self._first is None:
            self._first = frame.copy()
        elif self._is_frozen:
            self._is_frozen = _is_everywhere(frame, self._first)

    @property
    def fault(self) -> str | None:
        """The key in SENTENCES of what is wrong with all frames; None if nothing is. One frame alone is not frozen."""
        if not self.count:
            return None
        if self._is_black:
            return BLACK
        if self._is_constant:
            return CONSTANT
        return FROZEN if self._is_frozen and self.count > 1 else None


def _is_dark(frame: Frame) -> bool:
    return bool(frame[::_SPACING, ::_SPACING].max() <= _BLACK and frame.max() <= _BLACK)


def _is_everywhere(frame: Frame, other: Frame) -> bool:
    """Returns whether a frame has the same pixels as another one, or as a pixel (1, 1, 3) everywhere."""
    some, of_other = frame[::_SPACING, ::_SPACING], other[::_SPACING, ::_SPACING]
    return bool((some == of_other).all() and (frame == other).all())
