"""Draws a sheet of what the demo can do: python -m benchmarks.demo.gallery [--engines engines/demo] [--output FILE]

Each row is a video, by four of its frames, beside what was given to it. Given images and clips are drawn.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from ltx_runtime import Condition, Pipeline
from training.world.painting import render
from training.world.scenes import Scene, Thing

Frames = NDArray[np.uint8]
SHOWN = (0, 8, 16, 24)
CELL, LABEL, SPACE = (240, 160), 22, 6
HEIGHT, WIDTH, FRAMES = 256, 384, 25
FOX = Scene("snow", (Thing("fox", "red", "large", "right"),), 5, on_marks=True)
BALLOON = Scene("meadow", (Thing("balloon", "purple", "large", "up"),), 11, on_marks=True)


def drawn(scene: Scene) -> Frames:
    """Returns a drawn clip of the size that the demo makes."""
    clip, _ = render(scene, HEIGHT, WIDTH, FRAMES)
    return np.rint(255 * np.clip(clip, 0, 1)).astype(np.uint8)


def requests() -> Iterator[tuple[str, dict[str, Any], list[Frames]]]:
    """Yields the label of a row, the fields of its request, and the pictures that are given with it."""
    fox, balloon = drawn(FOX), drawn(BALLOON)
    for prompt in (
        "A red fox runs through deep snow",
        "A yellow star turns at night",
        "A blue balloon floats up in front of the sunset",
        "A red ball bounces on the left and a blue box stands still on the right in a meadow",
    ):
        yield prompt, {"prompt": prompt}, []
    for seed in (1, 2, 3):
        prompt = "A white boat sails across the sea"
        yield f"{prompt}, seed {seed}", {"prompt": prompt, "seed": seed}, []
    right = "A red fox runs to the right through deep snow"
    yield "from an image", {"prompt": right, "conditions": (Condition(fox[0]),)}, [fox[0]]
    both = (Condition(fox[0]), Condition(fox[24], frame=24))
    yield "between two images", {"prompt": right, "conditions": both}, [fox[0], fox[24]]
    rises = "A purple balloon rises in a meadow"
    middle = (Condition(balloon[12], frame=12),)
    yield "an image in the middle", {"prompt": rises, "conditions": middle}, [balloon[12]]
    yield "on from a clip of 9 frames", {"prompt": right, "conditions": (Condition(fox[:9]),)}, [fox[0], fox[8]]
    for strength in (0.25, 0.9):
        prompt = "A green balloon rises in the desert"
        fields = {"prompt": prompt, "video": balloon, "strength": strength, "single_pass": True}
        yield f"a clip transformed with strength {strength}: {prompt}", fields, [balloon[0], balloon[24]]
    for negative in ("snow", "night"):
        fields = {"prompt": "A red star", "negative_prompt": negative}
        yield f"A red star, without: {negative}", fields, []


def main() -> None:
    """Writes the sheet."""
    parser = argparse.ArgumentParser(description=__doc__.partition(":")[0] if __doc__ else "")
    parser.add_argument("--engines", type=Path, default=Path("engines/demo"))
    parser.add_argument("--output", type=Path, default=Path("build/gallery.png"))
    options = parser.parse_args()
    rows = []
    with Pipeline(options.engines, keep_loaded=True) as pipe:
        for label, fields, given in requests():
            frames = list(pipe(**({"seed": 7} | fields)))
            rows.append(_row(label, given, [frames[number] for number in SHOWN]))
    options.output.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.concatenate(rows)).save(options.output)


def _row(label: str, given: list[Frames], shown: list[Frames]) -> Frames:
    """Returns a row of the sheet: a line of text, at most two given pictures, and what was made."""
    width, height = (len(SHOWN) + 2) * (CELL[0] + SPACE), LABEL + CELL[1] + SPACE
    sheet = Image.new("RGB", (width, height), "white")
    ImageDraw.Draw(sheet).text((4, 2), label, "black", ImageFont.load_default(15))
    for column, frame in [*enumerate(given), *enumerate(shown, 2)]:
        sheet.paste(Image.fromarray(frame).resize(CELL), (column * (CELL[0] + SPACE), LABEL))
    return np.asarray(sheet)


if __name__ == "__main__":
    main()
