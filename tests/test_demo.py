"""The demo with its own weights: it still makes the pictures that were recorded, and the judge sees what was asked."""

import numpy as np
import pytest
from safetensors.numpy import load_file
from samples.demo import folder_of_trained_demo
from samples.demo_pictures import GOLDEN, PROMPTS, SEEDS, distance, pictures_of
from seeing.judge import see

from ltx_runtime import Condition, Pipeline

SAME, OTHER = 3.0, 8.0  # levels: what another processor's rounding may change, and what two seeds differ by at least


@pytest.fixture(scope="module")
def pipe():
    with Pipeline(folder_of_trained_demo(), backend="cpu", keep_loaded=True) as pipe:
        yield pipe


@pytest.mark.parametrize("seed", SEEDS)
def test_the_pictures_are_those_that_were_recorded(pipe, seed):
    recorded = load_file(GOLDEN)
    for prompt, expected in zip(PROMPTS, recorded[str(seed)], strict=True):
        assert distance(pictures_of(pipe, prompt, seed), expected) < SAME, prompt


def test_pictures_of_other_seeds_and_prompts_are_farther_apart_than_that():
    recorded = [pictures for seeds in load_file(GOLDEN).values() for pictures in seeds]
    apart = [distance(one, other) for i, one in enumerate(recorded) for other in recorded[:i]]
    assert min(apart) > OTHER


@pytest.mark.parametrize(
    ("prompt", "background"), [("A red fox runs through deep snow", "snow"), ("A white star at night", "night")]
)
def test_the_background_is_the_one_that_was_asked_for(pipe, prompt, background):
    assert see(np.stack(list(pipe(prompt, seed=1)))).background == background


def test_a_video_begins_with_the_image_that_is_given(pipe):
    image = next(iter(pipe("A green box on the sea", seed=3)))
    again = next(iter(pipe("A green box on the sea", seed=4, conditions=(Condition(image),))))
    error = (image.astype(float) - again).reshape(-1)
    assert 10 * np.log10(255**2 / np.mean(error**2)) > 25
