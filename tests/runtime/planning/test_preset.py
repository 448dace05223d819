"""Presets in place of a version's own: the official files change nothing, and fields of the request win."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from fakes.stages import engines_of
from samples.preset_files import DEV_13B, DISTILLED_2B, OFFICIAL

from ltx_runtime import Guidance, LtxError, Pass, Pipeline, Preset, Request, read_preset
from ltx_runtime.planning.plan import Plan, plan
from ltx_runtime.sampling.guidance import guidance_at
from ltx_runtime.sampling.schedule import linear_quadratic, uniform
from ltx_runtime.spec.presets import Schedule
from ltx_runtime.spec.versions import VERSIONS

SMALL = {"height": 64, "width": 96, "num_frames": 9, "seed": 7}
NO_GUIDANCE = (Guidance(),)


def read_from(folder: Path, text: str) -> Preset:
    """Reads a text as a preset file."""
    path = folder / "my.yaml"
    path.write_text(text)
    return read_preset(path)


@pytest.fixture
def read(tmp_path):
    return partial(read_from, tmp_path)


def planned(name: str, **asked) -> Plan:
    return plan(Request("a fox", seed=7, **asked), VERSIONS[name])


def assert_same_plan(one: Plan, other: Plan) -> None:
    """Checks that two plans are equal in all but the request, with sigmas equal bit for bit."""
    assert (one.settings, one.ending, one.padding) == (other.settings, other.ending, other.padding)
    assert len(one.passes) == len(other.passes)
    for this, that in zip(one.passes, other.passes, strict=True):
        assert this.sigmas.tobytes() == that.sigmas.tobytes()
        assert (this.grid, this.guidance, this.stochastic) == (that.grid, that.guidance, that.stochastic)


# --- the official files ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", OFFICIAL)
def test_the_plan_with_an_official_file_is_the_plan_without_it(name, read):
    preset = read(OFFICIAL[name])
    scale = {"stg_scale": 1.0, "skip_blocks": (3,), "rescaling_scale": 0.3}
    video = {"video": Path("clip.mp4"), "single_pass": True}
    for asked in ({}, {"single_pass": True}, scale, {"guidance_scale": 2.0, "cfg_star": True}, video):
        assert_same_plan(planned(name, preset=preset, **asked), planned(name, **asked))


def test_the_file_of_the_13b_release_gives_each_step_the_entry_that_the_official_code_picks(read):
    first, second = planned("0.9.8-13b-dev", preset=read(DEV_13B)).passes
    entries = (0, 1, 1, 2, 2, *[3] * 5, *[4] * 4, *[5] * 5, *[6] * 8)
    np.testing.assert_array_equal(first.sigmas, linear_quadratic(30)[:27])
    np.testing.assert_array_equal(second.sigmas, linear_quadratic(30)[17:])
    assert [step.cfg_scale for step in first.guidance] == [(1, 1, 6, 8, 6, 1, 1)[i] for i in entries]
    assert [step.stg_scale for step in first.guidance] == [(0, 0, 4, 4, 4, 2, 1)[i] for i in entries]


@pytest.mark.parametrize("name", ["0.9.5", "0.9.8-13b-dev", "0.9.8-13b-distilled"])
def test_a_run_with_an_official_file_makes_the_frames_of_a_run_without_it(name, read, spiece, diary):
    with Pipeline(engines_of(VERSIONS[name], spiece), backend="fake") as pipe:
        own = list(pipe("a fox", **SMALL).frames())
        ran = [*diary]
        given = list(pipe(Request("a fox", preset=read(OFFICIAL[name])), **SMALL).frames())
    assert diary == ran * 2
    np.testing.assert_array_equal(given, own)


# --- precedence and checks of presets -------------------------------------------------------------


def test_what_the_request_names_wins_over_the_preset():
    first = Pass(steps=6, guidance=(Guidance(4.0, 2.0, 0.5, (3,)),), stochastic=True, tone_map=0.4)
    preset = Preset((first,), None, "attention_skip", 0.2, 0.3, Schedule("Uniform"))
    own = planned("0.9.5", preset=preset)
    assert (own.settings.stg_mode, own.ending.decode_timestep, own.ending.decode_noise_scale) == (
        *("attention_skip", 0.2, 0.3),
    )
    (one,) = own.passes
    np.testing.assert_array_equal(one.sigmas, uniform(6))
    assert (one.guidance, one.stochastic, own.ending.tone_map) == (first.guidance * 6, True, 0.4)
    asked = {"stg_mode": "stg_av", "decode_timestep": 0.0, "decode_noise_scale": 0.0, "tone_map": 0.0, "steps": 3}
    made = planned("0.9.5", preset=preset, stochastic=False, guidance_scale=1.0, skip_blocks=(5,), **asked)
    assert made.settings.stg_mode == "attention_values"
    assert (made.ending.decode_timestep, made.ending.decode_noise_scale, made.ending.tone_map) == (0, 0, 0)
    (one,) = made.passes
    np.testing.assert_array_equal(one.sigmas, uniform(3))
    assert (one.guidance, one.stochastic) == ((Guidance(1.0, 2.0, 0.5, (5,)),) * 3, False)


def test_what_a_preset_leaves_out_is_the_version_s_own():
    version = VERSIONS["0.9.8-13b-dev"]
    assert_same_plan(planned(version.name, preset=Preset(version.passes)), planned(version.name))


def test_guidance_of_each_step_can_be_given_from_python():
    levels = linear_quadratic(5)
    guidance = tuple(Guidance(1.0 + i, from_sigma=float(level)) for i, level in enumerate(levels))
    (one,) = planned("0.9.5", preset=Preset((Pass(steps=5, guidance=guidance),))).passes
    assert one.guidance == guidance == tuple(guidance_at(float(level), guidance) for level in levels)


@pytest.mark.parametrize("name", ["0.9.5", "0.9.8-13b-dev"])
def test_a_preset_says_how_many_passes_there_are_and_how_large_the_first_is(name):
    one = Pass(steps=4, guidance=NO_GUIDANCE)
    both = Preset((one, replace(one, skip_initial_steps=2)), first_pass_scale=0.5)
    size = {"height": 256, "width": 384}
    assert [(p.grid.height, p.grid.width) for p in planned(name, preset=both, **size).passes] == [
        *((128, 192), (256, 384)),
    ]
    for asked in ({"preset": Preset((one,))}, {"preset": both, "single_pass": True}):
        (alone,) = planned(name, **asked, **size).passes
        assert (alone.grid.height, alone.grid.width, len(alone.sigmas)) == (256, 384, 4)


def test_a_single_pass_of_a_preset_of_one_is_that_pass():
    preset = Preset((Pass(steps=6, guidance=NO_GUIDANCE, skip_final_steps=2),))
    assert_same_plan(planned("0.9.5", preset=preset, single_pass=True), planned("0.9.5", preset=preset))


def test_two_passes_of_a_preset_need_an_upsampler(spiece, diary):
    one = Pass(steps=4, guidance=NO_GUIDANCE)
    engines = engines_of(VERSIONS["0.9.5"], spiece, lacking=("upsampler",))
    with Pipeline(engines, backend="fake") as pipe:
        with pytest.raises(LtxError, match="the second pass needs"):
            pipe("a fox", preset=Preset((one, one)), **SMALL)
        assert pipe("a fox", preset=Preset((one, one)), single_pass=True, **SMALL).plan is not None
        assert pipe("a fox", preset=Preset((one,)), **SMALL).plan is not None
    assert diary == []


def test_a_first_pass_that_begins_later_needs_a_video_and_keeps_its_own_steps():
    preset = Preset((Pass(steps=10, guidance=NO_GUIDANCE, skip_initial_steps=4),))
    with pytest.raises(LtxError, match="the preset skips 4 initial steps, which needs a video to start from"):
        planned("0.9.5", preset=preset)
    video = Path("clip.mp4")
    for asked, kept in (
        ({"skip_initial_steps": 0}, 10),
        ({"video": video}, 6),
        ({"video": video, "strength": 0.3}, 3),
        ({"video": video, "skip_initial_steps": 2}, 8),
    ):
        (one,) = planned("0.9.5", preset=preset, **asked).passes
        np.testing.assert_array_equal(one.sigmas, linear_quadratic(10)[10 - kept :])
    listed = Preset((Pass(steps=2, guidance=NO_GUIDANCE, sigmas=(0.9, 0.5)),))
    np.testing.assert_array_equal(planned("0.9.5", preset=listed, video=video).passes[0].sigmas, np.float32([0.9, 0.5]))


def test_a_preset_that_the_version_cannot_use_is_refused(read):
    dev = read(DEV_13B)
    two_b = replace(dev, passes=(Pass(steps=4, guidance=(Guidance(1.0, 1.0, 1.0, (28,)),)),))
    unskipped = replace(dev, passes=(Pass(steps=4, guidance=(Guidance(1.0, 1.0),)),))
    for name, asked, message in (
        ("0.9.8-13b-distilled", {"preset": dev}, "distilled for the timesteps .* - use a preset of this version"),
        ("0.9.5", {"preset": two_b}, "skip-blocks must be from 0 to 27; got 28"),
        ("0.9.5", {"preset": unskipped}, "the preset has steps with STG but no blocks to skip"),
        ("0.9.5", {"preset": read(DISTILLED_2B), "steps": 5}, "the preset has a fixed list of 7 steps; got 5"),
        ("0.9.5", {"preset": dev, "video": Path("a.mp4")}, "video-to-video runs in one pass only"),
    ):
        with pytest.raises(LtxError, match=message):
            planned(name, **asked)


def test_a_preset_made_in_python_is_checked_when_it_is_planned():
    one = Pass(steps=4, guidance=NO_GUIDANCE)
    cfg, stg, rescale = Guidance(cfg_scale=0.5), Guidance(stg_scale=101.0), Guidance(rescale=float("nan"))
    for preset, message in (
        (Preset(()), "one pass or two; got 0"),
        (Preset((one,) * 3), "one pass or two; got 3"),
        (Preset((replace(one, guidance=()),)), "pass 1 of the preset has no guidance"),
        (Preset((one, replace(one, guidance=(cfg,)))), "cfg_scale of pass 2 of the preset must be at least 1; got 0.5"),
        (Preset((replace(one, guidance=(stg,)),)), "stg_scale of pass 1 of the preset .* at most 100; got 101"),
        (Preset((replace(one, guidance=(rescale,)),)), "rescale of pass 1 of the preset .*; got nan"),
        (Preset((replace(one, tone_map=2.0),)), "tone_map of pass 1 of the preset .* at most 1; got 2"),
        (Preset((one, one), first_pass_scale=0.0), "first_pass_scale of the preset must be at least 0.1"),
        (Preset((one,), decode_timestep=-1.0), "decode_timestep of the preset must be at least 0"),
        (Preset((one,), decode_noise_scale=7.0), "decode_noise_scale of the preset must be at least 0 and at most 1"),
        (Preset((one,), stg_mode="sideways"), "unknown stg-mode 'sideways'"),
        (Preset((replace(one, sigmas=(0.5, 0.6)),)), "timesteps must descend"),
        (Preset((replace(one, steps=0),)), "steps must be from 1 to 1000; got 0"),
    ):
        with pytest.raises(LtxError, match=message):
            planned("0.9.5", preset=preset)
