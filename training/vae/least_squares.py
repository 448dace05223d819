"""Sets a convolution of the official networks to the one that is nearest to given outputs."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from ltx_export.models.vae_blocks import Conv

KERNEL = 3


@torch.no_grad()
def fit_convolution(conv: Conv, pairs: Iterable[tuple[Tensor, Tensor]], ridge: float, *, alone: bool = False) -> None:
    """Sets kernel and bias by least squares.

    Args:
        conv: the convolution, whose first output channels are set and whose others become zero.
        pairs: its inputs (1, C, F, H, W), and the outputs (1, D, F, H, W) that its first D channels shall have.
        ridge: what is added to the diagonal of the normal equations, as a share of its mean; keeps weights small.
        alone: whether each position is computed from its own features alone, which takes fewer pairs.
    """
    gram = products = torch.zeros((), dtype=torch.float64)
    for inputs, targets in pairs:
        for seen, wanted in zip(_seen(conv, inputs, alone), targets[0].unbind(1), strict=True):
            columns = torch.cat([seen, seen.new_ones(1, seen.shape[1])]).double()
            gram = gram + columns @ columns.T
            products = products + columns @ wanted.flatten(1).double().T
    weighted = ridge * gram.diagonal().mean() * torch.eye(len(gram), dtype=torch.float64)
    solution = torch.linalg.solve(gram + weighted, products).float()
    kernel, bias = conv.conv.weight, conv.conv.bias
    assert bias is not None
    kernel.zero_()
    bias.zero_()
    count, channels = solution.shape[1], kernel.shape[1]
    if alone:
        kernel[:count, :, -1 if conv.causal else 1, 1, 1] = solution[:-1].T
    else:
        kernel[:count] = solution[:-1].T.reshape(count, KERNEL, channels, KERNEL, KERNEL).transpose(1, 2)
    bias[:count] = solution[-1]


def _seen(conv: Conv, x: Tensor, alone: bool) -> Iterable[Tensor]:
    """Yields, for every frame, what the kernel sees at each pixel: (channels, or time x channels x 9, pixels)."""
    if alone:
        yield from x[0].flatten(2).unbind(1)
        return
    first, last = x[:, :, :1], x[:, :, -1:]
    padded = torch.cat([first, first, x] if conv.causal else [first, x, last], dim=2)[0]
    for frame in range(x.shape[2]):
        three = padded[:, frame : frame + KERNEL].transpose(0, 1).flatten(0, 1)
        yield F.unfold(three[None], KERNEL, padding=KERNEL // 2)[0]
