"""Laws of profiles: together they serve every size, the narrowest is taken, and limits remove larger sizes."""

from itertools import product

import numpy as np
import pytest
from fakes.requests import default_request
from fakes.sessions import feeds_of

from ltx_runtime.folder.profiles import Limits, Span, profile_for, profiles, sizes_of
from ltx_runtime.planning.plan import grids_of, plan
from ltx_runtime.spec.components import (
    temporal_upsampler,
    text_encoder,
    transformer,
    upsampler,
    vae_decoder,
    vae_encoder,
)
from ltx_runtime.spec.geometry import Grid, grid_of
from ltx_runtime.spec.versions import VERSIONS

TRANSFORMER = transformer(4, 6, 12, stg_layers=2)
DECODER = vae_decoder(4, timestep=True, noise_maps={2: (14, 2)})
GRIDDED = (DECODER, vae_encoder(4), upsampler(4), temporal_upsampler(4))
COMPONENTS = (text_encoder(6), TRANSFORMER, *GRIDDED)
EVERY_COMPONENT = pytest.mark.parametrize("component", COMPONENTS, ids=lambda component: component.name)
EVERY_GRIDDED = pytest.mark.parametrize("component", GRIDDED, ids=lambda component: component.name)
EVERY_VERSION = pytest.mark.parametrize("version", VERSIONS.values(), ids=VERSIONS)
HD = grid_of(704, 1216, 121)
ALL_LIMITS = (None, Limits((HD,)), Limits((HD,), exact=True), Limits((Grid(1, 2, 2), Grid(13, 4, 4)), exact=True))


def tokens(count, *, per_token=False, batch=1):
    return {"batch": batch, "tokens": count, "timesteps": count if per_token else 1, "text_tokens": 128}


def on(grid):
    return {"batch": 1, "frames": grid.frames, "rows": grid.rows, "columns": grid.columns}


@EVERY_COMPONENT
@pytest.mark.parametrize("limits", ALL_LIMITS, ids=str)
def test_a_profile_has_an_ordered_span_for_every_axis(component, limits):
    for profile in profiles(component, limits):
        assert set(profile) == set(component.axis_names())
        assert all(1 <= span.min <= span.best <= span.max for span in profile.values())


@EVERY_COMPONENT
@pytest.mark.parametrize("limits", ALL_LIMITS, ids=str)
def test_a_profile_s_own_ends_and_best_are_served(component, limits):
    served = profiles(component, limits)
    for profile in served:
        for end in ("min", "best", "max"):
            assert profile_for(served, {axis: getattr(span, end) for axis, span in profile.items()}) is not None


def test_every_number_of_tokens_has_exactly_one_bucket_with_one_timestep_and_one_with_a_timestep_per_token():
    served = profiles(TRANSFORMER)
    for count in [*range(2, 9000), *range(32000, 32769)]:
        of_count = [profile for profile in served if count in profile["tokens"]]
        one, per_token = of_count
        assert one["timesteps"] == Span(1, 1, 1)
        assert per_token["timesteps"] == per_token["tokens"]
        assert served[profile_for(served, tokens(count))] == one
        assert served[profile_for(served, tokens(count, per_token=True))] == per_token
    assert profile_for(served, tokens(32769)) is None


def test_batches_of_up_to_three_conditions_are_served():
    served = profiles(TRANSFORMER)
    assert [profile_for(served, tokens(100, batch=batch)) is None for batch in (1, 2, 3, 4)] == [False] * 3 + [True]


@EVERY_VERSION
def test_every_pass_of_a_version_s_default_clip_is_served_in_both_orientations(version):
    for one in plan(default_request(version, "", 0), version).passes:
        grid = one.grid
        turned = Grid(grid.frames, grid.columns, grid.rows)
        for component, way in product(GRIDDED, (grid, turned)):
            assert profile_for(profiles(component), on(way)) is not None
        for batch in {1 + s.uses_cfg + s.uses_stg for s in one.guidance}:
            sizes = tokens(grid.tokens + 2 * grid.rows * grid.columns, batch=batch)
            assert profile_for(profiles(TRANSFORMER), sizes) is not None


@pytest.mark.parametrize(
    ("size", "bucket"),
    [((256, 384, 97), 0), ((512, 512, 97), 0), ((512, 768, 97), 1), ((768, 512, 257), 1), ((704, 1216, 121), 2),
     ((1216, 704, 121), 3), ((896, 1600, 121), 2), ((512, 512, 105), 1)],
)  # fmt: skip
def test_the_narrowest_bucket_is_taken(size, bucket):
    assert profile_for(profiles(DECODER), on(grid_of(*size))) == bucket


@pytest.mark.parametrize("size", [(896, 1600, 129), (1600, 1600, 9), (800, 800, 257)])
def test_what_is_in_no_bucket_has_none(size):
    assert profile_for(profiles(DECODER), on(grid_of(*size))) is None


def test_no_tensor_of_a_decoder_in_a_bucket_has_more_values_than_tensorrt_counts():
    for profile in profiles(DECODER):
        frames, rows, columns = (profile[axis].max for axis in ("frames", "rows", "columns"))
        assert 128 * (8 * frames - 7) * (32 * rows // 4) * (32 * columns // 4) < 2**31


# --- limits ---------------------------------------------------------------------------------------


@EVERY_GRIDDED
def test_limits_take_away_what_is_larger_and_leave_the_rest(component):
    limit = grid_of(512, 768, 49)
    everything, served = profiles(component), profiles(component, Limits((limit,)))
    for size in product((64, 256, 512, 544), (64, 512, 768, 800), (1, 49, 57)):
        grid = grid_of(*size)
        within = grid.frames <= limit.frames and grid.rows <= limit.rows and grid.columns <= limit.columns
        was = profile_for(everything, on(grid)) is not None
        assert (profile_for(served, on(grid)) is not None) == (within and was)


def test_limits_leave_no_bucket_that_another_holds():
    assert len(profiles(DECODER, Limits((grid_of(256, 256, 25),)))) == 1
    assert len(profiles(DECODER, Limits((grid_of(704, 1216, 121),)))) == 3  # no portrait profile
    assert len(profiles(TRANSFORMER, Limits((grid_of(256, 256, 25),)))) == 2


def test_limits_of_tokens_have_room_for_two_clips_besides():
    limit = grid_of(512, 768, 49)
    served = profiles(TRANSFORMER, Limits((limit,)))
    most = limit.tokens + 4 * limit.rows * limit.columns
    assert profile_for(served, tokens(most)) is not None
    assert profile_for(served, tokens(most + 1)) is None


def test_the_smallest_video_there_is_has_a_bucket_under_any_limit():
    for limits in (None, Limits((Grid(1, 1, 1),)), Limits((Grid(1, 1, 1),), exact=True)):
        assert profile_for(profiles(DECODER, limits), on(Grid(1, 1, 1))) == 0
        assert profile_for(profiles(TRANSFORMER, limits), tokens(1)) == 0


@pytest.mark.parametrize("name", ["0.9.6-distilled", "0.9.8-13b-distilled"])
def test_an_exact_engine_serves_the_passes_of_one_size_and_nothing_else(name):
    version = VERSIONS[name]
    grids = grids_of(HD, version)
    limits = Limits(tuple(grids), exact=True)
    assert len(grids) == len(version.passes)
    for component in (DECODER, upsampler(4)):
        served = profiles(component, limits)
        assert len(served) == len(grids)
        for grid in grids:
            assert profile_for(served, on(grid)) is not None
            for other in (Grid(grid.frames + 1, grid.rows, grid.columns), Grid(grid.frames, grid.rows, 2)):
                assert profile_for(served, on(other)) is None
    served = profiles(TRANSFORMER, limits)
    for grid in grids:
        assert profile_for(served, tokens(grid.tokens)) is not None
        assert profile_for(served, tokens(grid.tokens + 1)) is None
        clips = grid.tokens + 4 * grid.rows * grid.columns
        assert profile_for(served, tokens(clips, per_token=True)) is not None
        assert all(span.min == span.max for profile in served if profile["timesteps"].max == 1
                   for span in (profile["tokens"], profile["timesteps"]))  # fmt: skip


def test_an_exact_encoder_takes_images_and_shorter_clips():
    served = profiles(vae_encoder(4), Limits((HD,), exact=True))
    assert profile_for(served, on(Grid(1, HD.rows, HD.columns))) == 0
    assert profile_for(served, on(HD)) == 0
    assert profile_for(served, on(Grid(1, HD.rows, HD.columns + 1))) is None


# --- sizes ----------------------------------------------------------------------------------------


@EVERY_COMPONENT
def test_sizes_are_read_from_feeds_of_any_size(component):
    sizes = {"batch": 2, "tokens": 5, "timesteps": 1, "text_tokens": 7, "frames": 3, "rows": 4, "columns": 6}
    expected = {name: sizes[name] for name in component.axis_names()}
    assert sizes_of(component, feeds_of(component.inputs, sizes)) == expected


def test_a_size_is_within_a_span_with_both_ends():
    assert [size in Span(2, 3, 4) for size in (1, 2, 3, 4, 5)] == [False, True, True, True, False]
    assert np.int64(3) not in Span(2, 3, 4)  # sizes are plain Python integers


def test_engines_are_tuned_for_the_batch_that_most_steps_have():
    for component, best in ((TRANSFORMER, 3), (transformer(4, 6, 12), 1)):
        for limits in (None, Limits((HD,), exact=True)):
            assert {profile["batch"] for profile in profiles(component, limits)} == {Span(1, best, 3)}


def test_engines_for_text_alone_have_no_profile_with_a_timestep_per_token():
    grids = (HD, grid_of(512, 768, 97))
    served = profiles(TRANSFORMER, Limits(grids, exact=True, given=False))
    assert [(profile["tokens"].best, profile["timesteps"]) for profile in served] == [
        (4992, Span(1, 1, 1)),
        (13376, Span(1, 1, 1)),
    ]
