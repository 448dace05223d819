"""Laws of VERSIONS, and the numbers of the official inference presets."""

from dataclasses import FrozenInstanceError, fields

import numpy as np
import pytest

from ltx_runtime.errors import LtxError
from ltx_runtime.geometry import grid_of
from ltx_runtime.guidance import guidance_at
from ltx_runtime.schedule import linear_quadratic, sigmas_of
from ltx_runtime.versions import SD3, SIZE_2B, SIZE_13B, VERSIONS, Guidance, Schedule, Version, find_version

EVERY_VERSION = pytest.mark.parametrize("version", VERSIONS.values(), ids=VERSIONS)

# name: (layers, heads, head_dim, vae, causal, schedule, single-file checkpoint, upscaler)
RELEASES = {
    "0.9.0": (28, 32, 64, "A", False, SD3, "ltx-video-2b-v0.9", None),
    "0.9.1": (28, 32, 64, "B", False, SD3, "ltx-video-2b-v0.9.1", None),
    "0.9.5": (28, 32, 64, "C", True, Schedule(), "ltx-video-2b-v0.9.5", None),
    "0.9.6-dev": (28, 32, 64, "C", True, Schedule(), "ltxv-2b-0.9.6-dev-04-25", None),
    "0.9.6-distilled": (28, 32, 64, "C", True, Schedule(), "ltxv-2b-0.9.6-distilled-04-25", None),
    "0.9.7-dev": (48, 32, 128, "C", True, Schedule(), "ltxv-13b-0.9.7-dev", "0.9.7"),
    "0.9.7-distilled": (48, 32, 128, "C", True, Schedule(), "ltxv-13b-0.9.7-distilled", "0.9.7"),
    "0.9.8-2b-distilled": (28, 32, 64, "C", True, Schedule(), "ltxv-2b-0.9.8-distilled", "0.9.8"),
    "0.9.8-13b-dev": (48, 32, 128, "C", True, Schedule(), "ltxv-13b-0.9.8-dev", "0.9.8"),
    "0.9.8-13b-distilled": (48, 32, 128, "C", True, Schedule(), "ltxv-13b-0.9.8-distilled", "0.9.8"),
}
DEV_13B = ("0.9.7-dev", "0.9.8-13b-dev")
LIST_DISTILLED = ("0.9.7-distilled", "0.9.8-2b-distilled", "0.9.8-13b-distilled")
# The 27 steps of a 13B dev first pass: (how many, CFG, STG, rescale, skipped blocks)
DEV_13B_STEPS = (
    (3, 1, 0, 1, ()),
    (2, 6, 4, 0.5, (22, 35, 39)),
    (5, 8, 4, 0.5, (28,)),
    (4, 6, 4, 1, (28,)),
    (5, 1, 2, 1, (28,)),
    (8, 1, 1, 1, (28,)),
)


def rows(guidance: Guidance) -> int:
    return 1 + guidance.uses_cfg + guidance.uses_stg


@pytest.mark.parametrize("name", RELEASES)
def test_a_release_has_the_sizes_and_files_it_was_published_with(name):
    version = VERSIONS[name]
    size = version.transformer
    *expected, checkpoint, upscaler = RELEASES[name]
    assert [
        size.layers,
        size.heads,
        size.head_dim,
        version.vae,
        version.causal_positions,
        version.schedule,
    ] == expected
    assert (size.channels, size.text_channels) == (128, 4096)
    assert version.checkpoint == f"{checkpoint}.safetensors"
    assert version.upscaler == (upscaler and f"ltxv-spatial-upscaler-{upscaler}.safetensors")


def test_every_release_but_the_demo_is_checked_against_its_publication():
    assert set(VERSIONS) - {"demo"} == set(RELEASES)


def test_the_widths_are_those_of_2b_and_13b():
    assert (SIZE_2B.width, SIZE_13B.width) == (2048, 4096)


@pytest.mark.parametrize("name", ["0.9.0", "0.9.1", "0.9.5", "0.9.6-dev"])
def test_a_base_preset_takes_40_steps_with_cfg_3_stg_1_rescale_07_in_block_19(name):
    (only,) = VERSIONS[name].passes
    assert only.steps == 40
    assert only.guidance == (Guidance(cfg_scale=3, stg_scale=1, rescale=0.7, skip_blocks=(19,)),)
    assert not only.stochastic


def test_096_distilled_takes_8_stochastic_steps_without_guidance():
    (only,) = VERSIONS["0.9.6-distilled"].passes
    assert (only.steps, only.stochastic, [rows(g) for g in only.guidance]) == (8, True, [1])
    assert only.sigmas == ()


@pytest.mark.parametrize("name", LIST_DISTILLED)
def test_distilled_passes_are_the_eight_step_schedule_rounded_to_four_decimals(name):
    first, second = VERSIONS[name].passes
    rounded = [round(float(sigma), 4) for sigma in linear_quadratic(8)]
    assert list(first.sigmas) == rounded[:7]
    assert list(second.sigmas) == rounded[5:]
    assert [rows(g) for one in (first, second) for g in one.guidance] == [1, 1]
    assert not (first.stochastic or second.stochastic)


def test_only_098_13b_distilled_tone_maps_and_only_in_its_second_pass():
    mapped = {(name, i): one.tone_map for name, v in VERSIONS.items() for i, one in enumerate(v.passes) if one.tone_map}
    assert mapped == {("0.9.8-13b-distilled", 1): 0.6}


@pytest.mark.parametrize("name", DEV_13B)
def test_the_first_pass_of_13b_dev_follows_the_published_table_and_costs_62_evaluations(name):
    first = VERSIONS[name].passes[0]
    active = [guidance_at(float(s), first.guidance) for s in sigmas_of(Schedule(), first, tokens=1)]
    expected = [entry for count, *entry in DEV_13B_STEPS for _ in range(count)]
    assert len(active) == 27
    for now, (cfg, stg, rescale, skipped) in zip(active, expected, strict=True):
        assert (now.cfg_scale, now.stg_scale, now.rescale) == (cfg, stg, rescale)
        assert now.cfg_star
        if stg:
            assert now.skip_blocks == skipped
    assert sum(rows(now) for now in active) == 62


@pytest.mark.parametrize("name", DEV_13B)
def test_the_second_pass_of_13b_dev_is_13_steps_of_stg_in_block_27(name):
    second = VERSIONS[name].passes[1]
    sigmas = sigmas_of(Schedule(), second, tokens=1)
    np.testing.assert_allclose(sigmas[[0, -1]], [0.954778, 0.124111], atol=5e-7)
    assert len(sigmas) == 13
    (entry,) = second.guidance
    assert (entry.cfg_scale, entry.stg_scale, entry.rescale, entry.skip_blocks) == (1, 1, 1, (27,))


@EVERY_VERSION
def test_a_version_is_found_by_its_name_and_by_every_alias(version):
    for name in (version.name, *version.aliases):
        assert find_version(name) is version


def test_no_name_or_alias_means_two_versions():
    names = [name for version in VERSIONS.values() for name in (version.name, *version.aliases)]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("name", ["0.9.2", "", "latest", "0.9.5 ", "DEMO"])
def test_an_unknown_version_is_refused_with_the_known_ones(name):
    with pytest.raises(LtxError) as refused:
        find_version(name)
    assert repr(name) in str(refused.value)
    assert all(known in str(refused.value) for known in VERSIONS)


@EVERY_VERSION
def test_a_version_can_not_be_changed(version):
    for one in fields(Version):
        with pytest.raises(FrozenInstanceError):
            setattr(version, one.name, None)


@EVERY_VERSION
def test_the_default_size_of_a_version_can_be_made(version):
    grid = grid_of(version.height, version.width, version.num_frames)
    assert (grid.height, grid.width, grid.num_frames) == (version.height, version.width, version.num_frames)
    assert version.fps > 0


@EVERY_VERSION
def test_a_version_has_a_second_pass_exactly_if_it_has_an_upscaler(version):
    assert len(version.passes) == (2 if version.upscaler else 1)


@EVERY_VERSION
def test_first_passes_start_from_pure_noise_and_second_passes_below_it(version):
    starts = [sigmas_of(version.schedule, one, tokens=384)[0] for one in version.passes]
    assert starts[0] == 1
    assert all(start < 1 for start in starts[1:])


@EVERY_VERSION
def test_guidance_entries_go_from_high_to_low_sigma_and_skip_only_blocks_that_exist(version):
    for one in version.passes:
        thresholds = [entry.from_sigma for entry in one.guidance]
        assert thresholds == sorted(set(thresholds), reverse=True)
        for entry in one.guidance:
            assert all(0 <= block < version.transformer.layers for block in entry.skip_blocks)
            assert bool(entry.skip_blocks) or not entry.uses_stg


@EVERY_VERSION
def test_a_list_of_sigmas_has_as_many_entries_as_the_pass_has_steps(version):
    for one in version.passes:
        assert len(one.sigmas) in (0, one.steps)


@EVERY_VERSION
def test_a_version_uses_stg_exactly_if_one_of_its_passes_does(version):
    assert version.uses_stg == any(entry.stg_scale > 0 for one in version.passes for entry in one.guidance)


@EVERY_VERSION
def test_the_text_encoder_gives_what_the_transformer_takes(version):
    assert version.text_encoder.width == version.transformer.text_channels
    assert version.vae_size.latent_channels == version.transformer.channels


@EVERY_VERSION
def test_the_negative_prompt_is_the_official_one(version):
    assert version.negative_prompt == "worst quality, inconsistent motion, blurry, jittery, distorted"
