"""The encoder of a header: a release's gives the released network, and what no release has is refused by name."""

from dataclasses import replace

import pytest
import torch
from oracles.networks import diffusers_vae, diffusers_vae_key, shapes_of
from samples.layouts import stored_shapes
from samples.tiny import tiny

from ltx_export.checkpoints.shapes import has_encoder, vae_part
from ltx_export.models.network import build_empty
from ltx_export.models.vae_encoder import COMPRESSED, EncoderBlock, VaeEncoder
from ltx_export.networks.header import header_config
from ltx_export.networks.vae_encoder import encoder_config
from ltx_runtime.errors import LtxError
from ltx_runtime.spec.versions import VERSIONS, VaeSize

RELEASES = [version for version in VERSIONS.values() if version.repository]
EVERY_RELEASE = pytest.mark.parametrize("version", RELEASES, ids=lambda version: version.name)
STATISTICS = 2 * 128  # published counts leave them out
PARAMETERS = {"A": 180_404_353, "B": 180_404_353, "C": 694_098_881}
# encoder.down_blocks: (channels in, kind, layers)
WALK_A = [(128, "res_x", 4), (128, "compress_all", 1), (128, "res_x_y", 1), (256, "res_x", 3),
          (256, "compress_all", 1), (256, "res_x_y", 1), (512, "res_x", 3), (512, "compress_all", 1),
          (512, "res_x", 3), (512, "res_x", 4)]  # fmt: skip
WALK_C = [(128, "res_x", 4), (128, "compress_space_res", 1), (256, "res_x", 6), (256, "compress_time_res", 1),
          (512, "res_x", 6), (512, "compress_all_res", 1), (1024, "res_x", 2), (1024, "compress_all_res", 1),
          (2048, "res_x", 2)]  # fmt: skip
WALKS = {"A": (WALK_A, 512), "B": (WALK_A, 512), "C": (WALK_C, 2048)}
CONFIG = header_config(VERSIONS["0.9.5"])["vae"]
DECODER = {"decoder.conv_in.conv.weight": (32, 8, 3, 3, 3), "decoder.conv_out.conv.weight": (48, 4, 3, 3, 3)}
FOLDING = [["compress_space_res", {"multiplier": 2}], ["compress_time_res", {"multiplier": 2}]]
FOLDING += [["compress_all_res", {"multiplier": 2}]] * 2


def encoder_of(version) -> torch.nn.Module:
    return build_empty(lambda: VaeEncoder(encoder_config(header_config(version)["vae"])), torch.float32)


def shapes(module: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return shapes_of(module.named_parameters())


@EVERY_RELEASE
def test_the_encoder_of_a_release_has_the_published_size_and_walk(version):
    module = encoder_of(version)
    assert sum(one.numel() for one in module.encoder.parameters()) == PARAMETERS[version.vae]
    assert sum(one.numel() for one in module.parameters()) == PARAMETERS[version.vae] + STATISTICS
    config = encoder_config(header_config(version)["vae"])
    channels, walk = config.base_channels, []
    for block in config.blocks:
        walk.append((channels, block.kind, block.layers))
        channels *= block.multiplier
    assert (walk, channels) == WALKS[version.vae]
    assert config.padding_mode == "zeros"


@pytest.mark.parametrize("name", ["0.9.0", "0.9.1", "0.9.5"])
def test_an_encoder_of_full_size_has_the_names_and_shapes_of_diffusers(name):
    generation = VERSIONS[name].vae
    with torch.device("meta"):
        theirs = shapes_of(diffusers_vae(generation, 128, 128, None).state_dict().items())
    assert {diffusers_vae_key(key, generation): shape for key, shape in shapes(encoder_of(VERSIONS[name])).items()} == {
        key: shape for key, shape in theirs.items() if not key.startswith("decoder.")
    }


@EVERY_RELEASE
@pytest.mark.parametrize("size", [VaeSize(128, 128, None), VaeSize(8, 12, 2)], ids=str)
def test_an_encoder_is_known_by_the_names_and_shapes_of_its_tensors(version, size):
    version = replace(version, vae_size=size)
    config = header_config(version)["vae"]
    decoder = {"decoder.conv_in.conv.weight": (32, size.latent_channels, 3, 3, 3)}
    decoder |= {"decoder.conv_out.conv.weight": (48, size.base_channels, 3, 3, 3)}
    tensors = stored_shapes(shapes(encoder_of(version)) | decoder)
    assert has_encoder(tensors)
    assert encoder_config({**config, **vae_part(tensors)}) == encoder_config(config)
    assert not has_encoder(stored_shapes(decoder))
    assert not {"encoder_blocks", "encoder_base_channels"} & vae_part(stored_shapes(decoder)).keys()


@pytest.mark.parametrize(
    ("release", "name", "shape"),
    [
        ("0.9.0", "encoder.down_blocks.2.conv1.conv.weight", (9, 4, 3, 3, 3)),
        ("0.9.5", "encoder.down_blocks.1.conv.conv.weight", (3, 4, 3, 3, 3)),
        ("0.9.5", "encoder.down_blocks.3.conv.conv.weight", (8, 4, 3, 3, 3)),
    ],
)
def test_shapes_that_no_block_has_are_refused_by_their_tensor(release, name, shape):
    tensors = stored_shapes({**shapes(encoder_of(tiny(release))), name: shape})
    with pytest.raises(LtxError, match=rf"^{name} has shape .*, which no release has - give a complete checkpoint$"):
        vae_part({**stored_shapes(DECODER), **tensors})


@pytest.mark.parametrize(
    ("release", "name"),
    [
        ("0.9.0", "encoder.conv_in.conv.weight"),
        ("0.9.0", "encoder.down_blocks.1.conv.weight"),
        ("0.9.0", "encoder.down_blocks.2.conv1.conv.weight"),
        ("0.9.5", "encoder.down_blocks.1.conv.conv.weight"),
    ],
)
@pytest.mark.parametrize("shape", [None, (), (4,), (0, 4, 3, 3, 3)], ids=str)
def test_a_tensor_that_tells_a_size_must_be_there_and_tell_it(release, name, shape):
    changed = {**DECODER, **shapes(encoder_of(tiny(release))), name: shape}
    tensors = stored_shapes({key: value for key, value in changed.items() if value is not None})
    with pytest.raises(LtxError, match=rf"^{name} is (missing|of shape .*), so the network's sizes are unknown - "):
        vae_part(tensors)


def test_block_parameters_may_be_a_number_or_a_table():
    def blocks(*given) -> tuple[EncoderBlock, ...]:
        return encoder_config({**CONFIG, "encoder_blocks": [*given, *FOLDING]}).blocks[: len(given)]

    assert blocks(["res_x", 4]) == blocks(["res_x", {"num_layers": 4}]) == (EncoderBlock("res_x", 4),)
    assert blocks(["res_x_y", 1]) == blocks(["res_x_y", {}]) == (EncoderBlock("res_x_y", 1, 2),)
    assert blocks(["res_x_y", {"multiplier": 3}]) == (EncoderBlock("res_x_y", 1, 3),)
    strided = encoder_config({**CONFIG, "encoder_blocks": [["compress_all", 1], ["compress_all", {}], FOLDING[2]]})
    assert strided.blocks[0] == strided.blocks[1] == EncoderBlock("compress_all")
    assert strided.blocks[2] == EncoderBlock("compress_all_res", 1, 2)
    folding = [["compress_all_res", 1], *FOLDING[:2], ["compress_all_res", {}]]
    assert {one.multiplier for one in encoder_config({**CONFIG, "encoder_blocks": folding}).blocks} == {2}


def test_one_list_of_blocks_serves_an_encoder_that_has_no_list_of_its_own():
    header = header_config(VERSIONS["0.9.0"])["vae"]
    assert "encoder_blocks" not in header
    own = {**header, "encoder_blocks": header["blocks"], "blocks": [["res_x", 1]]}
    assert encoder_config(own) == encoder_config(header)


@pytest.mark.parametrize("mode", ["zeros", "replicate", "reflect"])
def test_the_padding_of_the_header_is_that_of_every_convolution(mode):
    for name in ("0.9.0", "0.9.5"):
        config = encoder_config({**header_config(VERSIONS[name])["vae"], "spatial_padding_mode": mode})
        module = build_empty(lambda config=config: VaeEncoder(config), torch.float32)
        convolutions = [one for one in module.modules() if isinstance(one, torch.nn.Conv3d)]
        assert {one.padding_mode for one in convolutions if one.kernel_size == (3, 3, 3)} == {mode}


@pytest.mark.parametrize(
    "field", ["latent_channels", "encoder_base_channels", "spatial_padding_mode", "encoder_blocks"]
)
@pytest.mark.parametrize("value", [0, -1, 1.5, "three", None, 1 << 40, True], ids=str)
def test_a_field_that_makes_no_sense_is_refused_by_its_name(field, value):
    with pytest.raises(LtxError, match=rf"vae(\.| configuration has no ){field}.* - use an official file$"):
        encoder_config({**CONFIG, field: value})


@pytest.mark.parametrize(
    ("block", "named"),
    [
        (["attn_res_x", 1], "block 'attn_res_x' that is not supported"),
        (["compress_time", 1], "block 'compress_time' that is not supported"),
        (["compress_all_x_y", {"multiplier": 2}], "block 'compress_all_x_y with multiplier' that is not supported"),
        (["", 1], "block '' that is not supported"),
        (["res_x", {"num_layers": 1, "inject_noise": True}], "block 'res_x with inject_noise' that"),
        (["res_x", {"num_layers": 1, "multiplier": 2}], "block 'res_x with multiplier' that"),
        (["compress_all", {"multiplier": 2}], "block 'compress_all with multiplier' that"),
        (["res_x", {}], "block res_x has num_layers None, not an integer from 1 to"),
        *(
            (["res_x", value], f"block res_x has num_layers {value!r}, not an integer from 1 to")
            for value in (0, -1, True, 10**9)
        ),
        *(
            (["res_x_y", {"multiplier": value}], f"block res_x_y has multiplier {value!r}, not an integer from 1 to")
            for value in (0, "2", 2.0, None, True)
        ),
        (["res_x_y", {"multiplier": 60_000}], "vae.encoder_blocks need 7680000 channels, more than 65536"),
        *((bad, "vae.encoder_blocks are not a list of") for bad in ("x", [], 7, None, ["res_x", None])),
        (["res_x", "ab"], "vae.encoder_blocks are not a list of"),
        ([["res_x"], 1], r"vae.encoder_blocks are not a list|block \['res_x'\] that is not supported"),
    ],
    ids=str,
)
def test_a_block_that_no_encoder_has_is_refused_by_name(block, named):
    with pytest.raises(LtxError, match=f"{named}.* - use an official file$"):
        encoder_config({**CONFIG, "encoder_blocks": [block, *FOLDING]})


@pytest.mark.parametrize(
    ("blocks", "halvings"),
    [
        ([["res_x", 1]], [0, 0, 0]),
        (FOLDING[:3], [2, 2, 2]),
        ([*FOLDING, FOLDING[0]], [3, 4, 4]),
        ([*FOLDING, FOLDING[1]], [4, 3, 3]),
        ([["compress_all", {}]] * 100_000, [100_000] * 3),
    ],
    ids=lambda given: str(given)[:40],
)
def test_blocks_that_compress_by_other_factors_than_the_decoder_expands_are_refused(blocks, halvings):
    assert {factor for factors in COMPRESSED.values() for factor in factors} == {1, 2}
    with pytest.raises(LtxError) as refused:
        encoder_config({**CONFIG, "encoder_blocks": blocks})
    assert f"halve (frames, rows, columns) {halvings} times, but only [3, 3, 3]" in str(refused.value)


@pytest.mark.parametrize(("base", "fits"), [(128, True), (2, True), (1, False), (3, False), (127, False)])
def test_a_width_that_can_not_be_folded_to_is_refused_by_name(base, fits):
    """The first downsampling block of 0.9.5 folds four pixels to twice the base channels."""
    given = {**CONFIG, "encoder_base_channels": base}
    if fits:
        build_empty(lambda: VaeEncoder(encoder_config(given)), torch.float32)
        return
    with pytest.raises(LtxError, match=rf"vae\.encoder_base_channels is {base}, so a compress_space_res block has"):
        encoder_config(given)


def test_channels_that_can_not_be_averaged_are_refused():
    blocks = [["compress_space_res", {"multiplier": 3}], *FOLDING[1:]]
    with pytest.raises(LtxError, match=r"a compress_space_res block has 128 input and 384 output channels, .* - use"):
        encoder_config({**CONFIG, "encoder_blocks": blocks})


def test_widths_that_a_header_leaves_out_are_128():
    bare = {field: value for field, value in CONFIG.items() if field != "encoder_base_channels"}
    assert encoder_config(bare).base_channels == 128
