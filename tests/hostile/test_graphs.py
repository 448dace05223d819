"""Graphs, signatures and tokenizers of strangers: each is refused in one sentence before a library sees it."""

import struct
from collections.abc import Callable

import numpy as np
import onnx
import pytest
from hostile.conftest import small_video
from onnx import TensorProto, helper
from samples.onnx_bytes import field

TRANSFORMER, DECODER = "transformer.fp32.onnx", "vae_decoder.fp32.onnx"
Edit = Callable[[onnx.ModelProto], object]


def weight_of(model: onnx.ModelProto) -> onnx.TensorProto:
    """Returns the first constant that lies in a file."""
    return next(tensor for tensor in model.graph.initializer if tensor.external_data)


def constant_of(model: onnx.ModelProto) -> onnx.TensorProto:
    """Returns the first constant with axes that lies in the graph."""
    return next(tensor for tensor in model.graph.initializer if tensor.raw_data and tensor.dims)


def place(model: onnx.ModelProto, **changed: object) -> None:
    """Changes the place of a constant that lies in a file."""
    tensor = weight_of(model)
    entries = {entry.key: entry.value for entry in tensor.external_data} | {
        key: str(value) for key, value in changed.items()
    }
    del tensor.external_data[:]
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=value)


def add_node(model: onnx.ModelProto, op_type: str, domain: str = "", **attributes: object) -> None:
    node = helper.make_node(op_type, [model.graph.input[0].name], ["more"], domain=domain, **attributes)
    model.graph.node.append(node)


def branches() -> dict[str, onnx.GraphProto]:
    empty = helper.make_graph([], "inside", [], [])
    return {"then_branch": empty, "else_branch": empty}


def add_constant_node(model: onnx.ModelProto) -> None:
    """Adds a constant whose values lie in a file, where ONNX Runtime looks for them, too."""
    tensor = TensorProto(name="inside", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="/etc/passwd")
    model.graph.node.append(helper.make_node("Constant", [], ["more"], value=tensor))


def add_function(model: onnx.ModelProto) -> None:
    """Adds a function that calls itself."""
    call = helper.make_node("Again", ["x"], ["y"], domain="local")
    model.functions.append(
        helper.make_function("local", "Again", ["x"], ["y"], [call], [helper.make_opsetid("local", 1)])
    )


def add_many_nodes(model: onnx.ModelProto) -> None:
    node = model.graph.node[0]
    model.graph.node.extend([node] * 100_001)


def read_many_times(model: onnx.ModelProto) -> None:
    """Adds a hundred more names of the same weights."""
    largest = max((t for t in model.graph.initializer if t.external_data), key=lambda tensor: int(np.prod(tensor.dims)))
    for number in range(100):
        model.graph.initializer.add().CopyFrom(largest)
        model.graph.initializer[-1].name = f"again.{number}"


# Name of the case -> an edit of the transformer's graph, and a part of the refusal.
GRAPHS: dict[str, tuple[Edit, str]] = {
    "an operator that runs another graph": (
        lambda model: add_node(model, "If", **branches()),
        "field 6 that no export",
    ),
    "an operator of a library": (lambda model: add_node(model, "FusedMatMul", "com.microsoft"), "FusedMatMul'"),
    "an operator that no export uses": (lambda model: add_node(model, "Loop"), "operator 'Loop', which no export uses"),
    "operators of another domain": (lambda model: model.opset_import.add(domain="x", version=1), "operators 'x'"),
    "operators of another version": (lambda model: setattr(model.opset_import[0], "version", 99), "version 99"),
    "another version of the format": (lambda model: setattr(model, "ir_version", 99), "version 99 of the format"),
    "a function that calls itself": (add_function, "field 25 that no export writes"),
    "a constant inside a node": (add_constant_node, "field 5 that no export writes"),
    "a training graph": (lambda model: model.training_info.add(), "field 20 that no export writes"),
    "a sparse constant": (lambda model: model.graph.sparse_initializer.add(), "field 15 that no export writes"),
    "a hundred thousand nodes": (add_many_nodes, "more than 100000 nodes"),
    "weights outside the folder": (
        lambda model: place(model, location="../../outside/secret.bin"),
        "is no weight file",
    ),
    "weights at an absolute path": (lambda model: place(model, location="/etc/passwd"), "'/etc/passwd', which is no"),
    "weights of a detour": (lambda model: place(model, location="./checkpoint.safetensors"), "is no weight file"),
    "weights of another component": (
        lambda model: place(model, location="text_encoder.safetensors"),
        "reads 'text_encoder.safetensors', which is no weight file of transformer",
    ),
    "weights in the manifest": (lambda model: place(model, location="manifest.json"), "is no weight file"),
    "weights behind the end": (lambda model: place(model, offset=100_000_000), "ends behind the end of checkpoint"),
    "weights before the beginning": (lambda model: place(model, offset=-8), "place is no number"),
    "weights at a far place": (lambda model: place(model, offset=2**62), "place is no number"),
    "weights of another length": (lambda model: place(model, length=3), "has 3 bytes instead of"),
    "weights with a checksum": (lambda model: place(model, checksum="0"), "an entry 'checksum'"),
    "weights that are read a hundred times": (read_many_times, "bytes of weights from files of"),
    "a shape that its bytes do not fill": (
        lambda model: constant_of(model).dims.append(1 << 40),
        r"bytes instead of",
    ),
    "a shape of many axes": (lambda model: weight_of(model).dims.extend([1] * 9), "dimensions"),
    "a constant of texts": (lambda model: setattr(constant_of(model), "data_type", TensorProto.STRING), "data type 8"),
    "a constant in two places": (lambda model: setattr(weight_of(model), "raw_data", b"1234"), "both in the graph"),
    "two constants of one name": (
        lambda model: setattr(constant_of(model), "name", weight_of(model).name),
        "two of its values are called",
    ),
    "a node that takes what comes later": (lambda model: model.graph.node.append(model.graph.node[0]), "two of its"),
    "an input that is missing": (lambda model: model.graph.input.pop(), "has the inputs"),
    "an input of another name": (lambda model: setattr(model.graph.input[0], "name", "pixels"), "has the inputs"),
    "an input of other numbers": (
        lambda model: setattr(model.graph.input[0].type.tensor_type, "elem_type", TensorProto.DOUBLE),
        "input latents has the data type 11 instead of float32",
    ),
    "an output of another size": (
        lambda model: setattr(model.graph.output[0].type.tensor_type.shape.dim[2], "dim_value", 7),
        "output velocity has the axes",
    ),
    "an output that nothing makes": (lambda model: model.graph.node.pop(), "nothing makes its output"),
}


def edit(stranger, name: str, change: Edit) -> None:
    model = onnx.load(stranger.folder / name, load_external_data=False)
    change(model)
    (stranger.folder / name).write_bytes(model.SerializeToString())
    stranger.list(name)


@pytest.mark.parametrize("case", GRAPHS)
def test_a_graph_that_no_export_writes_is_refused(stranger, refused, case):
    change, reason = GRAPHS[case]
    edit(stranger, TRANSFORMER, change)
    sentence = refused()
    assert TRANSFORMER in sentence and reason in sentence


@pytest.mark.parametrize("kind", ["empty", "half", "text", "zeros", "another component", "two graphs in one", "large"])
def test_a_file_that_is_no_graph_of_the_component_is_refused(stranger, refused, kind):
    raw = (stranger.folder / TRANSFORMER).read_bytes()
    contents = {
        "empty": b"",
        "half": raw[: len(raw) // 2],
        "text": b"no graph",
        "zeros": bytes(1000),
        "another component": (stranger.folder / DECODER).read_bytes(),
        "two graphs in one": raw + field(7, b""),
        "large": raw + field(14, bytes(33 << 20)),
    }
    (stranger.folder / TRANSFORMER).write_bytes(contents[kind])
    stranger.list(TRANSFORMER)
    assert TRANSFORMER in refused()


@pytest.mark.parametrize("name", ["text_encoder", "upsampler", "vae_decoder"])
def test_a_graph_is_refused_before_anything_runs_whenever_its_turn_would_be(stranger, refused, name):
    edit(stranger, f"{name}.fp32.onnx", lambda model: model.graph.output[0].type.tensor_type.shape.dim.pop())
    video = [argument for argument in small_video(stranger.folder) if argument != "--single-pass"]
    assert f"its output {stranger_output(name)} has the axes" in refused(*video)
    assert f"its output {stranger_output(name)} has the axes" in refused(*video, "--plan")


def stranger_output(name: str) -> str:
    return {"text_encoder": "text", "upsampler": "upsampled", "vae_decoder": "video"}[name]


def test_check_refuses_a_graph_that_a_run_would_refuse(stranger, refused):
    edit(stranger, TRANSFORMER, lambda model: place(model, location="../../outside/secret.bin"))
    sentence = refused("check", stranger.folder, program="ltx-export")
    assert "reads '../../outside/secret.bin', which is no weight file of transformer" in sentence


def test_a_graph_whose_nodes_do_not_fit_each_other_is_refused_by_the_library_in_one_sentence(stranger, watched):
    def swap(model):
        node = next(node for node in model.graph.node if node.op_type == "MatMul")
        node.input[:] = reversed(node.input)

    edit(stranger, TRANSFORMER, swap)
    ended = watched("ltx-run", *small_video(stranger.folder))
    assert ended.code == 2 and "Traceback" not in ended.err
    assert ended.err.splitlines()[-1].startswith(f"error: ONNX Runtime cannot run {stranger.folder / TRANSFORMER} (")


@pytest.mark.parametrize(
    ("signature", "reason"),
    [
        ({"inputs": []}, "signature.inputs is"),
        ({"name": "vae_decoder"}, "not upsampler"),
        (
            {
                "outputs": [
                    {"name": "upsampled", "axes": ["batch", 128, "frames", "rows", "columns"], "dtype": "float32"}
                ]
            },
            "",
        ),
        (
            {
                "inputs": [
                    {"name": "latents", "axes": ["batch", 10**12, "frames", "rows", "columns"], "dtype": "float32"}
                ]
            },
            "",
        ),
    ],
    ids=["no inputs", "another name", "another size", "a million million channels"],
)
def test_a_signature_that_no_component_has_is_refused(stranger, refused, signature, reason):
    stranger.change(lambda data: data["components"]["upsampler"]["signature"].update(signature))
    sentence = refused()
    assert "manifest.json is damaged (" in sentence and reason in sentence


def characters(tokenizer: bytes) -> int:
    """Returns where the packed map of characters begins in a tokenizer's file: the number of its trie's bytes."""
    return tokenizer.index(b"nmt_nfkc") + len(b"nmt_nfkc") + 4  # behind the key and the length of three bytes


def changed_map(tokenizer: bytes, unit: int, value: int) -> bytes:
    at = characters(tokenizer) + 4 * unit
    return tokenizer[:at] + struct.pack("<I", value) + tokenizer[at + 4 :]


TOKENIZERS: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda tokenizer: b"",
    "truncated": lambda tokenizer: tokenizer[: len(tokenizer) // 2],
    "a trie of all its bytes": lambda tokenizer: changed_map(tokenizer, 0, 0xFFFFFFFC),
    "a trie that leads outside": lambda tokenizer: changed_map(tokenizer, 1, 0x7FFFFE00),
    "a replacement that is no text": lambda tokenizer: tokenizer.replace("\u2211".encode(), b"\xff\xff\xff"),
    "a piece that is no text": lambda tokenizer: tokenizer.replace("\u2581".encode(), b"\xff\xff\xff", 1),
    "a second map": lambda tokenizer: tokenizer + field(3, field(2, b"more")),
    "another order of special pieces": lambda tokenizer: tokenizer.replace(b"<pad>", b"<dap>"),
    "more pieces than words": lambda tokenizer: tokenizer + b"".join(field(1, field(1, f"more{n}")) for n in range(99)),
}


@pytest.mark.parametrize("case", TOKENIZERS)
def test_a_tokenizer_that_its_library_could_not_bear_is_refused(stranger, refused, case):
    path = stranger.folder / "tokenizer.model"
    before = path.read_bytes()
    path.write_bytes(TOKENIZERS[case](before))
    assert path.read_bytes() != before
    stranger.list(path.name)
    assert str(path) in refused()
    assert str(path) in refused("check", stranger.folder, program="ltx-export")
