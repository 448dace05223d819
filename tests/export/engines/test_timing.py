"""Requests to full TensorRT, by the features of its version: flags, timing caches, engines without weights.

TensorRT itself needs a GPU; a stand-in records the requests.
"""

import json
import sys
from dataclasses import replace

import pytest
from stand_ins.tensorrt_builder import full_tensorrt
from stand_ins.tiny_engines import SMALL, address, copied, maker, small

from ltx_export.engines.engine_from_onnx import TIMING_CACHE, Recipe, refuse_impossible
from ltx_export.engines.files import build_engine, find_equal, prepared_for, take_over
from ltx_runtime.errors import LtxError
from ltx_runtime.folder.address import check_engine
from ltx_runtime.folder.manifest import Engines
from ltx_runtime.folder.profiles import profiles
from ltx_runtime.folder.sidecar import refit_graph_path, sidecar_path

RELEASE = "0.9.8-13b-distilled"


@pytest.fixture
def engines(exported, tmp_path) -> Engines:
    """Returns a version folder that a test may write engines into."""
    return copied(exported(RELEASE), tmp_path)


def names_in(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def full(monkeypatch):
    """Installs a stand-in for TensorRT of a version; returns its module and the maker of its engines."""

    def of(version, **lacks):
        module = full_tensorrt(version, **lacks)
        monkeypatch.setitem(sys.modules, "tensorrt", module)
        made_by = replace(maker(), builder="tensorrt", version=version, target="sm89-made-up", system="linux-x86_64")
        return module, made_by

    return of


def told(path) -> dict:
    """Returns the requests that the stand-in recorded."""
    return json.loads(path.read_bytes())


@pytest.mark.parametrize("has_flag", [True, False])
def test_a_network_is_strongly_typed_by_a_flag_where_the_library_has_one(engines, full, has_flag):
    _, made_by = full("10.13.3" if has_flag else "12.0", strongly_typed=has_flag)
    asked = told(build_engine(address(engines, "text_encoder", made_by=made_by), small()))
    assert asked["network_flags"] == (2 if has_flag else 0)
    assert asked["flags"] == []
    assert asked["profiles"] == len(profiles(engines.component("text_encoder").signature, SMALL))


@pytest.mark.parametrize("to_stream", [True, False])
def test_an_engine_is_streamed_into_its_file_where_the_library_can(engines, full, to_stream):
    _, made_by = full("11.4", to_stream=to_stream)
    path = build_engine(address(engines, "text_encoder", made_by=made_by), small())
    assert told(path)["streamed"] == to_stream
    check_engine(address(engines, "text_encoder", made_by=made_by))


def test_engines_without_weights_are_stripped_and_refit_and_have_their_graph_beside_them(engines, full):
    module, made_by = full("11.4")
    recipe = small("refit")
    refuse_impossible(module, "TensorRT", recipe)
    path = build_engine(address(engines, "vae_decoder", made_by=made_by), recipe)
    assert told(path)["flags"] == ["REFIT_IDENTICAL", "STRIP_PLAN"]
    assert refit_graph_path(path).read_bytes() == prepared_for(address(engines, "vae_decoder"), recipe.weights).model
    build_engine(address(engines, "vae_decoder", made_by=made_by), small())
    assert not refit_graph_path(path).exists()


def test_weights_are_streamed_where_that_is_asked_for(engines, full):
    _, made_by = full("11.4")
    path = build_engine(address(engines, "text_encoder", made_by=made_by), replace(small(), weight_streaming=True))
    assert told(path)["flags"] == ["WEIGHT_STREAMING"]


@pytest.mark.parametrize(("wanted", "lacking"), [
    (Recipe(weights="refit"), "STRIP_PLAN"),
    (Recipe(weights="refit"), "REFIT_IDENTICAL"),
    (Recipe(weight_streaming=True), "WEIGHT_STREAMING"),
])  # fmt: skip
def test_what_a_library_lacks_is_refused_in_one_sentence(full, wanted, lacking):
    module, _ = full("11.4", flags={lacking})
    with pytest.raises(LtxError, match=r"TensorRT 11\.4 (has no|cannot) .* - "):
        refuse_impossible(module, "TensorRT", wanted)


def test_timings_are_kept_beside_the_engines_and_added_to(engines, full):
    _, made_by = full("11.4")
    first = told(build_engine(address(engines, "text_encoder", made_by=made_by), small()))
    path = build_engine(address(engines, "upsampler", made_by=made_by), small())
    cache = path.with_name(TIMING_CACHE)
    assert (first["timings"], told(path)["timings"]) == ("", "11.4:1")
    assert cache.read_bytes() == b"11.4:2"
    cache.write_bytes(b"10.0:9")  # timings of another version
    assert told(build_engine(address(engines, "upsampler", made_by=made_by), small()))["timings"] == ""
    assert cache.read_bytes() == b"11.4:1"


def test_a_build_that_fails_leaves_the_timings_and_says_why_in_the_librarys_words(engines, full):
    _, made_by = full("11.4")
    path = build_engine(address(engines, "text_encoder", made_by=made_by), small())
    _, made_by = full("11.4", failure="no kernel\n for  this")
    with pytest.raises(LtxError, match=r"cannot be built by tensorrt: no kernel for this - "):
        build_engine(address(engines, "text_encoder", made_by=made_by, precision="fp16"), small())
    assert path.with_name(TIMING_CACHE).read_bytes() == b"11.4:1"
    assert names_in(path.parent) == sorted([TIMING_CACHE, path.name, sidecar_path(path).name])


def test_an_engine_without_weights_is_taken_over_with_a_graph_of_its_own(exported, tmp_path, full):
    _, made_by = full("11.4")
    ours, theirs = (copied(exported(RELEASE), tmp_path / one) for one in ("ours", "theirs"))
    recipe = small("refit")
    other = build_engine(address(theirs, "vae_decoder", made_by=made_by), recipe)
    prepared = prepared_for(address(ours, "vae_decoder"), recipe.weights)
    assert find_equal(address(ours, "vae_decoder", made_by=made_by), recipe, prepared, [theirs.folder]) == other
    path = take_over(address(ours, "vae_decoder", made_by=made_by), recipe, prepared, other)
    assert path.samefile(other) and refit_graph_path(path).read_bytes() == prepared.model
    build_engine(address(ours, "vae_decoder", made_by=made_by), recipe)  # the other folder keeps its own
    assert not path.samefile(other)
    check_engine(address(theirs, "vae_decoder", made_by=made_by))
