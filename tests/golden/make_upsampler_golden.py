"""Records the official latent upsamplers' outputs for normalized latents in upsampler.safetensors.

The official functions un-normalize the latents and normalize them again, as between the official pipeline's two
passes. Source, versions, weights, layout and environment are those of `make_golden.py`; the command is

    golden-venv/bin/python tests/golden/make_upsampler_golden.py
"""

import sys
from pathlib import Path
from types import SimpleNamespace

import torch

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

import make_golden  # noqa: E402
import official  # noqa: E402, F401  (before anything from ltx_video)
from ltx_video.models.autoencoders.latent_upsampler import LatentUpsampler  # noqa: E402
from ltx_video.models.autoencoders.vae_encode import normalize_latents, un_normalize_latents  # noqa: E402
from oracles.weight_rule import weight  # noqa: E402

CHANNELS = 8
CONFIGS = {
    "spatial": {"dims": 3, "spatial_upsample": True, "temporal_upsample": False},
    "temporal": {"dims": 3, "spatial_upsample": False, "temporal_upsample": True},
    "frame_by_frame": {"dims": 2, "spatial_upsample": True, "temporal_upsample": False},
}
SHAPES = {"single": (1, CHANNELS, 1, 3, 4), "pair": (2, CHANNELS, 4, 3, 2)}


def upsampler_cases() -> make_golden.Cases:
    """Runs every kind of upsampler at both shapes; the statistics are drawn by their official names."""
    cases: make_golden.Cases = {}
    mean, deviation = (
        torch.from_numpy(weight(f"per_channel_statistics.{name}", (CHANNELS,)))
        for name in ("mean-of-means", "std-of-means")
    )
    vae = SimpleNamespace(mean_of_means=mean, std_of_means=deviation)
    for kind, scaled in CONFIGS.items():
        config = {"_class_name": "LatentUpsampler", "in_channels": CHANNELS, "mid_channels": 64}
        config |= {"num_blocks_per_stage": 2, **scaled}
        model = LatentUpsampler.from_config(config).eval()
        state = {key: torch.from_numpy(weight(key, tuple(one.shape))) for key, one in model.state_dict().items()}
        model.load_state_dict(state)
        for size, shape in SHAPES.items():
            name = f"{kind}_{size}"
            latents = make_golden.normal(f"{name}/latents", *shape)
            upsampled = model(un_normalize_latents(torch.from_numpy(latents), vae, True))
            tensors = {"latents": latents, "upsampled": normalize_latents(upsampled, vae, True).numpy()}
            cases[name] = ({"upsampler": config}, tensors)
    return cases


def main() -> None:
    torch.set_num_threads(1)  # for a fixed order of summation
    with torch.no_grad():
        make_golden.write(HERE / "upsampler.safetensors", upsampler_cases())


if __name__ == "__main__":
    main()
