"""Attaching weights: graphs point into files, cast other stored dtypes, and refuse weights they cannot point to."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from oracles.networks import RELATIVE_L2, distance, normal
from safetensors.torch import save_file

from ltx_export.graphs.attach import attach
from ltx_export.weights.rewrite import must_be_rewritten, rewrite
from ltx_runtime.errors import LtxError
from ltx_runtime.weights.checkpoint import ITEM_BYTES, StoredTensor, open_safetensors

DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
FILE = "weights.safetensors"


def weight_value(name: str, *shape: int) -> ir.Value:
    return ir.Value(name=name, type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(shape))


def lookup_graph() -> ir.Model:
    """Builds (table[ids] @ matrix + bias) with three weights that have no data yet."""
    ids = ir.Value(name="ids", type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape(["n"]))
    table, matrix, bias = weight_value("table", 6, 4), weight_value("matrix", 4, 3), weight_value("bias", 3)
    gather = ir.node("Gather", [table, ids])
    product = ir.node("MatMul", [gather.outputs[0], matrix])
    total = ir.node("Add", [product.outputs[0], bias])
    for node, name in ((gather, "rows"), (product, "product"), (total, "total")):
        node.outputs[0].name = name
        node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    total.outputs[0].shape = ir.Shape(["n", 3])
    graph = ir.Graph(
        [ids],
        [total.outputs[0]],
        nodes=[gather, product, total],
        initializers=[table, matrix, bias],
        opset_imports={"": 23},
        name="lookup",
    )
    return ir.Model(graph, ir_version=11)


@pytest.fixture
def stored(tmp_path):
    """Writes the three weights in a dtype; returns the folder, the tensors, and the stored tensors to read back."""

    def write(dtype: str) -> tuple[Path, dict[str, torch.Tensor], dict[str, StoredTensor]]:
        shapes = {"table": (6, 4), "matrix": (4, 3), "bias": (3,)}
        tensors = {name: normal(i, *shape).to(DTYPES[dtype]) for i, (name, shape) in enumerate(shapes.items())}
        save_file(tensors, tmp_path / FILE)
        return tmp_path, tensors, open_safetensors(tmp_path / FILE).tensors

    return write


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_graph_computes_with_the_stored_values_whatever_their_dtype(stored, dtype):
    folder, tensors, places = stored(dtype)
    model = lookup_graph()
    attach(model, places, {folder / FILE: FILE}, folder)
    ir.save(model, folder / "graph.onnx")
    session = onnxruntime.InferenceSession(str(folder / "graph.onnx"), providers=["CPUExecutionProvider"])
    ids = np.array([5, 0, 2, 2], np.int64)
    wide = {name: tensor.float() for name, tensor in tensors.items()}
    expected = wide["table"][torch.from_numpy(ids)] @ wide["matrix"] + wide["bias"]
    assert distance(session.run(None, {"ids": ids})[0], expected) <= RELATIVE_L2


@pytest.mark.parametrize(("dtype", "operators"), [
    ("F32", ["Gather", "MatMul", "Add"]),
    ("F16", ["Cast", "Cast", "Gather", "Cast", "MatMul", "Add"]),
    ("BF16", ["Cast", "Cast", "Gather", "Cast", "MatMul", "Add"]),
])  # fmt: skip
def test_only_what_is_stored_otherwise_is_cast_matrices_first_and_tables_behind_their_lookup(stored, dtype, operators):
    folder, _, places = stored(dtype)
    model = lookup_graph()
    attach(model, places, {folder / FILE: FILE}, folder)
    assert [node.op_type for node in model.graph] == operators


def test_attaching_copies_no_bytes_and_leaves_the_file_alone(stored):
    folder, _, places = stored("BF16")
    before = (folder / FILE).read_bytes()
    model = lookup_graph()
    attach(model, places, {folder / FILE: FILE}, folder)
    ir.save(model, folder / "graph.onnx")
    assert (folder / FILE).read_bytes() == before
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        assert isinstance(tensor, ir.ExternalTensor)
        assert (str(tensor.location), tensor.offset, tensor.length) == (FILE, places[name].offset, places[name].length)


def test_tensors_that_the_graph_does_not_have_are_left_out(stored):
    folder, _, places = stored("F32")
    model = lookup_graph()
    attach(model, places | {"unused": places["bias"]}, {folder / FILE: FILE}, folder)
    assert set(model.graph.initializers) == {"table", "matrix", "bias"}


def test_weights_of_one_graph_may_lie_in_several_files(stored):
    folder, _, places = stored("BF16")
    (folder / "second").write_bytes((folder / FILE).read_bytes())
    places["matrix"] = replace(places["matrix"], file=folder / "second")
    model = lookup_graph()
    attach(model, places, {folder / FILE: FILE, folder / "second": "renamed"}, folder)
    files = {name: str(value.const_value.location) for name, value in model.graph.initializers.items()}
    assert files == {"table": FILE, "matrix": "renamed", "bias": FILE}


@pytest.mark.parametrize("dtype", ["F8_E4M3", "I64", "U8"])
def test_a_dtype_that_graphs_can_not_point_into_is_rewritten_before(stored, dtype):
    folder, _, places = stored("F32")
    other = StoredTensor(folder / FILE, 8, 12, dtype, (3,))
    assert not must_be_rewritten(places, None, ())
    assert must_be_rewritten(places | {"bias": other}, None, ())


@pytest.mark.parametrize("dtype", ["I64", "U8", "F64"])
def test_a_dtype_that_no_weights_are_stored_in_is_refused_by_name(stored, dtype):
    folder, _, places = stored("F32")
    other = StoredTensor(folder / FILE, 8, 3 * ITEM_BYTES[dtype], dtype, (3,))
    with pytest.raises(LtxError, match=f"stores weights as {dtype}.*F32, F16, BF16"):
        rewrite(places | {"bias": other}, folder / "rewritten.safetensors")
    assert [path.name for path in folder.iterdir()] == [FILE]
