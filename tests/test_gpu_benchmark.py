"""Laws of benchmarks/gpu.py: what it measures, and one small run of the whole command on the CPU."""

import json
import math
import os
import struct
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fakes.encodings import places_of, timesteps_of
from safetensors.torch import load_file, save_file

from ltx_export.engines import files as engine_files
from ltx_runtime.errors import LtxError
from ltx_runtime.sessions.cuda import gpu as cuda_gpu
from ltx_runtime.sessions.cuda.gpu import Gpu
from ltx_runtime.spec.components import check_feeds
from ltx_runtime.spec.geometry import Grid, grid_of
from ltx_runtime.spec.versions import VERSIONS

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import gpu  # noqa: E402
import gpu_arithmetic  # noqa: E402
import gpu_build  # noqa: E402
import gpu_measure  # noqa: E402
import gpu_ours  # noqa: E402
import gpu_reference  # noqa: E402
import gpu_table  # noqa: E402
import gpu_weights  # noqa: E402
from gpu_measure import EAGER  # noqa: E402

SIZE = "64x64x9"


def test_sizes_are_read_or_refused():
    assert gpu_build.grids_of(["512x768x97", SIZE]) == (Grid(13, 16, 24), Grid(2, 2, 2))
    for wrong in ("512x768", "axbxc", "512x768x97x1", "512x770x97"):
        with pytest.raises(LtxError):
            gpu_build.grids_of([wrong])


@pytest.mark.parametrize("version", ["demo", "0.9.8-2b-distilled", "0.9.0"])
@pytest.mark.parametrize("component", ["transformer", "vae_decoder"])
def test_feeds_fit_the_ports_and_what_stays_the_same_is_read_only(tmp_path, version, component):
    release = VERSIONS[version]
    engines = gpu.bare_engines(release, tmp_path)
    feeds = gpu_ours.inputs_of(engines, component, release, grid_of(64, 64, 9)).feeds
    check_feeds(engines.component(component).signature, feeds)
    assert {name for name, one in feeds.items() if one.flags.writeable} == {"latents", "sinusoid"} & feeds.keys()


@pytest.mark.parametrize("version", ["demo", "0.9.8-2b-distilled"])
def test_diffusers_gets_the_noise_level_and_the_places_of_which_we_get_sinusoid_and_rotation(tmp_path, version):
    release = VERSIONS[version]
    engines = gpu.bare_engines(release, tmp_path)
    made = {part: gpu_ours.inputs_of(engines, part, release, grid_of(64, 64, 9)) for part in gpu._COMPONENTS}
    for part, encoded in (("transformer", {"sinusoid", "cosines", "sines"}), ("vae_decoder", {"sinusoid"})):
        assert made[part].feeds.keys() - made[part].plain.keys() == encoded
        assert all(made[part].plain[name] is made[part].feeds[name] for name in made[part].feeds.keys() - encoded)
    step, decode = (made[part] for part in gpu._COMPONENTS)
    np.testing.assert_allclose(timesteps_of(step.feeds["sinusoid"]), step.plain["timestep"], rtol=1e-6)
    np.testing.assert_allclose(timesteps_of(decode.feeds["sinusoid"]), decode.plain["timestep"], rtol=1e-6)
    places = places_of(step.feeds, engines.manifest.rope)
    np.testing.assert_allclose(places.T[None], step.plain["coords"], rtol=1e-6, atol=1e-3)


@pytest.mark.parametrize("pieces", [3, 1 << 24])
def test_a_distance_is_relative_to_what_is_expected(monkeypatch, pieces):
    monkeypatch.setattr(gpu_measure, "_PIECE", pieces)
    expected = torch.arange(1, 11, dtype=torch.float32).reshape(2, 5)
    assert gpu_measure.distance(expected.numpy() * 1.25, expected) == pytest.approx(0.25)
    assert gpu_measure.distance(expected, expected) == 0
    with pytest.raises(ValueError, match="differ"):
        gpu_measure.distance(expected.reshape(5, 2), expected)


def test_a_checkpoint_is_filled_with_numbers_of_the_right_spread(tmp_path):
    path = tmp_path / "x.safetensors"
    zeros = {"a.weight": torch.zeros(1024, 1024), "b.bias": torch.zeros(64), "c.std-of-means": torch.zeros(8)}
    save_file({name: values.bfloat16() for name, values in zeros.items()}, path, {"config": "{}"})
    size = path.stat().st_size
    gpu_weights.fill(path, "cpu", 0)
    filled = load_file(path)
    assert path.stat().st_size == size
    assert filled["a.weight"].float().std() == pytest.approx(1 / math.sqrt(1024), rel=1e-2)
    assert filled["c.std-of-means"].float().min() >= 1
    assert all(values.count_nonzero() > 0.9 * values.numel() for values in filled.values())
    (length,) = struct.unpack("<Q", path.read_bytes()[:8])
    assert json.loads(path.read_bytes()[8 : 8 + length])["__metadata__"] == {"config": "{}"}


def test_timesteps_of_diffusers_transformer_are_a_thousand_times_ours():
    plain = {"timestep": np.full((1, 1), 0.7, np.float32), "coords": np.ones((1, 3, 2), np.float32)}
    made = gpu_reference.inputs("transformer", plain, "cpu", torch.bfloat16)
    assert made["timestep"].item() == pytest.approx(700) and made["coords"].dtype == torch.float32
    decoded = gpu_reference.inputs("vae_decoder", plain, "cpu", torch.bfloat16)
    assert decoded["timestep"].item() == pytest.approx(0.7, rel=1e-2)


def test_a_builder_that_is_not_here_or_does_not_serve_the_gpu_is_a_finding(tmp_path, monkeypatch):
    def load(builder):
        if builder == "tensorrt":
            raise LtxError("TensorRT cannot be loaded - install it")
        targets = SimpleNamespace(__members__={"SM89": 0})
        return SimpleNamespace(__version__="1.7", IRuntimeCache=object, ComputeCapability=targets)

    monkeypatch.setattr(gpu_ours, "load_library", load)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    absent, refused = gpu_ours.build_engines(tmp_path, ["transformer"], [SIZE], lambda: 100.0)
    assert absent == "TensorRT cannot be loaded - install it"
    assert refused == "TensorRT-RTX 1.7 makes no kernels for this GPU (compute capability 9.0)"


def test_a_build_that_fails_or_takes_too_long_is_told(tmp_path):
    assert "took more than" in gpu_ours._build(tmp_path, "tensorrt_rtx", "transformer", [SIZE], 0.01)
    assert gpu_ours._build(tmp_path, "tensorrt_rtx", "transformer", [SIZE], 0) == "no time was left"
    assert "holds no manifest.json" in gpu_ours._build(tmp_path, "tensorrt_rtx", "transformer", [SIZE], 60)


def test_without_a_gpu_the_command_says_what_to_do(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="torch sees no GPU - use"):
        gpu.main([])


@pytest.fixture
def timeless(tmp_path):
    """Returns a benchmark whose time is over before it begins."""
    typed = ["--device", "cpu", "--version", "demo", "--sizes", SIZE, "--limit-s", "0", "--work", str(tmp_path)]
    return gpu.Benchmark(gpu.arguments(typed))


def test_without_time_everything_is_told_as_not_begun(timeless, capsys):
    timeless.run()
    result = json.loads(gpu.tell(timeless).read_text())
    assert {one["problem"] for one in result["sections"]} == {"no time was left"}
    assert result["rows"] == [] and result["peak"] is None
    assert capsys.readouterr().out.count("not measured") == 3


def test_a_run_that_is_stuck_is_ended_with_what_there_is(timeless, capsys, monkeypatch):
    ended = []
    monkeypatch.setattr(gpu.os, "_exit", ended.append)
    timeless.peak = {"flops_per_s": 2e12, "by_size": {}, "dtype": "bfloat16"}
    gpu._out_of_time(timeless)
    printed = capsys.readouterr().out
    assert ended == [0] and "2.0 TFLOP/s" in printed and "in the middle of a section" in printed


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    return tmp_path_factory.mktemp("benchmark")


@pytest.fixture(scope="module")
def ran(work):
    """Runs the command in its small form; returns what it prints and the JSON that it writes."""
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), "--device", "cpu", "--version", "demo"]
    command += ["--sizes", SIZE, "--rounds", "3", "--work", str(work)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    ended = subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout, json.loads((work / "demo-cpu.json").read_text())


@pytest.mark.slow
def test_every_section_of_a_run_succeeds(ran):
    sections = ran[1]["sections"]
    assert {one["name"]: one["problem"] for one in sections if one["problem"]} == {}
    assert [one["name"] for one in sections][:3] == ["peak of matrix products", "weights", "export"]
    assert ran[1]["findings"] == []


@pytest.mark.slow
def test_ours_and_diffusers_are_timed_at_every_size(ran):
    rows = ran[1]["rows"]
    wanted = [(part, SIZE, name) for part in ("transformer", "vae_decoder") for name in ("cpu", EAGER)]
    assert [(one["component"], one["size"], one["name"]) for one in rows] == wanted
    for one in rows:
        assert 0 < one["least_s"] <= one["median_s"] <= one["most_s"] < 60
        assert one["rounds"] == 3 and one["first_s"] > 0 and one["memory_bytes"] is None


@pytest.mark.slow
def test_a_step_s_share_of_the_peak_follows_from_its_time(ran):
    result = ran[1]
    for one in result["rows"]:
        if one["component"] == "transformer":
            assert one["tokens"] == grid_of(64, 64, 9).tokens
            assert one["flops"] == gpu_arithmetic.step_flops(
                VERSIONS["demo"].transformer, one["tokens"], gpu_arithmetic.TEXT_TOKENS
            )
            share = one["flops"] / one["median_s"] / result["peak"]["flops_per_s"]
            assert one["share_of_peak"] == pytest.approx(share)
    assert result["peak"]["flops_per_s"] == max(result["peak"]["by_size"].values()) > 1e8


@pytest.mark.slow
def test_our_numbers_are_those_of_diffusers_on_the_same_weights(ran):
    ours = {one["component"]: one["relative_l2"] for one in ran[1]["rows"] if one["name"] == "cpu"}
    assert all(0 < ours[component] < 1e-3 for component in ("transformer", "vae_decoder"))
    for component, distances in ran[1]["fp32"].items():
        assert distances[EAGER] == 0 and distances["cpu"] == pytest.approx(ours[component], rel=1e-3)


@pytest.mark.slow
def test_copies_are_timed_both_ways_and_of_both_kinds_of_frames(ran):
    assert set(ran[1]["copies"]) == {SIZE}
    assert set(ran[1]["copies"][SIZE]) == {"upload_s", "download_s", "frames_uint8_s", "frames_float32_s"}
    assert all(seconds > 0 for seconds in ran[1]["copies"][SIZE].values())


@pytest.mark.slow
def test_what_is_printed_is_a_table_of_all_that_with_what_it_takes_to_repeat_it(ran):
    printed, result = ran
    assert printed == gpu_table.markdown(result) + "\n"
    assert f"demo, {result['date']}" in printed
    assert "`python benchmarks/gpu.py --device cpu --version demo" in printed
    assert f"torch {torch.__version__}" in printed
    lines = printed.splitlines()
    assert sum(line.startswith(f"| {SIZE} |") for line in lines) == len(result["rows"]) + 1
    tables = [line for line in lines if line.startswith("|---")]
    assert len(tables) == 4
    for at, line in enumerate(lines):
        if line.startswith("|---"):
            assert lines[at - 1].count("|") == line.count("|") == lines[at + 1].count("|")
    assert sum(line.startswith("- Goal: ") for line in lines) == 3


@pytest.mark.slow
def test_a_failed_section_and_a_finding_stand_in_the_table(ran):
    sections = [{"name": "weights", "seconds": 2.0, "problem": "OSError: full"}]
    told = gpu_table.markdown({**ran[1], "sections": sections, "findings": ["no TensorRT"], "rows": [], "peak": None})
    assert '- section "weights" failed after 2 s: OSError: full' in told
    assert "- no TensorRT" in told


@pytest.mark.slow
def test_an_engine_is_built_for_exactly_the_sizes_unless_it_is_there(ran, work, monkeypatch):
    built = []
    monkeypatch.setattr(cuda_gpu, "find_gpu", lambda: Gpu("NVIDIA Test", (8, 9), "13.0", 24 << 30))
    monkeypatch.setattr(gpu_build, "load_library", lambda builder: SimpleNamespace(__version__="10.13"))
    monkeypatch.setattr(engine_files, "build_engine", lambda *given: built.append(given))
    folder = work / "engines" / "demo"
    gpu_build.build(folder, "tensorrt", "transformer", ["512x768x97", SIZE])
    ((address, recipe),) = built
    assert address.path == folder / "sm89-nvidia-test-tensorrt-10.13" / "transformer.bf16.engine"
    served = recipe.profiles(address.engines.component("transformer").signature)
    assert {(one["tokens"].min, one["tokens"].best) for one in served} == {(8, 8), (4992, 4992)}
    monkeypatch.setattr(engine_files, "prepared_for", lambda *given: None)
    monkeypatch.setattr(engine_files, "check_built", lambda *given: None)
    gpu_build.build(folder, "tensorrt", "transformer", [SIZE])
    assert len(built) == 1
