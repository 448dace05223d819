"""Any file or folder of weights -> a checkpoint: READERS by kind of file, and which file of a folder is meant."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from ltx_export.checkpoint import INDEX_SUFFIX, Checkpoint, open_safetensors, open_shards
from ltx_export.gguf import open_gguf
from ltx_runtime.errors import LtxError

# Names that diffusers and transformers give the weights of a component's folder.
_STEMS = ("diffusion_pytorch_model", "model")
_SHARD = re.compile(r"-\d{5}-of-\d{5}")


def _open_gguf(path: Path) -> Checkpoint:
    file = open_gguf(path)
    return Checkpoint(path, file.tensors, metadata={"architecture": file.architecture})


READERS: dict[str, Callable[[Path], Checkpoint]] = {
    ".safetensors": open_safetensors,
    ".json": open_shards,
    ".gguf": _open_gguf,
}


def open_weights(path: Path, variant: str = "") -> Checkpoint:
    """Opens a file of weights, the index of shards, or the one of them that a component's folder holds.

    Args:
        path: a file, or a folder such as `transformer/` of a diffusers repository.
        variant: which weights of a folder to take, e.g. `bf16`; the plain ones, or the only ones, if empty.

    Raises:
        LtxError: it does not exist, is of no known kind, or is damaged.
    """
    file = weights_file(path, variant) if path.is_dir() else path
    reader = READERS.get(file.suffix.lower())
    if reader is None:
        known = ", ".join(suffix for suffix in READERS if suffix != ".json")
        raise LtxError(f"{file} is no kind of checkpoint that is read - give a {known}, or the .json index of shards")
    return reader(file)


def weights_file(folder: Path, variant: str = "") -> Path:
    """The file of weights in a component's folder, or the index of its shards.

    Raises:
        LtxError: there is none, none of the variant, or several and none is the plain one.
    """
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        of = _variant_of(path.name)
        if of is not None and found.setdefault(of, path) != path:
            raise LtxError(f"{folder} holds both {found[of].name} and {path.name} - keep one of them")
    if variant in found:
        return found[variant]
    names = ", ".join(path.name for path in found.values())
    if variant and found:
        raise LtxError(f"{folder} has no weights of variant {variant!r}, but {names} - choose one, or name the file")
    if len(found) == 1:
        return next(iter(found.values()))
    if found:
        raise LtxError(f"{folder} holds {names} - choose one with --variant")
    raise LtxError(f"{folder} holds no {' or '.join(f'{stem}.safetensors' for stem in _STEMS)} - check the path")


def _variant_of(name: str) -> str | None:
    """`model.bf16.safetensors` or `model.safetensors.index.bf16.json` -> bf16; None for shards and other files."""
    for stem in _STEMS:
        if not name.startswith(f"{stem}."):
            continue
        rest = name.removeprefix(stem)
        if INDEX_SUFFIX in rest and rest.endswith(".json"):
            before, after = rest.removesuffix(".json").split(INDEX_SUFFIX, 1)
            return (before + after).strip(".")
        if rest.endswith(".safetensors") and not _SHARD.search(rest):
            return rest.removesuffix(".safetensors").strip(".")
    return None
