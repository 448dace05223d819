"""Headers: those of the releases give the released networks, and values that no release has are refused by name."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from oracles.networks import (
    diffusers_dit,
    diffusers_dit_key,
    diffusers_vae,
    diffusers_vae_key,
    shapes_of,
)
from samples.layouts import stored_shapes

from ltx_export.models.dit import DitConfig, Transformer
from ltx_export.models.vae import TIMESTEP_SCALE_KEY, VaeBlock, VaeDecoder
from ltx_export.models.vae_encoder import VaeEncoder
from ltx_export.networks.header import (
    effective_header,
    header_config,
    refuse_another_version,
    schedule_of,
    transformer_config,
    vae_config,
)
from ltx_export.networks.vae_encoder import encoder_config
from ltx_export.sources.find import Opened
from ltx_runtime.errors import LtxError
from ltx_runtime.spec.versions import VERSIONS

RELEASES = [version for version in VERSIONS.values() if version.repository]
EVERY_RELEASE = pytest.mark.parametrize("version", RELEASES, ids=lambda version: version.name)
STATISTICS = 2 * 128  # mean and deviation of every latent channel, which published counts leave out
DIT_PARAMETERS = {28: 1_923_385_472, 48: 13_042_569_344}
DIT_TENSORS = {28: 715, 48: 1215}
DECODER_PARAMETERS = {"A": 238_789_296, "B": 754_572_081, "C": 552_814_641}
VAE_TENSORS = {"A": 190, "B": 294, "C": 226}  # tensors of diffusers' model, encoder included
# decoder.up_blocks in the order of application: (channels in, kind, layers, injects noise)
WALKS = {
    "A": [(512, "res_x", 4), (512, "res_x", 3), (512, "compress_all", 1), (512, "res_x", 3), (512, "res_x_y", 1),
          (256, "compress_all", 1), (256, "res_x", 3), (256, "res_x_y", 1), (128, "compress_all", 1),
          (128, "res_x", 4)],
    "B": [(1024, "res_x", 8), (1024, "compress_all", 1), (512, "res_x", 7), (512, "compress_all", 1),
          (256, "res_x", 6), (256, "compress_all", 1), (128, "res_x", 5)],
    "C": [(1024, "res_x", 5), (1024, "compress_all", 1), (512, "res_x", 5), (512, "compress_all", 1),
          (256, "res_x", 5), (256, "compress_all", 1), (128, "res_x", 5)],
}  # fmt: skip
NOISY = {"A": [], "B": [2, 4, 6], "C": []}
CONFIG = header_config(VERSIONS["0.9.1"])
BAD_NUMBERS = (0, -1000.0, "1000", True, math.inf, math.nan, None)


def on_meta(make) -> torch.nn.Module:
    with torch.device("meta"):
        return make()


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def transformer_of(version) -> Transformer:
    return on_meta(lambda: Transformer(transformer_config(header_config(version)["transformer"])))


def decoder_of(version) -> VaeDecoder:
    return on_meta(lambda: VaeDecoder(vae_config(header_config(version)["vae"])))


@EVERY_RELEASE
def test_the_header_of_a_release_is_that_of_its_published_transformer(version):
    head_dim = {28: 64, 48: 128}[version.transformer.layers]
    header = header_config(version)["transformer"]
    assert transformer_config(header) == DitConfig(version.transformer.layers, 32, head_dim, 128, 4096)
    assert header["cross_attention_dim"] == 32 * head_dim
    assert header["causal_temporal_positioning"] == (version.name not in ("0.9.0", "0.9.1"))


@EVERY_RELEASE
def test_the_transformer_of_a_release_has_the_published_size(version):
    module = transformer_of(version)
    assert count(module) == DIT_PARAMETERS[version.transformer.layers]
    assert len(list(module.parameters())) == DIT_TENSORS[version.transformer.layers]


@EVERY_RELEASE
def test_the_decoder_of_a_release_has_the_published_size_and_walk(version):
    module, config = decoder_of(version), vae_config(header_config(version)["vae"])
    # The scale of timesteps is counted as a parameter where there is one, but is none of ours.
    assert count(module.decoder) == DECODER_PARAMETERS[version.vae] - config.timestep
    assert count(module) == DECODER_PARAMETERS[version.vae] - config.timestep + STATISTICS
    channels, walk = config.first_channels, []
    for block in config.blocks:
        walk.append((channels, block.kind, block.layers))
        channels //= block.multiplier
    assert (walk, channels) == (WALKS[version.vae], 128)
    assert [i for i, block in enumerate(config.blocks) if block.inject_noise] == NOISY[version.vae]
    assert {block.residual for block in config.blocks if block.kind == "compress_all"} == {version.vae != "A"}
    assert config.timestep == (version.vae != "A")
    assert config.padding_mode == "zeros"


@pytest.mark.parametrize("name", ["0.9.0", "0.9.1", "0.9.5"])
def test_a_decoder_of_full_size_has_the_names_and_shapes_of_diffusers(name):
    generation = VERSIONS[name].vae
    theirs = shapes_of(on_meta(lambda: diffusers_vae(generation, 128, 128, None)).state_dict().items())
    assert len(theirs) == VAE_TENSORS[generation]
    ours = shapes_of(decoder_of(VERSIONS[name]).named_parameters())
    assert {diffusers_vae_key(key, generation): shape for key, shape in ours.items()} == {
        key: shape for key, shape in theirs.items() if not key.startswith("encoder.") and key != TIMESTEP_SCALE_KEY
    }


@pytest.mark.parametrize("name", ["0.9.0", "0.9.7-dev"])
def test_a_transformer_of_full_size_has_the_names_and_shapes_of_diffusers(name):
    theirs = shapes_of(on_meta(lambda: diffusers_dit(VERSIONS[name].transformer)).state_dict().items())
    ours = shapes_of(transformer_of(VERSIONS[name]).named_parameters())
    assert {diffusers_dit_key(key): shape for key, shape in ours.items()} == theirs


def test_block_parameters_may_be_a_number_or_a_table():
    def blocks(*given) -> tuple[VaeBlock, ...]:
        return vae_config({**CONFIG["vae"], "decoder_blocks": list(given)}).blocks

    assert blocks(["res_x", 4]) == blocks(["res_x", {"num_layers": 4}])
    assert blocks(["res_x_y", 1]) == blocks(["res_x_y", {"multiplier": 2}])
    assert blocks(["compress_all", 1]) == blocks(["compress_all", {"multiplier": 1, "residual": False}])
    assert blocks(["res_x", {"num_layers": 5, "inject_noise": True}]) == (VaeBlock("res_x", 5, inject_noise=True),)


def test_one_list_of_blocks_serves_a_decoder_that_has_no_list_of_its_own():
    header = header_config(VERSIONS["0.9.0"])["vae"]
    assert "decoder_blocks" not in header
    own = {**header, "decoder_blocks": header["blocks"], "blocks": [["res_x", 1]]}
    assert vae_config(own) == vae_config(header)


@pytest.mark.parametrize("mode", ["zeros", "replicate", "reflect"])
def test_the_padding_of_the_header_is_that_of_every_convolution(mode):
    config = vae_config({**CONFIG["vae"], "spatial_padding_mode": mode})
    convolutions = [m for m in on_meta(lambda: VaeDecoder(config)).modules() if isinstance(m, torch.nn.Conv3d)]
    assert {one.padding_mode for one in convolutions if one.kernel_size == (3, 3, 3)} == {mode}


@pytest.mark.parametrize(
    ("part", "field", "value"),
    [
        ("transformer", "_class_name", "OtherModel"),
        ("transformer", "activation_fn", "geglu"),
        ("transformer", "attention_bias", False),
        ("transformer", "norm_elementwise_affine", True),
        ("transformer", "norm_eps", 1e-5),
        ("transformer", "qk_norm", "layer_norm"),
        ("transformer", "standardization_norm", "layer_norm"),
        ("transformer", "positional_embedding_type", "sinusoidal"),
        *(("transformer", "positional_embedding_theta", value) for value in BAD_NUMBERS),
        *(("transformer", "positional_embedding_max_pos", [20, value, 2048]) for value in BAD_NUMBERS),
        *(("transformer", "positional_embedding_max_pos", value) for value in (None, 2048, [20, 2048], [1, 2, 3, 4])),
        ("transformer", "timestep_scale_multiplier", 1),
        ("transformer", "num_layers", 0),
        ("transformer", "num_layers", None),
        ("transformer", "num_attention_heads", "32"),
        ("transformer", "attention_head_dim", -64),
        ("transformer", "in_channels", 1.5),
        ("transformer", "caption_channels", None),
        ("vae", "_class_name", "AutoencoderKL"),
        ("vae", "dims", 2),
        ("vae", "norm_layer", "group_norm"),
        ("vae", "patch_size", 1),
        ("vae", "use_quant_conv", True),
        ("vae", "causal_decoder", True),
        ("vae", "latent_channels", 0),
        ("vae", "spatial_padding_mode", "circular"),
    ],
)
def test_a_field_that_the_networks_do_not_implement_is_refused_by_name(part, field, value):
    parse = {"transformer": transformer_config, "vae": vae_config}[part]
    parse(CONFIG[part])
    with pytest.raises(LtxError, match=rf"{part}\.{field}"):
        parse({**CONFIG[part], field: value})


def test_the_positions_of_the_header_are_those_of_the_network():
    """Angles of the first frequency run from -pi/2 to pi/2 over the largest position; the last is theta times that."""
    given = {"positional_embedding_theta": 500, "positional_embedding_max_pos": [10, 1024, 512]}
    config = transformer_config({**CONFIG["transformer"], **given})
    assert (config.theta, config.max_position) == (500.0, (10.0, 1024.0, 512.0))
    coords = np.array([[[0, 10], [0, 1024], [0, 512]]], np.float32)
    rope, width = config.rope, config.width
    sines = rope.rotation(coords, width).sines
    pairs = width % 6 // 2
    np.testing.assert_allclose(sines[:, pairs : pairs + 3], [[-1] * 3, [1] * 3], rtol=1e-6)
    assert rope.frequencies[-1] / rope.frequencies[0] == pytest.approx(500, rel=1e-5)
    assert sines.shape == (2, width // 2)


def test_a_header_without_positions_means_those_of_the_releases():
    fields = ("positional_embedding_theta", "positional_embedding_max_pos")
    bare = {field: value for field, value in CONFIG["transformer"].items() if field not in fields}
    assert transformer_config(bare) == transformer_config(CONFIG["transformer"])


@pytest.mark.parametrize(("base", "fits"), [(128, True), (4, True), (2, False), (6, False), (127, False)])
def test_a_width_that_can_not_be_unfolded_is_refused_by_name(base, fits):
    """The last upsampling block of 0.9.1 has twice the base channels, and unfolds an eighth of them to each pixel."""
    given = {**CONFIG["vae"], "decoder_base_channels": base}
    if fits:
        on_meta(lambda: VaeDecoder(vae_config(given)))
        return
    with pytest.raises(LtxError, match=rf"vae\.decoder_base_channels is {base}, .* not a multiple of 8 - use"):
        vae_config(given)


def opened(version, **changes) -> Opened:
    """Returns the networks of a release as opened from files without headers."""
    encoder = on_meta(lambda: VaeEncoder(encoder_config(header_config(version)["vae"])))
    vae = shapes_of(decoder_of(version).named_parameters()) | shapes_of(encoder.named_parameters())
    return Opened(
        stored_shapes(shapes_of(transformer_of(version).named_parameters())), stored_shapes(vae), {}, **changes
    )


@EVERY_RELEASE
def test_a_file_without_a_header_has_the_sizes_that_its_tensors_tell(version):
    header, expected = effective_header(version, opened(version)), header_config(version)
    assert transformer_config(header["transformer"]) == transformer_config(expected["transformer"])
    assert vae_config(header["vae"]) == vae_config(expected["vae"])
    assert encoder_config(header["vae"]) == encoder_config(expected["vae"])
    assert header["scheduler"] == expected["scheduler"]
    refuse_another_version(version, header)


def test_a_file_without_a_header_is_not_taken_for_the_release_it_is_called():
    header = effective_header(VERSIONS["0.9.0"], opened(VERSIONS["0.9.7-dev"]))
    with pytest.raises(LtxError, match=r"transformer\.num_layers is 48, but 0\.9\.0 has 28 - use the checkpoint's own"):
        refuse_another_version(VERSIONS["0.9.0"], header)


def test_heads_that_a_configuration_names_divide_the_width():
    header = effective_header(VERSIONS["0.9.0"], opened(VERSIONS["0.9.0"], heads=16))
    config = transformer_config(header["transformer"])
    assert (config.heads, config.head_dim) == (16, 128)


def test_what_a_header_says_wins_over_tensors_and_releases():
    said = {"transformer": {"num_layers": 5}, "vae": {"latent_channels": 6}, "scheduler": {"shifting": "SD3"}}
    assert effective_header(VERSIONS["0.9.0"], opened(VERSIONS["0.9.0"], config=said)) == said


@pytest.mark.parametrize("said", [{}, {"_class_name": "RectifiedFlowScheduler", "num_train_timesteps": 1000}], ids=len)
def test_a_header_without_a_schedule_leaves_the_release_its_own(said):
    for version in VERSIONS.values():
        assert schedule_of(version, {"scheduler": said}) == version.schedule
        assert schedule_of(version, header_config(version)) == version.schedule


@pytest.mark.parametrize(
    ("field", "value"),
    [("sampler", "Constant"), ("sampler", []), ("shifting", "SimpleDiffusion"), ("shifting", 3)]
    + [("target_shift_terminal", value) for value in (0, 1.0, "0.1", True, float("nan"))],
)
def test_a_schedule_that_is_not_implemented_is_refused_by_field(field, value):
    with pytest.raises(LtxError, match=rf"checkpoint's scheduler\.{field} is .*, .* - use an official file"):
        schedule_of(VERSIONS["0.9.0"], {"scheduler": {"shifting": "SD3", field: value}})


def test_a_file_without_a_header_that_lacks_what_tells_a_size_is_refused_by_name():
    one = opened(VERSIONS["0.9.0"])
    for part, name in (("transformer", "patchify_proj.weight"), ("vae", "decoder.conv_in.conv.weight")):
        rest = {key: tensor for key, tensor in getattr(one, part).items() if key != name}
        with pytest.raises(LtxError, match=f"{name} is missing, so the network's sizes are unknown - "):
            effective_header(VERSIONS["0.9.0"], replace(one, **{part: rest}))


@pytest.mark.parametrize("kind", ["attn_res_x", "compress_time", "compress_space", "res_z", ""])
def test_a_block_that_no_decoder_has_is_refused_by_name(kind):
    with pytest.raises(LtxError, match=f"block {kind!r}"):
        vae_config({**CONFIG["vae"], "decoder_blocks": [["res_x", 1], [kind, 1]]})


def test_a_decoder_without_blocks_is_refused():
    with pytest.raises(LtxError, match="no decoder_blocks"):
        vae_config({key: value for key, value in CONFIG["vae"].items() if key != "decoder_blocks"})
