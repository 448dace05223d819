"""Laws of sessions of engines: correct outputs at every size, nothing uploaded twice, nothing left behind."""

import numpy as np
import pytest
from fakes.stages import STAGES
from stand_ins.engine_cases import BUILDERS, SIZES, Bench, expected, feeds_for, recipes

from ltx_runtime.errors import LtxError
from ltx_runtime.sessions import CheckedSession, open_session
from ltx_runtime.sessions.trt.session import load

pytest.importorskip("filelock", reason="sessions of engines need it; it comes with them")

NAMES = tuple(SIZES)
EVERY_BUILDER = pytest.mark.parametrize("builder", BUILDERS)


@pytest.fixture
def bench(tmp_path, monkeypatch):
    return Bench(tmp_path / "0.9.5", monkeypatch)


@pytest.fixture
def opened(bench):
    """Opens sessions of a component; all are closed at the end, when nothing may be left of them."""
    runners = []

    def open_one(name="transformer", **built):
        if built or not hasattr(bench, "machine"):
            bench.build(**built)
        found = bench.find(name)
        runners.append(load(found))
        return CheckedSession(found.component, runners[-1])

    yield open_one
    for runner in runners:
        runner.close()
    runners.clear()
    bench.machine.assert_nothing_left()


def agrees(session, feeds):
    """Checks that the session's outputs for these feeds are those of numpy."""
    name = session.component.name
    for output, values in expected(name, feeds).items():
        np.testing.assert_array_equal(session.run(feeds)[output], values)


@EVERY_BUILDER
@pytest.mark.parametrize("name", NAMES)
def test_an_engine_computes_its_component(opened, builder, name):
    session = opened(name, builder=builder)
    for seed in range(4):
        agrees(session, feeds_for(name, seed))


@EVERY_BUILDER
def test_sizes_may_change_from_run_to_run_up_to_the_edges_of_every_profile(opened, builder):
    session = opened(builder=builder)
    for tokens in (4, 8, 9, 32, 8, 4, 32):
        for timesteps in (1, tokens):
            for batch in (1, 3):
                agrees(session, feeds_for("transformer", tokens=tokens, timesteps=timesteps, batch=batch))


@pytest.mark.parametrize("sizes", [{"tokens": 3}, {"tokens": 33}, {"batch": 4}, {"text_tokens": 17}])
def test_sizes_that_no_profile_serves_are_refused_by_name(opened, sizes):
    session = opened()
    (name, size), *_ = sizes.items()
    with pytest.raises(LtxError, match=rf"engine of transformer does not serve .*{size} {name}.* - "):
        session.run(feeds_for("transformer", **sizes))
    agrees(session, feeds_for("transformer"))


def test_a_decoder_gives_pixels_and_their_mean_and_only_what_is_wanted_leaves_the_gpu(opened, bench):
    session = opened("vae_decoder")
    assert set(session.outputs) == {"video", "frames", "mean"}
    feeds = feeds_for("vae_decoder")
    video = expected("vae_decoder", feeds)["video"]
    made = session.run(feeds, ["frames", "mean"])
    assert set(made) == {"frames", "mean"}
    assert made["frames"].dtype == np.uint8
    levels = np.floor(255 * np.clip(video * np.float32(0.5) + np.float32(0.5), 0, 1))
    np.testing.assert_array_equal(made["frames"], np.moveaxis(levels, 1, -1))
    np.testing.assert_allclose(made["mean"], video.mean((1, 2, 3, 4)), rtol=1e-6)
    assert bench.machine.downloaded == video.size + 4


def test_outputs_are_the_caller_s_own(opened):
    session = opened("text_encoder")
    first = session.run(feeds_for("text_encoder", 1))["text"]
    kept = first.copy()
    session.run(feeds_for("text_encoder", 2))
    np.testing.assert_array_equal(first, kept)


def test_what_cannot_be_written_to_is_uploaded_once_and_what_can_every_time(opened, bench):
    session = opened()
    feeds = feeds_for("transformer")
    constant = ("text", "text_mask", "cosines", "sines")
    for name in constant:
        feeds[name].flags.writeable = False
    all_of_it = sum(array.nbytes for array in feeds.values())
    changing = all_of_it - sum(feeds[name].nbytes for name in constant)
    agrees(session, feeds)
    assert bench.machine.uploaded == all_of_it
    for times in range(1, 4):
        feeds["latents"] += 1
        agrees(session, feeds)
        assert bench.machine.uploaded == all_of_it + times * changing


def test_another_array_of_equal_values_is_uploaded(opened, bench):
    session = opened()
    feeds = feeds_for("transformer")
    for _ in range(2):
        feeds = {name: array.copy() for name, array in feeds.items()}
        for array in feeds.values():
            array.flags.writeable = False
        before = bench.machine.uploaded
        agrees(session, feeds)
        assert bench.machine.uploaded - before == sum(array.nbytes for array in feeds.values())


def test_a_constant_is_uploaded_again_after_its_buffer_held_something_else(opened):
    session = opened()
    first, other, larger = feeds_for("transformer", 1), feeds_for("transformer", 2), feeds_for("transformer", tokens=30)
    for feeds in (first, other, larger):
        for array in feeds.values():
            array.flags.writeable = False
    for feeds in (first, other, first, larger, first):
        agrees(session, feeds)


def test_a_constant_is_uploaded_again_after_its_buffer_held_what_can_be_written_to(opened):
    session = opened()
    constant, other = feeds_for("transformer", 1), feeds_for("transformer", 2)
    constant["text"].flags.writeable = False
    for feeds in (constant, other, constant):
        agrees(session, feeds)


def test_buffers_grow_with_the_inputs_and_are_used_again_for_smaller_ones(opened, bench):
    session = opened()
    agrees(session, feeds_for("transformer", tokens=4))
    small = bench.machine.used_bytes()
    agrees(session, feeds_for("transformer", tokens=32))
    large = bench.machine.used_bytes()
    blocks = set(bench.machine.blocks)
    for tokens in (4, 32, 9):
        agrees(session, feeds_for("transformer", tokens=tokens))
    assert small < large
    assert set(bench.machine.blocks) == blocks


def test_the_third_run_of_one_size_launches_a_graph_of_kernels(opened, bench):
    session = opened(builder="tensorrt")
    for run, launches in enumerate((0, 1, 2, 3)):
        agrees(session, feeds_for("transformer", run))
        assert bench.machine.launches == launches
    assert bench.machine.captures == 1


def test_tensorrt_rtx_makes_its_own_graphs(opened, bench):
    session = opened(builder="tensorrt_rtx")
    for run in range(4):
        agrees(session, feeds_for("transformer", run))
    assert bench.machine.captures == 0


@pytest.mark.parametrize("sizes", [{"tokens": 8}, {"tokens": 32}, {"batch": 2}, {"timesteps": 6}])
def test_a_graph_is_made_anew_when_shapes_change_and_when_they_change_back(opened, bench, sizes):
    session = opened(builder="tensorrt")
    for captures, changed in enumerate(({}, sizes, {}), 1):
        for run in range(3):
            agrees(session, feeds_for("transformer", run, **changed))
        assert bench.machine.captures == captures


def test_a_graph_is_made_anew_when_another_engine_has_moved_the_activations(opened, bench):
    encoder = opened("text_encoder", builder="tensorrt")
    for run in range(3):
        agrees(encoder, feeds_for("text_encoder", run))
    agrees(opened("transformer"), feeds_for("transformer", tokens=32))
    for run in range(3):
        agrees(encoder, feeds_for("text_encoder", run))
    assert bench.machine.captures == 2


def test_an_engine_that_cannot_be_captured_is_run_without(opened, bench):
    session = opened(builder="tensorrt", recipe=recipes(capturable=False))
    for run in range(4):
        agrees(session, feeds_for("transformer", run))
    assert bench.machine.captures == bench.machine.launches == 0


@EVERY_BUILDER
def test_open_engines_share_one_block_of_activations(opened, bench, builder):
    encoder, transformer = opened("text_encoder", builder=builder), opened("transformer")
    for run in range(3):
        agrees(encoder, feeds_for("text_encoder", run))
        agrees(transformer, feeds_for("transformer", run, tokens=32))
    arena = 24 * sum(array.size for array in feeds_for("transformer", tokens=32).values())
    assert [block.size for block in bench.machine.blocks.values()].count(arena) == 1


def test_an_engine_that_fails_says_what_failed_in_the_library_s_words(opened, bench, monkeypatch):
    session = opened()
    runner = session.runner
    context = runner._engine.context

    def fail(self, stream_handle):
        self._engine._logger.log(1, "the cat\n sat on it")
        return False

    monkeypatch.setattr(type(context), "execute_async_v3", fail)
    with pytest.raises(
        LtxError, match=r"TensorRT-RTX cannot run the engine of transformer \(the cat sat on it\) - run:"
    ):
        session.run(feeds_for("transformer"))


def test_an_engine_that_does_not_know_what_it_makes_is_an_error(opened, monkeypatch):
    session = opened()
    monkeypatch.setattr(type(session.runner._engine.context), "get_tensor_shape", lambda self, name: (1, -1, 4))
    with pytest.raises(LtxError, match="cannot say what it makes of"):
        session.run(feeds_for("transformer"))


def test_a_function_that_fails_on_the_gpu_leaves_nothing_behind(bench):
    def fail(feeds):
        raise ZeroDivisionError

    bench.build(functions={**STAGES, "transformer": fail})
    with pytest.raises(ZeroDivisionError), open_session(bench.find()) as session:
        session.run(feeds_for("transformer"))
    bench.machine.assert_nothing_left()


@EVERY_BUILDER
def test_a_session_leaves_nothing_on_the_gpu(bench, builder):
    bench.build(builder)
    for name in NAMES:
        with open_session(bench.find(name)) as session:
            for _ in range(3):
                agrees(session, feeds_for(name))
        bench.machine.assert_nothing_left()


def test_a_session_may_be_closed_twice(bench):
    bench.build()
    runner = load(bench.find())
    runner.close()
    runner.close()
    bench.machine.assert_nothing_left()
