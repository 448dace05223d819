"""Asks the demo for scenes that training never showed, and tells how often the judge in tests/seeing sees them.

    python -m benchmarks.demo.follows [--engines engines/demo] [--prompts 60] [--seeds 3] [--output build/follows]

Writes a table with a row for each prompt (`table.md`), and a sheet of first, middle and last frames (`sheet.png`).
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

from seeing.judge import Seen, see

from ltx_runtime import Pipeline
from training.world.captions import caption
from training.world.scenes import DIRECTIONS, Scene, random_scene

Frames = NDArray[np.uint8]
SEED_OF_PROMPTS = 2027  # of no other drawn scene
ONE_OF = 4  # one prompt in so many has two things
ANSWERS = ("background", "colour", "kind", "direction", "both colours")
SHOWN = (0, 12, 24)  # frames in the sheet
THUMBNAIL = (192, 128)


@dataclass(frozen=True)
class Asked:
    """A prompt and the scene that it describes."""

    prompt: str
    scene: Scene


def prompts_of(count: int) -> list[Asked]:
    """Returns prompts of held out scenes, always the same ones."""
    random = np.random.default_rng(SEED_OF_PROMPTS)
    asked = []
    for number in range(count):
        scene = random_scene(random, held_out=True, things=2 if number % ONE_OF == ONE_OF - 1 else 1)
        asked.append(Asked(caption(scene, random), scene))
    return asked


def answers_of(scene: Scene, seen: Seen) -> dict[str, bool]:
    """Returns which questions about a scene the judge answers as asked; of two things, only what they have together."""
    background = {"background": seen.background == scene.background}
    if len(scene.things) == 2:
        colours = Counter(thing.colour for thing in scene.things)
        return background | {"both colours": Counter(thing.colour for thing in seen.things) == colours}
    if not seen.things:
        return background | dict.fromkeys(ANSWERS[1:4], False)
    (asked,), shown = scene.things, seen.things[0]
    direction = asked.motion if asked.motion in DIRECTIONS else "none"
    return background | {
        "colour": shown.colour == asked.colour,
        "kind": shown.kind == asked.kind,
        "direction": shown.direction == direction,
    }


def videos_of(engines: Path, asked: list[Asked], seeds: int) -> Iterator[tuple[Asked, int, Frames]]:
    """Yields the frames of each prompt and seed."""
    with Pipeline(engines, keep_loaded=True) as pipe:
        for one in asked:
            for seed in range(seeds):
                yield one, seed, np.stack(list(pipe(one.prompt, seed=seed)))


def main() -> None:
    """Prints the shares of right answers, and writes the table and the sheet."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--engines", type=Path, default=Path("engines/demo"))
    parser.add_argument("--prompts", type=int, default=60)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path("build/follows"))
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    started, right, total = time.monotonic(), Counter[str](), Counter[str]()
    rows: dict[str, list[str]] = {}
    sheet = []
    for one, seed, frames in videos_of(options.engines, prompts_of(options.prompts), options.seeds):
        answers = answers_of(one.scene, see(frames))
        total.update(answers.keys())
        right.update(name for name, is_right in answers.items() if is_right)
        wrong = ", ".join(name for name, is_right in answers.items() if not is_right)
        rows.setdefault(one.prompt, []).append(wrong or "right")
        if seed == 0:
            sheet.append(np.concatenate([_thumbnail(frames[number]) for number in SHOWN], axis=1))
    lines = ["| prompt | " + " | ".join(f"seed {seed}" for seed in range(options.seeds)) + " |"]
    lines += ["|---" * (options.seeds + 1) + "|"]
    lines += [f"| {prompt} | {' | '.join(cells)} |" for prompt, cells in rows.items()]
    (options.output / "table.md").write_text("\n".join(lines) + "\n")
    _write_sheet(sheet, options.output / "sheet.png")
    for name in ANSWERS:
        if total[name]:
            print(f"{name}: {right[name]} of {total[name]}, {100 * right[name] / total[name]:.1f} %")
    print(f"{time.monotonic() - started:.0f} s")


def _thumbnail(frame: Frames) -> Frames:
    return np.asarray(Image.fromarray(frame).resize(THUMBNAIL))


def _write_sheet(strips: list[Frames], path: Path, columns: int = 3) -> None:
    blank = np.zeros_like(strips[0])
    padded = [*strips, *[blank] * (-len(strips) % columns)]
    rows = [np.concatenate(padded[i : i + columns], axis=1) for i in range(0, len(padded), columns)]
    Image.fromarray(np.concatenate(rows)).save(path)


if __name__ == "__main__":
    main()
