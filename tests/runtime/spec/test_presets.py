"""Passes against the official presets as they were published, and laws of the parts of a pass."""

from dataclasses import FrozenInstanceError, fields, replace

import numpy as np
import pytest

from ltx_runtime.sampling.guidance import guidance_at
from ltx_runtime.sampling.schedule import linear_quadratic, sigmas_of
from ltx_runtime.spec.presets import (
    BASE,
    DEV_13B,
    DISTILLED_SIGMAS,
    DISTILLED_SINGLE,
    LINEAR_QUADRATIC,
    SD3,
    STG_MODES,
    Guidance,
    Pass,
    Schedule,
    distilled,
)

EVERY_PASS = pytest.mark.parametrize(
    "one",
    [BASE, DISTILLED_SINGLE, *DEV_13B, *distilled(), *distilled(0.6)],
    ids=["base", "distilled", "dev_1", "dev_2", "list_1", "list_2", "toned_1", "toned_2"],
)

# The lists of the preset's first pass, and which of their seven entries each of the 27 steps uses.
FROM_SIGMA = (1.0, 0.996, 0.9933, 0.9850, 0.9767, 0.9008, 0.6180)
CFG, STG, RESCALE = (1, 1, 6, 8, 6, 1, 1), (0, 0, 4, 4, 4, 2, 1), (1, 1, 0.5, 0.5, 1, 1, 1)
SKIPPED = ((), (11, 25, 35, 39), (22, 35, 39), (28,), (28,), (28,), (28,))
ENTRY_OF_STEP = (0, 1, 1, 2, 2, *[3] * 5, *[4] * 4, *[5] * 5, *[6] * 8)


def forwards(guidance: Guidance) -> int:
    return 1 + guidance.uses_cfg + guidance.uses_stg


def steps_of(one: Pass) -> list[tuple[float, Guidance]]:
    sigmas = sigmas_of(LINEAR_QUADRATIC, one, tokens=384)
    return [(float(sigma), guidance_at(float(sigma), one.guidance)) for sigma in sigmas]


def test_the_ways_to_skip_a_layer_are_three_and_in_the_order_of_the_rows_of_a_skip_mask():
    assert STG_MODES == ("attention_values", "attention_skip", "transformer_block")


def test_a_schedule_is_linear_quadratic_unless_it_says_otherwise():
    assert Schedule() == LINEAR_QUADRATIC == Schedule("LinearQuadratic", None, None)
    assert Schedule("Uniform", "SD3", 0.1) == SD3


@pytest.mark.parametrize(("scale", "used"), [(0.0, False), (1.0, False), (1.0001, True), (7.5, True)])
def test_cfg_is_used_above_one(scale, used):
    assert Guidance(cfg_scale=scale).uses_cfg is used


@pytest.mark.parametrize(("scale", "used"), [(0.0, False), (0.0001, True), (4.0, True)])
def test_stg_is_used_above_zero_in_a_guidance_and_in_the_pass_that_has_it(scale, used):
    guidance = Guidance(stg_scale=scale, skip_blocks=(1,))
    assert guidance.uses_stg is used
    assert Pass(steps=1, guidance=(Guidance(), guidance)).uses_stg is used


def test_guidance_that_says_nothing_is_none_and_holds_from_the_data_on():
    assert forwards(Guidance()) == 1
    assert (Guidance().rescale, Guidance().cfg_star, Guidance().from_sigma) == (1, False, 0)


def test_the_base_preset_is_40_steps_of_cfg_3_stg_1_rescaled_by_07_in_block_19():
    assert replace(BASE, guidance=()) == Pass(steps=40, guidance=())
    assert BASE.guidance == (Guidance(cfg_scale=3, stg_scale=1, rescale=0.7, skip_blocks=(19,)),)
    assert sum(forwards(guidance) for _, guidance in steps_of(BASE)) == 120


def test_the_distilled_preset_of_one_pass_is_8_stochastic_steps_without_guidance():
    assert Pass(steps=8, guidance=(Guidance(),), stochastic=True) == DISTILLED_SINGLE
    assert [forwards(guidance) for _, guidance in steps_of(DISTILLED_SINGLE)] == [1] * 8


def test_the_first_13b_dev_pass_has_the_published_lists():
    first, _ = DEV_13B
    assert (first.steps, first.skip_initial_steps, first.skip_final_steps) == (30, 0, 3)
    published = zip(CFG, STG, RESCALE, SKIPPED, [True] * 7, FROM_SIGMA, strict=True)
    assert [tuple(getattr(g, f.name) for f in fields(g)) for g in first.guidance] == list(published)


def test_the_first_13b_dev_pass_is_27_steps_and_each_uses_the_known_entry():
    first, _ = DEV_13B
    steps = steps_of(first)
    np.testing.assert_array_equal([sigma for sigma, _ in steps], linear_quadratic(30)[:27])
    assert [first.guidance.index(guidance) for _, guidance in steps] == list(ENTRY_OF_STEP)
    assert [forwards(guidance) for _, guidance in steps] == [1] * 3 + [3] * 11 + [2] * 13
    assert sum(forwards(guidance) for _, guidance in steps) == 62


def test_the_second_13b_dev_pass_is_13_steps_of_stg_in_block_27():
    _, second = DEV_13B
    steps = steps_of(second)
    np.testing.assert_array_equal([sigma for sigma, _ in steps], linear_quadratic(30)[17:])
    assert {guidance for _, guidance in steps} == {Guidance(1, 1, 1, (27,), cfg_star=True)}
    assert [forwards(guidance) for _, guidance in steps] == [2] * 13


@pytest.mark.parametrize("one", DEV_13B, ids=["first", "second"])
def test_13b_dev_passes_are_not_stochastic_and_map_no_tones(one):
    assert (one.sigmas, one.stochastic, one.tone_map) == ((), False, 0)


def test_the_levels_of_the_distilled_are_the_eight_step_schedule_to_four_decimals():
    assert [f"{sigma:.4f}" for sigma in DISTILLED_SIGMAS] == [f"{sigma:.4f}" for sigma in linear_quadratic(8)]
    assert all(sigma == round(sigma, 4) for sigma in DISTILLED_SIGMAS)


@pytest.mark.parametrize("tone_map", [0.0, 0.6])
def test_distilled_passes_are_seven_and_three_steps_without_guidance(tone_map):
    first, second = distilled(tone_map)
    assert first.sigmas == (1.0, 0.9937, 0.9875, 0.9812, 0.9750, 0.9094, 0.7250)
    assert second.sigmas == (0.9094, 0.7250, 0.4219)
    assert [forwards(guidance) for _, guidance in steps_of(first) + steps_of(second)] == [1] * 10
    assert not first.stochastic and not second.stochastic
    assert (first.tone_map, second.tone_map) == (0, tone_map)


@EVERY_PASS
def test_a_pass_with_a_list_has_as_many_steps_and_skips_none(one):
    if one.sigmas:
        assert len(one.sigmas) == one.steps
        assert one.skip_initial_steps == one.skip_final_steps == 0


@EVERY_PASS
def test_every_entry_of_a_pass_is_in_force_at_some_step(one):
    assert {guidance for _, guidance in steps_of(one)} == set(one.guidance)


@EVERY_PASS
def test_a_pass_and_its_guidance_can_not_be_changed(one):
    for changed in (one, *one.guidance):
        for field in fields(changed):
            with pytest.raises(FrozenInstanceError):
                setattr(changed, field.name, None)
