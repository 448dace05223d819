"""Cuts a model of OpenVINO into pieces, which are compiled at the same time and run one after another.

Compiling takes one core and grows faster than the number of nodes. The first piece holds everything that depends on
constant inputs only, so that it need not run again while they stay the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any

# Nodes of a piece: four pieces for the 28 blocks of a 2B transformer, two for a VAE. More compiled no faster.
_NODES = 900
_CONSTANT, _FIXED, _VARYING = range(3)


@dataclass(frozen=True)
class Piece:
    """A part of a model.

    Attributes:
        model: an openvino.Model; its inputs and outputs are named as those of the whole model, or as `node:output` for
            values that pieces hand on.
        fixed: whether it depends on constant inputs only.
    """

    model: Any
    fixed: bool = False


def pieces_of(model: Any, constant: AbstractSet[str], nodes: int = _NODES) -> Iterator[Piece]:
    """Yields the pieces of a model in the order in which they run; each needs only values of those before it.

    Args:
        model: an openvino.Model, of which the pieces share the weights.
        constant: names of inputs that stay the same in many runs.
        nodes: number of nodes of a piece, about; nodes that only prepare weights are not counted.
    """
    ops = model.get_ordered_ops()
    kinds = _kinds(ops, constant)
    can_be_told_apart = len(kinds) == len(ops)
    piece_of = _assigned(ops, kinds, nodes) if can_be_told_apart else {}
    numbers = sorted(set(piece_of.values()))
    if len(numbers) < 2:
        yield Piece(model)
        return
    for number in numbers:
        yield Piece(_cut(model, number, piece_of), number == 0)


def _kinds(ops: Sequence[Any], constant: AbstractSet[str]) -> dict[str, int]:
    """Returns by name whether a node depends on no input, on constant inputs only, or on any other input."""
    kinds: dict[str, int] = {}
    for op in ops:
        if op.get_type_name() == "Parameter":
            kinds[_name(op)] = _FIXED if op.output(0).get_names() & constant else _VARYING
        else:
            kinds[_name(op)] = max((kinds[_source(value)] for value in op.inputs()), default=_CONSTANT)
    return kinds


def _assigned(ops: Sequence[Any], kinds: Mapping[str, int], nodes: int) -> dict[str, int]:
    """Returns the number of the piece of every node that depends on an input; 0 is the fixed piece.

    The order of the nodes is cut where the fewest values cross, near places at equal distances.
    """
    computed = [op for op in ops if op.get_type_name() not in ("Parameter", "Result")]
    varying = [_name(op) for op in computed if kinds[_name(op)] == _VARYING]
    position = {name: i for i, name in enumerate(varying)}
    crossing = [0] * (len(varying) + 1)
    for op in computed:
        if _name(op) in position:
            users = [position.get(_name(user), 0) for value in op.outputs() for user in _users(value)]
            for i in range(position[_name(op)] + 1, max(users, default=0) + 1):
                crossing[i] += 1
    count = max(1, round(len(varying) / nodes))
    reach = len(varying) // (4 * count)
    cuts = [
        min(range(place - reach, place + reach + 1), key=crossing.__getitem__)
        for place in (len(varying) * i // count for i in range(1, count))
    ]
    pieces = {_name(op): 0 for op in computed if kinds[_name(op)] == _FIXED}
    pieces |= {name: 1 + sum(cut <= i for cut in cuts) for name, i in position.items()}
    results = {_name(op): pieces.get(_source(op.input(0)), count) for op in ops if op.get_type_name() == "Result"}
    return pieces | results


def _cut(model: Any, number: int, piece_of: Mapping[str, int]) -> Any:
    """Returns one piece as a model of its own: values of other pieces become inputs, values for others outputs."""
    import openvino  # noqa: PLC0415  (takes 0.2 s)

    copy = model.clone()  # pieces are compiled at the same time, and no two of them may change the same node
    inputs: list[Any] = []
    outputs: list[Any] = []
    for op in copy.get_ordered_ops():
        own = piece_of.get(_name(op))
        if op.get_type_name() == "Parameter":
            users = [user for value in op.outputs() for user in _users(value)]
            inputs += [op] if any(piece_of.get(_name(user)) == number for user in users) else []
        elif own == number:
            for index, value in enumerate(op.outputs()):
                if any(piece_of.get(_name(user), number) != number for user in _users(value)):
                    value.set_names(value.get_names() | {f"{_name(op)}:{index}"})
                    outputs.append(openvino.opset13.result(value))
        elif own is not None and own < number:
            for index, value in enumerate(op.outputs()):
                users = [user for user in value.get_target_inputs() if piece_of.get(_name(user.get_node())) == number]
                if users:
                    parameter = openvino.opset13.parameter(value.get_partial_shape(), value.get_element_type())
                    parameter.output(0).set_names({f"{_name(op)}:{index}"})
                    inputs.append(parameter)
                for user in users:
                    user.replace_source_output(parameter.output(0))
    results = [result for result in copy.get_results() if piece_of[_name(result)] == number]
    return openvino.Model([*results, *outputs], inputs)


def _name(op: Any) -> str:
    name: str = op.get_friendly_name()
    return name


def _source(value: Any) -> str:
    return _name(value.get_source_output().get_node())


def _users(value: Any) -> list[Any]:
    return [user.get_node() for user in value.get_target_inputs()]
