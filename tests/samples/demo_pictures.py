"""Small pictures of the demo's videos: what is recorded of them, and what they are compared by."""

from pathlib import Path

import numpy as np
from PIL import Image

from ltx_runtime import Pipeline

GOLDEN = Path(__file__).parents[1] / "golden" / "demo.safetensors"
PROMPTS = ("A red fox runs through deep snow", "A yellow balloon rises at sunset", "A large blue ball on the meadow")
SEEDS = (7, 8)
SHOWN = (0, 12, 24)  # frames
SIZE = (24, 16)  # width and height


def pictures_of(pipe: Pipeline, prompt: str, seed: int) -> np.ndarray:
    """Returns some frames of a video, averaged to a few pixels, (3, 16, 24, 3) uint8."""
    frames = list(pipe(prompt, seed=seed))
    small = [Image.fromarray(frames[number]).resize(SIZE, Image.Resampling.BOX) for number in SHOWN]
    return np.stack([np.asarray(picture) for picture in small])


def distance(pictures: np.ndarray, others: np.ndarray) -> float:
    """Returns the mean difference of pictures in levels of 0..255."""
    return float(np.abs(pictures.astype(float) - others).mean())
