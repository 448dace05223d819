"""Reads and writes prompt embeddings as safetensors files, with the tensor names of other LTX-Video programs.

This module knows nothing about T5.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ltx_runtime.errors import LtxError
from ltx_runtime.tensors import read_tensors, write_tensors

_PROMPT = ("prompt_embeds", "prompt_attention_mask")
_NEGATIVE = ("negative_prompt_embeds", "negative_prompt_attention_mask")


@dataclass(frozen=True)
class Text:
    """Prompt embeddings and attention masks of a batch.

    Attributes:
        embeddings: (B, T, C) float32.
        mask: (B, T) int64, 1 for a token of the prompt.
        negative_embeddings: (B, T, C) float32 of the negative prompts; None if no step uses them.
        negative_mask: (B, T) int64 of the negative prompts, or None.
    """

    embeddings: NDArray[np.float32]
    mask: NDArray[np.int64]
    negative_embeddings: NDArray[np.float32] | None = None
    negative_mask: NDArray[np.int64] | None = None


def text_of(embeddings: Sequence[NDArray[np.float32]]) -> Text:
    """Returns the text of a prompt and, if there are two embeddings (T, C), of its negative prompt.

    Both are padded with zeros to the longer one.
    """
    length = max(map(len, embeddings))
    pairs = [_lengthened(row[None], np.ones((1, len(row)), np.int64), length) for row in embeddings]
    return Text(*pairs[0]) if len(pairs) == 1 else Text(*pairs[0], *pairs[1])


def faults_of(text: Text) -> dict[str, str]:
    """Returns what is wrong with a text that says nothing: sentences, by a key for programs."""
    faults: dict[str, str] = {}
    for name, embeddings, mask in (
        ("prompt", text.embeddings, text.mask),
        ("negative prompt", text.negative_embeddings, text.negative_mask),
    ):
        if embeddings is None or mask is None:
            continue
        tokens = embeddings[mask != 0]
        if not tokens.any():
            faults.setdefault("zero_text", f"the {name} is encoded as nothing but zeros")
        elif len(tokens) > 1 and (tokens == tokens[0]).all():
            faults.setdefault("constant_text", f"the {name} is encoded as the same numbers for each of its tokens")
    return faults


def read_text(path: Path, channels: int, *, negative: bool) -> Text:
    """Reads the prompt embeddings in a file, and the negative ones only if a step uses them.

    Args:
        path: a file with `prompt_embeds` (B, T, C), `prompt_attention_mask` (B, T), and both with prefix `negative_`.
        channels: number of channels C that the transformer takes.
        negative: whether any step uses the negative prompt.

    Raises:
        LtxError: the file is damaged or lacks a tensor, a tensor has another shape, or a mask keeps no token.
    """
    tensors = read_tensors(path, _PROMPT + _NEGATIVE if negative else _PROMPT)
    names = [_PROMPT] + [_NEGATIVE] * negative
    pairs = [
        _checked_pair(path, tensors[embeddings], tensors[mask], channels, embeddings) for embeddings, mask in names
    ]
    if not negative:
        return Text(*pairs[0])
    length = max(mask.shape[1] for _, mask in pairs)
    (embeddings, mask), (negative_embeddings, negative_mask) = (_lengthened(*pair, length) for pair in pairs)
    if len(embeddings) != len(negative_embeddings):
        raise LtxError(
            f"{path} has {len(embeddings)} prompts but {len(negative_embeddings)} negative prompts",
            "give the same number of both",
        )
    return Text(embeddings, mask, negative_embeddings, negative_mask)


def _checked_pair(
    path: Path, embeddings: NDArray[np.float32], mask: NDArray[np.generic], channels: int, name: str
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    if embeddings.ndim != 3 or 0 in embeddings.shape or embeddings.shape[-1] != channels:
        raise LtxError(
            f"{name} in {path} is of shape {list(embeddings.shape)}, not (batch, tokens, {channels})",
            "encode the prompt with this version's T5",
        )
    if mask.shape != embeddings.shape[:2]:
        raise LtxError(
            f"the mask of {name} in {path} is of shape {list(mask.shape)}, not {list(embeddings.shape[:2])}",
            "save embeddings and mask of the same prompt",
        )
    if not mask.any(axis=1).all():
        raise LtxError(
            f"the mask of {name} in {path} excludes every token of a prompt",
            "save embeddings and mask of the same prompt",
        )
    return embeddings.astype(np.float32), (mask != 0).astype(np.int64)


def _lengthened(
    embeddings: NDArray[np.float32], mask: NDArray[np.int64], length: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Pads embeddings and mask to `length` tokens; the mask of the added tokens is 0."""
    added = length - mask.shape[1]
    return np.pad(embeddings, ((0, 0), (0, added), (0, 0))), np.pad(mask, ((0, 0), (0, added)))


def write_text(path: Path, text: Text, *, replace: bool = True) -> Path:
    """Writes a file for `read_text`, see `write_tensors`; it appears under its name only when it is complete.

    Raises:
        LtxError: the path cannot be written.
    """
    tensors: dict[str, NDArray[np.generic]] = dict(zip(_PROMPT, (text.embeddings, text.mask), strict=True))
    if text.negative_embeddings is not None and text.negative_mask is not None:
        tensors |= zip(_NEGATIVE, (text.negative_embeddings, text.negative_mask), strict=True)
    return write_tensors(path, tensors, {}, replace=replace)
