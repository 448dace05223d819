"""Schedules and steps: the official package's golden values, closed forms and laws."""

from itertools import pairwise

import numpy as np
import pytest
from golden_files import golden

from ltx_runtime.errors import LtxError
from ltx_runtime.schedule import (
    MAX_STEPS,
    euler_step,
    linear_quadratic,
    sd3_shift,
    sigmas_of,
    stochastic_step,
    stretch_to_terminal,
    uniform,
)
from ltx_runtime.versions import SD3, VERSIONS, Pass, Schedule

GOLDEN = golden("sampler")
TOKENS = (384, 4992, 13376)
PASSES = [
    pytest.param(v, one, id=f"{v.name}_pass_{i + 1}") for v in VERSIONS.values() for i, one in enumerate(v.passes)
]
EVERY_PASS = pytest.mark.parametrize(("version", "one"), PASSES)
SCHEDULES = pytest.mark.parametrize("schedule", [Schedule(), SD3], ids=["linear_quadratic", "sd3"])


def plain(steps: int, **fields: object) -> Pass:
    return Pass(steps=steps, guidance=(), **fields)


@pytest.mark.parametrize("steps", [4, 8, 20, 30, 40])
def test_the_linear_quadratic_schedule_is_the_official_one(steps):
    expected = GOLDEN[f"linear_quadratic_{steps}/timesteps"]
    np.testing.assert_array_max_ulp(linear_quadratic(steps), expected, maxulp=1)
    np.testing.assert_array_max_ulp(sigmas_of(Schedule(), plain(steps), 384), expected, maxulp=1)


@pytest.mark.parametrize("steps", [20, 40])
@pytest.mark.parametrize("tokens", TOKENS)
def test_the_sd3_schedule_is_the_official_one(steps, tokens):
    expected = GOLDEN[f"shifted_uniform_{steps}_{tokens}_tokens/timesteps"]
    np.testing.assert_allclose(sigmas_of(SD3, plain(steps), tokens), expected, rtol=0, atol=1e-6)


def test_every_grid_can_be_shifted_and_every_shifted_grid_be_stretched_or_not():
    grids = {"Uniform": uniform(9), "LinearQuadratic": linear_quadratic(9)}
    for sampler, grid in grids.items():
        shifted = sd3_shift(grid, 4992)
        for schedule, expected in (
            (Schedule(sampler), grid),
            (Schedule(sampler, "SD3"), shifted),
            (Schedule(sampler, "SD3", 0.3), stretch_to_terminal(shifted, 0.3)),
            (Schedule(sampler, None, 0.3), grid),  # the official scheduler stretches where it shifts
        ):
            np.testing.assert_array_equal(sigmas_of(schedule, plain(9), 4992), expected)


@pytest.mark.parametrize(
    ("steps", "sigmas"),
    [(1, [1]), (4, [1, 0.9875, 0.975, 0.725]), (8, [1, 0.99375, 0.9875, 0.98125, 0.975, 0.909375, 0.725, 0.421875])],
)
def test_short_linear_quadratic_schedules_are_known_by_heart(steps, sigmas):
    np.testing.assert_allclose(linear_quadratic(steps), sigmas, rtol=1e-7)


@pytest.mark.parametrize("half", [1, 2, 10, 500])
def test_an_even_linear_quadratic_schedule_is_straight_then_a_parabola_that_ends_at_zero(half):
    # Of the second half, the complement q(s) with s = 0..1 has q(0) = 0.025, q(1) = 1 and q'(0) = 0.025, the slope
    # of the straight half; so q(s) = 0.025 + 0.025 s + 0.95 s^2.
    s = np.arange(half) / half
    expected = 1 - np.concatenate([0.025 * s, 0.025 + 0.025 * s + 0.95 * s**2])
    np.testing.assert_allclose(linear_quadratic(2 * half), expected, rtol=3e-7)


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 40, MAX_STEPS])
def test_the_uniform_schedule_is_n_equal_steps_down_to_zero(steps):
    np.testing.assert_allclose(uniform(steps), [1 - i / steps for i in range(steps)], rtol=3e-7, atol=1e-7)


@pytest.mark.parametrize(("tokens", "mu"), [(384, 0.720833), (4992, 2.370833), (13376, 5.372917), (6930, 3.064779)])
def test_the_shift_moves_the_log_odds_of_sigma_by_the_known_mu(tokens, mu):
    sigmas = np.array([0.9, 0.5, 0.1], np.float32)
    shifted = sd3_shift(sigmas, tokens).astype(np.float64)
    log_odds = np.log(shifted / (1 - shifted)) - np.log(sigmas / (1 - sigmas.astype(np.float64)))
    np.testing.assert_allclose(log_odds, mu, atol=2e-4)


@pytest.mark.parametrize("tokens", TOKENS)
def test_the_shift_keeps_pure_noise(tokens):
    assert sd3_shift(np.ones(1, np.float32), tokens)[0] == 1


@pytest.mark.parametrize("terminal", [0.1, 0.25])
def test_a_stretch_keeps_the_start_and_the_ratios_and_ends_at_the_terminal(terminal):
    sigmas = np.array([1.0, 0.8, 0.5, 0.05], np.float32)
    stretched = stretch_to_terminal(sigmas, terminal)
    assert stretched[0] == 1
    assert stretched[-1] == pytest.approx(terminal)
    np.testing.assert_allclose((1 - stretched) / (1 - stretched[-1]), (1 - sigmas) / (1 - sigmas[-1]), atol=1e-6)


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 39, MAX_STEPS])
@SCHEDULES
def test_a_schedule_starts_at_noise_and_falls_strictly_above_zero(schedule, steps):
    sigmas = sigmas_of(schedule, plain(steps), tokens=384)
    assert (sigmas.dtype, sigmas.shape) == (np.float32, (steps,))
    assert sigmas[0] == pytest.approx(1)
    assert (np.diff(sigmas) < 0).all()
    assert sigmas[-1] > 0


@EVERY_PASS
def test_the_sigmas_of_every_pass_fall_from_at_most_one_to_above_zero(version, one):
    sigmas = sigmas_of(version.schedule, one, tokens=384)
    assert len(sigmas) == one.steps - one.skip_initial_steps - one.skip_final_steps
    assert sigmas.dtype == np.float32
    assert sigmas[0] <= 1
    assert (np.diff(sigmas) < 0).all()
    assert sigmas[-1] > 0


@pytest.mark.parametrize(("initial", "final"), [(0, 3), (17, 0), (2, 5)])
@SCHEDULES
def test_skipped_steps_are_cut_from_the_ends_and_the_rest_stays(schedule, initial, final):
    whole = sigmas_of(schedule, plain(30), 384)
    cut = sigmas_of(schedule, plain(30, skip_initial_steps=initial, skip_final_steps=final), 384)
    np.testing.assert_array_equal(cut, whole[initial : 30 - final])


def test_a_list_of_sigmas_is_used_verbatim():
    listed = (1.0, 0.9937, 0.725)
    for steps in (None, 3):
        sigmas = sigmas_of(SD3, plain(3, sigmas=listed), 13376, steps)
        np.testing.assert_array_equal(sigmas, np.array(listed, np.float32))


@pytest.mark.parametrize("steps", [0, 2, 4, 40])
def test_another_number_of_steps_than_a_fixed_list_has_is_refused(steps):
    with pytest.raises(LtxError, match=rf"list of 3 steps; got {steps} - .*use 3$"):
        sigmas_of(Schedule(), plain(3, sigmas=(1.0, 0.9, 0.5)), 384, steps)


@pytest.mark.parametrize("steps", [5, 12, MAX_STEPS])
@SCHEDULES
def test_the_number_of_steps_asked_for_replaces_the_version_s_own(schedule, steps):
    np.testing.assert_array_equal(sigmas_of(schedule, plain(40), 384, steps), sigmas_of(schedule, plain(steps), 384))


@pytest.mark.parametrize("steps", [-1, 0, MAX_STEPS + 1])
@SCHEDULES
def test_a_number_of_steps_out_of_range_is_refused_with_the_range(schedule, steps):
    with pytest.raises(LtxError, match=rf"^steps must be from 1 to 1000; got {steps} - use 40$"):
        sigmas_of(schedule, plain(40), 384, steps)


@SCHEDULES
def test_one_step_must_be_left_after_the_skipped_ones(schedule):
    one = plain(30, skip_initial_steps=2, skip_final_steps=3)
    assert len(sigmas_of(schedule, one, 384, 6)) == 1
    with pytest.raises(LtxError, match="steps must be from 6 to 1000; got 5"):
        sigmas_of(schedule, one, 384, 5)


@pytest.mark.parametrize("kind", ["deterministic", "stochastic"])
def test_every_step_is_the_official_one(kind):
    steps = {name.rpartition("/")[2]: t for name, t in GOLDEN.items() if name.startswith(f"steps_{kind}/")}
    sigmas = [*steps["timesteps"].tolist(), 0.0]
    assert len(sigmas) == 9
    for i, (sigma, after) in enumerate(pairwise(sigmas)):
        given = steps["latents"][i], steps["velocity"][i], sigma, after
        made = euler_step(*given) if kind == "deterministic" else stochastic_step(*given, steps["noise"][i])
        assert made.dtype == np.float32
        np.testing.assert_allclose(made, steps["latents"][i + 1], rtol=0, atol=1e-6)


def test_both_steps_reach_the_predicted_data_when_they_go_to_zero():
    random = np.random.RandomState(0)
    latents, velocity, noise = (random.standard_normal((1, 5, 3)).astype(np.float32) for _ in range(3))
    data = latents - 0.7 * velocity
    np.testing.assert_allclose(euler_step(latents, velocity, 0.7, 0.0), data, atol=1e-6)
    np.testing.assert_allclose(stochastic_step(latents, velocity, 0.7, 0.0, noise), data, atol=1e-6)


def test_a_stochastic_step_whose_noise_is_the_predicted_one_is_an_euler_step():
    random = np.random.RandomState(1)
    latents, velocity = (random.standard_normal((1, 5, 3)).astype(np.float32) for _ in range(2))
    predicted = latents + np.float32(1 - 0.7) * velocity  # x = (1 - s) data + s noise, v = noise - data
    made = stochastic_step(latents, velocity, 0.7, 0.4, predicted)
    np.testing.assert_allclose(made, euler_step(latents, velocity, 0.7, 0.4), atol=1e-6)


def test_four_euler_steps_reach_the_known_latents():
    k = np.arange(1, 13)
    latents = np.sin(0.3 * k).astype(np.float32)
    sigmas = [*linear_quadratic(4).tolist(), 0.0]
    for sigma, after in pairwise(sigmas):
        latents = euler_step(latents, (sigma * np.sin(0.7 * k)).astype(np.float32), sigma, after)
    np.testing.assert_allclose(latents[:4], [-0.216130, -0.218020, 0.097750, 0.665985], atol=2e-6)


def test_a_step_leaves_what_it_was_given_untouched():
    latents = np.ones((1, 2, 3), np.float32)
    euler_step(latents, latents, 1.0, 0.5)
    stochastic_step(latents, latents, 1.0, 0.5, latents)
    assert (latents == 1).all()
