"""Releases in miniature: every field but the sizes is the release's own, so that a whole export takes seconds.

Graphs of equal networks are traced once, and copied for later exports.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from unittest.mock import patch

import onnx_ir as ir
import torch
from samples import shared
from torch import nn

from ltx_export import build
from ltx_export.graphs.onnx_from_torch import onnx_from_torch
from ltx_export.models.network import Network, build_empty
from ltx_export.random_weights import write_random_weights
from ltx_export.sources.find import TEXT_ENCODER_FILE, TOKENIZER_FILE, Sources
from ltx_runtime.folder.manifest import Manifest
from ltx_runtime.folder.reading import read_manifest
from ltx_runtime.spec.presets import Pass
from ltx_runtime.spec.versions import (
    SIZE_13B,
    VERSIONS,
    TextEncoderSize,
    TransformerSize,
    UpsamplerSize,
    VaeSize,
    Version,
)

LAYERS = 2
TEXT = TextEncoderSize(layers=2, width=32, heads=4, head_dim=16, hidden=48, vocabulary=330)
VAE = VaeSize(base_channels=4, latent_channels=8, layers_per_block=1)
UPSAMPLER = UpsamplerSize(mid_channels=32, blocks_per_stage=1)
# These head sizes keep the widths of 2B and 13B modulo 6: two and four channels are not rotated.
HEAD_DIM_2B, HEAD_DIM_13B = 16, 20

_traced: dict[str, tuple[ir.Model, ir.Model]] = {}


def tiny(name: str) -> Version:
    """Returns the release `name` with two layers; indices of blocks to skip are taken modulo two."""
    version = VERSIONS[name]
    head_dim = HEAD_DIM_13B if version.transformer == SIZE_13B else HEAD_DIM_2B
    size = TransformerSize(LAYERS, heads=2, head_dim=head_dim, text_channels=TEXT.width, channels=VAE.latent_channels)
    passes = tuple(_shallow(one) for one in version.passes)
    sizes = {"transformer": size, "vae_size": VAE, "text_encoder": TEXT, "upsampler_size": UPSAMPLER}
    return replace(version, **sizes, passes=passes)


def _shallow(one: Pass) -> Pass:
    entries = tuple(
        replace(entry, skip_blocks=tuple(sorted({block % LAYERS for block in entry.skip_blocks})))
        for entry in one.guidance
    )
    return replace(one, guidance=entries)


def sources_of(version: Version, weights: Path) -> Sources:
    """Returns the files that `write_random_weights` wrote into `weights`."""
    upscaler = weights / version.upscaler if version.upscaler else None
    checkpoint, text_encoder, tokenizer = version.checkpoint, TEXT_ENCODER_FILE, TOKENIZER_FILE
    return Sources(weights / checkpoint, weights / text_encoder, weights / tokenizer, upscaler=upscaler)


@dataclass(frozen=True)
class Exported:
    """A complete version folder, and what it was exported from."""

    version: Version
    weights: Path
    folder: Path
    manifest: Manifest

    @property
    def sources(self) -> Sources:
        return sources_of(self.version, self.weights)

    def graph(self, component: str, precision: str = "fp32") -> Path:
        return self.folder / self.manifest.components[component].graphs[precision]


@cache
def export_tiny(name: str, precisions: tuple[str, ...] = ("fp32",)) -> Exported:
    """Returns random weights and a version folder of a tiny release, which tests must not change."""
    version = tiny(name)

    def make(root: Path) -> None:
        write_random_weights(version, root / "weights" / name)
        export(version, sources_of(version, root / "weights" / name), root / "engines" / name, precisions)

    root = shared.folder_of("-".join((name, *precisions)), make)
    folder = root / "engines" / name
    return Exported(version, root / "weights" / name, folder, read_manifest(folder))


def export(
    version: Version,
    sources: Sources,
    folder: Path,
    precisions: Sequence[str] = ("fp32",),
    report: build.Report = lambda line: None,
    options: build.ExportOptions | None = None,
) -> Manifest:
    """Calls `export_version` without tracing a network twice, with `options` or else with those of `precisions`."""
    with patch.object(build, "onnx_from_torch", traced_once):
        return build.export_version(version, sources, folder, options or build.ExportOptions(precisions), report)


def traced_once(network: Network) -> tuple[ir.Model, ir.Model]:
    """Calls `onnx_from_torch` only once for each network, in all workers of a test run together."""
    made = (repr(network.component(network.blocks)), _architecture(lambda: network.make(network.blocks)))
    described = repr((*made, network.blocks, network.traced_blocks, network.path))
    key = hashlib.sha256(described.encode()).hexdigest()
    if key not in _traced:
        _traced[key] = shared.read(key) or onnx_from_torch(network)
        shared.write(key, _traced[key])
    return _traced[key]  # not a copy: the exporter changes copies only


def _architecture(make: Callable[[], nn.Module]) -> str:
    """Describes all that a trace depends on: layers, their plain attributes, constants and parameter shapes."""
    layers = []
    for name, layer in build_empty(make, torch.float32).named_modules():
        plain = {k: v for k, v in vars(layer).items() if isinstance(v, bool | int | float | str | tuple)}
        constants = {k: b.tolist() for k, b in layer.named_buffers(recurse=False)}
        shapes = {k: tuple(p.shape) for k, p in layer.named_parameters(recurse=False)}
        layers.append((name, type(layer).__name__, sorted(plain.items()), constants, shapes))
    return repr(layers)
