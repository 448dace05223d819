"""Encoder and decoder are two networks of one VAE: they share its file and statistics; the encoder may be missing."""

from dataclasses import replace
from pathlib import Path

import pytest
from oracles.torch_networks import NETWORKS
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from samples.layouts import assert_same_outputs, outputs_of
from samples.tiny import Exported, export

from ltx_export.build import ExportOptions
from ltx_export.models.vae import TIMESTEP_SCALE_KEY
from ltx_export.sources.find import Sources
from ltx_runtime.errors import LtxError
from ltx_runtime.folder.reading import open_engines

ENCODER = "vae_encoder"
STATISTICS = ("per_channel_statistics.mean-of-means", "per_channel_statistics.std-of-means")
EVERY_GENERATION = pytest.mark.parametrize("name", ["0.9.0", "0.9.1", "0.9.5"])


def vae_of(release: Exported) -> dict:
    state = load_file(release.sources.checkpoint)
    return {name.removeprefix("vae."): values for name, values in state.items() if name.startswith("vae.")}


def without_encoder(release: Exported, path: Path, *, header: bool) -> Sources:
    """Returns the release's sources with a checkpoint that has no encoder."""
    with safe_open(release.sources.checkpoint, "pt") as file:
        metadata = file.metadata() if header else None
    state = load_file(release.sources.checkpoint)
    save_file({name: state[name] for name in state if not name.startswith("vae.encoder.")}, path, metadata)
    return replace(release.sources, checkpoint=path)


@EVERY_GENERATION
@pytest.mark.parametrize("header", [True, False], ids=["header", "headerless"])
def test_a_vae_that_was_stored_without_its_encoder_is_exported_without_it_and_one_line_says_so(
    exported, tmp_path, name, header
):
    release, lines = exported(name), []
    sources = without_encoder(release, tmp_path / "decoder.safetensors", header=header)
    export(release.version, sources, tmp_path / "out", report=lines.append)
    expected, made = outputs_of(release.folder), outputs_of(tmp_path / "out")
    del expected[ENCODER]
    assert made.keys() == expected.keys()
    assert all((one == other).all() for key in made for one, other in zip(made[key], expected[key], strict=True))
    told = [line for line in lines if line.startswith(ENCODER)]
    assert len(told) == 1
    assert told[0].startswith("vae_encoder: the VAE has no encoder, so ltx-run cannot take images or videos - ")


def test_an_encoder_that_is_left_out_is_not_missed(exported, tmp_path):
    release, lines = exported("0.9.5"), []
    options = ExportOptions(["fp32"], without=[ENCODER])
    manifest = export(release.version, release.sources, tmp_path / "out", report=lines.append, options=options)
    assert list(manifest.components) == [name for name in NETWORKS if name != ENCODER]
    assert not [line for line in lines if ENCODER in line]


@pytest.mark.parametrize("kept", ["encoder.conv_in.conv.bias", "encoder.down_blocks.8.res_blocks.0.conv1.conv.weight"])
def test_what_is_left_of_an_encoder_is_no_encoder_and_refused_by_what_is_missing(exported, tmp_path, kept):
    release = exported("0.9.5")
    sources = without_encoder(release, tmp_path / "decoder.safetensors", header=True)
    with safe_open(sources.checkpoint, "pt") as file:
        metadata = file.metadata()
    save_file({**load_file(sources.checkpoint), f"vae.{kept}": vae_of(release)[kept]}, sources.checkpoint, metadata)
    with pytest.raises(LtxError, match=r"^vae_encoder lacks \d+ tensors \(encoder\.conv_in\.conv\.weight, "):
        export(release.version, sources, tmp_path / "out")


@EVERY_GENERATION
def test_a_rewritten_vae_is_one_file_of_both_networks_with_every_tensor_once(exported, tmp_path, name):
    release = exported(name)
    manifest = export(release.version, release.sources, tmp_path / "out", options=ExportOptions(["fp32"], store="F32"))
    stored, expected = load_file(tmp_path / "out" / "vae.safetensors"), vae_of(release)
    expected.pop(TIMESTEP_SCALE_KEY, None)  # no network takes it
    assert stored.keys() == expected.keys() >= {*STATISTICS}
    assert all((stored[key] == expected[key].float()).all() for key in stored)
    for component in (ENCODER, "vae_decoder"):
        assert manifest.components[component].weights == ("vae.safetensors",)
    assert_same_outputs(tmp_path / "out", release.folder)


def test_what_was_rewritten_without_an_encoder_can_be_exported_again(exported, tmp_path):
    release, lines = exported("0.9.5"), []
    first = tmp_path / "first"
    options = ExportOptions(["fp32"], without=[ENCODER], store="BF16")
    wide = tmp_path / "wide.safetensors"
    with safe_open(release.sources.checkpoint, "pt") as file:
        save_file({k: v.float() for k, v in load_file(release.sources.checkpoint).items()}, wide, file.metadata())
    export(release.version, replace(release.sources, checkpoint=wide), first, options=options)
    assert not [key for key in load_file(first / "vae.safetensors") if key.startswith("encoder.")]
    sources = replace(release.sources, checkpoint=first / "transformer.safetensors", vae=first / "vae.safetensors")
    export(release.version, sources, tmp_path / "second", report=lines.append)
    assert open_engines(tmp_path / "second").manifest.components.keys() == {*NETWORKS} - {ENCODER}
    assert [line for line in lines if line.startswith(ENCODER)]


@pytest.mark.parametrize("link", [False, True], ids=["placed", "linked"])
def test_encoder_and_decoder_in_shards_of_their_own_name_only_their_own(exported, tmp_path, link):
    """The statistics, which both networks use, are in the decoder's shard."""
    release = exported("0.9.1")
    folder = tmp_path / "weights" / "vae"
    folder.mkdir(parents=True)
    vae = vae_of(release)
    shards = {name: f"vae-0000{1 + (not name.startswith('encoder.'))}-of-00002.safetensors" for name in vae}
    for shard in set(shards.values()):
        save_file({name: vae[name] for name in vae if shards[name] == shard}, folder / shard)
    index = '{"weight_map": {' + ", ".join(f'"{name}": "{shard}"' for name, shard in shards.items()) + "}}"
    (folder / "vae.safetensors.index.json").write_text(index)
    sources = replace(release.sources, vae=folder / "vae.safetensors.index.json")
    manifest = export(release.version, sources, tmp_path / "out", options=ExportOptions(["fp32"], link=link))
    files = {name: [Path(one).name for one in manifest.components[name].weights] for name in NETWORKS}
    assert files["vae_decoder"] == ["vae-00002-of-00002.safetensors"]
    assert files[ENCODER] == [f"vae-0000{i}-of-00002.safetensors" for i in (1, 2)]
    assert_same_outputs(tmp_path / "out", release.folder)
