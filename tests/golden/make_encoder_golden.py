"""Record what the official VAE encoders make of videos: vae_encoder.safetensors.

Of the posterior its normalized mean, as the official pipeline normalizes latents, and its deviation on that scale.
Source, versions, weights, block lists and layout are those of `make_golden.py`; the environment is the same, and the
command

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
PADDED = {"replicate": "c", "reflect": "a"}  # padding modes of no release, each with one generation's blocks


def configs() -> dict[str, dict]:
    """One of each VAE generation, and of each other padding mode."""
    found = {name: config for name, config in make_golden.vae_configs().items() if name != "b_noisy"}
    return found | {f"{of}_{mode}": {**found[of], "spatial_padding_mode": mode} for mode, of in PADDED.items()}


def video(name: str, *shape: int) -> np.ndarray:
    """Uniform in [-1, 1), depending on the name alone."""
    return np.random.RandomState(zlib.crc32(name.encode())).uniform(-1, 1, shape).astype(np.float32)


def encoder_cases() -> make_golden.Cases:
    """Every configuration at every shape; a video is not stored: its values follow from its name."""
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
    torch.set_num_threads(1)  # a fixed order of sums
    with torch.no_grad():
        make_golden.write(HERE / "vae_encoder.safetensors", encoder_cases())


if __name__ == "__main__":
    main()
