"""Weights as the files of a release: a checkpoint with its configuration in the header, upscaler, T5 and tokenizer."""

from __future__ import annotations

import io
import json
import string
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import sentencepiece
import torch

from ltx_export.models.dit import Transformer
from ltx_export.models.network import build_empty
from ltx_export.models.t5 import T5Config, TextEncoder
from ltx_export.models.upsampler import LatentUpsampler, Statistics
from ltx_export.models.vae import TIMESTEP_SCALE_KEY, VaeDecoder
from ltx_export.models.vae_encoder import VaeEncoder
from ltx_export.networks.header import header_config, transformer_config, vae_config
from ltx_export.networks.upsampler import upsampler_config, upsampler_header
from ltx_export.networks.vae_encoder import encoder_config
from ltx_export.sources.find import TEXT_ENCODER_FILE, TOKENIZER_FILE
from ltx_runtime.files import written_whole
from ltx_runtime.spec.versions import TextEncoderSize, Version
from ltx_runtime.weights.writing import Entry, write_safetensors

Shapes = dict[str, tuple[int, ...]]
# Name and shape of a tensor -> its bytes in bf16 in pieces, or None for zeros that take no disk space.
Values = Callable[[str, tuple[int, ...]], Callable[[], Iterable[bytes]] | None]

TRANSFORMER_PREFIX, VAE_PREFIX = "model.diffusion_model.", "vae."

# T5's real vocabulary has single letters for English, German, French and Romanian; other scripts are unknown to it, and
# so they are to a small one.
_PUNCTUATION = "!\"#$%&'()*+,-./:;=>?@[]_|£€«»°–—‘’“”„•"  # noqa: RUF001  (dashes and quotation marks are meant)
LETTERS = string.ascii_letters + string.digits + _PUNCTUATION + "ßàáâäçèéêîóôöùûüÉÎÜăşţșț"


def write_official_files(
    version: Version, folder: Path, values: Values, tokenizer: bytes, mark: dict[str, str]
) -> None:
    """Writes a version's checkpoint, upscaler, text encoder and tokenizer into `folder`, in bf16.

    Args:
        version: the version, which gives sizes and header.
        folder: created if missing; each file appears under its name only when it is complete.
        values: gives the bytes of each tensor.
        tokenizer: the file of the tokenizer.
        mark: what is added to the headers of all other files.

    Raises:
        LtxError: the disk is full.
    """
    folder.mkdir(parents=True, exist_ok=True)
    header = header_config(version)
    transformer = build_empty(lambda: Transformer(transformer_config(header["transformer"])), torch.bfloat16)
    vae = vae_config(header["vae"])
    decoder = build_empty(lambda: VaeDecoder(vae), torch.bfloat16)
    encoder = build_empty(lambda: VaeEncoder(encoder_config(header["vae"])), torch.bfloat16)
    text_encoder = build_empty(lambda: TextEncoder(t5_config(version.text_encoder)), torch.bfloat16)
    checkpoint_shapes = (
        _shapes(transformer, TRANSFORMER_PREFIX) | _shapes(decoder, VAE_PREFIX) | _shapes(encoder, VAE_PREFIX)
    )
    if vae.timestep:
        checkpoint_shapes[VAE_PREFIX + TIMESTEP_SCALE_KEY] = ()
    metadata = {"config": json.dumps(header)}
    for name, shapes, file_metadata in (
        (version.checkpoint, checkpoint_shapes, metadata),
        (TEXT_ENCODER_FILE, _shapes(text_encoder, ""), {}),
        *([_upscaler(version, version.upscaler)] if version.upscaler else []),
    ):
        groups = [((Entry(key, "BF16", shape),), values(key, shape)) for key, shape in shapes.items()]
        write_safetensors(folder / name, groups, file_metadata | mark)
    with written_whole(folder / TOKENIZER_FILE) as temporary:
        temporary.write_bytes(tokenizer)


def _upscaler(version: Version, name: str) -> tuple[str, Shapes, dict[str, str]]:
    """Returns name, shapes and metadata of a spatial upscaler's file."""
    header = upsampler_header(version)
    constants = np.zeros(header["in_channels"], np.float32)
    module = build_empty(
        lambda: LatentUpsampler(upsampler_config(header), Statistics(constants, constants)), torch.bfloat16
    )
    return name, _shapes(module, ""), {"config": json.dumps(header)}


def t5_config(size: TextEncoderSize) -> T5Config:
    """Returns the configuration of a T5 encoder of this size."""
    return T5Config(size.layers, size.width, size.heads, size.head_dim, size.hidden, size.vocabulary)


def _shapes(module: torch.nn.Module, prefix: str) -> Shapes:
    return {prefix + name: tuple(parameter.shape) for name, parameter in module.named_parameters()}


def tokenizer_of(texts: Iterable[str], pieces: int) -> bytes:
    """Trains a SentencePiece model with T5's special ids and `pieces` pieces on texts, and returns its bytes."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=model,
        model_type="bpe",
        vocab_size=pieces,
        required_chars=LETTERS,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()
