"""Formats the doctor's report for people and for programs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from ltx_runtime.doctor.folders import ComponentFacts, EngineFile, FolderFacts
from ltx_runtime.doctor.machine import GpuFacts, Library, Machine
from ltx_runtime.doctor.report import Report, examine
from ltx_runtime.errors import printable
from ltx_runtime.files import amount


def run(root: Path, version: str | None, as_json: bool, *, trust: bool = False) -> str:
    """Examines the machine and the version folders, and returns the report as text or JSON.

    Args:
        root: a folder of version folders, or a version folder.
        version: the only version to report on; None for all.
        as_json: whether to return JSON.
        trust: whether engines and links are used that the user has not made on this machine.

    Raises:
        LtxError: the root is not a folder, cannot be read, or neither it nor its parent folder exists.
    """
    report = examine(root, version, trust=trust)
    return json.dumps(asdict(report), indent=1) if as_json else "\n".join(lines_of(report))


def lines_of(report: Report) -> list[str]:
    """Returns the report as printable lines, with the advice at the end."""
    return [printable(line) for line in _lines(report)]


def _lines(report: Report) -> Iterator[str]:
    yield from _machine_lines(report.machine)
    absent = "" if report.root_exists else " (does not exist yet)"
    free = "" if report.free_bytes is None else f", {amount(report.free_bytes)} free on its disk"
    yield f"folder: {report.root}{absent}{free}"
    for folder in report.folders:
        yield from _folder_lines(folder)
    if not report.folders:
        yield "  no version folders"
    yield "advice:" if report.advice else "advice: none, everything is ready"
    for number, advice in enumerate(report.advice, 1):
        yield f"  {number}. {advice.reason}"
        if advice.command:
            yield f"     {advice.command}"


def _machine_lines(machine: Machine) -> Iterator[str]:
    system = machine.system
    memory = f"{amount(system.memory_bytes)} memory ({amount(system.available_bytes)} available)"
    yield f"system: {system.os}, {system.processor}, {system.cores} cores, {memory}, Python {system.python}"
    yield f"GPU: {_gpu(machine.gpu)}"
    yield "libraries:"
    for library in machine.libraries:
        yield f"  {_library(library)}"
    if machine.clashing:
        yield f"  {' and '.join(machine.clashing)} are installed at once and overwrite each other"


def _gpu(gpu: GpuFacts) -> str:
    if gpu.compute_capability is None:
        return f"none: {gpu.problem}"
    major, minor = gpu.compute_capability
    free = "" if gpu.free_bytes is None else f" ({amount(gpu.free_bytes)} free)"
    return (
        f"{gpu.name}, compute capability {major}.{minor}, {amount(gpu.memory_bytes)} memory{free}, "
        f"driver for CUDA {gpu.driver}{f'; not usable: {gpu.problem}' if gpu.problem else ''}"
    )


def _library(library: Library) -> str:
    if not library.installed:
        return f"{library.name}: not installed"
    version = f" {library.version}" if library.version else ""
    if library.problem:
        return f"{library.name}{version}: does not load ({library.problem})"
    support = {True: ": supports this GPU", False: ": does not support this GPU", None: ""}[library.serves_gpu]
    providers = f": {', '.join(library.providers)}" if library.providers else ""
    return f"{library.name}{version}{support}{providers}"


def _folder_lines(folder: FolderFacts) -> Iterator[str]:
    if folder.problem:
        yield f"  {folder.path}: cannot be used: {folder.problem}"
        return
    yield f"  {folder.path}: {folder.version}, complete, {amount(folder.size_bytes)}"
    common = _common_answers(folder.components)
    for backend, answer in common.items():
        yield f"    {backend}: {answer}"
    for component in folder.components:
        yield from _component_lines(component, common)


def _answers_of(component: ComponentFacts) -> dict[str, str]:
    """Returns what each backend says about a component, without the component's name; the advice says what to do."""
    return {saying.backend: saying.says.replace(f" of {component.name}", "") for saying in component.backends}


def _common_answers(components: Sequence[ComponentFacts]) -> dict[str, str]:
    """Returns the answers that a backend gives for every component alike, so that they are printed only once."""
    if len(components) < 2:
        return {}
    answers = [_answers_of(component) for component in components]
    return {backend: says for backend, says in answers[0].items() if all(row[backend] == says for row in answers)}


def _component_lines(component: ComponentFacts, common: Mapping[str, str]) -> Iterator[str]:
    chosen = f"runs on {component.chosen}" if component.chosen else "nothing here can run it"
    yield f"    {component.name}: {chosen}; graphs in {', '.join(component.precisions) or 'no precision'}"
    for backend, answer in _answers_of(component).items():
        if backend not in common:
            yield f"      {backend}: {answer}"
    for engine in component.engines:
        yield from _engine_lines(engine)


def _engine_lines(engine: EngineFile) -> Iterator[str]:
    accuracy = "" if engine.relative_l2 is None else f", relative L2 {engine.relative_l2:.1e} to fp32"
    built_as = f", {engine.precision}, weights {engine.weights}" if engine.weights else f", {engine.precision}"
    yield f"      {engine.path}: {amount(engine.size_bytes)}{built_as}{accuracy}"
    for size in engine.sizes:
        yield f"        {size}"
    if engine.problem:
        yield f"        cannot be used here: {engine.problem}"
        yield f"        run: {engine.rebuild}"
