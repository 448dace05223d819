"""Runs a graph and its module on the same inputs, with the checkpoint's own weights, and reports the differences.

The module is on the meta device: each layer's weights are widened to fp32 just before the layer runs, into one buffer,
so that a model of any size is checked in the memory of its largest layer. Of the repeated blocks only the traced ones
are compared: all others are copies of them, and differ only in the offsets of their weights.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ltx_export.checkpoints.values import float32_of, rows_of
from ltx_export.models.network import build_empty
from ltx_export.recorded import LIMIT, SIZES, Array, Feeds, random_feeds, refuse_unfinite, relative_l2, run_graph
from ltx_runtime.errors import LtxError
from ltx_runtime.folder.manifest import Parity
from ltx_runtime.spec.components import Component
from ltx_runtime.weights.checkpoint import StoredTensor

_ROWS = 1024  # number of rows of a quantized or fp8 matrix that are widened at once
_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def stream_weights(module: nn.Module, tensors: Mapping[str, StoredTensor]) -> Tensor:
    """Makes a module on the meta device run in fp32, with the weights of one layer at a time in memory.

    Layers run one after another and share one buffer, the size of the largest. Parameters that belong to a module with
    children are small tables and are loaded immediately.

    Returns:
        The shared buffer.
    """
    layers: list[tuple[nn.Module, dict[str, StoredTensor]]] = []
    for prefix, owner in module.named_modules():
        stored = {name: tensors[f"{prefix}.{name}".lstrip(".")] for name, _ in owner.named_parameters(recurse=False)}
        if isinstance(owner, nn.Embedding):
            _look_up_in(owner, stored["weight"])
        elif any(True for _ in owner.children()):
            _fill(owner, stored, torch.empty(_numel(stored)))
        else:
            layers.append((owner, stored))
    buffer = torch.empty(max(_numel(stored) for _, stored in layers))
    for layer, stored in layers:
        layer.register_forward_pre_hook(lambda layer, _, stored=stored: _fill(layer, stored, buffer))
    return buffer


def _look_up_in(layer: nn.Embedding, table: StoredTensor) -> None:
    """Makes an embedding read only the rows that it looks up: T5's whole table takes half a gigabyte."""

    def look_up(ids: Tensor) -> Tensor:
        unique_ids, places = ids.unique(return_inverse=True)
        rows = [float32_of(table, row, row + 1) for row in unique_ids.tolist()]
        return torch.from_numpy(np.concatenate(rows))[places]

    layer.forward = look_up  # type: ignore[method-assign, assignment]


def _numel(stored: Mapping[str, StoredTensor]) -> int:
    return sum(math.prod(tensor.shape) for tensor in stored.values())


def _fill(layer: nn.Module, stored: Mapping[str, StoredTensor], buffer: Tensor) -> None:
    for name, tensor in stored.items():
        count = math.prod(tensor.shape)
        widened, buffer = buffer[:count], buffer[count:]
        if tensor.dtype in _DTYPES:
            widened.copy_(torch.from_numpy(tensor.mapped()).view(_DTYPES[tensor.dtype]))
        else:
            _fill_by_rows(widened.view(rows_of(tensor), -1), tensor)
        layer._parameters[name] = nn.Parameter(widened.view(tensor.shape), requires_grad=False)


def _fill_by_rows(target: Tensor, tensor: StoredTensor) -> None:
    for start in range(0, len(target), _ROWS):
        values = float32_of(tensor, start, min(start + _ROWS, len(target)))
        target[start : start + _ROWS] = torch.from_numpy(values).view(-1, target.shape[1])


def _run_module(
    module: nn.Module, component: Component, tensors: Mapping[str, StoredTensor], requests: Sequence[Feeds]
) -> list[Array]:
    buffer = stream_weights(module, tensors)
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # switching oneDNN off warns about GPUs
        with torch.backends.mkldnn.flags(enabled=False):  # oneDNN would keep a second copy of a layer's weights
            outputs = [
                module(*(torch.from_numpy(feeds[p.name]) for p in component.inputs)).numpy() for feeds in requests
            ]
    buffer.untyped_storage().resize_(0)  # the module and its hooks are a reference cycle that keeps the buffer alive
    return outputs


def check_parity(
    make: Callable[[], nn.Module],
    component: Component,
    tensors: Mapping[str, StoredTensor],
    graph: Path,
    weights: Path,
    described: str = "the checkpoint's own",
) -> Parity:
    """Compares the outputs of the fp32 graph and the module for inputs of two different shapes.

    Args:
        make: builds the module.
        component: ports of the module.
        tensors: stored weights of the module by parameter name.
        graph: path of the graph, which uses the same weights.
        weights: folder of the graph's weights.
        described: description of the weights for the record.

    Raises:
        LtxError: for one of the shapes, the outputs differ by more than LIMIT relative L2, or are not finite.
    """
    requests = [random_feeds(component, sizes) for sizes in SIZES]
    expected = _run_module(build_empty(make, torch.float32), component, tensors, requests)
    for output in expected:
        refuse_unfinite(component, output)
    actual = run_graph(graph, weights, component, requests)
    errors = [relative_l2(output, reference) for output, reference in zip(actual, expected, strict=True)]
    if max(errors) > LIMIT:
        raise LtxError(
            f"the graph of {component.name} differs from its module by {max(errors):.1e} relative L2, more than "
            f"{LIMIT:.0e}",
            "please report it with the name of the checkpoint",
        )
    return Parity(tuple(errors), SIZES, described)
