"""Where the upscalers of a release are, and what their files say of themselves. No torch.

A spatial upscaler stands between the two passes of a release; a temporal one is optional everywhere. Knows nothing of
what is built from them: that is `upsampler_architecture`'s.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ltx_export.checkpoints.keys import Tensors, part_of
from ltx_export.checkpoints.readers import is_whole, open_weights
from ltx_export.checkpoints.shapes import upsampler_part
from ltx_export.sources.matching import matching, only_match
from ltx_runtime.spec.versions import Version

UpscalerKind = Literal["spatial", "temporal"]
OPTIONS: dict[UpscalerKind, str] = {"spatial": "--upscaler", "temporal": "--temporal-upscaler"}

_FOLDER = "latent_upsampler"  # of diffusers' pipeline
_NAMES: dict[UpscalerKind, tuple[str, ...]] = {
    "spatial": ("*spatial-upscaler*.safetensors", _FOLDER),
    "temporal": ("*temporal-upscaler*.safetensors",),
}
# What the official class takes where a header leaves a field out; the published ones have larger sizes.
_DEFAULTS: dict[str, Any] = {
    **{"in_channels": 4, "mid_channels": 128, "num_blocks_per_stage": 4, "dims": 2},
    **{"spatial_upsample": True, "temporal_upsample": False},
}


@dataclass(frozen=True)
class Upscaler:
    """An upscaler's tensors under their own names, and its configuration in a header's words."""

    path: Path
    tensors: Tensors
    config: dict[str, Any] = field(default_factory=dict)


def find_upscaler(version: Version, folder: Path, kind: UpscalerKind) -> Path | None:
    """The upscaler beside a release's weights; None if there is none, or if none was published for the release.

    Raises:
        LtxError: several could be meant.
    """
    if version.upscaler is None:
        return None
    official = folder / version.upscaler
    if kind == "spatial" and official.is_file():
        return official
    return only_match(folder, _NAMES[kind], OPTIONS[kind])


def has_upscaler(folder: Path, kind: UpscalerKind) -> bool:
    """Whether a weights folder has an upscaler that is whole; of several, the export asks which is meant.

    Raises:
        LtxError: a folder that should hold one cannot be read.
    """
    return any(is_whole(path) for path in matching(folder, _NAMES[kind]))


def temporal_upscaler_of(version: Version) -> str | None:
    """The name of the temporal upscaler that was published with a release's spatial one."""
    return version.upscaler and version.upscaler.replace("spatial", "temporal")


def open_upscaler(path: Path, variant: str) -> Upscaler:
    """Opens an upscaler's file, its folder, or the pipeline's folder around that.

    What its header leaves out has the official class's default; without a header, shapes tell everything.

    Raises:
        LtxError: the file is damaged, or holds no upscaler.
    """
    inner = path / _FOLDER
    checkpoint = open_weights(inner if inner.is_dir() else path, variant if path.is_dir() else "")
    tensors = part_of(checkpoint, "upsampler")
    if checkpoint.config.keys() & _DEFAULTS:
        return Upscaler(path, tensors, {**_DEFAULTS, **checkpoint.config})
    return Upscaler(path, tensors, upsampler_part(tensors))
