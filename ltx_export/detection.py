"""Names and shapes of tensors -> what a header would say about them, for files that carry no configuration.

Weights cannot tell how a width is split into heads, how latents are placed in time, or dev from distilled: that is
the version's to say.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ltx_export.checkpoint import StoredTensor
from ltx_runtime.errors import LtxError

Tensors = Mapping[str, StoredTensor]
_BLOCK = re.compile(r"transformer_blocks\.(\d+)\.scale_shift_table")
_UP_BLOCK = re.compile(r"decoder\.up_blocks\.(\d{1,3})\.(.+)")
UNFOLDED = 8  # channels that one place of an upsampling block becomes
_RATIOS = (1, 2)  # by which a release's blocks divide channels


def transformer_part(tensors: Tensors, heads: int) -> dict[str, Any]:
    """The sizes in a header's `transformer` part.

    Args:
        tensors: the transformer's, under official names.
        heads: how many heads the width is split into.

    Raises:
        LtxError: a tensor that tells a size is missing.
    """
    width, channels = _shape(tensors, "patchify_proj.weight", 2)
    return {
        "num_layers": sum(_BLOCK.fullmatch(name) is not None for name in tensors),
        "num_attention_heads": heads,
        "attention_head_dim": width // heads,
        "cross_attention_dim": width,
        "in_channels": channels,
        "out_channels": _shape(tensors, "proj_out.weight", 2)[0],
        "caption_channels": _shape(tensors, "caption_projection.linear_1.weight", 2)[1],
    }


def vae_part(tensors: Tensors) -> dict[str, Any]:
    """A header's `vae` part, but for the encoder's blocks: the decoder's, encoder-style as in headers, and all widths.

    Raises:
        LtxError: a tensor that tells a size is missing.
    """
    timestep = "decoder.last_scale_shift_table" in tensors
    leaves: dict[int, set[str]] = {}
    for name in tensors:
        match = _UP_BLOCK.fullmatch(name)
        if match:
            leaves.setdefault(int(match[1]), set()).add(match[2])
    blocks = [_block(tensors, i, leaves[i], residual=timestep) for i in sorted(leaves)]
    encoder = "encoder.conv_in.conv.weight"  # an export leaves it out where it rewrites
    return {
        "decoder_blocks": blocks[::-1],
        "latent_channels": _shape(tensors, "decoder.conv_in.conv.weight", 5)[1],
        **({"encoder_base_channels": _shape(tensors, encoder, 5)[0]} if encoder in tensors else {}),
        "decoder_base_channels": _shape(tensors, "decoder.conv_out.conv.weight", 5)[1],
        "timestep_conditioning": timestep,
    }


def _block(tensors: Tensors, place: int, leaves: set[str], *, residual: bool) -> list[Any]:
    name = f"decoder.up_blocks.{place}"
    if "conv.conv.weight" in leaves:
        ratio = _ratio(tensors, f"{name}.conv.conv.weight", UNFOLDED)
        return ["compress_all", {"residual": residual, "multiplier": ratio}]
    if "conv1.conv.weight" in leaves:
        return ["res_x_y", {"multiplier": _ratio(tensors, f"{name}.conv1.conv.weight")}]
    layers = sum(leaf.endswith(".conv1.conv.weight") for leaf in leaves)
    noise = any(leaf.endswith(".per_channel_scale1") for leaf in leaves)
    return ["res_x", {"num_layers": layers, "inject_noise": noise}]


def _ratio(tensors: Tensors, name: str, unfolded: int = 1) -> int:
    """By how much a convolution narrows: each place becomes `unfolded` places."""
    out_channels, channels, *_ = _shape(tensors, name, 5)
    ratio, rest = divmod(channels * unfolded, out_channels)
    if rest or ratio not in _RATIOS:
        raise LtxError(f"{name} is of shape {list(tensors[name].shape)}, as in no release - give a whole checkpoint")
    return ratio


def _shape(tensors: Tensors, name: str, dimensions: int) -> tuple[int, ...]:
    shape = tensors[name].shape if name in tensors else None
    if shape is None or len(shape) != dimensions or 0 in shape:
        given = "missing" if shape is None else f"of shape {list(shape)}"
        raise LtxError(f"{name} is {given}, so the network's sizes are unknown - give a whole checkpoint")
    return shape
