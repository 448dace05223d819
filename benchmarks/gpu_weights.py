"""Makes a version folder with random weights at full size, in seconds if there is a GPU.

The checkpoint has the official names, shapes and dtypes. The exporter writes it as a sparse file that is then filled:
zeros would draw less power than random numbers, and so run faster. T5 is a small one, because it is not measured.
"""

from __future__ import annotations

import json
import math
import struct
from dataclasses import replace
from pathlib import Path

import torch
from gpu_budget import said
from torch import Tensor

from ltx_runtime.folder.manifest import MANIFEST
from ltx_runtime.spec.versions import TextEncoderSize, Version

_SMALL = 1 << 20
_HEADER_LENGTH = 8


def with_small_text_encoder(version: Version) -> Version:
    """Returns the version with a T5 of one narrow layer, whose output has the width that the transformer expects."""
    width = version.transformer.text_channels
    small = TextEncoderSize(layers=1, width=width, heads=4, head_dim=16, hidden=64, vocabulary=512)
    return replace(version, text_encoder=small)


def write_weights(version: Version, folder: Path, device: str, seed: int = 0) -> Path:
    """Writes the checkpoint and all other files that an export needs; returns the checkpoint's path."""
    from ltx_export.random_weights import write_random_weights

    checkpoint = folder / version.checkpoint
    done = checkpoint.with_suffix(".filled")
    if not done.exists():
        write_random_weights(with_small_text_encoder(version), folder, sparse=True)
        fill(checkpoint, device, seed)
        done.touch()
    return checkpoint


def fill(checkpoint: Path, device: str, seed: int) -> None:
    """Fills every tensor of a bf16 safetensors file with random values that keep activations near one."""
    generator = torch.Generator(device).manual_seed(seed)
    with checkpoint.open("r+b") as file:
        (length,) = struct.unpack("<Q", file.read(_HEADER_LENGTH))
        header = json.loads(file.read(length))
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            file.seek(_HEADER_LENGTH + length + entry["data_offsets"][0])
            values = _values(name, tuple(entry["shape"]), generator, seed)
            file.write(memoryview(values.to(torch.bfloat16).cpu().view(torch.int16).numpy().reshape(-1)).cast("B"))


def _values(name: str, shape: tuple[int, ...], generator: torch.Generator, seed: int) -> Tensor:
    """Draws large matrices and kernels on the device, and all other tensors with the exporter's own function."""
    from ltx_export.random_weights import random_weight

    if math.prod(shape) < _SMALL or len(shape) < 2 or not name.endswith(".weight"):
        return random_weight(name, shape, seed)
    return torch.randn(shape, generator=generator, device=generator.device) / math.sqrt(math.prod(shape[1:]))


def export(version: Version, weights: Path, folder: Path, precision: str) -> None:
    """Exports transformer and VAE decoder in one precision and the small T5 in bf16; weights are linked."""
    if (folder / MANIFEST).exists():
        return
    from ltx_export.build import ExportOptions, export_version
    from ltx_export.sources.find import find_sources

    small = with_small_text_encoder(version)
    options = ExportOptions(
        precisions=(precision,),
        of_component={"text_encoder": ("bf16",)},
        link=True,
        without=("vae_encoder", "upsampler", "temporal_upsampler"),
    )
    folder.parent.mkdir(parents=True, exist_ok=True)
    export_version(small, find_sources(small, weights), folder, options, lambda line: said(f"  {line}"))
