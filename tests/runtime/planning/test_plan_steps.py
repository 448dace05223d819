"""Which steps a request runs: a given number, listed sigmas, all but skipped ones, or the last ones for a clip."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fakes.requests import default_request

from ltx_runtime.planning.plan import Plan, plan
from ltx_runtime.sampling.schedule import linear_quadratic
from ltx_runtime.spec.presets import DISTILLED_SIGMAS
from ltx_runtime.spec.versions import VERSIONS

LQ30 = linear_quadratic(30)
VIDEO = {"video": Path("clip.mp4"), "single_pass": True}


def planned(name: str, **changes) -> Plan:
    version = VERSIONS[name]
    return plan(replace(default_request(version, "a cat", 7), **changes), version)


@pytest.mark.parametrize("steps", [1, 2, 4, 8])
def test_a_distilled_release_takes_any_number_of_steps_whose_levels_it_knows(steps):
    (one,) = planned("0.9.6-distilled", steps=steps).passes
    np.testing.assert_array_equal(one.sigmas, linear_quadratic(steps))


@pytest.mark.parametrize(("steps", "kept"), [(4, 1), (12, 9), (1000, 997)])
def test_steps_are_those_of_the_first_pass_and_the_second_keeps_its_own(steps, kept):
    first, second = planned("0.9.7-dev", steps=steps).passes
    np.testing.assert_array_equal(first.sigmas, linear_quadratic(steps)[:kept])
    np.testing.assert_array_equal(second.sigmas, LQ30[17:])


@pytest.mark.parametrize("name", ["0.9.0", "0.9.6-distilled", "0.9.7-dev", "0.9.8-2b-distilled"])
@pytest.mark.parametrize("counted", [None, 3])
def test_timesteps_are_used_verbatim_in_the_first_pass(name, counted):
    made = planned(name, timesteps=(1.0, 0.975, 0.4219), steps=counted)
    np.testing.assert_array_equal(made.passes[0].sigmas, np.float32([1, 0.975, 0.4219]))
    assert len(made.passes[0].guidance) == 3
    for one, other in zip(made.passes[1:], planned(name).passes[1:], strict=True):
        np.testing.assert_array_equal(one.sigmas, other.sigmas)


@pytest.mark.parametrize(("name", "steps"), [("0.9.8-2b-distilled", 7), ("0.9.8-13b-distilled", 7)])
def test_a_release_with_a_list_of_steps_may_be_asked_for_as_many(name, steps):
    np.testing.assert_array_equal(planned(name, steps=steps).passes[0].sigmas, planned(name).passes[0].sigmas)


@pytest.mark.parametrize(
    ("name", "skipped"), [("0.9.5", 6), ("0.9.5", 0), ("0.9.7-dev", 0), ("0.9.8-13b-distilled", 2)]
)
def test_final_steps_are_left_out_of_the_first_pass_only(name, skipped):
    first, *rest = planned(name, skip_final_steps=skipped).passes
    whole = {"0.9.5": linear_quadratic(40), "0.9.7-dev": LQ30}.get(name, np.float32(DISTILLED_SIGMAS[:7]))
    np.testing.assert_array_equal(first.sigmas, whole[: len(whole) - skipped])
    assert [len(one.sigmas) for one in rest] == [len(one.sigmas) for one in planned(name).passes[1:]]


@pytest.mark.parametrize("name", ["0.9.5", "0.9.6-distilled", "0.9.8-2b-distilled"])
@pytest.mark.parametrize("skipped", [1, 3, 6])
def test_a_clip_to_start_from_begins_after_the_initial_steps_that_are_skipped(name, skipped):
    whole = planned(name, single_pass=True).passes[0].sigmas
    (one,) = planned(name, skip_initial_steps=skipped, **VIDEO).passes
    np.testing.assert_array_equal(one.sigmas, whole[skipped:])
    assert len(one.guidance) == len(one.sigmas)


@pytest.mark.parametrize(
    ("name", "strength", "kept"),
    [
        *[("0.9.5", None, 24), ("0.9.5", 0.6, 24), ("0.9.5", 0.5, 20), ("0.9.5", 0.99, 39)],
        *[("0.9.5", 0.0, 1), ("0.9.5", 0.01, 1), ("0.9.5", 0.03, 1), ("0.9.5", 0.05, 2)],
        *[("0.9.6-distilled", 0.5, 4), ("0.9.8-2b-distilled", 0.5, 4), ("0.9.8-2b-distilled", 0.0, 1)],
    ],
)
def test_of_all_steps_the_last_as_many_as_the_strength_are_made_and_at_least_one(name, strength, kept):
    whole = planned(name, single_pass=True).passes[0].sigmas
    (one,) = planned(name, strength=strength, **VIDEO).passes
    np.testing.assert_array_equal(one.sigmas, whole[len(whole) - kept :])


@pytest.mark.parametrize("strength", [0.0, 0.01, 0.3, 0.6, 0.9])
def test_final_steps_that_are_left_out_stay_so_with_any_strength(strength):
    (one,) = planned("0.9.7-dev", strength=strength, skip_final_steps=3, **VIDEO).passes
    np.testing.assert_array_equal(one.sigmas, LQ30[30 - max(4, int(30 * strength)) : 27])


@pytest.mark.parametrize("name", ["0.9.5", "0.9.7-dev"])  # the preset of the second skips final steps
@pytest.mark.parametrize(
    ("asked", "left"),
    [
        ({}, slice(None)),
        ({"strength": 0.5}, slice(2, None)),
        ({"skip_initial_steps": 1}, slice(1, None)),
        ({"skip_initial_steps": 1, "skip_final_steps": 2}, slice(1, 2)),
    ],
    ids=str,
)
def test_listed_timesteps_for_a_clip_to_start_from_are_used_verbatim_less_what_is_asked_to_be_skipped(
    name, asked, left
):
    listed = (0.975, 0.725, 0.5, 0.25)
    (one,) = planned(name, timesteps=listed, **asked, **VIDEO).passes
    np.testing.assert_array_equal(one.sigmas, np.float32(listed[left]))
