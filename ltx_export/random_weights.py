"""Seeded random weights in the official formats, for the `demo` version or, without a download, for any other one.

Writes the same files as a download: a single safetensors checkpoint with the configuration in its header, an upscaler
if the version has one, a T5 encoder and its SentencePiece model. Each can be replaced by the file of trained weights.
"""

from __future__ import annotations

import io
import json
import math
import string
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import sentencepiece
import torch
from torch import Tensor

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
from ltx_runtime.errors import LtxError
from ltx_runtime.files import written_whole
from ltx_runtime.spec.encodings import TIMESTEP_SCALE
from ltx_runtime.spec.versions import TextEncoderSize, Version
from ltx_runtime.tensors import read_metadata
from ltx_runtime.weights.writing import Entry, write_safetensors

Shapes = dict[str, tuple[int, ...]]

# Enough text to train a small vocabulary.
_CORPUS = (
    "A red fox runs through deep snow at dawn, the camera follows from behind.",
    "Waves break on black rocks under a cloudy sky, slow motion, cinematic light.",
    "A woman walks down a street at night in the rain, neon lights reflect in the water.",
    "An old man smiles and looks out of the window of a moving train.",
    "The city from above, cars and people move fast, clouds pass over the towers.",
    "A cat plays with a ball of yarn on a wooden floor in the warm sun.",
    "worst quality, inconsistent motion, blurry, jittery, distorted",
)
_MARK = {"weights": "random"}  # in the headers of all files that are written here
_T5_QUERY = "SelfAttention.q.weight"
_T5_HEAD_DIM = 64
_SPECIAL_PIECES = 4  # padding, end, unknown, and the mark of a space
_WORD_PIECES = 120
# T5's real vocabulary has single letters for English, German, French and Romanian; other scripts are unknown to it, and
# so they are to a small one.
_PUNCTUATION = "!\"#$%&'()*+,-./:;=>?@[]_|£€«»°–—‘’“”„•"  # noqa: RUF001  (dashes and quotation marks are meant)
_LETTERS = string.ascii_letters + string.digits + _PUNCTUATION + "ßàáâäçèéêîóôöùûüÉÎÜăşţșț"


def write_random_weights(version: Version, folder: Path, *, seed: int = 0, sparse: bool = False) -> None:
    """Writes a version's checkpoint, upscaler, text encoder and tokenizer into `folder`, in bf16.

    Args:
        version: the version, which gives sizes and header.
        folder: created if missing; each file appears under its name only when it is complete.
        seed: seed of the values; the same seed gives the same bytes.
        sparse: whether to write zeros that take no disk space instead of random values, to measure large versions.

    Raises:
        LtxError: a file exists and was not written by this function, or the disk is full.
    """
    if version.repository is not None:  # otherwise there are no others
        _refuse_real_weights(version, folder)
    folder.mkdir(parents=True, exist_ok=True)
    header = header_config(version)
    transformer = build_empty(lambda: Transformer(transformer_config(header["transformer"])), torch.bfloat16)
    vae = vae_config(header["vae"])
    decoder = build_empty(lambda: VaeDecoder(vae), torch.bfloat16)
    encoder = build_empty(lambda: VaeEncoder(encoder_config(header["vae"])), torch.bfloat16)
    text_encoder = build_empty(lambda: TextEncoder(t5_config(version.text_encoder)), torch.bfloat16)
    checkpoint_shapes = (
        _shapes(transformer, "model.diffusion_model.") | _shapes(decoder, "vae.") | _shapes(encoder, "vae.")
    )
    if vae.timestep:
        checkpoint_shapes[f"vae.{TIMESTEP_SCALE_KEY}"] = ()
    metadata = {"config": json.dumps(header)}
    for name, shapes, file_metadata in (
        (version.checkpoint, checkpoint_shapes, metadata),
        (TEXT_ENCODER_FILE, _shapes(text_encoder, ""), {}),
        *([_upscaler(version, version.upscaler)] if version.upscaler else []),
    ):
        groups = [((Entry(key, "BF16", shape),), _source(key, shape, seed, sparse)) for key, shape in shapes.items()]
        write_safetensors(folder / name, groups, file_metadata | _MARK)
    with written_whole(folder / TOKENIZER_FILE) as temporary:
        letters = len({*_LETTERS, *"".join(_CORPUS)} - {" "})
        pieces = min(version.text_encoder.vocabulary, _SPECIAL_PIECES + letters + _WORD_PIECES)
        temporary.write_bytes(tokenizer_of(_CORPUS, pieces))


def _refuse_real_weights(version: Version, folder: Path) -> None:
    """Raises LtxError if a file would be replaced that is not marked as random: it may be a download of hours.

    A tokenizer cannot be marked; it is taken to belong to the checkpoint.
    """
    names = [version.checkpoint, TEXT_ENCODER_FILE, *filter(None, [version.upscaler])]
    real = [name for name in names if (folder / name).exists() and not _is_marked(folder / name)]
    if (folder / TOKENIZER_FILE).exists() and not (folder / version.checkpoint).exists():
        real.append(TOKENIZER_FILE)
    if real:
        raise LtxError(
            f"{folder / real[0]} was not made by random-weights, which would replace it",
            "choose another folder, or move it away",
        )


def _is_marked(path: Path) -> bool:
    try:
        return read_metadata(path).items() >= _MARK.items()
    except LtxError:  # damaged, or no safetensors file
        return False


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


def _source(name: str, shape: tuple[int, ...], seed: int, sparse: bool) -> Callable[[], Iterable[bytes]] | None:
    """Returns a function that computes a random tensor's bytes in bf16; None, for a hole in the file, if sparse.

    Standard deviations are never holes, because values are divided by them, and neither is the scale of timesteps,
    which an export checks.
    """
    if sparse and not name.endswith(("std-of-means", TIMESTEP_SCALE_KEY)):
        return None
    return lambda: [random_weight(name, shape, seed).to(torch.bfloat16).view(torch.int16).numpy().tobytes()]


def random_weight(name: str, shape: tuple[int, ...], seed: int) -> Tensor:
    """Returns float32 values that keep activations near one; the same name and seed give the same values."""
    generator = torch.Generator().manual_seed(zlib.crc32(f"{seed}:{name}".encode()))
    normal = torch.randn(shape, generator=generator)
    leaf = name.rsplit(".", 1)[-1]
    if name.endswith(TIMESTEP_SCALE_KEY):
        return torch.full(shape, TIMESTEP_SCALE)
    if leaf == "std-of-means":
        return 1 + 0.1 * normal.abs()
    if leaf == "weight" and len(shape) == 1:
        return 1 + 0.1 * normal
    if name.endswith(_T5_QUERY):  # T5 does not scale its attention scores, so its queries start smaller
        normal = normal / math.sqrt(_T5_HEAD_DIM)
    if leaf == "weight":
        return normal / math.sqrt(math.prod(shape[1:]))
    return 0.1 * normal


def tokenizer_of(texts: Iterable[str], pieces: int) -> bytes:
    """Trains a SentencePiece model with T5's special ids and `pieces` pieces on texts, and returns its bytes."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=model,
        model_type="bpe",
        vocab_size=pieces,
        required_chars=_LETTERS,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()
