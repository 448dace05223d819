"""Sizes of networks as files state them, in a header or by names and shapes alone, are followed or refused."""

import json
from dataclasses import replace
from functools import cache
from itertools import product

import pytest
from oracles.diffusers_graphs import assert_computes_as_diffusers
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from samples.layouts import diffusers_models, opened_shapes, stored_shapes
from samples.tiny import TEXT, export, sources_of, tiny

from ltx_export.checkpoints.shapes import transformer_part, vae_part
from ltx_export.networks.header import (
    checked_header,
    effective_header,
    fine_tune_notes,
    header_config,
    refuse_another_version,
    transformer_config,
    vae_config,
)
from ltx_export.networks.parts import parts_of, t5_config
from ltx_export.networks.vae_encoder import encoder_config
from ltx_export.random_weights import write_random_weights
from ltx_export.sources.find import Opened, open_sources
from ltx_runtime.errors import LtxError
from ltx_runtime.spec.versions import SIZE_2B, VERSIONS, TransformerSize, VaeSize, Version

EVERY_RELEASE = pytest.mark.parametrize("name", [name for name in VERSIONS if name != "demo"])
RELEASES = [version for version in VERSIONS.values() if version.name != "demo"]
WIDER = TransformerSize(layers=3, heads=4, head_dim=16, text_channels=40, channels=12)
SMALLER_VAE = VaeSize(base_channels=8, latent_channels=12)


@cache
def headerless(version: Version) -> Opened:
    """Returns the networks of a file without a header, which callers must not change."""
    return opened_shapes(header_config(version), version.text_encoder)


def networks_of(header: dict) -> tuple:
    return transformer_config(header["transformer"]), vae_config(header["vae"])


def differing_field(given: Version, meant: Version) -> str | None:
    """Returns the first field of a header in which the networks of two releases differ."""
    if given.transformer != meant.transformer:
        return "transformer.num_layers"
    if given.vae == meant.vae:
        return None
    return "vae.timestep_conditioning" if "A" in (given.vae, meant.vae) else "vae.decoder_blocks"


@EVERY_RELEASE
def test_the_networks_of_a_release_are_known_by_their_names_and_shapes(name):
    version = VERSIONS[name]
    opened = headerless(version)
    assert opened.config == {}
    assert networks_of(effective_header(version, opened)) == networks_of(header_config(version))
    size, text = t5_config(opened.text_encoder), version.text_encoder
    assert (size.layers, size.width, size.heads, size.head_dim) == (text.layers, text.width, text.heads, text.head_dim)


@EVERY_RELEASE
def test_other_sizes_are_read_off_the_shapes(name):
    version = VERSIONS[name]
    other = replace(version, transformer=WIDER, vae_size=SMALLER_VAE, text_encoder=TEXT)
    header = effective_header(replace(version, transformer=replace(SIZE_2B, heads=4)), headerless(other))
    dit, vae = networks_of(header)
    assert (dit.layers, dit.head_dim, dit.channels, dit.text_channels) == (3, 16, 12, 40)
    assert (vae.latent_channels, vae.base_channels) == (12, 8)
    assert vae.blocks == vae_config(header_config(version)["vae"]).blocks
    assert encoder_config(header["vae"]) == encoder_config(header_config(other)["vae"])


def test_how_the_width_is_split_into_heads_is_the_configurations_to_say():
    opened = replace(headerless(VERSIONS["0.9.5"]), heads=16)
    assert effective_header(VERSIONS["0.9.5"], opened)["transformer"]["attention_head_dim"] == 128
    checked = checked_header(VERSIONS["0.9.5"], opened)  # a fine-tune: no release has 16 heads
    told = "transformer.num_attention_heads is 16, where 0.9.5 has 32"
    assert any(told in line for line in fine_tune_notes(VERSIONS["0.9.5"], checked))


@pytest.mark.parametrize("given", RELEASES, ids=lambda version: version.name)
def test_a_release_is_taken_for_another_exactly_if_their_networks_are_the_same(given):
    without = headerless(given)
    for meant, opened in product(RELEASES, (replace(without, config=header_config(given)), without)):
        header, field = effective_header(meant, opened), differing_field(given, meant)
        if field is None:
            refuse_another_version(meant, header)
            continue
        said = f"^the checkpoint's {field} is .*, but {meant.name} has .* - use the checkpoint's own"
        with pytest.raises(LtxError, match=said):
            refuse_another_version(meant, header)


@pytest.mark.parametrize(
    ("given", "meant", "field"),
    [
        ("0.9.0", "0.9.5", "vae.timestep_conditioning"),
        ("0.9.1", "0.9.0", "vae.timestep_conditioning"),
        ("0.9.5", "0.9.1", "vae.decoder_blocks"),
    ],
)
def test_a_file_without_header_of_another_release_is_refused_before_anything_is_written(
    exported, tmp_path, given, meant, field
):
    release = exported(given)
    save_file(load_file(release.sources.checkpoint), tmp_path / "headerless.safetensors")
    sources = replace(release.sources, checkpoint=tmp_path / "headerless.safetensors")
    with pytest.raises(LtxError, match=f"{field} is .*, but {meant} has .* - use the checkpoint's own version name"):
        export(tiny(meant), sources, tmp_path / "engines" / meant)
    assert not (tmp_path / "engines").exists()


def test_the_sizes_and_positions_of_a_header_are_those_of_the_graphs(tmp_path):
    """Compares the graphs with diffusers' models with the same weights, sizes and positions."""
    version = tiny("0.9.6-distilled")
    text = replace(TEXT, width=40, hidden=56)
    sizes = replace(version.transformer, channels=12, text_channels=40)
    other = replace(version, vae_size=VaeSize(8, 12, 1), text_encoder=text, transformer=sizes)
    write_random_weights(other, tmp_path)
    header = header_config(other)
    header["transformer"] |= {"positional_embedding_theta": 500, "positional_embedding_max_pos": [4, 512.0, 300]}
    sources = sources_of(version, tmp_path)
    save_file(load_file(sources.checkpoint), tmp_path / "other.safetensors", {"config": json.dumps(header)})
    export(version, replace(sources, checkpoint=tmp_path / "other.safetensors"), tmp_path / "out")
    models = {name: model.float() for name, model in diffusers_models(other, tmp_path).items()}
    rope = models["transformer"].rope
    rope.theta, (rope.base_num_frames, rope.base_height, rope.base_width) = 500.0, (4, 512, 300)
    assert_computes_as_diffusers(tmp_path / "out", models)


# Fields of published headers, or of the classes they configure, that do not affect the networks.
UNREAD = {
    "transformer": {
        "_diffusers_version": "0.25.1", "_name_or_path": "PixArt-alpha/PixArt-XL-2-256x256", "dropout": 0.0,
        "norm_num_groups": 32, "num_embeds_ada_norm": 1000, "num_vector_embeds": None, "project_to_2d_pos": True,
        "upcast_attention": False, "use_linear_projection": False,
    },
    "vae": {"_diffusers_version": "0.25.1", "encoder_causal": True},
    "scheduler": {"_diffusers_version": "0.25.1", "clip": None},
}  # fmt: skip


@EVERY_RELEASE
def test_fields_that_say_nothing_about_the_networks_are_passed_over(name):
    version = VERSIONS[name]
    header = {part: {**fields, **UNREAD[part]} for part, fields in header_config(version).items()}
    header["allowed_inference_steps"] = [1.0, 0.5]
    effective = effective_header(version, replace(headerless(version), config=header))
    refuse_another_version(version, effective)
    assert networks_of(effective) == networks_of(header_config(version))


# Left out in the published headers of 0.9.0 and 0.9.1, whose loader uses 128 for missing widths.
LEFT_OUT = ("encoder_base_channels", "decoder_base_channels", "normalize_latent_channels")


@pytest.mark.parametrize("name", ["0.9.0", "0.9.1", "0.9.5"])
def test_a_header_that_leaves_the_widths_of_the_vae_out_means_128(tmp_path, name):
    version = replace(tiny(name), vae_size=VaeSize(128, 8, 1))
    write_random_weights(version, tmp_path, sparse=True)
    with safe_open(tmp_path / version.checkpoint, "pt") as file:
        header = json.loads(file.metadata()["config"])
    for field in LEFT_OUT:
        del header["vae"][field]
    for blocks in (header["vae"].get("encoder_blocks", []), header["vae"].get("blocks", [])):
        blocks[:] = [[kind, {} if kind == "compress_all" else given] for kind, given in blocks]
    opened = replace(open_sources(sources_of(version, tmp_path)), config=header)
    parts = parts_of(version, effective_header(version, opened), opened)
    assert [part.component.name for part in parts] == ["text_encoder", "vae_encoder", "transformer", "vae_decoder"]


SHAPES = {
    "patchify_proj.weight": (32, 8), "proj_out.weight": (8, 32), "caption_projection.linear_1.weight": (32, 24),
    "encoder.conv_in.conv.weight": (4, 48, 3, 3, 3), "decoder.conv_in.conv.weight": (32, 8, 3, 3, 3),
    "decoder.conv_out.conv.weight": (48, 4, 3, 3, 3),
}  # fmt: skip


@pytest.mark.parametrize("name", SHAPES)
def test_a_tensor_that_tells_a_size_must_be_there_and_tell_it(name):
    transformer_part(stored_shapes(SHAPES), 2)
    vae_part(stored_shapes(SHAPES))
    detect = vae_part if "coder." in name else lambda tensors: transformer_part(tensors, 2)
    for shape in (None, (), (3,), (0, 8), (4, 0, 3, 3, 3)):
        if (name, shape) == ("encoder.conv_in.conv.weight", None):
            continue  # the encoder has no other tensor here
        changed = {key: value for key, value in {**SHAPES, name: shape}.items() if value is not None}
        with pytest.raises(
            LtxError, match=f"^{name} is (missing|of shape .*), so the .* - give a complete checkpoint$"
        ):
            detect(stored_shapes(changed))


@pytest.mark.parametrize("name", ["decoder.up_blocks.2.conv.conv.weight", "decoder.up_blocks.4.conv1.conv.weight"])
def test_shapes_that_no_block_has_are_refused(name):
    version = tiny("0.9.0")
    whole = headerless(version)
    for shape in ((64, 1, 3, 3, 3), (1, 64, 3, 3, 3)):
        opened = replace(whole, vae=whole.vae | {name: replace(whole.vae[name], shape=shape)})
        with pytest.raises(LtxError, match=f"^{name} has shape .*, which no release has"):
            parts_of(version, effective_header(version, opened), opened)
