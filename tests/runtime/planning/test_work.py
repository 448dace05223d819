"""Laws of the work that is estimated: every stage that runs is named in its order, and work grows with what is done."""

from dataclasses import replace

import numpy as np
import pytest
from fakes.requests import SMALL
from fakes.stages import engines_of

from ltx_runtime import Condition, Pipeline
from ltx_runtime.folder.manifest import Engines
from ltx_runtime.spec.components import transformer
from ltx_runtime.spec.versions import VERSIONS

PICTURE = np.zeros((64, 96, 3), np.uint8)


@pytest.mark.parametrize(
    "asked",
    [{}, {"single_pass": True}, {"conditions": (Condition(PICTURE),)}, {"temporal_upscale": True}],
    ids=["text", "one pass", "image", "frame rate"],
)
def test_the_stages_are_those_that_run_in_their_order(pipe, asked):
    video = pipe("a fox", **SMALL, **asked)
    work = video.work()
    list(video)
    assert list(work) == list(video.seconds)
    assert all(operations > 0 for operations in work.values())


def of_full_width(engines: Engines) -> Engines:
    """Returns engines of 0.9.5 whose transformer has the released width."""
    entry = replace(engines.component("transformer"), signature=transformer(4, 6, 2048, 28))
    components = engines.manifest.components | {"transformer": entry}
    return replace(engines, manifest=replace(engines.manifest, components=components))


def test_the_work_of_a_fine_tune_is_that_of_its_own_graph(spiece, diary):
    """Twice the blocks take twice the work, whatever the table says of the release."""
    work = []
    for layers in (28, 56):
        version = replace(VERSIONS["0.9.5"], transformer=replace(VERSIONS["0.9.5"].transformer, layers=layers))
        with Pipeline(engines_of(version, spiece), backend="fake") as pipe:
            work.append(pipe("a fox", **SMALL).work()["denoise"])
    assert work[1] == 2 * work[0]


def test_work_is_in_proportion_to_steps_predictions_and_pixels(spiece, diary):
    with Pipeline(of_full_width(engines_of(VERSIONS["0.9.5"], spiece)), backend="fake") as pipe:
        plain = {**SMALL, "guidance_scale": 1.0, "stg_scale": 0.0}
        one = pipe("a fox", **plain, steps=1).work()
        assert pipe("a fox", **plain, steps=5).work()["denoise"] == pytest.approx(5 * one["denoise"])
        guided = pipe("a fox", **{**plain, "guidance_scale": 3.0}, steps=1).work()
        assert (guided["denoise"], guided["text"]) == (2 * one["denoise"], 2 * one["text"])
        assert pipe("a fox", **{**plain, "width": 192}, steps=1).work()["decode"] == 2 * one["decode"]
        tokens, parameters = 2 * 2 * 3, 1.9e9
        assert one["denoise"] == pytest.approx(2 * parameters * tokens, rel=0.05)


def test_saved_latents_have_no_stages_before_the_decoder(pipe, tmp_path):
    kept = tmp_path / "latents.safetensors"
    pipe("a fox", **SMALL, save_latents=kept).latents()
    assert pipe.decode(kept).work() == {}
