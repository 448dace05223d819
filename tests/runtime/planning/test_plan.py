"""Plans of requests: sizes, sigmas and guidance of every pass, by the official presets and closed forms."""

from dataclasses import FrozenInstanceError, fields, replace
from itertools import product

import numpy as np
import pytest
from fakes.requests import default_request

from ltx_runtime.errors import LtxError
from ltx_runtime.planning.plan import Plan, plan
from ltx_runtime.planning.request import IMAGE_NOISE_SCALE
from ltx_runtime.sampling.schedule import linear_quadratic, sigmas_of, uniform
from ltx_runtime.spec.presets import DEV_13B, DISTILLED_SIGMAS, SD3, STG_MODES, Guidance, Schedule
from ltx_runtime.spec.versions import VERSIONS

EVERY_VERSION = pytest.mark.parametrize("version", VERSIONS.values(), ids=VERSIONS)
TWO_PASSES = [name for name, version in VERSIONS.items() if len(version.passes) == 2]
DEV, DISTILLED = ("0.9.7-dev", "0.9.8-13b-dev"), ("0.9.7-distilled", "0.9.8-2b-distilled", "0.9.8-13b-distilled")
LQ30 = linear_quadratic(30)


def planned(name: str, *, schedule=None, allowed=None, **changes) -> Plan:
    version = VERSIONS[name]
    return plan(replace(default_request(version, "a cat", 7), **changes), version, schedule, allowed)


def forwards(one) -> list[int]:
    return [1 + step.uses_cfg + step.uses_stg for step in one.guidance]


def sizes(made: Plan) -> list[tuple[int, int]]:
    return [(one.grid.height, one.grid.width) for one in made.passes]


@EVERY_VERSION
def test_the_default_request_is_the_version_s_own(version):
    request = default_request(version, "a cat", 7)
    own = (version.height, version.width, version.num_frames, version.fps, version.negative_prompt)
    assert (request.height, request.width, request.num_frames, request.fps, request.negative_prompt) == own
    assert (request.prompt, request.seed, request.image_noise_scale, request.fit) == ("a cat", 7, 0.15, "crop")
    asked = {field.name for field in fields(request) if getattr(request, field.name) not in (None, (), False)}
    own = {"prompt", "negative_prompt", "height", "width", "num_frames", "fps", "seed"}
    assert asked == own | {"image_noise_scale", "fit"}
    with pytest.raises(FrozenInstanceError):
        request.seed = 8


@pytest.mark.parametrize("size", [(704, 1216, 121), (512, 768, 97), (32, 32, 1)])
def test_a_single_pass_has_the_grid_of_the_size_asked_for(size):
    for name in (name for name in VERSIONS if name not in TWO_PASSES):
        (one,) = planned(name, **dict(zip(("height", "width", "num_frames"), size, strict=True))).passes
        assert (one.grid.height, one.grid.width, one.grid.num_frames) == size, name


@pytest.mark.parametrize(
    ("asked", "first"),
    [
        ((704, 1216), (448, 800)),
        ((512, 768), (320, 480)),
        ((480, 832), (288, 544)),
        ((768, 1152), (480, 736)),
        ((256, 320), (160, 192)),
        ((1024, 1024), (672, 672)),
        ((96, 64), (32, 32)),  # 0.6666666 * 96 is a little less than 64
    ],
)
def test_of_two_passes_the_first_has_two_thirds_rounded_down_and_the_second_twice_that(asked, first):
    for name in TWO_PASSES:
        made = planned(name, height=asked[0], width=asked[1], num_frames=25)
        assert sizes(made) == [first, (2 * first[0], 2 * first[1])], name
        assert [one.grid.num_frames for one in made.passes] == [25, 25], name
        assert made.ending.size == asked, name
        whole = planned(name, height=asked[0], width=asked[1], single_pass=True)
        assert whole.passes[0].grid.height == asked[0], name


@pytest.mark.parametrize("name", DEV)
def test_13b_dev_takes_62_forwards_at_the_small_size_and_26_at_the_large(name):
    first, second = planned(name).passes
    np.testing.assert_array_equal(first.sigmas, LQ30[:27])
    np.testing.assert_array_equal(second.sigmas, LQ30[17:])
    assert forwards(first) == [1] * 3 + [3] * 11 + [2] * 13
    assert forwards(second) == [2] * 13
    assert [step.skip_blocks for step in first.guidance[3:6]] == [(22, 35, 39), (22, 35, 39), (28,)]
    assert {step.skip_blocks for step in second.guidance} == {(27,)}
    assert not first.stochastic and not second.stochastic


@pytest.mark.parametrize("name", DISTILLED)
def test_the_distilled_of_two_passes_take_seven_and_three_unguided_steps(name):
    first, second = planned(name).passes
    np.testing.assert_array_equal(first.sigmas, np.float32(DISTILLED_SIGMAS[:7]))
    np.testing.assert_array_equal(second.sigmas, np.float32(DISTILLED_SIGMAS[5:]))
    assert forwards(first) + forwards(second) == [1] * 10


@pytest.mark.parametrize("name", ["0.9.0", "0.9.1", "0.9.5", "0.9.6-dev"])
def test_a_base_release_takes_40_steps_of_three_forwards(name):
    (one,) = planned(name).passes
    assert forwards(one) == [3] * 40
    assert set(one.guidance) == {Guidance(3, 1, 0.7, (19,))}


def test_096_distilled_takes_eight_stochastic_steps():
    (one,) = planned("0.9.6-distilled").passes
    np.testing.assert_array_equal(one.sigmas, linear_quadratic(8))
    assert (forwards(one), one.stochastic) == ([1] * 8, True)


@pytest.mark.parametrize(
    ("size", "second", "last_but_one"),
    [
        ((256, 384, 25), 0.975107, 0.188093),
        ((512, 768, 97), 0.993117, 0.357350),
        ((704, 1216, 121), 0.997288, 0.554694),
    ],
)
def test_the_first_releases_move_their_schedule_by_the_tokens_of_the_video(size, second, last_but_one):
    for name in ("0.9.0", "0.9.1"):
        (one,) = planned(name, height=size[0], width=size[1], num_frames=size[2], steps=20).passes
        four = one.sigmas[[0, 1, -2, -1]]
        np.testing.assert_allclose(four, [1, second, last_but_one, 0.1], atol=2e-6, err_msg=name)


def test_what_a_checkpoint_says_of_its_schedule_replaces_what_the_version_says():
    (one,) = planned("0.9.5", schedule=Schedule("Uniform"), steps=10).passes
    np.testing.assert_array_equal(one.sigmas, uniform(10))
    for one, preset, tokens in zip(planned("0.9.8-13b-dev", schedule=SD3).passes, DEV_13B, (5600, 22400), strict=True):
        assert one.grid.tokens == tokens
        np.testing.assert_array_equal(one.sigmas, sigmas_of(SD3, preset, tokens))


def test_what_a_checkpoint_says_of_levels_replaces_what_the_version_says():
    np.testing.assert_array_equal(planned("0.9.6-distilled", allowed=(), steps=7).passes[0].sigmas, linear_quadratic(7))
    assert len(planned("0.9.5", allowed=(1.0, 0.9875, 0.975, 0.725), steps=4).passes[0].sigmas) == 4
    with pytest.raises(LtxError, match=r"got 0\.6875 - "):
        planned("0.9.5", allowed=(1.0, 0.9875, 0.9750), steps=3, timesteps=(1.0, 0.975, 0.6875))


OVERRIDES = {
    "guidance_scale": ("cfg_scale", 5.0),
    "stg_scale": ("stg_scale", 0.0),
    "rescaling_scale": ("rescale", 0.25),
    "skip_blocks": ("skip_blocks", (1, 3)),
    "cfg_star": ("cfg_star", False),
}


@pytest.mark.parametrize("asked", OVERRIDES)
def test_guidance_that_is_asked_for_holds_at_every_step_of_all_passes_and_leaves_the_rest(asked):
    field, value = OVERRIDES[asked]
    for name in VERSIONS:
        before, after = planned(name).passes, planned(name, **{asked: value}).passes
        for one, other in zip(before, after, strict=True):
            assert tuple(replace(step, **{field: value}) for step in one.guidance) == other.guidance, name
            np.testing.assert_array_equal(one.sigmas, other.sigmas, name)


@pytest.mark.parametrize("name", DEV)
def test_stg_may_be_asked_for_where_only_some_steps_have_blocks_to_skip(name):
    first, second = planned(name, stg_scale=2.0).passes
    assert [step.skip_blocks for step in first.guidance[:2]] == [(), (11, 25, 35, 39)]
    assert {step.stg_scale for step in (*first.guidance, *second.guidance)} == {2}


@pytest.mark.parametrize("name", ["0.9.6-distilled", "0.9.8-2b-distilled"])
def test_blocks_beyond_the_last_do_nothing_where_no_step_uses_stg(name):
    assert forwards(planned(name, skip_blocks=(42,)).passes[0]) == forwards(planned(name).passes[0])


def test_stochastic_steps_can_be_asked_for_or_not_in_all_passes():
    for (name, version), asked in product(VERSIONS.items(), (True, False)):
        made = planned(name, stochastic=asked)
        assert [one.stochastic for one in made.passes] == [asked] * len(version.passes), name


@EVERY_VERSION
def test_one_pass_at_the_size_asked_for_can_be_had_of_every_version(version):
    made = planned(version.name, single_pass=True)
    (one,) = made.passes
    assert sizes(made) == [(version.height, version.width)]
    assert made.ending.tone_map == version.passes[-1].tone_map
    both = np.concatenate([each.sigmas for each in planned(version.name).passes])
    np.testing.assert_array_equal(one.sigmas, np.unique(both)[::-1])  # every sigma that either pass has


@pytest.mark.parametrize(("mode", "short"), [*zip(STG_MODES, ("stg_av", "stg_as", "stg_t"), strict=True)])
def test_a_way_to_skip_has_a_long_name_and_a_short_one(mode, short):
    assert [planned("0.9.5", stg_mode=said).settings.stg_mode for said in (mode, short)] == [mode, mode]
    assert planned("0.9.5").settings.stg_mode == "attention_values"


@pytest.mark.parametrize(
    ("asked", "made", "padding"),
    [
        ((70, 91, 20), (96, 96, 25), (2, 3, 13, 13)),
        ((81, 77, 33), (96, 96, 33), (9, 10, 7, 8)),
        ((147, 102, 28), (160, 128, 33), (13, 13, 6, 7)),
        ((64, 96, 1), (64, 96, 1), (0, 0, 0, 0)),
        ((704, 1216, 2), (704, 1216, 9), (0, 0, 0, 0)),
    ],
)
def test_a_padded_video_is_made_at_the_next_larger_size_and_cropped_to_what_was_asked_for(asked, made, padding):
    size = dict(zip(("height", "width", "num_frames"), asked, strict=True))
    left, right, top, bottom = padding
    assert (made[0] - top - bottom, made[1] - left - right) == asked[:2]
    for name in ("0.9.5", "0.9.8-2b-distilled"):
        whole = planned(name, pad=True, single_pass=True, **size)
        (one,) = whole.passes
        assert (one.grid.height, one.grid.width, one.grid.num_frames) == made, name
        assert tuple(whole.padding) == whole.ending.crop == padding, name
        assert (whole.ending.size, whole.ending.num_frames) == (made[:2], asked[2]), name


@pytest.mark.parametrize(("asked", "shown"), [(1, 1), (9, 17), (25, 49), (121, 241)])
def test_a_temporal_upscale_shows_every_frame_and_one_between_each_two_at_twice_the_speed(asked, shown):
    for name in VERSIONS:
        made = planned(name, num_frames=asked, fps=25.0, temporal_upscale=True)
        assert (made.ending.num_frames, made.ending.fps, made.settings.fps) == (shown, 50, 25), name
        assert made.temporal_upscale, name
        assert {one.grid.num_frames for one in made.passes} == {asked}, name


@EVERY_VERSION
def test_a_video_ends_as_the_version_says(version):
    ending = planned(version.name).ending
    assert (ending.version, ending.seed, ending.fps, ending.num_frames) == (
        version.name,
        7,
        version.fps,
        version.num_frames,
    )
    assert (ending.size, ending.crop) == ((version.height, version.width), (0, 0, 0, 0))
    assert (ending.tone_map, ending.decode_timestep, ending.decode_noise_scale) == (
        0.6 if version.name == "0.9.8-13b-distilled" else 0,
        0.05,
        0.025,
    )


def test_how_a_video_ends_can_be_asked_for():
    for name in VERSIONS:
        ending = planned(name, tone_map=0.0, decode_timestep=0.0, decode_noise_scale=1.0).ending
        assert (ending.tone_map, ending.decode_timestep, ending.decode_noise_scale) == (0, 0, 1), name


def test_the_negative_prompt_is_used_exactly_if_a_step_uses_cfg():
    for name, version in VERSIONS.items():
        uses = any(entry.cfg_scale > 1 for one in version.passes for entry in one.guidance)
        assert planned(name).uses_negative_prompt is uses, name
        assert planned(name, guidance_scale=1.0).uses_negative_prompt is False, name
        assert planned(name, guidance_scale=1.5).uses_negative_prompt is True, name


def test_noise_on_given_images_is_as_much_as_the_official_command_line_adds_unless_asked():
    assert IMAGE_NOISE_SCALE == 0.15
    assert [planned("0.9.5", image_noise_scale=scale).settings.image_noise_scale for scale in (0.0, 1.0)] == [0, 1]
