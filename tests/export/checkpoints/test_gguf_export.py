"""Whole exports from GGUF files: a float T5 stays in its file, a quantized transformer keeps its bits."""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from oracles.networks import RELATIVE_L2, distance, shapes_of
from samples.gguf_files import dequantized, write_gguf, write_t5
from samples.tiny import export, sources_of, tiny
from stand_ins.tiny_engines import address, small

from ltx_export.checkpoints.readers import open_weights
from ltx_export.engines.files import build_engine
from ltx_export.models.dit import DitConfig, Transformer
from ltx_export.models.t5 import T5Config, TextEncoder
from ltx_export.random_weights import write_random_weights
from ltx_export.recorded import SIZES, random_feeds, run_graph
from ltx_export.sources.find import Sources
from ltx_runtime.folder.manifest import Engines, Manifest
from ltx_runtime.folder.reading import open_engines
from ltx_runtime.graph.check import check_graph
from ltx_runtime.spec.components import ComponentName
from ltx_runtime.spec.versions import TextEncoderSize, TransformerSize

T5 = T5Config(layers=2, width=256, heads=4, head_dim=64, hidden=512, vocabulary=330)
DIT = DitConfig(layers=2, heads=4, head_dim=64, channels=8, text_channels=256)
ROW = 256  # K-quants need rows that are a multiple of this
VERSION = replace(
    tiny("0.9.8-2b-distilled"),
    transformer=TransformerSize(DIT.layers, DIT.heads, DIT.head_dim, DIT.text_channels, DIT.channels),
    text_encoder=TextEncoderSize(T5.layers, T5.width, T5.heads, T5.head_dim, T5.hidden, T5.vocabulary),
)
FLOATS = pytest.mark.parametrize("dtype", ["F32", pytest.param("F16", marks=pytest.mark.slow), "BF16"])
QUANTIZED = pytest.mark.parametrize("dtype", ["Q8_0", "Q4_K"])


@dataclass(frozen=True)
class Made:
    """A version folder and the two GGUF files that it was exported from."""

    t5: Path
    transformer: Path
    engines: Engines

    @property
    def folder(self) -> Path:
        return self.engines.folder

    @property
    def manifest(self) -> Manifest:
        return self.engines.manifest


def write_transformer(path: Path, dtype: str) -> Path:
    """Writes matrices whose rows are whole blocks in `dtype`, and all else in F32, also block 0's scale_shift_table."""
    shapes = shapes_of(Transformer(DIT).named_parameters())

    def type_of(name: str) -> str:
        shape = shapes[name]
        return dtype if len(shape) == 2 and shape[1] % ROW == 0 and "blocks.0.scale_shift" not in name else "F32"

    return write_gguf(path, "ltxv", shapes, type_of)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Callable[[str], Made]:
    """Exports a T5 and a transformer of one GGUF type; tests must not change the result."""

    @cache
    def of(dtype: str) -> Made:
        root = tmp_path_factory.mktemp(dtype)
        write_random_weights(VERSION, root)
        given = sources_of(VERSION, root)
        t5 = write_t5(root / "t5.gguf", T5, lambda name: dtype)
        transformer = write_transformer(root / "ltxv.gguf", dtype)
        export(VERSION, Sources(transformer, t5, given.tokenizer, given.checkpoint), root / "engines", ("fp32", "bf16"))
        return Made(t5, transformer, open_engines(root / "engines"))

    return of


def outputs(made: Made, name: ComponentName) -> list[np.ndarray]:
    entry = made.manifest.components[name]
    feeds = [random_feeds(entry.signature, sizes) for sizes in SIZES]
    return run_graph(made.folder / entry.graphs["fp32"], made.folder, entry.signature, feeds)


def assert_computes_as(made: Made, name: ComponentName, module: torch.nn.Module, weights: dict) -> None:
    """Compares the fp32 graph with the torch module on the weights that gguf dequantizes from the file."""
    module.load_state_dict(weights)
    component = made.manifest.components[name].signature
    for sizes, output in zip(SIZES, outputs(made, name), strict=True):
        feeds = random_feeds(component, sizes)
        with torch.no_grad():
            expected = module(*(torch.from_numpy(feeds[port.name]) for port in component.inputs))
        assert np.isfinite(output).all()
        assert distance(output, expected) < RELATIVE_L2


def initializers(path: Path) -> dict[str, ir.ExternalTensor]:
    """Returns a graph's initializers with external data, by name."""
    constants = {name: value.const_value for name, value in ir.load(path).graph.initializers.items()}
    return {name: constant for name, constant in constants.items() if isinstance(constant, ir.ExternalTensor)}


@FLOATS
def test_a_t5_of_floats_is_linked_and_its_graph_points_into_it(made, dtype):
    one = made(dtype)
    linked = one.folder / "text_encoder.gguf"
    assert os.path.samefile(linked, one.t5)
    assert not (one.folder / "text_encoder.safetensors").exists()
    assert one.manifest.components["text_encoder"].weights == (linked.name,)
    stored = {(tensor.offset, tensor.length) for tensor in open_weights(one.t5).tensors.values()}
    for graph in one.manifest.components["text_encoder"].graphs.values():
        places = initializers(one.folder / graph)
        assert {str(place.location) for place in places.values()} == {linked.name}
        assert {(place.offset, place.length) for place in places.values()} == stored


@pytest.mark.parametrize("dtype", ["F16", "Q8_0", "Q4_K"])
def test_graphs_with_and_without_integers_may_be_loaded(made, dtype):
    engines = made(dtype).engines
    for name, entry in engines.manifest.components.items():
        for precision, graph in entry.graphs.items():
            check_graph(engines.folder / graph, entry.signature, engines.weight_sizes(name, precision))


@FLOATS
def test_a_t5_of_floats_is_that_of_torch(made, dtype):
    one = made(dtype)
    ours = {name: place.offset for name, place in initializers(one.folder / "text_encoder.fp32.onnx").items()}
    names = {tensor.offset: name for name, tensor in open_weights(one.t5).tensors.items()}
    weights = dequantized(one.t5)
    assert_computes_as(
        one, "text_encoder", TextEncoder(T5), {name: weights[names[offset]] for name, offset in ours.items()}
    )


@QUANTIZED
def test_a_quantized_transformer_is_that_of_torch_with_the_same_weights(made, dtype):
    one = made(dtype)
    assert_computes_as(one, "transformer", Transformer(DIT), dequantized(one.transformer))


@QUANTIZED
def test_every_linear_layer_that_is_quantized_keeps_its_integers(made, dtype):
    one = made(dtype)
    kinds = {name: tensor.dtype for name, tensor in open_weights(one.transformer).tensors.items()}
    quantized = {name for name, kind in kinds.items() if kind == dtype and name.endswith(".weight")}
    assert len(quantized) == 10 * DIT.layers + 6
    for graph in one.manifest.components["transformer"].graphs.values():
        nodes = onnx.load(one.folder / graph, load_external_data=False).graph.node
        assert {node.input[0] for node in nodes if node.op_type == "DequantizeLinear"} == quantized


def test_a_quantized_table_that_no_product_takes_becomes_floats(made):
    one = made("Q8_0")
    name = "transformer_blocks.1.scale_shift_table"
    assert open_weights(one.transformer).tensors[name].dtype == "Q8_0"
    place = initializers(one.folder / "transformer.fp32.onnx")[name]
    assert place.dtype == ir.DataType.FLOAT
    np.testing.assert_array_equal(place.numpy(), dequantized(one.transformer)[name].numpy())


@QUANTIZED
def test_the_manifest_says_how_near_the_graph_is_to_the_module_over_the_quantized_file(made, dtype):
    for name in ("text_encoder", "transformer"):
        parity = made(dtype).manifest.components[name].parity
        assert 0 < max(parity.relative_l2) < RELATIVE_L2


@QUANTIZED
def test_quantized_weights_lie_in_files_of_their_own_and_nothing_else_does(made, dtype):
    files = {file.name for file in made(dtype).folder.iterdir()}
    assert {"text_encoder.safetensors", "transformer.safetensors", "vae.safetensors"} <= files
    assert not any(".gguf" in name or name.startswith(".") for name in files)


@QUANTIZED
@pytest.mark.parametrize("name", ["text_encoder", "transformer"])
def test_tensorrt_compiles_what_was_quantized(made, dtype, name):
    assert build_engine(address(made(dtype).engines, name), small()).stat().st_size > 100_000
