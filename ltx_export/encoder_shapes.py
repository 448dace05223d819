"""A header's VAE encoder -> names and shapes of its tensors. Every checkpoint has one; no graph is made of it yet."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Shapes = dict[str, tuple[int, ...]]

_MOST = 10_000  # tensors; a release has about a hundred
# Places in space and time that a folding block makes one of.
_FOLDED = {"compress_space_res": 4, "compress_time_res": 2, "compress_all_res": 8}


def encoder_shapes(config: Mapping[str, Any]) -> Shapes:
    """Names and shapes of the encoder that a header's `vae` part describes, without the prefix `vae.`.

    Raises:
        ValueError, TypeError, KeyError: the header describes none, or one of more tensors than could be.
    """
    channels = config.get("encoder_base_channels", 128)  # the official code's default
    shapes = _conv_shapes("encoder.conv_in.conv", 3 * config.get("patch_size", 4) ** 2, channels)
    for i, (kind, given) in enumerate(config.get("encoder_blocks", config.get("blocks"))):
        _refuse_endless(shapes)
        name, fields = f"encoder.down_blocks.{i}", {"num_layers": given} if isinstance(given, int) else given
        wider = fields.get("multiplier", 2) * channels
        if kind == "res_x":
            for j in range(fields["num_layers"]):
                _refuse_endless(shapes)
                for conv in ("conv1", "conv2"):
                    shapes |= _conv_shapes(f"{name}.res_blocks.{j}.{conv}.conv", channels, channels)
        elif kind == "compress_all":
            shapes |= _conv_shapes(f"{name}.conv", channels, channels)
        elif kind == "res_x_y":
            shapes |= _conv_shapes(f"{name}.conv1.conv", channels, wider)
            shapes |= _conv_shapes(f"{name}.conv2.conv", wider, wider)
            shapes |= _conv_shapes(f"{name}.conv_shortcut", channels, wider, kernel=1)
            shapes |= {f"{name}.norm3.norm.weight": (channels,), f"{name}.norm3.norm.bias": (channels,)}
            channels = wider
        else:  # compress_*_res: the rest of the channels comes from folding space and time
            shapes |= _conv_shapes(f"{name}.conv.conv", channels, wider // _FOLDED[kind])
            channels = wider
    return shapes | _conv_shapes("encoder.conv_out.conv", channels, config["latent_channels"] + 1)


def _refuse_endless(shapes: Shapes) -> None:
    if len(shapes) > _MOST:
        raise ValueError(f"more than {_MOST} tensors")


def _conv_shapes(name: str, channels: int, out_channels: int, kernel: int = 3) -> Shapes:
    return {f"{name}.weight": (out_channels, channels, kernel, kernel, kernel), f"{name}.bias": (out_channels,)}
