"""The whole way from a checkpoint to a video file, compared with a second implementation in torch alone."""

import sys
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from fakes.requests import encoded
from oracles.networks import distance
from oracles.sampling import decode, sample
from oracles.torch_networks import networks_of
from PIL import Image
from samples.tiny import Exported, export_tiny

from ltx_runtime.cli import main as cli
from ltx_runtime.spec.presets import STG_MODES, StgMode
from ltx_runtime.spec.versions import VERSIONS
from ltx_runtime.tensors import read_tensors
from ltx_runtime.text.tokenizer import Tokenizer

# One release of each VAE generation with guidance, and one that is distilled and stochastic.
RELEASES = ("0.9.0", "0.9.1", "0.9.5", "0.9.6-distilled")
EVERY_RELEASE = pytest.mark.parametrize("name", RELEASES)
EVERY_ROAD = pytest.mark.parametrize(
    ("name", "mode"), [*((name, STG_MODES[0]) for name in RELEASES), *(("0.9.5", mode) for mode in STG_MODES[1:])]
)
END_TO_END = 1e-4
PROMPT, NEGATIVE = "A red fox runs through deep snow.", "blurry"
HEIGHT, WIDTH, NUM_FRAMES, FPS, STEPS, SEED = 64, 96, 17, 12, 4, 7
SIZE = (3, 2, 3)


@pytest.fixture
def ltx_run(monkeypatch, capsys, tmp_path):
    """Runs the command on a tiny release; returns its output."""

    def run(release: Exported, output: Path, **changes: object) -> str:
        monkeypatch.setitem(VERSIONS, release.version.name, release.version)
        asked = {"prompt": PROMPT, "negative-prompt": NEGATIVE, "engines": release.folder, "height": HEIGHT}
        asked |= {"width": WIDTH, "num-frames": NUM_FRAMES, "fps": FPS, "steps": STEPS, "seed": SEED, "output": output}
        words = [word for name, value in (asked | changes).items() for word in (f"--{name}", str(value))]
        monkeypatch.setattr(sys, "argv", ["ltx-run", *words])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = capsys.readouterr()
        assert not ended.value.code, said.err
        return said.out

    return run


def frames_in(folder: Path) -> np.ndarray:
    return np.stack([np.asarray(Image.open(path)) for path in sorted(folder.iterdir())])


@EVERY_RELEASE
def test_a_prompt_becomes_a_video_of_the_size_length_and_speed_asked_for(ltx_run, tmp_path, name):
    said = ltx_run(export_tiny(name), tmp_path / "clip.mp4")
    assert "clip.mp4" in said
    assert [path.name for path in tmp_path.iterdir()] == ["clip.mp4"]
    with av.open(str(tmp_path / "clip.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.width, stream.height, stream.average_rate) == (WIDTH, HEIGHT, FPS)
        assert len(list(container.decode(stream))) == NUM_FRAMES


@EVERY_RELEASE
def test_the_same_seed_makes_the_same_frames_and_another_one_others(ltx_run, tmp_path, name):
    for output, seed in (("first", SEED), ("again", SEED), ("other", SEED + 1)):
        ltx_run(export_tiny(name), tmp_path / f"{output}.png", seed=seed)
    first, again, other = (frames_in(tmp_path / output) for output in ("first", "again", "other"))
    assert first.shape == (NUM_FRAMES, HEIGHT, WIDTH, 3)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


@EVERY_RELEASE
def test_another_prompt_makes_another_video(ltx_run, tmp_path, name):
    ltx_run(export_tiny(name), tmp_path / "fox.png")
    ltx_run(export_tiny(name), tmp_path / "train.png", prompt="An old man looks out of a moving train.")
    assert not np.array_equal(frames_in(tmp_path / "fox"), frames_in(tmp_path / "train"))


@EVERY_ROAD
def test_latents_and_frames_are_those_of_the_same_sampling_in_torch(ltx_run, tmp_path, name, mode):
    release = export_tiny(name)
    networks = networks_of(release)
    tokenizer = Tokenizer(release.folder / release.manifest.tokenizer, release.version.text_tokens)
    prompts = [PROMPT, NEGATIVE] if release.version.passes[0].guidance[0].uses_cfg else [PROMPT]
    ids, mask = map(torch.from_numpy, encoded(tokenizer, prompts))
    expected = sample(release, networks, ids, mask, SIZE, FPS, mode, steps=STEPS, seed=SEED)

    kept = tmp_path / "latents.safetensors"
    ltx_run(release, tmp_path / "frames.png", **{"stg-mode": mode, "save-latents": kept})
    assert distance(read_tensors(kept, ["pass1"])["pass1"], expected) <= END_TO_END

    # Pixels are the whole part of 255 y, so that 255 y is less than one above them.
    frames = torch.from_numpy(frames_in(tmp_path / "frames")).permute(3, 0, 1, 2)
    above = decode(release, networks, expected, SEED) - frames
    assert above.min() >= -255 * END_TO_END
    assert above.max() <= 1 + 255 * END_TO_END


@pytest.mark.parametrize("name", ["0.9.0", "0.9.1"])
def test_guidance_matters_in_the_compared_sampling(name):
    """Without CFG, without STG or in another mode the latents differ, so the comparison would notice."""
    release = export_tiny(name)
    networks = networks_of(release)
    ids, mask = torch.tensor([[5, 9, 17, 1], [8, 3, 1, 0]]), torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])
    (one,) = release.version.passes

    def sampled(mode: StgMode = STG_MODES[0], **changes: float) -> torch.Tensor:
        version = replace(release.version, passes=(replace(one, guidance=(replace(one.guidance[0], **changes),)),))
        return sample(replace(release, version=version), networks, ids, mask, SIZE, FPS, mode, steps=STEPS, seed=SEED)

    full = sampled()
    for changes in ({"cfg_scale": 1.0}, {"stg_scale": 0.0}, {"rescale": 1.0}):
        assert distance(sampled(**changes), full) > 10 * END_TO_END
    for mode in STG_MODES[1:]:
        assert distance(sampled(mode), full) > 10 * END_TO_END
