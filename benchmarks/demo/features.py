"""Measures what images, clips, a negative prompt, guidance and the second pass do to the demo's videos.

    python -m benchmarks.demo.features [--engines engines/demo] [--scenes 24]

What is given is drawn (`training/world`), of scenes that training never showed; the judge is `tests/seeing`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from statistics import mean, median
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

from seeing.judge import Seen, see

from benchmarks.demo.gallery import FRAMES, HEIGHT, WIDTH, drawn
from ltx_runtime import Condition, Pipeline
from training.world.backgrounds import LOOKS
from training.world.captions import WHERE, caption
from training.world.scenes import COLOURS, DIRECTIONS, FORBIDDEN, Scene, random_scene

Frames = NDArray[np.uint8]
Make = Callable[..., Frames]
SEED_OF_SCENES = 2028
MIDDLE, GIVEN = 12, 9  # a frame, and a number of frames


def scenes_of(count: int, *, moving: bool = False) -> list[tuple[Scene, str]]:
    """Returns scenes with one thing and their captions, always the same ones; `moving` things cross the frame."""
    random = np.random.default_rng(SEED_OF_SCENES)
    scenes: list[tuple[Scene, str]] = []
    while len(scenes) < count:
        scene = replace(random_scene(random, held_out=True, things=1), on_marks=True)
        if not moving or scene.things[0].motion in DIRECTIONS:
            scenes.append((scene, caption(scene, random)))
    return scenes


def psnr(one: Frames, other: Frames) -> float:
    """Returns the peak signal-to-noise ratio of two pictures in dB; 99 if they are the same."""
    error = float(np.mean((one.astype(np.float64) - other) ** 2))
    return 99.0 if error == 0 else float(10 * np.log10(255**2 / error))


def sharpness(frames: Frames) -> float:
    """Returns the mean square of differences between neighbouring pixels' luminance, in levels."""
    light = frames.astype(np.float64) @ (0.299, 0.587, 0.114)
    return float(np.square(np.diff(light, axis=1)).mean() + np.square(np.diff(light, axis=2)).mean())


def from_an_image(make: Make, count: int) -> Iterator[str]:
    """Tells how well videos begin with an image, and go on as the prompt says."""
    begins, follows, ends = [], [], []
    for scene, prompt in scenes_of(count, moving=True):
        clip = drawn(scene)
        frames = make(prompt, conditions=(Condition(clip[0]),))
        begins.append(psnr(frames[0], clip[0]))
        seen = see(frames)
        follows.append(_moves(seen) == scene.things[0].motion)
        ends.append(_distance_at_the_end(seen, see(clip)))
    yield f"image at frame 0: {mean(begins):.1f} dB, least {min(begins):.1f} dB"
    yield f"  and the thing moves as asked: {sum(follows)} of {count}"
    yield f"  its place at the end is off by {median(ends):.2f} of the height (median)"


def with_an_image_in_the_middle(make: Make, count: int) -> Iterator[str]:
    """Tells how well videos show an image at a frame in the middle."""
    shown = []
    for scene, prompt in scenes_of(count):
        clip = drawn(scene)
        shown.append(psnr(make(prompt, conditions=(Condition(clip[MIDDLE], frame=MIDDLE),))[MIDDLE], clip[MIDDLE]))
    yield f"image at frame {MIDDLE}: {mean(shown):.1f} dB, least {min(shown):.1f} dB"


def on_from_a_clip(make: Make, count: int) -> Iterator[str]:
    """Tells whether a thing goes on where the frames that are given leave it."""
    follows, ends, stays = [], [], []
    for scene, prompt in scenes_of(count, moving=True):
        clip = drawn(scene)
        seen, wanted = see(make(prompt, conditions=(Condition(clip[:GIVEN]),))), see(clip)
        follows.append(_moves(seen) == scene.things[0].motion)
        ends.append(_distance_at_the_end(seen, wanted))
        stays.append(_distance_at_the_end(see(np.repeat(clip[[GIVEN - 1]], FRAMES, 0)), wanted))
    yield f"on from {GIVEN} frames, the direction stays: {sum(follows)} of {count}"
    yield f"  place at the end is off by {median(ends):.2f} of the height (median; {median(stays):.2f} if it stayed)"


def from_a_video(make: Make, count: int) -> Iterator[str]:
    """Tells what another colour in the prompt changes of a clip that is transformed."""
    for strength in (0.125, 0.25, 0.9):
        backgrounds, changed = 0, 0
        for scene, prompt in scenes_of(count):
            old = scene.things[0].colour
            new = next(c for c in COLOURS if c != old and (c, scene.background) not in FORBIDDEN)
            told = prompt.lower().replace(old, new)
            seen = see(make(told, video=drawn(scene), strength=strength, single_pass=True))
            backgrounds += seen.background == scene.background
            changed += bool(seen.things) and seen.things[0].colour == new
        yield f"a clip, strength {strength}: same background {backgrounds} of {count}, new colour {changed} of {count}"


def with_a_negative_prompt(make: Make, count: int) -> Iterator[str]:
    """Tells how often a background is seen that the negative prompt names, and how often without."""
    with_it, without, videos = 0, 0, 0
    for seed in range(max(1, count // len(LOOKS))):
        plain = see(make("A red star turns", seed=seed)).background
        for background in LOOKS:
            asked = see(make("A red star turns", seed=seed, negative_prompt=WHERE[background][0])).background
            with_it, without, videos = with_it + (asked == background), without + (plain == background), videos + 1
    yield f"a background that the negative prompt names: seen in {with_it} of {videos}, without it in {without}"


def with_guidance(make: Make, count: int) -> Iterator[str]:
    """Tells how often kind and colour are right at several scales of guidance."""
    for scale in (1.0, 2.0, 3.0, 5.0):
        kinds = colours = 0
        for scene, prompt in scenes_of(count):
            seen = see(make(prompt, guidance_scale=scale))
            kinds += bool(seen.things) and seen.things[0].kind == scene.things[0].kind
            colours += bool(seen.things) and seen.things[0].colour == scene.things[0].colour
        yield f"guidance {scale:g}: colour {colours} of {count}, kind {kinds} of {count}"


def with_two_passes(make: Make, count: int) -> Iterator[str]:
    """Tells how sharp videos are with and without the second pass, beside drawn ones."""
    found: dict[str, list[float]] = {"drawn": [], "two passes": [], "first pass alone, enlarged": []}
    for scene, prompt in scenes_of(count):
        found["drawn"].append(sharpness(drawn(scene)))
        found["two passes"].append(sharpness(make(prompt)))
        found["first pass alone, enlarged"].append(sharpness(_first_pass(make, prompt)))
    yield "sharpness: " + ", ".join(f"{name} {mean(values):.1f}" for name, values in found.items())


MEASURED = {
    "image": from_an_image,
    "middle": with_an_image_in_the_middle,
    "clip": on_from_a_clip,
    "video": from_a_video,
    "negative": with_a_negative_prompt,
    "guidance": with_guidance,
    "passes": with_two_passes,
}


def main() -> None:
    """Prints what was measured."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--engines", type=Path, default=Path("engines/demo"))
    parser.add_argument("--scenes", type=int, default=24)
    parser.add_argument("--only", choices=MEASURED, nargs="+", default=list(MEASURED))
    options = parser.parse_args()
    with Pipeline(options.engines, keep_loaded=True) as pipe:

        def make(prompt: str, **fields: Any) -> Frames:
            return np.stack(list(pipe(prompt, **({"seed": 7} | fields))))

        for name in options.only:
            for line in MEASURED[name](make, options.scenes):
                print(line, flush=True)


def _moves(seen: Seen) -> str | None:
    return seen.things[0].direction if seen.things else None


def _distance_at_the_end(seen: Seen, wanted: Seen) -> float:
    """Returns how far apart two clips' largest things are at the end, in heights; 1 if there is none."""
    if not seen.things or not wanted.things:
        return 1.0
    return float(np.hypot(*(seen.things[0].path[-1] - wanted.things[0].path[-1])))


def _first_pass(make: Make, prompt: str) -> Frames:
    """Returns what the first pass makes alone, at the size of two."""
    frames = make(prompt, height=160, width=224, single_pass=True)
    enlarged = [Image.fromarray(frame).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC) for frame in frames]
    return np.stack([np.asarray(frame) for frame in enlarged])


if __name__ == "__main__":
    main()
