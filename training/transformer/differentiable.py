"""The official networks as they are trained: attention and rotation in plain operations, since ONNX's own have no
gradient, and fused where a compiler is at hand."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from unittest.mock import patch

import torch
from torch import Tensor, nn


@contextmanager
def differentiable() -> Iterator[None]:
    """Makes transformer and text encoder compute what they always do, in operations that have a gradient."""
    with (
        patch("ltx_export.models.dit.attention", attention),
        patch("ltx_export.models.t5.attention", attention),
        patch("ltx_export.models.dit.rotate", rotate),
    ):
        yield


def attention(
    query: Tensor, key: Tensor, value: Tensor, heads: int, bias: Tensor | None = None, scale: float | None = None
) -> Tensor:
    """Computes what `ltx_export.models.layers.attention` does; products of matrices train faster here than SDPA."""
    queries, keys, values = (x.reshape(*x.shape[:2], heads, -1).transpose(1, 2) for x in (query, key, value))
    factor = queries.shape[-1] ** -0.5 if scale is None else scale
    scores = (queries * factor) @ keys.transpose(-1, -2)
    if bias is not None:
        scores = scores + bias
    attended: Tensor = torch.softmax(scores, -1) @ values
    return attended.transpose(1, 2).flatten(2)


def rotate(x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Computes what `ltx_export.models.rope.rotate` does."""
    pieces = x.reshape(1, -1, 2 * cosines.shape[-1])
    even, odd = pieces[..., ::2], pieces[..., 1::2]
    rotated = torch.stack([even * cosines - odd * sines, odd * cosines + even * sines], -1)
    return rotated.reshape(x.shape)


def fused(network: nn.Module) -> Callable[..., Tensor]:
    """Returns what computes a network with its small operations joined, or the network where no compiler is found.

    Compiling takes two or three minutes, once, and a step a quarter less or better from then on.
    """
    return torch.compile(network, dynamic=True) if shutil.which("g++") else network
