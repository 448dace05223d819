"""Laws of the doctor's advice: it follows from the facts, one situation at a time, as commands to type."""

from dataclasses import replace

import pytest
from fakes.doctor_cases import EXTRAS, GTX_1080, H100, RTX_4090, engine, folder, machine

from ltx_runtime.doctor.advice import advice_of, usable_builder
from ltx_runtime.folder.commands import export_command
from ltx_runtime.packages import install_command, pip_command, replace_command
from ltx_runtime.sessions.trt.library import RTX_CAPABILITIES

CUDA = ("CUDAExecutionProvider", "CPUExecutionProvider")
BOTH = tuple(EXTRAS)
WHOLE = (folder(),)
BINDINGS = "cuda.bindings.runtime"
NO_GPU = ""  # nothing to type: the CPU is fine

# Situation -> (machine, its folders, commands that help).
SITUATIONS = {
    "cpu only": (machine(), WHOLE, [NO_GPU]),
    "cpu and no q8 graph": (
        machine(),
        (folder(precisions=("fp32", "bf16")),),
        [NO_GPU, export_command("demo")],
    ),
    "cpu without OpenVINO": (
        machine(absent=["openvino"]),
        WHOLE,
        [NO_GPU, install_command("openvino")],
    ),
    "cpu without onnxruntime": (machine(absent=["onnxruntime"]), WHOLE, [install_command("cpu")]),
    "cpu with a broken onnxruntime": (
        machine(broken=["onnxruntime"]),
        WHOLE,
        [install_command("cpu", "--force-reinstall")],
    ),
    "no folders": (
        machine(),
        (),
        [NO_GPU, export_command("0.9.8-2b-distilled")],
    ),
    "a driver and no cuda-bindings": (
        machine(driver=True, absent=[BINDINGS]),
        WHOLE,
        [install_command("gpu")],
    ),
    "RTX without cuda-bindings": (
        machine(RTX_4090, absent=[BINDINGS], problem="cuda-bindings cannot be loaded"),
        WHOLE,
        [install_command("tensorrt-rtx")],
    ),
    "H100 without cuda-bindings": (
        machine(H100, absent=[BINDINGS, *BOTH], problem="cuda-bindings cannot be loaded"),
        WHOLE,
        [install_command("tensorrt")],
    ),
    "GTX without cuda-bindings": (
        machine(GTX_1080, absent=[BINDINGS], problem="cuda-bindings cannot be loaded"),
        WHOLE,
        [install_command("gpu")],
    ),
    "RTX that CUDA cannot use": (machine(RTX_4090, problem="the GPU cannot be used"), WHOLE, [""]),
    "a driver and no GPU": (machine(driver=True), WHOLE, [""]),
    "RTX without a builder": (machine(RTX_4090, absent=BOTH), WHOLE, [install_command("tensorrt-rtx")]),
    "RTX with a broken builder": (
        machine(RTX_4090, absent=["tensorrt"], broken=["tensorrt_rtx"]),
        WHOLE,
        [install_command("tensorrt-rtx", "--force-reinstall")],
    ),
    "RTX with a builder and no engines": (
        machine(RTX_4090, absent=["tensorrt"]),
        WHOLE,
        ["ltx-export engine demo --builder tensorrt_rtx"],
    ),
    "RTX with both": (machine(RTX_4090), WHOLE, ["ltx-export engine demo --builder tensorrt"]),
    "RTX with one engine missing": (
        machine(RTX_4090, absent=["tensorrt"]),
        (folder("tensorrt_rtx", vae_decoder="cuda"),),
        ["ltx-export engine demo --component vae_decoder --builder tensorrt_rtx"],
    ),
    "RTX with all engines": (machine(RTX_4090, absent=["tensorrt"]), (folder("tensorrt_rtx"),), []),
    "H100 without a builder": (machine(H100, absent=BOTH), WHOLE, [install_command("tensorrt")]),
    "H100 with TensorRT-RTX": (machine(H100, absent=["tensorrt"]), WHOLE, [install_command("tensorrt")]),
    "H100 with TensorRT": (machine(H100), WHOLE, ["ltx-export engine demo --builder tensorrt"]),
    "B200 with nothing": (machine((10, 0), absent=BOTH), WHOLE, [install_command("tensorrt")]),
    "GTX": (
        machine(GTX_1080),
        WHOLE,
        [replace_command(("onnxruntime",), "gpu")],
    ),
    "GTX with nothing": (machine(GTX_1080, absent=["onnxruntime"]), WHOLE, [install_command("gpu")]),
    "GTX with CUDA": (machine(GTX_1080, providers=CUDA), WHOLE, []),
    "two runtimes": (
        machine(RTX_4090, clashing=["onnxruntime", "onnxruntime-gpu"]),
        (folder("tensorrt"),),
        [replace_command(("onnxruntime", "onnxruntime-gpu"), "gpu")],
    ),
    "two runtimes and no GPU": (
        machine(clashing=["onnxruntime", "onnxruntime-gpu"]),
        WHOLE,
        [replace_command(("onnxruntime", "onnxruntime-gpu"), "cpu"), NO_GPU],
    ),
    "no PyAV": (machine(absent=["av"]), WHOLE, [pip_command("install", "--force-reinstall", "av"), NO_GPU]),
    "a damaged folder": (
        machine(),
        (folder(problem="engines/demo/a.onnx is missing"),),
        [NO_GPU, export_command("demo")],
    ),
    "graphs for a GPU only": (
        machine(),
        (folder("cpu", vae_decoder=""),),
        [NO_GPU, export_command("demo")],
    ),
    "nothing at all": (
        machine(RTX_4090, absent=BOTH),
        (),
        [
            install_command("tensorrt-rtx"),
            export_command("0.9.8-2b-distilled"),
        ],
    ),
}


@pytest.mark.parametrize("situation", SITUATIONS)
def test_every_situation_has_its_commands_in_the_order_in_which_they_help(situation):
    found, folders, commands = SITUATIONS[situation]
    assert [one.command for one in advice_of(found, folders)] == commands


@pytest.mark.parametrize("situation", SITUATIONS)
def test_advice_says_why_and_breaks_no_line(situation):
    found, folders, _ = SITUATIONS[situation]
    for one in advice_of(found, folders):
        assert one.reason and "\n" not in one.reason + one.command
        assert not one.command.startswith("run:")


@pytest.mark.parametrize("capability", [*RTX_CAPABILITIES, (9, 0), (10, 0), (10, 3)])
def test_every_gpu_that_tensorrt_knows_is_told_to_install_the_one_that_serves_it(capability):
    (only,) = advice_of(machine(capability, absent=BOTH), WHOLE)
    extra = "tensorrt-rtx" if capability in RTX_CAPABILITIES else "tensorrt"
    assert only.command == install_command(extra)
    assert f"{capability[0]}.{capability[1]}" in only.reason


def test_a_library_that_does_not_serve_the_gpu_is_named():
    (only,) = advice_of(machine(H100, absent=["tensorrt"]), WHOLE)
    assert "which TensorRT-RTX does not support" in only.reason


def test_a_library_that_is_older_than_the_gpu_is_told_to_be_upgraded():
    found = machine(RTX_4090, absent=["tensorrt"])
    old = tuple(replace(one, serves_gpu=False) if one.module == "tensorrt_rtx" else one for one in found.libraries)
    (only,) = advice_of(replace(found, libraries=old), WHOLE)
    assert only.command == install_command("tensorrt-rtx", "--upgrade")


def test_the_version_that_was_asked_about_is_the_one_to_make():
    assert advice_of(machine(), (), "0.9.5")[-1].command == export_command("0.9.5")


def test_engines_that_are_of_no_use_here_are_told_from_engines_that_are_missing():
    found = machine(RTX_4090, absent=["tensorrt"])
    old = folder(engines=[engine("transformer", "was built by another version")])
    assert "engines that fit this machine" in advice_of(found, [old])[0].reason
    assert "that fit" not in advice_of(found, WHOLE)[0].reason


def test_each_folder_gets_its_own_command():
    found = machine(RTX_4090, absent=["tensorrt"])
    assert len(advice_of(found, [folder(), folder("tensorrt_rtx"), folder("cuda")])) == 2


def test_why_a_gpu_is_not_seen_is_passed_on():
    (only,) = advice_of(machine(driver=True), WHOLE)
    assert "there is no NVIDIA GPU" in only.reason


@pytest.mark.parametrize(
    ("found", "builder"),
    [
        (machine(), ""),
        (machine(RTX_4090), "tensorrt"),
        (machine(RTX_4090, absent=["tensorrt"]), "tensorrt_rtx"),
        (machine(H100, broken=["tensorrt"]), ""),
        (machine(GTX_1080), ""),
    ],
)
def test_a_builder_is_usable_if_it_loads_and_serves_the_gpu(found, builder):
    assert usable_builder(found) == builder
