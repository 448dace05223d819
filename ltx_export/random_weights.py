"""Seeded random weights in the official formats, for any version.

Writes the same files as a download: a single safetensors checkpoint with the configuration in its header, an upscaler
if the version has one, a T5 encoder and its SentencePiece model. Each can be replaced by the file of trained weights.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from ltx_export.models.vae import TIMESTEP_SCALE_KEY
from ltx_export.official_files import LETTERS, tokenizer_of, write_official_files
from ltx_export.sources.find import TEXT_ENCODER_FILE, TOKENIZER_FILE
from ltx_runtime.errors import LtxError
from ltx_runtime.spec.encodings import TIMESTEP_SCALE
from ltx_runtime.spec.versions import Version
from ltx_runtime.tensors import read_metadata

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
    _refuse_real_weights(version, folder)
    letters = len({*LETTERS, *"".join(_CORPUS)} - {" "})
    pieces = min(version.text_encoder.vocabulary, _SPECIAL_PIECES + letters + _WORD_PIECES)
    write_official_files(
        version, folder, partial(_source, seed=seed, sparse=sparse), tokenizer_of(_CORPUS, pieces), _MARK
    )


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
