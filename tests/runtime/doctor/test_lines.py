"""Laws of the doctor's lines: every fact is printed, nothing is printed twice, and the advice comes last."""

import json
from dataclasses import replace

import pytest
from fakes.doctor_cases import H100, RTX_4090, engine, folder, machine

from ltx_runtime.doctor import lines as doctor_lines
from ltx_runtime.doctor.advice import Advice, advice_of
from ltx_runtime.doctor.lines import lines_of, run
from ltx_runtime.doctor.report import Report
from ltx_runtime.errors import LtxError

BUILD = Advice("demo has no engines", "ltx-export engine demo --builder tensorrt")


def report(found=None, folders=(), advice=(), **changes):
    whole = Report(found or machine(), "engines", True, 61_470_000_000, tuple(folders), tuple(advice))
    return replace(whole, **changes)


def text(*given, **named):
    return "\n".join(lines_of(report(*given, **named)))


def test_system_and_disk_are_told():
    told = text()
    assert "system: Linux 6, A processor, 8 cores, 34.36 GB memory (17.18 GB available), Python 3.11.7" in told
    assert "folder: engines, 61.47 GB free on its disk" in told


def test_free_space_that_is_not_known_is_left_out():
    told = text(free_bytes=None)
    assert "None" not in told and "free on" not in told


def test_a_gpu_is_told_and_why_there_is_none():
    told = "GPU: NVIDIA Test, compute capability 8.9, 25.77 GB memory (21.47 GB free), driver for CUDA 13.0"
    assert told in text(machine(RTX_4090))
    assert f"{told}; not usable: no cuda-bindings" in text(machine(RTX_4090, problem="no cuda-bindings"))
    assert "GPU: none: there is no NVIDIA GPU" in text()


def test_libraries_are_told_as_there_missing_or_broken():
    told = text(machine(H100, absent=["av"], broken=["tensorrt"]))
    assert "  av: not installed" in told
    assert "  TensorRT 1.2: does not load (libnv.so: cannot open)" in told
    assert "  TensorRT-RTX 1.2: does not support this GPU" in told
    assert "  TensorRT-RTX 1.2: supports this GPU" in text(machine(RTX_4090))
    assert "  onnxruntime 1.2: CPUExecutionProvider" in told


def test_packages_that_overwrite_each_other_are_told():
    told = text(machine(clashing=["onnxruntime", "onnxruntime-gpu"]))
    assert "onnxruntime and onnxruntime-gpu are installed at once and overwrite each other" in told


def test_a_folder_is_told_with_what_runs_each_component():
    told = text(folders=[folder("tensorrt", vae_decoder="cpu", components=("transformer", "vae_decoder"))])
    assert "  engines/demo: demo, complete, 1.50 GB" in told
    assert "    transformer: runs on tensorrt; graphs in fp32, bf16" in told
    assert "    vae_decoder: runs on cpu; graphs in fp32, bf16" in told
    assert "      cpu: transformer.onnx" in told and "      cpu: vae_decoder.onnx" in told
    assert "nothing here can run it" in text(folders=[folder("")])


def test_what_a_backend_says_of_every_component_alike_is_told_once():
    """Differences in component names, and in advice, which is printed elsewhere, are ignored."""
    told = text(folders=[folder("cpu")])
    assert told.count("    tensorrt: no engine\n") == 1 and told.count("tensorrt:") == 1
    assert "      tensorrt: no engine" in text(folders=[folder("cpu", components=("transformer",))])


def test_a_folder_that_is_not_whole_is_told_with_its_problem():
    assert "  engines/demo: cannot be used: a.onnx is missing" in text(folders=[folder(problem="a.onnx is missing")])


def test_an_engine_is_told_with_its_sizes_and_its_numbers():
    lines = lines_of(report(folders=[folder(engines=[engine("transformer")])]))
    at = lines.index(
        "      portable-tensorrt_rtx-1.2/transformer.bf16.engine: 48.00 MB, bf16, weights inputs, "
        "relative L2 1.2e-03 to fp32"
    )
    assert lines[at + 1] == "        1 to 97 frames of 64x64 to 512x512"
    assert "cannot be used" not in "\n".join(lines)


def test_an_engine_of_no_use_here_is_told_with_the_command_that_rebuilds_it():
    lines = lines_of(report(folders=[folder(engines=[engine("transformer", "was built for another GPU")])]))
    at = lines.index("        cannot be used here: was built for another GPU")
    assert lines[at + 1] == "        run: ltx-export engine demo --component transformer --force"


def test_advice_comes_last_and_is_numbered():
    lines = lines_of(report(advice=[Advice("the CPU is fine"), BUILD]))
    assert lines[-4:] == ["advice:", "  1. the CPU is fine", f"  2. {BUILD.reason}", f"     {BUILD.command}"]
    assert lines_of(report())[-1] == "advice: none, everything is ready"


def test_a_root_that_is_not_there_or_empty_is_told():
    assert "engines (does not exist yet)" in text(root_exists=False)
    assert "  no version folders" in text()


@pytest.mark.parametrize("found", [machine(), machine(H100, clashing=["a", "b"]), machine(RTX_4090, absent=["numpy"])])
def test_no_line_is_broken_or_carries_what_a_terminal_would_obey(found):
    evil = folder(problem="engines/\x1b[31m\nevil is missing")
    lines = lines_of(report(found, [evil], advice_of(found, [evil])))
    assert all(line.isprintable() for line in lines)


def test_run_gives_lines_or_json_of_the_same_report(monkeypatch, tmp_path):
    made = report(machine(RTX_4090), [folder(engines=[engine("transformer")])], [BUILD])
    asked = []
    monkeypatch.setattr(doctor_lines, "examine", lambda *given, trust: asked.append((*given, trust)) or made)
    assert run(tmp_path, "demo", False) == "\n".join(lines_of(made))
    data = json.loads(run(tmp_path, None, True, trust=True))
    assert data["advice"] == [{"reason": BUILD.reason, "command": BUILD.command}]
    assert data["folders"][0]["components"][0]["engines"][0]["relative_l2"] == 1.2e-3
    assert asked == [(tmp_path, "demo", False), (tmp_path, None, True)]


def test_run_refuses_a_bad_path(tmp_path):
    with pytest.raises(LtxError, match="is not a folder"):
        run(tmp_path / "none" / "engines", None, False)
