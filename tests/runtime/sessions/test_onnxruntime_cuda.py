"""Laws of ONNX Runtime on a GPU: it says why it cannot run, and uploads unchanging inputs only once.

Without a GPU, its CPU provider stands in: bindings, outputs and failures are ONNX Runtime's own.
"""

import sys
from dataclasses import replace

import numpy as np
import onnxruntime
import pytest
from samples.onnx_bytes import FLOAT, graph_that_adds, model, node, value
from stand_ins.engine_cases import folder_of

from ltx_runtime.errors import LtxError
from ltx_runtime.sessions import UnsupportedError, find, onnxruntime_cuda, open_session
from ltx_runtime.sessions.cuda import gpu
from ltx_runtime.sessions.cuda.memory import GpuMemoryError
from ltx_runtime.sessions.found import Found
from ltx_runtime.spec.components import text_encoder, vae_decoder

ADDING = text_encoder(6)


@pytest.fixture
def on_the_cpu(monkeypatch):
    monkeypatch.setattr(onnxruntime_cuda, "_PROVIDER", "CPUExecutionProvider")
    monkeypatch.setattr(onnxruntime_cuda, "_DEVICE", "cpu")


@pytest.fixture
def uploads(monkeypatch):
    """Returns the arrays that are given to ONNX Runtime, in order."""
    given = []
    real = onnxruntime.OrtValue.ortvalue_from_numpy

    def note(array, place, number):
        given.append(array)
        return real(array, place, number)

    monkeypatch.setattr(onnxruntime.OrtValue, "ortvalue_from_numpy", note)
    return given


@pytest.fixture
def found(tmp_path, on_the_cpu):
    path = tmp_path / "text_encoder.bf16.onnx"
    path.write_bytes(graph_that_adds("ids", "mask", output="text"))
    return Found("cuda", ADDING, path, tmp_path)


def feeds_of(shape, seed=0):
    random = np.random.RandomState(seed)
    return {name: random.randint(0, 100, shape).astype(np.int64) for name in ("ids", "mask")}


def sums_of(feeds):
    return (feeds["ids"] + feeds["mask"])[..., None].repeat(6, 2)


def test_a_gpu_takes_the_narrowest_graph_there_is(tmp_path, machine, monkeypatch):
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    engines = folder_of(tmp_path / "0.9.5")
    assert find(engines, "transformer", "cuda").path.name == "transformer.bf16.onnx"
    graphs = engines.manifest.components["transformer"].graphs
    del graphs["bf16"]
    assert find(engines, "transformer", "cuda").path.name == "transformer.fp16.onnx"
    graphs["fp32"] = graphs.pop("fp16")
    assert find(engines, "transformer", "cuda").path.name == "transformer.fp16.onnx"
    graphs.clear()
    with pytest.raises(LtxError, match="has no bf16 or fp16 or fp32 graph of transformer"):
        find(engines, "transformer", "cuda")


@pytest.mark.parametrize(("name", "first"), [("vae_decoder", "bf16"), ("vae_encoder", "bf16"), ("upsampler", "fp32")])
def test_convolutions_take_the_graph_that_the_provider_has_kernels_for(tmp_path, machine, monkeypatch, name, first):
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    engines = folder_of(tmp_path / "0.9.8-2b-distilled")
    graphs = {precision: f"{name}.{precision}.onnx" for precision in ("fp32", "fp16", "bf16")}
    engines.manifest.components[name] = replace(engines.manifest.components["vae_decoder"], graphs=graphs)
    assert find(engines, name, "cuda").path.name == f"{name}.{first}.onnx"


def test_an_onnxruntime_without_cuda_is_told_from_one_that_is_not_installed(tmp_path, machine, monkeypatch):
    engines = folder_of(tmp_path / "0.9.5")
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(
        LtxError, match=r"without CUDA - run: .*pip uninstall .*onnxruntime && .*pip install .*onnxruntime-gpu"
    ):
        find(engines, "transformer", "cuda")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(LtxError, match=r"onnxruntime is not installed - run: .*pip install .*onnxruntime-gpu"):
        find(engines, "transformer", "cuda")


def test_without_a_gpu_that_is_said(tmp_path, machine, monkeypatch):
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    machine.driver = 0
    with pytest.raises(LtxError, match="no NVIDIA driver"):
        find(folder_of(tmp_path / "0.9.5"), "transformer", "cuda")


def test_a_graph_is_computed_by_port_names_for_every_size(found):
    with open_session(found) as session:
        for shape in ((1, 1), (2, 5), (1, 1)):
            feeds = feeds_of(shape)
            made = session.run(feeds)
            assert set(made) == {"text"}
            np.testing.assert_array_equal(made["text"], sums_of(feeds))


def test_outputs_are_the_caller_s_own(found):
    with open_session(found) as session:
        first = session.run(feeds_of((2, 3), 1))["text"]
        kept = first.copy()
        session.run(feeds_of((2, 3), 2))
    np.testing.assert_array_equal(first, kept)


def test_what_cannot_be_written_to_is_uploaded_once_and_what_can_every_time(found, uploads):
    feeds = feeds_of((2, 3))
    feeds["mask"].flags.writeable = False
    with open_session(found) as session:
        for _ in range(3):
            feeds["ids"] += 1
            np.testing.assert_array_equal(session.run(feeds)["text"], sums_of(feeds))
        assert len(uploads) == 4
        other = {**feeds, "mask": feeds["mask"].copy()}
        np.testing.assert_array_equal(session.run(other)["text"], sums_of(other))
        np.testing.assert_array_equal(session.run(feeds)["text"], sums_of(feeds))
    assert len(uploads) == 8


@pytest.fixture
def passing_on(tmp_path, on_the_cpu):
    """Returns a runner of a decoder whose video is its input."""
    axes = ["batch", 3, "frames", "height", "width"]
    path = tmp_path / "vae_decoder.bf16.onnx"
    path.write_bytes(
        model([node("Identity", ["latents"], "video")], [value("latents", FLOAT, axes)], [value("video", FLOAT, axes)])
    )
    runner = onnxruntime_cuda.load(Found("cuda", vae_decoder(128, timestep=False), path, tmp_path))
    yield runner
    runner.close()


@pytest.mark.parametrize("wanted", [["frames", "mean"], ["video"], ["mean", "video", "frames"]])
def test_frames_are_made_of_a_video_and_only_what_is_wanted_is_returned(passing_on, wanted):
    assert passing_on.outputs == ["video", "frames", "mean"]
    for size in ((1, 3, 9, 4, 6), (2, 3, 1, 5, 2)):
        video = np.random.RandomState(size[2]).normal(0, 0.8, size).astype(np.float32)
        made = passing_on.run({"latents": video}, wanted)
        assert set(made) == set(wanted)
        levels = np.clip(video * np.float32(0.5) + np.float32(0.5), 0, 1) * np.float32(255)
        expected = {"video": video, "frames": levels.astype(np.uint8).transpose(0, 2, 3, 4, 1)}
        for name in set(wanted) - {"mean"}:
            np.testing.assert_array_equal(made[name], expected[name])
        if "mean" in wanted:
            np.testing.assert_allclose(made["mean"], video.mean((1, 2, 3, 4)), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_the_mean_of_a_video_tells_that_a_value_is_not_finite(passing_on, bad):
    video = np.zeros((2, 3, 1, 4, 4), np.float32)
    video[1, 2, 0, 3, 3] = bad
    np.testing.assert_array_equal(
        np.isfinite(passing_on.run({"latents": video}, ["frames", "mean"])["mean"]), [True, False]
    )


def test_a_graph_that_onnx_runtime_refuses_is_told_with_its_reason(found):
    found.path.write_bytes(b"nothing")
    with pytest.raises(LtxError, match=r"cannot run .*bf16\.onnx on the GPU \(.+\) - use --backend cpu") as refused:
        onnxruntime_cuda.load(found)
    assert "\n" not in str(refused.value)


def test_a_provider_that_is_quietly_left_out_is_an_error(found, monkeypatch):
    monkeypatch.setattr(onnxruntime.InferenceSession, "get_providers", lambda self: ["AnotherProvider"])
    with pytest.raises(
        LtxError, match=r"finds no CUDA and cuDNN to use - run: .*onnxruntime-gpu.*, or use --backend cpu"
    ):
        onnxruntime_cuda.load(found)


def test_too_little_memory_is_told_from_other_failures(found, monkeypatch):
    with open_session(found) as session:
        reasons = iter(["Available memory of 12 is smaller than requested bytes of 137", "CUDA failure 700"])

        class Full:
            def run_with_iobinding(self, binding, options):
                raise RuntimeError(next(reasons))

        monkeypatch.setattr(session.runner, "_session", Full())
        with pytest.raises(GpuMemoryError, match=r"text_encoder does not fit .*requested bytes of 137.* --memory"):
            session.run(feeds_of((1, 1)))
        with pytest.raises(LtxError, match=r"cannot run .*onnx on the GPU \(CUDA failure 700\) - try --backend cpu"):
            session.run(feeds_of((1, 1)))


@pytest.mark.parametrize("runs", [0, 1])
def test_only_a_first_run_that_fails_lets_another_backend_take_over(found, monkeypatch, runs):
    with open_session(found) as session:
        for _ in range(runs):
            session.run(feeds_of((1, 1)))

        class Failing:
            def run_with_iobinding(self, binding, options):
                raise RuntimeError("the kernel takes 1024 threads at most")

        monkeypatch.setattr(session.runner, "_session", Failing())
        with pytest.raises(LtxError, match="1024 threads") as refused:
            session.run(feeds_of((1, 1)))
    assert isinstance(refused.value, UnsupportedError) == (runs == 0)


@pytest.mark.parametrize("limit", [None, 5 << 30])
def test_the_memory_that_may_be_used_reaches_onnx_runtime(found, monkeypatch, limit):
    asked = []

    def refuse(*arguments, providers, **settings):
        asked.extend(providers)
        raise RuntimeError("no")

    monkeypatch.undo()
    monkeypatch.setattr(onnxruntime, "InferenceSession", refuse)
    with pytest.raises(LtxError, match=r"\(no\)"):
        onnxruntime_cuda.load(replace(found, gpu_memory_bytes=limit))
    ((name, settings),) = asked
    assert name == "CUDAExecutionProvider"
    assert settings.get("gpu_mem_limit") == (None if limit is None else str(limit))


@pytest.mark.gpu
def test_a_real_gpu_computes_a_graph(tmp_path):
    try:
        gpu.find_gpu()
    except LtxError as error:
        pytest.skip(str(error))
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime is without CUDA - install .[gpu] instead of .[cpu] to test it")
    path = tmp_path / "text_encoder.bf16.onnx"
    path.write_bytes(graph_that_adds("ids", "mask", output="text"))
    with open_session(Found("cuda", ADDING, path, tmp_path)) as session:
        for shape in ((1, 1), (2, 5)):
            feeds = feeds_of(shape)
            np.testing.assert_array_equal(session.run(feeds)["text"], sums_of(feeds))
