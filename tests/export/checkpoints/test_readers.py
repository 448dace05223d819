"""Which reader opens a file, how the GGUF files of all converters identify themselves, what a weights folder lacks."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGUFWriter
from safetensors.torch import load_file, save_file
from samples.layouts import OFFICIAL, bare, gguf_t5_state, write_diffusers
from samples.tiny import Exported

from ltx_export.checkpoints.gguf import open_gguf
from ltx_export.checkpoints.readers import kind_of, open_weights, weights_file
from ltx_export.inspection.inspect import inspect
from ltx_export.networks.header import effective_header, header_config, refuse_another_version
from ltx_export.sources.find import (
    Opened,
    find_sources,
    has_checkpoint,
    has_text_encoder,
    open_sources,
)
from ltx_runtime.errors import LtxError
from ltx_runtime.spec.versions import VERSIONS

V095, BLOB = VERSIONS["0.9.5"], "0f" * 32
OFFICIAL_FILE = Path(V095.checkpoint)
X = {"x": np.zeros((2, 32), np.float32)}


def gguf_file(path: Path, tensors: dict, architecture: str = "ltxv", **texts: object) -> Path:
    """Writes a file with the package gguf, which leaves out empty values."""
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = GGUFWriter(path, architecture)
    for key, value in texts.items():
        writer.add_string(key, value) if isinstance(value, str) else writer.add_array(key, value)
    for name, values in tensors.items():
        writer.add_tensor(name, np.asarray(values, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def safetensors_file(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: torch.from_numpy(values) for name, values in X.items()}, path)
    return path


def refusal(call, *arguments: object, **options: object) -> str:
    with pytest.raises(LtxError) as refused:
        call(*arguments, **options)
    message = str(refused.value)
    assert message.isprintable() and message.count(" - ") == 1
    return message


@pytest.mark.parametrize("name", [BLOB, "t5.sft", "t5.gguf.part"])
def test_a_file_whose_suffix_says_nothing_is_read_as_what_it_begins_as(tmp_path, name):
    for write, kind in ((safetensors_file, ".safetensors"), (lambda path: gguf_file(path, X), ".gguf")):
        path = write(tmp_path / name)
        assert kind_of(path) == kind
        assert {key: one.shape for key, one in open_weights(path).tensors.items()} == {"x": (2, 32)}


@pytest.mark.parametrize(
    "start", [b"", b"GGU", b"PK\x03\x04" + bytes(40), bytes(8), b"{}", b"\x09" + bytes(3) + b"\1" + bytes(3) + b"{"]
)
def test_a_file_that_begins_as_none_is_refused_by_its_name(tmp_path, start):
    (tmp_path / BLOB).write_bytes(start)
    assert f"{BLOB} is not in a supported checkpoint format - give a .safetensors, .gguf, or" in refusal(
        open_weights, tmp_path / BLOB
    )


def test_a_file_that_is_cut_or_gone_is_refused_as_that(tmp_path):
    raw = safetensors_file(tmp_path / BLOB).read_bytes()
    (tmp_path / BLOB).write_bytes(raw[:20])
    assert "is not a complete safetensors file" in refusal(open_weights, tmp_path / BLOB)
    (tmp_path / BLOB).unlink()
    assert "no such file" in refusal(open_weights, tmp_path / BLOB)


@pytest.mark.parametrize("shard", ["diffusion_pytorch_model-00001-of-00002", "model.fp16-00002-of-00002"])
def test_shards_without_their_index_are_told_from_a_folder_without_weights(tmp_path, shard):
    (tmp_path / f"{shard}.safetensors").touch()
    message = refusal(weights_file, tmp_path)
    assert message == f"{tmp_path} holds shards without their index - download the *.safetensors.index*.json too"


def transformer_of(release: Exported) -> dict:
    return {name: values.float() for name, values in bare(load_file(release.sources.checkpoint), OFFICIAL).items()}


def opened(release: Exported, gguf: Path) -> Opened:
    return open_sources(replace(release.sources, checkpoint=gguf, vae=release.sources.checkpoint))


@pytest.mark.parametrize("architecture", ["", "pig"])
def test_the_tensors_of_a_gguf_file_that_says_no_architecture_decide_what_it_is(exported, tmp_path, architecture):
    release = exported("0.9.5")
    text = gguf_t5_state(load_file(release.sources.text_encoder), 2)
    t5 = gguf_file(tmp_path / "t5.gguf", {name: values.float() for name, values in text.items()}, architecture)
    for name in ("x.gguf", BLOB):
        path = gguf_file(tmp_path / name, transformer_of(release), architecture)
        assert open_gguf(path).architecture == architecture
        assert opened(release, path).transformer.keys() == open_sources(release.sources).transformer.keys()
    both = open_sources(replace(release.sources, text_encoder=t5))
    assert both.text_encoder.keys() == open_sources(release.sources).text_encoder.keys()
    assert "t5.gguf holds no transformer (it holds text_encoder)" in refusal(opened, release, t5)


def test_another_architecture_is_refused_whatever_the_file_is_called(exported, tmp_path):
    path = gguf_file(tmp_path / BLOB, transformer_of(exported("0.9.5")), "llama")
    assert f"{BLOB} is a GGUF of architecture 'llama', not ltxv - " in refusal(opened, exported("0.9.5"), path)


def test_the_configuration_in_a_gguf_file_counts_as_that_of_a_safetensors_header(exported, tmp_path):
    release = exported("0.9.5")
    config = header_config(release.version)
    config["transformer"]["positional_embedding_theta"] = 500.0
    path = gguf_file(tmp_path / "x.gguf", transformer_of(release), config=json.dumps(config))
    assert open_weights(path).config == config
    assert effective_header(release.version, opened(release, path))["transformer"] == config["transformer"]
    assert inspect(path).files[0].header["layers"] == release.version.transformer.layers
    config["transformer"] |= {"num_layers": 48, "num_attention_heads": 32, "attention_head_dim": 128}
    gguf_file(path, transformer_of(release), config=json.dumps(config))
    header = effective_header(release.version, opened(release, path))
    assert "transformer.num_layers is 48, but 0.9.5 has 2" in refusal(refuse_another_version, release.version, header)


@pytest.mark.parametrize("config", ["{", '{"vae": 3}'])
def test_a_configuration_that_is_none_matters_only_where_it_would_count(exported, tmp_path, config):
    release = exported("0.9.5")
    text = gguf_t5_state(load_file(release.sources.text_encoder), 2)
    t5 = gguf_file(tmp_path / "t5.gguf", {name: v.float() for name, v in text.items()}, "t5", config=config)
    assert open_sources(replace(release.sources, text_encoder=t5)).config == open_sources(release.sources).config
    assert (inspect(t5).kind, inspect(t5).files[0].header) == ("GGUF T5 text encoder", {})
    path = gguf_file(tmp_path / "x.gguf", transformer_of(release), config=config)
    assert f"{path} has a damaged header" in refusal(opened, release, path)
    assert f"{path} has a damaged header" in refusal(inspect, path)


def test_a_configuration_that_is_no_text_is_another_programs_and_one_without_end_is_refused(tmp_path):
    assert open_gguf(gguf_file(tmp_path / "x.gguf", X, config=["a", "b"])).config == "{}"
    gguf_file(tmp_path / "x.gguf", X, config=" " * 65536)
    assert "the value of config of 65536 bytes" in refusal(open_gguf, tmp_path / "x.gguf")


def test_a_transformer_is_lacking_unless_there_is_one_that_can_be_opened(tmp_path):
    def lacks(*names: str) -> bool:
        return not has_checkpoint(V095, tmp_path / "w")

    folder, fp8 = tmp_path / "w", f"{OFFICIAL_FILE.stem}-fp8.safetensors"
    assert lacks()
    for name in ("my-ltx.gguf", "._ltx.gguf", fp8, "transformer/diffusion_pytorch_model.safetensors"):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        assert lacks()
        gguf_file(path, X) if path.suffix == ".gguf" else safetensors_file(path)
        assert lacks() == name.startswith(".")
        path.unlink()
    (folder / OFFICIAL_FILE).touch()  # exists, so that a download of the hub's file would overwrite it
    assert not lacks()


def test_among_several_transformers_or_variants_none_is_lacking_and_the_export_asks_for_a_choice(tmp_path):
    for file in ("my-ltx-Q4_0.gguf", "my-ltx-Q8_0.gguf"):
        gguf_file(tmp_path / "gguf" / file, X)
    for variant in ("bf16", "fp16"):
        safetensors_file(tmp_path / "layout" / "transformer" / f"diffusion_pytorch_model.{variant}.safetensors")
        safetensors_file(tmp_path / "layout" / "text_encoder" / f"model.{variant}.safetensors")
    assert has_checkpoint(V095, tmp_path / "gguf") and has_checkpoint(V095, tmp_path / "layout")
    assert has_text_encoder(tmp_path / "layout") and not has_text_encoder(tmp_path / "gguf")
    assert refusal(find_sources, V095, tmp_path / "gguf").endswith("Q8_0.gguf - choose one with --weights")


def test_a_vae_that_a_layout_lacks_is_missed_and_a_hidden_one_is_none(exported, tmp_path):
    release = exported("0.9.5")
    layout = write_diffusers(release.version, release.weights, tmp_path / "layout")
    shutil.rmtree(layout / "vae")
    message = refusal(open_sources, find_sources(release.version, layout))
    assert message == f"{layout / 'vae'} is missing - download it too, or name a VAE with --vae"
    sources = replace(release.sources, checkpoint=gguf_file(tmp_path / "x" / "ltx.gguf", transformer_of(release)))
    (tmp_path / "x" / "._vae.safetensors").touch()
    assert "holds no VAE, and there is none beside it - " in refusal(open_sources, sources)
    vae = {name: values for name, values in load_file(release.sources.checkpoint).items() if name.startswith("vae.")}
    save_file(vae, tmp_path / "x" / "vae.safetensors")
    assert open_sources(sources).vae.keys() == open_sources(release.sources).vae.keys()
