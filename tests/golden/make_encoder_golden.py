"""Records the posteriors of the official VAE encoders in vae_encoder.safetensors.

Stored are the posterior's mean, normalized as the official pipeline normalizes latents, and its deviation on the same
scale. Source, versions, weights, block lists, layout and environment are those of `make_golden.py`; the command is

    golden-venv/bin/python tests/golden/make_encoder_golden.py
"""

import sys
import zlib
from pathlib import Path

import numpy as np
import torch

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

import make_golden  # noqa: E402
import official  # noqa: E402  (before anything from ltx_video)
from ltx_video.models.autoencoders.vae_encode import normalize_latents  # noqa: E402

VIDEOS = {"pair": (2, 3, 17, 64, 96), "single": (1, 3, 1, 96, 64), "long": (1, 3, 41, 64, 64)}
PADDED = {"replicate": "c", "reflect": "a"}  # padding modes that no release uses, each with one generation's blocks


def configs() -> dict[str, dict]:
    """Returns one configuration of each VAE generation and one of each other padding mode."""
    found = {name: config for name, config in make_golden.vae_configs().items() if name != "b_noisy"}
    return found | {f"{of}_{mode}": {**found[of], "spatial_padding_mode": mode} for mode, of in PADDED.items()}


def video(name: str, *shape: int) -> np.ndarray:
    """Draws a video uniformly in [-1, 1) from its name alone."""
    return np.random.RandomState(zlib.crc32(name.encode())).uniform(-1, 1, shape).astype(np.float32)


def encoder_cases() -> make_golden.Cases:
    """Encodes with every configuration at every shape; videos are not stored, as their names determine them."""
    cases: make_golden.Cases = {}
    for kind, config in configs().items():
        vae = official.vae(config)
        for size, shape in VIDEOS.items():
            name = f"{kind}_{size}"
            posterior = vae.encode(torch.from_numpy(video(name, *shape))).latent_dist
            mean = normalize_latents(posterior.mean, vae, vae_per_channel_normalize=True)
            deviation = posterior.std / vae.std_of_means.view(1, -1, 1, 1, 1)
            settings = {"vae": config, "video_shape": shape}
            cases[name] = (settings, {"mean": mean.numpy(), "deviation": deviation.numpy()})
    return cases


def main() -> None:
    torch.set_num_threads(1)  # for a fixed order of summation
    with torch.no_grad():
        make_golden.write(HERE / "vae_encoder.safetensors", encoder_cases())


if __name__ == "__main__":
    main()
