"""diffusers' pipelines, run live in float32 and repeated with ltx-run's options, which the tests' names list.

Where diffusers differs from the official code and no option of ours repeats it (docs/diffusers.md), nothing is
compared: rescaled guidance without STG, and stochastic steps, whose sign is wrong there.
"""

import warnings
from contextlib import contextmanager
from functools import cache

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, LTXConditionPipeline, LTXPipeline
from diffusers.pipelines.ltx.pipeline_ltx_condition import LTXVideoCondition
from fakes.runs import generate
from oracles.networks import distance
from oracles.pipeline_cases import deep
from PIL import Image
from safetensors.numpy import load_file, save_file
from samples.deep_releases import engines_of, weights_of
from samples.layouts import diffusers_models
from test_pipelines import psnr_db

from ltx_runtime.planning.options import RunOptions
from ltx_runtime.planning.request import Condition, Request
from ltx_runtime.progress import silent
from ltx_runtime.spec.versions import VERSIONS

LATENTS_LIMIT, PSNR_LIMIT_DB = 1e-4, 60
SEED, FPS, STEPS, GUIDANCE = 11, 25, 12, 3.0
SHIFTED = {"use_dynamic_shifting": True, "base_shift": 0.95, "max_shift": 2.05, "base_image_seq_len": 1024}
SHIFTED |= {"max_image_seq_len": 4096, "shift_terminal": 0.1}
SIZES = pytest.mark.parametrize("size", [(64, 96, 25), (96, 64, 17)], ids=str)


@cache
def models_of(name):
    """Returns diffusers' models of a release at miniature width, in float32."""
    return {part: model.float().eval() for part, model in diffusers_models(deep(name), weights_of(name)).items()}


def embeddings(models, path):
    """Encodes two prompts with T5 without a mask, as LTXPipeline does; returns them and writes them to a file."""
    ids, mask = torch.zeros(2, 12, dtype=torch.int64), torch.zeros(2, 12, dtype=torch.int64)
    for row, count in enumerate((9, 5)):
        ids[row, :count] = torch.arange(7, 7 + count) * (row + 2)
        mask[row, :count] = 1
    with torch.no_grad():
        embeds = models["text_encoder"](ids)[0]
    given = {"prompt_embeds": embeds[:1], "prompt_attention_mask": mask[:1]}
    given |= {"negative_prompt_embeds": embeds[1:], "negative_prompt_attention_mask": mask[1:]}
    save_file({name: np.ascontiguousarray(one.numpy()) for name, one in given.items()}, path)
    return given


def run_diffusers(pipeline, **given):
    """Runs a pipeline of diffusers and returns its frames (f, h, w, 3) in [0, 1]."""
    pipeline.set_progress_bar_config(disable=True)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        return pipeline(**given, output_type="np").frames[0]


def run_ours(engines, tmp_path, monkeypatch, size, options, **asked):
    """Runs ours and returns the latents after the last step, and frames (f, h, w, 3) uint8."""
    name = engines.manifest.version
    monkeypatch.setitem(VERSIONS, name, deep(name))
    frames, kept = [], tmp_path / "latents.safetensors"
    request = Request("", "", *size, FPS, SEED, steps=STEPS, guidance_scale=GUIDANCE, stg_scale=0.0, **asked)
    options = {"embeddings": tmp_path / "embeddings.safetensors", "save_latents": kept, **options}
    generate(engines, request, frames.append, silent, RunOptions(**options))
    return load_file(kept)["pass1"], np.stack(frames)


@contextmanager
def kept_latents(models):
    """Collects the latents that the VAE is asked to decode, normalized again."""
    seen, decode = [], models["vae"].decode

    def noted(latents, *rest, **more):
        mean, deviation = (one.view(1, -1, 1, 1, 1) for one in (models["vae"].latents_mean, models["vae"].latents_std))
        seen.append((latents - mean) / deviation)
        return decode(latents, *rest, **more)

    models["vae"].decode = noted
    try:
        yield seen
    finally:
        del models["vae"].decode


@SIZES
@pytest.mark.parametrize("name", ["0.9.0", "0.9.1"])
def test_ltx_pipeline_is_embeddings_file_and_initial_latents_file_and_no_stg_and_no_decode_noise(
    name, size, tmp_path, monkeypatch
):
    models, engines = models_of(name), engines_of(name)
    text = embeddings(models, tmp_path / "embeddings.safetensors")
    scheduler = FlowMatchEulerDiscreteScheduler(**SHIFTED)
    pipeline = LTXPipeline(scheduler, models["vae"], None, None, models["transformer"])
    height, width, num_frames = size
    tokens = ((num_frames - 1) // 8 + 1) * (height // 32) * (width // 32)
    packed = torch.randn(1, tokens, 8, generator=torch.Generator().manual_seed(SEED))
    save_file({"initial_latents": packed.numpy()}, tmp_path / "initial.safetensors")
    noisy = name == "0.9.1"
    options = {"initial_latents": tmp_path / "initial.safetensors"}
    if noisy:  # the noise maps of the 0.9.1 decoder, which diffusers draws from torch's global stream
        options |= {"noise": tmp_path / "noise.safetensors"}
        torch.manual_seed(SEED)
        save_file(maps_of(engines, size), tmp_path / "noise.safetensors")
        torch.manual_seed(SEED)
    sized = {"height": height, "width": width, "num_frames": num_frames, "frame_rate": FPS}
    decoding = {"decode_timestep": 0.05, "decode_noise_scale": 0.0} if noisy else {}
    with kept_latents(models) as seen:
        expected = run_diffusers(
            pipeline, **text, **sized, **decoding, latents=packed, num_inference_steps=STEPS, guidance_scale=GUIDANCE
        )
    made, frames = run_ours(engines, tmp_path, monkeypatch, size, options, decode_noise_scale=0.0)
    assert distance(made, seen[0]) <= LATENTS_LIMIT
    assert psnr_db(frames, np.floor(255 * expected)) >= PSNR_LIMIT_DB


def maps_of(engines, size):
    """Draws noise to mix in before decoding, and the decoder's noise maps, in the order of torch's global stream."""
    height, width, num_frames = size
    grid = {"frames": (num_frames - 1) // 8 + 1, "rows": height // 32, "columns": width // 32}
    drawn = {"decode": torch.randn(1, 8, *grid.values()).numpy()}
    for port in engines.component("vae_decoder").signature.inputs[2:]:
        count, *area = port.shape(grid)
        drawn[f"decoder/{port.name}"] = np.stack([torch.randn(area).numpy() for _ in range(count)])
    return drawn


@SIZES
@pytest.mark.parametrize("kind", ["text", "image", "keyframe", "clip_later", "two_items"])
def test_ltx_condition_pipeline_is_rng_diffusers_and_sample_posterior_and_no_stg_and_no_decode_noise(
    kind, size, tmp_path, monkeypatch
):
    models, engines = models_of("0.9.5"), engines_of("0.9.5")
    text = embeddings(models, tmp_path / "embeddings.safetensors")
    pipeline = LTXConditionPipeline(FlowMatchEulerDiscreteScheduler(), models["vae"], None, None, models["transformer"])
    height, width, num_frames = size
    items = {
        "text": [],
        "image": [(1, 0, 1.0)],
        "keyframe": [(1, 11, 0.7)],
        "clip_later": [(9, 8, 1.0)],
        "two_items": [(1, 0, 0.8), (9, 8, 1.0)],
    }[kind]
    theirs, ours = [], []
    for i, (count, frame, strength) in enumerate(items):
        pictures = np.random.RandomState(i).randint(0, 256, (count, height, width, 3)).astype(np.uint8)
        shown = [Image.fromarray(one) for one in pictures]
        media = (pictures.astype(np.float32) / 255 * 2 - 1).transpose(3, 0, 1, 2)[None]
        path = tmp_path / f"item{i}.safetensors"
        save_file({"media": np.ascontiguousarray(media)}, path)
        given = {"image": shown[0]} if count == 1 else {"video": shown}
        theirs.append(LTXVideoCondition(**given, frame_index=frame, strength=strength))
        ours.append(Condition(path, frame, strength))
    sized = {"height": height, "width": width, "num_frames": num_frames, "frame_rate": FPS}
    with kept_latents(models) as seen:
        expected = run_diffusers(
            pipeline,
            **text,
            **sized,
            conditions=theirs or None,
            num_inference_steps=STEPS,
            guidance_scale=GUIDANCE,
            decode_timestep=0.05,
            decode_noise_scale=0.0,
            generator=torch.Generator().manual_seed(SEED),
        )
    options = {"rng": "diffusers", "sample_posterior": True}
    asked = {"conditions": tuple(ours), "decode_noise_scale": 0.0}
    made, frames = run_ours(engines, tmp_path, monkeypatch, size, options, **asked)
    assert distance(made, seen[0]) <= LATENTS_LIMIT
    assert psnr_db(frames, np.floor(255 * expected)) >= PSNR_LIMIT_DB
