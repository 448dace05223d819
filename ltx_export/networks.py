"""Opened checkpoints + their header -> the networks to be exported: modules, ports, and exactly their tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from ltx_export.architecture import transformer_config, vae_config
from ltx_export.checkpoint import StoredTensor
from ltx_export.encoder_shapes import encoder_shapes
from ltx_export.keys import check_names
from ltx_export.models.dit import Transformer
from ltx_export.models.t5 import T5Config, TextEncoder
from ltx_export.models.vae import VaeDecoder
from ltx_export.onnx_from_torch import Network, build_empty
from ltx_export.sources import Opened
from ltx_export.values import check_dtype
from ltx_runtime import components
from ltx_runtime.components import Component
from ltx_runtime.errors import LtxError
from ltx_runtime.versions import Version

_TIMESTEP_SCALE = "decoder.timestep_scale_multiplier"


@dataclass(frozen=True)
class Part:
    """One component to be exported.

    Attributes:
        network: how to build its module.
        tensors: its weights by parameter name, where they are stored.
        source: transformer, vae or text_encoder: the name of its file where it has one of its own.
        tables: parameters that rows are looked up in.
    """

    network: Network
    tensors: Mapping[str, StoredTensor]
    source: str
    tables: frozenset[str]

    @property
    def component(self) -> Component:
        return self.network.component(self.network.blocks)


def parts_of(version: Version, header: Mapping[str, Any], opened: Opened) -> list[Part]:
    """Text encoder, transformer and VAE decoder.

    Raises:
        LtxError: a size is not implemented, or a tensor is missing, unexpected or misshapen.
    """
    t5 = t5_config(opened.text_encoder)
    dit = transformer_config(header["transformer"])
    # Diffusers' conversion of 0.9.1 leaves the scale out.
    vae = replace(vae_config(header["vae"]), stores_timestep_scale=_TIMESTEP_SCALE in opened.vae)
    if t5.width != dit.text_channels:
        raise LtxError(
            f"the text encoder has width {t5.width}, but the transformer takes text of width {dit.text_channels} - "
            "give the T5 that belongs to it"
        )
    if vae.latent_channels != dit.channels:
        raise LtxError(
            f"the VAE has {vae.latent_channels} latent channels, but the transformer takes {dit.channels} - "
            "give the VAE that belongs to it"
        )
    text_encoder = Network(
        lambda blocks: components.text_encoder(t5.width),
        lambda blocks: TextEncoder(replace(t5, layers=blocks)),
        t5.layers,
        "encoder.block",
    )
    transformer = Network(
        lambda blocks: components.transformer(dit.channels, dit.text_channels, blocks if version.uses_stg else 0),
        lambda blocks: Transformer(replace(dit, layers=blocks)),
        dit.layers,
        "transformer_blocks",
    )
    decoder = components.vae_decoder(vae.latent_channels, timestep=vae.timestep, noise_maps=vae.noise_maps())
    vae_tensors = _without_encoder(header["vae"], opened.vae)
    for name, layers, tensors in (
        ("transformer", dit.layers, opened.transformer),
        ("vae_decoder", len(vae.blocks) + sum(block.layers for block in vae.blocks), vae_tensors),
    ):
        if layers > len(tensors):  # before so many are built
            raise LtxError(f"{name} has {len(tensors)} tensors for {layers} layers - give a whole checkpoint")
    return [
        _fitted(text_encoder, opened.text_encoder, "text_encoder"),
        _fitted(transformer, opened.transformer, "transformer"),
        _fitted(Network(lambda blocks: decoder, lambda blocks: VaeDecoder(vae)), vae_tensors, "vae"),
    ]


def _without_encoder(config: Mapping[str, Any], tensors: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """The decoder's tensors; the encoder's, which no graph takes yet, are checked as strictly."""
    encoder = {name: tensor for name, tensor in tensors.items() if name.startswith("encoder.")}
    check_names("vae_encoder", _encoder_shapes(config), encoder)
    return {name: tensor for name, tensor in tensors.items() if name not in encoder}


def _encoder_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    try:
        return encoder_shapes(config)
    except (KeyError, TypeError, ValueError) as error:
        raise LtxError(
            f"the checkpoint's vae encoder blocks are not understood ({error}) - use an official file"
        ) from None


def _fitted(network: Network, tensors: Mapping[str, StoredTensor], source: str) -> Part:
    """The part with exactly its module's tensors."""
    module = build_empty(lambda: network.make(network.blocks), torch.float32)
    expected = {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}
    check_names(network.component(network.blocks).name, expected, tensors)
    for name in expected:
        check_dtype(tensors[name])
    tables = {f"{path}.weight" for path, layer in module.named_modules() if isinstance(layer, nn.Embedding)}
    return Part(network, {name: tensors[name] for name in expected}, source, frozenset(tables))


def t5_config(tensors: Mapping[str, StoredTensor]) -> T5Config:
    """A T5 encoder's sizes, read off its tensors' shapes.

    Raises:
        LtxError: a tensor that tells a size is missing.
    """
    attention = "encoder.block.0.layer.0.SelfAttention"
    try:
        vocabulary, width = tensors["shared.weight"].shape
        heads = tensors[f"{attention}.relative_attention_bias.weight"].shape[1]
        inner = tensors[f"{attention}.q.weight"].shape[0]
        hidden = tensors["encoder.block.0.layer.1.DenseReluDense.wi_0.weight"].shape[0]
        blocks = {name.split(".")[2] for name in tensors if name.startswith("encoder.block.")}
        layers = next(i for i in range(len(blocks) + 1) if str(i) not in blocks)
        if 0 in (vocabulary, width, heads, inner, hidden) or inner % heads:
            raise ValueError(f"{heads} heads of a width of {inner}")
    except (KeyError, ValueError, IndexError) as error:
        raise LtxError(f"the text encoder is no T5 v1.1 encoder (at {error}) - give one such as t5xxl") from None
    return T5Config(layers, width, heads, inner // heads, hidden, vocabulary)
