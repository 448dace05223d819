"""Laws of OpenVINO on the CPU: a graph's own sums, weights wherever they lie, preferred only where it is faster."""

import os
import signal
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
from fakes.sessions import feeds_of
from fakes.stages import ROPE
from samples.onnx_bytes import graph_that_adds

from ltx_runtime.errors import LtxError
from ltx_runtime.folder.manifest import ComponentEntry, Engines, FileEntry, Manifest, Quantized
from ltx_runtime.sessions import UnsupportedError, find, open_session, openvino_cpu
from ltx_runtime.sessions.openvino_cpu import OpenVinoRunner, _Compiled, check_preferable
from ltx_runtime.spec.components import text_encoder, transformer
from ltx_runtime.spec.presets import Schedule

SIGNATURE = text_encoder(6)
LARGE = 1_900_000_000


@pytest.fixture
def engines(tmp_path):
    """Returns a version folder whose text encoder adds its inputs, with a graph for OpenVINO."""
    pytest.importorskip("openvino", reason="OpenVINO is not installed, as in the environment with .[cpu] alone")
    (tmp_path / "engines").mkdir()
    (tmp_path / "engines" / "text_encoder.bf16.onnx").write_bytes(graph_that_adds("ids", "mask", output="text"))
    entry = ComponentEntry(SIGNATURE, ("sub/t5.data",), {"bf16": "text_encoder.bf16.onnx"})
    files = {"sub/t5.data": FileEntry(1, "")}
    manifest = Manifest("demo", True, Schedule(), ROPE, "spiece.model", {"text_encoder": entry}, files)
    return Engines(tmp_path / "engines", manifest)


@pytest.fixture
def big(engines, monkeypatch):
    """Returns a found transformer of the 2B release, on a machine with 16 GB free where bf16 is twice as fast."""
    monkeypatch.setattr(openvino_cpu, "free_memory", lambda: 16 * 10**9)
    monkeypatch.setattr(openvino_cpu, "speedups", lambda: {"bf16": 2.0, "q8": 3.5})
    found = find(engines, "text_encoder", "openvino")
    return replace(found, component=transformer(4, 6, 12), parameters=LARGE, packed_bytes=int(2.3 * LARGE))


def test_a_graph_is_computed_by_port_names_for_every_size(engines):
    with open_session(find(engines, "text_encoder", "openvino")) as session:
        assert list(session.outputs) == ["text"]
        for shape in ((1, 1), (2, 5)):
            ids = np.arange(np.prod(shape)).reshape(shape)
            ids.flags.writeable = False
            mask = np.full(shape[::-1], 100).T  # not contiguous
            result = session.run({"mask": mask, "ids": ids})
            np.testing.assert_array_equal(result["text"], (ids + 100)[..., None].repeat(6, 2))


def test_results_of_a_run_stay_what_they_are_after_the_next(engines):
    with open_session(find(engines, "text_encoder", "openvino")) as session:
        ones = {"ids": np.ones((1, 3), np.int64), "mask": np.ones((1, 3), np.int64)}
        first = session.run(ones)["text"]
        session.run({name: 5 * array for name, array in ones.items()})
        np.testing.assert_array_equal(first, np.full((1, 3, 6), 2))


def test_weights_that_the_folder_only_links_to_have_a_copy_of_the_graph_beside_them_while_it_is_read(engines, tmp_path):
    """tests/export/graphs/test_openvino.py runs such a folder with weights."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    linked = replace(engines.manifest, linked={"sub/t5.data": str(elsewhere)})
    found = find(Engines(engines.folder, linked), "text_encoder", "openvino")
    with openvino_cpu._beside_weights(found) as graph:
        assert graph.read_bytes() == found.path.read_bytes()
        assert graph.parent == found.weights == elsewhere
    assert not any(elsewhere.iterdir())
    with open_session(found) as session:
        session.run(feeds_of(SIGNATURE.inputs, {"batch": 1, "text_tokens": 2}))
    elsewhere.rmdir()
    with pytest.raises(UnsupportedError, match=r"cannot copy text_encoder.bf16.onnx to .*elsewhere, beside its"):
        openvino_cpu.load(found)


def test_a_graph_that_cannot_be_read_is_a_sentence(engines):
    (engines.folder / "text_encoder.bf16.onnx").write_bytes(b"no graph")
    found = find(engines, "text_encoder", "openvino")
    with pytest.raises(LtxError, match=r"OpenVINO cannot run .*text_encoder.bf16.onnx .* - use --backend cpu"):
        openvino_cpu.load(found)


def test_without_the_library_that_is_said(engines, monkeypatch):
    monkeypatch.setattr(openvino_cpu.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(LtxError, match=r"openvino is not installed - run: .*pip install .*openvino"):
        find(engines, "text_encoder", "openvino")


def test_threads_are_passed_on_and_compiled_models_are_never_cached(engines, monkeypatch):
    import openvino

    asked = []
    compile_model = openvino.Core.compile_model

    def noted(self, graph, device, settings):
        asked.append(settings)
        return compile_model(self, graph, device, settings)

    monkeypatch.setattr(openvino.Core, "compile_model", noted)
    found = find(engines, "text_encoder", "openvino")
    for threads in (None, 3):
        OpenVinoRunner(replace(found, threads=threads)).close()
    assert [settings.get("INFERENCE_NUM_THREADS") for settings in asked] == [None, 3]
    assert all("CACHE" not in name for settings in asked for name in settings)


def runner_of(request):
    """Returns a runner with one piece, which has no inputs."""
    runner = OpenVinoRunner.__new__(OpenVinoRunner)
    runner._pieces, runner._tensor = [_Compiled(request, False, [], [])], None
    return runner


class EndlessRequest:
    """Request that runs until it is cancelled."""

    def __init__(self):
        self.cancelled = threading.Event()

    def start_async(self):
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()

    def wait_for(self, milliseconds):
        time.sleep(milliseconds / 1000)
        return False

    def cancel(self):
        self.cancelled.set()

    def wait(self):
        if self.cancelled.is_set():
            raise RuntimeError("Infer Request was canceled")


def test_ctrl_c_ends_a_run_instead_of_waiting_for_it():
    runner = runner_of(EndlessRequest())
    with pytest.raises(KeyboardInterrupt):
        runner.run({}, [])
    assert runner._pieces[0].request.cancelled.is_set()


class FullRequest:
    def start_async(self):
        raise RuntimeError("Check failed: std::bad_alloc")

    def cancel(self):
        raise RuntimeError("nothing to cancel")


def test_too_little_memory_to_load_is_a_reason_for_another_backend(engines, monkeypatch):
    def full(found, merged):
        raise RuntimeError("Exception from src/core: std::bad_alloc")

    monkeypatch.setattr(openvino_cpu, "OpenVinoRunner", full)
    with pytest.raises(UnsupportedError, match="there is too little memory"):
        openvino_cpu.load(find(engines, "text_encoder", "openvino"))


def test_too_little_memory_is_told_from_other_failures():
    runner = runner_of(FullRequest())
    with pytest.raises(MemoryError, match="bad_alloc"):
        runner.run({}, [])


def test_it_is_preferred_for_a_large_network_where_its_precision_is_fastest(big, monkeypatch):
    q8 = replace(big, backend="openvino_q8", precision="q8")
    check_preferable(big, measure=True)
    check_preferable(q8, measure=True)
    monkeypatch.setattr(openvino_cpu, "speedups", lambda: {"bf16": 4.0, "q8": 3.5})
    with pytest.raises(LtxError, match=r"in bf16 at 4.0 times the speed of fp32, in q8 at 3.5"):
        check_preferable(q8, measure=True)


def test_elsewhere_the_reason_is_told(big, monkeypatch):
    def refused(found, match):
        with pytest.raises(LtxError, match=match):
            check_preferable(found, measure=True)

    refused(replace(big, component=text_encoder(6)), "encodes a prompt before")
    refused(replace(big, parameters=1000), "too small to be worth compiling")
    refused(replace(big, backend="openvino_q8"), "no q8 graph of transformer")
    refused(replace(big, packed_bytes=29_900_000_000), r"transformer takes 30.9 GB of memory, and 16.0 GB are free")
    monkeypatch.setattr(openvino_cpu, "speedups", lambda: {"bf16": 0.8})
    refused(big, r"computes in bf16 at 0.8 times the speed of fp32")
    monkeypatch.setattr(openvino_cpu, "speedups", dict)
    refused(big, "this processor has no bf16 arithmetic")

    def broken():
        raise ImportError("libopenvino.so: cannot open")

    monkeypatch.setattr(openvino_cpu, "speedups", broken)
    refused(big, r"OpenVINO cannot be used \(libopenvino.so: cannot open\)")


def test_int8_is_used_only_where_it_is_asked_for_and_comes_out_right(big, monkeypatch):
    int8 = replace(big, backend="openvino_int8", precision="int8")
    monkeypatch.setattr(openvino_cpu, "saturates", lambda: False)
    check_preferable(int8, measure=False)
    with pytest.raises(LtxError, match="only where it is asked for"):
        check_preferable(int8, measure=True)
    with pytest.raises(LtxError, match="no int8 graph of transformer, which ltx-export calibrate makes"):
        check_preferable(replace(int8, precision="q8"), measure=False)
    monkeypatch.setattr(openvino_cpu, "saturates", lambda: True)
    with pytest.raises(LtxError, match="no exact products of 8-bit integers"):
        check_preferable(int8, measure=False)


def test_what_is_asked_for_is_not_measured(big, monkeypatch):
    monkeypatch.setattr(openvino_cpu, "speedups", dict)
    check_preferable(replace(big, packed_bytes=29_900_000_000), measure=False)
    with pytest.raises(LtxError, match="too small"):
        check_preferable(replace(big, parameters=1000), measure=False)


def test_memory_is_that_of_packed_weights_and_not_of_the_file(engines):
    entry = replace(engines.manifest.components["text_encoder"], parameters=1000)
    manifest = replace(engines.manifest, components={"text_encoder": entry})
    found = find(Engines(engines.folder, manifest), "text_encoder", "openvino")
    assert found.weights_bytes == 1  # its file in the manifest
    assert 2000 <= found.packed_bytes == sum(found.held_bytes.values()) <= 3000


def test_a_quantized_graph_is_found_with_its_own_file_in_the_version_folder(engines, tmp_path):
    entry = engines.manifest.components["text_encoder"]
    graphs = entry.graphs | {"q8": "text_encoder.q8.onnx"}
    entry = replace(entry, graphs=graphs, quantized={"q8": Quantized(("text_encoder.q8.safetensors",), 0.01)})
    manifest = replace(
        engines.manifest,
        components={"text_encoder": entry},
        files=engines.manifest.files | {"text_encoder.q8.safetensors": FileEntry(7, "")},
        linked={"sub/t5.data": str(tmp_path / "elsewhere")},
    )
    folder = Engines(engines.folder, manifest)
    found = find(folder, "text_encoder", "openvino_q8")
    assert (found.path.name, found.precision) == ("text_encoder.q8.onnx", "q8")
    assert (found.weights, found.file_bytes) == (
        engines.folder,
        {engines.folder / "text_encoder.q8.safetensors": 7},
    )
    assert find(folder, "text_encoder", "openvino").weights == tmp_path / "elsewhere"
    assert find(engines, "text_encoder", "openvino_q8").precision == "bf16"
