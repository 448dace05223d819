"""Laws of integer products in a graph: each is the product of the codes, and only what depends on latents is one."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from ltx_export.calibration.products import (
    ROWS,
    IntegerInput,
    IntegerProduct,
    add_measurements,
    largest_of,
    products_of,
    rows_of,
    stored_matrix,
    use_integers,
)
from ltx_export.checkpoints.values import float32_of
from ltx_runtime.errors import LtxError
from ltx_runtime.sessions.onnxruntime_cpu import CpuRunner
from ltx_runtime.weights.writing import Entry, write_safetensors

K, N = 6, 4
RANDOM = np.random.RandomState(0)
MATRICES = {name: RANDOM.standard_normal((N, K)).astype(np.float32) for name in ("a", "b", "c")}


def value(name, *shape):
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def saved(folder, quantized):
    """Saves a graph in which a and b multiply the double of `latents`, and c multiplies `text`."""
    nodes, constants = [helper.make_node("Add", ["latents", "latents"], ["x"])], []
    for name, matrix in MATRICES.items():
        if quantized:
            constants += [
                numpy_helper.from_array(np.rint(64 * matrix.T).astype(np.int8), name),
                numpy_helper.from_array(np.full((1, N), 1 / 64, np.float32), f"{name}.scales"),
            ]
            node = helper.make_node("DequantizeLinear", [name, f"{name}.scales"], [f"{name}.0"], axis=0, block_size=K)
        else:
            constants.append(numpy_helper.from_array(matrix, name))
            node = helper.make_node("Transpose", [name], [f"{name}.0"], perm=[1, 0])
        source = "text" if name == "c" else "x"
        nodes += [node, helper.make_node("MatMul", [source, f"{name}.0"], [f"out_{name}"])]
    inputs = [value("latents", "batch", "tokens", K), value("text", "batch", "text_tokens", K)]
    outputs = [value(f"out_{name}", "batch", "any", N) for name in MATRICES]
    graph = helper.make_graph(nodes, "graph", inputs, outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)
    path = folder / ("q8.onnx" if quantized else "fp32.onnx")
    onnx.save(model, path, save_as_external_data=True, location=f"{path.stem}.data", size_threshold=0)
    return path


def feeds():
    return {
        "latents": RANDOM.standard_normal((2, 5, K)).astype(np.float32),
        "text": RANDOM.standard_normal((2, 3, K)).astype(np.float32),
    }


def run(path, given, wanted):
    runner = CpuRunner(path, path.parent)
    try:
        return runner.run(given, wanted)
    finally:
        runner.close()


def test_products_with_the_text_alone_are_left_out(tmp_path):
    assert products_of(ir.load(saved(tmp_path, quantized=True)).graph) == {"x": ["a", "b"]}


def test_a_matrix_is_found_where_it_is_stored(tmp_path):
    graph = ir.load(saved(tmp_path, quantized=False)).graph
    for name, matrix in MATRICES.items():
        np.testing.assert_array_equal(float32_of(stored_matrix(graph, name, tmp_path)), matrix)
    with pytest.raises(LtxError, match="has no matrix d - export"):
        stored_matrix(graph, "d", tmp_path)


def test_measurements_are_the_largest_magnitudes_and_the_rows_that_were_asked_for(tmp_path):
    path, given = saved(tmp_path, quantized=False), feeds()
    model = ir.load(path)
    add_measurements(model.graph, {"x": K})
    ir.save(model, tmp_path / "measuring.onnx")
    rows = np.array([0, 9, 4])
    wanted = [largest_of("x"), rows_of("x"), "out_a"]
    results = run(tmp_path / "measuring.onnx", {**given, ROWS: rows}, wanted)
    x = 2 * given["latents"].reshape(-1, K)
    np.testing.assert_array_equal(results[largest_of("x")], np.abs(x).max(0))
    np.testing.assert_array_equal(results[rows_of("x")], x[rows])
    np.testing.assert_allclose(results["out_a"], 2 * given["latents"] @ MATRICES["a"].T, rtol=1e-5)


def test_an_integer_product_is_that_of_the_codes_and_the_others_stay(tmp_path):
    path, given = saved(tmp_path, quantized=True), feeds()
    factors, step = np.linspace(0.5, 2, K, dtype=np.float32), np.float32(0.05)
    codes, scales = RANDOM.randint(-127, 128, (K, N)).astype(np.int8), np.float32([0.01, 0.02, 0.03, 0.04])
    arrays = {"factors": factors, "step": step[None], "codes": codes, "scales": scales}
    kinds = {"factors": "F32", "step": "F32", "codes": "I8", "scales": "F32"}
    groups = [
        ((Entry(name, kinds[name], array.shape),), lambda array=array: [array.tobytes()])
        for name, array in arrays.items()
    ]
    stored = write_safetensors(tmp_path / "int8.safetensors", groups)
    before = run(path, given, ["out_a", "out_b", "out_c"])
    model = ir.load(path)
    inputs = {"x": IntegerInput(stored["factors"], stored["step"])}
    use_integers(model.graph, inputs, {"b": IntegerProduct(stored["codes"], stored["scales"])}, tmp_path)
    ir.save(model, tmp_path / "int8.onnx")
    after = run(tmp_path / "int8.onnx", given, ["out_a", "out_b", "out_c"])
    quantized = np.clip(np.rint(2 * given["latents"] * factors / step), -128, 127)
    np.testing.assert_allclose(after["out_b"], (quantized @ codes.astype(np.float64)) * scales * step, rtol=1e-5)
    for name in ("out_a", "out_c"):
        np.testing.assert_array_equal(after[name], before[name])
    assert "b" not in model.graph.initializers and "b.scales" not in model.graph.initializers
