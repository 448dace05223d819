"""The same weights in every layout of files give the same networks, and graphs with the same output bits.

The other layouts are written by diffusers, transformers and the package gguf.
"""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from oracles.networks import diffusers_dit, diffusers_vae, shapes_of
from safetensors.torch import load_file, save_file
from samples.layouts import (
    OFFICIAL,
    assert_same_outputs,
    bare,
    bits_of,
    diffusers_models,
    diffusers_transformer_state,
    diffusers_vae_state,
    gguf_t5_state,
    opened_shapes,
    stored_shapes,
    write_diffusers,
    write_gguf,
)
from samples.tiny import Exported, export, sources_of
from transformers import T5Config, T5ForConditionalGeneration

from ltx_export.checkpoints.keys import networks_in
from ltx_export.models.vae import TIMESTEP_SCALE_KEY
from ltx_export.networks import parts as networks
from ltx_export.networks.header import effective_header, header_config, transformer_config, vae_config
from ltx_export.networks.vae_encoder import encoder_config
from ltx_export.random_weights import write_random_weights
from ltx_export.sources.find import TEXT_ENCODER_FILE, Sources, find_sources, open_sources
from ltx_runtime.spec.versions import VERSIONS, VaeSize
from ltx_runtime.weights.checkpoint import Checkpoint

# One release of each VAE generation, with both transformer widths.
KINDS = ("0.9.0", "0.9.1", "0.9.8-13b-distilled")
OF_EACH_KIND = pytest.mark.parametrize("name", KINDS)
EVERY_RELEASE = pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] * (name not in KINDS)) for name in VERSIONS if name != "demo"],
)
LAYOUTS = {
    "whole": {},
    "sharded": {"shard_size": "20KB"},
    "variant": {"variant": "bf16"},
    "sharded variant": {"shard_size": "20KB", "variant": "bf16"},
    "sharded, float32 text encoder": {"shard_size": "20KB", "text_dtype": torch.float32},
}
EVERY_LAYOUT = pytest.mark.parametrize("layout", LAYOUTS)


def found(release: Exported, folder: Path, **options) -> Sources:
    return find_sources(release.version, folder, **options)


def assert_exports_the_same(release: Exported, sources: Sources, folder: Path) -> None:
    export(release.version, sources, folder)
    assert_same_outputs(folder, release.folder)


def official_state(release: Exported) -> dict[str, torch.Tensor]:
    return load_file(release.sources.checkpoint)


def with_transformer(release: Exported, folder: Path, prefix: str) -> Path:
    """Writes the release's transformer alone, under official names behind `prefix`."""
    alone = {prefix + name: values for name, values in bare(official_state(release), OFFICIAL).items()}
    save_file(alone, folder / "transformer.safetensors")
    return folder / "transformer.safetensors"


def vae_file(release: Exported, folder: Path) -> Path:
    save_file(bare(official_state(release), "vae."), folder / "vae.safetensors")
    return folder / "vae.safetensors"


@EVERY_RELEASE
def test_every_release_gives_the_same_bits_from_diffusers_as_from_the_official_file(exported, tmp_path, name):
    release = exported(name)
    layout = write_diffusers(release.version, release.weights, tmp_path / "layout")
    assert_exports_the_same(release, found(release, layout), tmp_path / "out")


@OF_EACH_KIND
@pytest.mark.parametrize("layout", ["sharded variant", "sharded, float32 text encoder"])
def test_shards_and_variants_give_the_same_bits_as_the_official_file(exported, tmp_path, name, layout):
    release = exported(name)
    folder = write_diffusers(release.version, release.weights, tmp_path / "layout", **LAYOUTS[layout])
    for part in ("transformer", "vae", "text_encoder"):
        assert len(list((folder / part).glob("*.safetensors"))) > 1
    assert_exports_the_same(release, found(release, folder), tmp_path / "out")


@EVERY_RELEASE
@EVERY_LAYOUT
def test_every_release_opens_as_the_same_networks_in_every_layout(tmp_path, exported, name, layout):
    release = exported(name)
    folder = write_diffusers(release.version, release.weights, tmp_path / "layout", **LAYOUTS[layout])
    expected, opened = open_sources(release.sources), open_sources(found(release, folder))
    mine, theirs = bits_of(opened), bits_of(expected)
    if "text_dtype" in LAYOUTS[layout]:
        assert {dtype for dtype, _, _ in mine["text_encoder"].values()} == {"F32"}
        del mine["text_encoder"], theirs["text_encoder"]
    assert mine == theirs
    header, official = (effective_header(release.version, one) for one in (opened, expected))
    for parse, part in ((transformer_config, "transformer"), (vae_config, "vae"), (encoder_config, "vae")):
        assert parse(header[part]) == parse(official[part])


@pytest.mark.parametrize("name", ["0.9.0", "0.9.1", "0.9.5"])
def test_every_tensor_of_diffusers_vae_gets_the_name_it_has_in_the_official_file(name):
    version = VERSIONS[name]
    shapes = {key: one.shape for key, one in opened_shapes(header_config(version), version.text_encoder).vae.items()}
    if version.vae != "A":
        shapes[TIMESTEP_SCALE_KEY] = ()  # files have it, but the decoder takes no weight from it
    official = {f"vae.{key}": torch.empty(shape, device="meta") for key, shape in shapes.items()}
    theirs = diffusers_vae_state(version.vae, official)
    with torch.device("meta"):
        model = diffusers_vae(version.vae, 128, 128, None)
    assert shapes_of(theirs.items()) == shapes_of(model.state_dict().items())
    assert_names_are_given_back(official, theirs, "vae.")


@pytest.mark.parametrize("name", ["0.9.0", "0.9.7-dev"])
def test_every_tensor_of_diffusers_transformer_gets_the_name_it_has_in_the_official_file(name):
    version = VERSIONS[name]
    opened = opened_shapes(header_config(version), version.text_encoder)
    official = {OFFICIAL + key: torch.empty(one.shape, device="meta") for key, one in opened.transformer.items()}
    theirs = diffusers_transformer_state(official)
    with torch.device("meta"):
        model = diffusers_dit(version.transformer)
    assert shapes_of(theirs.items()) == shapes_of(model.state_dict().items())
    assert_names_are_given_back(official, theirs, OFFICIAL)


def assert_names_are_given_back(official: dict, theirs: dict, prefix: str) -> None:
    """Checks that each of diffusers' tensors is the one with our name for it in the official file."""
    place = {id(values): i for i, values in enumerate(official.values())}
    tensors = {key: replace(one, offset=place[id(theirs[key])]) for key, one in stored_shapes(shapes(theirs)).items()}
    (ours,) = networks_in(Checkpoint(Path("diffusers"), tensors)).values()
    assert len(ours) == len(official)
    assert {prefix + key: one.offset for key, one in ours.items()} == {key: i for i, key in enumerate(official)}


def shapes(state: dict[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    return shapes_of(state.items())


@pytest.mark.parametrize("prefix", ["", "transformer.", "diffusion_model.", OFFICIAL])
@OF_EACH_KIND
def test_a_transformer_alone_may_have_official_names_behind_any_prefix(exported, tmp_path, prefix, name):
    release = exported(name)
    alone = with_transformer(release, tmp_path, prefix)
    sources = replace(release.sources, checkpoint=alone, vae=release.sources.checkpoint)
    assert bits_of(open_sources(sources)) == bits_of(open_sources(release.sources))


def test_a_transformer_and_a_vae_in_files_of_their_own_give_the_same_bits(exported, tmp_path):
    release = exported("0.9.1")
    alone = with_transformer(release, tmp_path, "")
    sources = replace(release.sources, checkpoint=alone, vae=vae_file(release, tmp_path))
    assert_exports_the_same(release, sources, tmp_path / "out")


def test_a_vae_that_leaves_out_its_timestep_scale_has_that_of_every_release(exported, tmp_path):
    release = exported("0.9.1")
    state = load_file(vae_file(release, tmp_path))
    del state[TIMESTEP_SCALE_KEY]
    save_file(state, tmp_path / "converted.safetensors")
    sources = replace(release.sources, vae=tmp_path / "converted.safetensors")
    assert_exports_the_same(release, sources, tmp_path / "out")


def test_a_vae_in_a_folder_of_diffusers_gives_the_same_bits(exported, tmp_path):
    release = exported("0.9.5")
    alone = with_transformer(release, tmp_path, "transformer.")
    diffusers_models(release.version, release.weights)["vae"].save_pretrained(tmp_path / "any name")
    sources = replace(release.sources, checkpoint=alone, vae=tmp_path / "any name")
    assert_exports_the_same(release, sources, tmp_path / "out")


@OF_EACH_KIND
def test_the_vae_that_is_named_is_taken_instead_of_the_one_in_the_checkpoint(exported, tmp_path, name):
    release = exported(name)
    other = {key: 2 * values for key, values in bare(official_state(release), "vae.").items()}
    save_file(other, tmp_path / "other.safetensors")
    opened = open_sources(replace(release.sources, vae=tmp_path / "other.safetensors"))
    expected = bits_of(open_sources(release.sources))
    assert bits_of(opened)["vae"].keys() == expected["vae"].keys()
    assert all(bits != expected["vae"][key] for key, bits in bits_of(opened)["vae"].items())
    assert bits_of(opened)["transformer"] == expected["transformer"]


@pytest.mark.parametrize("main", ["official", "alone", "layout"])
@pytest.mark.parametrize("header", [{"spatial_padding_mode": "reflect"}, None], ids=["header", "headerless"])
def test_what_holds_for_the_vae_is_said_by_the_file_it_is_taken_from(exported, tmp_path, main, header):
    release = exported("0.9.1")
    wider = replace(release.version, vae_size=VaeSize(base_channels=8, latent_channels=8, layers_per_block=1))
    write_random_weights(wider, tmp_path)
    config = header and {"config": json.dumps({"vae": header_config(wider)["vae"] | header})}
    save_file(bare(load_file(tmp_path / wider.checkpoint), "vae."), tmp_path / "wider.safetensors", config)
    sources = replace(release.sources, vae=tmp_path / "wider.safetensors")
    if main == "alone":
        sources = replace(sources, checkpoint=with_transformer(release, tmp_path, ""))
    elif main == "layout":
        sources = replace(sources, checkpoint=write_diffusers(release.version, release.weights, tmp_path / "layout"))
    opened = open_sources(sources)
    said = effective_header(release.version, opened)
    for vae in (vae_config(said["vae"]), encoder_config(said["vae"])):
        assert (vae.base_channels, vae.padding_mode) == (8, "reflect" if header else "zeros")
    assert len(networks.parts_of(release.version, said, opened)) == 4


@pytest.mark.parametrize("place", ["vae", "ltx-video-VAE-bf16.safetensors"])
def test_the_vae_beside_a_transformer_is_found(exported, tmp_path, place):
    release = exported("0.9.1")
    alone = with_transformer(release, tmp_path, "")
    if place == "vae":
        diffusers_models(release.version, release.weights)["vae"].save_pretrained(tmp_path / place)
    else:
        vae_file(release, tmp_path).rename(tmp_path / place)
    opened = open_sources(replace(release.sources, checkpoint=alone))
    assert bits_of(opened) == bits_of(open_sources(release.sources))


@pytest.mark.parametrize("prefix", ["", "vae."])
def test_statistics_of_the_vae_that_nobody_uses_are_passed_over(exported, tmp_path, prefix):
    release = exported("0.9.5")
    alone = with_transformer(release, tmp_path, OFFICIAL)
    unused = ("mean-of-stds", "mean-of-stds_over_std-of-means", "channel")
    state = bare(official_state(release), "vae.") | {f"per_channel_statistics.{name}": torch.ones(8) for name in unused}
    save_file({prefix + name: values for name, values in state.items()}, tmp_path / "vae.safetensors")
    opened = open_sources(replace(release.sources, checkpoint=alone, vae=tmp_path / "vae.safetensors"))
    assert bits_of(opened) == bits_of(open_sources(release.sources))


def test_the_variant_that_is_asked_for_is_taken_in_every_folder(exported, tmp_path):
    release = exported("0.9.1")
    write_random_weights(release.version, tmp_path / "other", seed=1)
    layout = write_diffusers(release.version, tmp_path / "other", tmp_path / "layout")
    write_diffusers(release.version, release.weights, layout, variant="bf16")
    expected = {"bf16": open_sources(release.sources)}
    expected[""] = open_sources(sources_of(release.version, tmp_path / "other"))
    for variant in expected:
        opened = bits_of(open_sources(found(release, layout, variant=variant)))
        assert opened == bits_of(expected[variant])
    assert bits_of(expected[""]) != bits_of(expected["bf16"])


@pytest.mark.parametrize("names", [("shared",), ("encoder.embed_tokens",), ("shared", "encoder.embed_tokens")], ids=str)
def test_a_text_encoder_has_its_embedding_under_either_name_or_both(exported, tmp_path, names):
    release = exported("0.9.5")
    text = load_file(release.sources.text_encoder)
    embedding = text.pop("shared.weight")
    save_file(text | {f"{name}.weight": embedding.clone() for name in names}, tmp_path / "t5.safetensors")
    opened = open_sources(replace(release.sources, text_encoder=tmp_path / "t5.safetensors"))
    assert bits_of(opened) == bits_of(open_sources(release.sources))


@pytest.mark.parametrize("head", [False, True], ids=["shards", "one file with a head of its own"])
def test_of_a_whole_t5_the_encoder_is_exported(exported, tmp_path, head):
    release = exported("0.9.5")
    size = release.version.text_encoder
    config = T5Config(
        vocab_size=size.vocabulary, d_model=size.width, d_kv=size.head_dim, d_ff=size.hidden, num_layers=size.layers,
        num_heads=size.heads, feed_forward_proj="gated-gelu",
    )  # fmt: skip
    whole = T5ForConditionalGeneration(config).to(torch.bfloat16)
    missing, unexpected = whole.load_state_dict(load_file(release.sources.text_encoder), strict=False)
    assert unexpected == [] and any(name.startswith("decoder.") for name in missing)
    whole.save_pretrained(tmp_path / "t5", max_shard_size="20KB")
    path = tmp_path / "t5"
    if head:
        state = {name: values for shard in path.glob("*.safetensors") for name, values in load_file(shard).items()}
        path = tmp_path / "t5.safetensors"
        save_file(state | {"lm_head.weight": state["shared.weight"] * 2}, path)
    assert_exports_the_same(release, replace(release.sources, text_encoder=path), tmp_path / "out")


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_gguf_gives_the_same_bits_as_safetensors_with_the_same_values(exported, tmp_path, dtype):
    release = exported("0.9.8-13b-distilled")
    torch_dtype = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}[dtype]
    alone = {key: one.to(torch_dtype) for key, one in bare(official_state(release), OFFICIAL).items()}
    text = {key: one.to(torch_dtype) for key, one in load_file(release.sources.text_encoder).items()}
    vae = vae_file(release, tmp_path)
    folders = [tmp_path / "safetensors", tmp_path / "gguf"]
    for folder in folders:
        folder.mkdir()
        (folder / "tokenizer.model").write_bytes(release.sources.tokenizer.read_bytes())
    save_file(alone, folders[0] / "transformer.safetensors")
    save_file(text, folders[0] / TEXT_ENCODER_FILE)
    write_gguf(folders[1] / f"ltxv-13b-0.9.8-distilled-{dtype}.gguf", "ltxv", alone, dtype)
    t5 = gguf_t5_state(text, release.version.text_encoder.layers)
    write_gguf(folders[1] / f"t5-v1_1-xxl-encoder-{dtype}.gguf", "t5encoder", t5, dtype)
    exports = [tmp_path / f"{folder.name} out" for folder in folders]
    export(release.version, found(release, folders[0] / "transformer.safetensors", vae=vae), exports[0])
    export(release.version, found(release, folders[1], vae=vae), exports[1])
    assert_same_outputs(*exports)
    if dtype == "BF16":  # the dtype of the release itself
        assert_same_outputs(exports[1], release.folder)
