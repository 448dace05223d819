"""The same inputs through a graph and its module, with the checkpoint's own weights; reports the differences.

The module lives on the meta device: each layer's weights are read and widened to fp32 just before it runs and
dropped after, so that any size of model is checked in the memory of its largest layer.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ltx_export.checkpoint import StoredTensor
from ltx_export.onnx_from_torch import build_empty
from ltx_runtime.components import Component, Port
from ltx_runtime.errors import LtxError
from ltx_runtime.manifest import Parity
from ltx_runtime.sessions.onnxruntime_cpu import load

Array = np.ndarray[Any, Any]

LIMIT = 1e-4
# Two requests of different shape in every axis: one timestep for all tokens, and one per token.
SIZES: tuple[dict[str, int], ...] = (
    {"batch": 1, "tokens": 10, "timesteps": 1, "text_tokens": 9, "frames": 2, "rows": 3, "columns": 2},
    {"batch": 3, "tokens": 6, "timesteps": 6, "text_tokens": 5, "frames": 1, "rows": 2, "columns": 3},
)
_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_SMALLEST_VOCABULARY = 100


def random_feeds(component: Component, sizes: Mapping[str, int]) -> dict[str, Array]:
    """Inputs a port may really get, the same for the same port and sizes."""
    return {port.name: _values(port, port.shape(sizes)) for port in component.inputs}


def _values(port: Port, shape: tuple[int, ...]) -> Array:
    random = np.random.RandomState(zlib.crc32(f"{port.name}{shape}".encode()))
    values: Array
    if port.name == "ids":
        values = random.randint(2, _SMALLEST_VOCABULARY, shape)
    elif port.name in ("mask", "text_mask"):  # row r ends with r padding tokens
        values = np.arange(shape[1])[None, :] < shape[1] - np.arange(shape[0])[:, None]
    elif port.name == "skip_mask":
        values = random.randint(0, 2, shape)
    elif port.name == "timestep":
        values = random.uniform(0.0, 1.0, shape)
    elif port.name == "coords":
        values = random.uniform(0.0, 1.0, shape) * np.array([5.0, 704.0, 1216.0])[:, None]
    else:
        values = random.standard_normal(shape)
    return np.asarray(values, dtype=port.dtype)


def stream_weights(module: nn.Module, tensors: Mapping[str, StoredTensor]) -> None:
    """Makes a meta-device module run in fp32, holding one layer's weights at a time.

    Parameters that belong to a module with children are small tables and are read at once.
    """
    for prefix, owner in module.named_modules():
        stored = {name: tensors[f"{prefix}.{name}".lstrip(".")] for name, _ in owner.named_parameters(recurse=False)}
        if not stored:
            continue
        if any(True for _ in owner.children()):
            _fill(owner, stored)
        else:
            owner.register_forward_pre_hook(lambda layer, _, stored=stored: _fill(layer, stored))
            owner.register_forward_hook(lambda layer, _, __, stored=stored: _drop(layer, stored))


def _fill(layer: nn.Module, stored: Mapping[str, StoredTensor]) -> None:
    for name, tensor in stored.items():
        values = torch.frombuffer(tensor.read(), dtype=_DTYPES[tensor.dtype]).reshape(tensor.shape)
        layer._parameters[name] = nn.Parameter(values.float(), requires_grad=False)


def _drop(layer: nn.Module, stored: Mapping[str, StoredTensor]) -> None:
    for name, tensor in stored.items():
        layer._parameters[name] = nn.Parameter(torch.empty(tensor.shape, device="meta"), requires_grad=False)


def relative_l2(actual: Array, expected: Array) -> float:
    """|actual - expected| / |expected|; 0 where both are zero, infinite where anything is not finite."""
    difference = float(np.linalg.norm((actual - expected).astype(np.float64)))
    if not np.isfinite(difference):
        return float("inf")
    return difference / float(np.linalg.norm(expected.astype(np.float64))) if difference else 0.0


def check_parity(
    make: Callable[[], nn.Module], component: Component, tensors: Mapping[str, StoredTensor], graph: Path
) -> Parity:
    """Runs the fp32 graph and the module at two shapes.

    Raises:
        LtxError: they differ by more than LIMIT relative L2 at one of them.
    """
    module = build_empty(make, torch.float32)
    stream_weights(module, tensors)
    runner = load(graph)
    errors = []
    try:
        for sizes in SIZES:
            feeds = random_feeds(component, sizes)
            with torch.inference_mode():
                expected = module(*(torch.from_numpy(feeds[port.name]) for port in component.inputs)).numpy()
            errors.append(relative_l2(runner.run(feeds)[component.outputs[0].name], expected))
    finally:
        runner.close()
    if max(errors) > LIMIT:
        raise LtxError(
            f"the graph of {component.name} differs from its module by {max(errors):.1e} relative L2, more than "
            f"{LIMIT:.0e} - please report it with the name of the checkpoint"
        )
    return Parity(tuple(errors), SIZES, "the checkpoint's own, all layers")
