"""The stand-ins with gradients against ONNX's operators, and the loss of a velocity against its definition."""

import numpy as np
import pytest
import torch
from sentencepiece import SentencePieceProcessor

from ltx_export.models import dit, layers, rope
from ltx_runtime.spec.geometry import Grid, coords_of
from ltx_runtime.spec.versions import NEGATIVE_PROMPT
from training.optimizing import Plan, optimize
from training.stages import COMPONENTS, demo_denoiser, demo_upsampler
from training.transformer.differentiable import attention, differentiable, rotate
from training.transformer.latents import Latents
from training.transformer.prompts import ids_of, prompt_of, vocabulary_of_captions
from training.transformer.velocity import FPS, IMAGE_NOISE, Lesson, is_inner_matrix, start_of, velocity_losses
from training.upsampling import start_upsampler, upsampler_losses
from training.world.captions import phrasings
from training.world.scenes import random_scene

CONFIG = dit.DitConfig(layers=4, heads=4, head_dim=32, text_channels=64)
CHANNELS = COMPONENTS[-1]
SCALE = 2.0


@pytest.fixture(scope="module")
def tokenizer():
    return SentencePieceProcessor(model_proto=vocabulary_of_captions(512, 1))


def latents_of(count, rows, columns, seed=0):
    random = np.random.default_rng(seed)
    return Latents(
        random.standard_normal((count, CHANNELS, 4, rows, columns)).astype(np.float16),
        random.random((count, 4, rows, columns)).astype(np.float16),
        random.standard_normal((count, CHANNELS, rows, columns)).astype(np.float16),
        random.choice([8, 16], count),
        [random_scene(random) for _ in range(count)],
    )


@pytest.mark.parametrize(("queries", "keys", "scale"), [(6, 6, None), (5, 9, 1.0)])
def test_attention_is_that_of_onnx(queries, keys, scale):
    generator = torch.Generator().manual_seed(1)
    query, key, value = (torch.randn(2, n, 16, generator=generator) for n in (queries, keys, keys))
    bias = torch.randn(2, 1, queries, keys, generator=generator)
    expected = layers.attention(query, key, value, 4, bias, scale)
    assert torch.allclose(attention(query, key, value, 4, bias, scale), expected, atol=1e-5)


def test_rotation_is_that_of_onnx():
    rotation = CONFIG.rope.rotation(coords_of(Grid(2, 3, 2), FPS, causal=True), CONFIG.width)
    pieces = rope.in_pieces(*map(torch.from_numpy, rotation), 2)
    x = torch.randn(2, 12, CONFIG.width, generator=torch.Generator().manual_seed(2))
    assert torch.allclose(rotate(x, *pieces), rope.rotate(x, *pieces), atol=1e-5)


def test_every_prompt_of_a_scene_fits_and_some_say_nothing_or_little(tokenizer):
    random = np.random.default_rng(3)
    scenes = [random_scene(random) for _ in range(300)]
    prompts = [prompt_of(scene, random) for scene in scenes]
    ids, mask = ids_of(prompts, tokenizer)
    ends = mask.sum(1) - 1
    assert (ids[torch.arange(300), ends] == 1).all() and (ids[mask == 0] == 0).all()
    assert 8 <= prompts.count("") <= 24 and 8 <= prompts.count(NEGATIVE_PROMPT) <= 24
    assert sum(len(prompt.split()) in (1, 2) for prompt in prompts) >= 8
    longest = max((text for scene in scenes for form in phrasings(scene) for text in form), key=len)
    assert ids_of([longest + "."], tokenizer)[1].sum() > 15
    assert tokenizer.unk_id() not in tokenizer.encode("Ein großer roter Fuchs, 3 m!")


def level_of(sinusoid):
    """Returns the noise level in a sinusoid (..., 256) by its slowest sine."""
    slowest = 10_000.0 ** (-127 / 128)
    return torch.asin(sinusoid[..., -1].double()).float() / (1000 * slowest)


@pytest.mark.parametrize(("frames", "given", "is_keyframe"), [(1, (0, 0), 0), (4, (0.5, 0.5), 0), (3, (0.4, 0), 1)])
def test_the_velocity_is_noise_minus_data_and_given_tokens_are_data(tokenizer, frames, given, is_keyframe):
    same = latents_of(1, 2, 3)
    latents = Latents(*(np.repeat(x, 9, 0) for x in (same.clips, same.coverage, same.keyframes)), np.repeat(8, 9),
                      same.scenes * 9)  # fmt: skip
    clip = torch.from_numpy(same.clips[0, :, :frames].astype(np.float32)).flatten(1).T / SCALE
    image = torch.from_numpy(same.keyframes[0].astype(np.float32)).flatten(1).T / SCALE
    data = torch.cat([image, clip]) if is_keyframe else clip
    counts = set()

    def compute(ids, mask, noisy, sinusoid, cosines, sines):
        assert noisy.shape == (8, len(data), 128) and not noisy[..., CHANNELS:].any()
        assert cosines.shape == sines.shape == (len(data), CONFIG.width // 2)
        level, noisy = level_of(sinusoid), noisy[..., :CHANNELS]
        counts.update((level == 0).sum(1).tolist())
        highest = level.max(1).values[:, None, None]
        noise = (noisy - data) / (IMAGE_NOISE * highest.square())
        if (level == 0).any():
            assert noise[level == 0].std() == pytest.approx(1, abs=0.1)
        return torch.nn.functional.pad((noisy - data) / level.clamp_min(1e-6)[..., None], (0, 32), value=7.0)

    lesson = Lesson(latents, 8, frames, given=given, keyframe=bool(is_keyframe))
    losses_at = velocity_losses(compute, CONFIG, [lesson], tokenizer, SCALE, seed=4)
    assert max(float(losses_at(step)["loss"]) for step in range(6)) < 1e-3
    expected = {6 * count for count, share in enumerate((1 - sum(given), *given)) if share > 0.01}
    assert counts == {count + 6 * is_keyframe for count in expected}


def test_a_token_of_a_thing_counts_up_to_seven_times_but_as_one_where_noise_hides_it(tokenizer):
    same = latents_of(1, 2, 3)
    same.coverage[:] = 0
    same.coverage[0, 0, 0, 1] = 1
    latents = Latents(*(np.repeat(x, 9, 0) for x in (same.clips, same.coverage, same.keyframes)), np.repeat(8, 9),
                      same.scenes * 9)  # fmt: skip
    data = torch.from_numpy(same.clips[0, :, :1].astype(np.float32)).flatten(1).T / SCALE
    levels = []

    def compute(ids, mask, noisy, sinusoid, cosines, sines):
        level = level_of(sinusoid)[..., None]
        levels.append(level[:, 0, 0])
        wrong = torch.zeros(len(data), 1)
        wrong[1] = 1
        return torch.nn.functional.pad((noisy[..., :CHANNELS] - data) / level + wrong, (0, 32))

    losses_at = velocity_losses(compute, CONFIG, [Lesson(latents, 8, 1)], tokenizer, SCALE, seed=4)
    for step in range(6):
        loss = float(losses_at(step)["loss"])
        weights = 1 + 6 * (1 - levels[-1]) ** 2
        assert loss == pytest.approx(float(weights.sum() / (weights + len(data) - 1).sum()), rel=0.02)


def test_noise_is_up_to_the_most_of_a_lesson_and_half_of_it_near_that(tokenizer):
    levels = []

    def compute(ids, mask, noisy, sinusoid, cosines, sines):
        levels.append(level_of(sinusoid)[:, 0])
        return torch.zeros_like(noisy)

    lesson = Lesson(latents_of(4, 2, 2), 16, 1, most_noise=0.9)
    losses_at = velocity_losses(compute, CONFIG, [lesson], tokenizer, SCALE, seed=5)
    for step in range(40):
        losses_at(step)
    drawn = torch.cat(levels)
    assert drawn.min() < 0.05 and 0.85 < drawn.max() <= 0.9001
    assert 0.5 < (drawn > 0.75).float().mean() < 0.65


def test_text_encoder_and_transformer_learn(tokenizer, tmp_path):
    torch.manual_seed(6)
    denoiser = demo_denoiser()
    start_of(denoiser, CHANNELS)
    lesson = Lesson(latents_of(2, 2, 2), 16, 1)
    with differentiable():
        losses_at = velocity_losses(denoiser, CONFIG, [lesson], tokenizer, SCALE, seed=6)
        parameters = dict(denoiser.named_parameters())
        _, curve = optimize(parameters, is_inner_matrix, Plan(60, 0.02, 3e-3), losses_at, lambda line: None,
                            tmp_path / "unfinished")  # fmt: skip
    losses = [row["loss"] for row in curve]
    assert np.mean(losses[-10:]) < 0.8 * np.mean(losses[:10])
    unused = denoiser.transformer.patchify_proj.weight[:, CHANNELS:], denoiser.transformer.proj_out.weight[CHANNELS:]
    assert not any(weight.any() for weight in unused)


def test_an_upsampler_learns(tmp_path):
    torch.manual_seed(7)
    upsampler, small = demo_upsampler(), latents_of(2, 3, 4)
    start_upsampler(upsampler, CHANNELS)
    clips = small.clips.repeat(2, 3).repeat(2, 4)
    large = Latents(clips, small.coverage.repeat(2, 2).repeat(2, 3), small.keyframes, small.keyframe_numbers, [])
    losses_at = upsampler_losses(upsampler, small, large, SCALE, 4, seed=8)
    parameters, plan = dict(upsampler.named_parameters()), Plan(60, 0.02, 3e-3)
    _, curve = optimize(parameters, lambda _, p: p.ndim >= 4, plan, losses_at, lambda line: None, tmp_path / "x")
    losses = [row["loss"] for row in curve]
    assert np.mean(losses[-10:]) < 0.7 * np.mean(losses[:10])
