"""Builds the networks to export from opened checkpoints and their header: modules, ports, and exactly their tensors."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from ltx_export.checkpoints.blocks import Q8
from ltx_export.checkpoints.keys import check_names
from ltx_export.checkpoints.shapes import has_encoder
from ltx_export.checkpoints.values import check_dtype, float32_of, is_quantized
from ltx_export.models.dit import DitConfig, Transformer
from ltx_export.models.network import Network, build_empty
from ltx_export.models.t5 import T5Config, TextEncoder
from ltx_export.models.upsampler import LatentUpsampler, Resampling, Statistics
from ltx_export.models.vae import TIMESTEP_SCALE_KEY, VaeBlock, VaeConfig, VaeDecoder
from ltx_export.models.vae_encoder import EncoderBlock, VaeEncoder
from ltx_export.networks.header import transformer_config, vae_config
from ltx_export.networks.upsampler import upsampler_of
from ltx_export.networks.vae_encoder import encoder_config
from ltx_export.sources.find import Opened
from ltx_export.sources.upscalers import Upscaler
from ltx_runtime.errors import LtxError
from ltx_runtime.spec import components
from ltx_runtime.spec.components import Component
from ltx_runtime.spec.encodings import TIMESTEP_SCALE
from ltx_runtime.spec.versions import Version
from ltx_runtime.weights.checkpoint import StoredTensor

_STATISTICS = "per_channel_statistics."


@dataclass(frozen=True)
class Part:
    """One component to export.

    Attributes:
        network: builds its module and its ports.
        tensors: its stored weights by parameter name.
        source: `transformer`, `vae`, `text_encoder`, or an upsampler's component name. Parts with the same source may
            share tensors; a weight file that is written for them is named after it.
        tables: names of the parameters that are embedding tables.
    """

    network: Network
    tensors: Mapping[str, StoredTensor]
    source: str
    tables: frozenset[str]

    @property
    def component(self) -> Component:
        return self.network.component(self.network.blocks)

    @property
    def parameters(self) -> int:
        """Number of parameters."""
        return sum(math.prod(tensor.shape) for tensor in self.tensors.values())

    @property
    def quantizable(self) -> frozenset[str]:
        """Names of the matrices that Q8 can hold: those of repeated blocks, if the file has not quantized any itself.

        What stands before and after the repeated blocks is small, and more sensitive.
        """
        prefix = f"{self.network.path}."
        if not self.network.path or any(map(is_quantized, self.tensors.values())):
            return frozenset()
        matrices = {
            name: tensor.shape
            for name, tensor in self.tensors.items()
            if name.startswith(prefix) and name.endswith(".weight") and len(tensor.shape) == 2
        }
        return frozenset(name for name, (_, columns) in matrices.items() if columns % Q8.block == 0) - self.tables


def parts_of(version: Version, header: Mapping[str, Any], opened: Opened, *, stg: bool = False) -> list[Part]:
    """Returns a part for each network: text encoder, VAE encoder and upsamplers if any, transformer and VAE decoder.

    The transformer can skip layers if a preset of the version uses STG, or if `stg` is true.

    Raises:
        LtxError: a size is not implemented, or a tensor is missing, unexpected or has the wrong shape.
    """
    t5 = None if opened.text_encoder is None else t5_config(opened.text_encoder)
    dit = transformer_config(header["transformer"])
    vae = vae_config(header["vae"])
    _refuse_misfits(t5, dit, vae)
    _refuse_excess_layers("transformer", dit.layers, opened.transformer)
    # Built first, because it checks the VAE's tensors, of which the upsamplers read the statistics.
    vae_decoder = _vae_decoder(vae, opened.vae)
    return [
        *([_part_of(_text_network(t5), opened.text_encoder, "text_encoder")] if t5 and opened.text_encoder else []),
        *([_vae_encoder(header["vae"], opened.vae)] if has_encoder(opened.vae) else []),
        _part_of(_transformer_network(dit, stg=stg or version.uses_stg), opened.transformer, "transformer"),
        *_upsamplers(opened),
        vae_decoder,
    ]


def _refuse_misfits(t5: T5Config | None, dit: DitConfig, vae: VaeConfig) -> None:
    if t5 is not None and t5.width != dit.text_channels:
        raise LtxError(
            f"the text encoder has width {t5.width}, but the transformer takes text of width {dit.text_channels}",
            "give the T5 that matches the transformer",
        )
    if vae.latent_channels != dit.channels:
        raise LtxError(
            f"the VAE has {vae.latent_channels} latent channels, but the transformer takes {dit.channels}",
            "give the VAE that matches the transformer",
        )


def _text_network(t5: T5Config) -> Network:
    return Network(
        lambda blocks: components.text_encoder(t5.width),
        lambda blocks: TextEncoder(replace(t5, layers=blocks)),
        t5.layers,
        "encoder.block",
    )


def _transformer_network(dit: DitConfig, *, stg: bool) -> Network:
    return Network(
        lambda blocks: components.transformer(dit.channels, dit.text_channels, dit.width, blocks if stg else 0),
        lambda blocks: Transformer(replace(dit, layers=blocks)),
        dit.layers,
        "transformer_blocks",
    )


def _upsamplers(opened: Opened) -> Iterator[Part]:
    """Yields a part for each upscaler that was opened, with the VAE's statistics as constants."""
    mean, deviation = (float32_of(opened.vae[f"{_STATISTICS}{kind}-of-means"]) for kind in ("mean", "std"))
    if opened.upscaler:
        yield _upsampler(opened.upscaler, "spatial", components.upsampler(len(mean)), Statistics(mean, deviation))
    if opened.temporal_upscaler:
        ports = components.temporal_upsampler(len(mean))
        yield _upsampler(opened.temporal_upscaler, "temporal", ports, Statistics(mean, deviation))


def _upsampler(upscaler: Upscaler, resampling: Resampling, ports: Component, statistics: Statistics) -> Part:
    config = upsampler_of(upscaler, resampling, len(statistics.mean))
    network = Network(lambda blocks: ports, lambda blocks: LatentUpsampler(config, statistics))
    return _part_of(network, upscaler.tensors, ports.name)


def _vae_encoder(config: Mapping[str, Any], tensors: Mapping[str, StoredTensor]) -> Part:
    encoder = encoder_config(config)
    _refuse_excess_layers("vae_encoder", _layers(encoder.blocks), tensors)
    ports = components.vae_encoder(encoder.latent_channels)
    encoder_tensors = {name: tensor for name, tensor in tensors.items() if name.startswith(("encoder.", _STATISTICS))}
    return _part_of(Network(lambda blocks: ports, lambda blocks: VaeEncoder(encoder)), encoder_tensors, "vae")


def _vae_decoder(vae: VaeConfig, tensors: Mapping[str, StoredTensor]) -> Part:
    decoder_tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith("encoder.")}
    if vae.timestep:
        _check_timestep_scale(decoder_tensors.pop(TIMESTEP_SCALE_KEY, None))
    _refuse_excess_layers("vae_decoder", _layers(vae.blocks), decoder_tensors)
    ports = components.vae_decoder(vae.latent_channels, timestep=vae.timestep, noise_maps=vae.noise_maps())
    return _part_of(Network(lambda blocks: ports, lambda blocks: VaeDecoder(vae)), decoder_tensors, "vae")


def _check_timestep_scale(stored: StoredTensor | None) -> None:
    """Raises LtxError if a VAE scales timesteps otherwise; the diffusers conversion of 0.9.1 does not say how."""
    scales = [TIMESTEP_SCALE] if stored is None else float32_of(stored).reshape(-1).tolist()
    if scales != [TIMESTEP_SCALE]:
        raise LtxError(
            f"the VAE's {TIMESTEP_SCALE_KEY} is {', '.join(map(str, scales))}, not {TIMESTEP_SCALE:g}",
            "use an official VAE",
        )


def _layers(blocks: Sequence[VaeBlock | EncoderBlock]) -> int:
    return len(blocks) + sum(block.layers for block in blocks)


def _refuse_excess_layers(name: str, layers: int, tensors: Mapping[str, StoredTensor]) -> None:
    """Raises LtxError if a header has more layers than there are tensors, before that many layers are built."""
    if layers > len(tensors):
        raise LtxError(f"{name} has only {len(tensors)} tensors for {layers} layers", "give a complete checkpoint")


def _part_of(network: Network, tensors: Mapping[str, StoredTensor], source: str) -> Part:
    """Returns the part with exactly its module's tensors, after checking their names, shapes and dtypes."""
    module = build_empty(lambda: network.make(network.blocks), torch.float32)
    expected = {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}
    check_names(network.component(network.blocks).name, expected, tensors)
    for name in expected:
        check_dtype(tensors[name])
    tables = {f"{path}.weight" for path, layer in module.named_modules() if isinstance(layer, nn.Embedding)}
    return Part(network, {name: tensors[name] for name in expected}, source, frozenset(tables))


def t5_config(tensors: Mapping[str, StoredTensor]) -> T5Config:
    """Returns a T5 encoder's sizes, read from the shapes of its tensors.

    Raises:
        LtxError: a tensor from which a size is read is missing, or the sizes are impossible.
    """
    attention = "encoder.block.0.layer.0.SelfAttention"
    try:
        vocabulary, width = tensors["shared.weight"].shape
        heads = tensors[f"{attention}.relative_attention_bias.weight"].shape[1]
        inner = tensors[f"{attention}.q.weight"].shape[0]
        hidden = tensors["encoder.block.0.layer.1.DenseReluDense.wi_0.weight"].shape[0]
        blocks = {name.split(".")[2] for name in tensors if name.startswith("encoder.block.")}
        layers = next(i for i in range(len(blocks) + 1) if str(i) not in blocks)
        if 0 in (vocabulary, width, hidden):
            raise ValueError("a tensor has no elements")
        if 0 in (heads, inner) or inner % heads:
            raise ValueError(f"width {inner} cannot be split into {heads} heads")
    except (KeyError, ValueError, IndexError) as error:
        reason = f"it lacks {error}" if isinstance(error, KeyError) else error
        raise LtxError(f"the text encoder is not a T5 v1.1 encoder ({reason})", "give one such as t5xxl") from None
    return T5Config(layers, width, heads, inner // heads, hidden, vocabulary)
