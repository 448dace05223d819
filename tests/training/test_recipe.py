"""The whole training with a small share of its steps: every stage learns, and what comes out can be exported."""

import json

import pytest
from samples.tiny import export, sources_of

from ltx_runtime import Pipeline
from ltx_runtime.spec.versions import VERSIONS
from training.run import Run
from training.stages import STAGES

SHARE = 0.06
LEARNING = ("encoder", "decoder", "stills", "motion", "rest", "upsampler")


@pytest.mark.slow
def test_every_stage_learns_and_the_result_makes_a_video(tmp_path):
    run = Run(tmp_path / "run", share=SHARE, report=lambda line: None)
    for stage in STAGES.values():
        stage(run)
    for name in LEARNING:
        losses = [row["loss"] for row in json.loads((run.folder / f"{name}.json").read_text())]
        third = max(1, len(losses) // 3)
        assert sum(losses[-third:]) < sum(losses[:third]), name
    demo = VERSIONS["demo"]
    export(demo, sources_of(demo, run.folder / "weights"), tmp_path / "demo")
    with Pipeline(tmp_path / "demo") as pipe:
        frames = list(pipe("A red fox runs through deep snow", height=64, width=96, num_frames=9, seed=1))
    assert len(frames) == 9 and frames[0].std() > 1
