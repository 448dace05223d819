"""Extends a graph that was traced with a few equal blocks to all blocks by copying the nodes of block 1.

Tracing all 48 layers takes a minute, and every layer looks like the second. The code knows nothing of what a block
does: it matches the nodes of blocks 1 and 2 by name, which shows what a block takes from the block before it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from copy import copy

import numpy as np
import onnx_ir as ir

from ltx_export.models.network import TRACED_BLOCKS

_PATTERN, _NEXT = 1, 2

Nodes = dict[str, ir.Node]


def repeat_blocks(traced: ir.Model, path: str, blocks: int) -> ir.Model:
    """Returns a copy of a graph of TRACED_BLOCKS blocks, extended to `blocks` blocks.

    Args:
        traced: a graph whose nodes are named `<module path>/...`, and whose weights are named by state dict keys.
        path: path of the module list, e.g. `transformer_blocks`.
        blocks: number of blocks, at least TRACED_BLOCKS.

    Raises:
        ValueError: the two middle blocks are not the same graph.
    """
    model = traced.clone()
    pattern, following = _nodes_of(model, path, _PATTERN), _nodes_of(model, path, _NEXT)
    carried = _carried(pattern, following, path)
    added = blocks - TRACED_BLOCKS
    for last in range(TRACED_BLOCKS - 1, _NEXT - 1, -1):
        _rename(model, path, last, last + added)
    latest = {result: result for result in carried.values()}  # block 1's outputs -> the latest copy's
    last_node = list(pattern.values())[-1]
    for block in range(_NEXT, _NEXT + added):
        inputs = {value: latest[result] for value, result in carried.items()}
        copies = _block_copy(model, pattern, path, block, inputs)
        model.graph.insert_after(last_node, list(copies.values()))
        last_node = list(copies.values())[-1]
        copy_of = {
            old: new for key in pattern for old, new in zip(pattern[key].outputs, copies[key].outputs, strict=True)
        }
        latest = {result: copy_of[result] for result in latest}
    for node in following.values():
        for i, value in enumerate(node.inputs):
            if value in latest:
                node.replace_input_with(i, latest[value])
    model.graph.sort()
    return model


def _nodes_of(model: ir.Model, path: str, block: int) -> Nodes:
    """Returns a block's nodes, keyed by a name that the same node has in every block."""
    prefix, counts, nodes = f"{path}.{block}", Counter[str](), Nodes()
    for node in model.graph:
        module, _, _ = (node.name or "").partition("/")
        if module == prefix or module.startswith(f"{prefix}."):
            key = f"{module.removeprefix(prefix)}/{node.op_type}"
            counts[key] += 1
            nodes[f"{key}_{counts[key]}"] = node
    return nodes


def _carried(pattern: Nodes, following: Nodes, path: str) -> dict[ir.Value, ir.Value]:
    """Maps each value that the pattern takes from the block before it to its own output for the block after it.

    Raises:
        ValueError: the two blocks differ.
    """
    if pattern.keys() != following.keys():
        raise ValueError(f"blocks have different nodes: {sorted(pattern.keys() ^ following.keys())[:4]}")
    inside = set(pattern.values())
    twins = {
        value: twin for key in pattern for value, twin in zip(pattern[key].outputs, following[key].outputs, strict=True)
    }
    carried: dict[ir.Value, ir.Value] = {}
    for key, node in pattern.items():
        twin = following[key]
        if _attributes(node) != _attributes(twin) or len(node.inputs) != len(twin.inputs):
            raise ValueError(f"blocks differ: {node.name} and {twin.name} are not the same operation")
        for value, counterpart in zip(node.inputs, twin.inputs, strict=True):
            if value is None or counterpart is None:
                fits = value is counterpart
            elif value in twins:
                fits = twins[value] is counterpart
            elif value is not counterpart and counterpart.producer() in inside:
                fits = carried.setdefault(value, counterpart) is counterpart
            else:
                fits = value is counterpart or _are_twins(value, counterpart, path)
            if not fits:
                raise ValueError(f"blocks differ: {node.name} and {twin.name} do not have matching inputs")
    return carried


def _attributes(node: ir.Node) -> dict[str, object]:
    return {name: attribute.value for name, attribute in node.attributes.items()}


def _are_twins(value: ir.Value, counterpart: ir.Value, path: str) -> bool:
    """Returns whether two initializers are the same weight of both blocks, or equal constants."""
    if not (value.is_initializer() and counterpart.is_initializer()):
        return False
    if value.const_value is None or counterpart.const_value is None:
        same = value.const_value is counterpart.const_value
        return same and _renamed(value.name, path, _PATTERN, _NEXT) == counterpart.name
    return value.dtype == counterpart.dtype and np.array_equal(
        value.const_value.numpy(), counterpart.const_value.numpy()
    )


def _block_copy(model: ir.Model, pattern: Nodes, path: str, block: int, inputs: Mapping[ir.Value, ir.Value]) -> Nodes:
    values = dict(inputs)
    copies = Nodes()
    for key, node in pattern.items():
        new_node = ir.Node(
            node.domain,
            node.op_type,
            [None if v is None else values.get(v) or _own_weight(model, v, path, block) for v in node.inputs],
            node.attributes.values(),
            num_outputs=len(node.outputs),
            name=_renamed(node.name, path, _PATTERN, block),
            version=node.version,
        )
        for old, new in zip(node.outputs, new_node.outputs, strict=True):
            new.name, new.type = f"{old.name}.{block}", copy(old.type)
            values[old] = new
        copies[key] = new_node
    return copies


def _own_weight(model: ir.Model, value: ir.Value, path: str, block: int) -> ir.Value:
    """Returns the copy's own weight for a weight of the pattern; any other value is shared by all blocks."""
    prefix = f"{path}.{_PATTERN}."
    if not value.is_initializer() or value.const_value is not None or not (value.name or "").startswith(prefix):
        return value
    name = _renamed(value.name, path, _PATTERN, block)
    assert name is not None
    if name not in model.graph.initializers:
        model.graph.initializers[name] = ir.Value(name=name, shape=value.shape, type=value.type)
    return model.graph.initializers[name]


def _rename(model: ir.Model, path: str, block: int, target: int) -> None:
    """Renames a block's nodes and weights to another block index."""
    for node in _nodes_of(model, path, block).values():
        node.name = _renamed(node.name, path, block, target)
    for name, value in list(model.graph.initializers.items()):
        if name.startswith(f"{path}.{block}.") and value.const_value is None:
            value.name = _renamed(name, path, block, target)


def _renamed(name: str | None, path: str, block: int, target: int) -> str | None:
    prefix = f"{path}.{block}"
    return f"{path}.{target}{name.removeprefix(prefix)}" if name else name
