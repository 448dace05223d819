"""Schedules and steps: the official package's golden values, closed forms and laws."""

from itertools import pairwise

import numpy as np
import pytest
from oracles.golden_files import golden

from ltx_runtime.errors import LtxError
from ltx_runtime.sampling.schedule import (
    MAX_STEPS,
    check_allowed,
    euler_step,
    linear_quadratic,
    next_sigmas,
    sd3_shift,
    sigmas_of,
    stochastic_step,
    stretch_to_terminal,
    uniform,
)
from ltx_runtime.spec.presets import DISTILLED_SIGMAS, SD3, Pass, Schedule
from ltx_runtime.spec.versions import VERSIONS

GOLDEN = golden("sampler")
TOKENS = (384, 4992, 13376)
NAN, INF = float("nan"), float("inf")
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
            (Schedule(sampler, None, 0.3), grid),  # the official scheduler stretches only if it shifts
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
    # In the second half, the complement q(s) with s = 0..1 has q(0) = 0.025, q(1) = 1 and q'(0) = 0.025, the slope
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


@pytest.mark.parametrize("listed", [(1.0, 0.9937, 0.725), (0.5,), (1e-3, 1e-4)])
def test_a_list_of_sigmas_is_used_verbatim_whatever_else_a_pass_and_its_schedule_say(listed):
    one = plain(30, sigmas=listed, skip_initial_steps=1, skip_final_steps=40)
    sigmas = sigmas_of(SD3, one, 13376)
    assert sigmas.dtype == np.float32
    np.testing.assert_array_equal(sigmas, np.array(listed, np.float32))


NO_LISTS = [(1.5, 0.5), (1.0, 0.0), (0.5, -0.1), (0.5, 0.5), (0.5, 0.6), (0.0,), (NAN, 0.5), (1.0, NAN), (INF, 0.5)]
# An infinite sigma; two that are equal in float32; two so close that `next_sigmas` would confuse them.
NO_LISTS += [(0.5, -INF), (0.70000001, 0.7), (0.5, 0.4999995)]


@pytest.mark.parametrize("listed", NO_LISTS, ids=str)
def test_a_list_that_does_not_fall_from_one_to_above_zero_is_refused_as_it_was_given(listed):
    given = ", ".join(f"{sigma:g}" for sigma in listed)
    with pytest.raises(LtxError) as refused:
        sigmas_of(Schedule(), plain(8, sigmas=listed), 384)
    assert str(refused.value) == f"timesteps must descend from at most 1 and stay above 0; got {given} - leave 0 out"


@pytest.mark.parametrize("steps", [-1, 0, MAX_STEPS + 1, 10**30])
@SCHEDULES
def test_a_number_of_steps_out_of_range_is_refused_with_the_range(schedule, steps):
    with pytest.raises(LtxError, match=rf"^steps must be from 1 to 1000; got {steps} - use 20 or more$"):
        sigmas_of(schedule, plain(steps), 384)


@SCHEDULES
def test_one_step_must_be_left_after_the_skipped_ones(schedule):
    skipped = {"skip_initial_steps": 2, "skip_final_steps": 3}
    assert len(sigmas_of(schedule, plain(6, **skipped), 384)) == 1
    with pytest.raises(LtxError, match=r"^steps must be from 6 to 1000; got 5 - use 20 or more$"):
        sigmas_of(schedule, plain(5, **skipped), 384)


@pytest.mark.parametrize(("initial", "final"), [(-1, 0), (0, -1), (-5, 40)])
def test_less_than_no_steps_can_not_be_skipped(initial, final):
    with pytest.raises(LtxError, match=rf"^steps to skip cannot be negative; got {initial} and {final} - use 0$"):
        sigmas_of(Schedule(), plain(30, skip_initial_steps=initial, skip_final_steps=final), 384)


@pytest.mark.parametrize("steps", [1, 2, 4, 8])
def test_a_distilled_transformer_knows_the_levels_of_one_two_four_and_eight_steps(steps):
    check_allowed(linear_quadratic(steps), DISTILLED_SIGMAS)


@pytest.mark.parametrize("steps", [3, 5, 6, 7, 9, 16, 20, 30, 40])
def test_a_distilled_transformer_refuses_the_first_level_it_does_not_know_and_lists_those_it_does(steps):
    sigmas = linear_quadratic(steps)
    known = {f"{sigma:.4f}" for sigma in DISTILLED_SIGMAS}
    first = next(float(sigma) for sigma in sigmas if f"{sigma:.4f}" not in known)
    with pytest.raises(LtxError) as refused:
        check_allowed(sigmas, DISTILLED_SIGMAS)
    assert str(refused.value) == (
        "this version was distilled for the timesteps 1, 0.9937, 0.9875, 0.9812, 0.975, 0.9094, 0.725, 0.4219; "
        f"got {first:g} - leave --steps and --timesteps out, or use --timesteps with some of these"
    )


@pytest.mark.parametrize("sigma", [0.99365, 0.9937, 0.993749])
def test_levels_are_compared_to_four_decimals(sigma):
    check_allowed(np.array([sigma], np.float32), (0.9937,))
    for strange in (0.9936, 0.9938):
        with pytest.raises(LtxError, match=rf"got {strange:g} - "):
            check_allowed(np.array([sigma, strange], np.float32), (0.9937,))


def test_a_transformer_that_lists_no_levels_knows_all():
    check_allowed(linear_quadratic(40), ())


@pytest.mark.parametrize(
    ("timestep", "after"), [(1.0, -0.00625), (0.3, -0.3), (0.0, 0.0), (0.98, -0.005), (0.5, -0.078125)]
)
def test_a_token_steps_from_its_own_level_to_the_next_lower_one_of_the_schedule(timestep, after):
    timesteps = np.array([[1.0, timestep]], np.float32)
    following = next_sigmas(timesteps, linear_quadratic(8))
    tokens, velocity = np.zeros((1, 2, 3), np.float32), np.ones((1, 2, 3), np.float32)
    stepped = euler_step(tokens, velocity, timesteps, following)
    np.testing.assert_allclose(stepped[0, 0], -0.00625, atol=1e-7)
    np.testing.assert_allclose(stepped[0, 1], after, atol=1e-7)


@SCHEDULES
def test_every_level_is_followed_by_the_next_and_the_last_by_zero(schedule):
    sigmas = sigmas_of(schedule, plain(30), 4992)
    np.testing.assert_array_equal(next_sigmas(sigmas[None], sigmas), [[*sigmas[1:], 0]])


def test_a_level_that_differs_from_a_listed_one_by_rounding_is_that_one():
    sigmas = np.array([0.9, 0.5], np.float32)
    near = np.array([[0.5 - 5e-7, 0.5 + 5e-7, 0.5 + 2e-6, 5e-7]], np.float32)
    np.testing.assert_array_equal(next_sigmas(near, sigmas), np.float32([[0, 0, 0.5, 0]]))


@pytest.mark.parametrize("kind", ["deterministic", "stochastic"])
@pytest.mark.parametrize("per_token", [False, True])
def test_every_step_is_the_official_one(kind, per_token):
    steps = {name.rpartition("/")[2]: t for name, t in GOLDEN.items() if name.startswith(f"steps_{kind}/")}
    sigmas = steps["timesteps"]
    assert len(sigmas) == 8
    for i, sigma in enumerate(sigmas):
        timesteps = np.full((1, steps["latents"].shape[2] if per_token else 1), sigma)
        given = steps["latents"][i], steps["velocity"][i], timesteps, next_sigmas(timesteps, sigmas)
        made = euler_step(*given) if kind == "deterministic" else stochastic_step(*given, steps["noise"][i])
        assert made.dtype == np.float32
        np.testing.assert_allclose(made, steps["latents"][i + 1], rtol=0, atol=1e-6)


def level(sigma: float) -> np.ndarray:
    return np.full((1, 1), sigma, np.float32)


def test_both_steps_reach_the_predicted_data_when_they_go_to_zero():
    random = np.random.RandomState(0)
    latents, velocity, noise = (random.standard_normal((1, 5, 3)).astype(np.float32) for _ in range(3))
    data = latents - 0.7 * velocity
    np.testing.assert_allclose(euler_step(latents, velocity, level(0.7), level(0)), data, atol=1e-6)
    np.testing.assert_allclose(stochastic_step(latents, velocity, level(0.7), level(0), noise), data, atol=1e-6)


def test_a_stochastic_step_whose_noise_is_the_predicted_one_is_an_euler_step():
    random = np.random.RandomState(1)
    latents, velocity = (random.standard_normal((1, 5, 3)).astype(np.float32) for _ in range(2))
    predicted = latents + np.float32(1 - 0.7) * velocity  # x = (1 - s) data + s noise, v = noise - data
    made = stochastic_step(latents, velocity, level(0.7), level(0.4), predicted)
    np.testing.assert_allclose(made, euler_step(latents, velocity, level(0.7), level(0.4)), atol=1e-6)


def test_tokens_at_level_zero_stay_where_they_are():
    random = np.random.RandomState(2)
    latents, velocity, noise = (random.standard_normal((2, 3, 4)).astype(np.float32) for _ in range(3))
    timesteps = np.array([[0.7, 0.0, 0.7]], np.float32)
    following = next_sigmas(timesteps, np.array([0.7, 0.4], np.float32))
    for made in (
        euler_step(latents, velocity, timesteps, following),
        stochastic_step(latents, velocity, timesteps, following, noise),
    ):
        moved = (made != latents).any(axis=(0, 2))
        assert moved.tolist() == [True, False, True]


def test_four_euler_steps_reach_the_known_latents():
    k = np.arange(1, 13)
    latents = np.sin(0.3 * k).astype(np.float32).reshape(1, 4, 3)
    sigmas = linear_quadratic(4)
    for sigma, after in pairwise([*sigmas.tolist(), 0.0]):
        velocity = (sigma * np.sin(0.7 * k)).astype(np.float32).reshape(1, 4, 3)
        latents = euler_step(latents, velocity, level(sigma), level(after))
    np.testing.assert_allclose(latents.reshape(-1)[:4], [-0.216130, -0.218020, 0.097750, 0.665985], atol=2e-6)


def test_a_step_leaves_what_it_was_given_untouched():
    latents, timesteps, following = np.ones((1, 2, 3), np.float32), level(1.0), level(0.5)
    euler_step(latents, latents, timesteps, following)
    stochastic_step(latents, latents, timesteps, following, latents)
    assert (latents == 1).all()
    assert (timesteps[0, 0], following[0, 0]) == (1, 0.5)
