"""Laws of checking graphs: those that exports write pass, and all others are refused in one sentence."""

import os
import random

import pytest
from samples.onnx_bytes import FLOAT, INT64, field, graph_that_adds, integers, model, node, outside, value

from ltx_runtime.errors import LtxError
from ltx_runtime.graph.check import check_graph
from ltx_runtime.graph.reading import Place, read_graph
from ltx_runtime.spec.components import text_encoder

FILES = {"t5.safetensors": 1000}
AXES = ("batch", "text_tokens")
AXIS_0 = field(5, field(1, "axis") + field(3, 0) + field(20, 2))


LOOKUP = (node("Gather", ["table", "ids"], "text", AXIS_0),)
INPUTS = (value("ids", INT64, AXES), value("mask", INT64, AXES))
OUTPUTS = (value("text", FLOAT, (*AXES, 6)),)
TABLE = outside("table", FLOAT, [7, 6], location="t5.safetensors", offset=8, length=168)


def graph(*, nodes=LOOKUP, inputs=INPUTS, outputs=OUTPUTS, table=TABLE, constants=(), **more):
    """Returns a graph that looks ids up in a table of a file."""
    return model(nodes, inputs, outputs, [table, *constants], **more)


@pytest.fixture
def check(tmp_path):
    """Checks the bytes of a graph as one of a text encoder."""

    def checked(content, files=FILES):
        path = tmp_path / "text_encoder.fp32.onnx"
        path.unlink(missing_ok=True)
        path.write_bytes(content)
        check_graph(path, text_encoder(6), files)

    return checked


def test_what_is_read_is_what_was_written(tmp_path):
    (tmp_path / "graph").write_bytes(graph(constants=[integers("axes", [-1, 3])]))
    read = read_graph(tmp_path / "graph")
    assert read.ir_version == 10 and read.opsets == {"": 23}
    assert [(one.name, one.data_type, one.axes) for one in (*read.inputs, *read.outputs)] == [
        ("ids", 7, AXES),
        ("mask", 7, AXES),
        ("text", 1, (*AXES, 6)),
    ]
    assert [(one.op_type, one.inputs, one.outputs) for one in read.nodes] == [("Gather", ("table", "ids"), ("text",))]
    table, axes = read.initializers
    assert (table.dims, table.place, table.length) == ((7, 6), Place("t5.safetensors", 8, 168), 168)
    assert (axes.name, axes.dims, axes.place, axes.length) == ("axes", (2,), None, 16)


def test_a_graph_of_the_component_passes(check):
    check(graph())
    check(graph_that_adds("ids", "mask", output="text"))
    check(graph(table=outside("table", 16, [7, 6], location="t5.safetensors", offset=916, length=84)))
    halves = outside("halves", 22, [3, 5], location="t5.safetensors", offset=0, length=8)  # two codes in a byte
    check(graph(constants=[halves]))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "it has no graph"),
        (graph(nodes=[node("Loop", ["ids"], "text")]), "the operator 'Loop', which no export uses"),
        (graph(nodes=[node("Gather", ["table", "ids"], "text", field(7, "x"))]), "the operator 'x.Gather'"),
        (graph(nodes=[node("Gather", ["other", "ids"], "text")]), "takes 'other', which nothing before it makes"),
        (graph(nodes=[node("Gather", ["table", "ids"], "ids")]), "two of its values are called 'ids'"),
        (graph(nodes=[node("Gather", ["table", "ids"], "x")]), "nothing makes its output text"),
        (graph(nodes=[node("Gather", ["table", "ids"], "text", field(5, field(6, b"")))]), "a field 6 that no export"),
        (graph(inputs=[value("ids", INT64, AXES)]), r"has the inputs \['ids'\] instead of ids, mask"),
        (graph(outputs=[value("text", FLOAT, (*AXES, 7))]), "the axes .*7] instead of .*6]"),
        (graph(outputs=[value("text", 11, (*AXES, 6))]), "the data type 11 instead of float32"),
        (graph(outputs=[field(1, "text")]), "a port is no tensor"),
        (graph(table=outside("table", FLOAT, [7, 6], location="x", offset=0, length=168)), "reads 'x', which is no"),
        (
            graph(table=outside("table", FLOAT, [7, 6], location="t5.safetensors", offset=833, length=168)),
            r"'table' of shape \[7, 6\] ends behind the end of t5.safetensors",
        ),
        (
            graph(table=outside("table", FLOAT, [7, 6], location="t5.safetensors", offset=0, length=164)),
            "164 bytes instead of 168",
        ),
        (graph(table=outside("table", FLOAT, [7, 6], location="t5.safetensors", offset=0)), "0 bytes instead of 168"),
        (graph(table=outside("table", 8, [7], location="t5.safetensors", offset=0, length=7)), "has the data type 8"),
        (graph(constants=[integers("ids", [1])]), "two of its values are called 'ids'"),
        (graph(more_of_graph=field(15, b"")), "a field 15 that no export writes"),
        (graph(more=field(25, b"")), "a field 25 that no export writes"),
        (graph(more=field(7, b"")), "field 7 twice where one is expected"),
        (graph(more=field(8, field(1, "com.microsoft") + field(2, 1))), "version 1 of the operators 'com.microsoft'"),
        (graph(more=bytes([7 << 3 | 5, 0, 0, 0, 0])), "a field 7 that no export writes"),
        (graph(more=bytes([14 << 3 | 3])), "a field of type 3"),
        (graph(more=bytes([14 << 3 | 2, 200])), "it ends within a number"),
        (graph(more=bytes([14 << 3 | 2, 20])), "it ends within a field"),
        (graph(more=bytes([14 << 3 | 2]) + b"\xff" * 10), "a number of more than 64 bits"),
    ],
    ids=lambda part: part if isinstance(part, str) else "",
)
def test_a_graph_that_no_export_writes_is_refused_with_the_reason(check, content, reason):
    with pytest.raises(LtxError, match=rf"text_encoder\.fp32\.onnx .*{reason}.* - export the version again, or get"):
        check(content)


def test_weights_may_have_two_names_but_not_many(check):
    place = {"location": "t5.safetensors", "offset": 0, "length": 1000}
    names = [outside(f"again.{number}", 3, [1000], **place) for number in range(3)]
    check(graph(constants=names[:1]))
    with pytest.raises(LtxError, match="reads 3168 bytes of weights from files of 1000"):
        check(graph(constants=names))


def test_whatever_bytes_of_a_graph_become_it_passes_or_is_refused_in_one_sentence(check):
    content, draw, passed = graph(constants=[integers("axes", [-1, 3])]), random.Random(0), 0
    damaged = [content[:length] for length in range(len(content))]
    for place in range(len(content)):
        damaged += [content[:place] + bytes([draw.randrange(256)]) + content[place + 1 :] for _ in range(4)]
    for changed in damaged:
        try:
            check(changed)
            passed += 1
        except LtxError as error:
            assert "\n" not in str(error) and "text_encoder.fp32.onnx" in str(error)
    assert passed < len(damaged) / 4


def test_a_graph_is_checked_again_when_its_file_or_its_weights_have_changed(tmp_path):
    path = tmp_path / "graph.onnx"
    path.write_bytes(graph())
    check_graph(path, text_encoder(6), FILES)
    with pytest.raises(LtxError, match="ends behind the end"):
        check_graph(path, text_encoder(6), {"t5.safetensors": 100})
    with pytest.raises(LtxError, match="axes"):
        check_graph(path, text_encoder(7), FILES)
    path.write_bytes(graph()[:-1])
    with pytest.raises(LtxError, match="ends within"):
        check_graph(path, text_encoder(6), FILES)


def test_a_file_that_is_missing_or_too_large_is_not_read(tmp_path):
    with pytest.raises(LtxError, match=r"cannot read .*no such file"):
        check_graph(tmp_path / "none.onnx", text_encoder(6), FILES)
    (tmp_path / "large.onnx").touch()
    os.truncate(tmp_path / "large.onnx", 1 << 40)
    with pytest.raises(LtxError, match="has 1099511627776 bytes, and a graph has at most"):
        check_graph(tmp_path / "large.onnx", text_encoder(6), FILES)
