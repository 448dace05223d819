"""A second implementation of text-to-video in torch alone: the official sampling, written from its formulas.

It shares only the noise, the token ids and the version's numbers with the runtime.
"""

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from oracles.torch_networks import Networks
from samples.tiny import Exported
from torch import Tensor

from ltx_runtime.noise.noise import SeededNoise
from ltx_runtime.spec.presets import STG_MODES, Guidance, StgMode


def linear_quadratic(steps: int) -> Tensor:
    """Returns sigmas that fall linearly to 1 - 0.025 in half the steps, then quadratically, like the official ones."""
    linear = steps // 2
    quadratic = steps - linear
    a = (linear - 0.025 * steps) / (linear * quadratic**2)
    b = 0.025 / linear - 2 * (linear - 0.025 * steps) / quadratic**2
    complement = [0.025 * i / linear for i in range(linear)]
    complement += [a * i**2 + b * i + a * linear**2 for i in range(linear, steps)]
    return torch.tensor([1 - x for x in complement])


def shifted_uniform(steps: int, tokens: int) -> Tensor:
    """Returns uniform sigmas, shifted by the number of tokens and stretched to end at 0.1."""
    mu = 0.95 + (2.05 - 0.95) / (4096 - 1024) * (tokens - 1024)
    t = torch.linspace(1, 1 / steps, steps, dtype=torch.float64)
    rest = 1 - math.exp(mu) / (math.exp(mu) + (1 / t - 1))
    return (1 - rest * 0.9 / rest[-1]).float()


def coords(frames: int, rows: int, columns: int, fps: float, causal: bool) -> Tensor:
    """Returns (1, 3, N): seconds, pixel row and pixel column of every token."""
    time = 8.0 * torch.arange(frames)
    time = (time - 7).clamp(min=0) if causal else time
    return torch.cartesian_prod(time / fps, 32.0 * torch.arange(rows), 32.0 * torch.arange(columns)).T[None]


def sinusoid(timesteps: Tensor) -> Tensor:
    """Returns (..., 256): cosines, then sines, of 1000 timesteps times 10,000 ** -(k / 128) for k = 0..127."""
    frequencies = torch.exp(-math.log(10_000) * torch.arange(128) / 128)
    angles = 1000 * timesteps[..., None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def rotation(positions: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Returns cosines and sines (N, width / 2) of positions (1, 3, N), like the official ones.

    Frequencies go from pi / 2 to 10,000 times that, over places from -1 (zero) to 1 (20 s, 2,048 pixels). Pairs of
    channels that are left over come first and have the angle 0.
    """
    frequencies = 10_000 ** torch.linspace(0, 1, width // 6) * math.pi / 2
    places = 2 * positions[0].T / torch.tensor([20.0, 2048.0, 2048.0]) - 1
    angles = (frequencies[:, None] * places[:, None]).flatten(1)
    angles = F.pad(angles, (width % 6 // 2, 0))
    return angles.cos(), angles.sin()


def guided(text: Tensor, unconditional: Tensor, perturbed: Tensor, entry: Guidance) -> Tensor:
    """Applies CFG, then STG, then the rescaling that belongs to STG."""
    velocity = text
    if entry.cfg_scale > 1:
        velocity = unconditional + entry.cfg_scale * (text - unconditional)
    if entry.stg_scale > 0:
        velocity = velocity + entry.stg_scale * (text - perturbed)
        if entry.rescale != 1:
            factor = text.std() / velocity.std()
            velocity = velocity * (entry.rescale * factor + 1 - entry.rescale)
    return velocity


def sample(
    release: Exported,
    networks: Networks,
    ids: Tensor,
    mask: Tensor,
    size: tuple[int, int, int],
    fps: float,
    mode: StgMode = "attention_values",
    **asked: int,
) -> Tensor:
    """Returns latents (1, C, F, H, W) after `steps` steps from `seed`, with one network call per condition."""
    version = release.version
    (one,) = version.passes
    (entry,) = one.guidance
    shape = (1, version.transformer.channels, *size)
    noise = SeededNoise(asked["seed"])
    x = torch.from_numpy(noise.draw("pass1/initial", shape)).flatten(2).transpose(1, 2)
    tokens, steps = math.prod(size), asked["steps"]
    sd3 = version.schedule.shifting == "SD3"
    sigmas = [*(shifted_uniform(steps, tokens) if sd3 else linear_quadratic(steps)), torch.zeros(())]
    positions = coords(*size, fps, version.causal_positions)
    rotated = rotation(positions, version.transformer.width)
    text = networks.text_encoder(ids, mask)
    keep = torch.ones(version.transformer.layers, len(STG_MODES), 1)
    skip = keep.clone()
    skip[list(entry.skip_blocks), STG_MODES.index(mode)] = 0

    def velocity(row: int, at: Tensor, skip_mask: Tensor) -> Tensor:
        masked = [skip_mask] if version.uses_stg else []
        return networks.transformer(x, sinusoid(at.reshape(1, 1)), *rotated, text[[row]], mask[[row]], *masked)

    for index, (at, following) in enumerate(pairwise(sigmas)):
        v = guided(velocity(0, at, keep), velocity(-1, at, keep), velocity(0, at, skip), entry)
        if one.stochastic:
            fresh = torch.from_numpy(noise.draw(f"pass1/step_{index}", tuple(x.shape)))
            x = (1 - following) * (x - at * v) + following * fresh
        else:
            x = x - (at - following) * v
    return x.transpose(1, 2).reshape(shape)


def decode(release: Exported, networks: Networks, latents: Tensor, seed: int) -> Tensor:
    """Returns the video (3, f, h, w) in 0..255; mixes in and injects noise if the decoder takes a timestep."""
    if release.version.vae == "A":
        video = networks.vae_decoder(latents)
    else:
        scale = release.version.decode_noise_scale
        seeded = SeededNoise(seed)
        noise = torch.from_numpy(seeded.draw("decode", tuple(latents.shape)))
        sizes = dict(zip(("frames", "rows", "columns"), latents.shape[2:], strict=True))
        ports = release.manifest.components["vae_decoder"].signature.inputs[2:]
        injected = [torch.from_numpy(seeded.draw(f"decoder/{port.name}", port.shape(sizes))) for port in ports]
        level = sinusoid(torch.tensor([release.version.decode_timestep]))
        video = networks.vae_decoder((1 - scale) * latents + scale * noise, level, *injected)
    return 255 * (0.5 * video[0] + 0.5).clamp(0, 1)
