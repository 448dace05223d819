"""The same inputs through a graph and its module, with the checkpoint's own weights; reports the differences.

The module lives on the meta device: each layer's weights are widened to fp32 just before it runs, into one buffer,
so that any size of model is checked in the memory of its largest layer.
"""

from __future__ import annotations

import math
import warnings
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ltx_export.checkpoint import StoredTensor
from ltx_export.onnx_from_torch import build_empty
from ltx_runtime.components import Component, Port
from ltx_runtime.errors import LtxError
from ltx_runtime.manifest import Parity
from ltx_runtime.sessions.onnxruntime_cpu import load

Array = np.ndarray[Any, Any]
Feeds = dict[str, Array]

LIMIT = 1e-4
# Two requests of different shape in every axis: one timestep for all tokens, and one per token.
SIZES: tuple[dict[str, int], ...] = (
    {"batch": 1, "tokens": 10, "timesteps": 1, "text_tokens": 9, "frames": 2, "rows": 3, "columns": 2},
    {"batch": 3, "tokens": 6, "timesteps": 6, "text_tokens": 5, "frames": 1, "rows": 2, "columns": 3},
)
_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_SMALLEST_VOCABULARY = 100


def random_feeds(component: Component, sizes: Mapping[str, int]) -> Feeds:
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

    Layers run one after another and share one buffer, the size of the largest; parameters that belong to a module
    with children are small tables and are read at once.
    """
    layers: list[tuple[nn.Module, dict[str, StoredTensor]]] = []
    for prefix, owner in module.named_modules():
        stored = {name: tensors[f"{prefix}.{name}".lstrip(".")] for name, _ in owner.named_parameters(recurse=False)}
        if any(True for _ in owner.children()):
            _fill(owner, stored, torch.empty(_numel(stored)))
        else:
            layers.append((owner, stored))
    buffer = torch.empty(max(_numel(stored) for _, stored in layers))
    for layer, stored in layers:
        layer.register_forward_pre_hook(lambda layer, _, stored=stored: _fill(layer, stored, buffer))


def _numel(stored: Mapping[str, StoredTensor]) -> int:
    return sum(math.prod(tensor.shape) for tensor in stored.values())


def _fill(layer: nn.Module, stored: Mapping[str, StoredTensor], buffer: Tensor) -> None:
    for name, tensor in stored.items():
        values = torch.from_numpy(tensor.mapped()).view(_DTYPES[tensor.dtype])
        widened, buffer = buffer[: len(values)].copy_(values), buffer[len(values) :]
        layer._parameters[name] = nn.Parameter(widened.reshape(tensor.shape), requires_grad=False)


def relative_l2(actual: Array, expected: Array) -> float:
    """|actual - expected| / |expected|; 0 where both are zero, infinite where anything is not finite."""
    difference = float(np.linalg.norm((actual - expected).astype(np.float64)))
    if not np.isfinite(difference):
        return float("inf")
    return difference / float(np.linalg.norm(expected.astype(np.float64))) if difference else 0.0


def _run_module(
    module: nn.Module, component: Component, tensors: Mapping[str, StoredTensor], requests: Sequence[Feeds]
) -> list[Array]:
    stream_weights(module, tensors)
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # switching oneDNN off warns about GPUs
        with torch.backends.mkldnn.flags(enabled=False):  # it would keep a second copy of a layer's weights
            return [module(*(torch.from_numpy(feeds[p.name]) for p in component.inputs)).numpy() for feeds in requests]


def _run_graph(graph: Path, component: Component, requests: Sequence[Feeds]) -> list[Array]:
    runner = load(graph)
    try:
        return [runner.run(feeds)[component.outputs[0].name] for feeds in requests]
    finally:
        runner.close()


def check_parity(
    make: Callable[[], nn.Module], component: Component, tensors: Mapping[str, StoredTensor], graph: Path
) -> Parity:
    """Runs the fp32 graph and the module at two shapes.

    Raises:
        LtxError: they differ by more than LIMIT relative L2 at one of them.
    """
    requests = [random_feeds(component, sizes) for sizes in SIZES]
    expected = _run_module(build_empty(make, torch.float32), component, tensors, requests)
    actual = _run_graph(graph, component, requests)
    errors = [relative_l2(mine, theirs) for mine, theirs in zip(actual, expected, strict=True)]
    if max(errors) > LIMIT:
        raise LtxError(
            f"the graph of {component.name} differs from its module by {max(errors):.1e} relative L2, more than "
            f"{LIMIT:.0e} - please report it with the name of the checkpoint"
        )
    return Parity(tuple(errors), SIZES, "the checkpoint's own, all layers")
