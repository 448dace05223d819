"""Requests of every kind for the demo, drawn at random; and requests that are refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from samples.clips import noisy, save_clip, save_image

from ltx_runtime import LtxError

SIZES = ((64, 96), (64, 64), (96, 64), (128, 96), (96, 160))
LENGTHS = (9, 9, 17, 25)
PROMPTS = ("A red fox", "An owl in the rain, seen from below", "Snow")
PRESET = """pipeline_type: multi-scale
first_pass:
  timesteps: [1.0, 0.9, 0.7]
  guidance_scale: 2
  stg_scale: 0
  rescaling_scale: 1
second_pass:
  timesteps: [0.8, 0.4]
  guidance_scale: 1
  stg_scale: 0
  rescaling_scale: 1
"""


@dataclass(frozen=True)
class Given:
    """Images, a clip and a preset, made in a folder.

    Attributes:
        folder: the folder.
        image, small, clip, broken, preset: files in it; `broken` is no picture.
    """

    folder: Path
    image: Path = field(init=False)
    small: Path = field(init=False)
    clip: Path = field(init=False)
    broken: Path = field(init=False)
    preset: Path = field(init=False)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        written = {
            "image": save_image(self.folder / "image.png", noisy(150, 220)),
            "small": save_image(self.folder / "small.jpg", noisy(40, 30, 1)),
            "clip": save_clip(self.folder / "clip.mp4", [noisy(64, 96, seed) for seed in range(9)]),
            "broken": self.folder / "broken.png",
            "preset": self.folder / "preset.yaml",
        }
        written["broken"].write_bytes(b"\x89PNG\r\n\x1a\nnothing")
        written["preset"].write_text(PRESET)
        for name, path in written.items():
            object.__setattr__(self, name, path)


Changes = Callable[[Given, Random, int], dict[str, Any]]


def _keyframes(given: Given, random: Random, frames: int) -> dict[str, Any]:
    conditions = [{"media": str(given.image), "frame": 0}]
    if frames > 8:
        conditions.append({"media": str(given.small), "frame": 8, "strength": random.choice((0.5, 1.0))})
    return {"conditions": conditions}


def _preset(given: Given, random: Random, frames: int) -> dict[str, Any]:
    from ltx_runtime import read_preset

    return {"preset": read_preset(given.preset)}


# What a request has besides its prompt, size and seed.
KINDS: dict[str, Changes] = {
    "text": lambda given, random, frames: {},
    "image": lambda given, random, frames: {"image": str(random.choice((given.image, given.small)))},
    "keyframes": _keyframes,
    "clip": lambda given, random, frames: {"conditions": [{"media": str(given.clip), "frame": 0, "strength": 0.8}]},
    "video to video": lambda given, random, frames: {"video": str(given.clip), "strength": 0.5, "single_pass": True},
    "negative prompt": lambda given, random, frames: {"negative_prompt": "blurry", "guidance_scale": 3.0, "steps": 3},
    "one pass": lambda given, random, frames: {"single_pass": True, "num_frames": random.choice((1, frames))},
    "stochastic": lambda given, random, frames: {"stochastic": True},
    "preset": _preset,
}
# What is refused, or ends in an error while the video is made.
REFUSED: dict[str, Changes] = {
    "size": lambda given, random, frames: {"height": 65},
    "length": lambda given, random, frames: {"num_frames": 8},
    "no such file": lambda given, random, frames: {"image": str(given.folder / "none.png")},
    "no picture": lambda given, random, frames: {"image": str(given.broken)},
    "guidance": lambda given, random, frames: {"guidance_scale": -1.0},
    "unknown field": lambda given, random, frames: {"colour": "red"},
}


def drawn(given: Given, random: Random, kinds: dict[str, Changes]) -> tuple[str, dict[str, Any], Any]:
    """Returns the kind of a request, its fields as plain data, and its preset if it has one."""
    kind = random.choice([*kinds])
    height, width = random.choice(SIZES)
    frames = 9 if kind in ("clip", "video to video") else random.choice(LENGTHS)
    usual = {"prompt": random.choice(PROMPTS), "seed": random.randrange(2)}
    changes = kinds[kind](given, random, frames)
    preset = changes.pop("preset", None)
    return kind, {**usual, "height": height, "width": width, "num_frames": frames, **changes}, preset


def refused(make: Callable[[], Any]) -> str:
    """Returns the sentence with which something is refused; fails if it is not."""
    try:
        make()
    except LtxError as error:
        assert "\n" not in str(error), error
        return str(error)
    raise AssertionError("nothing was refused")
