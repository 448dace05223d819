"""The results of all stages as the official files of the demo: checkpoint, upscaler, text encoder and tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from ltx_export.models.vae import TIMESTEP_SCALE_KEY
from ltx_export.official_files import TRANSFORMER_PREFIX, VAE_PREFIX, write_official_files
from ltx_runtime.spec.encodings import TIMESTEP_SCALE
from ltx_runtime.spec.versions import Version

STATISTICS = "per_channel_statistics."
LICENCE = "apache-2.0"


def write_trained(
    version: Version, folder: Path, parts: Mapping[str, Mapping[str, Tensor]], deviations: Tensor, tokenizer: bytes
) -> None:
    """Writes trained weights in bf16.

    Args:
        version: their sizes and header.
        folder: created if missing.
        parts: "denoiser" (text_encoder and transformer), "encoder", "decoder" and "upsampler", by parameters' names.
        deviations: of latent channels (128,), whose means are zero.
        tokenizer: file of the tokenizer.
    """
    tensors = {
        VAE_PREFIX + TIMESTEP_SCALE_KEY: torch.tensor(TIMESTEP_SCALE),
        f"{VAE_PREFIX}{STATISTICS}std-of-means": deviations,
        f"{VAE_PREFIX}{STATISTICS}mean-of-means": torch.zeros_like(deviations),
        **parts["upsampler"],
    }
    for part in ("encoder", "decoder"):
        tensors |= {f"{VAE_PREFIX}{part}.{name}": tensor for name, tensor in parts[part].items()}
    for name, tensor in parts["denoiser"].items():
        network, _, rest = name.partition(".")
        tensors[rest if network == "text_encoder" else TRANSFORMER_PREFIX + rest] = tensor

    def values(name: str, shape: tuple[int, ...]) -> Callable[[], Iterable[bytes]]:
        tensor = tensors[name]
        if tensor.shape != shape:
            raise ValueError(f"{name} has the shape {tuple(tensor.shape)}, not {shape}")
        return lambda: [tensor.to(torch.bfloat16).contiguous().view(torch.int16).numpy().tobytes()]

    write_official_files(version, folder, values, tokenizer, {"weights": "trained", "license": LICENCE})
