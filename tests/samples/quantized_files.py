"""Networks whose matrices are fp8 or int8 with scales, spelled as other programs write them, and their dequantization.

Everything is computed by torch: value = code.float() * scale. None of the tables under test is used here.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

State = dict[str, Tensor]
BLOCK = 16  # rows and columns that share a scale, where scales are for blocks
E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2


@dataclass(frozen=True)
class Codes:
    """Codes of a matrix (N, K), and its scales: (), (N, 1) or (N / BLOCK, K / BLOCK) float32."""

    codes: Tensor
    scale: Tensor

    @property
    def values(self) -> Tensor:
        """The matrix (N, K) float32 that the codes mean."""
        scale = self.scale
        if scale.ndim == 2 and scale.shape[1] > 1:
            scale = scale.repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1)
        return self.codes.float() * scale


def codes_of(weight: Tensor, dtype: torch.dtype, per: str) -> Codes:
    """Quantizes a matrix with a scale `per` tensor, row or block."""
    largest = torch.finfo(dtype).max if dtype.is_floating_point else torch.iinfo(dtype).max
    weight = weight.float()
    if per == "tensor":
        scale = spread = weight.abs().amax() / largest
    elif per == "row":
        scale = spread = weight.abs().amax(1, keepdim=True) / largest
    else:
        blocks = weight.reshape(len(weight) // BLOCK, BLOCK, -1, BLOCK)
        scale = blocks.abs().amax((1, 3)) / largest
        spread = scale.repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1)
    scaled = (weight / spread).clamp(-largest, largest)
    return Codes((scaled if dtype.is_floating_point else scaled.round()).to(dtype), scale)


def json_bytes(entry: Mapping[str, object]) -> Tensor:
    return torch.tensor(list(json.dumps(entry).encode()), dtype=torch.uint8)


@dataclass(frozen=True)
class Spelling:
    """How a program writes the codes.

    Attributes:
        tensors: tensors of a layer by the ending of their names behind the layer's own, from its codes.
        dtype, per: dtype of the codes, and what shares a scale.
        marker: tensors of a file, by name without the network's prefix.
        layer_format: format that the header names for every layer; empty if the header names none.
    """

    tensors: Callable[[Codes], State]
    dtype: torch.dtype = E4M3
    per: str = "tensor"
    marker: State = field(default_factory=dict)
    layer_format: str = ""


ONE = torch.tensor(1.0)
ROWS, BLOCKS = "row", "block"


def _comfy(format_name: str) -> Callable[[Codes], State]:
    return lambda one: {
        "weight": one.codes,
        "weight_scale": one.scale,
        "input_scale": ONE,
        "comfy_quant": json_bytes({"format": format_name}),
    }


SPELLINGS = {
    "ComfyUI's first": Spelling(
        lambda one: {"weight": one.codes, "scale_weight": one.scale, "scale_input": ONE},
        marker={"scaled_fp8": torch.zeros(2).to(E4M3)},
    ),
    "ComfyUI's first, e5m2, without scales of activations": Spelling(
        lambda one: {"weight": one.codes, "scale_weight": one.scale.reshape(1)},
        dtype=E5M2,
        marker={"scaled_fp8": torch.zeros(0).to(E5M2)},
    ),
    "ComfyUI's second": Spelling(_comfy("float8_e4m3fn")),
    "ComfyUI's second, e5m2": Spelling(_comfy("float8_e5m2"), dtype=E5M2),
    "ComfyUI's second, in the header": Spelling(
        lambda one: {"weight": one.codes, "weight_scale": one.scale}, layer_format="float8_e4m3fn"
    ),
    "ComfyUI's second, as bytes": Spelling(
        lambda one: {**_comfy("float8_e4m3fn")(one), "weight": one.codes.view(torch.uint8)}
    ),
    "compressed-tensors": Spelling(lambda one: {"weight": one.codes, "weight_scale": one.scale}, per=ROWS),
    "compressed-tensors, without the last axis": Spelling(
        lambda one: {"weight": one.codes, "weight_scale": one.scale.reshape(-1)}, per=ROWS
    ),
    "transformers": Spelling(lambda one: {"weight": one.codes, "weight_scale_inv": one.scale}, per=BLOCKS),
    "optimum-quanto": Spelling(
        lambda one: {"weight._data": one.codes, "weight._scale": one.scale, "input_scale": ONE, "output_scale": ONE},
        per=ROWS,
    ),
    "torchao": Spelling(lambda one: {"_weight_qdata": one.codes, "_weight_scale": one.scale}, per=ROWS),
}
INTEGERS = {
    "ComfyUI": Spelling(_comfy("int8_tensorwise"), torch.int8, ROWS),
    "ComfyUI, one scale": Spelling(_comfy("int8_tensorwise"), torch.int8),
    "ComfyUI, blocks": Spelling(_comfy("int8_blockwise"), torch.int8, BLOCKS),
    "optimum-quanto": Spelling(
        lambda one: {"weight._data": one.codes, "weight._scale": one.scale.bfloat16()}, torch.int8, ROWS
    ),
}


@dataclass(frozen=True)
class Quantized:
    """A network as a program writes it, what its matrices mean in float32, and the entry of the header, if any."""

    state: State
    values: State
    metadata: dict[str, str]


def quantized(state: Mapping[str, Tensor], spelling: Spelling, prefix: str = "") -> Quantized:
    """Returns a network with all matrices of its repeated blocks quantized; `prefix` precedes the network's names."""
    written: State = {prefix + name: values.clone() for name, values in spelling.marker.items()}
    meant: State = {}
    layers = {}
    for name, weight in state.items():
        layer = name.removesuffix("weight")
        if weight.ndim != 2 or ".relative_attention_bias." in name or "block" not in name or layer == name:
            written[name] = weight
            continue
        codes = codes_of(weight, spelling.dtype, spelling.per)
        tensors = {ending: values.clone() for ending, values in spelling.tensors(codes).items()}
        stored_scale = next(values for ending, values in tensors.items() if "scale" in ending and "put" not in ending)
        meant[name] = Codes(codes.codes, stored_scale.float().reshape(codes.scale.shape)).values
        written |= {layer + ending: values for ending, values in tensors.items()}
        layers[layer.removesuffix(".")] = {"format": spelling.layer_format}
    header = {"_quantization_metadata": json.dumps({"format_version": "1.0", "layers": layers})}
    return Quantized(written, meant, header if spelling.layer_format else {})
