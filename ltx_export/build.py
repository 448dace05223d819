"""The road for one version: sources -> networks -> weights -> graphs -> parity -> manifest, read top to bottom.

Everything is written into a hidden folder beside the target, which takes the target's name at the end.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import onnx_ir as ir

from ltx_export.checkpoints.checkpoint import StoredTensor
from ltx_export.checkpoints.lora import Lora, open_lora
from ltx_export.graphs.attach import attach
from ltx_export.graphs.onnx_from_torch import onnx_from_torch
from ltx_export.graphs.parity import check_parity
from ltx_export.graphs.precision import at_precision
from ltx_export.networks.header import effective_header, refuse_another_version, schedule_of
from ltx_export.networks.header_fields import allowed_sigmas, flag
from ltx_export.networks.parts import Part, parts_of
from ltx_export.recorded import record
from ltx_export.sources.find import TOKENIZER_FILE, Sources, open_sources
from ltx_export.weights.placing import Placed, place_file, place_weights
from ltx_export.weights.rewrite import BlockWeight, Weight
from ltx_export.weights.staging import refuse_foreign, staged
from ltx_runtime.errors import LtxError
from ltx_runtime.folder.manifest import ComponentEntry, Manifest, Parity, describe_files, write_manifest
from ltx_runtime.progress import Progress, silent
from ltx_runtime.spec.versions import Version
from ltx_runtime.text.tokenizer import Tokenizer

DEFAULT_PRECISIONS = ("fp32", "bf16")
_CHECKED_PRECISION = "fp32"

Report = Callable[[str], None]


@dataclass(frozen=True)
class ExportOptions:
    """What may be chosen about an export.

    Attributes:
        precisions: of the graphs, for every component.
        of_component: other precisions for some components.
        store: F32, F16 or BF16: rewrites all weights; None leaves every byte where it can stay.
        loras: file and scale of what is merged into the transformer.
        link: leave unchanged weights where they are instead of placing them in the folder.
        stg: a transformer that can skip layers, whether the version's presets do or not.
        without: components that are left out, of those a run can do without.
    """

    precisions: Sequence[str] = DEFAULT_PRECISIONS
    of_component: Mapping[str, Sequence[str]] = field(default_factory=dict)
    store: str | None = None
    loras: Sequence[tuple[Path, float]] = ()
    link: bool = False
    stg: bool = False
    without: Sequence[str] = ()

    def precisions_of(self, part: Part) -> Sequence[str]:
        """The precisions of one component's graphs."""
        return self.of_component.get(part.component.name, self.precisions)

    def kept(self, parts: Sequence[Part]) -> list[Part]:
        """The parts that are not left out."""
        return [part for part in parts if part.component.name not in self.without]


def export_version(
    version: Version,
    sources: Sources,
    folder: Path,
    options: ExportOptions,
    report: Report,
    progress: Progress = silent,
) -> Manifest:
    """Writes a complete version folder, or leaves what was there untouched.

    Args:
        version: what the checkpoint is.
        sources: checkpoint, text encoder and tokenizer.
        folder: the version folder, replaced if it exists.
        options: what to make.
        report: is told each thing done.
        progress: shows what goes through gigabytes.

    Raises:
        LtxError: the folder is no version folder, a file is damaged or does not fit, or a graph fails its parity check.
    """
    refuse_foreign(folder)
    opened = open_sources(sources)
    header = effective_header(version, opened)
    refuse_another_version(version, header)
    schedule = schedule_of(version, header)
    causal = flag("transformer", header["transformer"], "causal_temporal_positioning", version.causal_positions)
    sigmas = allowed_sigmas(header, version.allowed_sigmas)
    parts = options.kept(parts_of(version, header, opened, stg=options.stg))
    _report_lacking(version, parts, options, report)
    _check_tokenizer(sources.tokenizer, parts[0].tensors["shared.weight"].shape[0])
    loras = _open_loras(parts, options.loras)
    _refuse_own_weights(parts, folder, options)
    with staged(folder) as staging:
        place_file(sources.tokenizer, staging / TOKENIZER_FILE, progress)
        placed = place_weights(parts, staging, options.store, loras, options.link, progress)
        entries = _export_parts(parts, placed, staging, options, report)
        manifest = Manifest(
            version.name,
            causal,
            schedule,
            TOKENIZER_FILE,
            entries,
            describe_files(_paths(staging, placed, entries)),
            {name: str(place.folder) for place in placed if place.linked for name in place.names.values()},
            tuple(f"{lora.file.name}:{lora.scale:g}" for lora in loras),
            sigmas,
        )
        write_manifest(staging, manifest)
    return manifest


def _report_lacking(version: Version, parts: Sequence[Part], options: ExportOptions, report: Report) -> None:
    """Tells what runs cannot do for want of a component."""
    _report_no_encoder(parts, options, report)
    _report_single_pass(version, parts, options, report)


def _report_single_pass(version: Version, parts: Sequence[Part], options: ExportOptions, report: Report) -> None:
    """Tells what a release of two passes lacks for its second."""
    name = "upsampler"
    if len(version.passes) < 2 or any(part.component.name == name for part in parts):
        return
    if name in options.without:
        reason, advice = "its upscaler is left out", f"leave --without {name} out"
    else:
        reason, advice = "there is no upscaler", f"give --upscaler {version.upscaler or 'FILE'}"
    report(
        f"{version.name} has a second pass, but {reason}: ltx-run will need --single-pass - to add it, {advice} and "
        "export again"
    )


def _report_no_encoder(parts: Sequence[Part], options: ExportOptions, report: Report) -> None:
    """Tells if the VAE was stored without its encoder."""
    name = "vae_encoder"
    if name not in options.without and all(part.component.name != name for part in parts):
        report(
            f"{name}: the VAE has no encoder, so ltx-run can take no images and videos - to add it, give a whole VAE"
        )


def _refuse_own_weights(parts: Sequence[Part], folder: Path, options: ExportOptions) -> None:
    """Raises LtxError if weights are in the folder that is replaced, where links to them or rewriting loses them."""
    if not (options.link or options.store or options.loras):
        return
    files = {tensor.file.resolve() for part in parts for tensor in part.tensors.values()}
    inside = sorted(file for file in files if file.is_relative_to(folder.resolve()))
    if inside:
        raise LtxError(
            f"{inside[0]} is in the folder that this export replaces",
            f"move it out of {folder}, or leave --link, --store and --lora out",
        )


def _paths(folder: Path, placed: Sequence[Placed], entries: Mapping[str, ComponentEntry]) -> dict[str, Path]:
    """Every file of the version folder, by its name in it."""
    paths = {name: place.folder / name for place in placed for name in place.names.values()}
    for entry in entries.values():
        paths |= {name: folder / name for name in (*entry.graphs.values(), entry.recorded) if name}
    return paths | {TOKENIZER_FILE: folder / TOKENIZER_FILE}


def _open_loras(parts: Sequence[Part], loras: Sequence[tuple[Path, float]]) -> list[Lora]:
    transformer = next(part for part in parts if part.source == "transformer")
    shapes = {name: tensor.shape for name, tensor in transformer.tensors.items()}
    return [open_lora(path, scale, shapes) for path, scale in loras]


def _export_parts(
    parts: Sequence[Part], placed: Sequence[Placed], folder: Path, options: ExportOptions, report: Report
) -> dict[str, ComponentEntry]:
    made: dict[str, ComponentEntry] = {}
    # The VAE first, encoder before decoder: they take the most memory, and what others leave behind would come on top.
    for part, place in sorted(zip(parts, placed, strict=True), key=lambda pair: pair[0].source != "vae"):
        made[part.component.name] = _export_part(part, place, folder, options.precisions_of(part), report)
    return {part.component.name: made[part.component.name] for part in parts}


def _export_part(part: Part, place: Placed, folder: Path, precisions: Sequence[str], report: Report) -> ComponentEntry:
    name = part.component.name
    started = time.perf_counter()
    traced, whole = onnx_from_torch(part.network)
    report(f"{name}: traced to {len(whole.graph)} nodes in {time.perf_counter() - started:.1f} s")
    parity = _check_traced(part, place, traced, folder, report)
    graphs: dict[str, str] = {}
    recorded = f"{name}.recorded.npz"
    for precision in dict.fromkeys((_CHECKED_PRECISION, *precisions)):
        graphs[precision] = f"{name}.{precision}.onnx"
        _save(whole, precision, place, folder / graphs[precision])
    record(folder / graphs[_CHECKED_PRECISION], place.folder, part.component, folder / recorded)
    if _CHECKED_PRECISION not in precisions:
        (folder / graphs.pop(_CHECKED_PRECISION)).unlink()
    report(f"{name}: {', '.join(graphs.values())}, {time.perf_counter() - started:.1f} s in all")
    return ComponentEntry(part.component, tuple(place.names.values()), graphs, parity, recorded)


def _check_traced(part: Part, place: Placed, traced: ir.Model, folder: Path, report: Report) -> Parity:
    """The parity of the traced blocks, over the weights as they are stored now."""
    blocks = part.network.traced_blocks
    component = part.network.component(blocks)
    tensors = {name: _module_weight(place.weights[name], tensor) for name, tensor in part.tensors.items()}
    described = "the checkpoint's own"
    if blocks < part.network.blocks:
        described += f", blocks 0 to {blocks - 1} of {part.network.blocks}"
    graph = folder / f".{component.name}.traced.onnx"
    try:
        _save(traced, _CHECKED_PRECISION, place, graph)
        parity = check_parity(lambda: part.network.make(blocks), component, tensors, graph, place.folder, described)
    finally:
        graph.unlink(missing_ok=True)
    report(f"{component.name}: relative L2 {', '.join(f'{e:.1e}' for e in parity.relative_l2)} to PyTorch")
    return parity


def _module_weight(weight: Weight, source: StoredTensor) -> StoredTensor:
    return source if isinstance(weight, BlockWeight) else weight


def _save(model: ir.Model, precision: str, place: Placed, path: Path) -> None:
    made = at_precision(model, precision)
    attach(made, place.weights, place.names, place.folder)
    ir.save(made, path)


def _check_tokenizer(file: Path, vocabulary: int) -> None:
    """Raises LtxError if it is no tokenizer of T5, or knows pieces that the text encoder does not."""
    pieces = Tokenizer(file, max_tokens=1).pieces
    if pieces > vocabulary:
        raise LtxError(
            f"{file} has {pieces} pieces, but the text encoder knows {vocabulary}", "give the one it came with"
        )
