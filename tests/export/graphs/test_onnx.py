"""Exported graphs: ONNX Runtime against the torch module at many sizes, and the contents of a graph file."""

import json
import logging
import re
from itertools import takewhile
from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch
from oracles.networks import RELATIVE_L2, distance
from oracles.torch_networks import networks_of
from samples.tiny import Exported

from ltx_export.graphs import onnx_from_torch as tracing
from ltx_export.graphs.precision import PRECISIONS
from ltx_export.recorded import random_feeds
from ltx_runtime.spec.components import text_encoder

PREFIXES = {"text_encoder": "", "vae_encoder": "vae.", "transformer": "model.diffusion_model.", "vae_decoder": "vae."}
# One release of each VAE generation; the last has no STG and the width of 13B.
RELEASES = ("0.9.0", "0.9.1", "0.9.8-13b-distilled")
GRAPHS = [(name, component) for name in RELEASES for component in PREFIXES]
EVERY_GRAPH = pytest.mark.parametrize(
    ("name", "component"), [pytest.param(*graph, marks=[pytest.mark.slow] * (graph[0] == "0.9.1")) for graph in GRAPHS]
)
EVERY_PRECISION = pytest.mark.parametrize("precision", PRECISIONS)

TEXT_SIZES = [(1, 1), (1, 9), (3, 20), (1, 91), (3, 150)]
# (batch, tokens of a grid, timesteps, text tokens): one timestep for all tokens, and one per token.
TRANSFORMER_SIZES = [
    (1, 1 * 2 * 3, 1, 1),
    (1, 2 * 1 * 5, 10, 6),
    (3, 4 * 3 * 2, 1, 9),
    (3, 5 * 2 * 6, 60, 5),
    (1, 6 * 5 * 3, 90, 20),
]
VAE_SIZES = [(1, 1, 2, 3), (1, 2, 3, 2), (3, 4, 1, 2), (1, 6, 2, 1), (3, 2, 5, 3)]


def sizes_of(component: str) -> list[dict[str, int]]:
    if component == "text_encoder":
        return [{"batch": b, "text_tokens": t} for b, t in TEXT_SIZES]
    if component == "transformer":
        names = ("batch", "tokens", "timesteps", "text_tokens")
        return [dict(zip(names, sizes, strict=True)) for sizes in TRANSFORMER_SIZES]
    return [dict(zip(("batch", "frames", "rows", "columns"), sizes, strict=True)) for sizes in VAE_SIZES]


def module_of(release: Exported, component: str) -> torch.nn.Module:
    return getattr(networks_of(release), component)


def proto_of(path: Path) -> onnx.ModelProto:
    return onnx.load(path, load_external_data=False)


def is_external(initializer: onnx.TensorProto) -> bool:
    return initializer.data_location == onnx.TensorProto.EXTERNAL


@EVERY_GRAPH
def test_one_graph_gives_what_its_module_gives_at_every_size(exported, name, component):
    release = exported(name)
    signature = release.manifest.components[component].signature
    module = module_of(release, component)
    session = onnxruntime.InferenceSession(str(release.graph(component)), providers=["CPUExecutionProvider"])
    for sizes in sizes_of(component):
        feeds = random_feeds(signature, sizes)
        expected = module(*(torch.from_numpy(feeds[port.name]) for port in signature.inputs))
        (actual,) = session.run(None, feeds)
        assert distance(actual, expected) <= RELATIVE_L2, sizes


@pytest.mark.parametrize("component", PREFIXES)
def test_no_compared_size_is_the_traced_one(component):
    tried = sizes_of(component)
    assert len(tried) >= 4
    assert {sizes["batch"] for sizes in tried} == {1, 3}
    for sizes in tried:
        assert all(tracing._TRACED_SIZES[axis] != size for axis, size in sizes.items())


@EVERY_PRECISION
@EVERY_GRAPH
def test_ports_are_those_of_the_component(exported, name, component, precision):
    release = exported(name)
    signature = release.manifest.components[component].signature
    graph = proto_of(release.graph(component, precision)).graph
    dtypes = {"float32": onnx.TensorProto.FLOAT, "int64": onnx.TensorProto.INT64}
    for ports, values in ((signature.inputs, graph.input), (signature.outputs, graph.output)):
        assert [value.name for value in values] == [port.name for port in ports]
        for port, value in zip(ports, values, strict=True):
            kind = value.type.tensor_type
            assert kind.elem_type == dtypes[port.dtype]
            assert tuple(d.dim_param or d.dim_value for d in kind.shape.dim) == port.axes


@EVERY_PRECISION
@EVERY_GRAPH
def test_graphs_use_the_operators_of_opset_23(exported, name, component, precision):
    model = proto_of(exported(name).graph(component, precision))
    assert {(entry.domain, entry.version) for entry in model.opset_import if entry.domain == ""} == {("", 23)}
    used = {node.op_type for node in model.graph.node}
    assert {node.domain for node in model.graph.node} == {""}
    expected = {
        "text_encoder": {"Attention", "RMSNormalization"},
        "transformer": {"Attention", "RMSNormalization", "RotaryEmbedding"},
        "vae_encoder": {"Conv", "Split", "Clip"},
        "vae_decoder": {"Conv"},
    }
    assert expected[component] <= used
    assert used.isdisjoint({"Loop", "Cos", "Sin"})  # angles are the runtime's business, in float32


@EVERY_PRECISION
@EVERY_GRAPH
def test_a_graph_file_holds_no_weights_and_only_small_constants(exported, name, component, precision):
    release = exported(name)
    path = release.graph(component, precision)
    weights = set(module_of(release, component).state_dict())
    graph = proto_of(path).graph
    assert {one.name for one in graph.initializer if is_external(one)} == weights
    assert all(len(one.SerializeToString()) < 1 << 20 for one in graph.initializer)
    constants = [a.t for node in graph.node for a in node.attribute if a.type == onnx.AttributeProto.TENSOR]
    assert all(len(one.SerializeToString()) < 1 << 20 for one in constants)
    assert path.stat().st_size < 1 << 20


@EVERY_PRECISION
@EVERY_GRAPH
def test_every_weight_points_to_its_own_bytes_in_the_unmodified_checkpoint(exported, name, component, precision):
    release = exported(name)
    path = release.graph(component, precision)
    file_name = "text_encoder.safetensors" if component == "text_encoder" else "checkpoint.safetensors"
    raw = (path.parent / file_name).read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8:start])
    for one in proto_of(path).graph.initializer:
        if not is_external(one):
            continue
        entry = header[PREFIXES[component] + one.name]
        begin, end = entry["data_offsets"]
        external = {pair.key: pair.value for pair in one.external_data}
        assert external["location"] == file_name
        assert (int(external["offset"]), int(external["length"])) == (start + begin, end - begin)
        assert start + end <= len(raw)
        assert (one.data_type, list(one.dims)) == (onnx.TensorProto.BFLOAT16, entry["shape"])


@EVERY_PRECISION
@EVERY_GRAPH
def test_a_graph_file_tells_nothing_of_the_machine_it_was_made_on(exported, name, component, precision):
    release = exported(name)
    path = release.graph(component, precision)
    model, raw = proto_of(path), path.read_bytes()
    assert {prop.key: prop.value for prop in model.metadata_props} == {"precision": precision}
    described = [model.graph, *model.graph.node, *model.graph.initializer]
    described += [*model.graph.input, *model.graph.output, *model.graph.value_info]
    assert all(len(one.metadata_props) == 0 for one in described)
    assert all(one.doc_string == "" for one in described)
    here = (Path.home(), Path.cwd(), release.folder, release.folder.parent, Path(torch.__file__).parents[1])
    assert not [place for place in here if str(place).encode() in raw]
    assert not re.search(rb"\.py\b|(?<![\w/])/(?:[\w.-]+/){2,}", raw)


@EVERY_GRAPH
def test_stored_weights_are_cast_before_anything_else_runs(exported, name, component):
    """A runtime can then cast each weight just before its consumer; tables are cast after the lookup."""
    graph = proto_of(exported(name).graph(component)).graph
    stored = {one.name for one in graph.initializer if is_external(one)}
    casts = list(takewhile(lambda node: node.op_type == "Cast" and node.input[0] in stored, graph.node))
    cast = {node.input[0] for node in casts}
    assert len(cast) == len(casts)
    looked_up = {
        node.input[0]: node.output[0] for node in graph.node if node.op_type == "Gather" and node.input[0] in stored
    }
    assert cast | set(looked_up) == stored
    assert cast.isdisjoint(looked_up)
    for node in graph.node[len(casts) :]:
        assert stored.isdisjoint(node.input) or node.op_type == "Gather"
    for rows in looked_up.values():
        assert [node.op_type for node in graph.node if rows in node.input] == ["Cast"]
    expected = {"shared.weight", "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"}
    assert set(looked_up) == (expected if component == "text_encoder" else set())


@EVERY_GRAPH
def test_a_bf16_graph_takes_stored_weights_as_they_are(exported, name, component):
    """No weight is cast to bf16; weights that are cast at all are widened where float32 is needed."""
    graph = proto_of(exported(name).graph(component, "bf16")).graph
    stored = {one.name for one in graph.initializer if is_external(one)}
    to = {
        a.i for n in graph.node if n.op_type == "Cast" and n.input[0] in stored for a in n.attribute if a.name == "to"
    }
    assert to <= {onnx.TensorProto.FLOAT}
    matrices = {one.name for one in graph.initializer if is_external(one) and len(one.dims) > 1}
    widened = {node.input[0] for node in graph.node if node.op_type == "Cast"}
    assert matrices.isdisjoint(widened)


def test_tracing_leaves_the_default_dtype_and_the_loggers_as_they_were(exported):
    levels = {name: logging.getLogger(name).level for name in tracing._CHATTY_LOGGERS}
    exported("0.9.0")
    assert torch.get_default_dtype() == torch.float32
    assert {name: logging.getLogger(name).level for name in tracing._CHATTY_LOGGERS} == levels


def test_the_default_dtype_comes_back_when_a_module_can_not_be_built():
    def fails() -> torch.nn.Module:
        raise ArithmeticError

    with pytest.raises(ArithmeticError):
        tracing.build_empty(fails, torch.bfloat16)
    assert torch.get_default_dtype() == torch.float32


class Changing(torch.nn.Module):
    """Module that adds to a tensor in place."""

    def forward(self, ids, mask):
        return ids.float().add_(mask.float())[..., None]


def test_an_operator_that_changes_its_input_is_refused():
    network = tracing.Network(lambda blocks: text_encoder(1), lambda blocks: Changing())
    with pytest.raises(ValueError, match=r"add_.* modifies its input in place"):
        tracing.onnx_from_torch(network)
