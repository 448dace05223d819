"""Whole videos through stand-in engines: the same as on the CPU, from the same graphs, with either library.

The stand-ins in stand_ins/engines.py compute the fp32 graphs and check every size and address they are given.
"""

import shutil
from dataclasses import replace

import numpy as np
import pytest
from fakes.runs import Made, decode_saved, generate
from stand_ins.engines import Recipe, install
from stand_ins.gpu_machine import Machine

from ltx_runtime.errors import LtxError
from ltx_runtime.folder import address
from ltx_runtime.folder.profiles import Limits
from ltx_runtime.folder.reading import open_engines
from ltx_runtime.pipeline import Pipeline
from ltx_runtime.planning.options import RunOptions
from ltx_runtime.planning.plan import grids_of, plan
from ltx_runtime.planning.request import Condition, Request
from ltx_runtime.spec.geometry import grid_of
from ltx_runtime.spec.versions import VERSIONS
from ltx_runtime.tensors import write_tensors

RELEASE = "0.9.8-13b-distilled"
VERSION = VERSIONS[RELEASE]
BUILDERS = ("tensorrt", "tensorrt_rtx")
EVERY_BUILDER = pytest.mark.parametrize("builder", BUILDERS)
REQUEST = Request("a cat walks", "blurry", 96, 128, 17, 24.0, seed=7)
COMPONENTS = ("text_encoder", "vae_encoder", "transformer", "upsampler", "vae_decoder")


@pytest.fixture
def engines(exported, tmp_path):
    shutil.copytree(exported(RELEASE).folder, tmp_path / RELEASE)
    return open_engines(tmp_path / RELEASE)


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "image.safetensors"
    ramp = np.linspace(-1, 1, 3 * 96 * 128, dtype=np.float32).reshape(1, 3, 1, 96, 128)
    write_tensors(path, {"media": ramp})
    return path


def made(engines, request, backend="auto", **options):
    run = Made()
    generate(engines, request, run.frames.append, run.progress, RunOptions(backend, **options), run.notes.append)
    return run


def alike(run, other):
    """Checks that videos differ by at most one level, as values between two levels may be rounded either way."""
    assert run.video.shape == other.video.shape
    assert np.abs(run.video.astype(int) - other.video).max() <= 1
    assert len(np.unique(run.video)) > 50


@EVERY_BUILDER
@pytest.mark.parametrize("single_pass", [False, True], ids=["two_passes", "one_pass"])
@pytest.mark.parametrize("conditions", [(), (0,), (0, 9)], ids=str)
def test_a_video_of_engines_is_that_of_the_cpu(engines, image, monkeypatch, builder, single_pass, conditions):
    request = replace(REQUEST, single_pass=single_pass, conditions=tuple(Condition(image, at) for at in conditions))
    expected = made(engines, request, "cpu")
    installed = install(monkeypatch, engines, builder)
    run = made(engines, request)
    alike(run, expected)
    assert run.units == expected.units
    assert any(note.startswith(f"everything on {builder}") for note in run.notes)
    installed.machine.assert_nothing_left()


@EVERY_BUILDER
def test_guidance_runs_in_one_batch_or_one_after_another(engines, monkeypatch, builder):
    request = replace(REQUEST, guidance_scale=3.0, single_pass=True)
    expected = made(engines, request, "cpu")
    install(monkeypatch, engines, builder)
    for low_memory in (False, True):
        alike(made(engines, request, low_memory=low_memory), expected)


def test_frames_leave_the_decoder_as_bytes_where_nothing_is_to_be_blended_or_resized(engines, monkeypatch):
    machine = install(monkeypatch, engines).machine
    request = replace(REQUEST, single_pass=True)
    made(engines, request, embeddings=None)
    whole = machine.downloaded
    machine.downloaded = 0
    made(engines, request, tiled=True, memory_bytes=10**9)
    # These tiles are as large as the video, so nothing is blended and the frames still leave as bytes.
    assert machine.downloaded == whole
    resized = replace(REQUEST)  # two passes, the last of which is larger than the requested video
    machine.downloaded = 0
    made(engines, resized)
    grid = plan(resized, VERSION).passes[-1].grid
    pixels = 3 * grid.num_frames * grid.height * grid.width
    assert machine.downloaded > 4 * pixels  # float32 frames
    assert whole < 2 * 3 * 17 * 96 * 128  # one byte per value, plus latents


def test_text_and_places_are_uploaded_once_for_a_pass(engines, monkeypatch):
    machine = install(monkeypatch, engines, recipe={"transformer": Recipe()}).machine
    request = replace(REQUEST, single_pass=True)
    grid = grid_of(96, 128, 17)
    steps = len(plan(request, VERSION).passes[0].sigmas)
    made(engines, request)
    ports = {port.name: port for port in engines.component("transformer").signature.inputs}
    sizes = {"batch": 1, "tokens": grid.tokens, "timesteps": 1, "text_tokens": VERSION.text_tokens}

    def size(port):
        return int(np.prod(port.shape(sizes))) * np.dtype(port.dtype).itemsize

    changing = {"latents", "sinusoid"}
    once = sum(size(port) for name, port in ports.items() if name not in changing)
    always = sum(size(ports[name]) for name in changing)
    # At most `once`, because the prompt is padded only to its own length.
    assert always * steps < machine.uploaded <= once + always * steps
    assert machine.uploaded < 2 * always * steps + once


def test_a_component_without_an_engine_runs_on_the_cpu_and_it_is_said_why(engines, monkeypatch):
    expected = made(engines, REQUEST, "cpu")
    install(monkeypatch, engines, recipe={name: Recipe() for name in COMPONENTS if name != "upsampler"})
    run = made(engines, REQUEST)
    alike(run, expected)
    (told,) = [note for note in run.notes if note.startswith("upsampler on cpu")]
    assert "tensorrt_rtx: no engine" in told
    assert "text_encoder, transformer, vae_decoder on tensorrt_rtx (tensorrt: no engine)" in run.notes


def test_engines_with_weights_as_inputs_or_refitted_make_the_same_video(engines, monkeypatch):
    expected = made(engines, REQUEST, "cpu")
    install(monkeypatch, engines, "tensorrt", recipe=Recipe(weights="refit"))
    alike(made(engines, REQUEST), expected)


def test_a_video_decoded_in_tiles_by_engines_is_that_of_the_cpu_in_the_same_tiles(engines, monkeypatch):
    request = replace(REQUEST, height=320, width=288, num_frames=9, single_pass=True)
    expected = made(engines, request, "cpu")
    exact = Limits((grid_of(256, 256, 9),), exact=True)
    recipe = {"vae_decoder": Recipe(limits=exact)}
    install(monkeypatch, engines, recipe=recipe)
    run = made(engines, request)
    assert run.video.shape == expected.video.shape
    difference = run.video.astype(float) - expected.video
    assert 10 * np.log10(255**2 / np.mean(difference**2)) > 20


def test_engines_of_one_size_make_it_and_refuse_others_with_the_command_before_anything_is_opened(engines, monkeypatch):
    limits = Limits(tuple(grids_of(grid_of(96, 128, 17), VERSION)), exact=True)
    installed = install(monkeypatch, engines, recipe=Recipe(limits=limits))
    made(engines, REQUEST)
    runs = len(installed.seen.runs)
    with pytest.raises(LtxError, match=r"engine of transformer does not serve .*ltx-export engine .*--force"):
        made(engines, replace(REQUEST, num_frames=25))
    assert len(installed.seen.runs) == runs


def test_an_engine_is_hashed_once_for_all_videos(engines, monkeypatch):
    install(monkeypatch, engines)
    hashed = []

    def counting(path):
        if path.suffix == ".engine":
            hashed.append(path.name)
        return original(path)

    original = address.checksum
    monkeypatch.setattr(address, "checksum", counting)
    with Pipeline(engines) as pipe:
        for _ in range(2):
            video = pipe(REQUEST)
            video.report()
            assert len(list(video)) == REQUEST.num_frames
    assert sorted(hashed) == sorted(set(hashed))
    assert "transformer.bf16.engine" in hashed


def test_saved_latents_are_decoded_by_an_engine_too(engines, monkeypatch, tmp_path):
    saved = tmp_path / "latents.safetensors"
    expected = made(engines, REQUEST, "cpu", save_latents=saved)
    install(monkeypatch, engines)
    run = Made()
    decode_saved(engines, saved, run.frames.append, run.progress, RunOptions(), run.notes.append)
    alike(run, expected)
    assert any("tensorrt_rtx" in note for note in run.notes)


@EVERY_BUILDER
def test_a_gpu_that_is_too_small_is_one_sentence_and_leaves_nothing_on_it(engines, monkeypatch, builder):
    machine = install(monkeypatch, engines, builder, Machine(memory_bytes=600_000)).machine
    with pytest.raises(LtxError, match="GPU memory") as refused:
        made(engines, REQUEST)
    assert " - " in str(refused.value)
    machine.assert_nothing_left()


def test_without_a_gpu_everything_runs_on_the_cpu_and_it_is_said_why(engines, monkeypatch):
    install(monkeypatch, engines, machine=Machine(driver=0))
    run = made(engines, REQUEST)
    (told,) = [note for note in run.notes if note.startswith("everything on cpu")]
    assert "no NVIDIA driver" in told
    with pytest.raises(LtxError, match="no NVIDIA driver"):
        made(engines, REQUEST, "tensorrt_rtx")
