"""The VAE decoders against the official package's golden values, diffusers, and published numbers."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from oracles.encodings import sinusoids
from oracles.golden_files import golden
from oracles.networks import (
    RELATIVE_L2,
    assert_published,
    diffusers_vae,
    diffusers_vae_key,
    distance,
    filled,
    golden_settings,
    normal,
    shapes_of,
    sine,
    sine_weights,
    tensor,
)
from oracles.weight_rule import weight
from samples.tiny import tiny

from ltx_export.models.vae import TIMESTEP_SCALE_KEY, VaeConfig, VaeDecoder, unpatchify
from ltx_export.models.vae_blocks import unfold
from ltx_export.networks.header import header_config, vae_config
from ltx_runtime.spec.components import vae_decoder
from ltx_runtime.spec.versions import VaeSize

GOLDEN = golden("vae_decoder")
CASES = sorted({key.split("/")[0] for key in GOLDEN})
GENERATIONS = {"A": "0.9.0", "B": "0.9.1", "C": "0.9.5"}
EVERY_GENERATION = pytest.mark.parametrize("generation", GENERATIONS)
SHAPES = ((1, 8, 1, 2, 3), (2, 8, 3, 3, 2), (1, 8, 4, 1, 1))

# generation: (sum, mean magnitude, first six values, last three values); B without noise
PUBLISHED = {
    "A": (-69.834741, 1.105804, (-0.185377, 0.536135, -0.475679, 0.144983, -0.399455, 0.737556),
          (0.598397, -0.656605, 0.300775)),
    "B": (439.085822, 0.517244, (-0.608607, 0.602547, -0.175737, -0.478246, -0.591552, 0.442398),
          (0.584653, -0.888534, 0.745077)),
    "C": (439.085822, 0.517244, (-0.608607, 0.602547, -0.175737, -0.478246, -0.591552, 0.442398),
          (0.584653, -0.888534, 0.745077)),
}  # fmt: skip


def config_of(generation: str, size: VaeSize, *, noise: bool = True) -> VaeConfig:
    """Returns the configuration of a generation's decoder with other sizes, from its header."""
    config = vae_config(header_config(replace(tiny(GENERATIONS[generation]), vae_size=size))["vae"])
    if noise:
        return config
    return replace(config, blocks=tuple(replace(block, inject_noise=False) for block in config.blocks))


def pair_of(generation: str, *, noise: bool) -> tuple[VaeDecoder, torch.nn.Module]:
    """Returns our decoder at its released depth and diffusers' autoencoder, with the same weights."""
    ours = filled(VaeDecoder(config_of(generation, VaeSize(4, 8, None), noise=noise)), weight)
    theirs = diffusers_vae(generation, 4, 8, None, noise)
    state = {diffusers_vae_key(key, generation): value for key, value in ours.state_dict().items()}
    missing, unexpected = theirs.load_state_dict(state, strict=False)
    assert unexpected == []
    assert {key for key in missing if not key.startswith("encoder.")} <= {TIMESTEP_SCALE_KEY}
    assert theirs.decoder.timestep_scale_multiplier in (None, 1000)  # no parameter of ours
    return ours, theirs.requires_grad_(False)


def decoded(theirs: torch.nn.Module, latents: torch.Tensor, timestep: torch.Tensor | None) -> torch.Tensor:
    """Un-normalizes and decodes: diffusers un-normalizes in its pipelines, not in the model."""
    mean, deviation = (value.reshape(1, -1, 1, 1, 1) for value in (theirs.latents_mean, theirs.latents_std))
    return theirs.decode(latents * deviation + mean, timestep, return_dict=False)[0]


def timesteps(generation: str, batch: int) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Returns the timesteps of a batch, as diffusers takes them, and their sinusoids, as ours does."""
    given = torch.linspace(0.05, 0.3, batch)
    return (None, None) if generation == "A" else (given, sinusoids(given))


@pytest.mark.parametrize("case", CASES)
def test_videos_are_those_of_the_official_package(case):
    settings = golden_settings("vae_decoder", case)
    config = vae_config(settings["vae"])
    module = filled(VaeDecoder(config), weight)
    names = ["latents", "timestep", *(f"noise_{block}" for block in config.noise_maps())]
    inputs = {name: tensor(GOLDEN[f"{case}/{name}"]) for name in names if f"{case}/{name}" in GOLDEN}
    assert ("timestep" in inputs) == config.timestep
    if config.timestep:
        inputs["timestep"] = sinusoids(inputs["timestep"])
    video = module(*inputs.values())
    assert list(video.shape) == settings["video_shape"]
    assert distance(video.flatten()[:: settings["video_stride"]], GOLDEN[f"{case}/video"]) <= RELATIVE_L2


def test_the_recorded_cases_have_noise_exactly_where_ours_do():
    for case in CASES:
        maps = vae_config(golden_settings("vae_decoder", case)["vae"]).noise_maps()
        assert {f"noise_{block}" for block in maps} == {
            key.split("/")[1] for key in GOLDEN if key.startswith(f"{case}/noise_")
        }


@EVERY_GENERATION
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_videos_are_those_of_diffusers(generation, shape):
    ours, theirs = pair_of(generation, noise=False)
    latents, (timestep, sinusoid) = normal(7, *shape), timesteps(generation, shape[0])
    video = ours(latents, sinusoid)
    assert video.shape == (shape[0], 3, 8 * shape[2] - 7, 32 * shape[3], 32 * shape[4])
    assert distance(video, decoded(theirs, latents, timestep)) <= RELATIVE_L2


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_videos_with_injected_noise_are_those_of_diffusers_with_the_same_seed(shape):
    ours, theirs = pair_of("B", noise=True)
    latents, (timestep, sinusoid) = normal(7, *shape), timesteps("B", shape[0])
    sizes = {"rows": shape[3], "columns": shape[4]}
    config = config_of("B", VaeSize(4, 8, None))
    ports = vae_decoder(8, timestep=True, noise_maps=config.noise_maps()).inputs[2:]
    torch.manual_seed(11)
    noise = []
    for port in ports:  # one draw per map, in the order of blocks and layers
        count, *size = port.shape(sizes)
        noise.append(torch.stack([torch.randn(size) for _ in range(count)]))
    torch.manual_seed(11)
    expected = decoded(theirs, latents, timestep)
    video = ours(latents, sinusoid, *noise)
    assert distance(video, expected) <= RELATIVE_L2
    assert distance(ours(latents, sinusoid, *(torch.zeros_like(one) for one in noise)), expected) > 0.01


@EVERY_GENERATION
def test_videos_are_the_published_ones(generation):
    module = VaeDecoder(config_of(generation, VaeSize(4, 4, 1), noise=False))
    theirs = shapes_of(diffusers_vae(generation, 4, 4, 1, noise=False).state_dict().items())

    def is_scale(key: str) -> bool:
        return key == "latents_std" or ("norm" in key and key.endswith("weight"))

    drawn = sine_weights(theirs, is_scale)
    module.load_state_dict({key: drawn[diffusers_vae_key(key, generation)] for key, _ in module.named_parameters()})
    _, sinusoid = timesteps(generation, 1)
    video = module.requires_grad_(False).decoder(sine((1, 4, 2, 2, 2), 0.7, 0.1), sinusoid, [])
    assert video.shape == (1, 3, 9, 64, 64)
    assert_published(video, *PUBLISHED[generation])


@EVERY_GENERATION
@pytest.mark.parametrize("layers", [1, None])
def test_every_parameter_has_its_counterpart_in_diffusers(generation, layers):
    ours = VaeDecoder(config_of(generation, VaeSize(4, 8, layers)))
    theirs = diffusers_vae(generation, 4, 8, layers).state_dict()
    expected = {
        key: tuple(value.shape)
        for key, value in theirs.items()
        if not key.startswith("encoder.") and key != TIMESTEP_SCALE_KEY
    }
    assert {diffusers_vae_key(k, generation): s for k, s in shapes_of(ours.named_parameters()).items()} == expected


def test_only_091_takes_noise_and_its_maps_follow_the_released_depths():
    maps = {g: config_of(g, VaeSize(4, 8, None)).noise_maps() for g in GENERATIONS}
    assert maps == {"A": {}, "B": {2: (14, 2), 4: (12, 4), 6: (10, 8)}, "C": {}}


def test_latents_are_unnormalized_by_mean_and_deviation():
    module = filled(VaeDecoder(config_of("A", VaeSize(4, 8, 1))), weight)
    latents = normal(3, 1, 8, 2, 2, 2)
    statistics = module.per_channel_statistics
    mean, deviation = (statistics.get_parameter(name) for name in ("mean-of-means", "std-of-means"))
    own_scale = latents * deviation.reshape(1, -1, 1, 1, 1) + mean.reshape(1, -1, 1, 1, 1)
    assert distance(module(latents), module.decoder(own_scale, None, [])) <= RELATIVE_L2


def test_a_patch_of_channels_becomes_4x4_pixels_with_the_column_as_the_slower_index():
    x = torch.arange(48.0).reshape(1, 48, 1, 1, 1)
    pixels = unpatchify(x)
    assert pixels.shape == (1, 3, 1, 4, 4)
    expected = [[[c * 16 + column * 4 + row for column in range(4)] for row in range(4)] for c in range(3)]
    np.testing.assert_array_equal(pixels[0, :, 0], expected)


def test_upsampling_moves_channels_to_frame_row_and_column_in_this_order():
    x = torch.arange(16.0).reshape(1, 16, 1, 1, 1)
    expected = [[[[c * 8 + t * 4 + h * 2 + w for w in range(2)] for h in range(2)] for t in range(2)] for c in range(2)]
    np.testing.assert_array_equal(unfold(x)[0], expected)
