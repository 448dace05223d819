"""Whole differences in LoRA files, of weights, biases, norms and tables: merged as ComfyUI does, scale * diff added."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from oracles.networks import diffusers_dit_key, normal, shapes_of
from safetensors.torch import load_file, save_file
from samples.layouts import OFFICIAL, assert_same_outputs
from samples.quantized_files import SPELLINGS, quantized
from samples.tiny import export

from ltx_export.build import ExportOptions
from ltx_export.checkpoints.keys import networks_in
from ltx_export.inspection.inspect import inspect
from ltx_export.models.dit import DitConfig, Transformer
from ltx_export.weights.rewrite import rewrite
from ltx_runtime.errors import LtxError
from ltx_runtime.weights.checkpoint import open_safetensors
from ltx_runtime.weights.lora import Lora, LoraFile, merge, open_lora

SIZE = DitConfig(layers=2, heads=2, head_dim=8, channels=6, text_channels=10)
EXPECTED = shapes_of(Transformer(SIZE).named_parameters())
TO_Q = "transformer_blocks.0.attn1.to_q"
STYLES = {
    "ComfyUI": ("diffusion_model.", str),
    "ComfyUI, official prefix": ("model.diffusion_model.", str),
    "diffusers": ("transformer.", diffusers_dit_key),
    "kohya": ("lora_unet_", lambda name: name.replace(".", "_")),
    "bare": ("", str),
}


def key_of(name: str, style: str) -> str:
    """Returns the key of a parameter's difference: a bias's is `diff_b` of its module."""
    prefix, spelled = STYLES[style]
    if name.endswith(".bias"):
        return f"{prefix}{spelled(name.removesuffix('.bias'))}.diff_b"
    return f"{prefix}{spelled(name.removesuffix('.weight'))}.diff"


def differences(names=EXPECTED, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    return {name: normal(seed, *EXPECTED[name]).to(dtype) for seed, name in enumerate(names)}


def opened(path: Path, state: dict[str, torch.Tensor], scale: float = 1.0) -> Lora:
    save_file(state, path)
    return open_lora(path, scale, EXPECTED)


def merged(lora: Lora, name: str, before: np.ndarray) -> np.ndarray:
    after = before.copy()
    merge(after, name, [lora])
    return after


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("style", STYLES)
def test_the_difference_of_every_parameter_is_added_with_the_scale(tmp_path, style, dtype):
    given = differences(dtype=dtype)
    lora = opened(tmp_path / "x.safetensors", {key_of(name, style): values for name, values in given.items()}, -0.75)
    assert lora.differences.keys() == EXPECTED.keys() and not lora.pairs
    for name, values in given.items():
        before = normal(1000, *EXPECTED[name]).numpy()
        expected = before + np.float32(-0.75) * values.float().numpy()
        np.testing.assert_array_equal(merged(lora, name, before), expected)
        assert lora.changes(name)


def test_no_alpha_applies_to_a_difference_and_a_scale_of_zero_changes_no_bit(tmp_path):
    down, up = normal(0, 2, 16), normal(1, 16, 2)
    whole = differences([f"{TO_Q}.weight", f"{TO_Q}.bias"])
    state = {f"{TO_Q}.lora_down.weight": down, f"{TO_Q}.lora_up.weight": up, f"{TO_Q}.alpha": torch.tensor(8.0)}
    state |= {f"{TO_Q}.diff": whole[f"{TO_Q}.weight"], f"{TO_Q}.diff_b": whole[f"{TO_Q}.bias"]}
    lora = opened(tmp_path / "x.safetensors", state, 0.5)
    zeros = np.zeros((16, 16), np.float32)
    expected = 0.5 * (whole[f"{TO_Q}.weight"].double() + 8 / 2 * up.double() @ down.double())
    np.testing.assert_allclose(merged(lora, f"{TO_Q}.weight", zeros), expected.numpy(), rtol=1e-5, atol=1e-6)
    negative = np.full((16, 16), -0.0, np.float32)
    nothing = opened(tmp_path / "x.safetensors", state, 0.0)
    assert np.signbit(merged(nothing, f"{TO_Q}.weight", negative)).all()
    assert not lora.changes(f"{TO_Q.replace('0', '1', 1)}.weight")


REFUSED = {
    "shape": (
        {f"{TO_Q}.diff": torch.zeros(16, 8)},
        r"a difference \[16, 8\] for .*to_q\.weight of \[16, 16\]: it was made",
    ),
    "bias": ({f"{TO_Q}.diff_b": torch.zeros(8)}, r"a difference \[8\] for .*to_q\.bias of \[16\]"),
    "dtype": ({f"{TO_Q}.diff": torch.zeros(16, 16).double()}, "as F64 - give a LoRA in F32, F16, BF16"),
    "module": ({"double.blocks.diff": torch.zeros(1)}, r"the transformer lacks modules of .* \(double\.blocks\)"),
    "no bias": ({"scale_shift_table.diff_b": torch.zeros(1)}, r"lacks modules of .* \(scale_shift_table\)"),
    "twice": (
        {f"{TO_Q}.diff": torch.zeros(16, 16), f"transformer.{TO_Q}.diff": torch.zeros(16, 16)},
        r"a difference of .*to_q\.weight twice, the second as",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_difference_that_does_not_fit_is_refused_in_one_sentence(tmp_path, case):
    state, told = REFUSED[case]
    with pytest.raises(LtxError, match=told) as refused:
        opened(tmp_path / "x.safetensors", state)
    assert "x.safetensors" in str(refused.value) and " - give " in str(refused.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_difference_that_is_not_finite_never_reaches_a_weight(tmp_path, value):
    lora = opened(tmp_path / "x.safetensors", {f"{TO_Q}.diff_b": torch.full((16,), value)})
    with pytest.raises(LtxError, match=rf"values for {TO_Q}\.bias that are not finite - "):
        merged(lora, f"{TO_Q}.bias", np.zeros(16, np.float32))


def test_differences_are_merged_into_the_graphs_of_an_export(exported, tmp_path):
    """The graphs are those of a checkpoint to which torch has added the differences."""
    release = exported("0.9.5")
    state = load_file(release.sources.checkpoint)
    names = ("transformer_blocks.1.attn2.to_k.bias", "transformer_blocks.0.ff.net.2.weight", "scale_shift_table")
    changes = {name: normal(seed, *state[OFFICIAL + name].shape) / 10 for seed, name in enumerate(names)}
    lora = {key_of(name, "ComfyUI"): values for name, values in changes.items()}
    save_file(lora, tmp_path / "fox.safetensors")
    metadata = open_safetensors(release.sources.checkpoint).metadata
    for name, values in changes.items():
        weight = state[OFFICIAL + name]
        state[OFFICIAL + name] = (weight.float() + np.float32(0.5) * values).to(weight.dtype)
    save_file(state, tmp_path / "changed.safetensors", metadata)
    changed = replace(release.sources, checkpoint=tmp_path / "changed.safetensors")
    export(release.version, changed, tmp_path / "changed")
    options = ExportOptions(("fp32",), loras=[LoraFile(tmp_path / "fox.safetensors", 0.5)])
    export(release.version, release.sources, tmp_path / "merged", options=options)
    assert_same_outputs(tmp_path / "merged", tmp_path / "changed")


def test_a_lora_is_merged_into_what_scaled_fp8_means(tmp_path):
    name = "transformer_blocks.0.attn1.to_q.weight"
    state = {"patchify_proj.weight": torch.zeros(2, 2), name: normal(0, 16, 16).bfloat16()}
    given = quantized(state, SPELLINGS["ComfyUI's first"])
    save_file(given.state, tmp_path / "x.safetensors")
    tensors = networks_in(open_safetensors(tmp_path / "x.safetensors"))["transformer"]
    save_file({f"{TO_Q}.diff": normal(1, 16, 16)}, tmp_path / "lora.safetensors")
    lora = open_lora(tmp_path / "lora.safetensors", 0.25, {name: (16, 16)})
    rewrite(tensors, tmp_path / "out.safetensors", loras=[lora])
    expected = (given.values[name] + np.float32(0.25) * normal(1, 16, 16)).bfloat16()
    assert torch.equal(load_file(tmp_path / "out.safetensors")[name], expected)


def test_a_file_of_differences_is_inspected_as_a_lora(tmp_path):
    save_file({key_of(name, "ComfyUI"): values for name, values in differences().items()}, tmp_path / "x.safetensors")
    told = inspect(tmp_path / "x.safetensors")
    assert (told.kind, told.files[0].lora["differences"], told.files[0].unknown_names) == ("LoRA", len(EXPECTED), [])
