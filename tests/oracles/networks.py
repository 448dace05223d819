"""Other implementations to compare our networks with: diffusers, transformers, and rules to fill their weights.

Key maps are those of the diffusers conversion: our parameters have the official names.
"""

import json
import math
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor, nn

RELATIVE_L2 = 1e-5
Weight = Callable[[str, tuple[int, ...]], np.ndarray]

# Official decoder.up_blocks.<place> -> diffusers decoder.<name>
UP_BLOCKS_A = (
    "mid_block",
    "up_blocks.0",
    "up_blocks.1.upsamplers.0",
    "up_blocks.1",
    "up_blocks.2.conv_in",
    "up_blocks.2.upsamplers.0",
    "up_blocks.2",
    "up_blocks.3.conv_in",
    "up_blocks.3.upsamplers.0",
    "up_blocks.3",
)
UP_BLOCKS_BC = (
    "mid_block",
    "up_blocks.0.upsamplers.0",
    "up_blocks.0",
    "up_blocks.1.upsamplers.0",
    "up_blocks.1",
    "up_blocks.2.upsamplers.0",
    "up_blocks.2",
)
# Official encoder.down_blocks.<place> -> diffusers encoder.<name>
DOWN_BLOCKS_AB = (
    "down_blocks.0",
    "down_blocks.0.downsamplers.0",
    "down_blocks.0.conv_out",
    "down_blocks.1",
    "down_blocks.1.downsamplers.0",
    "down_blocks.1.conv_out",
    "down_blocks.2",
    "down_blocks.2.downsamplers.0",
    "down_blocks.3",
    "mid_block",
)
DOWN_BLOCKS_C = (
    "down_blocks.0",
    "down_blocks.0.downsamplers.0",
    "down_blocks.1",
    "down_blocks.1.downsamplers.0",
    "down_blocks.2",
    "down_blocks.2.downsamplers.0",
    "down_blocks.3",
    "down_blocks.3.downsamplers.0",
    "mid_block",
)
DIT_NAMES = {"patchify_proj": "proj_in", "adaln_single": "time_embed", "q_norm": "norm_q", "k_norm": "norm_k"}
VAE_NAMES = {
    "conv_shortcut": "conv_shortcut.conv",
    "res_blocks": "resnets",
    "norm3.norm": "norm3",
    "last_time_embedder": "time_embedder",
    "last_scale_shift_table": "scale_shift_table",
    "per_channel_statistics.mean-of-means": "latents_mean",
    "per_channel_statistics.std-of-means": "latents_std",
}


def distance(actual: np.ndarray | Tensor, expected: np.ndarray | Tensor) -> float:
    """Returns |actual - expected| / |expected| in float64; the shapes must be the same."""
    a, b = (np.asarray(x, np.float64) for x in (actual, expected))
    assert a.shape == b.shape
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def tensor(values: np.ndarray) -> Tensor:
    """Copies values to a tensor with its own memory."""
    return torch.from_numpy(np.array(values))


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def filled(module: nn.Module, weight: Weight) -> nn.Module:
    """Fills every parameter of the module with the values that `weight` gives for its name."""
    module.load_state_dict({key: tensor(weight(key, tuple(p.shape))) for key, p in module.named_parameters()})
    return module.eval().requires_grad_(False)


def golden_settings(name: str, case: str) -> dict:
    """Returns the settings with which a case of tests/golden/<name>.safetensors was made."""
    with safe_open(Path(__file__).parents[1] / "golden" / f"{name}.safetensors", "np") as file:
        return json.loads(file.metadata()[case])


def diffusers_dit_key(key: str) -> str:
    for official, theirs in DIT_NAMES.items():
        key = key.replace(official, theirs)
    return key


def diffusers_vae_key(key: str, generation: str) -> str:
    places = {
        ("decoder", "up_blocks"): UP_BLOCKS_A if generation == "A" else UP_BLOCKS_BC,
        ("encoder", "down_blocks"): DOWN_BLOCKS_C if generation == "C" else DOWN_BLOCKS_AB,
    }
    part, blocks, *rest = key.split(".")
    if (part, blocks) in places:
        key = ".".join([part, places[part, blocks][int(rest[0])], *rest[1:]])
    for official, theirs in VAE_NAMES.items():
        key = key.replace(official, theirs)
    return key


def diffusers_dit(size: object, **changes: object) -> nn.Module:
    """Builds LTXVideoTransformer3DModel with the sizes of a `TransformerSize` or `DitConfig`."""
    from diffusers import LTXVideoTransformer3DModel

    return LTXVideoTransformer3DModel(
        in_channels=size.channels,
        out_channels=size.channels,
        num_attention_heads=size.heads,
        attention_head_dim=size.head_dim,
        cross_attention_dim=size.width,
        num_layers=size.layers,
        caption_channels=size.text_channels,
        **changes,
    ).eval()


def diffusers_vae(
    generation: str, base: int, latent_channels: int, layers: int | None, noise: bool = True
) -> nn.Module:
    """Builds AutoencoderKLLTXVideo of a generation with `layers` per block, or with the released numbers if None."""
    from diffusers import AutoencoderKLLTXVideo

    def depths(*released: int) -> tuple[int, ...]:
        return tuple(layers or count for count in released)

    def widths(*multiples: int) -> tuple[int, ...]:
        return tuple(base * multiple for multiple in multiples)

    options: dict = {"block_out_channels": widths(1, 2, 4, 4), "layers_per_block": depths(4, 3, 3, 3, 4)}
    if generation == "A":
        options |= {"decoder_block_out_channels": widths(1, 2, 4, 4)}
        options |= {"decoder_layers_per_block": depths(4, 3, 3, 3, 4)}
    else:
        injects = noise and generation == "B"
        released = (5, 6, 7, 8) if generation == "B" else (5, 5, 5, 5)
        options |= {
            "decoder_block_out_channels": widths(2, 4, 8),
            "decoder_layers_per_block": depths(*released),
            "decoder_spatio_temporal_scaling": (True,) * 3,
            "decoder_inject_noise": (injects, injects, injects, False),
            "upsample_residual": (True,) * 3,
            "upsample_factor": (2,) * 3,
            "timestep_conditioning": True,
        }
    if generation == "C":
        options |= {
            "block_out_channels": widths(1, 2, 4, 8, 16),
            "down_block_types": ("LTXVideo095DownBlock3D",) * 4,
            "layers_per_block": depths(4, 6, 6, 2, 2),
            "spatio_temporal_scaling": (True,) * 4,
            "downsample_type": ("spatial", "temporal", "spatiotemporal", "spatiotemporal"),
            "spatial_compression_ratio": 32,
            "temporal_compression_ratio": 8,
        }
    return AutoencoderKLLTXVideo(latent_channels=latent_channels, **options).eval()


def transformers_t5(size: object) -> nn.Module:
    """Builds T5EncoderModel with the sizes of a `TextEncoderSize` or `T5Config`."""
    from transformers import T5Config, T5EncoderModel

    config = T5Config(
        vocab_size=size.vocabulary,
        d_model=size.width,
        d_kv=size.head_dim,
        d_ff=size.hidden,
        num_layers=size.layers,
        num_heads=size.heads,
        feed_forward_proj="gated-gelu",
        attn_implementation="eager",
    )
    return T5EncoderModel(config).eval()


def sine(shape: tuple[int, ...], a: float, b: float) -> Tensor:
    """Returns sin(a k + b) for k = 1.. in C order, as float32."""
    k = np.arange(1, math.prod(shape) + 1, dtype=np.float64)
    return tensor(np.sin(a * k + b).reshape(shape).astype(np.float32))


def sine_weights(shapes: dict[str, tuple[int, ...]], is_scale: Callable[[str], bool]) -> dict[str, Tensor]:
    """Returns every tensor as a sine v with a phase by its place among the sorted names; scales are 1 + 0.1 v."""
    return {key: _sine_weight(key, shapes[key], place, is_scale) for place, key in enumerate(sorted(shapes))}


def _sine_weight(key: str, shape: tuple[int, ...], place: int, is_scale: Callable[[str], bool]) -> Tensor:
    if key.endswith("timestep_scale_multiplier"):
        return torch.full(shape, 1000.0)
    v = np.sin(0.37 * (np.arange(math.prod(shape)) + 1.0) + 0.11 * (place + 1)).reshape(shape)
    scaled = 1 + 0.1 * v if is_scale(key) else (0.2 if len(shape) <= 2 else 0.1) * v
    return tensor(np.asarray(scaled, np.float32))


def shapes_of(named: Iterable[tuple[str, Tensor]]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(values.shape) for name, values in named}


def assert_published(
    output: Tensor, total: float, mean: float, first: tuple[float, ...], last: tuple[float, ...]
) -> None:
    """Checks the sum, mean magnitude and both ends of an output as published: elements to 1e-5, the sum to 1e-3."""
    values = output.double().flatten().numpy()
    np.testing.assert_allclose(values[: len(first)], first, rtol=0, atol=1e-5)
    if last:
        np.testing.assert_allclose(values[-len(last) :], last, rtol=0, atol=1e-5)
    assert abs(np.abs(values).mean() - mean) <= 1e-5
    assert abs(values.sum() - total) <= 1e-3
