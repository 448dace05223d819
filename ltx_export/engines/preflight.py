"""Checks that disk and memory suffice for all requested engines, before the first build begins.

The needs are estimated from measured builds; this module knows nothing about TensorRT.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from ltx_export.engines.graph import Prepared
from ltx_runtime.errors import LtxError
from ltx_runtime.files import amount
from ltx_runtime.folder.sidecar import Weights
from ltx_runtime.sessions.processor import free_memory

# Kernels take 15 to 44 kB per node and profile in TensorRT-RTX 1.7 engines of the demo version.
_CODE_BYTES = 48_000
# Private memory of builds: 6.9 GB for 3.8 GB of embedded weights, and 16.3 GB for 9.5 GB. With the weights of 48 layers
# as inputs, it was 1.5 GB in all.
_MEMORY_FACTOR = 1.65
_FIXED_BYTES = 1_000_000_000


def engine_bytes(prepared: Prepared, weights: Weights, profiles: int) -> int:
    """Returns the largest expected size of an engine in bytes."""
    code = _CODE_BYTES * prepared.nodes * profiles
    return code + (prepared.weights_bytes if weights == "embedded" else 0)


def check_disk(folder: Path, needed_bytes: int) -> None:
    """Raises LtxError if fewer than `needed_bytes` are free on the disk of an existing folder."""
    free = shutil.disk_usage(folder).free
    if free < needed_bytes:
        raise LtxError(
            f"engines in {folder} may take {amount(needed_bytes, 1)}, and its disk has {amount(free, 1)} free",
            "add --weights inputs, or move the version folder to another disk",
        )


def check_memory(prepared: Sequence[tuple[str, Prepared, Weights]]) -> None:
    """Raises LtxError if a build, given with its component's name, needs more memory than is free."""
    for name, graph, weights in prepared:
        if weights != "inputs" and not is_enough(graph.weights_bytes):
            raise LtxError(
                f"building {name} with its weights in the engine takes {amount(_needed(graph.weights_bytes), 1)} of "
                f"memory, and {amount(free_memory(), 1)} are free",
                "add --weights inputs, or close other programs",
            )


def is_enough(weights_bytes: int) -> bool:
    """Returns whether memory suffices to build an engine that contains these weights."""
    return _needed(weights_bytes) <= free_memory()


def _needed(weights_bytes: int) -> int:
    return _FIXED_BYTES + int(_MEMORY_FACTOR * weights_bytes)
