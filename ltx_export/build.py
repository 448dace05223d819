"""The road for one version: sources -> networks -> weights -> graphs -> parity -> manifest, read top to bottom.

Everything is written into a hidden folder beside the target, which takes the target's name at the end.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx_ir as ir

from ltx_export.graphs.attach import attach
from ltx_export.graphs.onnx_from_torch import onnx_from_torch
from ltx_export.graphs.parity import check_parity
from ltx_export.graphs.precision import at_precision
from ltx_export.networks.header import checked_header, fine_tune_notes, schedule_of, transformer_config
from ltx_export.networks.header_fields import allowed_sigmas, flag
from ltx_export.networks.parts import Part, parts_of
from ltx_export.preview import fit_preview
from ltx_export.recorded import Array, read_record, record, relative_l2, run_graph
from ltx_export.sources.find import TOKENIZER_FILE, Sources, open_sources
from ltx_export.weights.placing import Placed, place_weights
from ltx_export.weights.rewrite import BlockWeight, Weight, rewrite
from ltx_export.weights.staging import refuse_foreign, staged
from ltx_export.weights.streaming import place_file
from ltx_runtime.errors import LtxError
from ltx_runtime.folder.manifest import (
    QUANTIZED,
    ComponentEntry,
    Manifest,
    Parity,
    Preview,
    Quantized,
    describe_files,
    write_manifest,
)
from ltx_runtime.progress import Progress, silent
from ltx_runtime.spec.components import Component
from ltx_runtime.spec.versions import Version
from ltx_runtime.text.tokenizer import Tokenizer
from ltx_runtime.trust.made_here import record_link
from ltx_runtime.weights.checkpoint import StoredTensor
from ltx_runtime.weights.lora import Lora, LoraFile, open_lora

DEFAULT_PRECISIONS = ("fp32", "bf16")
_CHECKED_PRECISION = "fp32"
_QUANTIZED_LIMIT = 0.1  # relative L2 beyond which a q8 graph is of no use: ten times that of random weights

Report = Callable[[str], None]


@dataclass(frozen=True)
class ExportOptions:
    """The choices of an export.

    Attributes:
        precisions: precisions of the graphs, for every component that `of_component` does not name.
        of_component: precisions of the graphs of some components.
        store: F32, F16 or BF16 to rewrite all weights in that dtype; None keeps the stored bytes where possible.
        loras: LoRAs that are merged into the transformer.
        link: whether unchanged weights stay where they are instead of being placed in the version folder.
        stg: whether the transformer can skip layers even if the version's presets do not use that.
        without: optional components that are not exported.
        quantize: whether the transformer also has a q8 graph, if its matrices can be quantized and `of_component` does
            not name it.
    """

    precisions: Sequence[str] = DEFAULT_PRECISIONS
    of_component: Mapping[str, Sequence[str]] = field(default_factory=dict)
    store: str | None = None
    loras: Sequence[LoraFile] = ()
    link: bool = False
    stg: bool = False
    without: Sequence[str] = ()
    quantize: bool = False

    def precisions_of(self, part: Part) -> Sequence[str]:
        """Returns the precisions of one component's graphs; q8 only where there are matrices to quantize.

        Raises:
            LtxError: q8 was requested for a component that has none.
        """
        name = part.component.name
        requested = self.of_component.get(name, self.precisions)
        if part.quantizable:
            adds = self.quantize and name == "transformer" and name not in self.of_component
            return [*requested, QUANTIZED] if adds else requested
        if QUANTIZED in self.of_component.get(name, ()):
            raise LtxError(
                f"{name} has no repeated blocks of float matrices to quantize", f"leave --precision {name}=q8 out"
            )
        return [precision for precision in requested if precision != QUANTIZED] or DEFAULT_PRECISIONS

    def kept(self, parts: Sequence[Part]) -> list[Part]:
        """Returns the parts that are exported."""
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
        version: the release that the checkpoint belongs to.
        sources: checkpoint, text encoder, tokenizer and upscalers.
        folder: the version folder, replaced if it exists.
        options: the choices of the export.
        report: receives a line for each thing that is done.
        progress: shows how far reading and writing of weights are.

    Raises:
        LtxError: the folder is not a version folder, a file is damaged or does not fit, or a graph fails parity.
    """
    refuse_foreign(folder)
    opened = open_sources(sources)
    header = checked_header(version, opened)
    schedule = schedule_of(version, header)
    causal = flag("transformer", header["transformer"], "causal_temporal_positioning", version.causal_positions)
    rope = transformer_config(header["transformer"]).rope
    sigmas = allowed_sigmas(header, version.allowed_sigmas)
    parts = options.kept(parts_of(version, header, opened, stg=options.stg))
    _report_notes((*opened.notes, *fine_tune_notes(version, header)), report)
    _report_lacking(version, parts, options, report)
    _refuse_misfits(parts, sources, folder, options)
    loras = _open_loras(parts, options.loras)
    with staged(folder) as staging:
        tokenizer = _placed_tokenizer(parts, sources, staging, progress)
        placed = place_weights(parts, staging, options.store, loras, options.link, progress)
        entries = _export_parts(parts, placed, staging, options, report, progress)
        files = describe_files(_paths(staging, placed, entries, tokenizer))
        linked = {name: str(place.folder) for place in placed if place.linked for name in place.names.values()}
        merged = tuple(f"{lora.file.name}:{lora.scale:g}" for lora in loras)
        manifest = Manifest(version.name, causal, schedule, rope, tokenizer, entries, files, linked, merged, sigmas)
        write_manifest(staging, manifest)
        _record_links(manifest, folder, report)
    return manifest


def _record_links(manifest: Manifest, folder: Path, report: Report) -> None:
    """Records that it is the user who makes the folder read files elsewhere."""
    places = {manifest.place(folder, name): manifest.files[name] for name in manifest.linked}
    if not all([record_link(place, file.size_bytes, file.checksum) for place, file in places.items()]):
        report("these links cannot be recorded as yours: other programs will need --trust-engines")


def _report_notes(notes: Sequence[str], report: Report) -> None:
    for note in notes:
        report(note)


def _report_lacking(version: Version, parts: Sequence[Part], options: ExportOptions, report: Report) -> None:
    """Reports what runs cannot do because a component is missing."""
    if _text_part(parts) is None:
        report("there is no text encoder: ltx-run will need --embeddings-file instead of a prompt")
    _report_no_encoder(parts, options, report)
    _report_single_pass(version, parts, options, report)


def _report_single_pass(version: Version, parts: Sequence[Part], options: ExportOptions, report: Report) -> None:
    """Reports if a release with two passes lacks the upsampler for the second."""
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
    """Reports if the VAE was stored without its encoder."""
    name = "vae_encoder"
    if name not in options.without and all(part.component.name != name for part in parts):
        report(
            f"{name}: the VAE has no encoder, so ltx-run cannot take images or videos - to add it, give a complete VAE"
        )


def _refuse_misfits(parts: Sequence[Part], sources: Sources, folder: Path, options: ExportOptions) -> None:
    """Raises LtxError if the tokenizer does not fit the text encoder, or if weights would be lost with the folder."""
    if (text_part := _text_part(parts)) is not None:
        assert sources.tokenizer is not None  # found beside the text encoder, or given
        Tokenizer(sources.tokenizer, max_tokens=1).check_vocabulary(text_part.tensors["shared.weight"].shape[0])
    _refuse_own_weights(parts, folder, options)
    for part in parts:
        options.precisions_of(part)


def _text_part(parts: Sequence[Part]) -> Part | None:
    return next((part for part in parts if part.source == "text_encoder"), None)


def _placed_tokenizer(parts: Sequence[Part], sources: Sources, folder: Path, progress: Progress) -> str | None:
    """Places the tokenizer in the version folder, and returns its name there; None if there is no text encoder."""
    if _text_part(parts) is None or sources.tokenizer is None:
        return None
    place_file(sources.tokenizer, folder / TOKENIZER_FILE, progress)
    return TOKENIZER_FILE


def _refuse_own_weights(parts: Sequence[Part], folder: Path, options: ExportOptions) -> None:
    """Raises LtxError if weights lie in the folder that is replaced, and links or rewriting would lose them."""
    if not (options.link or options.store or options.loras):
        return
    files = {tensor.file.resolve() for part in parts for tensor in part.tensors.values()}
    inside = sorted(file for file in files if file.is_relative_to(folder.resolve()))
    if inside:
        raise LtxError(
            f"{inside[0]} is in the folder that this export replaces",
            f"move it out of {folder}, or leave --link, --store and --lora out",
        )


def _paths(
    folder: Path, placed: Sequence[Placed], entries: Mapping[str, ComponentEntry], tokenizer: str | None
) -> dict[str, Path]:
    """Returns the path of every file of the version folder, by its name in the folder."""
    paths = {name: place.folder / name for place in placed for name in place.names.values()}
    for entry in entries.values():
        paths |= {name: folder / name for name in entry.files() - set(entry.weights)}
    return paths if tokenizer is None else paths | {tokenizer: folder / tokenizer}


def _open_loras(parts: Sequence[Part], loras: Sequence[LoraFile]) -> list[Lora]:
    transformer = next(part for part in parts if part.source == "transformer")
    shapes = {name: tensor.shape for name, tensor in transformer.tensors.items()}
    return [open_lora(one.file, one.scale, shapes) for one in loras]


def _export_parts(
    parts: Sequence[Part],
    placed: Sequence[Placed],
    folder: Path,
    options: ExportOptions,
    report: Report,
    progress: Progress,
) -> dict[str, ComponentEntry]:
    made: dict[str, ComponentEntry] = {}
    # The VAE first, encoder before decoder: they take the most memory, and what others leave behind would come on top.
    for part, place in sorted(zip(parts, placed, strict=True), key=lambda pair: pair[0].source != "vae"):
        name = part.component.name
        with progress(name, 1):  # one unit, to show that it is under way
            made[name] = _export_part(part, place, folder, options.precisions_of(part), report)
    return {part.component.name: made[part.component.name] for part in parts}


def _export_part(part: Part, place: Placed, folder: Path, precisions: Sequence[str], report: Report) -> ComponentEntry:
    name = part.component.name
    started = time.perf_counter()
    traced, whole = onnx_from_torch(part.network)
    report(f"{name}: traced to {len(whole.graph)} nodes in {time.perf_counter() - started:.1f} s")
    parity = _check_traced(part, place, traced, folder, report)
    graphs: dict[str, str] = {}
    recorded = f"{name}.recorded.npz"
    quantized = _quantized(part, place, folder) if QUANTIZED in precisions else None
    for precision in dict.fromkeys((_CHECKED_PRECISION, *precisions)):
        graphs[precision] = f"{name}.{precision}.onnx"
        if quantized and precision == QUANTIZED:  # fp32 arithmetic on other weights
            _save(whole, _CHECKED_PRECISION, quantized, folder / graphs[precision])
        else:
            _save(whole, precision, place, folder / graphs[precision])
    checked = folder / graphs[_CHECKED_PRECISION]
    record(checked, place.folder, part.component, folder / recorded)
    own: dict[str, Quantized] = {}
    if quantized:
        error = _quantized_error(part.component, folder, graphs[QUANTIZED], recorded, report)
        own[QUANTIZED] = Quantized(tuple(quantized.names.values()), error)
    preview = _preview(checked, place, part.component) if name == "vae_encoder" else None
    if _CHECKED_PRECISION not in precisions:
        checked.unlink()
        del graphs[_CHECKED_PRECISION]
    report(f"{name}: {', '.join(graphs.values())}, {time.perf_counter() - started:.1f} s in all")
    names = tuple(place.names.values())
    return ComponentEntry(part.component, names, graphs, parity, recorded, preview, part.parameters, own)


def _quantized(part: Part, place: Placed, folder: Path) -> Placed:
    """Writes a file with all weights of a network, the matrices of its repeated blocks quantized to Q8."""
    path = folder / f"{part.component.name}.{QUANTIZED}.safetensors"
    tensors = {name: weight for name, weight in place.weights.items() if isinstance(weight, StoredTensor)}
    return Placed(rewrite(tensors, path, tables=part.tables, to_q8=part.quantizable), {path: path.name}, folder)


def _quantized_error(component: Component, folder: Path, graph: str, recorded: str, report: Report) -> float:
    """Returns relative L2 of the q8 graph's output to the recorded one of the fp32 graph, on the same inputs.

    Raises:
        LtxError: it is larger than _QUANTIZED_LIMIT, or not a number.
    """
    feeds, expected = read_record(folder / recorded, component)
    (actual,) = run_graph(folder / graph, folder, component, [feeds])
    error = relative_l2(actual, expected)
    if error > _QUANTIZED_LIMIT:
        raise LtxError(
            f"the q8 graph of {component.name} differs from fp32 by {error:.1e} relative L2, more than "
            f"{_QUANTIZED_LIMIT:g}",
            "name the precisions without q8, such as --precision fp32 --precision bf16",
        )
    report(f"{component.name}: relative L2 {error:.1e} of {QUANTIZED} to fp32")
    return error


def _preview(graph: Path, place: Placed, component: Component) -> Preview:
    """Fits the colours of the VAE's latents, by the fp32 graph of its encoder."""

    def encode(clips: Sequence[Array]) -> list[Array]:
        posteriors = run_graph(graph, place.folder, component, [{"video": clip} for clip in clips])
        return [np.split(posterior, 2, axis=1)[0] for posterior in posteriors]

    return fit_preview(encode)


def _check_traced(part: Part, place: Placed, traced: ir.Model, folder: Path, report: Report) -> Parity:
    """Compares the traced blocks to the PyTorch module, with the weights as they are stored in the folder."""
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
