"""The graphs of a version folder against diffusers' and transformers' models, on the same random inputs."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from oracles.networks import RELATIVE_L2, distance, tensor
from torch import nn

from ltx_export.recorded import SIZES, Feeds, random_feeds, run_graph
from ltx_runtime.folder.reading import open_engines
from ltx_runtime.spec.components import Component
from ltx_runtime.spec.encodings import Rope, sinusoid_of

Models = Mapping[str, nn.Module]
Tensors = Mapping[str, torch.Tensor]


def assert_computes_as_diffusers(folder: Path, models: Models) -> None:
    """Checks the fp32 graph of every component of a version folder against the model with the same weights."""
    engines = open_engines(folder)
    expected = {"text_encoder": text_of, "vae_encoder": posterior_of, "transformer": velocity_of}
    expected["vae_decoder"] = video_of
    for name, entry in engines.manifest.components.items():
        feeds, plain = request_of(entry.signature, engines.manifest.rope)
        (actual,) = run_graph(folder / entry.graphs["fp32"], engines.weights_folder(name), entry.signature, [feeds])
        with torch.no_grad():
            theirs = expected[name](models, {port: tensor(values) for port, values in plain.items()})
        assert distance(actual, theirs) <= RELATIVE_L2, name


def request_of(component: Component, rope: Rope) -> tuple[Feeds, Feeds]:
    """Returns random inputs as the graph takes them, and as diffusers does: timesteps and coordinates as they are."""
    feeds, random = random_feeds(component, SIZES[1]), np.random.RandomState(0)
    plain = dict(feeds)
    if "sinusoid" in feeds:
        plain["timestep"] = random.uniform(0, 1, feeds["sinusoid"].shape[:-1]).astype(np.float32)
        feeds["sinusoid"] = sinusoid_of(plain["timestep"])
    if "skip_mask" in feeds:  # diffusers skips nothing
        feeds["skip_mask"] = np.ones_like(feeds["skip_mask"])
    if "cosines" in feeds:
        tokens, half = feeds["cosines"].shape
        coords = (random.uniform(0, 1, (1, 3, tokens)) * [[5], [704], [1216]]).astype(np.float32)
        plain["coords"] = coords.repeat(SIZES[1]["batch"], 0)
        feeds["cosines"], feeds["sines"] = rope.rotation(coords, 2 * half)
    return feeds, plain


def text_of(models: Models, feeds: Tensors) -> np.ndarray:
    return models["text_encoder"](feeds["ids"], feeds["mask"])[0].numpy()


def velocity_of(models: Models, feeds: Tensors) -> np.ndarray:
    inputs = (feeds["latents"], feeds["text"], 1000 * feeds["timestep"], feeds["text_mask"])
    return models["transformer"](*inputs, video_coords=feeds["coords"], return_dict=False)[0].numpy()


def posterior_of(models: Models, feeds: Tensors) -> np.ndarray:
    posterior = models["vae"].encode(feeds["video"]).latent_dist
    mean, deviation = statistics_of(models["vae"])
    return torch.cat([(posterior.mean - mean) / deviation, posterior.std / deviation], dim=1).numpy()


def statistics_of(vae: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    mean, deviation = (values.reshape(1, -1, 1, 1, 1) for values in (vae.latents_mean, vae.latents_std))
    return mean, deviation


def video_of(models: Models, feeds: Tensors) -> np.ndarray:
    vae = models["vae"]
    mean, deviation = statistics_of(vae)
    return vae.decode(feeds["latents"] * deviation + mean, feeds["timestep"], return_dict=False)[0].numpy()
