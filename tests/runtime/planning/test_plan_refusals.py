"""Impossible requests are refused before anything is loaded, in one sentence that says what is wrong and what to do."""

import re
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
from fakes.requests import default_request

from ltx_runtime.errors import LtxError
from ltx_runtime.planning.plan import plan
from ltx_runtime.spec.versions import VERSIONS

NAN, INF, HUGE = float("nan"), float("inf"), 10**30
VIDEO = {"video": Path("clip.mp4"), "single_pass": True}
OF_EACH_KIND = ("0.9.5", "0.9.8-13b-distilled")  # one pass with guidance, and two passes without
TWO_PASSES = [name for name, version in VERSIONS.items() if len(version.passes) == 2]
MODES = "attention_values, attention_skip, transformer_block"


def refusal(name: str, **changes) -> str:
    """Returns the sentence with which a request is refused."""
    version = VERSIONS[name]
    try:
        plan(replace(default_request(version, "a cat", 7), **changes), version)
    except LtxError as refused:
        said = str(refused)
    else:
        pytest.fail(f"{name} takes {changes}")
    assert "\n" not in said and not said.endswith("."), (name, changes)
    return said


# field -> (name as typed, range, advice)
RANGES = {
    "rescaling_scale": ("rescaling-scale", "at least 0 and at most 1", "use 0.7, or 1 to turn it off"),
    "image_noise_scale": ("image-cond-noise-scale", "at least 0 and at most 1", "use 0.15"),
    "decode_timestep": ("decode-timestep", "at least 0 and at most 1", "use 0.05"),
    "decode_noise_scale": ("decode-noise-scale", "at least 0 and at most 1", "use 0.025"),
    "tone_map": ("tone-map-compression-ratio", "at least 0 and at most 1", "use 0.6, or 0 for none"),
    "strength": ("strength", "at least 0 and at most 1", "use 0.6"),
}
OUTSIDE = [-0.0001, 1.0001, -5, 1e300, NAN, INF, -INF]


@pytest.mark.parametrize("field", RANGES)
def test_a_number_outside_its_range_or_none_at_all_is_refused_with_the_range(field):
    typed, bounds, advice = RANGES[field]
    for name, given in product(OF_EACH_KIND, OUTSIDE):
        asked = {field: given} | (VIDEO if field == "strength" else {})
        assert refusal(name, **asked) == f"{typed} must be {bounds}; got {given:g} - {advice}", name


def test_a_guidance_below_one_or_too_large_for_a_float32_is_refused():
    for given in (0.9999, 0, -0.0, -3, NAN, INF, -INF, 1e39, 1e300):
        said = refusal("0.9.5", guidance_scale=given)
        assert said.startswith("guidance-scale must be "), given
        assert said.endswith(f"; got {given:g} - use 3, or 1 to turn it off"), given


def test_an_stg_scale_below_zero_or_too_large_for_a_float32_is_refused():
    for given in (-0.0001, -3, NAN, INF, -INF, 1e39, 1e300):
        said = refusal("0.9.5", stg_scale=given)
        assert said.startswith("stg-scale must be "), given
        assert said.endswith(f"; got {given:g} - use 1, or 0 to turn it off"), given


@pytest.mark.parametrize("said", ["residual", "stg_r"])
def test_the_residual_way_to_skip_is_refused_with_its_reason(said):
    for name in OF_EACH_KIND:
        assert refusal(name, stg_mode=said) == (
            "stg-mode residual does nothing: it skips a connection that LTX-Video's attention does not have - "
            f"use one of {MODES}"
        ), name


def test_an_unknown_way_to_skip_is_refused_with_the_known_ones():
    for said in ("", "x", "STG_AV", "attention", "stg_av "):
        assert refusal("0.9.5", stg_mode=said) == f"unknown stg-mode {said!r} - use one of {MODES}"


@pytest.mark.parametrize(("name", "last"), [("0.9.5", 27), ("0.9.7-dev", 47), ("demo", 5)])
def test_blocks_that_a_transformer_does_not_have_are_refused_with_the_range(name, last):
    for beyond in (1, 100, HUGE):
        for blocks, outside in (((0, last + beyond), last + beyond), ((-1,), -1), ((-beyond, 0), -beyond)):
            said = refusal(name, skip_blocks=blocks, stg_scale=1.0)
            assert said.startswith(f"skip-blocks must be from 0 to {last}; got {outside} - use "), blocks
            assert int(said.rpartition(" ")[2]) <= last, blocks
    plan(replace(default_request(VERSIONS[name], "", 7), skip_blocks=(0, last)), VERSIONS[name])


@pytest.mark.parametrize("name", ["0.9.6-distilled", "0.9.8-2b-distilled", "0.9.8-13b-distilled"])
def test_stg_of_a_release_that_skips_nothing_is_refused_unless_blocks_are_named(name):
    said = refusal(name, stg_scale=1.0)
    assert said.startswith("stg-scale needs blocks to skip, ")
    assert said.endswith(" - add --skip-blocks 19")
    plan(replace(default_request(VERSIONS[name], "", 7), stg_scale=1.0, skip_blocks=(19,)), VERSIONS[name])


def test_stg_of_a_version_that_skips_blocks_in_one_pass_only_is_refused_with_advice_that_helps():
    advice = refusal("demo", stg_scale=1.0).rpartition(" - add --skip-blocks ")[2]
    request = replace(default_request(VERSIONS["demo"], "", 7), stg_scale=1.0, skip_blocks=(int(advice),))
    assert all(step.uses_stg for one in plan(request, VERSIONS["demo"]).passes for step in one.guidance)


def test_a_frame_rate_that_is_no_positive_number_is_refused():
    for name, fps in product(OF_EACH_KIND, (0, -1, NAN, INF, -INF)):
        said = refusal(name, fps=fps)
        assert said.startswith("fps must be "), (name, fps)
        assert said.endswith(f"; got {fps:g} - use 24, 25 or 30"), (name, fps)


def test_a_frame_rate_whose_seconds_are_beyond_float32_is_refused():
    for fps in (1e-300, 1e-42, 1e300):
        assert refusal("0.9.5", fps=fps).startswith("fps must be "), fps


def test_a_seed_beyond_64_bits_is_refused():
    for name, seed in product(OF_EACH_KIND, (-1, 2**64, HUGE)):
        assert refusal(name, seed=seed).startswith(f"seed must be from 0 to 2^64-1; got {seed} - "), (name, seed)


@pytest.mark.parametrize(
    ("size", "said"),
    [
        ({"height": 500}, "height must be a multiple of 32; got 500 - use 480 or 512"),
        ({"width": 0}, "width must be a multiple of 32; got 0 - use 32"),
        ({"width": -64}, "width must be a multiple of 32; got -64 - use 32"),
        ({"num_frames": 0}, "num-frames must be 8n+1; got 0 - use 1"),
        ({"num_frames": 24}, "num-frames must be 8n+1; got 24 - use 17 or 25"),
    ],
    ids=str,
)
def test_a_size_that_can_not_be_made_is_refused_with_the_nearest(size, said):
    for name in VERSIONS:
        assert refusal(name, **size) == said, name


@pytest.mark.parametrize("field", ["height", "width", "num_frames"])
def test_a_size_that_can_not_be_padded_either_is_refused(field):
    typed = field.replace("_", "-")
    for given in (0, -8, -HUGE):
        said = refusal("0.9.5", **{field: given}, pad=True)
        assert said.startswith(f"{typed} must be at least 1; got {given} - use "), given


@pytest.mark.parametrize(("side", "pad"), [("height", False), ("width", False), ("height", True)])
def test_a_size_too_small_for_two_passes_is_refused(side, pad):
    for name in TWO_PASSES:
        said = refusal(name, **{side: 31 if pad else 32}, pad=pad)
        assert said == f"{side} must be at least 64 for two passes; got 32 - use 64", name


@pytest.mark.parametrize("name", TWO_PASSES)
def test_a_first_pass_of_a_single_cell_has_no_deviation_to_match_and_is_refused_with_advice_that_helps(name):
    small = {"height": 64, "width": 64, "num_frames": 1}
    said = refusal(name, **small)
    helps = [{"num_frames": 9}, {"width": 128}, {"single_pass": True}]
    if advised := re.search(r" - use (\d+)x(\d+)", said):
        helps.append({"width": int(advised[1]), "height": int(advised[2])})
    for changes in helps:
        plan(replace(default_request(VERSIONS[name], "", 7), **(small | changes)), VERSIONS[name])


@pytest.mark.parametrize("name", ["0.9.0", "0.9.1"])
def test_a_size_at_which_noise_levels_that_move_with_it_fall_together_is_refused(name):
    for height, width, num_frames in (
        (1088, 1920, 257),
        (4096, 4096, 257),
        (10**5 * 32, 10**5 * 32, 8 * 10**6 + 1),
    ):
        assert " - " in refusal(name, height=height, width=width, num_frames=num_frames), (height, width)


@pytest.mark.parametrize(("name", "least"), [("0.9.5", 1), ("0.9.6-distilled", 1), ("0.9.7-dev", 4)])
def test_a_number_of_steps_out_of_range_is_refused_with_the_range(name, least):
    for steps in (-1, 0, 1001, HUGE):
        said = refusal(name, steps=steps)
        assert said.startswith(f"steps must be from {least} to 1000; got {steps} - use "), steps


@pytest.mark.parametrize("name", ["0.9.7-distilled", "0.9.8-2b-distilled", "0.9.8-13b-distilled"])
def test_another_number_of_steps_than_a_fixed_list_has_is_refused(name):
    for steps in (-1, 0, 1, 6, 8, 1001):
        assert refusal(name, steps=steps) == (
            f"this version was distilled for a fixed list of 7 steps; got {steps} - "
            "leave the steps out, use 7, or give --timesteps"
        )


def test_steps_that_pass_a_level_which_a_distilled_release_does_not_know_are_refused():
    for steps, strange in ((3, "0.71875"), (7, "0.991667"), (20, "0.9975"), (40, "0.99875")):
        assert refusal("0.9.6-distilled", steps=steps) == (
            "this version was distilled for the timesteps 1, 0.9937, 0.9875, 0.9812, 0.975, 0.9094, 0.725, 0.4219; "
            f"got {strange} - leave --steps and --timesteps out, or use --timesteps with some of these"
        ), steps


@pytest.mark.parametrize("name", [name for name in VERSIONS if "distilled" in name])
def test_a_listed_level_that_a_distilled_release_does_not_know_is_refused(name):
    assert "; got 0.5 - leave" in refusal(name, timesteps=(1.0, 0.975, 0.5))


def test_timesteps_and_another_number_of_steps_are_refused():
    for name in VERSIONS:
        said = refusal(name, timesteps=(1.0, 0.725), steps=3)
        assert said == "steps is 3, but the number of timesteps is 2 - leave --steps or --timesteps out", name


@pytest.mark.parametrize(
    "listed", [(1.5,), (NAN,), (0.5, 0.5), (0.5, 0.725), (0.725, 0.0), (INF, 0.5), (0.5, -INF)], ids=str
)
def test_timesteps_that_do_not_descend_from_one_to_above_zero_are_refused(listed):
    given = ", ".join(f"{one:g}" for one in listed)
    said = f"timesteps must descend from at most 1 and stay above 0; got {given} - leave 0 out"
    for name in VERSIONS:
        assert refusal(name, timesteps=listed) == said, name


@pytest.mark.parametrize("field", ["skip_initial_steps", "skip_final_steps"])
def test_all_steps_can_not_be_skipped(field):
    for skipped in (40, 41, HUGE):
        said = refusal("0.9.5", **{field: skipped}, **(VIDEO if "initial" in field else {}))
        assert said.startswith(f"cannot skip {skipped} of 40 steps - "), skipped


@pytest.mark.parametrize("field", ["skip_initial_steps", "skip_final_steps"])
def test_less_than_no_steps_can_not_be_skipped(field):
    for name in ("0.9.5", "0.9.8-2b-distilled"):
        said = refusal(name, **{field: -1}, **VIDEO)
        assert "-1" in said, name
        assert "negative" in said, name


def test_skipping_the_beginning_needs_a_clip_to_start_from():
    for name, (asked, what) in product(
        VERSIONS,
        (
            ({"skip_initial_steps": 1}, "skipping initial steps"),
            ({"strength": 0.5}, "strength"),
            ({"strength": 0.0}, "strength"),
        ),
    ):
        said = refusal(name, **asked)
        assert said == f"{what} needs a video to start from - add --video, or leave it out", (name, asked)


def test_a_clip_to_start_from_is_made_over_in_one_pass():
    for name in TWO_PASSES:
        said = refusal(name, video=Path("clip.mp4"))
        assert said == "video-to-video runs in one pass only - add --single-pass", name


def test_strength_and_initial_steps_to_skip_are_refused_together():
    for name in VERSIONS:
        said = refusal(name, strength=0.5, skip_initial_steps=2, **VIDEO)
        assert said == "strength and skip-initial-steps set the same thing - leave one of them out", name


@pytest.mark.parametrize("asked", [{"strength": 1.0}, {"skip_initial_steps": 0}, {"steps": 1}], ids=str)
def test_a_clip_can_not_start_from_pure_noise_and_the_advice_is_about_what_was_asked(asked):
    said = refusal("0.9.5", **asked, **VIDEO)
    assert said.startswith("a video to start from needs noise levels below 1")
    wanted = {"strength": "--strength", "skip_initial_steps": "--skip-initial-steps", "steps": "--steps"}
    assert wanted[next(iter(asked))] in said
