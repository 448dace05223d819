"""Checkpoints as ComfyUI, trainers and mergers write them: their graphs give the bits of the plain files' graphs."""

from dataclasses import replace
from pathlib import Path

import onnx
import pytest
import torch
from oracles.networks import distance
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from samples.layouts import OFFICIAL, State, assert_same_outputs, bare, bits_of, outputs_of
from samples.quantized_files import INTEGERS, SPELLINGS, Quantized, quantized
from samples.tiny import Exported, export, traced_once

from ltx_export import build
from ltx_export.checkpoints.keys import averages_in, networks_in
from ltx_export.inspection.inspect import inspect
from ltx_export.sources.find import Sources, find_sources, open_sources
from ltx_runtime.errors import LtxError
from ltx_runtime.folder.reading import open_engines
from ltx_runtime.weights.checkpoint import open_safetensors

RELEASE = "0.9.5"
# What precedes the names of T5 in all-in-one files of ComfyUI, stable-diffusion.cpp and others.
T5_PREFIXES = (
    "text_encoders.t5xxl.transformer.",
    "text_encoders.t5xxl.",
    "text_encoders.",
    "text_encoder.",
    "cond_stage_model.transformer.",
    "cond_stage_model.",
    "conditioner.embedders.0.transformer.",
    "te.",
    "t5xxl.transformer.",
)
VAE_PREFIXES = ("vae.", "first_stage_model.", "model.vae.")
WRAPPERS = (
    *("module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "model.", "net.", "ema.", "ema_model."),
    *("state_dict.", "state_dict.module.", "transformer.module.", "_fsdp_wrapped_module.", "unet.", "a.b.c."),
)


def states_of(release: Exported) -> tuple[State, State, dict[str, str]]:
    """Returns an official file's tensors, its T5's, and its metadata."""
    with safe_open(release.sources.checkpoint, "pt") as file:
        return load_file(release.sources.checkpoint), load_file(release.sources.text_encoder), file.metadata()


def exported_from(release: Exported, sources: Sources, folder: Path) -> Path:
    export(release.version, sources, folder)
    return folder


def plain(network: Quantized, state: State, prefix: str = "") -> State:
    """Returns a network whose matrices are what the quantized ones mean, in bf16."""
    return state | {prefix + name: values.bfloat16() for name, values in network.values.items()}


@pytest.mark.parametrize(
    "spelling", ["ComfyUI's first", "ComfyUI's second, e5m2", "ComfyUI's second, in the header", "transformers"]
)
def test_scaled_fp8_of_transformer_and_t5_gives_the_graphs_of_its_plain_values(exported, tmp_path, spelling):
    release = exported(RELEASE)
    state, text, metadata = states_of(release)
    transformer = quantized(bare(state, OFFICIAL), SPELLINGS[spelling])
    rest = {name: values for name, values in state.items() if not name.startswith(OFFICIAL)}
    t5 = quantized(text, SPELLINGS[spelling])
    folders = []
    for name, dit, encoder in (
        ("scaled", transformer.state, t5.state),
        ("plain", plain(transformer, bare(state, OFFICIAL)), plain(t5, text)),
    ):
        (tmp_path / name).mkdir()
        whole = rest | {OFFICIAL + key: values for key, values in dit.items()}
        formats = transformer.metadata if name == "scaled" else {}
        save_file(whole, tmp_path / name / "checkpoint.safetensors", metadata | formats)
        save_file(encoder, tmp_path / name / "t5xxl.safetensors", t5.metadata if name == "scaled" else {})
        sources = replace(
            release.sources,
            checkpoint=tmp_path / name / "checkpoint.safetensors",
            text_encoder=tmp_path / name / "t5xxl.safetensors",
        )
        folders.append(exported_from(release, sources, tmp_path / "engines" / name))
    assert_same_outputs(*folders)
    assert transformer.values and t5.values


def test_int8_of_transformer_and_t5_stays_integers_whose_graphs_compute_what_the_plain_values_do(exported, tmp_path):
    release = exported("0.9.6-distilled")
    state, text, metadata = states_of(release)
    outputs, spelling = [], INTEGERS["ComfyUI"]
    transformer, t5 = quantized(bare(state, OFFICIAL), spelling), quantized(text, spelling)
    for name, dit, encoder in (
        ("integers", transformer.state, t5.state),
        ("plain", bare(state, OFFICIAL) | transformer.values, text | t5.values),
    ):
        rest = {key: values for key, values in state.items() if not key.startswith(OFFICIAL)}
        whole = rest | {OFFICIAL + key: values for key, values in dit.items()}
        save_file(whole, tmp_path / f"{name}.safetensors", metadata)
        save_file(encoder, tmp_path / f"{name}-t5.safetensors")
        sources = replace(
            release.sources,
            checkpoint=tmp_path / f"{name}.safetensors",
            text_encoder=tmp_path / f"{name}-t5.safetensors",
        )
        outputs.append(outputs_of(exported_from(release, sources, tmp_path / name)))
    for component in ("text_encoder", "transformer"):
        for actual, expected in zip(outputs[0][component], outputs[1][component], strict=True):
            assert distance(actual, expected) <= 1e-5, component
    graph = onnx.load(tmp_path / "integers" / "transformer.fp32.onnx", load_external_data=False)
    dequantized = {node.input[0] for node in graph.graph.node if node.op_type == "DequantizeLinear"}
    assert dequantized == transformer.values.keys()


def all_in_one(release: Exported, path: Path, t5: str, vae: str = "vae.", dit: str = OFFICIAL) -> Path:
    """Writes transformer, VAE and T5 into one file, each behind its prefix, with what ComfyUI adds."""
    state, text, metadata = states_of(release)
    whole = {dit + name: values for name, values in bare(state, OFFICIAL).items()}
    whole |= {vae + name: values for name, values in bare(state, "vae.").items()}
    whole |= {t5 + name: values for name, values in text.items()} | {"text_encoders.t5xxl.logit_scale": torch.ones(())}
    save_file(whole, path, metadata)
    return path


@pytest.mark.parametrize("prefix", T5_PREFIXES)
@pytest.mark.parametrize("dit", [OFFICIAL, "transformer.", ""])
def test_the_t5_in_an_all_in_one_file_is_found_behind_any_prefix(exported, tmp_path, prefix, dit):
    release = exported(RELEASE)
    path = all_in_one(release, tmp_path / "all.safetensors", prefix, dit=dit)
    sources = find_sources(release.version, path, tokenizer=release.sources.tokenizer)
    assert sources.text_encoder == path
    assert bits_of(open_sources(sources)) == bits_of(open_sources(release.sources))


@pytest.mark.parametrize("prefix", VAE_PREFIXES)
def test_the_vae_in_an_all_in_one_file_is_found_behind_any_prefix(exported, tmp_path, prefix):
    release = exported("0.9.1")
    path = all_in_one(release, tmp_path / "all.safetensors", T5_PREFIXES[0], prefix)
    sources = find_sources(release.version, path, tokenizer=release.sources.tokenizer)
    assert bits_of(open_sources(sources)) == bits_of(open_sources(release.sources))


@pytest.mark.parametrize("link", [False, True])
def test_an_all_in_one_file_exports_the_same_graphs_from_one_copy_of_it(exported, tmp_path, monkeypatch, link):
    release = exported(RELEASE)
    path = all_in_one(release, tmp_path / "all.safetensors", T5_PREFIXES[0])
    sources = find_sources(release.version, path, tokenizer=release.sources.tokenizer)
    monkeypatch.setattr(build, "onnx_from_torch", traced_once)
    options = build.ExportOptions(("fp32",), link=link)
    manifest = build.export_version(release.version, sources, tmp_path / "out", options, lambda line: None)
    assert_same_outputs(tmp_path / "out", release.folder)
    weights = {name for entry in manifest.components.values() for name in entry.weights}
    assert len(weights) == 1
    open_engines(tmp_path / "out")


def test_an_all_in_one_file_is_inspected_as_one_that_lacks_its_tokenizer_alone(exported, tmp_path):
    path = all_in_one(exported(RELEASE), tmp_path / "all.safetensors", T5_PREFIXES[0])
    told = inspect(path)
    assert (told.kind, told.files[0].unknown_names) == ("all-in-one file", [])
    assert {network["name"] for network in told.files[0].networks} == {"transformer", "vae", "text_encoder"}
    (missing,) = told.missing
    assert missing.startswith("a tokenizer: ")


def test_another_t5_than_the_one_in_the_file_is_taken_if_it_is_named(exported, tmp_path):
    release = exported(RELEASE)
    path = all_in_one(release, tmp_path / "all.safetensors", T5_PREFIXES[0])
    named = find_sources(release.version, path, t5=release.sources.text_encoder, tokenizer=release.sources.tokenizer)
    assert named.text_encoder == release.sources.text_encoder


def test_scaled_fp8_in_an_all_in_one_file_is_read_behind_its_prefixes(exported, tmp_path):
    release = exported(RELEASE)
    state, text, metadata = states_of(release)
    first = SPELLINGS["ComfyUI's first"]
    transformer, t5 = quantized(bare(state, OFFICIAL), first), quantized(text, first)
    whole = {name: values for name, values in state.items() if not name.startswith(OFFICIAL)}
    whole |= {OFFICIAL + name: values for name, values in transformer.state.items()}
    whole |= {T5_PREFIXES[0] + name: values for name, values in t5.state.items()}
    save_file(whole, tmp_path / "all.safetensors", metadata)
    networks = networks_in(open_safetensors(tmp_path / "all.safetensors"))
    for part, expected, plain_state in (
        ("transformer", transformer, bare(state, OFFICIAL)),
        ("text_encoder", t5, text),
    ):
        assert networks[part].keys() == plain_state.keys()
        assert {name for name, tensor in networks[part].items() if tensor.scale} == expected.values.keys()


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_what_a_trainer_puts_before_every_name_of_a_network_does_not_matter(exported, tmp_path, wrapper):
    release = exported(RELEASE)
    state, text, metadata = states_of(release)
    alone = {wrapper + name: values for name, values in bare(state, OFFICIAL).items()}
    save_file(alone, tmp_path / "transformer.safetensors", metadata)
    save_file({wrapper + name: values for name, values in text.items()}, tmp_path / "t5.safetensors")
    vae = {wrapper + name: values for name, values in bare(state, "vae.").items()}
    save_file(vae, tmp_path / "vae.safetensors")
    sources = replace(
        release.sources,
        checkpoint=tmp_path / "transformer.safetensors",
        text_encoder=tmp_path / "t5.safetensors",
        vae=tmp_path / "vae.safetensors",
    )
    assert bits_of(open_sources(sources)) == bits_of(open_sources(release.sources))


@pytest.mark.parametrize("wrapper", ["module.", "_orig_mod.", "state_dict."])
def test_what_a_trainer_puts_before_all_networks_does_not_matter(exported, tmp_path, wrapper):
    release = exported(RELEASE)
    state, _, metadata = states_of(release)
    save_file({wrapper + name: values for name, values in state.items()}, tmp_path / "x.safetensors", metadata)
    sources = replace(release.sources, checkpoint=tmp_path / "x.safetensors")
    assert bits_of(open_sources(sources)) == bits_of(open_sources(release.sources))


def test_wrappers_inside_names_are_taken_out(exported, tmp_path):
    release = exported(RELEASE)
    state, _, metadata = states_of(release)
    wrapped = {}
    for name, values in state.items():
        first, dot, rest = name.partition("transformer_blocks.0.")
        wrapped[f"{first}{dot}{'_checkpoint_wrapped_module._orig_mod.' if dot else ''}{rest}"] = values
    assert wrapped.keys() != state.keys()
    save_file(wrapped, tmp_path / "x.safetensors", metadata)
    sources = replace(release.sources, checkpoint=tmp_path / "x.safetensors")
    assert bits_of(open_sources(sources)) == bits_of(open_sources(release.sources))


@pytest.mark.parametrize(
    ("plain_prefix", "average"),
    [(OFFICIAL, "ema."), ("", "ema."), ("model.", "model_ema."), ("module.", "ema_model.module."), (OFFICIAL, None)],
)
def test_a_moving_average_beside_the_weights_is_told_and_not_used(exported, tmp_path, plain_prefix, average):
    release = exported(RELEASE)
    state, _, metadata = states_of(release)
    dit = bare(state, OFFICIAL)
    rest = {name: values for name, values in state.items() if not name.startswith(OFFICIAL)}
    # Where None, as the trainers of latent diffusion name the average: without dots.
    averages = {f"{average}{name}" if average else f"model_ema.{name.replace('.', '')}": 2 * dit[name] for name in dit}
    averages |= {"model_ema.decay": torch.ones(()), "model_ema.num_updates": torch.ones((), dtype=torch.int32)}
    whole = rest | {plain_prefix + name: values for name, values in dit.items()} | averages
    save_file(whole, tmp_path / "x.safetensors", metadata)
    sources = replace(release.sources, checkpoint=tmp_path / "x.safetensors")
    opened = open_sources(sources)
    assert bits_of(opened) == bits_of(open_sources(release.sources))
    assert sorted(averages_in(open_safetensors(tmp_path / "x.safetensors"))) == sorted(averages)
    (note,) = opened.notes
    assert note.startswith(f"{tmp_path / 'x.safetensors'}: moving averages beside the weights are not used (")
    told: list[str] = []
    export(release.version, sources, tmp_path / "out", report=told.append)
    assert note in told


@pytest.mark.parametrize("prefixes", [("model.", "net."), ("", "old."), (OFFICIAL, "transformer.")])
def test_a_network_that_is_there_twice_is_refused_with_both_places(exported, tmp_path, prefixes):
    release = exported(RELEASE)
    state, _, metadata = states_of(release)
    twice = {prefix + name: values.clone() for prefix in prefixes for name, values in bare(state, OFFICIAL).items()}
    save_file(twice, tmp_path / "x.safetensors", metadata)
    with pytest.raises(LtxError) as refused:
        open_sources(replace(release.sources, checkpoint=tmp_path / "x.safetensors"))
    first, second = (repr(prefix) if prefix else "no prefix" for prefix in prefixes)
    assert f"holds a transformer under {first} and {second} - give a file with one of them" in str(refused.value)
