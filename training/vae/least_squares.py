"""Sets a convolution of the official networks to the one that is nearest to given outputs."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from ltx_export.models.vae_blocks import Conv

KERNEL = 3


@torch.no_grad()
def fit_convolution(conv: Conv, pairs: Iterable[tuple[Tensor, Tensor]], ridge: float) -> None:
    """Sets kernel and bias by least squares.

    Args:
        conv: the convolution, whose first output channels are set and whose others become zero.
        pairs: its inputs (1, C, F, H, W), and the outputs (1, D, F, H, W) that its first D channels shall have.
        ridge: what is added to the diagonal of the normal equations, as a share of its mean; keeps weights small.
    """
    gram = products = torch.zeros((), dtype=torch.float64)
    for inputs, targets in pairs:
        for neighbours, wanted in zip(_neighbourhoods(conv, inputs), targets[0].unbind(1), strict=True):
            columns = torch.cat([neighbours, neighbours.new_ones(1, neighbours.shape[1])]).double()
            gram = gram + columns @ columns.T
            products = products + columns @ wanted.flatten(1).double().T
    weighted = ridge * gram.diagonal().mean() * torch.eye(len(gram), dtype=torch.float64)
    solution = torch.linalg.solve(gram + weighted, products).float()
    kernel, bias = conv.conv.weight, conv.conv.bias
    assert bias is not None
    kernel.zero_()
    bias.zero_()
    count = solution.shape[1]
    kernel[:count] = solution[:-1].T.reshape(count, KERNEL, kernel.shape[1], KERNEL, KERNEL).transpose(1, 2)
    bias[:count] = solution[-1]


def _neighbourhoods(conv: Conv, x: Tensor) -> Iterable[Tensor]:
    """Yields, for every frame, what the kernel sees at each pixel: (time x channel x row x column, pixels)."""
    first, last = x[:, :, :1], x[:, :, -1:]
    padded = torch.cat([first, first, x] if conv.causal else [first, x, last], dim=2)[0]
    for frame in range(x.shape[2]):
        three = padded[:, frame : frame + KERNEL].transpose(0, 1).flatten(0, 1)
        yield F.unfold(three[None], KERNEL, padding=KERNEL // 2)[0]
