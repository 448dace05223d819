"""Weight files with nothing but a header: names and shapes of whole releases, which take no disk space."""

from collections.abc import Collection
from pathlib import Path

from ltx_runtime.weights.checkpoint import open_safetensors
from ltx_runtime.weights.writing import Entry, write_safetensors


def holes(path: Path, shapes: dict, dtype: str = "BF16", metadata=None, fp8: Collection[str] = ()) -> Path:
    """Writes a sparse safetensors file of zeros; tensors named in `fp8` are stored as fp8."""
    path.parent.mkdir(parents=True, exist_ok=True)
    entries = [Entry(name, "F8_E4M3" if name in fp8 else dtype, shape) for name, shape in shapes.items()]
    write_safetensors(path, [((entry,), None) for entry in entries], metadata)
    return path


def shapes_in(path: Path, prefix: str = "") -> dict:
    """Returns the shapes of the tensors whose names begin with a prefix, by name without it."""
    found = open_safetensors(path).tensors
    return {name.removeprefix(prefix): one.shape for name, one in found.items() if name.startswith(prefix)}


def upscaler(path: Path, unfolded: int = 4) -> Path:
    """Writes the tensors that identify an upscaler, which turns each position into `unfolded` positions."""
    return holes(path, {"initial_conv.weight": (64, 128, 3, 3, 3), "upsampler.0.weight": (64 * unfolded, 64, 3, 3)})
