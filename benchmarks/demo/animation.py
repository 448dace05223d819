"""Makes the README's picture, six of the demo's videos at once: python -m benchmarks.demo.animation [--output FILE]"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ltx_runtime import Pipeline

PROMPTS = (
    "A large red fox runs through deep snow",
    "A yellow boat sails across a meadow",
    "A purple bird flies up over the sea",
    "A blue balloon floats up at sunset",
    "A large green star turns in the desert",
    "A red ball bounces at night",
)
COLUMNS, CELL, LABEL, SPACE = 3, (288, 192), 18, 4
FRAME_MS, QUALITY = 1000 // 24, 70


def main() -> None:
    """Writes an animated WebP that plays forever, each video with its prompt below it."""
    parser = argparse.ArgumentParser(description=__doc__.partition(":")[0] if __doc__ else "")
    parser.add_argument("--engines", type=Path, default=Path("engines/demo"))
    parser.add_argument("--output", type=Path, default=Path("docs/pictures/demo.webp"))
    parser.add_argument("--seed", type=int, default=7)
    options = parser.parse_args()
    with Pipeline(options.engines, keep_loaded=True) as pipe:
        videos = [list(pipe(prompt, seed=options.seed)) for prompt in PROMPTS]
    pages = [_page([video[number] for video in videos]) for number in range(len(videos[0]))]
    pages[0].save(
        options.output, save_all=True, append_images=pages[1:], duration=FRAME_MS, loop=0, quality=QUALITY, method=6
    )
    print(f"{options.output}: {options.output.stat().st_size:,} bytes")


def _page(frames: list[np.ndarray]) -> Image.Image:
    """Returns a frame of all videos side by side."""
    width, height = CELL[0] + SPACE, CELL[1] + LABEL
    page = Image.new("RGB", (COLUMNS * width - SPACE, len(frames) // COLUMNS * height), "white")
    draw = ImageDraw.Draw(page)
    for place, (frame, prompt) in enumerate(zip(frames, PROMPTS, strict=True)):
        row, column = divmod(place, COLUMNS)
        page.paste(Image.fromarray(frame).resize(CELL), (column * width, row * height))
        draw.text((column * width + 2, row * height + CELL[1] + 1), prompt, "black", ImageFont.load_default(13))
    return page


if __name__ == "__main__":
    main()
