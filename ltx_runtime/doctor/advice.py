"""Advises what to install or build next, from nothing but the facts about a machine and its version folders.

The order is that in which to follow the advice: broken packages, libraries, version folders, engines.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ltx_runtime.doctor.folders import ComponentFacts, FolderFacts
from ltx_runtime.doctor.machine import CUDA_PROVIDER, GpuFacts, Library, Machine
from ltx_runtime.errors import advised
from ltx_runtime.folder.address import engines_option
from ltx_runtime.folder.commands import export_command
from ltx_runtime.folder.manifest import QUANTIZED
from ltx_runtime.packages import install_command, pip_command, replace_command
from ltx_runtime.sessions.trt.library import LEAST_CAPABILITY, LIBRARIES, RTX_CAPABILITIES

_ESSENTIAL = ("numpy", "av", "sentencepiece")
_DEFAULT_VERSION = "0.9.8-2b-distilled"
_SLOW = (
    "no NVIDIA GPU is used, and the CPU runs everything: expect a minute or two for a short clip (25 frames of 384x256 "
    "with the 2B version on two cores), and more with size and length"
)


@dataclass(frozen=True)
class Advice:
    """One thing to do, with the reason; the command is empty if no command can do it."""

    reason: str
    command: str = ""


def advice_of(machine: Machine, folders: Sequence[FolderFacts], version: str | None = None) -> tuple[Advice, ...]:
    """Returns everything that would help, in the order in which to do it.

    Args:
        machine: facts about the machine.
        folders: facts about the version folders, complete or not.
        version: the version that the user asked about, if any.
    """
    return (*_broken(machine), *_libraries(machine), *_folders(folders, version), *_engines(machine, folders))


def _broken(machine: Machine) -> Iterator[Advice]:
    if machine.clashing:
        extra = "gpu" if _has_gpu(machine) else "cpu"
        yield Advice(
            f"{' and '.join(machine.clashing)} overwrite each other's files",
            replace_command(machine.clashing, extra),
        )
    for module in _ESSENTIAL:
        library = machine.library(module)
        if not library.loads:
            yield Advice(
                f"{library.name} {_failure_of(library)}, and every run needs it",
                pip_command("install", "--force-reinstall", library.package),
            )


def _failure_of(library: Library) -> str:
    return f"does not load ({library.problem})" if library.installed else "is not installed"


def _has_gpu(machine: Machine) -> bool:
    """Returns whether there is a GPU, or at least an NVIDIA driver."""
    return machine.gpu.compute_capability is not None or machine.system.nvidia_driver


def _libraries(machine: Machine) -> Iterator[Advice]:
    capability = machine.gpu.compute_capability
    runtime = machine.library("onnxruntime")
    if capability is not None and not machine.gpu.problem:
        yield from _gpu_libraries(machine, capability)
    elif _has_gpu(machine):
        yield _unseen_gpu(machine.gpu, machine.library("cuda.bindings.runtime"))
    elif runtime.loads:
        yield Advice(_SLOW)
        openvino = machine.library("openvino")
        if not openvino.loads:
            yield Advice(
                f"OpenVINO makes most CPUs of the last years two to four times as fast, and {_failure_of(openvino)}",
                _install_command(openvino, "openvino"),
            )
    if capability is None and not runtime.loads and not machine.clashing:
        yield Advice(
            f"ONNX Runtime, which runs graphs on the CPU, {_failure_of(runtime)}", _install_command(runtime, "cpu")
        )


def _unseen_gpu(gpu: GpuFacts, bindings: Library) -> Advice:
    there_is = f"there is {gpu.name}" if gpu.name else "an NVIDIA driver is installed"
    if bindings.loads:
        return Advice(f"{there_is}, but CUDA finds no GPU ({gpu.problem})")
    extra = "gpu"  # each extra for a GPU brings the bindings
    if gpu.compute_capability is not None and gpu.compute_capability >= LEAST_CAPABILITY:
        extra = LIBRARIES[_library_for(gpu.compute_capability)]
    return Advice(f"{there_is}, but {bindings.name} {_failure_of(bindings)}", _install_command(bindings, extra))


def _library_for(capability: tuple[int, int]) -> str:
    """Returns the module of the library that serves a GPU best, which TensorRT knows."""
    return "tensorrt_rtx" if capability in RTX_CAPABILITIES else "tensorrt"


def _install_command(library: Library, extra: str) -> str:
    return install_command(extra, *(["--force-reinstall"] if library.installed and not library.loads else []))


def _gpu_libraries(machine: Machine, capability: tuple[int, int]) -> Iterator[Advice]:
    """Yields how to get a library that builds engines for this GPU, or ONNX Runtime if TensorRT does not support it."""
    if usable_builder(machine):
        return
    gpu = f"{machine.gpu.name} (compute capability {capability[0]}.{capability[1]})"
    runtime = machine.library("onnxruntime")
    if capability < LEAST_CAPABILITY:
        if CUDA_PROVIDER not in runtime.providers and not machine.clashing:
            command = replace_command(("onnxruntime",), "gpu") if runtime.installed else install_command("gpu")
            yield Advice(f"{gpu} is too old for TensorRT; ONNX Runtime can use it", command)
        return
    module = _library_for(capability)
    library = machine.library(module)
    if library.loads and library.serves_gpu is False:
        yield Advice(
            f"{library.name} {library.version} does not support {gpu}", install_command(LIBRARIES[module], "--upgrade")
        )
        return
    refused = [candidate.name for candidate in machine.libraries if candidate.loads and candidate.serves_gpu is False]
    remark = f" (which {' and '.join(refused)} does not support)" if refused else ""
    yield Advice(
        f"{gpu}{remark} is fastest with {library.name}, which {_failure_of(library)}",
        _install_command(library, LIBRARIES[module]),
    )


def usable_builder(machine: Machine) -> str:
    """Returns the preferred library that loads and builds engines for this GPU, or an empty string."""
    usable = (module for module in LIBRARIES if machine.library(module).loads and machine.library(module).serves_gpu)
    return next(usable, "")


def _folders(folders: Sequence[FolderFacts], version: str | None) -> Iterator[Advice]:
    for folder in folders:
        if folder.problem:
            command = folder.command or ("" if folder.advice else export_command(folder.version))
            yield Advice(advised(folder.problem, folder.advice), command)
    if not folders:
        export_version = version or _DEFAULT_VERSION
        of_version = f" of {version}" if version else ""
        reason = f"there is no version folder{of_version} yet; ltx-run --fetch OWNER/NAME gets a published one"
        yield Advice(reason, export_command(export_version))


def _engines(machine: Machine, folders: Sequence[FolderFacts]) -> Iterator[Advice]:
    builder = usable_builder(machine)
    runs_q8 = machine.library("openvino").loads and not _has_gpu(machine)
    for folder in folders:
        if runs_q8 and any(c.name == "transformer" and QUANTIZED not in c.precisions for c in folder.components):
            yield Advice(
                f"{folder.version} has no q8 graph of transformer, the fastest form on most CPUs",
                export_command(folder.version),
            )
        unrunnable = [component.name for component in folder.components if not component.chosen]
        if unrunnable and not builder:
            reason = f"nothing here can run {', '.join(unrunnable)} of {folder.version}"
            yield Advice(reason, export_command(folder.version))
        if not builder:
            continue
        lacking = [component for component in folder.components if component.chosen not in LIBRARIES]
        if not lacking:
            continue
        outdated = any(engine.problem for component in lacking for engine in component.engines)
        described = "engines that fit this machine" if outdated else "engines"
        yield Advice(
            f"{folder.version} has no {described} of {', '.join(component.name for component in lacking)}",
            f"ltx-export engine {shlex.quote(folder.version)}{_component_options(lacking, folder.components)} "
            f"--builder {builder}{engines_option(Path(folder.path), folder.version)}",
        )


def _component_options(lacking: Sequence[ComponentFacts], components: Sequence[ComponentFacts]) -> str:
    if len(lacking) == len(components):
        return ""
    return "".join(f" --component {component.name}" for component in lacking)
