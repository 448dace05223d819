"""Laws of the whole road: a request is checked before anything is loaded, stages follow each other one at a time."""

from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
from fake_stages import engines_of

from ltx_runtime.errors import LtxError
from ltx_runtime.geometry import grid_of
from ltx_runtime.passes import Schedule
from ltx_runtime.pipeline import Request, generate, plan
from ltx_runtime.schedule import sigmas_of
from ltx_runtime.versions import VERSIONS

EVERY_VERSION = pytest.mark.parametrize("version", VERSIONS.values(), ids=VERSIONS)
REQUEST = Request("a cat walks", "blurry", 64, 96, 17, 24.0, seed=7)


def make(engines, request=REQUEST):
    """The frames, and for every stage how many units were announced and done."""
    frames, units = [], {}

    @contextmanager
    def progress(name, total):
        units[name] = [total, 0]

        def done():
            units[name][1] += 1

        yield done

    generate(engines, request, frames.append, progress, "fake")
    return frames, units


@EVERY_VERSION
def test_every_version_makes_the_frames_asked_for_and_announces_what_it_does(version, spiece, diary):
    frames, units = make(engines_of(version, spiece))
    assert [frame.shape for frame in frames] == [(64, 96, 3)] * 17
    assert {frame.dtype for frame in frames} == {np.dtype(np.uint8)}
    steps = len(plan(REQUEST, version).sigmas)
    assert units == {"text": [1, 1], "denoise": [steps, steps], "decode": [17, 17]}


def test_the_schedule_of_the_checkpoint_replaces_that_of_the_version(spiece, diary):
    version = VERSIONS["0.9.0"]
    engines = engines_of(version, spiece)
    other = replace(engines, manifest=replace(engines.manifest, schedule=Schedule("Uniform")))
    assert not np.array_equal(make(engines)[0], make(other)[0])
    planned = plan(REQUEST, version, Schedule("Uniform"))
    np.testing.assert_allclose(planned.sigmas, [1 - i / 40 for i in range(40)], atol=1e-7)


@EVERY_VERSION
def test_one_stage_is_closed_before_the_next_is_opened(version, spiece, diary):
    make(engines_of(version, spiece))
    marks = [note for note in diary if not note.startswith("run")]
    order = ("text_encoder", "transformer", "vae_decoder")
    assert marks == [f"{verb} {name}" for name in order for verb in ("open", "close")]


@EVERY_VERSION
def test_the_negative_prompt_is_encoded_only_where_cfg_will_use_it(version, spiece, diary):
    make(engines_of(version, spiece))
    uses_cfg = any(entry.cfg_scale > 1 for entry in version.passes[0].guidance)
    assert f"run text_encoder with {1 + uses_cfg}" in diary


@EVERY_VERSION
def test_the_same_seed_makes_the_same_video_and_another_seed_another(version, spiece, diary):
    engines = engines_of(version, spiece)
    first, again, other = (make(engines, replace(REQUEST, seed=seed))[0] for seed in (7, 7, 8))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


@EVERY_VERSION
def test_the_prompt_matters_and_the_negative_prompt_exactly_where_cfg_is_on(version, spiece, diary):
    engines = engines_of(version, spiece)
    first, another_prompt, another_negative = (
        make(engines, replace(REQUEST, **change))[0]
        for change in ({}, {"prompt": "a red boat"}, {"negative_prompt": "jittery snow"})
    )
    assert not np.array_equal(first, another_prompt)
    uses_cfg = any(entry.cfg_scale > 1 for entry in version.passes[0].guidance)
    assert np.array_equal(first, another_negative) == (not uses_cfg)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_sink_that_fails_closes_the_stage(spiece, diary, error):
    @contextmanager
    def progress(name, total):
        yield lambda: None

    def sink(frame):
        raise error

    with pytest.raises(error):
        generate(engines_of(VERSIONS["demo"], spiece), REQUEST, sink, progress, "fake")
    assert diary[-1] == "close vae_decoder"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"height": 500}, "height must be a multiple of 32; got 500"),
        ({"width": 0}, "width must be a multiple of 32; got 0"),
        ({"num_frames": 24}, r"num-frames must be 8n\+1; got 24"),
        ({"fps": 0.0}, "fps must be a positive number; got 0"),
        ({"seed": -1}, "seed must be from 0"),
        ({"steps": 0}, "got 0"),
        ({"steps": 1001}, "got 1001"),
        ({"guidance_scale": 0.5}, "guidance-scale must be at least 1 .* got 0.5"),
        ({"guidance_scale": float("nan")}, "guidance-scale .* got nan"),
        ({"guidance_scale": float("inf")}, "guidance-scale .* got inf"),
    ],
    ids=str,
)
@EVERY_VERSION
def test_a_request_that_can_not_be_made_is_refused_before_anything_is_opened(version, change, message, spiece, diary):
    request = replace(REQUEST, **change)
    with pytest.raises(LtxError, match=message):
        plan(request, version)
    with pytest.raises(LtxError, match=message):
        make(engines_of(version, spiece), request)
    assert diary == []


@pytest.mark.parametrize("name", ["text_encoder", "transformer", "vae_decoder"])
def test_a_graph_that_the_backend_lacks_is_said_before_the_first_stage(name, spiece, diary):
    engines = engines_of(VERSIONS["demo"], spiece)
    components = dict(engines.manifest.components)
    components[name] = replace(components[name], graphs={"bf16": "graph.onnx"})
    lacking = replace(engines, manifest=replace(engines.manifest, components=components))
    with pytest.raises(LtxError, match=f"has no fp32 graph of {name}, which backend fake needs"):
        make(lacking)
    assert diary == []


@EVERY_VERSION
def test_a_plan_without_wishes_is_the_version_s_own_first_pass(version):
    planned = plan(REQUEST, version)
    first = version.passes[0]
    assert planned.grid == grid_of(64, 96, 17)
    assert planned.guidance == first.guidance
    assert planned.stochastic == first.stochastic
    np.testing.assert_array_equal(planned.sigmas, sigmas_of(version.schedule, first, planned.grid.tokens))


@EVERY_VERSION
def test_a_guidance_scale_of_one_turns_cfg_off_and_a_larger_one_on(version):
    off, on = (plan(replace(REQUEST, guidance_scale=scale), version) for scale in (1.0, 2.5))
    assert not off.uses_negative_prompt
    assert on.uses_negative_prompt
    assert {entry.cfg_scale for entry in on.guidance} == {2.5}
    assert [replace(entry, cfg_scale=0) for entry in on.guidance] == [
        replace(entry, cfg_scale=0) for entry in version.passes[0].guidance
    ]


@pytest.mark.parametrize("version", [v for v in VERSIONS.values() if not v.passes[0].sigmas], ids=lambda v: v.name)
def test_the_number_of_steps_asked_for_is_the_number_taken(version):
    first = version.passes[0]
    skipped = first.skip_initial_steps + first.skip_final_steps
    assert len(plan(replace(REQUEST, steps=12), version).sigmas) == 12 - skipped
