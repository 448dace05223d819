"""Weights with scales, in every spelling: stored as torch dequantizes them, or refused by the name of their format."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from samples.quantized_files import INTEGERS, SPELLINGS, codes_of, json_bytes, quantized

from ltx_export.checkpoints.keys import networks_in
from ltx_export.checkpoints.values import float32_of, scale_grid, with_scales
from ltx_export.weights.rewrite import BlockWeight, must_be_rewritten, rewrite
from ltx_runtime.errors import LtxError
from ltx_runtime.weights.checkpoint import open_safetensors

EVERY_SPELLING = pytest.mark.parametrize("spelling", SPELLINGS)
LAYER = "transformer_blocks.0.attn1.to_q."
MARK = {"patchify_proj.weight": torch.zeros(2, 2)}


def network(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {f"{LAYER}weight": (48, 32), "transformer_blocks.1.ff.net.2.weight": (32, 128), f"{LAYER}bias": (48,)}
    return MARK | {
        name: torch.randn(shape, generator=generator).to(torch.bfloat16) / 5 for name, shape in shapes.items()
    }


def written(path: Path, state: dict[str, torch.Tensor], metadata: dict[str, str] | None = None):
    """Returns the transformer in a file of these tensors."""
    save_file(state, path, metadata)
    return networks_in(open_safetensors(path))["transformer"]


def refusal(path: Path, state: dict[str, torch.Tensor], metadata: dict[str, str] | None = None) -> str:
    with pytest.raises(LtxError) as refused:
        written(path, state, metadata)
    assert str(path) in str(refused.value) and " - " in str(refused.value)
    return str(refused.value)


@EVERY_SPELLING
@pytest.mark.parametrize("store", [None, "F32", "F16"])
def test_scaled_fp8_is_stored_as_torch_dequantizes_it(tmp_path, spelling, store):
    given = quantized(network(), SPELLINGS[spelling])
    tensors = written(tmp_path / "x.safetensors", given.state, given.metadata)
    assert set(tensors) == set(network())
    assert must_be_rewritten(tensors, store, ())
    rewrite(tensors, tmp_path / "out.safetensors", store=store)
    stored = load_file(tmp_path / "out.safetensors")
    dtype = {None: torch.bfloat16, "F32": torch.float32, "F16": torch.float16}[store]
    assert len(given.values) == 2
    for name, values in given.values.items():
        assert torch.equal(stored[name], values.to(dtype)), name
    for name in MARK.keys() | {f"{LAYER}bias"}:
        assert torch.equal(stored[name], network()[name].to(dtype if store else network()[name].dtype))


@EVERY_SPELLING
def test_any_rows_of_scaled_fp8_are_read_exactly(tmp_path, spelling):
    given = quantized(network(), SPELLINGS[spelling])
    tensors = written(tmp_path / "x.safetensors", given.state, given.metadata)
    for name, values in given.values.items():
        for start, stop in ((0, len(values)), (0, 1), (15, 17), (31, len(values))):
            np.testing.assert_array_equal(float32_of(tensors[name], start, stop), values[start:stop].numpy())


@pytest.mark.parametrize("spelling", INTEGERS)
def test_integers_with_scales_stay_integers_that_mean_the_same(tmp_path, spelling):
    given = quantized(network(), INTEGERS[spelling])
    tensors = written(tmp_path / "x.safetensors", given.state, given.metadata)
    stored = rewrite(tensors, tmp_path / "out.safetensors")
    for name, values in given.values.items():
        np.testing.assert_array_equal(float32_of(tensors[name]), values.numpy())
        weight = stored[name]
        assert isinstance(weight, BlockWeight)
        codes = weight.codes.mapped().view(np.int8).reshape(values.shape[::-1])
        scales = float32_of(weight.scales).repeat(weight.format.block, axis=0)
        np.testing.assert_array_equal((codes * scales).T, values.numpy())
    as_floats = rewrite(tensors, tmp_path / "floats.safetensors", store="F32")
    for name, values in given.values.items():
        np.testing.assert_array_equal(float32_of(as_floats[name]), values.numpy())


def test_a_matrix_of_integers_that_makes_no_blocks_becomes_floats(tmp_path):
    odd = codes_of(torch.randn(6, 10), torch.int8, "row")
    state = MARK | {f"{LAYER}weight": odd.codes, f"{LAYER}weight_scale": odd.scale}
    stored = rewrite(written(tmp_path / "x.safetensors", state), tmp_path / "out.safetensors")[f"{LAYER}weight"]
    assert stored.dtype == "F32"
    np.testing.assert_array_equal(float32_of(stored), odd.values.numpy())


def test_floats_with_a_scale_are_multiplied_too(tmp_path):
    weight, scale = torch.randn(4, 6).bfloat16(), torch.tensor([3.0])
    state = MARK | {f"{LAYER}weight": weight, f"{LAYER}scale_weight": scale}
    tensors = written(tmp_path / "x.safetensors", state)
    rewrite(tensors, tmp_path / "out.safetensors")
    stored = load_file(tmp_path / "out.safetensors")[f"{LAYER}weight"]
    assert torch.equal(stored, (weight.float() * scale).bfloat16())


OTHERS = {
    "nvfp4": {"weight": torch.zeros(4, 8, dtype=torch.uint8), "weight_scale_2": torch.ones(())},
    "mxfp8": {
        "weight": torch.zeros(4, 32).to(torch.float8_e4m3fn),
        "weight_scale": torch.ones(4, 1, dtype=torch.uint8),
    },
    "bitsandbytes": {"weight": torch.zeros(4, 8, dtype=torch.int8), "SCB": torch.ones(4)},
    "GPTQ, AWQ or SVDQuant": {"qweight": torch.zeros(4, 8, dtype=torch.int32)},
    "torchao with zero points": {
        "_weight_qdata": torch.zeros(4, 8, dtype=torch.int8),
        "_weight_scale": torch.ones(4, 1),
        "_weight_zero_point": torch.ones(4, 1),
    },
    "w4a8": {"weight": torch.zeros(4, 4, dtype=torch.int8), "weight_s_channel": torch.ones(4)},
    "scales of I32": {"weight": torch.zeros(4, 8), "weight_scale": torch.ones(4, 1, dtype=torch.int32)},
    **{
        told: {"weight": torch.zeros(4, 8), "weight_scale": torch.ones(()), "comfy_quant": json_bytes(entry)}
        for told, entry in {
            "svdquant_w4a4": {"format": "svdquant_w4a4"},
            "None": {},
            "int8_tensorwise with convrot": {"format": "int8_tensorwise", "convrot": True, "convrot_groupsize": 16},
        }.items()
    },
}


@pytest.mark.parametrize("kind", OTHERS)
def test_another_format_is_refused_by_its_name(tmp_path, kind):
    state = MARK | {LAYER + ending: values for ending, values in OTHERS[kind].items()}
    told = refusal(tmp_path / "x.safetensors", state)
    assert f"has weights quantized as {kind}, which is not read - give it as bf16" in told


@pytest.mark.parametrize("entry", [{"format": "nvfp4"}, "nvfp4"])
def test_another_format_that_the_header_names_is_refused_by_its_name(tmp_path, entry):
    header = {"_quantization_metadata": json.dumps({"layers": {LAYER: entry}})}
    assert "quantized as nvfp4" in refusal(tmp_path / "x.safetensors", MARK, header)


@pytest.mark.parametrize("header", ["", "[]", "{", "null"])
def test_a_damaged_list_of_formats_is_refused(tmp_path, header):
    told = refusal(tmp_path / "x.safetensors", MARK, {"_quantization_metadata": header})
    assert "_quantization_metadata, which is not a JSON object - download it again" in told


def test_a_scale_without_its_weight_or_of_another_shape_is_refused(tmp_path):
    lone = MARK | {f"{LAYER}scale_weight": torch.ones(())}
    assert f"a scale {LAYER}scale_weight without its weight" in refusal(tmp_path / "x.safetensors", lone)
    for shape in ((3,), (4,), (2, 5), (6, 5), (7, 1), (6, 4, 2), (0,)):
        state = MARK | {f"{LAYER}weight": torch.zeros(6, 4), f"{LAYER}weight_scale": torch.ones(shape)}
        told = refusal(tmp_path / "x.safetensors", state)
        assert f"weight_scale {list(shape)} for {LAYER}weight [6, 4] - give one scale" in told


def test_a_scale_is_for_all_rows_one_row_or_a_block_of_equal_size():
    fitting = {(): (1, 1), (1,): (1, 1), (1, 1): (1, 1), (6,): (6, 1), (6, 1): (6, 1), (3, 1): (3, 1)}
    fitting |= {(3, 2): (3, 2), (1, 4): (1, 4), (6, 4, 1): (6, 4), (6, 2, 1, 1): (6, 2)}
    for scale, grid in fitting.items():
        assert scale_grid(scale, (6, 4)) == grid, scale
        assert scale_grid(scale, (6, 2, 2)) == grid, scale
    assert [scale_grid(scale, ()) for scale in ((), (1,), (2,))] == [(1, 1), (1, 1), None]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_scale_that_is_not_finite_is_refused_when_it_is_read(tmp_path, value):
    state = MARK | {f"{LAYER}weight": torch.zeros(4, 4), f"{LAYER}weight_scale": torch.tensor(value)}
    tensors = written(tmp_path / "x.safetensors", state)
    with pytest.raises(LtxError, match=r"x\.safetensors has a scale that is not finite - "):
        rewrite(tensors, tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()


def test_scales_of_activations_and_marks_are_no_tensors_and_the_rest_is_untouched(tmp_path):
    given = quantized(network(), SPELLINGS["ComfyUI's first"])
    save_file(given.state, tmp_path / "x.safetensors")
    opened = open_safetensors(tmp_path / "x.safetensors")
    tensors = with_scales(opened)
    assert set(tensors) == set(network())
    for name, tensor in tensors.items():
        assert replace(tensor, scale=None) == opened.tensors[name]
