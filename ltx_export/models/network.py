"""A network to export: a module and its ports, built without memory for its parameters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from ltx_runtime.spec.components import Component

# The most repeated blocks that are traced: a first one, which may own what all use, two to compare, and a last one,
# of which nothing is taken on.
TRACED_BLOCKS = 4


def build_empty(make: Callable[[], nn.Module], dtype: torch.dtype) -> nn.Module:
    """The module with parameters of `dtype` on the meta device and real constants."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device("meta"):
            return make().eval().requires_grad_(False)
    finally:
        torch.set_default_dtype(default)


@dataclass(frozen=True)
class Network:
    """What a graph is made of: a module and its ports, both by their number of repeated blocks.

    Attributes:
        component: the ports of a network of so many blocks.
        make: builds the module; its forward takes the component's input ports in order.
        blocks: how many repeated blocks it has.
        path: of their module list; empty if no block is repeated in a row, `blocks` being 1.
    """

    component: Callable[[int], Component]
    make: Callable[[int], nn.Module]
    blocks: int = 1
    path: str = ""

    @property
    def traced_blocks(self) -> int:
        """The most blocks that are traced."""
        return min(self.blocks, TRACED_BLOCKS)
