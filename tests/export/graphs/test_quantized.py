"""Laws of q8: weights within half a step, the graph of exactly those weights, in a file that stands alone."""

import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from safetensors import safe_open
from samples.demo import DEMO, folder_with_demo, folder_with_quantized_demo
from samples.tiny import export, sources_of

from ltx_export import build
from ltx_export.build import ExportOptions
from ltx_export.checkpoints.blocks import Q8, quantized
from ltx_export.checkpoints.values import float32_of
from ltx_export.recorded import SIZES, check_folder, random_feeds, relative_l2, run_graph
from ltx_runtime.errors import LtxError
from ltx_runtime.folder.manifest import QUANTIZED_BLOCK
from ltx_runtime.folder.reading import open_engines, read_manifest
from ltx_runtime.sessions import find, open_session
from ltx_runtime.weights.checkpoint import open_safetensors


@pytest.mark.parametrize("rows", [1, 3])
def test_a_weight_is_within_half_a_step_of_its_block(rows):
    values = np.random.RandomState(0).standard_normal((rows, 5 * QUANTIZED_BLOCK)).astype(np.float32)
    values[:, :QUANTIZED_BLOCK] = 0
    values[:, QUANTIZED_BLOCK] = -100  # an outlier costs its own block only
    blocks = quantized(values)
    assert blocks.codes.dtype == np.int8 and blocks.format == Q8 and blocks.minimums is None
    steps = np.repeat(blocks.scales, QUANTIZED_BLOCK, axis=1)
    assert np.abs(blocks.codes * steps - values).max(initial=0, where=steps > 0) <= 100 / 254 * 1.001
    assert (np.abs(blocks.codes * steps - values) <= steps * 0.5001).all()
    largest = np.abs(values.reshape(rows, -1, QUANTIZED_BLOCK)).max(-1)
    np.testing.assert_allclose(blocks.scales, largest / 127, rtol=1e-6)
    assert (blocks.codes[:, :QUANTIZED_BLOCK] == 0).all()


@pytest.fixture
def folder():
    """Returns the demo with a q8 graph of every component that can have one: its transformer is wide enough."""
    return folder_with_quantized_demo()


def file_of(entry):
    """Returns the name of the only weight file of a q8 graph."""
    (name,) = entry.quantized["q8"].weights
    return name


def test_only_networks_of_repeated_blocks_of_wide_matrices_have_a_q8_graph(folder):
    graphs = {name: set(entry.graphs) for name, entry in read_manifest(folder).components.items()}
    assert graphs.pop("transformer") == {"fp32", "q8"}
    assert all(precisions == {"fp32"} for precisions in graphs.values())


def test_only_matrices_of_repeated_blocks_are_integers(folder):
    entry = read_manifest(folder).components["transformer"]
    stored = open_safetensors(folder / file_of(entry)).tensors
    integers = {name for name, tensor in stored.items() if tensor.dtype == "I8"}
    assert integers and all(
        name.startswith("transformer_blocks.") and len(stored[name].shape) == 2 for name in integers
    )
    assert {name.rsplit(".", 1)[0] for name in stored if name.endswith("scales")} == integers


def test_the_q8_graph_is_the_fp32_graph_of_the_weights_that_its_file_holds(folder, tmp_path):
    manifest = read_manifest(folder)
    entry = manifest.components["transformer"]
    stored = open_safetensors(folder / file_of(entry)).tensors
    matrices = [name for name in stored if f"{name}.scales" in stored]
    assert matrices
    state = {name: float32_of(stored[name]) for name in stored if name not in matrices}
    with safe_open(folder / file_of(entry), "np") as file:
        for name in matrices:
            codes, scales = file.get_tensor(name), file.get_tensor(f"{name}.scales")
            state[name] = np.ascontiguousarray((codes * np.repeat(scales, QUANTIZED_BLOCK, axis=0)).T)
    model = onnx.load(folder / entry.graphs["fp32"], load_external_data=False)
    onnx.save(_with_weights(model, state), tmp_path / "plain.onnx")
    for sizes in SIZES:
        feeds = random_feeds(entry.signature, sizes)
        (expected,) = run_graph(tmp_path / "plain.onnx", tmp_path, entry.signature, [feeds])
        (actual,) = run_graph(folder / entry.graphs["q8"], folder, entry.signature, [feeds])
        assert relative_l2(actual, expected) < 1e-6


def _with_weights(model, state):
    """Returns a graph whose external weights are replaced by float32 arrays of the same names."""
    for one in model.graph.initializer:
        if one.external_data:
            one.CopyFrom(onnx.numpy_helper.from_array(state[one.name].reshape(tuple(one.dims)), one.name))
    return model


def test_its_error_is_in_the_manifest(folder):
    manifest = read_manifest(folder)
    entry = manifest.components["transformer"]
    feeds = random_feeds(entry.signature, SIZES[0])
    graphs = [folder / entry.graphs[precision] for precision in ("q8", "fp32")]
    outputs = [run_graph(graph, folder, entry.signature, [feeds])[0] for graph in graphs]
    assert entry.quantized["q8"].error == pytest.approx(relative_l2(*outputs), rel=1e-3)
    assert 0 < entry.quantized["q8"].error < 2e-2
    assert manifest.components["vae_decoder"].quantized == {}


def test_the_q8_graph_needs_no_other_file_of_weights(folder):
    entry = read_manifest(folder).components["transformer"]
    model = onnx.load(folder / entry.graphs["q8"], load_external_data=False)
    files = {value.value for one in model.graph.initializer for value in one.external_data if value.key == "location"}
    assert files == {file_of(entry)}


def test_openvino_runs_it_within_its_error(folder):
    pytest.importorskip("openvino", reason="OpenVINO is not installed, as in the environment with .[cpu] alone")
    engines = open_engines(folder)
    entry = engines.component("transformer")
    for sizes in SIZES:
        feeds = random_feeds(entry.signature, sizes)
        with open_session(find(engines, "transformer", "openvino_q8")) as session:
            actual = session.run(feeds)["velocity"]
        (expected,) = run_graph(folder / entry.graphs["fp32"], folder, entry.signature, [feeds])
        assert relative_l2(actual, expected) < 3e-2


def test_what_cannot_be_quantized_has_the_usual_graphs(tmp_path):
    sources = sources_of(DEMO, folder_with_demo() / "weights")
    export(DEMO, sources, tmp_path / "out", options=ExportOptions(("q8",)))
    graphs = {name: set(entry.graphs) for name, entry in read_manifest(tmp_path / "out").components.items()}
    assert graphs.pop("transformer") == {"q8"}
    assert all(precisions == {"fp32", "bf16"} for precisions in graphs.values())


def test_a_transformer_is_quantized_by_default_only_if_that_is_possible_and_it_is_not_named():
    transformer, decoder = (SimpleNamespace(component=SimpleNamespace(name=name)) for name in ("transformer", "vae"))
    transformer.quantizable, decoder.quantizable = {"weight"}, set()
    usual = ExportOptions(("fp32",), quantize=True)
    assert list(usual.precisions_of(transformer)) == ["fp32", "q8"]
    assert list(usual.precisions_of(decoder)) == ["fp32"]
    named = ExportOptions(("fp32",), {"transformer": ("bf16",)}, quantize=True)
    assert list(named.precisions_of(transformer)) == ["bf16"]
    transformer.quantizable = set()  # such as one from a GGUF
    assert list(usual.precisions_of(transformer)) == ["fp32"]


def test_a_graph_that_is_of_no_use_is_refused(folder, monkeypatch):
    monkeypatch.setattr(build, "_QUANTIZED_LIMIT", 1e-6)
    entry = read_manifest(folder).components["transformer"]
    with pytest.raises(LtxError, match=r"the q8 graph of transformer differs from fp32 by .* - name the precisions"):
        build._quantized_error(entry.signature, folder, entry.graphs["q8"], entry.recorded, print)


def test_it_is_refused_by_name_for_a_network_without_repeated_blocks(tmp_path):
    sources = sources_of(DEMO, folder_with_demo() / "weights")
    options = ExportOptions(("fp32",), {"vae_decoder": ("q8",)})
    with pytest.raises(LtxError, match=r"vae_decoder has no repeated blocks of float matrices .* --precision vae_dec"):
        export(DEMO, sources, tmp_path / "out", options=options)
    assert not (tmp_path / "out").exists()


def test_a_check_runs_the_q8_graph_too(folder, tmp_path):
    lines = []
    check_folder(open_engines(folder), lines.append)
    (told,) = [line for line in lines if "q8" in line]
    error = read_manifest(folder).components["transformer"].quantized["q8"].error
    assert told == f"transformer: relative L2 {error:.1e} of q8 to its record"
    shutil.copytree(folder, tmp_path / "demo")
    engines = open_engines(tmp_path / "demo")
    entry = engines.component("transformer")
    better = replace(entry, quantized={"q8": replace(entry.quantized["q8"], error=error / 2)})
    manifest = replace(engines.manifest, components=engines.manifest.components | {"transformer": better})
    with pytest.raises(LtxError, match=r"transformer.q8.onnx differs from its record by .*, more than "):
        check_folder(replace(engines, manifest=manifest), lines.append)
