"""Precisions: one trace becomes graphs that compute in fp32, bf16 or fp16 throughout, and a T5 that fp16 can hold."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
import torch.nn.functional as F
from oracles.networks import distance, filled, tensor
from oracles.torch_networks import NETWORKS, networks_of
from oracles.weight_rule import weight
from safetensors.torch import save_file
from samples.tiny import Exported, export, traced_once

from ltx_export.build import ExportOptions
from ltx_export.graphs.attach import attach
from ltx_export.graphs.onnx_from_torch import Network
from ltx_export.graphs.precision import PRECISIONS, at_precision
from ltx_export.models.t5 import T5Config, TextEncoder
from ltx_export.networks.header import effective_header
from ltx_export.networks.parts import parts_of
from ltx_export.recorded import SIZES, check_folder, random_feeds, run_graph
from ltx_export.sources.find import open_sources
from ltx_runtime.folder.manifest import MANIFEST
from ltx_runtime.folder.reading import open_engines
from ltx_runtime.spec.components import text_encoder
from ltx_runtime.weights.checkpoint import open_safetensors

# One release of each VAE generation; the last has no STG and the width of 13B.
RELEASES = ("0.9.0", "0.9.1", "0.9.8-13b-distilled")
EVERY_RELEASE = pytest.mark.parametrize("name", RELEASES)
EVERY_COMPONENT = pytest.mark.parametrize("component", NETWORKS)
EVERY_PRECISION = pytest.mark.parametrize("precision", PRECISIONS)
HALVES = {onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16}
HALF_OF = {"fp32": set(), "bf16": {onnx.TensorProto.BFLOAT16}, "fp16": {onnx.TensorProto.FLOAT16}}
# Relative error that rounding to fp16 in every layer may cause.
FP16 = 1e-2
FP16_MAX = 65504.0


@pytest.fixture(scope="module")
def traced(exported) -> Callable[[str], ir.Model]:
    """Returns the traced graph of a component."""

    @cache
    def of(component: str) -> ir.Model:
        release = exported("0.9.1")
        opened = open_sources(release.sources)
        parts = parts_of(release.version, effective_header(release.version, opened), opened)
        return traced_once(next(part.network for part in parts if part.component.name == component))[1]

    return of


def described(model: ir.Model) -> bytes:
    """Serializes everything in a model, with dtypes and shapes of the weights that have no data yet."""
    weights = {name: (value.dtype, tuple(value.shape)) for name, value in model.graph.initializers.items()}
    return ir.to_proto(model).SerializeToString(deterministic=True) + repr(weights).encode()


def typed(path: Path) -> tuple[onnx.GraphProto, dict[str, int]]:
    """Returns a graph and the type of every value, inferred anew by ONNX's strict inference."""
    proto = onnx.load(path, load_external_data=False)
    declared = {value.name: value.type.tensor_type.elem_type for value in proto.graph.value_info}
    del proto.graph.value_info[:]
    graph = onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True).graph
    values = (*graph.input, *graph.output, *graph.value_info)
    types = {value.name: value.type.tensor_type.elem_type for value in values}
    types |= {one.name: one.data_type for one in graph.initializer}
    assert {name for node in graph.node for name in node.output if name} <= types.keys()
    assert {name: types[name] for name in declared} == declared
    return graph, types


def as_stored(graph: onnx.GraphProto) -> set[str]:
    """Returns the values in the checkpoint's own dtype: its weights, and the rows looked up in them."""
    weights = {one.name for one in graph.initializer if one.data_location == onnx.TensorProto.EXTERNAL}
    return weights | {n.output[0] for n in graph.node if n.op_type == "Gather" and n.input[0] in weights}


@EVERY_PRECISION
@EVERY_COMPONENT
def test_making_a_precision_leaves_the_traced_graph_as_it_was(traced, component, precision):
    before = described(traced(component))
    made = at_precision(traced(component), precision)
    for value in (*made.graph.initializers.values(), *(out for node in made.graph for out in node.outputs)):
        value.dtype = ir.DataType.DOUBLE  # later changes to the copy must not reach the original either
    assert described(traced(component)) == before


@EVERY_COMPONENT
def test_the_precision_that_was_traced_is_the_traced_graph(traced, component):
    model = traced(component)
    made = at_precision(model, "bf16")
    assert made.metadata_props.pop("precision") == "bf16"
    assert described(made) == described(model)


@EVERY_PRECISION
@EVERY_COMPONENT
@EVERY_RELEASE
def test_a_graph_has_no_half_but_that_of_its_precision_and_of_stored_weights(exported, name, component, precision):
    graph, types = typed(exported(name).graph(component, precision))
    stored = as_stored(graph)
    assert {types[value] for value in types.keys() - stored} & HALVES == HALF_OF[precision]
    assert {types[value] for value in stored} == {onnx.TensorProto.BFLOAT16}
    cast = {a.i for node in graph.node if node.op_type == "Cast" for a in node.attribute if a.name == "to"}
    assert cast & HALVES <= HALF_OF[precision]


@EVERY_PRECISION
@EVERY_COMPONENT
@EVERY_RELEASE
def test_ports_of_every_precision_are_float32_or_whole_numbers(exported, name, component, precision):
    release = exported(name)
    graph, types = typed(release.graph(component, precision))
    signature = release.manifest.components[component].signature
    dtypes = {"float32": onnx.TensorProto.FLOAT, "int64": onnx.TensorProto.INT64}
    ports = (*signature.inputs, *signature.outputs)
    assert [value.name for value in (*graph.input, *graph.output)] == [port.name for port in ports]
    assert {port.name: types[port.name] for port in ports} == {port.name: dtypes[port.dtype] for port in ports}


@EVERY_COMPONENT
@EVERY_RELEASE
def test_every_cast_of_an_fp32_graph_changes_something_or_makes_the_output(exported, name, component):
    graph, types = typed(exported(name).graph(component))
    casts = [node for node in graph.node if node.op_type == "Cast" and node.output[0] != graph.output[0].name]
    assert [node.name for node in casts if types[node.input[0]] == types[node.output[0]]] == []


@EVERY_COMPONENT
@EVERY_RELEASE
def test_an_fp16_graph_computes_what_its_module_does(exported, name, component):
    release = exported(name)
    signature = release.manifest.components[component].signature
    module = getattr(networks_of(release), component)
    requests = [random_feeds(signature, sizes) for sizes in SIZES]
    outputs = run_graph(release.graph(component, "fp16"), release.folder, signature, requests)
    for feeds, actual in zip(requests, outputs, strict=True):
        assert distance(actual, module(*(torch.from_numpy(feeds[port.name]) for port in signature.inputs))) < FP16


LOUD = T5Config(layers=3, width=32, heads=4, head_dim=16, hidden=48, vocabulary=120)


def loud(key: str, shape: tuple[int, ...]) -> np.ndarray:
    """Draws weights of a T5 with gated products in the hundreds and projections in the hundred thousands."""
    factor = {"wi_1": 300.0, "wo": 400.0}.get(key.split(".")[-2], 1.0)
    return (factor * weight(key, shape)).astype(np.float16).astype(np.float32)


def test_a_t5_whose_projections_outgrow_fp16_stays_finite_and_close(tmp_path):
    module = filled(TextEncoder(LOUD), loud)
    gated = []
    for block in module.encoder.block:
        projection = block.layer[1].DenseReluDense.wo
        projection.register_forward_pre_hook(lambda layer, given: gated.append((layer.weight, 64 * given[0])))
    component = text_encoder(LOUD.width)
    requests = [random_feeds(component, sizes) for sizes in SIZES]
    expected = [module(tensor(feeds["ids"]), tensor(feeds["mask"])) for feeds in requests]
    for projection, product in gated:
        assert product.abs().max() < FP16_MAX
        assert F.linear(product, projection).abs().max() > 2 * FP16_MAX
        assert not F.linear(product.half(), projection.half()).isfinite().all()

    file = tmp_path / "loud.safetensors"
    save_file(module.state_dict(), file)
    stored = open_safetensors(file).tensors
    make = Network(
        lambda blocks: component, lambda blocks: TextEncoder(replace(LOUD, layers=blocks)), 3, "encoder.block"
    )
    _, model = traced_once(make)
    outputs = {}
    for precision in ("fp32", "fp16"):
        made = at_precision(model, precision)
        attach(made, stored, {file: file.name}, tmp_path)
        ir.save(made, tmp_path / f"{precision}.onnx")
        outputs[precision] = run_graph(tmp_path / f"{precision}.onnx", tmp_path, component, requests)
    for half, whole, reference in zip(outputs["fp16"], outputs["fp32"], expected, strict=True):
        assert np.isfinite(half).all()
        assert distance(half, whole) < FP16
        assert distance(half, reference) < FP16


@pytest.fixture(scope="module")
def mixed(exported, tmp_path_factory) -> Exported:
    """Exports a folder without any fp32 graph, whose text encoder has other precisions than the rest."""
    release, folder = exported("0.9.5"), tmp_path_factory.mktemp("mixed") / "0.9.5"
    options = ExportOptions(("bf16",), {"text_encoder": ("fp16", "bf16")})
    return replace(release, folder=folder, manifest=export(release.version, release.sources, folder, options=options))


def test_every_component_has_the_precisions_asked_for_and_no_others(mixed):
    asked = {name: ["fp16", "bf16"] if name == "text_encoder" else ["bf16"] for name in NETWORKS}
    graphs = {name: {one: f"{name}.{one}.onnx" for one in precisions} for name, precisions in asked.items()}
    components = mixed.manifest.components
    assert {name: entry.graphs for name, entry in components.items()} == graphs
    written = {path.name for path in mixed.folder.glob("*.onnx")}
    assert written == {graph for of_component in graphs.values() for graph in of_component.values()}
    assert {path.name for path in mixed.folder.iterdir()} == {MANIFEST, *mixed.manifest.files}


def test_a_folder_without_fp32_graphs_was_compared_in_fp32_all_the_same(mixed, exported):
    whole = exported("0.9.5")
    for entry in mixed.manifest.components.values():
        assert max(entry.parity.relative_l2) < 1e-5
        with np.load(mixed.folder / entry.recorded) as ours, np.load(whole.folder / entry.recorded) as theirs:
            assert set(ours.files) == {port.name for port in (*entry.signature.inputs, *entry.signature.outputs)}
            assert {key: ours[key].tobytes() for key in ours.files} == {key: theirs[key].tobytes() for key in theirs}


def test_a_folder_without_fp32_graphs_says_so_when_it_is_checked(mixed):
    lines = []
    check_folder(open_engines(mixed.folder), lines.append)
    assert lines == [f"{name}: no fp32 graph to run here; its files are intact" for name in NETWORKS]
