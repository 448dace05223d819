"""Every release with every kind of text, image and clip input, against recorded runs of the official pipelines.

`tests/golden/make_pipelines.py` made the records; here the same checkpoints are exported to graphs and run without
torch. Noise has the same values on both sides; in `torch` cases both draw it from torch's generator.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from oracles.golden_files import golden
from oracles.pipeline_cases import CASES, VIDEO_STRIDE, Case, deep, media
from safetensors.numpy import load_file, save_file
from samples.deep_releases import engines_of

from ltx_runtime import Condition, Pipeline, Request
from ltx_runtime.spec.versions import VERSIONS

# For comparison: an image noise scale that differs by 0.01 moves latents by 4e-5.
LATENTS_LIMIT, PSNR_LIMIT_DB = 1e-5, 60
GOLDEN = golden("pipelines")
SPIECE = Path(__file__).parent / "golden" / "pipelines.spiece.model"  # the tokenizer of the recorded runs
_pipelines: dict[str, Pipeline] = {}  # the last one that was used


def prepared(case: Case, path: Path, item) -> Path:
    """Writes an item's media to a file, padded as the official command line pads it."""
    (over, left), (height, width, _) = case.margins, case.padded
    below, right = height - case.height - over, width - case.width - left
    clip = np.pad(media(case, item), ((0, 0), (0, 0), (0, 0), (over, below), (left, right)))
    save_file({"media": clip}, path)
    return path


def request_of(case: Case, folder: Path) -> Request:
    conditions = [
        Condition(prepared(case, folder / f"item{i}.safetensors", item), item.start, item.strength)
        for i, item in enumerate(case.items)
    ]
    return Request(
        prompt=case.prompt,
        negative_prompt=case.negative_prompt,
        height=case.height,
        width=case.width,
        num_frames=case.num_frames,
        fps=case.fps,
        seed=case.seed,
        steps=case.steps,
        guidance_scale=case.guidance_scale,
        stg_mode=case.stg_mode,
        pad=True,
        conditions=tuple(conditions),
        video=None if case.video is None else prepared(case, folder / "video.safetensors", case.video),
        skip_initial_steps=case.skip_initial_steps or None,
    )


def relative_l2(actual: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))


def psnr_db(actual: np.ndarray, expected: np.ndarray) -> float:
    error = np.mean((actual.astype(np.float64) - expected) ** 2)
    return float("inf") if error == 0 else float(10 * np.log10(255**2 / error))


@pytest.fixture
def pipeline(monkeypatch):
    """Returns the pipeline of a release, which keeps its networks open for all cases of the release."""

    def of(name: str) -> Pipeline:
        engines = engines_of(name)
        monkeypatch.setitem(VERSIONS, name, deep(name))
        if name not in _pipelines:
            for other in [*_pipelines]:
                _pipelines.pop(other).close()
            recorded = replace(engines, manifest=replace(engines.manifest, tokenizer=str(SPIECE)))
            _pipelines[name] = Pipeline(recorded, backend="cpu", threads=1, keep_loaded=True)
        return _pipelines[name]

    return of


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_latents_of_every_pass_and_frames_are_the_official_ones(case, pipeline, tmp_path):
    pipe, kept = pipeline(case.release), tmp_path / "latents.safetensors"
    rng = "torch" if case.rng == "torch" else "numpy"
    frames = list(pipe(request_of(case, tmp_path), rng=rng, sample_posterior=True, save_latents=kept))
    made = load_file(kept)
    recorded = {name.removeprefix(f"{case.name}/"): t for name, t in GOLDEN.items() if name.startswith(f"{case.name}/")}
    passes = sorted(name for name in recorded if name.startswith("latents_"))
    assert [name.replace("latents_", "pass") for name in passes] == sorted(made)
    for name in passes:
        assert relative_l2(made[name.replace("latents_", "pass")], recorded[name]) <= LATENTS_LIMIT
    video = np.stack(frames).transpose(3, 0, 1, 2).reshape(-1)[::VIDEO_STRIDE]
    assert psnr_db(video, np.floor(255 * recorded["video"])) >= PSNR_LIMIT_DB
