"""Reads the golden files of `tests/golden` with numpy alone, so that the runtime's tests need no other library."""

import json
import math
from pathlib import Path

import numpy as np

_DTYPES = {"F32": "<f4", "I64": "<i8"}


def golden(name: str) -> dict[str, np.ndarray]:
    """Returns every tensor of tests/golden/<name>.safetensors."""
    raw = (Path(__file__).parents[1] / "golden" / f"{name}.safetensors").read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8:start])
    header.pop("__metadata__", None)
    return {
        key: np.frombuffer(
            raw, _DTYPES[entry["dtype"]], math.prod(entry["shape"]), start + entry["data_offsets"][0]
        ).reshape(entry["shape"])
        for key, entry in header.items()
    }
