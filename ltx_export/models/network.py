"""A network to export: its ports, and its module, which is built without allocating memory for parameters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from ltx_runtime.spec.components import Component

# Largest number of repeated blocks that are traced: the first, which may own parameters that all blocks use, two that
# are compared with each other, and the last, from which no other block takes a value.
TRACED_BLOCKS = 4


def build_empty(make: Callable[[], nn.Module], dtype: torch.dtype) -> nn.Module:
    """Builds a module in eval mode with parameters of `dtype` on the meta device; constants on the CPU stay real."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device("meta"):
            return make().eval().requires_grad_(False)
    finally:
        torch.set_default_dtype(default)


@dataclass(frozen=True)
class Network:
    """The module and ports of a graph, both as functions of the number of repeated blocks.

    Attributes:
        component: returns the ports of a network with the given number of blocks.
        make: builds the module with the given number of blocks; its forward takes the component's input ports in order.
        blocks: number of repeated blocks in the whole network.
        path: path of the blocks' module list; empty if no blocks are repeated, and `blocks` is then 1.
    """

    component: Callable[[int], Component]
    make: Callable[[int], nn.Module]
    blocks: int = 1
    path: str = ""

    @property
    def traced_blocks(self) -> int:
        """Number of blocks that are traced: all, or TRACED_BLOCKS if there are more."""
        return min(self.blocks, TRACED_BLOCKS)
