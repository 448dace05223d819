"""Names and shapes of tensors -> the configuration that a header would have, for files without a configuration.

Weights do not show how the width is split into heads, how latents are placed in time, or whether they are dev or
distilled weights: those come from the version.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ltx_runtime.errors import LtxError
from ltx_runtime.weights.checkpoint import StoredTensor

Tensors = Mapping[str, StoredTensor]
_TRANSFORMER_BLOCK = re.compile(r"transformer_blocks\.(\d+)\.scale_shift_table")
_UPSAMPLER_BLOCK = re.compile(r"res_blocks\.\d+\.conv1\.weight")
_UP_BLOCK = re.compile(r"decoder\.up_blocks\.(\d{1,3})\.(.+)")
_DOWN_BLOCK = re.compile(r"encoder\.down_blocks\.(\d{1,3})\.(.+)")
_RES_LAYER = re.compile(r"res_blocks\.(\d{1,3})\.")
# How many positions space-to-depth folds into one, in an encoder block that doubles the channels -> kind of the block.
_FOLDING = {2: "compress_time_res", 4: "compress_space_res", 8: "compress_all_res"}
UNFOLDED = 8  # positions that depth-to-space makes of one position in an upsampling block of the decoder
_RATIOS = (1, 2)  # factors by which decoder blocks of the releases divide the channels
# Positions that an upscaler makes of one position -> whether it doubles height and width, and the frame rate.
RESAMPLED = {2: (False, True), 4: (True, False), 8: (True, True)}


def transformer_part(tensors: Tensors, heads: int) -> dict[str, Any]:
    """Returns the sizes in a header's `transformer` part.

    Args:
        tensors: the transformer's tensors under official names.
        heads: number of attention heads that the width is split into.

    Raises:
        LtxError: a tensor that a size is read from is missing.
    """
    width, channels = _shape(tensors, "patchify_proj.weight", 2)
    return {
        "num_layers": sum(_TRANSFORMER_BLOCK.fullmatch(name) is not None for name in tensors),
        "num_attention_heads": heads,
        "attention_head_dim": width // heads,
        "cross_attention_dim": width,
        "in_channels": channels,
        "out_channels": _shape(tensors, "proj_out.weight", 2)[0],
        "caption_channels": _shape(tensors, "caption_projection.linear_1.weight", 2)[1],
    }


def vae_part(tensors: Tensors) -> dict[str, Any]:
    """Returns a header's `vae` part: blocks and widths; decoder blocks are in reverse order, as in headers.

    Raises:
        LtxError: a tensor that a size is read from is missing, or has a shape that no release has.
    """
    timestep = "decoder.last_scale_shift_table" in tensors
    leaves = _leaves(tensors, _UP_BLOCK)
    blocks = [_decoder_block(tensors, i, leaves[i], residual=timestep) for i in sorted(leaves)]
    return {
        "decoder_blocks": blocks[::-1],
        "latent_channels": _shape(tensors, "decoder.conv_in.conv.weight", 5)[1],
        "decoder_base_channels": _shape(tensors, "decoder.conv_out.conv.weight", 5)[1],
        "timestep_conditioning": timestep,
        **(_encoder_part(tensors) if has_encoder(tensors) else {}),
    }


def has_encoder(tensors: Tensors) -> bool:
    """Returns whether a VAE has at least a part of its encoder; some repacked files drop it."""
    return any(name.startswith("encoder.") for name in tensors)


def _encoder_part(tensors: Tensors) -> dict[str, Any]:
    leaves = _leaves(tensors, _DOWN_BLOCK)
    return {
        "encoder_blocks": [_encoder_block(tensors, i, leaves[i]) for i in sorted(leaves)],
        "encoder_base_channels": _shape(tensors, "encoder.conv_in.conv.weight", 5)[0],
    }


def _leaves(tensors: Tensors, block: re.Pattern[str]) -> dict[int, set[str]]:
    """Returns the parameter names of every block, without the block's own prefix, by the block's number."""
    leaves: dict[int, set[str]] = {}
    for name in tensors:
        match = block.fullmatch(name)
        if match:
            leaves.setdefault(int(match[1]), set()).add(match[2])
    return leaves


def _encoder_block(tensors: Tensors, index: int, leaves: set[str]) -> list[Any]:
    name = f"encoder.down_blocks.{index}"
    layers = {match[1] for match in map(_RES_LAYER.match, leaves) if match}
    if layers:
        return ["res_x", {"num_layers": len(layers)}]
    if any(leaf.startswith("conv1.") for leaf in leaves):
        out_channels, channels, *_ = _shape(tensors, f"{name}.conv1.conv.weight", 5)
        return ["res_x_y", {"multiplier": _quotient(tensors, f"{name}.conv1.conv.weight", out_channels, channels)}]
    if any(leaf.startswith("conv.conv.") for leaf in leaves):
        out_channels, channels, *_ = _shape(tensors, f"{name}.conv.conv.weight", 5)
        folded = _quotient(tensors, f"{name}.conv.conv.weight", 2 * channels, out_channels)
        if folded in _FOLDING:
            return [_FOLDING[folded], {"multiplier": 2}]
        raise _unknown_shape(tensors, f"{name}.conv.conv.weight")
    _shape(tensors, f"{name}.conv.weight", 5)
    return ["compress_all", {}]


def _quotient(tensors: Tensors, name: str, dividend: int, divisor: int) -> int:
    quotient, remainder = divmod(dividend, divisor)
    if remainder:
        raise _unknown_shape(tensors, name)
    return quotient


def _unknown_shape(tensors: Tensors, name: str) -> LtxError:
    return LtxError(f"{name} has shape {list(tensors[name].shape)}, which no release has", "give a complete checkpoint")


def upsampler_part(tensors: Tensors) -> dict[str, Any]:
    """Returns a latent upsampler's configuration in the form of its header.

    Raises:
        LtxError: a tensor that a size is read from is missing, or the network upsamples by an unknown factor.
    """
    initial, upsampling = "initial_conv.weight", "upsampler.0.weight"
    dims = _dims(tensors, initial)
    mid_channels, channels, *_ = _shape(tensors, initial, 2 + dims)
    out_channels, in_channels, *_ = _shape(tensors, upsampling, 2 + _dims(tensors, upsampling))
    if out_channels % in_channels or out_channels // in_channels not in RESAMPLED:
        raise LtxError(
            f"{upsampling} has shape {[out_channels, in_channels]}, which no release has", "give a complete upscaler"
        )
    space, time = RESAMPLED[out_channels // in_channels]
    return {
        "in_channels": channels,
        "mid_channels": mid_channels,
        "num_blocks_per_stage": sum(_UPSAMPLER_BLOCK.fullmatch(name) is not None for name in tensors),
        "dims": dims,
        "spatial_upsample": space,
        "temporal_upsample": time,
    }


def _dims(tensors: Tensors, name: str) -> int:
    """Returns the number of axes that a convolution works over: 2 if its weight has 4 axes, else 3."""
    return 2 if name in tensors and len(tensors[name].shape) == 4 else 3


def _decoder_block(tensors: Tensors, index: int, leaves: set[str], *, residual: bool) -> list[Any]:
    name = f"decoder.up_blocks.{index}"
    if "conv.conv.weight" in leaves:
        ratio = _ratio(tensors, f"{name}.conv.conv.weight", UNFOLDED)
        return ["compress_all", {"residual": residual, "multiplier": ratio}]
    if "conv1.conv.weight" in leaves:
        return ["res_x_y", {"multiplier": _ratio(tensors, f"{name}.conv1.conv.weight")}]
    layers = sum(leaf.endswith(".conv1.conv.weight") for leaf in leaves)
    noise = any(leaf.endswith(".per_channel_scale1") for leaf in leaves)
    return ["res_x", {"num_layers": layers, "inject_noise": noise}]


def _ratio(tensors: Tensors, name: str, unfolded: int = 1) -> int:
    """Returns the factor by which a convolution divides the channels if each position becomes `unfolded` positions."""
    out_channels, channels, *_ = _shape(tensors, name, 5)
    ratio, remainder = divmod(channels * unfolded, out_channels)
    if remainder or ratio not in _RATIOS:
        raise _unknown_shape(tensors, name)
    return ratio


def _shape(tensors: Tensors, name: str, dimensions: int) -> tuple[int, ...]:
    shape = tensors[name].shape if name in tensors else None
    if shape is None or len(shape) != dimensions or 0 in shape:
        state = "missing" if shape is None else f"of shape {list(shape)}"
        raise LtxError(f"{name} is {state}, so the network's sizes are unknown", "give a complete checkpoint")
    return shape
