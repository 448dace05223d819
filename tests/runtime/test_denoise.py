"""Laws of the loop: with an exact velocity every schedule arrives at the data, and nothing runs before it is asked."""

import numpy as np
import pytest
from golden_files import golden

from ltx_runtime.denoise import denoise
from ltx_runtime.schedule import sigmas_of
from ltx_runtime.versions import VERSIONS

SHAPE = (1, 6, 4)
EVERY_VERSION = pytest.mark.parametrize("version", VERSIONS.values(), ids=VERSIONS)


def drawn(seed: int) -> np.ndarray:
    return np.random.RandomState(seed).standard_normal(SHAPE).astype(np.float32)


def first_sigmas(version):
    return sigmas_of(version.schedule, version.passes[0], tokens=384)


@EVERY_VERSION
def test_a_constant_velocity_carries_noise_to_data_on_every_schedule(version):
    noise, data = drawn(0), drawn(1)
    sigmas = first_sigmas(version)
    start = (1 - sigmas[0]) * data + sigmas[0] * noise
    *_, last = denoise(start, sigmas, lambda latents, sigma: noise - data)
    assert last.sigma == 0
    assert last.latents.dtype == np.float32
    np.testing.assert_allclose(last.latents, data, atol=1e-5)


@EVERY_VERSION
def test_stochastic_steps_lie_between_the_data_and_fresh_noise(version):
    data = drawn(1)
    fresh = []

    def step_noise(shape):
        fresh.append(np.random.RandomState(100 + len(fresh)).standard_normal(shape).astype(np.float32))
        return fresh[-1]

    sigmas = first_sigmas(version)
    for step in denoise(drawn(0), sigmas, lambda latents, sigma: (latents - data) / np.float32(sigma), step_noise):
        assert len(fresh) == step.index + 1
        expected = (1 - step.sigma) * data + step.sigma * fresh[step.index]
        np.testing.assert_allclose(step.latents, expected, atol=1e-5)


@pytest.mark.parametrize("kind", ["deterministic", "stochastic"])
def test_the_loop_repeats_the_official_steps(kind):
    steps = {name.rpartition("/")[2]: t for name, t in golden("sampler").items() if name.startswith(f"steps_{kind}/")}
    velocities, noises = iter(steps["velocity"]), iter(steps.get("noise", ()))
    made = list(
        denoise(
            steps["latents"][0],
            steps["timesteps"],
            lambda latents, sigma: next(velocities),
            (lambda shape: next(noises)) if kind == "stochastic" else None,
        )
    )
    np.testing.assert_allclose([step.latents for step in made], steps["latents"][1:], atol=5e-6)


@EVERY_VERSION
def test_there_is_one_step_per_sigma_and_each_tells_the_level_it_reached(version):
    sigmas = first_sigmas(version)
    asked = []

    def velocity_of(latents, sigma):
        asked.append(sigma)
        return np.zeros_like(latents)

    made = list(denoise(drawn(0), sigmas, velocity_of))
    assert asked == sigmas.tolist()
    assert [step.index for step in made] == list(range(len(sigmas)))
    assert [step.sigma for step in made] == [*sigmas[1:].tolist(), 0.0]


def test_the_velocity_is_asked_of_the_latents_that_the_last_step_gave():
    seen = []

    def velocity_of(latents, sigma):
        seen.append(latents)
        return np.ones_like(latents)

    start = drawn(0)
    made = list(denoise(start, np.array([1, 0.6, 0.3], np.float32), velocity_of))
    assert all(given is gave for given, gave in zip(seen, [start, *(step.latents for step in made)], strict=False))


def test_nothing_runs_before_a_step_is_asked_for():
    asked = []

    def velocity_of(latents, sigma):
        asked.append(sigma)
        return np.zeros_like(latents)

    steps = denoise(drawn(0), np.array([1, 0.6, 0.3], np.float32), velocity_of)
    assert asked == []
    next(steps)
    assert asked == [1.0]
    steps.close()
    assert asked == [1.0]


def test_steps_that_were_kept_do_not_change_later():
    start = drawn(0)
    before = start.copy()
    kept = []
    for step in denoise(start, np.array([1, 0.6, 0.3], np.float32), lambda latents, sigma: np.ones_like(latents)):
        kept.append((step, step.latents.copy()))
    np.testing.assert_array_equal(start, before)
    for step, latents in kept:
        np.testing.assert_array_equal(step.latents, latents)
