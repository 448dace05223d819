"""The same weights in other programs' files: diffusers folders by diffusers' conversion, GGUF by the package gguf.

None of the tables under test is used here.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.loaders.single_file_utils import (
    convert_ltx_transformer_checkpoint_to_diffusers,
    convert_ltx_vae_checkpoint_to_diffusers,
)
from gguf import MODEL_ARCH, GGMLQuantizationType, GGUFWriter, get_tensor_name_map, quants
from oracles.networks import diffusers_dit, diffusers_vae, transformers_t5
from safetensors.torch import load_file
from torch import Tensor, nn

from ltx_export.models.dit import Transformer
from ltx_export.models.t5 import T5Config, TextEncoder
from ltx_export.models.vae import VaeDecoder
from ltx_export.models.vae_encoder import VaeEncoder
from ltx_export.networks.header import transformer_config, vae_config
from ltx_export.networks.vae_encoder import encoder_config
from ltx_export.recorded import SIZES, random_feeds, run_graph
from ltx_export.sources.find import TEXT_ENCODER_FILE, TOKENIZER_FILE, Opened
from ltx_runtime.folder.reading import open_engines
from ltx_runtime.spec.versions import TextEncoderSize, Version
from ltx_runtime.weights.checkpoint import StoredTensor

State = dict[str, Tensor]

OFFICIAL = "model.diffusion_model."
_CONV_OUT = "encoder.conv_out.conv.weight"
_WIDEST = 2048
_NETWORKS = ("transformer", "vae", "text_encoder")


def diffusers_transformer_state(state: Mapping[str, Tensor]) -> State:
    """Returns an official file's transformer under diffusers' names."""
    return convert_ltx_transformer_checkpoint_to_diffusers(dict(state))


def diffusers_vae_state(generation: str, state: Mapping[str, Tensor]) -> State:
    """Returns an official file's VAE under diffusers' names.

    The conversion recognizes generation C by the 2048 channels at the end of its encoder, so it is shown a tensor of
    that many channels in place of a tiny one.
    """
    shown = dict(state)
    if generation == "C":
        shown[f"vae.{_CONV_OUT}"] = torch.empty(1, _WIDEST, device="meta")
    return convert_ltx_vae_checkpoint_to_diffusers(shown) | {_CONV_OUT: state[f"vae.{_CONV_OUT}"]}


def diffusers_models(version: Version, weights: Path) -> dict[str, nn.Module]:
    """Returns diffusers' and transformers' models with an official file's weights, loaded strictly, in its dtype."""
    state, text = load_file(weights / version.checkpoint), load_file(weights / TEXT_ENCODER_FILE)
    size = version.vae_size
    vae = diffusers_vae(version.vae, size.base_channels, size.latent_channels, size.layers_per_block)
    models = {
        "transformer": (diffusers_dit(version.transformer), diffusers_transformer_state(state)),
        "vae": (vae, diffusers_vae_state(version.vae, state)),
        "text_encoder": (
            transformers_t5(version.text_encoder),
            text | {"encoder.embed_tokens.weight": text["shared.weight"]},
        ),
    }
    for model, values in models.values():
        model.to(next(iter(values.values())).dtype).load_state_dict(values, strict=True)
    return {name: model for name, (model, _) in models.items()}


def write_diffusers(
    version: Version,
    weights: Path,
    folder: Path,
    shard_size: str = "1GB",
    variant: str | None = None,
    text_dtype: torch.dtype = torch.bfloat16,
) -> Path:
    """Writes an official file's weights to `folder` as diffusers and transformers save them."""
    models = diffusers_models(version, weights)
    models["text_encoder"].to(text_dtype)
    for name, model in models.items():
        model.save_pretrained(folder / name, max_shard_size=shard_size, variant=variant)
    shifts = version.schedule.shifting == "SD3"
    FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=shifts).save_pretrained(folder / "scheduler")
    (folder / "tokenizer").mkdir(exist_ok=True)
    shutil.copy(weights / TOKENIZER_FILE, folder / "tokenizer" / "spiece.model")
    return folder


def write_gguf(path: Path, architecture: str, state: Mapping[str, Tensor], dtype: str) -> Path:
    """Writes a GGUF file of tensors in F32, F16 or BF16."""
    writer = GGUFWriter(path, architecture)
    kind = GGMLQuantizationType[dtype]
    for name, values in state.items():
        writer.add_tensor(name, quants.quantize(values.float().numpy(), kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def gguf_t5_state(state: Mapping[str, Tensor], layers: int) -> State:
    """Returns a T5 encoder under the names that the package gguf gives it."""
    names = get_tensor_name_map(MODEL_ARCH.T5ENCODER, layers)
    renamed = {names.get_name(name, try_suffixes=(".weight",)): values for name, values in state.items()}
    assert None not in renamed and len(renamed) == len(state)
    return renamed


def bare(state: Mapping[str, Tensor], prefix: str) -> State:
    """Returns the tensors of one network of an official file, without the prefix."""
    return {name.removeprefix(prefix): values for name, values in state.items() if name.startswith(prefix)}


def bits_of(opened: Opened) -> dict[str, dict[str, tuple[str, tuple[int, ...], bytes]]]:
    """Returns dtype, shape and bytes of every tensor, by network."""
    return {
        network: {
            name: (tensor.dtype, tensor.shape, tensor.read(0, tensor.length).tobytes())
            for name, tensor in getattr(opened, network).items()
        }
        for network in _NETWORKS
    }


def outputs_of(folder: Path) -> dict[str, list[np.ndarray]]:
    """Returns the outputs of a version folder's fp32 graphs for the same random requests."""
    engines = open_engines(folder)
    return {
        name: run_graph(
            folder / entry.graphs["fp32"],
            engines.weights_folder(name),
            entry.signature,
            [random_feeds(entry.signature, sizes) for sizes in SIZES],
        )
        for name, entry in engines.manifest.components.items()
    }


def assert_same_outputs(folder: Path, other: Path) -> None:
    """Checks that the graphs of both folders give the same bits, and not the same number everywhere.

    Upsamplers are not compared: they are not part of these layouts, and either folder may lack them.
    """
    mine, theirs = outputs_of(folder), outputs_of(other)
    networks = ["text_encoder", "vae_encoder", "transformer", "vae_decoder"]
    assert [name for name in mine if name in networks] == [name for name in theirs if name in networks] == networks
    for name in networks:
        for actual, expected in zip(mine[name], theirs[name], strict=True):
            assert np.isfinite(expected).all() and np.ptp(expected) > 0
            assert np.array_equal(actual, expected), name


def opened_shapes(header: dict, text: TextEncoderSize) -> Opened:
    """Returns a header's networks as if opened from a file without a header: names and shapes, but no bytes."""
    with torch.device("meta"):
        modules = {
            "transformer": Transformer(transformer_config(header["transformer"])),
            "vae": VaeDecoder(vae_config(header["vae"])),
            "vae_encoder": VaeEncoder(encoder_config(header["vae"])),
            "text_encoder": TextEncoder(
                T5Config(text.layers, text.width, text.heads, text.head_dim, text.hidden, text.vocabulary)
            ),
        }
    shapes = {name: {k: tuple(p.shape) for k, p in module.named_parameters()} for name, module in modules.items()}
    shapes["vae"] |= shapes.pop("vae_encoder")
    return Opened(**{name: stored_shapes(named) for name, named in shapes.items()})


def stored_shapes(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, StoredTensor]:
    """Returns tensors without bytes, which differ in their offsets."""
    return {name: StoredTensor(Path("x"), i, 0, "F32", shape) for i, (name, shape) in enumerate(shapes.items())}
