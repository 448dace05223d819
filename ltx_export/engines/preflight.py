"""Whether disk and memory suffice for the engines that are to be built, before the first of them is begun.

Knows nothing of TensorRT: its needs are what was measured of it.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from ltx_export.engines.graph import Prepared
from ltx_runtime.errors import LtxError
from ltx_runtime.files import amount
from ltx_runtime.folder.sidecar import Weights

MEMINFO = Path("/proc/meminfo")
# Kernels of a node for each profile: 15 to 44 kB in engines of TensorRT-RTX 1.7 for the demo version.
_CODE_BYTES = 48_000
# Embedding 3.8 GB of weights took 6.9 GB of private memory, 9.5 GB took 16.3; as inputs, those of 48 layers 1.5 in all.
_PRIVATE = 1.65
_ALWAYS_BYTES = 1_000_000_000


def engine_bytes(prepared: Prepared, weights: Weights, profiles: int) -> int:
    """The size that an engine is expected to have at most."""
    code = _CODE_BYTES * prepared.nodes * profiles
    return code + (prepared.weights_bytes if weights == "embedded" else 0)


def check_disk(folder: Path, needed_bytes: int) -> None:
    """Raises LtxError if the disk of an existing folder has too little room."""
    free = shutil.disk_usage(folder).free
    if free < needed_bytes:
        raise LtxError(
            f"engines in {folder} may take {amount(needed_bytes, 1)}, and its disk has {amount(free, 1)} free",
            "add --weights inputs, or move the version folder to another disk",
        )


def check_memory(prepared: Sequence[tuple[str, Prepared, Weights]]) -> None:
    """Raises LtxError if a build, each named by its component, needs more memory than there is; if that is known."""
    for name, one, weights in prepared:
        if weights != "inputs" and not is_enough(one.weights_bytes):
            raise LtxError(
                f"building {name} with its weights in the engine takes {amount(_needed(one.weights_bytes), 1)} of "
                f"memory, and {amount(available_bytes() or 0, 1)} are free",
                "add --weights inputs, or close other programs",
            )


def is_enough(weights_bytes: int) -> bool:
    """Whether there is memory to build an engine with so many bytes of weights in it; true where that is unknown."""
    available = available_bytes()
    return available is None or _needed(weights_bytes) <= available


def _needed(weights_bytes: int) -> int:
    return _ALWAYS_BYTES + int(_PRIVATE * weights_bytes)


def available_bytes() -> int | None:
    """Memory that programs can still have; None where the system does not tell."""
    try:
        rows = dict(line.split(":", 1) for line in MEMINFO.read_text().splitlines())
        return 1024 * int(rows["MemAvailable"].split()[0])
    except (OSError, ValueError, KeyError, IndexError):
        return None
