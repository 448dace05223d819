"""Converts between an upscaler's header and its module's configuration, without files.

An upscaler's header is separate from that of a checkpoint, and has the upsampler's fields at its top level.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ltx_export.models.upsampler import GROUPS, Resampling, UpsamplerConfig
from ltx_export.networks.header_fields import flag, refuse_others, required
from ltx_export.sources.upscalers import OPTIONS, Upscaler
from ltx_runtime.errors import LtxError
from ltx_runtime.spec.versions import Version

_PART = "upsampler"  # prefix of the fields' names in error messages
_CLASS = {"_class_name": "LatentUpsampler"}
_DIFFUSERS_CLASS = "LTXLatentUpsamplerModel"


def upsampler_header(version: Version) -> dict[str, Any]:
    """Returns the header of a version's spatial upsampler, in the form that official upscaler files have."""
    return {
        **_CLASS,
        "in_channels": version.vae_size.latent_channels,
        "mid_channels": version.upsampler_size.mid_channels,
        "num_blocks_per_stage": version.upsampler_size.blocks_per_stage,
        "dims": version.upsampler_size.dims,
        "spatial_upsample": True,
        "temporal_upsample": False,
    }


def upsampler_of(upscaler: Upscaler, wanted: Resampling, channels: int) -> UpsamplerConfig:
    """Returns an upscaler's configuration, after checking that it fits its purpose and the transformer.

    Args:
        upscaler: the opened file.
        wanted: the resampling that the upscaler was given for.
        channels: number of the transformer's latent channels.

    Raises:
        LtxError: a field's value is not implemented, or the upscaler does not fit; the message names the field, or what
            to do.
    """
    config = upsampler_config(upscaler.config)
    if config.resampling != wanted:
        raise LtxError(
            f"{upscaler.path} is a {config.resampling} upscaler, given as a {wanted} one",
            f"give it with {OPTIONS[config.resampling]}",
        )
    if config.channels != channels:
        raise LtxError(
            f"{upscaler.path} takes {config.channels} latent channels, but the transformer has {channels}",
            "give the upscaler that matches the transformer",
        )
    if 2 * config.blocks_per_stage > len(upscaler.tensors):  # checked before that many blocks are built
        raise LtxError(
            f"{upscaler.path} has only {len(upscaler.tensors)} tensors for {config.blocks_per_stage} blocks in each "
            "stage",
            "give a complete upscaler",
        )
    return config


def upsampler_config(config: Mapping[str, Any]) -> UpsamplerConfig:
    """Returns an upsampler's configuration from a complete header.

    Raises:
        LtxError: the model does not implement a field's value; the message names the field.
    """
    if config.get("_class_name") != _DIFFUSERS_CLASS:
        refuse_others(_PART, config, _CLASS)
    dims = config.get("dims")
    if type(dims) is not int or dims not in (2, 3):
        raise LtxError(f"the checkpoint's {_PART}.dims is {dims!r}, not 2 or 3", "use an official file")
    mid_channels = required(_PART, config, "mid_channels")
    if mid_channels % GROUPS:
        raise LtxError(
            f"the checkpoint's {_PART}.mid_channels is {mid_channels}, not a multiple of {GROUPS}",
            "use an official file",
        )
    return UpsamplerConfig(
        channels=required(_PART, config, "in_channels"),
        mid_channels=mid_channels,
        blocks_per_stage=required(_PART, config, "num_blocks_per_stage"),
        dims=dims,
        resampling=_resampling(config, dims),
    )


def _resampling(config: Mapping[str, Any], dims: int) -> Resampling:
    space, time = (flag(_PART, config, f"{kind}_upsample", False) for kind in ("spatial", "temporal"))
    if space == time:
        scaled = "both space and time" if space else "neither space nor time"
        raise LtxError(f"the upscaler scales {scaled}, which no release does", "give a spatial or a temporal one")
    if time and dims == 2:
        raise LtxError("the upscaler doubles the frame rate with dims 2, but that needs dims 3", "use an official file")
    return "temporal" if time else "spatial"
