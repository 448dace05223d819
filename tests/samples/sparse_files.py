"""Files of weights of which only the header is there: names and shapes of whole releases, in no space on the disk."""

from collections.abc import Collection
from pathlib import Path

from ltx_export.checkpoints.checkpoint import open_safetensors
from ltx_export.weights.streaming import Entry, write_safetensors


def holes(path: Path, shapes: dict, dtype: str = "BF16", metadata=None, fp8: Collection[str] = ()) -> Path:
    """A safetensors file of zeros; `fp8` are the names that are stored so."""
    path.parent.mkdir(parents=True, exist_ok=True)
    entries = [Entry(name, "F8_E4M3" if name in fp8 else dtype, shape) for name, shape in shapes.items()]
    write_safetensors(path, [((entry,), None) for entry in entries], metadata)
    return path


def shapes_in(path: Path, prefix: str = "") -> dict:
    """Shapes of what begins with a prefix, by name without it."""
    found = open_safetensors(path).tensors
    return {name.removeprefix(prefix): one.shape for name, one in found.items() if name.startswith(prefix)}


def upscaler(path: Path, unfolded: int = 4) -> Path:
    """What an upscaler is known by: each place becomes `unfolded` places."""
    return holes(path, {"initial_conv.weight": (64, 128, 3, 3, 3), "upsampler.0.weight": (64 * unfolded, 64, 3, 3)})
