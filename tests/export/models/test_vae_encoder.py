"""The VAE encoders against the official package's golden values, diffusers and published numbers, and their laws."""

import zlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from oracles.golden_files import golden
from oracles.networks import (
    RELATIVE_L2,
    assert_published,
    diffusers_vae,
    diffusers_vae_key,
    distance,
    filled,
    golden_settings,
    shapes_of,
    sine,
    sine_weights,
    tensor,
)
from oracles.weight_rule import weight
from samples.tiny import tiny

from ltx_export.models.vae_blocks import Conv, Downsample, fold, patchify, unfold, unpatchify
from ltx_export.models.vae_encoder import EncoderConfig, VaeEncoder
from ltx_export.networks.header import header_config
from ltx_export.networks.vae_encoder import encoder_config
from ltx_runtime.spec.components import vae_encoder
from ltx_runtime.spec.versions import VaeSize

GOLDEN = golden("vae_encoder")
CASES = sorted({key.split("/")[0] for key in GOLDEN})
GENERATIONS = {"A": "0.9.0", "B": "0.9.1", "C": "0.9.5"}
EVERY_GENERATION = pytest.mark.parametrize("generation", GENERATIONS)
# (batch, frames, rows, columns) of the latents
SHAPES = ((1, 1, 2, 3), (2, 3, 3, 2), (1, 4, 1, 1), (3, 2, 1, 4))
CHANNELS = 8

# generation: (sum, mean magnitude, first six values, last three values) of the means
PUBLISHED = {
    "A": (-0.820620, 0.840507, (-0.760063, -0.273960, 0.699928, 1.055902, 0.670894, 0.933479),
          (-0.802241, -0.078064, 0.349565)),
    "B": (-1.391816, 0.578401, (-1.205971, -0.939431, -0.067615, 0.419664, -0.865793, -0.807076),
          (0.245327, -0.370271, -0.583998)),
    "C": (4.168868, 0.410255, (-0.401562, -0.268502, 0.094288, 0.274916, -0.408202, -0.149887),
          (-0.526506, -0.526729, -0.377905)),
}  # fmt: skip


def config_of(generation: str, size: VaeSize) -> EncoderConfig:
    """Returns the configuration of a generation's encoder with other sizes, from its header."""
    return encoder_config(header_config(replace(tiny(GENERATIONS[generation]), vae_size=size))["vae"])


def small(generation: str) -> VaeEncoder:
    """Returns an encoder of the released depth with drawn weights."""
    return filled(VaeEncoder(config_of(generation, VaeSize(4, CHANNELS, None))), weight)


def uniform(name: str, *shape: int) -> torch.Tensor:
    """Draws values in [-1, 1) from the name alone, as the videos of the golden cases are drawn."""
    return tensor(np.random.RandomState(zlib.crc32(name.encode())).uniform(-1, 1, shape).astype(np.float32))


def video_of(shape: tuple[int, ...]) -> torch.Tensor:
    """Returns a video that is encoded to latents of this shape (batch, frames, rows, columns)."""
    (port,) = vae_encoder(CHANNELS).inputs
    return uniform("video", *port.shape(dict(zip(("batch", "frames", "rows", "columns"), shape, strict=True))))


@pytest.mark.parametrize("case", CASES)
def test_posteriors_are_those_of_the_official_package(case):
    settings = golden_settings("vae_encoder", case)
    module = filled(VaeEncoder(encoder_config(settings["vae"])), weight)
    mean, deviation = module(uniform(case, *settings["video_shape"])).chunk(2, dim=1)
    assert distance(mean, GOLDEN[f"{case}/mean"]) <= RELATIVE_L2
    assert distance(deviation, GOLDEN[f"{case}/deviation"]) <= RELATIVE_L2


def test_every_generation_and_every_padding_was_recorded_at_three_shapes():
    settings = [golden_settings("vae_encoder", case) for case in CASES]
    assert {one["vae"].get("spatial_padding_mode", "zeros") for one in settings} == {"zeros", "replicate", "reflect"}
    kinds = {tuple(block.kind for block in encoder_config(one["vae"]).blocks) for one in settings}
    assert kinds == {tuple(b.kind for b in config_of(g, VaeSize(4, 8, 1)).blocks) for g in GENERATIONS}
    assert len({str(one["video_shape"]) for one in settings}) == 3


@EVERY_GENERATION
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_posteriors_are_those_of_diffusers(generation, shape):
    """The expected values are normalized here: diffusers normalizes in its pipelines, not in the model."""
    ours, theirs = small(generation), diffusers_vae(generation, 4, CHANNELS, None)
    state = {diffusers_vae_key(key, generation): value for key, value in ours.state_dict().items()}
    missing, unexpected = theirs.load_state_dict(state, strict=False)
    assert unexpected == []
    assert {key.split(".")[0] for key in missing} == {"decoder"}
    with torch.no_grad():
        posterior = theirs.encode(video_of(shape)).latent_dist
    mean, scale = (values.reshape(1, -1, 1, 1, 1) for values in (theirs.latents_mean, theirs.latents_std))
    expected = torch.cat([(posterior.mean - mean) / scale, posterior.std / scale], dim=1)
    assert distance(ours(video_of(shape)), expected) <= RELATIVE_L2


@EVERY_GENERATION
def test_means_are_the_published_ones(generation):
    module = VaeEncoder(config_of(generation, VaeSize(4, 4, 1)))
    theirs = shapes_of(diffusers_vae(generation, 4, 4, 1, noise=False).state_dict().items())

    def is_scale(key: str) -> bool:
        return key == "latents_std" or ("norm" in key and key.endswith("weight"))

    drawn = sine_weights(theirs, is_scale)
    module.load_state_dict({key: drawn[diffusers_vae_key(key, generation)] for key, _ in module.named_parameters()})
    means = module.requires_grad_(False).encoder(sine((1, 3, 9, 64, 64), 0.013, 0.2))[:, :-1]
    assert means.shape == (1, 4, 2, 2, 2)
    assert_published(means, *PUBLISHED[generation])


@EVERY_GENERATION
@pytest.mark.parametrize("layers", [1, None])
def test_every_parameter_has_its_counterpart_in_diffusers(generation, layers):
    ours = VaeEncoder(config_of(generation, VaeSize(4, CHANNELS, layers)))
    theirs = diffusers_vae(generation, 4, CHANNELS, layers).state_dict()
    expected = {key: tuple(value.shape) for key, value in theirs.items() if not key.startswith("decoder.")}
    assert {diffusers_vae_key(k, generation): s for k, s in shapes_of(ours.named_parameters()).items()} == expected


@EVERY_GENERATION
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_one_latent_is_made_of_eight_frames_and_32_x_32_pixels_and_the_first_of_one_frame(generation, shape):
    batch, frames, rows, columns = shape
    video = video_of(shape)
    assert video.shape == (batch, 3, 8 * frames - 7, 32 * rows, 32 * columns)
    assert small(generation)(video).shape == (batch, 2 * CHANNELS, frames, rows, columns)


@EVERY_GENERATION
@pytest.mark.parametrize("frames", [1, 2])
def test_a_latent_depends_on_its_own_frames_and_those_before_alone(generation, frames):
    """A clip's first frame alone is encoded to its first latent, and its first nine frames to its first two."""
    module, clip = small(generation), video_of((1, 3, 2, 2))
    whole, cut = module(clip), module(clip[:, :, : 8 * frames - 7])
    assert cut.shape[2] == frames
    assert distance(cut, whole[:, :, :frames]) <= RELATIVE_L2
    changed = torch.cat([clip[:, :, : 8 * frames - 7], -clip[:, :, 8 * frames - 7 :]], dim=2)
    assert distance(module(changed)[:, :, :frames], whole[:, :, :frames]) <= RELATIVE_L2
    assert distance(module(changed)[:, :, frames:], whole[:, :, frames:]) > 1e-3


@EVERY_GENERATION
def test_the_samples_of_a_batch_do_not_see_each_other(generation):
    module, videos = small(generation), video_of((3, 2, 1, 2))
    together = module(videos)
    for i in range(3):
        assert distance(together[i : i + 1], module(videos[i : i + 1])) <= RELATIVE_L2


@pytest.mark.parametrize(("log_variance", "kept"), [(-100.0, -30.0), (-3.0, -3.0), (2.0, 2.0), (100.0, 20.0)])
def test_all_channels_share_one_log_variance_that_is_clamped(log_variance, kept):
    """In normalized space the statistics shift and scale the means, and scale the deviations."""
    module = small("C")
    with torch.no_grad():
        conv = module.encoder.conv_out.conv
        conv.weight[-1], conv.bias[-1] = 0, log_variance
    video = video_of((1, 2, 1, 1))
    mean, scale = (module.per_channel_statistics.get_parameter(f"{of}-of-means") for of in ("mean", "std"))
    means, deviations = module(video).chunk(2, dim=1)
    own_scale = module.encoder(video)[:, :-1]
    expected = (own_scale - mean[:, None, None, None]) / scale[:, None, None, None]
    assert distance(means, expected) <= RELATIVE_L2
    expected = (np.exp(kept / 2) / scale)[None, :, None, None, None].expand(deviations.shape)
    assert distance(deviations, expected) <= RELATIVE_L2


def test_patches_are_taken_apart_as_the_decoder_puts_them_together():
    video = torch.randn(2, 3, 5, 8, 12, generator=torch.Generator().manual_seed(3))
    patches = patchify(video)
    assert patches.shape == (2, 48, 5, 2, 3)
    assert torch.equal(unpatchify(patches), video)
    c, row, column = 2, 3, 1
    assert torch.equal(patches[:, c * 16 + column * 4 + row], video[:, c, :, row::4, column::4])


def test_folding_undoes_unfolding_and_orders_channels_by_frame_row_and_column():
    x = torch.randn(2, 16, 3, 2, 5, generator=torch.Generator().manual_seed(4))
    assert torch.equal(fold(unfold(x), (2, 2, 2)), x)
    folded = fold(x, (1, 2, 1))
    assert folded.shape == (2, 32, 3, 1, 5)
    for row in range(2):
        assert torch.equal(folded[:, row::2], x[:, :, :, row::2])


@pytest.mark.parametrize(("factors", "averaged"), [((1, 2, 2), 2), ((2, 1, 1), 1), ((2, 2, 2), 4)], ids=str)
def test_a_downsampling_block_whose_convolution_gives_nothing_averages_neighbouring_folded_channels(factors, averaged):
    block = Downsample(8, 16, "zeros", factors).requires_grad_(False)
    for parameter in block.parameters():
        parameter.zero_()
    frames, rows, columns = 3 * factors[0] - (factors[0] > 1), 2 * factors[1], 2 * factors[2]
    x = torch.randn(1, 8, frames, rows, columns, generator=torch.Generator().manual_seed(5))
    repeated = torch.cat([x[:, :, :1], x], dim=2) if factors[0] > 1 else x  # the first latent is one frame
    folded = fold(repeated, factors)
    expected = torch.stack([folded[:, i * averaged : (i + 1) * averaged].mean(dim=1) for i in range(16)], dim=1)
    assert distance(block(x), expected) <= RELATIVE_L2


@pytest.mark.parametrize(("causal", "reach"), [(True, (-2, 0)), (False, (-1, 1))])
def test_a_convolution_sees_two_frames_back_or_one_to_either_side(causal, reach):
    conv = Conv(1, 1, "zeros", causal=causal).requires_grad_(False)
    conv.conv.weight.fill_(1)
    x = torch.zeros(1, 1, 7, 4, 4)
    x[:, :, 3] = 1
    plain = conv(torch.zeros_like(x))
    seen = [frame - 3 for frame in range(7) if not torch.equal(conv(x)[:, :, frame], plain[:, :, frame])]
    assert (-max(seen), -min(seen)) == reach
    assert len(seen) == 3
