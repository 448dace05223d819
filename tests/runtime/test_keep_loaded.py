"""Laws of what stays loaded: as much as asked for, files counted once, nothing in use closed, nothing left open."""

import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from fakes.requests import ROAD, SMALL
from fakes.runs import make
from fakes.stages import Stage, engines_of

from ltx_runtime import LtxError, Pipeline, Request
from ltx_runtime.sessions import BACKENDS, graph_found
from ltx_runtime.sessions.cuda.memory import GpuMemoryError
from ltx_runtime.sessions.pool import SessionPool
from ltx_runtime.spec.versions import VERSIONS

DEMO = VERSIONS["demo"]


def test_a_second_video_opens_nothing_where_networks_are_kept(spiece, diary):
    with Pipeline(engines_of(DEMO, spiece), backend="fake", keep_loaded=True) as pipe:
        first = list(pipe("a fox", **SMALL))
        opened = diary.opened()
        assert sorted(opened) == sorted(set(ROAD))
        second = list(pipe("a fox", **SMALL))
        assert diary.opened() == opened
        assert not any(line.startswith("close") for line in diary)
    np.testing.assert_array_equal(first, second)
    assert sorted(line for line in diary if line.startswith("close")) == sorted(f"close {name}" for name in set(ROAD))


def test_where_nothing_is_kept_a_network_is_closed_before_the_next_is_opened(pipe, diary):
    list(pipe("a fox", **SMALL))
    events = [line for line in diary if not line.startswith("run")]
    assert events == [f"{what} {name}" for name in ROAD for what in ("open", "close")]


def test_of_a_limit_the_first_of_the_road_leaves_first(spiece, diary):
    engines = engines_of(DEMO, spiece)
    pool = SessionPool(keep=True, limit_bytes=20)

    def found(name, size):
        return replace(graph_found(engines, name, "fake", ["fp32"]), file_bytes={Path(name): size})

    for name in ("text_encoder", "transformer"):
        with pool.session(found(name, 9)):
            pass
    with pool.session(found("vae_decoder", 9)):
        pass
    assert diary[-2:] == ["close text_encoder", "open vae_decoder"]
    with pool.session(found("text_encoder", 20)):
        assert diary[-3:] == ["close transformer", "close vae_decoder", "open text_encoder"]
    pool.close()
    assert diary[-1] == "close text_encoder"


def test_what_does_not_fit_into_the_free_memory_takes_the_place_of_others_on_a_cpu(spiece, diary, monkeypatch):
    engines, free = engines_of(DEMO, spiece), [20]
    monkeypatch.setattr("ltx_runtime.sessions.pool.free_memory", lambda: free[0])
    pool = SessionPool(keep=True)
    for name in ("text_encoder", "transformer"):
        found = replace(graph_found(engines, name, "fake", ["fp32"]), file_bytes={Path(name): 10})
        with pool.session(found):
            pass
        free[0] = 5
    assert diary == ["open text_encoder", "close text_encoder", "open transformer"]
    pool.close()


def test_a_session_in_use_is_never_closed_to_make_room_and_may_be_used_twice(spiece, diary):
    engines = engines_of(DEMO, spiece)

    def found(name, threads=None):
        return replace(graph_found(engines, name, "fake", ["fp32"]), file_bytes={Path(name): 15}, threads=threads)

    pool = SessionPool(keep=True, limit_bytes=20)
    with pool.session(found("text_encoder")) as first, pool.session(found("text_encoder")) as second:
        with pool.session(found("transformer")):
            assert "close text_encoder" not in diary
        assert first.session is second.session
        with pool.session(found("text_encoder", threads=2)) as other:
            assert other is not first and diary[-1] == "open text_encoder"
        assert diary[-1] == "close text_encoder"
    with pool.session(found("upsampler")):
        assert diary[-2:] == ["close text_encoder", "open upsampler"]
    pool.close()
    assert diary.count("open transformer") == diary.count("close transformer") == 1


def test_files_that_components_share_count_once_and_what_exceeds_the_limit_alone_is_not_kept(spiece, diary):
    engines = engines_of(DEMO, spiece)

    def found(name, size):
        return replace(graph_found(engines, name, "fake", ["fp32"]), file_bytes={Path("checkpoint"): size})

    pool = SessionPool(keep=True, limit_bytes=20)
    for name in ("transformer", "vae_decoder"):
        with pool.session(found(name, 18)):
            pass
    assert diary == ["open transformer", "open vae_decoder"]
    with pool.session(found("text_encoder", 21)):
        pass
    assert diary[-1] == "close text_encoder"
    pool.close()


def test_a_backend_s_own_copy_of_the_weights_counts_in_place_of_shared_files(spiece, diary):
    engines = engines_of(DEMO, spiece)

    def found(name, size):
        shared = {Path("checkpoint"): 5}
        return replace(
            graph_found(engines, name, "fake", ["fp32"]), file_bytes=shared, path=Path(name), packed_bytes=size
        )

    pool = SessionPool(keep=True, limit_bytes=20)
    for name, size in (("transformer", 12), ("vae_decoder", 8), ("upsampler", 1)):
        with pool.session(found(name, size)):
            pass
    assert diary == ["open transformer", "open vae_decoder", "close transformer", "open upsampler"]
    pool.close()


def test_a_pipeline_that_is_closed_ends_what_runs_on_it_as_usual_and_keeps_nothing(spiece, diary):
    with Pipeline(engines_of(DEMO, spiece), backend="fake", keep_loaded=True) as pipe:
        video = pipe("a fox", **SMALL)
        steps = video.steps()
        next(steps)
    assert diary[-1] == "close text_encoder"
    assert len(list(steps)) == sum(len(one.sigmas) for one in video.plan.passes) - 1
    assert list(video)
    assert diary.count("close transformer") == 2
    assert sorted(line.split()[1] for line in diary if line.startswith("open")) == sorted(
        line.split()[1] for line in diary if line.startswith("close")
    )


def test_maps_that_overlap_keep_nothing_in_the_end(pipe, diary):
    assert len(list(zip(pipe.map(["a", "b"], **SMALL), pipe.map(["c", "d"], **SMALL), strict=True))) == 2
    opened = [line for line in diary if line.startswith("open")]
    assert sorted(opened) == sorted(line.replace("close", "open") for line in diary if line.startswith("close"))


@pytest.mark.parametrize("keep_loaded", [-1, float("nan"), None, "yes"])
def test_what_is_no_amount_to_keep_is_refused(spiece, diary, keep_loaded):
    with pytest.raises(LtxError, match="keep_loaded must be"):
        Pipeline(engines_of(DEMO, spiece), keep_loaded=keep_loaded)


@pytest.mark.parametrize("when", ["open", "run"])
def test_a_gpu_that_is_full_makes_room_and_tries_again(spiece, diary, monkeypatch, when):
    """The decoder finds too little memory as long as more than one other network is open."""
    module = ModuleType("full_backend")
    module.find = lambda engines, name, backend: graph_found(engines, name, backend, ["fp32"])

    def full():
        events = [line.split()[:2] for line in diary]
        open_now = [name for what, name in events if what == "open"]
        for what, name in events:
            if what == "close":
                open_now.remove(name)
        return len([name for name in open_now if name != "vae_decoder"]) > 1

    class Full(Stage):
        def run(self, feeds, wanted):
            if when == "run" and self.name == "vae_decoder" and full():
                raise GpuMemoryError("the GPU's memory is full")
            return super().run(feeds, wanted)

    def load(found):
        if when == "open" and found.component.name == "vae_decoder" and full():
            raise GpuMemoryError("the GPU's memory is full")
        return Full(found.component.name, diary)

    module.load = load
    monkeypatch.setitem(sys.modules, "full_backend", module)
    monkeypatch.setitem(BACKENDS, "full", replace(BACKENDS["fake"], module="full_backend"))
    with Pipeline(engines_of(DEMO, spiece), backend="full", keep_loaded=True) as pipe:
        frames = list(pipe("a fox", **SMALL))
    assert [line for line in diary if line.startswith("close")][:2] == ["close text_encoder", "close transformer"]
    np.testing.assert_array_equal(frames, make(engines_of(DEMO, spiece), Request("a fox", **SMALL)).video)
