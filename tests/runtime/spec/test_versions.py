"""Laws of VERSIONS, and the numbers of the official inference presets."""

from dataclasses import FrozenInstanceError, fields

import pytest

from ltx_runtime.errors import LtxError
from ltx_runtime.sampling.schedule import check_allowed, linear_quadratic, sigmas_of
from ltx_runtime.spec.geometry import grid_of
from ltx_runtime.spec.presets import BASE, DEV_13B, DISTILLED_SINGLE, SD3, Schedule, distilled
from ltx_runtime.spec.versions import SIZE_2B, SIZE_13B, VERSIONS, UpsamplerSize, Version, find_version

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
PASSES = {
    "0.9.0": (BASE,),
    "0.9.1": (BASE,),
    "0.9.5": (BASE,),
    "0.9.6-dev": (BASE,),
    "0.9.6-distilled": (DISTILLED_SINGLE,),
    "0.9.7-dev": DEV_13B,
    "0.9.7-distilled": distilled(),
    "0.9.8-2b-distilled": distilled(),
    "0.9.8-13b-dev": DEV_13B,
    "0.9.8-13b-distilled": distilled(tone_map=0.6),
}


def test_a_release_has_the_sizes_and_files_it_was_published_with():
    for name in RELEASES:
        version = VERSIONS[name]
        size = version.transformer
        *expected, checkpoint, upscaler = RELEASES[name]
        published = [size.layers, size.heads, size.head_dim, version.vae, version.causal_positions, version.schedule]
        assert published == expected, name
        assert (size.channels, size.text_channels) == (128, 4096), name
        assert version.checkpoint == f"{checkpoint}.safetensors", name
        assert version.upscaler == (upscaler and f"ltxv-spatial-upscaler-{upscaler}.safetensors"), name


def test_every_release_but_the_demo_is_checked_against_its_publication():
    assert set(VERSIONS) - {"demo"} == set(RELEASES)


def test_the_widths_are_those_of_2b_and_13b():
    assert (SIZE_2B.width, SIZE_13B.width) == (2048, 4096)


def test_a_release_runs_the_passes_of_its_published_preset():
    for name in RELEASES:
        assert VERSIONS[name].passes == PASSES[name], name


def test_a_release_has_the_official_defaults():
    for name in RELEASES:
        version = VERSIONS[name]
        assert (version.height, version.width, version.num_frames, version.fps) == (704, 1216, 121, 30), name
        assert (version.decode_timestep, version.decode_noise_scale) == (0.05, 0.025), name
        assert version.first_pass_scale == 0.6666666, name
        assert (version.text_tokens, version.text_repository) == (256, "PixArt-alpha/PixArt-XL-2-1024-MS"), name
        assert version.upsampler_size == UpsamplerSize(mid_channels=512, blocks_per_stage=4), name


def test_only_098_13b_distilled_tone_maps_and_only_in_its_second_pass():
    mapped = {(name, i): one.tone_map for name, v in VERSIONS.items() for i, one in enumerate(v.passes) if one.tone_map}
    assert mapped == {("0.9.8-13b-distilled", 1): 0.6}


def test_only_096_distilled_is_stochastic():
    assert [name for name, version in VERSIONS.items() if any(p.stochastic for p in version.passes)] == [
        "0.9.6-distilled"
    ]


def test_distilled_versions_and_no_others_know_only_the_levels_of_eight_steps():
    rounded = tuple(round(float(sigma), 4) for sigma in linear_quadratic(8))
    for version in VERSIONS.values():
        assert version.allowed_sigmas == (rounded if "distilled" in version.name else ()), version.name


def test_a_version_knows_every_level_of_its_own_passes():
    for version in VERSIONS.values():
        for one in version.passes:
            check_allowed(sigmas_of(version.schedule, one, tokens=384), version.allowed_sigmas)


def test_a_version_is_found_by_its_name_and_by_every_alias():
    for version in VERSIONS.values():
        for name in (version.name, *version.aliases):
            assert find_version(name) is version, name


def test_no_name_or_alias_means_two_versions():
    names = [name for version in VERSIONS.values() for name in (version.name, *version.aliases)]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("name", ["0.9.2", "", "latest", "0.9.5 ", "DEMO"])
def test_an_unknown_version_is_refused_with_the_known_ones(name):
    with pytest.raises(LtxError) as refused:
        find_version(name)
    assert repr(name) in str(refused.value)
    assert all(known in str(refused.value) for known in VERSIONS)


def test_a_version_can_not_be_changed():
    for version in VERSIONS.values():
        for one in fields(Version):
            with pytest.raises(FrozenInstanceError, match=f"'{one.name}'"):
                setattr(version, one.name, None)


def test_the_default_size_of_a_version_can_be_made():
    for version in VERSIONS.values():
        size = (version.height, version.width, version.num_frames)
        grid = grid_of(*size)
        assert (grid.height, grid.width, grid.num_frames) == size, version.name
        assert version.fps > 0, version.name


def test_a_version_has_a_second_pass_exactly_if_it_has_an_upscaler():
    for version in VERSIONS.values():
        assert len(version.passes) == (2 if version.upscaler else 1), version.name


def test_first_passes_start_from_pure_noise_and_second_passes_below_it():
    for version in VERSIONS.values():
        starts = [sigmas_of(version.schedule, one, tokens=384)[0] for one in version.passes]
        assert starts[0] == 1, version.name
        assert all(start < 1 for start in starts[1:]), version.name


def test_guidance_entries_go_from_high_to_low_sigma_and_skip_only_blocks_that_exist():
    for version in VERSIONS.values():
        for one in version.passes:
            thresholds = [entry.from_sigma for entry in one.guidance]
            assert thresholds == sorted(set(thresholds), reverse=True), version.name
            for entry in one.guidance:
                assert all(0 <= block < version.transformer.layers for block in entry.skip_blocks), version.name
                assert bool(entry.skip_blocks) or not entry.uses_stg, version.name


def test_a_list_of_sigmas_has_as_many_entries_as_the_pass_has_steps():
    for version in VERSIONS.values():
        for one in version.passes:
            assert len(one.sigmas) in (0, one.steps), version.name


def test_a_version_uses_stg_exactly_if_one_of_its_passes_does():
    for version in VERSIONS.values():
        uses = any(entry.stg_scale > 0 for one in version.passes for entry in one.guidance)
        assert version.uses_stg == uses, version.name


def test_the_text_encoder_gives_what_the_transformer_takes():
    for version in VERSIONS.values():
        assert version.text_encoder.width == version.transformer.text_channels, version.name
        assert version.vae_size.latent_channels == version.transformer.channels, version.name


def test_the_negative_prompt_is_the_official_one():
    for version in VERSIONS.values():
        assert version.negative_prompt == "worst quality, inconsistent motion, blurry, jittery, distorted", version.name
