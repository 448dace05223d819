"""Finds and opens the upscalers of a release, without torch.

A spatial upscaler is used between the two passes of a release; a temporal one is always optional. This module does not
interpret an upscaler's configuration: `ltx_export/networks/upsampler.py` does.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ltx_export.checkpoints.keys import Tensors, tensors_of
from ltx_export.checkpoints.readers import is_whole, open_weights
from ltx_export.checkpoints.shapes import upsampler_part
from ltx_export.sources.layouts import snapshot_of
from ltx_export.sources.matching import matching, only_match
from ltx_runtime.spec.versions import Version

UpscalerKind = Literal["spatial", "temporal"]
OPTIONS: dict[UpscalerKind, str] = {"spatial": "--upscaler", "temporal": "--temporal-upscaler"}

_FOLDER = "latent_upsampler"  # in the folder of a diffusers pipeline
_NAMES: dict[UpscalerKind, tuple[str, ...]] = {
    "spatial": ("*spatial-upscaler*.safetensors", _FOLDER),
    "temporal": ("*temporal-upscaler*.safetensors",),
}
# Defaults of the official class for fields that a header lacks; the published upscalers have larger sizes.
_DEFAULTS: dict[str, Any] = {
    **{"in_channels": 4, "mid_channels": 128, "num_blocks_per_stage": 4, "dims": 2},
    **{"spatial_upsample": True, "temporal_upsample": False},
}


@dataclass(frozen=True)
class Upscaler:
    """Tensors of an upscaler under the names in its file, and its configuration with the fields of a header."""

    path: Path
    tensors: Tensors
    config: dict[str, Any] = field(default_factory=dict)


def find_upscaler(version: Version, folder: Path, kind: UpscalerKind) -> Path | None:
    """Finds the upscaler beside a release's weights; None if there is none, or none was published for the release.

    Raises:
        LtxError: there are several candidates.
    """
    if version.upscaler is None:
        return None
    official = folder / version.upscaler
    if kind == "spatial" and official.is_file():
        return official
    return only_match((folder,), _NAMES[kind], OPTIONS[kind])


def has_upscaler(folder: Path, kind: UpscalerKind) -> bool:
    """Returns whether a weights folder has an upscaler that can be opened; if several, the export asks for a choice.

    Raises:
        LtxError: a folder that should hold an upscaler cannot be read.
    """
    return any(is_whole(path) for path in matching(folder, _NAMES[kind]))


def temporal_upscaler_of(version: Version) -> str | None:
    """Returns the file name of the temporal upscaler published with a release's spatial one; None without one."""
    return version.upscaler and version.upscaler.replace("spatial", "temporal")


def open_upscaler(path: Path, variant: str) -> Upscaler:
    """Opens an upscaler, given its file, its folder, or the folder of the pipeline, also in the hub's cache.

    Fields that its header lacks get the official class's defaults; without a header, the configuration is derived from
    tensor shapes.

    Raises:
        LtxError: the file is damaged, or holds no upscaler.
    """
    folder = snapshot_of(path)
    place = folder / _FOLDER if (folder / _FOLDER).is_dir() else folder
    checkpoint = open_weights(place, variant if place.is_dir() else "")
    tensors = tensors_of(checkpoint, "upsampler")
    if checkpoint.config.keys() & _DEFAULTS:
        return Upscaler(path, tensors, {**_DEFAULTS, **checkpoint.config})
    return Upscaler(path, tensors, upsampler_part(tensors))
