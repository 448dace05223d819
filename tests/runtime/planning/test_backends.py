"""Laws of choosing backends: sizes are checked against every engine before anything is loaded, and reasons stated."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
from fakes.requests import default_request
from fakes.stages import engines_of
from samples.onnx_bytes import graph_of

from ltx_runtime.errors import LtxError
from ltx_runtime.folder.address import EngineAddress
from ltx_runtime.folder.manifest import Engines, FileEntry
from ltx_runtime.folder.profiles import Limits, profiles
from ltx_runtime.folder.sidecar import Sidecar
from ltx_runtime.pipeline import Pipeline
from ltx_runtime.planning.backends import Chosen, Size, choose, needed
from ltx_runtime.planning.options import RunOptions
from ltx_runtime.planning.plan import grids_of, plan
from ltx_runtime.planning.request import Condition, Request
from ltx_runtime.sessions import BACKENDS, graph_found
from ltx_runtime.sessions.found import Found, FoundEngine
from ltx_runtime.spec.geometry import Grid, grid_of
from ltx_runtime.spec.versions import VERSIONS
from ltx_runtime.vae.tiling import Tiling

DEMO, SINGLE = VERSIONS["demo"], VERSIONS["0.9.6-distilled"]
REQUEST = Request("a cat walks", "blurry", 512, 768, 97, 24.0, seed=7, single_pass=True)
SIZE = Size(512, 768, 97, True)
OPTIONS = RunOptions()
EVERYTHING = ("text_encoder", "vae_encoder", "transformer", "upsampler", "temporal_upsampler", "vae_decoder")


def with_engines(engines, limits=None, options=OPTIONS, size=SIZE, precision="bf16"):
    """Returns the choice of backends as if there were an engine of every component for these limits."""
    found = {}
    for name, entry in engines.manifest.components.items():
        served = profiles(entry.signature, limits)
        sidecar = Sidecar("tensorrt", "11", "", "", "", "", name, precision, "embedded", served, {}, "", "")
        address = EngineAddress(engines, name, sidecar.maker, precision)
        graph = Found("tensorrt", entry.signature, address.path, engines.folder, precision)
        found[name] = FoundEngine(**vars(graph), address=address, sidecar=sidecar)
    return Chosen(options, size, tuple(found), found)


@pytest.fixture
def demo(spiece):
    return engines_of(DEMO, spiece)


def check(chosen, request, version=DEMO, added_frames=0, conditioned=False):
    chosen.check_passes(plan(request, version), added_frames, conditioned=conditioned)


@pytest.mark.parametrize("version", VERSIONS.values(), ids=VERSIONS)
def test_the_usual_engines_serve_every_version_s_own_video_with_a_clip_and_an_image(version, spiece):
    request = default_request(version, "", 0)
    for added_frames, conditioned in ((0, False), (0, True), (3, True)):
        chosen = with_engines(engines_of(version, spiece))
        check(chosen, request, version, added_frames, conditioned)


def test_a_request_that_no_bucket_serves_is_refused_with_the_command_that_builds_it(demo):
    request = replace(REQUEST, height=1024, width=1536, num_frames=257)
    chosen = with_engines(demo, size=Size(1024, 1536, 257, True))
    with pytest.raises(LtxError) as refused:
        check(chosen, request, SINGLE)
    assert str(refused.value) == (
        "the tensorrt engine of transformer does not serve 1536x1024 with 257 frames "
        "(1 batch, 50688 tokens, 1 timesteps) - run: ltx-export engine demo --component transformer "
        f"--builder tensorrt --engines {demo.folder} --force --static 1024x1536x257 --single-pass, "
        "or add --backend cpu"
    )


def test_an_engine_that_was_narrowed_is_refused_with_the_command_for_the_usual_one(demo):
    narrowed = with_engines(demo, Limits((grid_of(256, 384, 25),)), precision="fp16")
    with pytest.raises(LtxError) as refused:
        check(narrowed, REQUEST)
    command = f"--component transformer --builder tensorrt --precision fp16 --engines {demo.folder} --force"
    assert str(refused.value).endswith(f"{command}, or add --backend cpu")


def test_an_exact_engine_serves_its_own_request_with_and_without_what_is_given(demo):
    exact = with_engines(demo, Limits((grid_of(512, 768, 97),), exact=True))
    check(exact, REQUEST)
    for added_frames in range(5):
        check(exact, REQUEST, added_frames=added_frames, conditioned=True)
    for other in (replace(REQUEST, num_frames=89), replace(REQUEST, width=736)):
        with pytest.raises(LtxError, match="engine of transformer does not serve"):
            check(exact, other)


def test_both_passes_and_what_stands_between_them_are_looked_at(demo):
    request = replace(REQUEST, single_pass=False)
    first, second = grids_of(grid_of(512, 768, 97), DEMO)
    both = Limits((first, second), exact=True)
    check(with_engines(demo, both), request)
    for lacking, message in ((Limits((first,), exact=True), "transformer"), (Limits((second,), exact=True), "")):
        with pytest.raises(LtxError, match=f"engine of {message}"):
            check(with_engines(demo, lacking), request)
    chosen = with_engines(demo, both)
    found = {**chosen.found, "upsampler": with_engines(demo, Limits((second,), exact=True)).found["upsampler"]}
    with pytest.raises(LtxError, match="engine of upsampler"):
        check(replace(chosen, found=found), request)


def test_guidance_in_one_batch_needs_the_batch_and_one_after_another_does_not(demo):
    version = VERSIONS["0.9.8-13b-dev"]
    request = replace(REQUEST, guidance_scale=3.0, stg_scale=1.0)
    chosen = with_engines(demo)
    engine = chosen.found["transformer"]
    small = [{**profile, "batch": profile["batch"].below(2)} for profile in engine.profiles]
    found = {**chosen.found, "transformer": replace(engine, sidecar=replace(engine.sidecar, profiles=small))}
    with pytest.raises(LtxError, match=r"\(3 batch,"):
        check(replace(chosen, found=found), request, version)
    check(replace(chosen, found=found, options=RunOptions(low_memory=True)), request, version)


def test_stg_at_any_step_of_a_transformer_that_cannot_skip_is_refused_when_it_is_planned(spiece, diary):
    with Pipeline(engines_of(SINGLE, spiece), backend="fake") as pipe:
        with pytest.raises(LtxError, match=r"exported without STG - .* --stg-scale 0"):
            pipe("a fox", stg_scale=1.0, skip_blocks=(0,))
        assert diary == []


# --- tiles ----------------------------------------------------------------------------------------


def test_a_video_that_a_decoder_s_engine_does_not_serve_whole_is_cut_into_tiles_that_it_serves(demo):
    chosen = with_engines(demo, options=RunOptions(memory_bytes=10**12))
    large = Grid(33, 50, 50)
    tiling = chosen.tiling(large)
    window = tiling.window(large)
    assert tiling != Tiling()
    assert chosen.tiling(window) == Tiling()
    assert Chosen(chosen.options, chosen.size, chosen.names, no_engines(chosen)).tiling(large) == Tiling()


def no_engines(chosen, precision="bf16"):
    return {
        name: Found(found.backend, found.component, found.path, found.weights, precision)
        for name, found in chosen.found.items()
    }


def test_half_the_memory_is_counted_on_where_numbers_have_half_the_bits(demo):
    halves = with_engines(demo, options=RunOptions(memory_bytes=5_000_000_000))
    grid = grid_of(512, 768, 97)
    assert halves.tiling(grid) == Tiling() != replace(halves, found=no_engines(halves, "fp32")).tiling(grid)


def test_a_decoder_that_serves_no_tile_of_a_video_is_refused_with_the_command_for_the_usual_one(demo):
    exact = with_engines(demo, Limits((grid_of(704, 1216, 121),), exact=True))
    with pytest.raises(
        LtxError, match=r"engine of vae_decoder does not serve .* --component vae_decoder .*--force, or"
    ):
        exact.tiling(grid_of(512, 768, 97))
    with pytest.raises(LtxError, match="engine of vae_encoder does not serve"):
        exact.tiling(grid_of(512, 768, 97), encoding=True)
    assert exact.tiling(grid_of(704, 1216, 121), encoding=True)


# --- choice of backends ---------------------------------------------------------------------------


def test_components_are_those_that_the_request_runs_in_the_order_of_the_road(tmp_path):
    everything = replace(
        REQUEST, single_pass=False, temporal_upscale=True, conditions=(Condition(tmp_path / "a.png", 0),)
    )
    assert tuple(needed(plan(everything, DEMO), RunOptions())) == EVERYTHING
    alone = RunOptions(embeddings=tmp_path / "text.safetensors")
    assert needed(plan(REQUEST, SINGLE), alone) == ["transformer", "vae_decoder"]


def test_what_was_chosen_is_said_once_where_all_is_alike_and_by_component_where_it_is_not(demo):
    def lines(**reasons):
        found = {
            name: Found(reason[0], demo.component(name).signature, demo.folder, demo.folder, reasons=reason[1])
            for name, reason in reasons.items()
        }
        return Chosen(RunOptions(), Size(64, 64, 9, True), tuple(found), found).lines()

    why = {name: (f"tensorrt: no engine of {name}", "cuda: no GPU") for name in EVERYTHING}
    alike = {name: ("cpu", why[name]) for name in ("text_encoder", "transformer", "vae_decoder")}
    assert lines(**alike) == ["everything on cpu (tensorrt: no engine; cuda: no GPU)"]
    assert lines(**alike | {"transformer": ("tensorrt", ())}) == [
        "text_encoder, vae_decoder on cpu (tensorrt: no engine; cuda: no GPU)",
        "transformer on tensorrt",
    ]


def test_nothing_is_said_of_a_backend_that_was_asked_for(demo, diary):
    chosen = choose(demo, ["transformer"], RunOptions(backend="fake"), Size(64, 64, 9, True))
    assert chosen.lines() == []
    assert chosen.found["transformer"].backend == "fake"


def test_the_memory_of_the_gpu_that_may_be_used_reaches_every_backend(demo, diary):
    options = RunOptions(backend="fake", gpu_memory_bytes=5)
    chosen = choose(demo, EVERYTHING, options, Size(64, 64, 9, True))
    assert {found.gpu_memory_bytes for found in chosen.found.values()} == {5}


def test_a_size_that_an_engine_does_not_serve_is_refused_before_anything_is_opened(demo, diary, monkeypatch):
    def narrow(engines, name, backend):
        found = graph_found(engines, name, backend, ["fp32"])
        return replace(with_engines(demo, Limits((grid_of(64, 96, 17),))).found[name], backend=found.backend)

    request = replace(REQUEST, height=96, num_frames=17)
    monkeypatch.setattr(sys.modules[BACKENDS["fake"].module], "find", narrow)
    with pytest.raises(LtxError, match="does not serve 768x96 with 17 frames"):
        Pipeline(demo, backend="fake")(request)
    assert diary == []


# --- failures at loading, and memory of the GPU -----------------------------------------------------


def test_a_backend_that_turns_out_not_to_run_a_graph_gives_way_to_the_next_unless_it_was_asked_for(demo, tmp_path):
    error = LtxError("no kernel - use another")
    entry = demo.component("transformer")
    files = {entry.weights[0]: FileEntry(1, "0")}
    demo = Engines(tmp_path, replace(demo.manifest, files=files))
    (tmp_path / entry.graphs["fp32"]).write_bytes(graph_of(entry.signature, entry.weights[0]))
    found = Found("cuda", demo.component("transformer").signature, demo.folder, demo.folder)
    chosen = Chosen(RunOptions(), SIZE, ("transformer",), {"transformer": found})
    assert chosen.replace_failed(demo, "transformer", error).backend == "cpu"
    for backend, failed in (("cuda", found), ("auto", replace(found, backend="cpu"))):
        with pytest.raises(LtxError, match="no kernel"):
            replace(chosen, options=RunOptions(backend=backend), found={"transformer": failed}).replace_failed(
                demo, "transformer", error
            )


def test_text_that_is_longer_than_an_engine_takes_is_refused_before_it_is_loaded(demo):
    chosen = with_engines(demo)
    chosen.check_text(256)
    with pytest.raises(LtxError, match="takes 256 tokens of text; got 257 - "):
        chosen.check_text(257)
    Chosen(chosen.options, SIZE, chosen.names, no_engines(chosen)).check_text(257)


def test_tiles_are_as_large_as_what_decodes_them_leaves_memory_for(demo):
    large, tokens = Grid(13, 32, 48), {}
    for backend, precision in (("cpu", "fp32"), ("cuda", "bf16"), ("openvino", "bf16")):
        found = Found(backend, demo.component("vae_decoder").signature, Path(), Path(), precision)
        chosen = Chosen(RunOptions(memory_bytes=4 * 10**9), SIZE, ("vae_decoder",), {"vae_decoder": found})
        tokens[backend] = chosen.tiling(large).window(large).tokens
    assert tokens["openvino"] < tokens["cpu"] < tokens["cuda"]


def test_activations_have_what_a_gpu_has_beside_the_engine(demo, tmp_path):
    engine = tmp_path / "some.engine"
    engine.write_bytes(bytes(1000))
    found = Found("tensorrt", demo.component("vae_decoder").signature, engine, tmp_path, "bf16")
    assert found.activation_bytes is None
    whole = replace(found, gpu_bytes=24 * 10**9).activation_bytes
    assert 18 * 10**9 < whole < 24 * 10**9
    assert replace(found, gpu_bytes=24 * 10**9, gpu_memory_bytes=8 * 10**9).activation_bytes < 8 * 10**9
    engine.write_bytes(bytes(5001000))
    assert replace(found, gpu_bytes=24 * 10**9).activation_bytes == whole - 5_000_000
    assert replace(found, gpu_bytes=10**9).activation_bytes > 0
