"""An inspection -> lines of text: kind, version, contents, missing files and memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ltx_export.inspection.facts import File, Inspection
from ltx_runtime.files import amount

_MAX_SHOWN = 12


def lines_of(inspection: Inspection) -> list[str]:
    """Returns the results of an inspection as lines of text, without empty fields and with long lists shortened."""
    return ["".join(letter if letter.isprintable() else "?" for letter in line) for line in _lines(inspection)]


def _lines(inspection: Inspection) -> Iterator[str]:
    yield f"{inspection.path}: {inspection.kind}"
    if inspection.versions:
        yield f"version: {_listed(inspection.versions)}"
    yield from (f"  {reason}" for reason in inspection.reasons)
    for file in inspection.files:
        yield from _file_lines(file)
    yield from _engine_lines(inspection.engines)
    yield from (f"missing: {name}" for name in inspection.missing)
    memory = inspection.memory
    if memory:
        yield (
            f"memory: CPU {amount(memory['cpu_mapped_bytes'])} mapped and "
            f"{amount(memory['cpu_private_bytes'])} private, GPU {amount(memory['gpu_bytes'])}"
        )
        yield f"  {memory['how']}"


def _file_lines(file: File) -> Iterator[str]:
    if file.problem:
        yield f"{file.path}: {file.kind}: {file.problem}"
        return
    yield f"{file.path}: {file.kind}, {amount(file.size_bytes)}"
    if file.variants:
        yield f"  variants: {_listed([variant or 'plain' for variant in file.variants])}"
    if file.header:
        yield f"  header: {_facts(file.header)}"
    for network in file.networks:
        dtypes = network.get("quantization") or _facts(network["dtypes"])
        yield (
            f"  {network['name']}: {network['tensors']} tensors, {network['parameters'] / 1e9:.3f} billion parameters, "
            f"{amount(network['size_bytes'])} ({dtypes})"
        )
        if not file.header and network["sizes"]:
            yield f"    {_facts(network['sizes'])}"
    if file.lora:
        yield f"  LoRA: {_facts(file.lora)}"
    if file.unknown_names:
        yield f"  unknown tensors: {_listed(file.unknown_names)}"


def _engine_lines(engines: Mapping[str, Any]) -> Iterator[str]:
    if not engines:
        return
    for name, precisions in engines["precisions"].items():
        yield f"  {name}: {', '.join(precisions)} over {_listed(engines['weights'][name])}"
    yield f"  total size {amount(sum(engines['size_bytes'].values()))}"
    for name, folder in engines["linked"].items():
        yield f"  {name} is not in the folder but in {folder}"
    if engines["loras"]:
        yield f"  merged: {_listed(engines['loras'])}"


def _facts(facts: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{name.replace('_', ' ')} {_listed(value) if isinstance(value, list | tuple) else value}"
        for name, value in facts.items()
        if value not in ("", None, [], {})
    )


def _listed(names: Sequence[Any]) -> str:
    more = f" and {len(names) - _MAX_SHOWN} more" if len(names) > _MAX_SHOWN else ""
    return ", ".join(str(name) for name in names[:_MAX_SHOWN]) + more
