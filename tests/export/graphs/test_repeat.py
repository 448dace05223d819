"""Repeated blocks: seven blocks made from four traced ones equal a trace of all seven."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from oracles.networks import RELATIVE_L2
from samples.tiny import sources_of, tiny

from ltx_export.graphs import onnx_from_torch as tracing
from ltx_export.graphs.attach import attach
from ltx_export.graphs.parity import check_parity
from ltx_export.graphs.precision import at_precision
from ltx_export.graphs.repeat import repeat_blocks
from ltx_export.models import network
from ltx_export.models.network import TRACED_BLOCKS
from ltx_export.networks.header import effective_header
from ltx_export.networks.parts import Part, parts_of
from ltx_export.random_weights import write_random_weights
from ltx_export.recorded import SIZES, random_feeds, run_graph
from ltx_export.sources.find import open_sources
from ltx_runtime.spec.components import transformer
from ltx_runtime.spec.presets import STG_MODES
from ltx_runtime.weights.checkpoint import StoredTensor

BLOCKS = 7
CHANGED = 5
LISTS = {"text_encoder": "encoder.block", "transformer": "transformer_blocks"}
EVERY_NETWORK = pytest.mark.parametrize("name", LISTS)
NOTHING: Mapping[str, Any] = MappingProxyType({})
FLOAT = ir.TensorType(ir.DataType.FLOAT)


@dataclass(frozen=True)
class Case:
    """A network of seven blocks, other weights of the same names, and its graph made in both ways."""

    part: Part
    others: dict[str, StoredTensor]
    repeated: ir.Model
    direct: ir.Model


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Case]:
    version = tiny("0.9.1")  # has STG, so every block takes its own row of the skip mask
    size, text = replace(version.transformer, layers=BLOCKS), replace(version.text_encoder, layers=BLOCKS)
    version = replace(version, transformer=size, text_encoder=text)
    folder = tmp_path_factory.mktemp("seven")

    def parts(seed: int) -> dict[str, Part]:
        write_random_weights(version, folder / str(seed), seed=seed)
        opened = open_sources(sources_of(version, folder / str(seed)))
        return {part.component.name: part for part in parts_of(version, effective_header(version, opened), opened)}

    own, others = parts(0), parts(1)

    @cache
    def of(name: str) -> Case:
        _, repeated = tracing.onnx_from_torch(own[name].network)
        with pytest.MonkeyPatch.context() as patch:
            for module in (tracing, network):
                patch.setattr(module, "TRACED_BLOCKS", 99)
            direct, whole = tracing.onnx_from_torch(own[name].network)
        assert whole is direct
        return Case(own[name], dict(others[name].tensors), repeated, direct)

    return of


def saved(model: ir.Model, tensors: Mapping[str, StoredTensor], path: Path) -> Path:
    """Writes the fp32 graph over these weights and returns the folder that their paths are relative to."""
    made = at_precision(model, "fp32")
    files = {tensor.file for tensor in tensors.values()}
    folder = next(iter(files)).parents[1]
    attach(made, tensors, {file: file.relative_to(folder).as_posix() for file in files}, folder)
    ir.save(made, path)
    return folder


def outputs_of(
    case: Case,
    model: ir.Model,
    folder: Path,
    changed: Mapping[str, StoredTensor] = NOTHING,
    fed: Mapping[str, np.ndarray] = NOTHING,
) -> list[np.ndarray]:
    """Returns a graph's outputs for two requests; `changed` replaces weights, `fed` inputs of the second request."""
    component = case.part.component
    first, second = (random_feeds(component, sizes) for sizes in SIZES)
    weights = saved(model, {**case.part.tensors, **changed}, folder / "graph.onnx")
    return run_graph(folder / "graph.onnx", weights, component, [first, {**second, **fed}])


@EVERY_NETWORK
def test_a_repeated_graph_computes_exactly_what_the_traced_one_does(case, tmp_path, name):
    one = case(name)
    repeated, direct = (outputs_of(one, model, tmp_path) for model in (one.repeated, one.direct))
    for sizes, actual, expected in zip(SIZES, repeated, direct, strict=True):
        assert np.array_equal(actual, expected), sizes
        assert np.isfinite(actual).all()


@EVERY_NETWORK
def test_a_repeated_graph_computes_what_its_module_does(case, tmp_path, name):
    one = case(name)
    network, tensors = one.part.network, dict(one.part.tensors)
    folder = saved(one.repeated, tensors, tmp_path / "graph.onnx")
    parity = check_parity(lambda: network.make(BLOCKS), one.part.component, tensors, tmp_path / "graph.onnx", folder)
    assert max(parity.relative_l2) <= RELATIVE_L2


@EVERY_NETWORK
def test_a_repeated_graph_has_the_operators_and_weights_of_the_traced_one_in_every_block(case, name):
    one = case(name)
    operators, weights = [], []
    for model in (one.repeated, one.direct):
        operators.append(Counter(((node.name or "").partition("/")[0], node.op_type) for node in model.graph))
        weights.append({name for name, value in model.graph.initializers.items() if value.const_value is None})
    assert operators[0] == operators[1]
    assert weights[0] == weights[1] == set(one.part.tensors)
    for block in range(BLOCKS):
        assert any(module.startswith(f"{LISTS[name]}.{block}") for module, _ in operators[0])


@EVERY_NETWORK
def test_a_repeated_graph_is_valid_and_every_name_in_it_stands_for_one_thing(case, tmp_path, name):
    one = case(name)
    folder = saved(one.repeated, dict(one.part.tensors), tmp_path / "graph.onnx")
    proto = onnx.load(tmp_path / "graph.onnx", load_external_data=False)
    made = [output for node in proto.graph.node for output in node.output if output]
    made += [value.name for value in (*proto.graph.input, *proto.graph.initializer)]
    for names in (made, [node.name for node in proto.graph.node]):
        assert [one for one, count in Counter(names).items() if count > 1] == []
    (folder / "checked.onnx").write_bytes((tmp_path / "graph.onnx").read_bytes())
    onnx.checker.check_model(folder / "checked.onnx", full_check=True)


@EVERY_NETWORK
def test_ports_of_a_repeated_graph_are_those_of_all_blocks(case, name):
    one = case(name)
    component = one.part.component
    for ports, values in (
        (component.inputs, one.repeated.graph.inputs),
        (component.outputs, one.repeated.graph.outputs),
    ):
        assert [(value.name, tuple(value.shape)) for value in values] == [(port.name, port.axes) for port in ports]
    if name == "transformer":
        assert component.inputs[-1].axes == (BLOCKS, len(STG_MODES), "batch")


def unskipped(case: Case) -> dict[str, np.ndarray]:
    """Returns a skip mask for the second request that skips nothing, if the component takes one."""
    given = random_feeds(case.part.component, SIZES[1])
    return {port: np.ones_like(given[port]) for port in given if port == "skip_mask"}


@EVERY_NETWORK
def test_every_weight_of_a_repeated_block_is_used(case, tmp_path, name):
    one = case(name)
    fed = unskipped(one)
    _, before = outputs_of(one, one.repeated, tmp_path, fed=fed)
    weights = [weight for weight in one.part.tensors if weight.startswith(f"{LISTS[name]}.{CHANGED}.")]
    assert len(weights) == {"text_encoder": 9, "transformer": 25}[name]
    for weight in weights:
        _, after = outputs_of(one, one.repeated, tmp_path, {weight: one.others[weight]}, fed)
        assert not np.array_equal(after, before), weight


@pytest.mark.parametrize("mode", range(len(STG_MODES)), ids=STG_MODES)
@pytest.mark.parametrize("block", range(BLOCKS))
def test_every_row_of_the_skip_mask_is_that_of_its_own_block(case, tmp_path, block, mode):
    one = case("transformer")
    kept = unskipped(one)
    skipped = {"skip_mask": kept["skip_mask"].copy()}
    skipped["skip_mask"][block, mode] = 0
    _, before = outputs_of(one, one.repeated, tmp_path, fed=kept)
    _, after = outputs_of(one, one.repeated, tmp_path, fed=skipped)
    _, expected = outputs_of(one, one.direct, tmp_path, fed=skipped)
    assert not np.array_equal(after, before)
    assert np.array_equal(after, expected)


@pytest.mark.parametrize("layers", [4, 28, 48])
def test_a_random_skip_mask_has_every_mode_and_leaves_most_of_the_work_to_be_compared(layers):
    """Blocks that are skipped as a whole are not compared at all."""
    alone, three = (random_feeds(transformer(8, 32, 40, layers), sizes)["skip_mask"] for sizes in SIZES)
    for mask in (alone, three):
        assert mask.shape[:2] == (layers, len(STG_MODES)) and set(np.unique(mask)) == {0, 1}
        assert (mask.min(axis=(0, 2)) == 0).all() and (mask.min(axis=(1, 2))[::4] == 1).all()
        assert (mask.sum(axis=1) >= len(STG_MODES) - 1).all()
    assert (three.min(axis=1).sum(axis=1) >= 2).all()
    assert alone[: TRACED_BLOCKS - 1, STG_MODES.index("transformer_block")].all()


# A node of a hand-made block: (operator, inputs, attributes). An input is `x` (the result of the previous block), `w`
# (the block's own weight), an operator of the same or of the previous block, or a value outside the blocks.
Step = tuple[str, Sequence[str], dict[str, float]]
PLAIN: tuple[Step, ...] = (("Mul", ("x", "w"), {}), ("Sub", ("Mul", "shared"), {}), ("LeakyRelu", ("Sub",), {}))


def constant(name: str, value: float) -> ir.Value:
    tensor = ir.tensor(np.full(2, value, np.float32), name=name)
    return ir.Value(name=name, type=FLOAT, shape=ir.Shape([2]), const_value=tensor)


def chain(second: Sequence[Step] = PLAIN, others: Sequence[Step] = PLAIN) -> ir.Model:
    """Builds four blocks in a row, of which block 2 may be different; `early` is the result of block 0."""
    given = ir.Value(name="given", type=FLOAT, shape=ir.Shape([2]))
    made, remade = (ir.node(op, [given], name=f"graph/{op}") for op in ("Neg", "Exp"))
    constants = {name: constant(name, value) for name, value in (("shared", 0.5), ("another", 0.25))}
    weights = [ir.Value(name=f"blocks.{i}.w", type=FLOAT, shape=ir.Shape([2])) for i in range(TRACED_BLOCKS)]
    outside = {**constants, "made": made.outputs[0], "remade": remade.outputs[0]}
    nodes, x, values = [made, remade], given, {}
    for block, weight in enumerate(weights):
        values = {**{f"last {op}": value for op, value in values.items()}, **outside, "x": x, "w": weight}
        for op, inputs, attributes in second if block == 2 else others:
            node = ir.node(op, [values[one] for one in inputs], attributes, name=f"blocks.{block}/{op}_{len(nodes)}")
            x = values[op] = node.outputs[0]
            nodes.append(node)
        outside.setdefault("early", x)
    for number, node in enumerate(nodes):
        node.outputs[0].name, node.outputs[0].type = f"value_{number}", FLOAT
    x.shape = ir.Shape([2])
    initializers = [*constants.values(), *weights]
    return ir.Model(
        ir.Graph([given], [x], nodes=nodes, initializers=initializers, opset_imports={"": 23}, name="x"), ir_version=11
    )


def test_repeating_leaves_the_traced_graph_as_it_was():
    traced = chain()
    before, weights = ir.to_proto(traced).SerializeToString(), list(traced.graph.initializers)
    repeat_blocks(traced, "blocks", BLOCKS)
    assert ir.to_proto(traced).SerializeToString() == before
    assert list(traced.graph.initializers) == weights


def test_hand_made_blocks_that_are_the_same_are_repeated():
    repeated = repeat_blocks(chain(), "blocks", BLOCKS)
    assert Counter(node.op_type for node in repeated.graph) == {"Neg": 1, "Exp": 1, "Mul": 7, "Sub": 7, "LeakyRelu": 7}
    taken = [node.inputs[1].name for node in repeated.graph if node.op_type == "Mul"]
    assert taken == [f"blocks.{block}.w" for block in range(BLOCKS)]


MUL, SUB, RELU = PLAIN
DIFFERENT: dict[str, tuple[Sequence[Step], Sequence[Step]]] = {
    "another operator": ((("Div", ("x", "w"), {}), ("Sub", ("Div", "shared"), {}), RELU), PLAIN),
    "one operator more": ((*PLAIN, ("Abs", ("LeakyRelu",), {})), PLAIN),
    "one operator less": ((MUL, SUB), PLAIN),
    "something else from outside": (
        (MUL, ("Sub", ("Mul", "remade"), {}), RELU),
        (MUL, ("Sub", ("Mul", "made"), {}), RELU),
    ),
    "what a block further away has made": ((MUL, ("Sub", ("Mul", "early"), {}), RELU), PLAIN),
    "an attribute": ((MUL, SUB, ("LeakyRelu", ("Sub",), {"alpha": 0.3})), PLAIN),
    "a constant": ((MUL, ("Sub", ("Mul", "another"), {}), RELU), PLAIN),
    "a weight in the place of a constant": ((MUL, ("Sub", ("Mul", "w"), {}), RELU), PLAIN),
    "which results of the block before it takes": (
        (("Mul", ("x", "last Mul"), {}), *PLAIN[1:]),
        (("Mul", ("x", "x"), {}), *PLAIN[1:]),
    ),
    "the order of inputs": ((MUL, ("Sub", ("shared", "Mul"), {}), RELU), PLAIN),
    "which of its own results it takes": ((MUL, SUB, ("LeakyRelu", ("Mul",), {})), PLAIN),
}


@pytest.mark.parametrize("difference", DIFFERENT)
def test_blocks_that_differ_are_refused(difference):
    with pytest.raises(ValueError, match=r"blocks"):
        repeat_blocks(chain(*DIFFERENT[difference]), "blocks", BLOCKS)
