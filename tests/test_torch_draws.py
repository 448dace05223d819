"""Our numpy version of torch's random numbers against torch itself, draw by draw and in the official order."""

import numpy as np
import pytest
import torch

from ltx_runtime.noise.noise import DiffusersNoise, TorchNoise
from ltx_runtime.noise.torch_random import TorchGenerator

# Without AVX2, torch's own numbers differ by this much from those with it, because it rounds angles differently.
WITHIN = 1e-6 if torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512") else 4e-6
SEEDS = [0, 1, 2, 42, 171198, *(2**bits + delta for bits in (31, 32, 33, 48, 63) for delta in (-1, 0, 7))]
SHAPES = [(1, 4, 3, 5, 7), (128, 257), (16,), (17,), (31,), (15,), (1,), (3, 5), (2, 1, 1), (1, 33), ()]
STEPS = 3


@pytest.fixture(params=[*SEEDS, 2**64 - 1])
def seed(request):
    return request.param


def same(ours, theirs, within=WITHIN):
    np.testing.assert_allclose(ours, theirs.numpy(), rtol=0, atol=within, strict=True)


def test_each_draw_of_a_fresh_generator_is_that_of_torch(seed):
    for shape in SHAPES:
        same(TorchGenerator(seed).normals(shape), torch.randn(shape, generator=torch.Generator().manual_seed(seed)))


def test_the_words_and_uniforms_of_any_seed_are_those_of_torch_bit_for_bit(seed):
    ours, theirs = TorchGenerator(seed), torch.Generator().manual_seed(seed)
    for count in (5, 1, 800):
        words = torch.empty(count, dtype=torch.int32).random_(generator=theirs)
        np.testing.assert_array_equal(ours.words(count) % 2**31, words.numpy())
        words = torch.empty(count, dtype=torch.int64).random_(-(2**63), None, generator=theirs)
        np.testing.assert_array_equal(ours.long_words(count).view(np.int64), words.numpy())
        same(ours.uniforms((count, 2)), torch.rand(count, 2, generator=theirs), within=0)
        uniforms = torch.rand(count, 2, dtype=torch.float64, generator=theirs)
        same(ours.long_uniforms((count, 2)), uniforms, within=0)


def test_draws_of_all_sizes_and_memory_orders_follow_each_other_as_in_torch(seed):
    ours, theirs = TorchGenerator(seed), torch.Generator().manual_seed(seed)
    orders = torch.Generator().manual_seed(seed)
    for i in torch.randint(len(SHAPES), (60,), generator=orders).tolist():
        shape = SHAPES[i]
        memory = tuple(torch.randperm(len(shape), generator=orders).tolist())
        tensor = torch.empty([shape[axis] for axis in memory]).permute(np.argsort(memory).tolist())
        assert tensor.shape == shape
        same(ours.normals(shape, memory), tensor.normal_(generator=theirs))
        same(ours.normals(shape), torch.randn(shape, generator=theirs))


def test_the_global_stream_is_such_a_generator_and_seeding_it_forgets_the_normal_that_waits(seed):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        torch.randn(1)
        torch.manual_seed(seed)
        same(TorchGenerator(seed).normals((3,)), torch.randn(3))


def official_run(seed, channels, grid, extra, stochastic):
    """Makes the official pipeline's draws of one pass with an image at a later frame, as tensors of its shapes.

    It only draws, and sets the memory order of the draws: the omitted arithmetic keeps that order and the shapes.
    """
    frames, rows, columns = grid
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    drawn = {}
    tokens = torch.randn(1, frames * rows * columns, channels, generator=generator)
    latents = tokens.unflatten(1, grid).permute(0, 4, 1, 2, 3)
    drawn["pass1/initial"] = latents
    shape = (1, channels, extra, rows, columns)
    drawn["pass1/posterior_0"] = torch.randn(shape)
    drawn["pass1/keyframe_0"] = torch.randn(shape, generator=generator)
    item = torch.lerp(drawn["pass1/keyframe_0"], drawn["pass1/posterior_0"], 0.8)
    sample = torch.cat([latent.flatten(2).transpose(1, 2) for latent in (item, latents)], dim=1)
    for n in range(STEPS):
        drawn[f"pass1/image_{n}"] = torch.randn(sample.shape, generator=generator)
        sample = torch.where(torch.ones(sample.shape[:2]).unsqueeze(-1) > 0, sample, drawn[f"pass1/image_{n}"])
        if stochastic:
            drawn[f"pass1/step_{n}"] = torch.randn_like(sample)
            sample = 0.5 * sample + 0.5 * drawn[f"pass1/step_{n}"]
    view = sample[:, extra * rows * columns :].unflatten(1, grid).permute(0, 4, 1, 2, 3)
    drawn["decode"] = torch.randn_like(view)
    for block, scale in ((2, 1), (4, 2)):
        maps = [torch.randn(rows * scale, columns * scale) for _ in range(4)]
        drawn[f"decoder/noise_{block}"] = torch.stack(maps)
    return drawn


@pytest.mark.parametrize("stochastic", [False, True])
@pytest.mark.parametrize(
    ("channels", "grid", "extra"),
    [
        (128, (3, 4, 5), 1),
        (8, (2, 3, 3), 2),
        (5, (3, 1, 2), 1),
        (16, (1, 1, 1), 1),
        (1, (2, 3, 5), 1),
        (3, (2, 1, 1), 1),
    ],
)
def test_every_draw_of_the_official_pipeline_is_reproduced(channels, grid, extra, stochastic):
    for seed in (0, 171198, 2**40 + 3):
        with torch.random.fork_rng():
            draws = official_run(seed, channels, grid, extra, stochastic)
        noise = TorchNoise(seed)
        for key, theirs in draws.items():
            same(noise.draw(key, tuple(theirs.shape)), theirs)


def test_diffusers_draws_are_reproduced_where_one_stream_makes_them_all(seed):
    stream, noise = torch.Generator().manual_seed(seed), DiffusersNoise(seed)
    for key, shape in {
        "pass1/initial": (1, 8, 3, 3, 5),
        "pass1/posterior_0": (1, 8, 1, 1, 1),
        "pass1/keyframe_0": (1, 8, 1, 1, 1),
        "pass1/image_0": (1, 11, 8),
        "decode": (1, 8, 3, 3, 5),
    }.items():
        same(noise.draw(key, shape), torch.randn(shape, generator=stream))
    maps = torch.stack([torch.randn(3, 5, generator=stream) for _ in range(4)])
    same(noise.draw("decoder/noise_2", (4, 3, 5)), maps)
