"""Graphs as builders receive them: ONNX Runtime computes the same with them as with the exported ones."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper
from samples.gguf_files import write_t5
from samples.tiny import tiny

from ltx_export.checkpoints.keys import tensors_of
from ltx_export.checkpoints.readers import open_weights
from ltx_export.engines.graph import DTYPES, Prepared, prepare, structure_of
from ltx_export.graphs.attach import attach
from ltx_export.graphs.onnx_from_torch import Network, onnx_from_torch
from ltx_export.models.t5 import T5Config, TextEncoder
from ltx_export.recorded import SIZES, random_feeds
from ltx_export.weights.rewrite import rewrite
from ltx_runtime.errors import LtxError
from ltx_runtime.spec import components
from ltx_runtime.spec.components import COMPONENT_NAMES, Component, Port

RELEASE = "0.9.8-13b-distilled"
VIDEO = ("batch", 3, "8*frames-7", "32*rows", "32*columns")
NUMPY = {"fp32": np.float32, "fp16": np.float16, "int8": np.int8, "uint8": np.uint8}
TABLES = frozenset({"shared.weight", "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"})
PRESENT = [name for name in COMPONENT_NAMES if name != "temporal_upsampler"]


def session_on(model: bytes, weights: Path) -> onnxruntime.InferenceSession:
    """Opens the graph without optimizations, which would change the rounding where weights are constants."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry("session.disable_prepacking", "1")
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(weights))
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def passing_on(folder: Path) -> tuple[Path, Component]:
    """Writes a decoder whose video is its input, with tensors named like the outputs that are added."""
    nodes = [
        helper.make_node("Identity", ["given"], ["mean"]),
        helper.make_node("Identity", ["mean"], ["frames"]),
        helper.make_node("Identity", ["frames"], ["video"]),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None] * 5) for name in ("given", "video")]
    graph = helper.make_graph(nodes, "vae_decoder", ends[:1], ends[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)
    onnx.save(model, folder / "graph.onnx")
    return folder / "graph.onnx", Component("vae_decoder", (Port("given", VIDEO),), (Port("video", VIDEO),))


def decoded(folder: Path, video: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    session = session_on(prepare(*passing_on(folder), "embedded").model, folder)
    assert [output.name for output in session.get_outputs()] == ["video", "frames", "mean"]
    same, frames, mean = session.run(None, {"given": video})
    np.testing.assert_array_equal(same, video)
    return frames, mean, video.transpose(0, 2, 3, 4, 1)


def test_frames_are_the_levels_of_the_video_with_channels_last(tmp_path):
    video = np.random.default_rng(0).normal(0, 0.8, (2, 3, 5, 8, 6)).astype(np.float32)
    edges = np.array([-1, 1, -1.5, 1.5, 0, -1 + 1 / 128, 1 - 2**-24, 0.5], np.float32)
    video[0, 0, 0, :, 0] = edges
    frames, _, last = decoded(tmp_path, video)
    assert (frames.dtype, frames.shape) == (np.uint8, (2, 5, 8, 6, 3))
    half = np.float32(0.5)
    np.testing.assert_array_equal(frames, np.floor(np.float32(255) * np.clip(last * half + half, 0, 1)))
    assert frames[0, 0, :4, 0, 0].tolist() == [0, 255, 0, 255]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_the_mean_of_an_item_tells_of_a_single_value_that_is_no_number(tmp_path, value):
    video = np.random.default_rng(1).normal(0, 1, (3, 3, 2, 4, 4)).astype(np.float32)
    _, mean, _ = decoded(tmp_path, video)
    np.testing.assert_allclose(mean, video.reshape(3, -1).mean(1), rtol=1e-5, atol=1e-6)
    video[1, 2, 1, 3, 0] = value
    _, mean, _ = decoded(tmp_path, video)
    assert np.isfinite(mean).tolist() == [True, False, True]


@pytest.mark.parametrize("name", PRESENT)
def test_weights_that_are_inputs_give_the_same_output_to_the_last_bit(exported, name):
    release = exported(RELEASE)
    component = release.manifest.components[name].signature
    feeds = random_feeds(component, SIZES[0])
    embedded = prepare(release.graph(name), component, "embedded")
    expected = session_on(embedded.model, release.folder).run(None, feeds)
    given = prepare(release.graph(name), component, "inputs")
    session = session_on(given.model, release.folder)
    weights = fed(given, release.folder, session)
    assert {one.name for one in session.get_inputs()} == feeds.keys() | weights.keys()
    for actual, wanted in zip(bound(session, feeds, weights), expected, strict=True):
        np.testing.assert_array_equal(actual, wanted)


def fed(given: Prepared, folder: Path, session: onnxruntime.InferenceSession) -> dict[str, onnxruntime.OrtValue]:
    """Returns the bytes of every weight that is an input, in its own dtype."""
    types = {word: number for number, word in DTYPES.items()}
    values = {}
    for name, one in given.weight_inputs.items():
        data = (folder / one.file).read_bytes()[one.offset : one.offset + one.size_bytes]
        bits = np.frombuffer(data, np.uint16 if one.dtype == "bf16" else NUMPY[one.dtype]).reshape(one.shape)
        values[name] = onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(bits, types[one.dtype])
    return values


def bound(session, feeds, weights) -> list[np.ndarray]:
    binding = session.io_binding()
    for name, array in feeds.items():
        binding.bind_cpu_input(name, array)
    for name, value in weights.items():
        binding.bind_ortvalue_input(name, value)
    for output in session.get_outputs():
        binding.bind_output(output.name)
    session.run_with_iobinding(binding)
    return binding.copy_outputs_to_cpu()


@pytest.mark.parametrize("name", PRESENT)
def test_every_byte_of_a_components_weights_is_counted_once_and_constants_stay_in_the_graph(exported, name):
    release = exported(RELEASE)
    component = release.manifest.components[name].signature
    graph = release.graph(name, "bf16")
    embedded, given = (prepare(graph, component, weights) for weights in ("embedded", "inputs"))
    stored = onnx.load(graph, load_external_data=False).graph.initializer
    outside = {one.name for one in stored if one.data_location == TensorProto.EXTERNAL}
    assert embedded.weight_inputs == {}
    assert given.weight_inputs.keys() == outside
    assert embedded.weights_bytes == given.weights_bytes == sum(w.size_bytes for w in given.weight_inputs.values())
    for one in given.weight_inputs.values():
        assert one.size_bytes == {"bf16": 2, "fp32": 4}[one.dtype] * int(np.prod(one.shape))
    kept = {one.name for one in onnx.load_from_string(given.model).graph.initializer}
    assert {one.name for one in stored} - outside <= kept
    assert not kept & outside
    assert len(given.model) < 1_000_000


def constant_row(model: onnx.ModelProto) -> onnx.TensorProto:
    """Returns the float32 constant of a transformer that is as long as a row of weights: the scale of plain norms."""
    inline = (one for one in model.graph.initializer if one.data_location != TensorProto.EXTERNAL)
    (row,) = (one for one in inline if one.data_type == TensorProto.FLOAT and one.dims)
    assert (onnx.numpy_helper.to_array(row) == np.ones(tiny(RELEASE).transformer.width)).all()
    return row


def test_the_scale_of_norms_without_weights_is_no_input(exported):
    release = exported(RELEASE)
    component = release.manifest.components["transformer"].signature
    given = prepare(release.graph("transformer", "bf16"), component, "inputs")
    scale = constant_row(onnx.load(release.graph("transformer", "bf16"), load_external_data=False))
    assert constant_row(onnx.load_from_string(given.model)) == scale
    assert scale.name not in given.weight_inputs


def test_only_a_decoder_gets_more_outputs(exported):
    release = exported(RELEASE)
    for name in PRESENT:
        component = release.manifest.components[name].signature
        model = onnx.load_from_string(prepare(release.graph(name, "fp16"), component, "inputs").model)
        more = ["frames", "mean"] if name == "vae_decoder" else []
        assert [one.name for one in model.graph.output] == [component.outputs[0].name, *more]


def moved(model: onnx.ModelProto) -> onnx.ModelProto:
    """Returns the same graph over another weights file, with its own metadata."""
    other = onnx.ModelProto()
    other.CopyFrom(model)
    other.doc_string, other.producer_version = "merged with fox.safetensors", "9"
    other.metadata_props.add(key="weights", value="elsewhere.safetensors")
    for one in other.graph.initializer:
        for entry in one.external_data:
            entry.value = {"location": "elsewhere.safetensors", "offset": "8"}.get(entry.key, entry.value)
    return other


def test_the_structure_is_equal_wherever_the_weights_lie_and_no_other_graph_has_it(exported):
    release = exported(RELEASE)
    graphs = {
        (name, precision): onnx.load(release.graph(name, precision), load_external_data=False)
        for name in PRESENT
        for precision in ("fp32", "bf16", "fp16")
    }
    seen = {structure_of(model) for model in graphs.values()}
    assert len(seen) == len(graphs)
    for model in graphs.values():
        assert structure_of(moved(model)) == structure_of(model)
    newer = moved(graphs["transformer", "bf16"])
    newer.opset_import[0].version += 1
    assert structure_of(newer) not in seen
    other = moved(graphs["transformer", "bf16"])
    row = constant_row(other)
    row.raw_data = bytes(len(row.raw_data))
    assert structure_of(other) not in seen


def test_the_structure_is_the_same_for_all_places_of_weights(exported):
    release = exported(RELEASE)
    component = release.manifest.components["vae_decoder"].signature
    graph = release.graph("vae_decoder", "bf16")
    assert len({prepare(graph, component, weights).structure for weights in ("embedded", "inputs", "refit")}) == 1


def test_another_file_or_another_components_graph_is_refused(exported, tmp_path):
    release = exported(RELEASE)
    component = release.manifest.components["transformer"].signature
    (tmp_path / "graph.onnx").write_bytes(b"no graph at all")
    with pytest.raises(LtxError, match=r"graph.onnx is not an ONNX graph - export the version again"):
        prepare(tmp_path / "graph.onnx", component, "embedded")
    with pytest.raises(LtxError, match="is not a graph of transformer - export"):
        prepare(release.graph("vae_encoder", "bf16"), component, "embedded")


@pytest.mark.parametrize(("dtype", "codes"), [("Q8_0", "int8"), ("Q4_K", "int4")])
def test_quantized_weights_are_inputs_in_their_few_bits(tmp_path, dtype, codes):
    size = T5Config(layers=1, width=256, heads=4, head_dim=64, hidden=512, vocabulary=330)
    component = components.text_encoder(size.width)
    file = write_t5(tmp_path / "t5.gguf", size, lambda name: dtype, "F16")
    network = Network(
        lambda blocks: component, lambda blocks: TextEncoder(replace(size, layers=blocks)), 1, "encoder.block"
    )
    tensors = tensors_of(open_weights(file), "text_encoder")
    weights = rewrite(tensors, tmp_path / "w.safetensors", tables=TABLES)
    model = onnx_from_torch(network)[1]
    attach(model, weights, {tmp_path / "w.safetensors": "w.safetensors"}, tmp_path)
    ir.save(model, tmp_path / "graph.onnx")
    given = prepare(tmp_path / "graph.onnx", component, "inputs")
    assert {one.dtype for one in given.weight_inputs.values()} >= {codes, "fp32"}
