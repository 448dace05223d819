"""Small GGUF files of quantized networks, written with the package gguf; their blocks keep activations near one."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path

import gguf
import numpy as np
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFReader, GGUFWriter
from torch import Tensor

from ltx_export.models.t5 import T5Config

# Byte offsets of a block's fp16 values: the scale, and the minimum or its scale.
HALVES = {
    **{"Q8_0": (0,), "Q4_0": (0,), "Q5_0": (0,), "IQ4_NL": (0,), "Q3_K": (108,), "Q6_K": (208,)},
    **{"Q4_1": (0, 2), "Q5_1": (0, 2), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q2_K": (80, 82)},
}
# At a scale of 1: standard deviation of uniform codes times their factors and, for types with a minimum, the mean code.
_SPREAD = {
    **{"Q8_0": 74, "Q4_0": 4.6, "Q5_0": 9.2, "IQ4_NL": 66, "Q3_K": 42, "Q6_K": 1370},
    **{"Q4_1": 4.6, "Q5_1": 9.2, "Q4_K": 168, "Q5_K": 335, "Q2_K": 10},
}
_MEAN_CODE = {"Q4_1": -7.5, "Q5_1": -15.5, "Q4_K": 7.5, "Q5_K": 15.5, "Q2_K": 1.5}
_FLOATS = ("F32", "F16", "BF16")
QUANTIZED = tuple(HALVES)

Types = Callable[[str], str]


def random_blocks(dtype: str, rows: int, columns: int, deviation: float, seed: int) -> np.ndarray:
    """Returns rows of random blocks (rows, bytes) whose weights have about this standard deviation and a mean of zero.

    One block in 32 has a scale of zero and consists of its minimum alone.
    """
    random = np.random.default_rng(seed)
    elements, size = GGML_QUANT_SIZES[GGMLQuantizationType[dtype]]
    count = rows * columns // elements
    blocks = random.integers(0, 256, (count, size), np.uint8)
    if dtype in ("Q4_K", "Q5_K"):  # gives the minimums the factors of the scales
        blocks[:, 8:12] = blocks[:, 4:8]
        blocks[:, 12:16] = (blocks[:, 12:16] & 15) * 17
    if dtype == "Q2_K":
        blocks[:, :16] = (blocks[:, :16] & 15) * 17
    scales = (deviation / _SPREAD[dtype] * random.uniform(0.5, 1.5, count)).astype(np.float16)
    if dtype != "Q8_0":  # without minimums the largest weight becomes the lowest code whatever its sign
        scales[random.random(count) < (1 / 32 if dtype in _MEAN_CODE else 1 / 2)] *= -1
    means = (scales.astype(np.float32) * _MEAN_CODE.get(dtype, 0)).astype(np.float16)
    scales[random.random(count) < 1 / 32] = 0
    for at, halves in zip(HALVES[dtype], (scales, means), strict=False):
        blocks[:, at : at + 2] = halves.view(np.uint8).reshape(-1, 2)
    return blocks.reshape(rows, -1)


def t5_shapes(size: T5Config) -> dict[str, tuple[int, ...]]:
    """Returns the tensor shapes of a T5 encoder in a GGUF file, by name."""
    inner = size.heads * size.head_dim
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (size.vocabulary, size.width),
        "enc.blk.0.attn_rel_b.weight": (32, size.heads),
        "enc.output_norm.weight": (size.width,),
    }
    for block in range(size.layers):
        prefix = f"enc.blk.{block}"
        shapes |= {f"{prefix}.{norm}_norm.weight": (size.width,) for norm in ("attn", "ffn")}
        shapes |= {f"{prefix}.attn_{name}.weight": (inner, size.width) for name in "qkv"}
        shapes |= {
            f"{prefix}.attn_o.weight": (size.width, inner),
            f"{prefix}.ffn_down.weight": (size.width, size.hidden),
        }
        shapes |= {f"{prefix}.ffn_{name}.weight": (size.hidden, size.width) for name in ("gate", "up")}
    return shapes


def write_gguf(path: Path, architecture: str, shapes: Mapping[str, tuple[int, ...]], types: Types) -> Path:
    """Writes random weights; types: name -> type of a tensor. Types that gguf does not quantize are random blocks."""
    writer = GGUFWriter(path, architecture)
    for seed, (name, shape) in enumerate(shapes.items()):
        dtype = types(name)
        kind = GGMLQuantizationType[dtype]
        deviation = 1.0 if "token_embd" in name or "rel_b" in name else 1 / math.sqrt(shape[-1])
        if "attn_q" in name:  # T5 does not scale its attention scores
            deviation /= 8
        drawn = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
        values = 1 + 0.1 * drawn if name.endswith("norm.weight") else deviation * drawn
        if dtype not in (*_FLOATS, "Q8_0", "Q4_1", "Q5_1"):
            writer.add_tensor(name, random_blocks(dtype, *shape, deviation, seed), raw_dtype=kind)
        else:
            writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_t5(path: Path, size: T5Config, matrices: Types, positions: str = "F32") -> Path:
    """Writes a T5 encoder whose norms are F32."""

    def type_of(name: str) -> str:
        if name.endswith("norm.weight"):
            return "F32"
        return positions if "rel_b" in name else matrices(name)

    return write_gguf(path, "t5encoder", t5_shapes(size), type_of)


def dequantized(path: Path) -> dict[str, Tensor]:
    """Returns every tensor as gguf dequantizes it to float32, under the file's names."""
    tensors = {}
    for tensor in GGUFReader(path).tensors:
        shape = [int(size) for size in tensor.shape[::-1]]
        values = np.array(gguf.quants.dequantize(tensor.data, tensor.tensor_type), np.float32)
        tensors[tensor.name] = torch.from_numpy(values.reshape(shape))
    return tensors
