"""Reads the VAE encoder's configuration from a header, without torch tensors or files."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, get_args

from ltx_export.models.vae_blocks import PADDING_MODES
from ltx_export.models.vae_encoder import COMPRESSED, FOLDING, EncoderBlock, EncoderBlockKind, EncoderConfig
from ltx_export.networks.header_fields import LARGEST, block_count, one_of, required
from ltx_runtime.errors import LtxError

# How often frames, and rows and columns after patchifying, are halved: the ports allow nothing else.
_HALVINGS = [3, 3, 3]
# Blocks that multiply the channels; in the releases, by two.
_WIDENING = ("res_x_y", "compress_space_res", "compress_time_res", "compress_all_res")


def encoder_config(config: Mapping[str, Any]) -> EncoderConfig:
    """Returns the encoder's configuration from a header's `vae` part.

    `vae_config` checks the fields that encoder and decoder share.

    Raises:
        LtxError: the blocks are missing, or the model does not implement a block or a field's value; the message names
            it.
    """
    blocks = config.get("encoder_blocks", config.get("blocks"))
    if not blocks:
        raise LtxError("the checkpoint's vae configuration has no encoder_blocks", "use an official file")
    encoder = EncoderConfig(
        blocks=_block_list(blocks),
        latent_channels=required("vae", config, "latent_channels"),
        base_channels=required("vae", {"encoder_base_channels": 128, **config}, "encoder_base_channels"),
        padding_mode=one_of("vae", config, "spatial_padding_mode", PADDING_MODES),
    )
    _refuse_compressions(encoder)
    _refuse_widths(encoder)
    return encoder


def _block_list(blocks: Any) -> tuple[EncoderBlock, ...]:
    try:
        return tuple(_block(name, sizes) for name, sizes in blocks)
    except (TypeError, ValueError):
        raise LtxError(
            "the checkpoint's vae.encoder_blocks are not a list of [name, sizes] pairs", "use an official file"
        ) from None


def _block(name: Any, sizes: Any) -> EncoderBlock:
    fields = {"num_layers": sizes} if isinstance(sizes, int) else dict(sizes)
    widens = name in _WIDENING
    others = fields.keys() - {"num_layers", *(["multiplier"] if widens else [])}
    if name not in get_args(EncoderBlockKind) or others:
        unknown = f"{name} with {', '.join(sorted(others))}" if others else name
        raise LtxError(
            f"the checkpoint's VAE encoder has a block {unknown!r} that is not supported", "use an official file"
        )
    layers = block_count(name, "num_layers", fields.get("num_layers", None if name == "res_x" else 1))
    return EncoderBlock(name, layers, block_count(name, "multiplier", fields.get("multiplier", 2 if widens else 1)))


def _refuse_compressions(encoder: EncoderConfig) -> None:
    """Raises LtxError unless the blocks compress frames, rows and columns by as much as the decoder expands them."""
    factors = [COMPRESSED.get(block.kind, (1, 1, 1)) for block in encoder.blocks]
    halvings = [sum(factor > 1 for factor in axis) for axis in zip(*factors, strict=True)]
    if halvings != _HALVINGS:
        raise LtxError(
            f"the checkpoint's vae.encoder_blocks halve (frames, rows, columns) {halvings} times, "
            f"but only {_HALVINGS} is supported",
            "use an official file",
        )


def _refuse_widths(encoder: EncoderConfig) -> None:
    """Raises LtxError if a block has too many output channels, or if they do not fit its folding or averaging."""
    channels = encoder.base_channels
    for block in encoder.blocks:
        out_channels = channels * block.multiplier
        if out_channels > LARGEST:
            raise LtxError(
                f"the checkpoint's vae.encoder_blocks need {out_channels} channels, more than {LARGEST}",
                "use an official file",
            )
        factor = math.prod(COMPRESSED[block.kind]) if block.kind in FOLDING else 0
        if factor and (out_channels % factor or factor % block.multiplier):
            raise LtxError(
                f"the checkpoint's vae.encoder_base_channels is {encoder.base_channels}, so a {block.kind} "
                f"block has {channels} input and {out_channels} output channels, which do not fit its folding",
                "use an official file",
            )
        channels = out_channels
