"""Reference of benchmarks/gpu.py: diffusers' transformer and VAE with the weights of an official file."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor, nn

from ltx_runtime.spec.versions import Version

Arrays = Mapping[str, np.ndarray[Any, Any]]
COMPILES = ("none", "regional", "full")
_PREFIXES = {"transformer": "model.diffusion_model.", "vae_decoder": "vae."}


def load(component: str, version: Version, checkpoint: Path | None, device: str, dtype: torch.dtype) -> nn.Module:
    """Returns diffusers' model on the device with the file's weights, loaded strictly; a VAE has no encoder.

    Without a file the model keeps its initial weights.
    """
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))  # has the sizes and key maps of diffusers' models
    from oracles.networks import diffusers_dit, diffusers_vae

    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            if component == "transformer":
                model = diffusers_dit(version.transformer)
            else:
                size = version.vae_size
                model = diffusers_vae(version.vae, size.base_channels, size.latent_channels, size.layers_per_block)
                model.encoder = nn.Identity()
    finally:
        torch.set_default_dtype(default)
    if checkpoint is not None:
        model.load_state_dict(_state(component, version, checkpoint, device))
    return model.eval().requires_grad_(False)


def _state(component: str, version: Version, checkpoint: Path, device: str) -> dict[str, Tensor]:
    """Returns a network's tensors under diffusers' names."""
    from oracles.networks import diffusers_dit_key, diffusers_vae_key

    state = {}
    with safe_open(checkpoint, "pt", device=device) as file:
        for name in file.keys():  # noqa: SIM118  (no mapping)
            prefix = _PREFIXES[component]
            if not name.startswith(prefix) or name.startswith("vae.encoder."):
                continue
            own = name.removeprefix(prefix)
            key = diffusers_dit_key(own) if component == "transformer" else diffusers_vae_key(own, version.vae)
            state[key] = file.get_tensor(name)
    return state


def compiled(model: nn.Module, component: str, how: str) -> nn.Module | None:
    """Compiles the transformer by repeated block or as a whole, or the VAE's decoder; None if `how` is "none".

    Blocks share one compilation, which takes a fraction of the time and runs as fast; a decoder has no such blocks.
    """
    if how == "none":
        return None
    if component == "transformer" and how == "regional":
        return _with_compiled_blocks(model)
    return torch.compile(model if component == "transformer" else model.decoder, dynamic=False)


def _with_compiled_blocks(model: nn.Module) -> nn.Module:
    """Returns another model on the same weights, because compiling blocks in place would leave no eager model."""
    with torch.device("meta"):
        other = type(model).from_config(model.config)
    other.load_state_dict(model.state_dict(), assign=True)
    other = other.eval().requires_grad_(False)
    other.compile_repeated_blocks(fullgraph=True, dynamic=False)
    return other


def run(model: nn.Module, component: str, feeds: Mapping[str, Tensor], decoder: nn.Module | None = None) -> Tensor:
    """Runs one step or one decode on tensors made by `inputs`; `decoder` replaces the VAE's own."""
    with torch.inference_mode():
        if component == "transformer":
            return model(
                feeds["latents"],
                feeds["text"],
                feeds["timestep"],
                feeds["text_mask"],
                video_coords=feeds["coords"],
                return_dict=False,
            )[0]
        mean, deviation = (value.reshape(1, -1, 1, 1, 1) for value in (model.latents_mean, model.latents_std))
        latents = feeds["latents"] * deviation.to(feeds["latents"].dtype) + mean.to(feeds["latents"].dtype)
        decode = model.decoder if decoder is None else decoder
        return decode(latents, feeds.get("timestep"))


def inputs(component: str, plain: Arrays, device: str, dtype: torch.dtype) -> dict[str, Tensor]:
    """Converts plain inputs to diffusers' own: timesteps of a transformer are 1000 times ours, coords stay float32."""
    made = {}
    for name, values in plain.items():
        tensor = torch.from_numpy(np.array(values)).to(device)
        if name == "timestep" and component == "transformer":
            made[name] = 1000 * tensor
        elif name in ("coords", "text_mask"):
            made[name] = tensor
        else:
            made[name] = tensor.to(dtype)
    return made
