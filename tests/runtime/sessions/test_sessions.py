"""Laws of sessions: feeds are checked first, memory is freed at the end, and whatever is missing is named."""

import os
import re
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from fakes.sessions import FunctionRunner, feeds_of
from fakes.stages import ROPE
from samples.onnx_bytes import graph_that_adds

from ltx_runtime import sessions
from ltx_runtime.errors import LtxError
from ltx_runtime.folder.manifest import ComponentEntry, Engines, Manifest
from ltx_runtime.sessions import AUTO, BACKENDS, CPU_MODES, Backend, find, graph_found, onnxruntime_cpu, open_session
from ltx_runtime.spec.components import text_encoder
from ltx_runtime.spec.presets import Schedule

ROOT = Path(sessions.__file__).parents[2]
EVERY_BACKEND = pytest.mark.parametrize("backend", BACKENDS.values(), ids=BACKENDS)
SIZES = {"batch": 2, "text_tokens": 5}
SIGNATURE = text_encoder(6)


def engines_in(folder, precision):
    entry = ComponentEntry(SIGNATURE, ("text_encoder.data",), {precision: f"text_encoder.{precision}.onnx"})
    return Engines(folder, Manifest("demo", True, Schedule(), ROPE, "spiece.model", {"text_encoder": entry}))


class ClosingRunner(FunctionRunner):
    """Runner that counts how often it was closed."""

    closed = 0

    def close(self):
        self.closed += 1


@pytest.fixture
def opened(monkeypatch):
    """Installs a backend called `fake` that runs a function; returns the list of (found, runner) that it opened."""
    opened = []
    module = ModuleType("fake_backend")

    def load(found):
        runner = ClosingRunner(lambda feeds: {"text": np.ones((*feeds["ids"].shape, 6), np.float32)})
        opened.append((found, runner))
        return runner

    module.find = lambda engines, name, backend: graph_found(engines, name, backend, ["bf16", "fp32"])
    module.load = load
    monkeypatch.setitem(sys.modules, "fake_backend", module)
    monkeypatch.setitem(BACKENDS, "fake", Backend("fake_backend", "fake"))
    return opened


def opened_session(engines, name, backend):
    return open_session(find(engines, name, backend))


@EVERY_BACKEND
def test_a_backend_is_one_file_of_sessions_that_finds_and_loads(backend):
    assert backend.module.startswith("ltx_runtime.sessions.")
    source = (ROOT / f"{backend.module.replace('.', '/')}.py").read_text()
    assert re.search(r"^def find\(", source, re.MULTILINE)
    assert re.search(r"^def load\(", source, re.MULTILINE)


@EVERY_BACKEND
def test_a_backend_comes_with_an_extra_that_exists(backend):
    extras = (ROOT / "pyproject.toml").read_text().partition("[project.optional-dependencies]")[2].partition("\n[")[0]
    assert re.search(rf"^{re.escape(backend.extra)} = ", extras, re.MULTILINE)


def test_a_session_runs_the_first_graph_of_its_backend_s_precisions_that_there_is(opened, tmp_path):
    with opened_session(engines_in(tmp_path, "fp32"), "text_encoder", "fake") as session:
        assert session.component == SIGNATURE
        assert session.run(feeds_of(SIGNATURE.inputs, SIZES))["text"].shape == (2, 5, 6)
    ((found, _),) = opened
    assert found.path == tmp_path / "text_encoder.fp32.onnx"
    assert found.weights == tmp_path
    assert find(engines_in(tmp_path, "bf16"), "text_encoder", "fake").path == tmp_path / "text_encoder.bf16.onnx"


def test_a_session_finds_weights_that_the_folder_only_links_to(opened, tmp_path):
    engines = engines_in(tmp_path, "fp32")
    linked = replace(engines.manifest, linked={"text_encoder.data": str(tmp_path / "elsewhere")})
    with opened_session(Engines(tmp_path, linked), "text_encoder", "fake"):
        pass
    ((found, _),) = opened
    assert found.path == tmp_path / "text_encoder.fp32.onnx"
    assert found.weights == tmp_path / "elsewhere"


def test_a_session_refuses_feeds_that_do_not_fit_before_the_graph_sees_them(opened, tmp_path):
    feeds = feeds_of(SIGNATURE.inputs, SIZES) | {"mask": np.zeros((2, 4), np.int64)}
    with opened_session(engines_in(tmp_path, "fp32"), "text_encoder", "fake") as session:
        with pytest.raises(ValueError, match="axis 'text_tokens' is 4, expected 5"):
            session.run(feeds)
        assert opened[0][1].fed == []


@pytest.mark.parametrize("error", [None, RuntimeError, KeyboardInterrupt])
def test_a_session_is_closed_once_at_the_end_however_it_ends(opened, tmp_path, error):
    try:
        with opened_session(engines_in(tmp_path, "fp32"), "text_encoder", "fake"):
            assert opened[0][1].closed == 0
            if error:
                raise error
    except (RuntimeError, KeyboardInterrupt):
        pass
    assert opened[0][1].closed == 1


def test_an_unknown_backend_is_refused_with_the_known_ones(tmp_path):
    with pytest.raises(LtxError, match="unknown backend 'npu'") as refused:
        find(engines_in(tmp_path, "fp32"), "text_encoder", "npu")
    assert all(name in str(refused.value) for name in (AUTO, *BACKENDS))


def test_a_folder_without_a_graph_of_the_precision_is_refused(tmp_path):
    with pytest.raises(LtxError, match=r"has no fp32 graph of text_encoder, which backend cpu needs.*ltx-export "):
        find(engines_in(tmp_path, "other"), "text_encoder", "cpu")


def test_a_component_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(LtxError, match="has no transformer"):
        find(engines_in(tmp_path, "fp32"), "transformer", "cpu")


def test_a_backend_whose_library_is_not_installed_is_refused_with_the_command_that_installs_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)  # importing it raises ModuleNotFoundError
    monkeypatch.delitem(sys.modules, BACKENDS["cpu"].module, raising=False)
    with pytest.raises(LtxError, match=r"is not installed - run: .*pip install .*onnxruntime"):
        find(engines_in(tmp_path, "fp32"), "text_encoder", "cpu")


@pytest.fixture
def three(monkeypatch):
    """Installs backends a, b and c in this order; yields a dict from a backend that cannot run to its reason."""
    refusing = {}

    def finder(engines, name, backend):
        if backend in refusing:
            raise LtxError(refusing[backend])
        return graph_found(engines, name, backend, ["fp32"])

    module = ModuleType("three_backends")
    module.find = finder
    monkeypatch.setitem(sys.modules, "three_backends", module)
    order = dict(BACKENDS)
    BACKENDS.clear()
    BACKENDS.update({name: Backend("three_backends", "extra") for name in "abc"})
    yield refusing
    BACKENDS.clear()
    BACKENDS.update(order)


def test_the_first_backend_that_can_is_taken_and_says_why_none_before_it_was(three, tmp_path):
    engines = engines_in(tmp_path, "fp32")
    found = find(engines, "text_encoder")
    assert (found.backend, found.reasons) == ("a", ())
    three.update(a="no engine - build it", b="no GPU - buy one")
    found = find(engines, "text_encoder", AUTO)
    assert (found.backend, found.reasons) == ("c", ("a: no engine - build it", "b: no GPU - buy one"))


def test_a_backend_that_was_named_is_taken_or_refused_whatever_others_can(three, tmp_path):
    engines = engines_in(tmp_path, "fp32")
    assert find(engines, "text_encoder", "b").backend == "b"
    three["b"] = "no GPU - buy one"
    with pytest.raises(LtxError, match=r"^no GPU - buy one$"):
        find(engines, "text_encoder", "b")


def test_a_mode_of_the_cpu_says_which_backends_for_it_are_tried_and_whether_they_must_be_fastest(three, tmp_path):
    engines, module, measured = engines_in(tmp_path, "fp32"), sys.modules["three_backends"], []

    def check_preferable(found, *, measure):
        measured.append((found.backend, measure))
        if measure:
            raise LtxError(f"{found.backend} is slower")

    module.check_preferable = check_preferable
    BACKENDS.clear()
    slow = Backend("three_backends", "extra", on_cpu=True, always_preferable=False)
    BACKENDS.update(openvino_int8=slow, openvino_q8=slow, openvino=slow)
    BACKENDS.update(cpu=Backend("three_backends", "extra", on_cpu=True))
    modes = {mode: find(engines, "text_encoder", cpu_mode=mode).backend for mode in CPU_MODES}
    assert modes == {"auto": "cpu", "exact": "cpu", "bf16": "openvino", "q8": "openvino_q8", "int8": "openvino_int8"}
    asked = [("openvino", False), ("openvino_q8", False), ("openvino_int8", False)]
    assert measured == [("openvino_q8", True), ("openvino", True), *asked]
    assert find(engines, "text_encoder", "openvino").backend == "openvino"  # asked for by name: nothing is checked
    assert find(engines, "text_encoder", after="openvino_q8", cpu_mode="q8").backend == "openvino"
    reasons = find(engines, "text_encoder").reasons
    assert reasons == ("openvino_q8: openvino_q8 is slower", "openvino: openvino is slower")
    three["cpu"] = "no fp32 graph"
    assert find(engines, "text_encoder").backend == "openvino_q8"  # better than none
    three.update(openvino_q8="no q8 graph", openvino="no bf16 graph")
    with pytest.raises(LtxError, match=r"^no fp32 graph$"):
        find(engines, "text_encoder")


def test_where_no_backend_can_the_last_one_says_why(three, tmp_path):
    three.update(a="no engine - build it", b="no GPU - buy one", c="no graph - export it")
    with pytest.raises(LtxError, match=r"^no graph - export it$"):
        find(engines_in(tmp_path, "fp32"), "text_encoder")


def test_a_session_gives_the_component_s_outputs_unless_others_are_wanted():
    def both(feeds):
        return {"text": np.zeros((*feeds["ids"].shape, 6), np.float32), "more": np.ones(3)}

    session = sessions.CheckedSession(SIGNATURE, FunctionRunner(both, ["text", "more"]))
    assert session.outputs == ["text", "more"]
    assert set(session.run(feeds_of(SIGNATURE.inputs, SIZES))) == {"text"}
    assert set(session.run(feeds_of(SIGNATURE.inputs, SIZES), ["more"])) == {"more"}


def test_the_cpu_computes_a_graph_by_port_names_for_every_size(tmp_path):
    (tmp_path / "text_encoder.fp32.onnx").write_bytes(graph_that_adds("ids", "mask", output="text"))
    with opened_session(engines_in(tmp_path, "fp32"), "text_encoder", "cpu") as session:
        for shape in ((1, 1), (2, 5)):
            ids = np.arange(np.prod(shape)).reshape(shape)
            result = session.run({"mask": np.full(shape, 100), "ids": ids})
            assert set(result) == {"text"}
            np.testing.assert_array_equal(result["text"], (ids + 100)[..., None].repeat(6, 2))


class EndlessSession:
    """Session that runs until it is terminated, and sends Ctrl-C itself."""

    ended = False

    def run(self, names, feeds, options):
        time.sleep(0.2)  # lets the main thread begin to wait
        os.kill(os.getpid(), signal.SIGINT)
        while not options.terminate:
            time.sleep(0.01)
        self.ended = True
        raise RuntimeError("Exiting due to terminate flag")


def runner_of(session) -> onnxruntime_cpu.CpuRunner:
    """Returns a runner over a stand-in for ONNX Runtime's session."""
    runner = onnxruntime_cpu.CpuRunner.__new__(onnxruntime_cpu.CpuRunner)
    runner._session, runner._thread = session, ThreadPoolExecutor(1)
    return runner


class FullSession:
    def run(self, names, feeds, options):
        raise RuntimeError("[ONNXRuntimeError] : 1 : FAIL : Failed to allocate memory for requested buffer of size 137")


def test_too_little_memory_is_told_from_other_failures():
    runner = runner_of(FullSession())
    with pytest.raises(MemoryError, match="requested buffer of size 137"):
        runner.run({}, [])


def test_ctrl_c_ends_a_run_of_onnx_runtime_instead_of_waiting_for_it():
    runner = runner_of(EndlessSession())
    with pytest.raises(KeyboardInterrupt):
        runner.run({}, [])
    assert runner._session.ended
