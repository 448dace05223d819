"""Quantized T5s from GGUF files: weights against gguf's to the last bit, embeddings against transformers'."""

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from oracles.networks import RELATIVE_L2, distance, transformers_t5
from samples.gguf_files import QUANTIZED, Types, dequantized, write_t5
from stand_ins.tiny_engines import BUILDER

from ltx_export.checkpoints.keys import tensors_of
from ltx_export.checkpoints.readers import open_weights
from ltx_export.engines.engine_from_onnx import engine_from_onnx
from ltx_export.graphs.attach import attach
from ltx_export.graphs.onnx_from_torch import Network, onnx_from_torch
from ltx_export.graphs.precision import at_precision
from ltx_export.models.t5 import T5Config, TextEncoder
from ltx_export.weights.rewrite import rewrite
from ltx_runtime.sessions import onnxruntime_cpu
from ltx_runtime.sessions.trt.library import load_library
from ltx_runtime.spec import components
from ltx_runtime.weights.checkpoint import StoredTensor

SMALL = T5Config(layers=2, width=256, heads=4, head_dim=64, hidden=512, vocabulary=330)
# More layers than are traced, and heads that together are narrower than the model.
DEEP = T5Config(layers=5, width=512, heads=4, head_dim=64, hidden=768, vocabulary=259)
WIDE = T5Config(layers=1, width=1024, heads=16, head_dim=64, hidden=2816, vocabulary=330)
LINEAR = 7  # linear weights per layer
FILE = "text_encoder.safetensors"
TABLES = frozenset({"shared.weight", "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"})
EVERY_TYPE = pytest.mark.parametrize("dtype", QUANTIZED)
HALVES = pytest.mark.parametrize("precision", ["bf16", "fp16"])


def medium(most: str, some: str, table: str) -> Types:
    """Returns a mixture like Q4_K_M, which keeps the most important weights in more bits."""
    return lambda name: table if "token_embd" in name else some if "attn_v" in name or "ffn_down" in name else most


MIXTURES = {
    "Q4_K_M": medium("Q4_K", "Q6_K", "Q6_K"),
    "Q5_K_M": medium("Q5_K", "Q6_K", "Q5_K"),
    "Q3_K_M": medium("Q3_K", "Q4_K", "Q6_K"),
    "IQ4_NL": medium("IQ4_NL", "Q5_0", "Q8_0"),
    "halves": medium("Q8_0", "F16", "BF16"),
}


def network_of(size: T5Config) -> Network:
    return Network(
        lambda blocks: components.text_encoder(size.width),
        lambda blocks: TextEncoder(replace(size, layers=blocks)),
        size.layers,
        "encoder.block",
    )


@cache
def traced(size: T5Config) -> ir.Model:
    return onnx_from_torch(network_of(size))[1]


@dataclass(frozen=True)
class Given:
    """A GGUF file and the folder of the graphs made from it."""

    file: Path
    size: T5Config
    folder: Path

    def graph(self, precision: str) -> Path:
        path = self.folder / f"text_encoder.{precision}.onnx"
        if not path.exists():
            model = at_precision(traced(self.size), precision)
            weights = rewrite(self.tensors(), self.folder / FILE, tables=TABLES)
            attach(model, weights, {self.folder / FILE: FILE}, self.folder)
            ir.save(model, path)
        return path

    def tensors(self) -> dict[str, StoredTensor]:
        return tensors_of(open_weights(self.file), "text_encoder")

    def weights(self) -> dict[str, torch.Tensor]:
        """Returns the weights that gguf dequantizes from the file, under our names."""
        theirs = {tensor.offset: name for name, tensor in open_weights(self.file).tensors.items()}
        values = dequantized(self.file)
        return {name: values[theirs[tensor.offset]] for name, tensor in self.tensors().items()}


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Callable[[str, T5Config], Given]:
    """Writes a T5 of a type or mixture and a size; tests must not change its folder."""

    @cache
    def of(types: str, size: T5Config = SMALL) -> Given:
        folder = tmp_path_factory.mktemp(types)
        matrices = MIXTURES.get(types, lambda name: types)
        return Given(write_t5(folder / "t5.gguf", size, matrices, "F16"), size, folder)

    return of


def request(size: T5Config, batch: int, tokens: int) -> dict[str, np.ndarray]:
    """Returns ids and mask; r quarters of row r are padding, at its end."""
    ids = np.random.default_rng(tokens).integers(2, size.vocabulary, (batch, tokens))
    mask = np.arange(tokens) < tokens - np.arange(batch)[:, None] * tokens // 4
    return {"ids": ids * mask, "mask": mask.astype(np.int64)}


def requests(size: T5Config) -> list[dict[str, np.ndarray]]:
    return [request(size, 1, 9), request(size, 3, 40)]


@cache
def expected(given: Given) -> list[np.ndarray]:
    """Returns transformers' text embeddings with the weights that gguf dequantizes from the file."""
    theirs = transformers_t5(given.size)
    missing, unexpected = theirs.load_state_dict(given.weights(), strict=False)
    assert set(missing) <= {"encoder.embed_tokens.weight"}  # tied to shared.weight
    assert unexpected == []
    with torch.no_grad():
        return [
            theirs(input_ids=torch.from_numpy(one["ids"]), attention_mask=torch.from_numpy(one["mask"]))
            .last_hidden_state.numpy()
            for one in requests(given.size)
        ]  # fmt: skip


def errors(run: Callable[[dict[str, np.ndarray]], np.ndarray], given: Given) -> list[float]:
    texts = [run(one) for one in requests(given.size)]
    assert all(np.isfinite(text).all() for text in texts)
    return [distance(text, theirs) for text, theirs in zip(texts, expected(given), strict=True)]


class Graph:
    """A graph's own constants, as onnx reads them, and the nodes that use them."""

    def __init__(self, path: Path) -> None:
        graph = onnx.load(path).graph
        self.constants = {one.name: numpy_helper.to_array(one) for one in graph.initializer}
        self.nodes = list(graph.node)
        self.makers = {output: node for node in graph.node for output in node.output}

    def added(self, weight: str, block: int) -> np.ndarray | float:
        """Returns what the side products add to each dequantized code: the sum of factor * constant."""
        total: np.ndarray | float = 0.0
        for node in self.nodes:
            if node.op_type == "MatMul" and node.input[1] in (f"{weight}.offsets", f"{weight}.minimums"):
                left = self.makers[node.input[0]]
                factor = float(self.constants[left.input[1]]) if left.op_type == "Mul" else 1.0
                total = total + factor * self.constants[node.input[1]].astype(np.float64)
        return np.repeat(total, block, axis=0) if isinstance(total, np.ndarray) else total

    def matrix(self, weight: str) -> np.ndarray:
        """Returns a weight as (N, K) float32, computed in float64 and rounded once."""
        (node,) = [n for n in self.nodes if n.op_type == "DequantizeLinear" and n.input[0] == weight]
        attributes = {a.name: a.i for a in node.attribute}
        assert attributes["axis"] == 0
        codes, scales = (self.constants[name].astype(np.float64) for name in node.input)
        block = attributes["block_size"]
        return (codes * np.repeat(scales, block, axis=0) + self.added(weight, block)).astype(np.float32).T

    def table(self, weight: str) -> np.ndarray:
        codes, scales = (self.constants[name].astype(np.float64) for name in (weight, f"{weight}.scales"))
        block = codes.shape[1] // scales.shape[1]
        minimums = self.constants.get(f"{weight}.minimums", np.zeros_like(scales)).astype(np.float64)
        return (codes * np.repeat(scales, block, axis=1) + np.repeat(minimums, block, axis=1)).astype(np.float32)


def assert_lossless(given: Given) -> Counter[str]:
    """Checks that the graph holds every quantized weight to the last bit; counts the dtypes of their codes."""
    graph, weights, kinds = Graph(given.graph("fp32")), given.weights(), Counter[str]()
    for name, tensor in given.tensors().items():
        if tensor.dtype not in QUANTIZED:
            continue
        values = graph.table(name) if name in TABLES else graph.matrix(name)
        np.testing.assert_array_equal(values, weights[name].numpy(), strict=True)
        kinds[str(graph.constants[name].dtype)] += 1
    return kinds


@EVERY_TYPE
def test_every_quantized_weight_of_a_graph_is_what_gguf_makes_of_it_to_the_last_bit(made, dtype):
    integers = "int4" if dtype in ("Q4_0", "Q4_1", "Q4_K", "Q3_K", "Q2_K") else "int8"
    assert assert_lossless(made(dtype)) == {integers: LINEAR * SMALL.layers, "float16": 1}


@pytest.mark.parametrize("mixture", MIXTURES)
def test_every_weight_of_a_mixture_is_what_gguf_makes_of_it_to_the_last_bit(made, mixture):
    assert assert_lossless(made(mixture, DEEP)).total() >= 5 * DEEP.layers


def our_error(given: Given) -> float:
    runner = onnxruntime_cpu.CpuRunner(given.graph("fp32"), given.folder)
    return max(errors(lambda feeds: runner.run(feeds, ["text"])["text"], given))


@EVERY_TYPE
def test_the_text_of_a_quantized_t5_is_that_of_transformers_with_the_same_weights(made, dtype):
    assert our_error(made(dtype)) < RELATIVE_L2


@pytest.mark.parametrize("mixture", MIXTURES)
def test_the_text_of_a_mixture_is_that_of_transformers_with_the_same_weights(made, mixture):
    assert our_error(made(mixture, DEEP)) < RELATIVE_L2


@pytest.mark.parametrize("dtype", ["Q8_0", "Q4_1"])
def test_a_quantized_table_of_positions_is_looked_up_as_well(tmp_path, dtype):
    size = replace(SMALL, heads=32, head_dim=16)
    given = Given(write_t5(tmp_path / "t5.gguf", size, lambda name: "Q8_0", dtype), size, tmp_path)
    assert assert_lossless(given)["float16"] == len(TABLES)
    assert our_error(given) < RELATIVE_L2


def session_of(graph: Path, **entries: str) -> onnxruntime.InferenceSession:
    """Opens ONNX Runtime with its defaults, except for these session entries."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(graph.with_suffix(".optimized"))
    for key, value in entries.items():
        options.add_session_config_entry(f"session.{key}", value)
    return onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])


def operators(graph: Path) -> Counter[str]:
    model = onnx.load(graph.with_suffix(".optimized"), load_external_data=False)
    return Counter(node.op_type for node in model.graph.node)


@EVERY_TYPE
def test_onnx_runtime_as_it_comes_fuses_every_product_and_stays_near(made, dtype):
    given = made(dtype)
    graph = given.graph("fp32")
    session = session_of(graph)
    assert operators(graph)["MatMulNBits"] == LINEAR * SMALL.layers
    assert operators(graph)["DequantizeLinear"] == 0
    assert max(errors(lambda feeds: session.run(None, feeds)[0], given)) < 0.03


@EVERY_TYPE
def test_onnx_runtime_fuses_every_product_and_is_exact_if_asked(made, dtype):
    given = made(dtype)
    graph = given.graph("fp32")
    session = session_of(graph, qdq_matmulnbits_accuracy_level="0")
    assert operators(graph)["MatMulNBits"] == LINEAR * SMALL.layers
    assert max(errors(lambda feeds: session.run(None, feeds)[0], given)) < RELATIVE_L2


@EVERY_TYPE
def test_a_half_graph_computes_with_the_weights_rounded_once(made, dtype, tmp_path):
    """The embeddings are, bit for bit, those of a graph over the same weights stored in fp16."""
    given = made(dtype)
    model, plain = at_precision(traced(SMALL), "fp16"), tmp_path / "plain.safetensors"
    attach(model, rewrite(given.tensors(), plain, store="F16"), {plain: plain.name}, tmp_path)
    ir.save(model, tmp_path / "plain.onnx")
    ours, theirs = (
        session_of(graph, disable_quant_qdq="1") for graph in (given.graph("fp16"), tmp_path / "plain.onnx")
    )
    for feeds in requests(SMALL):
        np.testing.assert_array_equal(ours.run(None, feeds)[0], theirs.run(None, feeds)[0], strict=True)


def engine_bytes(given: Given, precision: str, folder: Path) -> int:
    engine, component = folder / "engine", components.text_encoder(given.size.width)
    engine_from_onnx(load_library(BUILDER), given.graph(precision), given.folder, component, engine)
    return engine.stat().st_size


@HALVES
@EVERY_TYPE
def test_tensorrt_compiles_every_type_in_both_halves(made, tmp_path, dtype, precision):
    assert engine_bytes(made(dtype), precision, tmp_path) > 1_000_000


@HALVES
def test_tensorrt_compiles_mixtures(made, tmp_path, precision):
    for mixture in MIXTURES:
        assert engine_bytes(made(mixture, DEEP), precision, tmp_path) > 1_000_000


@pytest.mark.parametrize(("dtype", "most"), [
    ("Q4_0", 0.9), ("Q3_K", 1.0), ("Q4_K", 1.0), ("Q2_K", 1.25), ("Q8_0", 1.35), ("Q6_K", 1.5), ("Q5_K", 1.5),
])  # fmt: skip
def test_an_engine_keeps_quantized_weights_in_their_few_bits(made, tmp_path, dtype, most):
    """`most` is in bytes per weight, which includes float32 scales and all else in an engine."""
    plain, quantized = made("BF16", WIDE), made(dtype, WIDE)
    count = sum(math.prod(tensor.shape) for tensor in plain.tensors().values())
    assert engine_bytes(plain, "bf16", tmp_path) > 2 * count
    assert engine_bytes(quantized, "bf16", tmp_path) < most * count
