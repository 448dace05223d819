"""The official `ltx-video` 0.1.2 under a newer diffusers, with weights drawn by `oracles/weight_rule.py`.

The package imports a few names that diffusers has since removed. None of them runs in the models recorded
here, so empty stand-ins are enough. Import this module before anything from `ltx_video`.
"""

import sys
from types import ModuleType

import diffusers.models.attention
import diffusers.models.attention_processor
import torch
from oracles.weight_rule import weight

REMOVED_CLASSES = (
    "LoRAAttnAddedKVProcessor",
    "LoRAAttnProcessor",
    "LoRAAttnProcessor2_0",
    "LoRAXFormersAttnProcessor",
    "SpatialNorm",
)


def supply_removed_names() -> None:
    """Adds stand-ins for the names that `ltx_video` imports and diffusers 0.42 no longer has."""
    for name in REMOVED_CLASSES:
        if not hasattr(diffusers.models.attention_processor, name):
            setattr(diffusers.models.attention_processor, name, type(name, (), {}))
    if not hasattr(diffusers.models.attention, "_chunked_feed_forward"):
        diffusers.models.attention._chunked_feed_forward = None
    lora = ModuleType("diffusers.models.lora")
    lora.LoRACompatibleLinear = type("LoRACompatibleLinear", (torch.nn.Linear,), {})
    sys.modules.setdefault(lora.__name__, lora)


supply_removed_names()

from ltx_video.models.autoencoders.causal_video_autoencoder import CausalVideoAutoencoder  # noqa: E402
from ltx_video.models.autoencoders.vae_encode import latent_to_pixel_coords_from_factors, vae_decode  # noqa: E402
from ltx_video.models.transformers.symmetric_patchifier import SymmetricPatchifier  # noqa: E402
from ltx_video.models.transformers.transformer3d import Transformer3DModel  # noqa: E402
from ltx_video.schedulers.rf import RectifiedFlowScheduler  # noqa: E402
from ltx_video.utils.skip_layer_strategy import SkipLayerStrategy  # noqa: E402

__all__ = ["RectifiedFlowScheduler", "SkipLayerStrategy", "token_coords", "transformer", "vae", "vae_decode"]


def transformer(config: dict) -> Transformer3DModel:
    """Builds the official transformer from the `transformer` part of a checkpoint header."""
    model = Transformer3DModel.from_config(config).eval()
    model.load_state_dict(_drawn(model.state_dict()))
    return model


def vae(config: dict) -> CausalVideoAutoencoder:
    """Builds the official VAE from the `vae` part of a checkpoint header, latent statistics included."""
    model = CausalVideoAutoencoder.from_config(config).eval()
    channels = torch.zeros(config["latent_channels"])
    statistics = {f"per_channel_statistics.{name}": channels for name in ("mean-of-means", "std-of-means")}
    model.load_state_dict(_drawn({**model.state_dict(), **statistics}))
    return model


def token_coords(grid: tuple[int, int, int], batch: int, fps: float, causal: bool) -> torch.Tensor:
    """Returns coordinates (B, 3, N) in (s, px, px), computed as the official pipeline does inside its loop."""
    cells = SymmetricPatchifier(patch_size=1).get_latent_coords(*grid, batch, "cpu")
    coords = latent_to_pixel_coords_from_factors(cells, (8, 32, 32), causal_fix=causal).to(torch.float32)
    coords[:, 0] = coords[:, 0] * (1.0 / fps)
    return coords


def _drawn(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {key: torch.from_numpy(weight(key, tuple(tensor.shape))) for key, tensor in state.items()}
