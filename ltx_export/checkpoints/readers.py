"""Any file or folder of weights -> a checkpoint: READERS by kind of file, and which file of a folder is meant."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from ltx_export.checkpoints.checkpoint import INDEX_SUFFIX, Checkpoint, open_safetensors, open_shards
from ltx_export.checkpoints.gguf import MAGIC, open_gguf
from ltx_runtime.errors import LtxError, explaining

# Names that diffusers and transformers give the weights of a component's folder.
_STEMS = ("diffusion_pytorch_model", "model")
_SHARD = re.compile(r"-\d{5}-of-\d{5}")
_SHARD_OF_STEM = re.compile(rf"({'|'.join(_STEMS)})[.-].*-of-\d{{5}}.*\.safetensors")


def _open_gguf(path: Path) -> Checkpoint:
    file = open_gguf(path)
    return Checkpoint(path, file.tensors, metadata={"architecture": file.architecture, "config": file.config})


READERS: dict[str, Callable[[Path], Checkpoint]] = {
    ".safetensors": open_safetensors,
    ".json": open_shards,
    ".gguf": _open_gguf,
}


def kind_of(file: Path) -> str:
    """The key in READERS of a file: its suffix, or what its first bytes tell where that is another.

    A link into the hub's cache, once it is followed, leads to a file that is called by its checksum.

    Raises:
        LtxError: it is of no known kind, or cannot be read.
    """
    suffix = file.suffix.lower()
    if suffix in READERS:
        return suffix
    with explaining(f"read {file}"), file.open("rb") as opened:
        start = opened.read(9)
    if start.startswith(MAGIC):
        return ".gguf"
    if start[4:] == bytes(4) + b"{":  # a header behind its length, eight bytes of which the last are zero
        return ".safetensors"
    known = ", ".join(suffix for suffix in READERS if suffix != ".json")
    raise LtxError(f"{file} is no kind of checkpoint that is read", f"give a {known}, or the .json index of shards")


def open_weights(path: Path, variant: str = "") -> Checkpoint:
    """Opens a file of weights, the index of shards, or the one of them that a component's folder holds.

    Args:
        path: a file, or a folder such as `transformer/` of a diffusers repository.
        variant: which weights of a folder to take, e.g. `bf16`; the plain ones, or the only ones, if empty.

    Raises:
        LtxError: it does not exist, is of no known kind, or is damaged.
    """
    file = weights_file(path, variant) if path.is_dir() else path
    return READERS[kind_of(file)](file)


def is_whole(path: Path) -> bool:
    """Whether a file of weights can be opened and has tensors; of a component's folder, any of its variants.

    Raises:
        LtxError: it is a folder that cannot be read.
    """
    files = [path]
    if path.is_dir():
        files = [file for found in variants_in(path).values() for file in found]
    for file in files:
        try:
            if open_weights(file).tensors:
                return True
        except LtxError:
            continue
    return False


def weights_file(folder: Path, variant: str = "") -> Path:
    """The file of weights in a component's folder, or the index of its shards.

    Raises:
        LtxError: there is none, none of the variant, or several and none is the plain one; or shards lack their index.
    """
    found = variants_in(folder)
    for files in found.values():
        if len(files) > 1:
            raise LtxError(f"{folder} holds both {files[0].name} and {files[1].name}", "keep one of them")
    if variant in found:
        return found[variant][0]
    names = ", ".join(files[0].name for files in found.values())
    if variant and found:
        raise LtxError(f"{folder} has no weights of variant {variant!r}, but {names}", "choose one, or name the file")
    if len(found) == 1:
        return next(iter(found.values()))[0]
    if found:
        raise LtxError(f"{folder} holds {names}", "choose one with --variant")
    if has_shards(folder):
        raise LtxError(f"{folder} holds shards without their index", f"download the *{INDEX_SUFFIX}*.json too")
    raise LtxError(f"{folder} holds no {' or '.join(f'{stem}.safetensors' for stem in _STEMS)}", "check the path")


def variants_in(folder: Path) -> dict[str, list[Path]]:
    """Files of weights and indices of shards in a component's folder, by variant; one that is there twice is too many.

    Raises:
        LtxError: the folder cannot be read.
    """
    found: dict[str, list[Path]] = {}
    with explaining(f"read {folder}"):
        for path in sorted(folder.iterdir()):
            variant = _variant_of(path.name)
            if variant is not None:
                found.setdefault(variant, []).append(path)
    return found


def has_shards(folder: Path) -> bool:
    """Whether a folder holds shards of a component.

    Raises:
        LtxError: the folder cannot be read.
    """
    with explaining(f"read {folder}"):
        return any(_SHARD_OF_STEM.fullmatch(path.name) for path in folder.iterdir())


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
