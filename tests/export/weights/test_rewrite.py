"""Rewritten weights against torch and gguf: dtypes, quantization blocks, merged LoRAs, and memory."""

import math
import tracemalloc
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from oracles.networks import distance, normal
from safetensors.torch import load_file, save_file
from samples.gguf_files import QUANTIZED, random_blocks
from torch import Tensor

from ltx_export.checkpoints.blocks import BLOCK_FORMATS
from ltx_export.weights.rewrite import BlockWeight, must_be_rewritten, rewrite
from ltx_runtime.weights.checkpoint import StoredTensor, open_safetensors
from ltx_runtime.weights.lora import Lora, open_lora

TORCH = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F8_E4M3": torch.float8_e4m3fn}
NAMES = {dtype: name for name, dtype in TORCH.items()}
SHAPES = {"a.weight": (48, 32), "b.weight": (3, 4, 2, 5, 1), "c.bias": (7,), "d": ()}
FILE = "rewritten.safetensors"
EVERY_TYPE = pytest.mark.parametrize("dtype", QUANTIZED)


def drawn(dtype: str) -> dict[str, Tensor]:
    return {name: normal(seed, *shape).to(TORCH[dtype]) for seed, (name, shape) in enumerate(SHAPES.items())}


def given(folder: Path, tensors: dict[str, Tensor]) -> dict[str, StoredTensor]:
    save_file(tensors, folder / "given.safetensors")
    return open_safetensors(folder / "given.safetensors").tensors


def quantized(folder: Path, dtype: str, *shape: int, name: str = "x.weight", seed: int = 0) -> dict[str, StoredTensor]:
    """Stores a tensor of quantization blocks as a GGUF file would hold it."""
    raw = random_blocks(dtype, math.prod(shape[:-1]), shape[-1], 1.0, seed)
    (folder / name).write_bytes(raw.tobytes())
    return {name: StoredTensor(folder / name, 0, raw.nbytes, dtype, shape)}


def by_gguf(tensor: StoredTensor) -> np.ndarray:
    raw = tensor.mapped().reshape(math.prod(tensor.shape[:-1]), -1)
    return gguf.quants.dequantize(raw, GGMLQuantizationType[tensor.dtype]).reshape(tensor.shape)


def lora_of(folder: Path, down: Tensor, up: Tensor, scale: float = 1.0) -> Lora:
    """Writes a LoRA of a.weight and opens it."""
    save_file({"a.lora_A.weight": down, "a.lora_B.weight": up}, folder / "lora.safetensors")
    return open_lora(folder / "lora.safetensors", scale, {"a.weight": (up.shape[0], down.shape[1])})


def bits(tensor: Tensor) -> bytes:
    return tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()


def read(tensor: StoredTensor, dtype: str) -> np.ndarray:
    return tensor.mapped().view(dtype).reshape(tensor.shape)


def joined(weight: BlockWeight) -> np.ndarray:
    """Dequantizes a block weight to (N, K) in float64, and rounds it once."""
    if weight.is_table:
        codes = read(weight.codes, "<f2").T.astype(np.float64)
    elif weight.format.bits == 4:
        rows = weight.codes.mapped().view(np.uint8).reshape(weight.codes.shape)
        codes = np.stack([rows << 4, rows], -1).reshape(len(rows), -1).view(np.int8).astype(np.float64) // 16
    else:
        codes = read(weight.codes, "i1").astype(np.float64)
    scales, minimums = (
        None if part is None else read(part, "<f4").T if weight.is_table else read(part, "<f4")
        for part in (weight.scales, weight.minimums)
    )
    repeated = np.repeat(scales.astype(np.float64), weight.format.block, axis=0)
    values = (codes + weight.format.offset) * repeated
    if minimums is not None:
        values += np.repeat(minimums.astype(np.float64), weight.format.block, axis=0)
    return values.astype(np.float32).T


@pytest.mark.parametrize("store", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("dtype", TORCH)
def test_a_stored_dtype_is_torchs_conversion_to_the_last_bit_and_safetensors_reads_it(tmp_path, dtype, store):
    before = drawn(dtype)
    weights = rewrite(given(tmp_path, before), tmp_path / FILE, store=store)
    after = load_file(tmp_path / FILE)
    assert list(weights) == list(before) == sorted(after)
    for name, tensor in before.items():
        expected = tensor.float().to(TORCH[store])
        assert (after[name].dtype, after[name].shape) == (expected.dtype, expected.shape)
        assert bits(after[name]) == bits(expected) == weights[name].mapped().tobytes()
    assert weights == open_safetensors(tmp_path / FILE).tensors


def test_without_a_dtype_to_store_floats_keep_their_bytes_and_fp8_becomes_bf16(tmp_path):
    before = {f"{name}.{dtype}": t for dtype in TORCH for name, t in drawn(dtype).items()}
    rewrite(given(tmp_path, before), tmp_path / FILE)
    for name, tensor in load_file(tmp_path / FILE).items():
        expected = before[name].bfloat16() if before[name].dtype == torch.float8_e4m3fn else before[name]
        assert tensor.dtype == expected.dtype
        assert bits(tensor) == bits(expected)


@pytest.mark.parametrize(("dtype", "store", "changed", "answer"), [
    *((dtype, store, False, dtype != store and store is not None) for dtype in ("F32", "F16", "BF16")
      for store in (None, "F32", "F16", "BF16")),
    *((dtype, None, False, True) for dtype in ("F8_E4M3", *QUANTIZED)),
    *((dtype, "BF16", False, True) for dtype in ("F8_E4M3", *QUANTIZED)),
    *((dtype, dtype, True, True) for dtype in ("F32", "F16", "BF16")),
])  # fmt: skip
def test_weights_are_rewritten_only_where_their_bytes_cannot_stay(tmp_path, dtype, store, changed, answer):
    tensors = {"a.weight": StoredTensor(tmp_path, 0, 0, dtype, (2, 256))}
    loras = [lora_of(tmp_path, normal(0, 1, 256), normal(1, 2, 1))] if changed else []
    assert must_be_rewritten(tensors, store, loras) is answer


@EVERY_TYPE
@pytest.mark.parametrize("is_table", [False, True])
def test_blocks_are_rewritten_without_losing_a_bit(tmp_path, dtype, is_table):
    tensors = quantized(tmp_path, dtype, 70, 512)
    weight = rewrite(tensors, tmp_path / FILE, tables={"x.weight"} if is_table else frozenset())["x.weight"]
    assert (weight.shape, weight.is_table) == ((70, 512), is_table)
    np.testing.assert_array_equal(joined(weight), by_gguf(tensors["x.weight"]), strict=True)


@pytest.mark.parametrize("dtype", [name for name, form in BLOCK_FORMATS.items() if form.bits == 4])
def test_four_bits_that_cannot_be_packed_in_pairs_take_eight(tmp_path, dtype):
    tensors = quantized(tmp_path, dtype, 33, 256)
    weight = rewrite(tensors, tmp_path / FILE)["x.weight"]
    assert (weight.format.bits, weight.codes.dtype) == (8, "I8")
    assert read(weight.scales, "<f4").min() > 0
    np.testing.assert_array_equal(joined(weight), by_gguf(tensors["x.weight"]), strict=True)


@pytest.mark.parametrize("dtype", [name for name, form in BLOCK_FORMATS.items() if form.bits == 8])
def test_scales_of_eight_bits_are_above_zero_whatever_they_were(tmp_path, dtype):
    tensors = quantized(tmp_path, dtype, 64, 1024)
    weight = rewrite(tensors, tmp_path / FILE)["x.weight"]
    assert read(weight.scales, "<f4").min() > 0


def test_a_block_with_the_code_that_has_no_counterpart_keeps_its_scale(tmp_path):
    codes = np.array([[-128, 5] * 16, [-127, 5] * 16], np.int8)
    raw = np.concatenate([np.full((2, 1), -0.5, "<f2").view(np.uint8), codes.view(np.uint8)], 1)
    (tmp_path / "raw").write_bytes(raw.tobytes())
    tensor = StoredTensor(tmp_path / "raw", 0, raw.nbytes, "Q8_0", (2, 32))
    weight = rewrite({"x.weight": tensor}, tmp_path / FILE)["x.weight"]
    assert read(weight.scales, "<f4").tolist() == [[-0.5, 0.5]]
    np.testing.assert_array_equal(joined(weight), codes * np.float32(-0.5), strict=True)


@EVERY_TYPE
@pytest.mark.parametrize(("name", "shape"), [
    ("x.bias", (512,)), ("x.weight", (512,)), ("scale_shift_table", (6, 256)), ("conv.weight", (2, 3, 1, 256)),
])  # fmt: skip
def test_quantized_tensors_that_are_no_matrices_of_products_become_floats(tmp_path, dtype, name, shape):
    tensors = quantized(tmp_path, dtype, *shape, name=name)
    stored = rewrite(tensors, tmp_path / FILE)[name]
    assert (stored.dtype, stored.shape) == ("F32", shape)
    np.testing.assert_array_equal(read(stored, "<f4"), by_gguf(tensors[name]).reshape(shape), strict=True)


@EVERY_TYPE
@pytest.mark.parametrize("store", ["F32", "F16", "BF16"])
def test_quantized_weights_are_stored_as_floats_if_asked(tmp_path, dtype, store):
    tensors = quantized(tmp_path, dtype, 70, 512)
    rewrite(tensors, tmp_path / FILE, store=store, tables={"x.weight"})
    expected = torch.from_numpy(by_gguf(tensors["x.weight"])).to(TORCH[store])
    assert bits(load_file(tmp_path / FILE)["x.weight"]) == bits(expected)


@pytest.mark.parametrize("scale", [1.0, -0.35])
def test_a_merged_lora_is_the_sum_of_torch(tmp_path, scale):
    before, down, up = drawn("F32"), normal(8, 4, 32), normal(9, 48, 4)
    rewrite(given(tmp_path, before), tmp_path / FILE, loras=[lora_of(tmp_path, down, up, scale)] * 2)
    after = load_file(tmp_path / FILE)
    expected = before["a.weight"].double() + 2 * scale * up.double() @ down.double()
    assert distance(after.pop("a.weight"), expected) <= 1e-6
    assert {name: bits(tensor) for name, tensor in after.items()} == {name: bits(before[name]) for name in after}


@pytest.mark.parametrize(("dtype", "store", "written"), [
    ("BF16", None, "BF16"), ("F16", None, "F16"), ("F8_E4M3", None, "BF16"), ("F32", "BF16", "BF16"),
    ("BF16", "F32", "F32"), ("F8_E4M3", "F16", "F16"),
])  # fmt: skip
def test_a_merged_weight_is_rounded_once(tmp_path, dtype, store, written):
    """The numbers have few bits, so that float32 holds every sum exactly."""
    random = torch.Generator().manual_seed(0)
    weight, down, up = (
        torch.randint(-8, 9, shape, generator=random) / divisor
        for shape, divisor in (((48, 32), 8), ((4, 32), 4), ((48, 4), 64))
    )
    tensors = given(tmp_path, {"a.weight": weight.to(TORCH[dtype])})
    rewrite(tensors, tmp_path / FILE, store=store, loras=[lora_of(tmp_path, down, up)])
    expected = (weight.double() + up.double() @ down.double()).to(TORCH[written])
    assert bits(load_file(tmp_path / FILE)["a.weight"]) == bits(expected)


def test_a_lora_turns_the_quantized_weight_it_changes_into_bf16_and_no_other(tmp_path):
    tensors = {}
    for name in ("a.weight", "b.weight"):
        tensors |= quantized(tmp_path, "Q4_K", 48, 256, name=name)
    down, up = normal(8, 4, 256), normal(9, 48, 4)
    weights = rewrite(tensors, tmp_path / FILE, loras=[lora_of(tmp_path, down, up)])
    expected = torch.from_numpy(by_gguf(tensors["a.weight"])) + up @ down
    assert distance(load_file(tmp_path / FILE)["a.weight"].float(), expected) <= 2**-8
    assert weights["a.weight"].dtype == "BF16"
    np.testing.assert_array_equal(joined(weights["b.weight"]), by_gguf(tensors["b.weight"]), strict=True)


@pytest.mark.parametrize("changes", [{"store": "BF16"}, {"store": "F16"}, {}])
def test_weights_of_any_size_go_through_a_few_megabytes(tmp_path, changes):
    source = tmp_path / "holes"
    with source.open("wb") as file:
        file.truncate(1 << 27)
    dtype = "F32" if changes else "F8_E4M3"
    tensor = StoredTensor(source, 0, 1 << 27, dtype, ((1 << 27) // (4096 if dtype == "F32" else 1024), 1024))
    tracemalloc.start()
    try:
        rewrite({"x": tensor}, tmp_path / FILE, **changes)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 96 << 20
