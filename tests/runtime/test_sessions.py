"""Laws of sessions: feeds are checked first, memory goes back at the end, and what is missing is said."""

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
from fakes import FunctionRunner, feeds_of

from ltx_runtime import sessions
from ltx_runtime.components import text_encoder
from ltx_runtime.errors import LtxError
from ltx_runtime.manifest import ComponentEntry, Engines, Manifest
from ltx_runtime.passes import Schedule
from ltx_runtime.sessions import BACKENDS, Backend, onnxruntime_cpu, open_session

ROOT = Path(sessions.__file__).parents[2]
EVERY_BACKEND = pytest.mark.parametrize("backend", BACKENDS.values(), ids=BACKENDS)
SIZES = {"batch": 2, "text_tokens": 5}
SIGNATURE = text_encoder(6)


def engines_in(folder, precision):
    entry = ComponentEntry(SIGNATURE, ("text_encoder.data",), {precision: f"text_encoder.{precision}.onnx"})
    return Engines(folder, Manifest("demo", True, Schedule(), "spiece.model", {"text_encoder": entry}))


class ClosingRunner(FunctionRunner):
    """Counts how often it was closed."""

    closed = 0

    def close(self):
        self.closed += 1


@pytest.fixture
def opened(monkeypatch):
    """A backend called `fake` that runs a function; the list holds (graph, weights, runner) of all it opened."""
    opened = []
    module = ModuleType("fake_backend")

    def load(graph, weights, *, arena):
        runner = ClosingRunner(lambda feeds: {"text": np.ones((*feeds["ids"].shape, 6), np.float32)})
        opened.append((graph, weights, runner))
        return runner

    module.load = load
    monkeypatch.setitem(sys.modules, "fake_backend", module)
    monkeypatch.setitem(BACKENDS, "fake", Backend("fake_backend", "fp32", "fake"))
    return opened


@EVERY_BACKEND
def test_a_backend_is_one_file_of_sessions_with_a_function_that_loads_a_graph(backend):
    package, _, name = backend.module.rpartition(".")
    assert package == "ltx_runtime.sessions"
    assert re.search(r"^def load\(", (ROOT / "ltx_runtime" / "sessions" / f"{name}.py").read_text(), re.MULTILINE)


@EVERY_BACKEND
def test_a_backend_comes_with_an_extra_that_exists(backend):
    extras = (ROOT / "pyproject.toml").read_text().partition("[project.optional-dependencies]")[2].partition("\n[")[0]
    assert re.search(rf"^{re.escape(backend.extra)} = ", extras, re.MULTILINE)


def test_a_session_runs_the_graph_of_its_backend_s_precision(opened, tmp_path):
    with open_session(engines_in(tmp_path, "fp32"), "text_encoder", "fake") as session:
        assert session.component == SIGNATURE
        assert session.run(feeds_of(SIGNATURE.inputs, SIZES))["text"].shape == (2, 5, 6)
    ((graph, weights, _),) = opened
    assert graph == tmp_path / "text_encoder.fp32.onnx"
    assert weights == tmp_path


def test_a_session_finds_weights_that_the_folder_only_links_to(opened, tmp_path):
    engines = engines_in(tmp_path, "fp32")
    linked = replace(engines.manifest, linked={"text_encoder.data": str(tmp_path / "elsewhere")})
    with open_session(Engines(tmp_path, linked), "text_encoder", "fake"):
        pass
    ((graph, weights, _),) = opened
    assert graph == tmp_path / "text_encoder.fp32.onnx"
    assert weights == tmp_path / "elsewhere"


def test_a_session_refuses_feeds_that_do_not_fit_before_the_graph_sees_them(opened, tmp_path):
    feeds = feeds_of(SIGNATURE.inputs, SIZES) | {"mask": np.zeros((2, 4), np.int64)}
    with open_session(engines_in(tmp_path, "fp32"), "text_encoder", "fake") as session:
        with pytest.raises(ValueError, match="axis 'text_tokens' is 4, expected 5"):
            session.run(feeds)
        assert opened[0][2].fed == []


@pytest.mark.parametrize("error", [None, RuntimeError, KeyboardInterrupt])
def test_a_session_is_closed_once_at_the_end_however_it_ends(opened, tmp_path, error):
    try:
        with open_session(engines_in(tmp_path, "fp32"), "text_encoder", "fake"):
            assert opened[0][2].closed == 0
            if error:
                raise error
    except (RuntimeError, KeyboardInterrupt):
        pass
    assert opened[0][2].closed == 1


def test_an_unknown_backend_is_refused_with_the_known_ones(tmp_path):
    with (
        pytest.raises(LtxError, match="unknown backend 'npu'") as refused,
        open_session(engines_in(tmp_path, "fp32"), "text_encoder", "npu"),
    ):
        pass
    assert all(name in str(refused.value) for name in BACKENDS)


@pytest.mark.parametrize("name", BACKENDS)
def test_a_folder_without_a_graph_of_the_precision_is_refused(tmp_path, name):
    with (
        pytest.raises(LtxError, match=rf"has no {BACKENDS[name].precision} graph of text_encoder.*make engines"),
        open_session(engines_in(tmp_path, "other"), "text_encoder", name),
    ):
        pass


def test_a_component_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(LtxError, match="has no transformer"), open_session(engines_in(tmp_path, "fp32"), "transformer"):
        pass


@pytest.mark.parametrize("name", BACKENDS)
def test_a_backend_that_is_not_installed_is_refused_with_the_command_that_installs_it(tmp_path, name, monkeypatch):
    row = BACKENDS[name]
    source = (ROOT / "ltx_runtime" / "sessions" / f"{row.module.rpartition('.')[2]}.py").read_text()
    libraries = set(re.findall(r"^(?:import|from) (\w+)", source, re.MULTILINE)) - sys.stdlib_module_names
    libraries -= {"__future__", "numpy", "ltx_runtime"}
    assert libraries
    for library in libraries:
        monkeypatch.setitem(sys.modules, library, None)  # importing it raises ModuleNotFoundError
    monkeypatch.delitem(sys.modules, row.module, raising=False)
    with (
        pytest.raises(LtxError, match=rf"is not installed - run: pip install 'ltx-engines\[{row.extra}\]'"),
        open_session(engines_in(tmp_path, row.precision), "text_encoder", name),
    ):
        pass


def field(number, content):
    """One field of a protobuf message: a number, or text or another message with its length before it."""
    if isinstance(content, int):
        return bytes([number << 3, content])
    content = content.encode() if isinstance(content, str) else content
    assert len(content) < 1 << 14
    return bytes([number << 3 | 2, len(content) & 127 | 128, len(content) >> 7]) + content


def graph_that_adds(*inputs, output):
    """ONNX bytes of int64 `output` = the sum of two inputs, both (batch, text_tokens)."""
    shape = b"".join(field(1, field(2, axis)) for axis in ("batch", "text_tokens"))
    kind = field(2, field(1, field(1, 7) + field(2, shape)))
    node = b"".join(field(1, name) for name in inputs) + field(2, output) + field(4, "Add")
    values = b"".join(field(11, field(1, name) + kind) for name in inputs) + field(12, field(1, output) + kind)
    return field(1, 8) + field(8, field(2, 13)) + field(7, field(1, node) + field(2, "sum") + values)


def test_the_cpu_computes_a_graph_by_port_names_for_every_size(tmp_path):
    (tmp_path / "text_encoder.fp32.onnx").write_bytes(graph_that_adds("ids", "mask", output="text"))
    with open_session(engines_in(tmp_path, "fp32"), "text_encoder", "cpu") as session:
        for shape in ((1, 1), (2, 5)):
            ids = np.arange(np.prod(shape)).reshape(shape)
            result = session.run({"mask": np.full(shape, 100), "ids": ids})
            assert set(result) == {"text"}
            np.testing.assert_array_equal(result["text"], ids + 100)


class EndlessSession:
    """Runs until it is told to end, and presses Ctrl-C itself."""

    ended = False

    def run(self, names, feeds, options):
        time.sleep(0.2)  # until the main thread waits
        os.kill(os.getpid(), signal.SIGINT)
        while not options.terminate:
            time.sleep(0.01)
        self.ended = True
        raise RuntimeError("Exiting due to terminate flag")


def runner_of(session) -> onnxruntime_cpu.CpuRunner:
    """The runner of a stand-in for ONNX Runtime's session."""
    runner = onnxruntime_cpu.CpuRunner.__new__(onnxruntime_cpu.CpuRunner)
    runner._session, runner._outputs, runner._thread = session, [], ThreadPoolExecutor(1)
    return runner


class FullSession:
    def run(self, names, feeds, options):
        raise RuntimeError("[ONNXRuntimeError] : 1 : FAIL : Failed to allocate memory for requested buffer of size 137")


def test_too_little_memory_is_told_from_other_failures():
    runner = runner_of(FullSession())
    with pytest.raises(MemoryError, match="requested buffer of size 137"):
        runner.run({})


def test_ctrl_c_ends_a_run_of_onnx_runtime_instead_of_waiting_for_it():
    runner = runner_of(EndlessSession())
    with pytest.raises(KeyboardInterrupt):
        runner.run({})
    assert runner._session.ended
