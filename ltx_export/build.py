"""The road for one version: checkpoint -> names -> graphs -> weights -> parity -> manifest, read top to bottom.

Everything is written into a hidden folder beside the target, which takes the target's name at the end.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
from torch import nn

from ltx_export.architecture import header_config, refuse_another_version, t5_config, transformer_config, vae_config
from ltx_export.checkpoint import Checkpoint, StoredTensor, open_checkpoint
from ltx_export.keys import check_names, component_tensors, refuse_unknown
from ltx_export.models.dit import Transformer
from ltx_export.models.t5 import TextEncoder
from ltx_export.models.vae import VaeDecoder
from ltx_export.onnx_from_torch import build_empty, onnx_from_torch
from ltx_export.parity import check_parity
from ltx_export.weights import attach
from ltx_runtime import components
from ltx_runtime.components import Component
from ltx_runtime.errors import LtxError
from ltx_runtime.manifest import ComponentEntry, Manifest, Parity, describe_files, write_manifest
from ltx_runtime.tokenizer import Tokenizer
from ltx_runtime.versions import Version

# Names in a weights folder (the checkpoint has its version's own name) and in a version folder.
TEXT_ENCODER_FILE = "text_encoder.safetensors"
TOKENIZER_FILE = "tokenizer.model"
CHECKPOINT_FILE = "checkpoint.safetensors"

PRECISIONS = ("fp32", "bf16")
_CHECKED_PRECISION = "fp32"

Report = Callable[[str], None]


@dataclass(frozen=True)
class Sources:
    """The files an export starts from."""

    checkpoint: Path
    text_encoder: Path
    tokenizer: Path


@dataclass(frozen=True)
class Part:
    """One graph to be made: how to build its module, its ports, its weights and the file they are in."""

    component: Component
    make: Callable[[], nn.Module]
    tensors: Mapping[str, StoredTensor]
    weights_file: str


def export_version(
    version: Version, sources: Sources, folder: Path, precisions: Sequence[str], report: Report
) -> Manifest:
    """Writes a complete version folder, or leaves what was there untouched.

    Args:
        version: what the checkpoint is; its own header's architecture is used where it has one.
        sources: checkpoint, text encoder and tokenizer; linked into the folder, or copied across file systems.
        folder: the version folder, replaced if it exists.
        precisions: of the graphs; the parity of the fp32 graph is checked.
        report: is told each thing done.

    Raises:
        LtxError: a file is damaged or does not fit the version, or a graph fails its parity check.
    """
    checkpoint = open_checkpoint(sources.checkpoint)
    text_encoder = open_checkpoint(sources.text_encoder)
    refuse_unknown(checkpoint)
    header = {**header_config(version), **checkpoint.config}
    refuse_another_version(version, header)
    causal = header["transformer"].get("causal_temporal_positioning", version.causal_positions)
    parts = _parts(version, header, checkpoint, text_encoder)
    _check_tokenizer(sources.tokenizer, parts[0].tensors["shared.weight"].shape[0])
    with _staged(folder) as staging:
        for source, name in (
            (sources.checkpoint, CHECKPOINT_FILE),
            (sources.text_encoder, TEXT_ENCODER_FILE),
            (sources.tokenizer, TOKENIZER_FILE),
        ):
            _place(source, staging / name, report)
        entries: dict[str, ComponentEntry] = {
            part.component.name: _export_part(part, staging, precisions, report) for part in parts
        }
        graphs = [graph for entry in entries.values() for graph in entry.graphs.values()]
        files = describe_files(staging, [*graphs, CHECKPOINT_FILE, TEXT_ENCODER_FILE, TOKENIZER_FILE])
        manifest = Manifest(version.name, bool(causal), TOKENIZER_FILE, entries, files)
        write_manifest(staging, manifest)
    return manifest


def _parts(version: Version, header: Mapping[str, Any], checkpoint: Checkpoint, text_encoder: Checkpoint) -> list[Part]:
    t5_tensors = component_tensors(text_encoder, "text_encoder")
    t5 = t5_config(t5_tensors)
    dit = transformer_config(header["transformer"])
    vae = vae_config(header["vae"])
    if t5.width != dit.text_channels:
        raise LtxError(
            f"{text_encoder.file} has width {t5.width}, but {checkpoint.file} takes text of width "
            f"{dit.text_channels} - give the T5 that belongs to it"
        )
    stg_layers = dit.layers if version.uses_stg else 0
    decoder = components.vae_decoder(vae.latent_channels, timestep=vae.timestep, noise_maps=vae.noise_maps())
    parts = [
        Part(components.text_encoder(t5.width), lambda: TextEncoder(t5), t5_tensors, TEXT_ENCODER_FILE),
        Part(
            components.transformer(dit.channels, dit.text_channels, stg_layers),
            lambda: Transformer(dit),
            component_tensors(checkpoint, "transformer"),
            CHECKPOINT_FILE,
        ),
        Part(decoder, lambda: VaeDecoder(vae), component_tensors(checkpoint, "vae_decoder"), CHECKPOINT_FILE),
    ]
    return [_fitted(part) for part in parts]


def _fitted(part: Part) -> Part:
    """The part with exactly its module's tensors."""
    module = build_empty(part.make, torch.float32)
    expected = {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}
    check_names(part.component.name, expected, part.tensors)
    return replace(part, tensors={name: part.tensors[name] for name in expected})


def _export_part(part: Part, folder: Path, precisions: Sequence[str], report: Report) -> ComponentEntry:
    name = part.component.name
    graphs: dict[str, str] = {}
    parity: Parity | None = None
    for precision in precisions:
        started = time.perf_counter()
        graphs[precision] = f"{name}.{precision}.onnx"
        model = onnx_from_torch(part.make, part.component, precision)
        attach(model, part.tensors, part.weights_file, folder)
        ir.save(model, folder / graphs[precision])
        report(f"{graphs[precision]}: {len(model.graph)} nodes, {time.perf_counter() - started:.1f} s")
        if precision == _CHECKED_PRECISION:
            started = time.perf_counter()
            parity = check_parity(part.make, part.component, part.tensors, folder / graphs[precision])
            errors = ", ".join(f"{error:.1e}" for error in parity.relative_l2)
            report(f"{name}: relative L2 {errors} to PyTorch, {time.perf_counter() - started:.1f} s")
    return ComponentEntry(part.component, part.weights_file, graphs, parity)


def _check_tokenizer(file: Path, vocabulary: int) -> None:
    """Raises LtxError if it is no tokenizer of T5, or knows pieces that the text encoder does not."""
    pieces = Tokenizer(file, max_tokens=1).pieces
    if pieces > vocabulary:
        raise LtxError(
            f"{file} has {pieces} pieces, but the text encoder knows {vocabulary} - give the one it came with"
        )


def _place(source: Path, target: Path, report: Report) -> None:
    """A hard link where the file system allows one, so that no weights are copied."""
    try:
        os.link(source.resolve(), target)
    except OSError:
        report(f"copying {source} ({source.stat().st_size / 1e9:.1f} GB): it cannot be linked")
        shutil.copyfile(source, target)


@contextmanager
def _staged(folder: Path) -> Iterator[Path]:
    """A hidden folder that takes the place of `folder` if the block ends well, and vanishes if not.

    Whatever happens, even between the two renames, the folder of before is kept or brought back.
    """
    staging = folder.with_name(f".{folder.name}.partial")
    retired = folder.with_name(f".{folder.name}.old")

    def bring_back() -> None:
        if retired.exists() and not folder.exists():
            retired.replace(folder)
        for leftover in (staging, retired):
            shutil.rmtree(leftover, ignore_errors=True)

    bring_back()
    staging.mkdir(parents=True)
    try:
        yield staging
        if folder.exists():
            folder.replace(retired)
        staging.replace(folder)
    finally:
        bring_back()
