"""Records what the official LTX-Video pipelines generate, so that tests can compare whole runs of ours with them.

Source: `ltx-video` 0.1.2 from PyPI (Lightricks): LTXVideoPipeline and LTXMultiScalePipeline in float32 on the CPU,
on random weights that the exporter writes. Python 3.11, torch 2.13.0 (CPU build), diffusers 0.42.1, transformers
5.23.0, einops 0.8.2, safetensors 0.8.0, numpy 2.4.6, sentencepiece 0.2.3. In an environment with this project and its
development tools (`pip install -e '.[cpu,export]' --group dev`):

    pip install --no-deps ltx-video==0.1.2 einops==0.8.2
    PYTHONPATH=. python tests/golden/make_pipelines.py [part of a case's name ...]

With names it runs only those cases, reports, and writes nothing. A second run on the same machine writes the same
bytes; another CPU may differ in the last bits.

The official code is unchanged, apart from names that diffusers no longer has (`official.py`). Its random draws are
replaced (`official_draws.py`). Unlike the official command line, everything runs in float32, prompts are not
enhanced, and media are given as tensors, without cropping, blur or compression.

Tensors are called `<case>/<name>`: `latents_1` and, with two passes, `latents_2` (normalized, after the loop),
`upsampled` (input of the second pass, after AdaIN), `video` (1, 3, F, H, W) in [0, 1], flattened and strided. The
metadata holds, under each case's name, the JSON of the case, its preset, the video's shape and the draws.
"""

import re
import shutil
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

import pipelines_official  # noqa: E402
from diffusers.utils import logging  # noqa: E402
from make_golden import Cases, write  # noqa: E402
from oracles.pipeline_cases import CASES, VIDEO_STRIDE, Case, deep  # noqa: E402

from ltx_export.random_weights import write_random_weights  # noqa: E402
from ltx_export.sources.find import TOKENIZER_FILE  # noqa: E402


def record(cases: list[Case], folder: Path) -> Cases:
    """Runs the cases release by release; prints the duration of each and the largest magnitude in its tensors."""
    made: Cases = {}
    for release in dict.fromkeys(case.release for case in cases):
        version, weights = deep(release), folder / release
        write_random_weights(version, weights)
        # A vocabulary of 330 pieces with single bytes, which random weights had when the runs were recorded.
        shutil.copy(HERE / "pipelines.spiece.model", weights / TOKENIZER_FILE)
        pipeline = pipelines_official.load(version, weights)
        for case in (case for case in cases if case.release == release):
            start = time.perf_counter()
            made[case.name] = recorded(pipeline, case)
            widest = max(float(np.abs(latents).max()) for name, latents in made[case.name][1].items())
            print(f"{case.name}: {time.perf_counter() - start:.1f} s, at most {widest:.3g}", flush=True)  # noqa: T201
    return {case.name: made[case.name] for case in cases}


def recorded(pipeline: object, case: Case) -> tuple[dict, dict[str, np.ndarray]]:
    """Runs one case and returns its settings and tensors."""
    tensors, draws = pipelines_official.run(pipeline, case)
    settings = asdict(case) | {
        "preset": pipelines_official.preset_of(case),
        "video_shape": tensors["video"].shape,
        "video_stride": VIDEO_STRIDE,
        "draws": draws.drawn if case.rng == "torch" else _folded([(key, shape) for _, key, shape, _ in draws.drawn]),
    }
    assert all(np.isfinite(tensor).all() for tensor in tensors.values()), case.name
    return settings, tensors | {"video": tensors["video"].reshape(-1)[::VIDEO_STRIDE]}


def _folded(draws: list[tuple[str, tuple[int, ...]]]) -> dict[str, tuple[int, ...]]:
    """Returns key -> shape with the draws of all steps folded into one: `pass1/image_*` -> (steps, ...)."""
    folded: dict[str, tuple[int, ...]] = {}
    for key, shape in draws:
        every = re.sub(r"/(image|step)_\d+$", r"/\1_*", key)
        folded[every] = shape if every == key else (folded.get(every, (0,))[0] + 1, *shape)
    return folded


def main() -> None:
    torch.set_num_threads(1)  # for a fixed order of summation
    logging.set_verbosity_error()
    names = sys.argv[1:]
    cases = [case for case in CASES if not names or any(name in case.name for name in names)]
    with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        made = record(cases, Path(folder))
    if not names:
        write(HERE / "pipelines.safetensors", made)


if __name__ == "__main__":
    main()
