"""Shows drawn clips to the judge in tests/seeing, and prints how often it is right: python tests/calibration.py

    python tests/calibration.py --clips 500                          # clips as they are drawn
    python tests/calibration.py --clips 200 --spoiled blurred-2 noisy  # and as a model may make them

The scenes are drawn from a seed of their own, trained and held out ones alike. The judge knows none of this.
"""

import argparse
import io
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parent)]

from seeing.judge import Seen, see

from training.world.painting import render
from training.world.scenes import DIRECTIONS, Scene, random_scene

SIZES = ((224, 160), (160, 224), (256, 384), (448, 320))  # height and width
FRAMES = 25
GROWN = 1.6  # area at the end over that at the start; what grows has 2.4 to 5.4
FAR = 0.04  # of the frame's height: a centroid that is farther from the drawn one is wrong
ANSWERS = ("background", "things", "colour", "direction", "kind", "grows", "path")

Clip = np.ndarray  # (F, H, W, 3) uint8


@dataclass(frozen=True)
class Drawn:
    """A clip, the scene that it shows, and where things are in it: centroids (F, 2) in units of the frame's height."""

    number: int
    frames: Clip
    scene: Scene
    paths: list[np.ndarray]


def drawn(numbers: Iterable[int]) -> Iterator[Drawn]:
    """Draws a clip for each number, always the same one, at one of SIZES in turn."""
    for number in numbers:
        random = np.random.default_rng([2026, number])
        scene = random_scene(random, held_out=bool(random.random() < 0.125))
        height, width = SIZES[number % len(SIZES)]
        clip, masks = render(scene, height, width, FRAMES)
        y, x = np.mgrid[:height, :width] + 0.5
        paths = [
            np.stack([(mask * axis).sum((1, 2)) for axis in (x, y)], axis=1) / mask.sum((1, 2))[:, None] / height
            for mask in masks
        ]
        yield Drawn(number, np.rint(255 * np.clip(clip, 0, 1)).astype(np.uint8), scene, paths)


def wrong_answers(clip: Drawn, seen: Seen) -> list[str]:
    """Returns those of ANSWERS, once for each thing, that are wrong; of a clip with missing things all are."""
    wrong = [] if seen.background == clip.scene.background else ["background"]
    if len(seen.things) != len(clip.scene.things):
        return [*wrong, *(answer for answer in ANSWERS[1:] for _ in clip.scene.things)]
    for thing, shown, path in zip(clip.scene.things, seen.things, clip.paths, strict=True):
        direction = thing.motion if thing.motion in DIRECTIONS else "none"
        right = {
            "colour": shown.colour == thing.colour,
            "direction": shown.direction == direction and shown.bounces == (thing.motion == "bounces"),
            "kind": shown.kind == thing.kind,
            "grows": (shown.growth > GROWN) == (thing.motion == "grows"),
            "path": bool(np.abs(shown.path - path).max() < FAR),
        }
        wrong += [answer for answer, is_right in right.items() if not is_right]
    return wrong


@dataclass(frozen=True)
class Score:
    """How many answers were right, per answer, of how many; the numbers of clips with wrong ones; seconds per clip."""

    shares: dict[str, float]
    failures: dict[int, list[str]]
    seconds: float


def score_of(clips: Iterable[Drawn], spoil: Callable[[Clip, int], Clip]) -> Score:
    """Lets the judge see clips that are spoiled in some way, and counts what it gets right."""
    wrong: Counter[str] = Counter()
    count = things = 0
    failures, seconds = {}, 0.0
    for clip in clips:
        frames, started = spoil(clip.frames, clip.number), time.thread_time()
        seen = see(frames)
        seconds += time.thread_time() - started
        if answers := wrong_answers(clip, seen):
            failures[clip.number] = answers
        wrong.update(answers)
        count, things = count + 1, things + len(clip.scene.things)
    shares = {answer: 1 - wrong[answer] / (count if answer == "background" else things) for answer in ANSWERS}
    return Score(shares, failures, seconds / count)


def as_drawn(frames: Clip, number: int) -> Clip:
    """Returns the frames as they are."""
    return frames


def blurred(sigma: float) -> Callable[[Clip, int], Clip]:
    """Makes a Gaussian blur with a standard deviation in pixels."""
    steps = np.arange(-int(3 * sigma), int(3 * sigma) + 1)
    weights = np.exp(-0.5 * (steps / sigma) ** 2)

    def blur(frames: Clip, number: int) -> Clip:
        soft = frames.astype(np.float32)
        for axis in (1, 2):
            places = [np.clip(np.arange(soft.shape[axis]) + step, 0, soft.shape[axis] - 1) for step in steps]
            soft = sum(w * soft.take(place, axis) for w, place in zip(weights, places, strict=True)) / weights.sum()
        return as_bytes(soft)

    return blur


def noisy(frames: Clip, number: int) -> Clip:
    """Adds noise with a standard deviation of 8 levels to every value."""
    return as_bytes(frames + np.random.default_rng(number).normal(0, 8, frames.shape))


def off_colour(degrees: float) -> Callable[[Clip, int], Clip]:
    """Changes contrast and saturation by up to 5 %, and turns hues by up to an angle."""

    def change(frames: Clip, number: int) -> Clip:
        random = np.random.default_rng(number)
        contrast, saturation = 1 + random.uniform(-0.05, 0.05, 2)
        angle = np.radians(degrees) * random.uniform(-1, 1)
        grey = np.full((3, 3), 1 / 3)
        axis = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / np.sqrt(3)  # turns around the axis of greys
        turned = grey + saturation * (np.cos(angle) * (np.eye(3) - grey) + np.sin(angle) * axis)
        return as_bytes((frames - 127.5) @ (contrast * turned.T) + 127.5)

    return change


def blocky(frames: Clip, number: int) -> Clip:
    """Saves every frame as a JPEG of quality 25, and reads it again."""

    def saved(frame: Clip) -> Clip:
        file = io.BytesIO()
        Image.fromarray(frame).save(file, "JPEG", quality=25)
        return np.asarray(Image.open(file))

    return np.stack([saved(frame) for frame in frames])


def slurred(frames: Clip, number: int) -> Clip:
    """Averages eight frames that follow each other, as a latent frame spans them; the ends repeat."""
    places = np.clip(np.arange(len(frames))[:, None] + np.arange(-4, 4), 0, len(frames) - 1)
    return as_bytes(np.stack([frames[place].mean(axis=0) for place in places]))


def soft(frames: Clip, number: int) -> Clip:
    """Changes colours, blurs by 2 pixels and adds noise, all at once."""
    return noisy(blurred(2.0)(off_colour(9.0)(frames, number), number), number)


def as_bytes(values: np.ndarray) -> Clip:
    """Rounds values to uint8."""
    return np.rint(np.clip(values, 0, 255)).astype(np.uint8)


SPOILED: dict[str, Callable[[Clip, int], Clip]] = {
    "as-drawn": as_drawn,
    "blurred-2": blurred(2.0),
    "blurred-4": blurred(4.0),
    "noisy": noisy,
    "off-colour-9": off_colour(9.0),
    "off-colour-18": off_colour(18.0),  # 5 % of the circle of hues, on which orange is 18 from yellow
    "blocky": blocky,
    "slurred": slurred,
    "soft": soft,
}


def main() -> int:
    """Prints a row of a table for each way in which the clips are spoiled, and the clips that were seen wrongly."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=500, help="how many clips are drawn (default: 500)")
    parser.add_argument("--first", type=int, default=0, help="number of the first clip (default: 0)")
    parser.add_argument("--spoiled", nargs="+", choices=SPOILED, default=["as-drawn"], help="ways to spoil them")
    asked = parser.parse_args()
    numbers = range(asked.first, asked.first + asked.clips)
    sys.stdout.write(f"| clips | {' | '.join(ANSWERS)} | s per clip |\n{'|---' * (len(ANSWERS) + 2)}|\n")
    for way in asked.spoiled:
        score = score_of(drawn(numbers), SPOILED[way])
        shares = " | ".join(f"{100 * share:.1f} %" for share in score.shares.values())
        sys.stdout.write(f"| {way} | {shares} | {score.seconds:.2f} |\n")
        for number, answers in score.failures.items():
            sys.stdout.write(f"  {number}: {', '.join(answers)}\n")
        sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
