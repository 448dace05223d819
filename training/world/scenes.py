"""What a drawn clip shows: a background and one or two things, drawn at random, some of them held out from training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

Option = TypeVar("Option")

KINDS = ("ball", "box", "star", "boat", "balloon", "bird", "fox")
BACKGROUNDS = ("meadow", "sea", "night", "desert", "snow", "sunset")

# Name of a colour -> red, green and blue in 0..1.
COLOURS = {
    "red": (0.86, 0.16, 0.14),
    "orange": (0.95, 0.55, 0.10),
    "yellow": (0.97, 0.83, 0.18),
    "green": (0.15, 0.62, 0.25),
    "blue": (0.16, 0.36, 0.86),
    "purple": (0.55, 0.20, 0.70),
    "white": (0.96, 0.96, 0.97),
}

# Name of a size -> height of the thing as a fraction of the frame's shorter side, and how often it is drawn.
SIZES = {"small": 0.28, "medium": 0.38, "large": 0.50}
SHARES_OF_SIZES = {"small": 0.25, "medium": 0.5, "large": 0.25}

# Motions that cross the frame -> their direction (to the right, downwards).
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
MOTIONS = (*DIRECTIONS, "bounces", "grows", "turns", "still")
MOTIONS_OF_PAIRS = ("up", "down", "bounces", "grows", "turns", "still")  # these keep a thing in its half of the frame

PLACES = ("anywhere", "left", "right")  # a thing that is alone may be anywhere, one of two keeps to its half

# Colours and backgrounds that hide each other.
FORBIDDEN = {
    ("white", "snow"),
    ("green", "meadow"),
    ("blue", "sea"),
    ("yellow", "desert"),
    ("orange", "desert"),
    ("orange", "sunset"),
    ("blue", "night"),
}

PAIRS = 0.2  # the share of scenes that have two things


@dataclass(frozen=True)
class Thing:
    """One thing of a scene, in the words of the tables above."""

    kind: str
    colour: str
    size: str
    motion: str
    place: str = "anywhere"


@dataclass(frozen=True)
class Scene:
    """A background, what is in front of it (of two, the left one first), and the seed of all that words leave open.

    Things that are `on_marks` begin at one of a few places, all go at the same speed, have the colours and sizes of the
    tables above, and look to the right unless they go left. The rest of a scene is as random as without.
    """

    background: str
    things: tuple[Thing, ...]
    seed: int
    on_marks: bool = False


def is_held_out(kind: str, colour: str, background: str) -> bool:
    """Tells whether training never shows a thing of this kind and colour in front of this background.

    That is so for one in eight triples: those whose places in KINDS, COLOURS and BACKGROUNDS, weighted by 1, 3 and 5,
    have the remainder 1 when divided by 8. Weights that are odd make sure that each two of the three are seen together.
    """
    weighted = KINDS.index(kind) + 3 * list(COLOURS).index(colour) + 5 * BACKGROUNDS.index(background)
    return weighted % 8 == 1


# Every (kind, colour, background) that can be seen, without those that are held out, and those that are.
_ALLOWED = [(k, c, b) for k in KINDS for c in COLOURS for b in BACKGROUNDS if (c, b) not in FORBIDDEN]
TRAINED = tuple(triple for triple in _ALLOWED if not is_held_out(*triple))
HELD_OUT = tuple(triple for triple in _ALLOWED if is_held_out(*triple))


def random_scene(random: np.random.Generator, held_out: bool = False, things: int | None = None) -> Scene:
    """Draws a scene of triples that are trained, or only of those that are held out.

    `things` is 1 or 2; without it, one scene in five has two things.
    """
    triples = HELD_OUT if held_out else TRAINED
    if things is None:
        things = 2 if random.random() < PAIRS else 1
    kind, colour, background = _choice(random, triples)
    if things == 1:
        drawn = [_random_thing(random, kind, colour, "anywhere", MOTIONS)]
    else:
        fitting = [(k, c) for k, c, b in triples if b == background and k != kind and c != colour]
        pair = ((kind, colour, "left"), (*_choice(random, fitting), "right"))
        drawn = [_random_thing(random, k, c, place, MOTIONS_OF_PAIRS) for k, c, place in pair]
    return Scene(background, tuple(drawn), int(random.integers(2**32)))


def _random_thing(random: np.random.Generator, kind: str, colour: str, place: str, motions: tuple[str, ...]) -> Thing:
    size = str(random.choice(list(SIZES), p=list(SHARES_OF_SIZES.values())))
    return Thing(kind, colour, size, _choice(random, motions), place)


def _choice(random: np.random.Generator, options: Sequence[Option]) -> Option:
    return options[int(random.integers(len(options)))]
