"""Laws of weights outside an engine: every byte arrives, missing weights are named, a refit happens once."""

from dataclasses import replace

import numpy as np
import pytest
from stand_ins.engine_cases import PROFILES, Bench, expected, feeds_for, recipes
from stand_ins.engines import Recipe
from stand_ins.gpu_machine import Machine

from ltx_runtime.errors import LtxError
from ltx_runtime.folder.sidecar import WeightInput
from ltx_runtime.sessions import open_session
from ltx_runtime.sessions.cuda import device as cuda
from ltx_runtime.sessions.cuda.memory import GpuMemoryError
from ltx_runtime.sessions.trt import engine as trt_engine
from ltx_runtime.sessions.trt import weights as trt_weights
from ltx_runtime.sessions.trt.weights import plan_path
from ltx_runtime.trust.made_here import record_made

pytest.importorskip("filelock", reason="sessions of engines need it; it comes with them")

# One weight of each stored type, which begins at an odd byte; the file has 16384 bytes.
INPUTS = {
    "blocks.0.bias": WeightInput("weights.data", 1, 6, "bf16", (3,)),
    "blocks.0.weight": WeightInput("weights.data", 7, 4096, "fp32", (32, 32)),
    "blocks.0.codes": WeightInput("weights.data", 5001, 2048, "int4", (64, 64)),
    "blocks.1.codes": WeightInput("weights.data", 8000, 4096, "int8", (64, 64)),
    "blocks.1.weight": WeightInput("weights.data", 16382, 2, "fp16", (1, 1)),
}


@pytest.fixture
def bench(tmp_path, monkeypatch):
    """Yields a version folder; whatever happens to its engines, nothing of them may be left on the GPU."""
    made = Bench(tmp_path / "0.9.5", monkeypatch)
    yield made
    made.machine.assert_nothing_left()


def with_inputs(bench, **built):
    """Builds the transformer with weights as inputs; the stand-in compares every byte with the file on every run."""
    recipe = Recipe(profiles=PROFILES["transformer"], weights="inputs", weight_inputs=INPUTS)
    bench.build(recipe={"transformer": recipe}, **built)


def run(bench, times=1, **changed):
    """Runs the transformer and checks its output."""
    with open_session(replace(bench.find(), **changed)) as session:
        for seed in range(times):
            feeds = feeds_for("transformer", seed, tokens=(6, 20)[seed % 2])
            np.testing.assert_array_equal(session.run(feeds)["velocity"], expected("transformer", feeds)["velocity"])


@pytest.mark.parametrize("builder", ["tensorrt", "tensorrt_rtx"])
def test_weights_of_every_type_reach_the_gpu_byte_by_byte_and_stay_there(bench, builder):
    with_inputs(bench, builder=builder)
    run(bench, times=4)
    fed = sum(a.nbytes for seed in range(4) for a in feeds_for("transformer", seed, tokens=(6, 20)[seed % 2]).values())
    assert bench.machine.uploaded == fed + sum(one.size_bytes for one in INPUTS.values())


def test_weights_are_read_from_where_the_folder_links_to(bench, tmp_path):
    with_inputs(bench)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    found = bench.find()
    stored = (found.weights / "weights.data").read_bytes()
    (elsewhere / "weights.data").write_bytes(stored)
    run(bench, weights=elsewhere)
    (elsewhere / "weights.data").write_bytes(stored[::-1])
    with pytest.raises(AssertionError, match=r"blocks\.0\.bias is not there"):
        run(bench, weights=elsewhere)


@pytest.mark.parametrize(
    "content, said",
    [(None, "no such file"), (b"", "weights.data is empty"), (bytes(16383), "ends before blocks.1.weight")],
)
def test_a_file_of_weights_that_is_missing_or_short_is_refused(bench, content, said):
    with_inputs(bench)
    found = bench.find()
    path = found.weights / "weights.data"
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(LtxError, match=said), open_session(found):
        pass


def test_weights_that_do_not_fit_are_refused_before_anything_is_read(bench):
    with_inputs(bench)
    with pytest.raises(GpuMemoryError, match=r"of GPU memory, and 0\.0 MB may be used"):
        run(bench, gpu_memory_bytes=9000)
    assert bench.machine.uploaded == 0
    assert bench.seen.deserialized == []


def test_weights_for_which_memory_is_too_little_only_then_leave_nothing(bench):
    with_inputs(bench, machine=Machine(memory_bytes=60_000))
    take = bench.machine.take
    bench.machine.take = lambda size: None if size > 10_000 else take(size)
    with pytest.raises(GpuMemoryError, match="the weights of transformer needs"):
        run(bench)


def test_a_copy_of_weights_that_fails_leaves_nothing(bench):
    with_inputs(bench)
    bench.machine.errors["cudaMemcpyAsync"] = "cudaErrorIllegalAddress"
    with pytest.raises(RuntimeError, match="cudaMemcpyAsync failed"):
        run(bench)


def refitting(bench, **built):
    bench.build("tensorrt", recipe=recipes(weights="refit"), **built)


def test_an_engine_without_weights_is_given_them_once_and_kept(bench):
    refitting(bench)
    run(bench)
    assert bench.seen.refitted == ["transformer"]
    run(bench)
    assert bench.seen.refitted == ["transformer"]
    assert plan_path(bench.find()).is_file()


def test_two_processes_do_not_refit_one_engine_at_once(bench, monkeypatch):
    refitting(bench)
    from filelock import FileLock, Timeout

    plan = plan_path(bench.find())
    real = trt_engine.keep_plan

    def keep(*arguments):
        with pytest.raises(Timeout):
            FileLock(plan.with_name(f".ltx-{plan.name}.lock"), timeout=0).acquire()
        real(*arguments)

    monkeypatch.setattr(trt_engine, "keep_plan", keep)
    run(bench)
    FileLock(plan.with_name(f".ltx-{plan.name}.lock"), timeout=0).acquire().lock.release()


def test_a_refitted_engine_is_of_these_weights_only(bench):
    refitting(bench)
    run(bench)
    found = bench.find()
    other = replace(found, sidecar=replace(found.sidecar, sources={**found.sidecar.sources, "weights.data": "0"}))
    assert plan_path(other) != plan_path(found)
    with open_session(other):
        assert bench.seen.refitted == ["transformer"] * 2
    assert [path.name for path in found.path.parent.glob("*.refitted")] == [plan_path(other).name]


def test_a_refitted_engine_that_is_damaged_is_made_again(bench):
    refitting(bench)
    plan = plan_path(bench.find())
    plan.write_bytes(b"half of it")
    run(bench)
    assert bench.seen.refitted == ["transformer"]
    assert plan.read_bytes() != b"half of it"


def test_a_refitted_engine_that_cannot_be_kept_runs_all_the_same(bench):
    refitting(bench)
    plan_path(bench.find()).mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trt_weights, "leave", lambda path, data: None)
        run(bench)
    assert bench.seen.refitted == ["transformer"]


def test_the_graph_that_an_engine_was_built_from_goes_before_the_folder_s(bench):
    refitting(bench)
    graph = bench.find().path.with_suffix(".onnx")
    graph.write_bytes(b"another")
    record_made(graph)
    with pytest.raises(LtxError, match=r"takes no weights from .*/transformer\.bf16\.onnx \("):
        run(bench)
    graph.write_bytes((bench.engines.folder / "transformer.bf16.onnx").read_bytes())
    run(bench)


def test_a_graph_that_is_another_is_refused_with_the_reason_and_the_command_that_rebuilds(bench):
    refitting(bench)
    found = bench.find()
    found.path.with_suffix(".onnx").write_bytes(b"another")
    with (
        pytest.raises(LtxError, match=r"\(Failed to refit the weights: another graph\) - run: ltx-export engine"),
        open_session(found),
    ):
        pass
    assert list(found.path.parent.glob("*.refitted")) == []


def test_two_open_sessions_of_one_device_count_as_two_users(bench):
    with_inputs(bench)
    with open_session(bench.find()):
        device = cuda.device()
        with open_session(bench.find()) as second:
            second.run(feeds_for("transformer"))
        assert device.arena.reserve(1, "it", "give up").size > 1
