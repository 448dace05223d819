"""Any file or folder of weights -> a checkpoint: has a reader per file format, and chooses the file of a folder."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from ltx_export.checkpoints.gguf import MAGIC, open_gguf
from ltx_runtime.errors import LtxError, explaining
from ltx_runtime.trust.pointers import refuse_pointer
from ltx_runtime.weights.checkpoint import INDEX_SUFFIX, Checkpoint, open_safetensors, open_shards

# File names, without suffix, that diffusers and transformers give the weights in a component's folder.
_STEMS = ("diffusion_pytorch_model", "model")
_SHARD = re.compile(r"-\d{5}-of-\d{5}")
_SHARD_OF_STEM = re.compile(rf"({'|'.join(_STEMS)})[.-].*-of-\d{{5}}.*\.safetensors")


def _open_gguf(path: Path) -> Checkpoint:
    gguf = open_gguf(path)
    return Checkpoint(path, gguf.tensors, metadata={"architecture": gguf.architecture, "config": gguf.config})


READERS: dict[str, Callable[[Path], Checkpoint]] = {
    ".safetensors": open_safetensors,
    ".json": open_shards,
    ".gguf": _open_gguf,
}


def kind_of(file: Path) -> str:
    """Returns the key in READERS of a file: its suffix, or if that is no key, the format that its first bytes show.

    Files in the hub's cache are named by their checksum, without a suffix, so that a resolved link has none either.

    Raises:
        LtxError: the file's format is unknown, or the file cannot be read.
    """
    suffix = file.suffix.lower()
    if suffix in READERS:
        return suffix
    refuse_pointer(file)
    with explaining(f"read {file}"), file.open("rb") as stream:
        start = stream.read(9)
    if start.startswith(MAGIC):
        return ".gguf"
    if start[4:] == bytes(4) + b"{":  # upper half of the 8-byte header length, then the JSON header
        return ".safetensors"
    suffixes = ", ".join(suffix for suffix in READERS if suffix != ".json")
    raise LtxError(
        f"{file} is not in a supported checkpoint format", f"give a {suffixes}, or the .json index of shards"
    )


def open_weights(path: Path, variant: str = "") -> Checkpoint:
    """Opens a weights file, an index of shards, or a component's folder that holds one of these.

    Args:
        path: a file, or a folder such as `transformer/` of a diffusers repository.
        variant: which weights of a folder to open, e.g. `bf16`; if empty, those without a variant, or the only ones.

    Raises:
        LtxError: the file does not exist, is of an unknown format, or is damaged.
    """
    file = weights_file(path, variant) if path.is_dir() else path
    return READERS[kind_of(file)](file)


def is_whole(path: Path) -> bool:
    """Returns whether a weights file, or any variant in a component's folder, can be opened and has tensors.

    Raises:
        LtxError: `path` is a folder that cannot be read.
    """
    files = [path]
    if path.is_dir():
        files = [file for variant_files in variants_in(path).values() for file in variant_files]
    for file in files:
        try:
            if open_weights(file).tensors:
                return True
        except LtxError:
            continue
    return False


def weights_file(folder: Path, variant: str = "") -> Path:
    """Returns the weights file in a component's folder, or the index of its shards.

    Raises:
        LtxError: the folder has no weights, none of this variant, several variants to choose from, one variant as
            two files, or shards without their index.
    """
    variants = variants_in(folder)
    for files in variants.values():
        if len(files) > 1:
            raise LtxError(f"{folder} holds both {files[0].name} and {files[1].name}", "keep one of them")
    if variant in variants:
        return variants[variant][0]
    names = ", ".join(files[0].name for files in variants.values())
    if variant and variants:
        raise LtxError(f"{folder} has no weights of variant {variant!r}, but {names}", "choose one, or name the file")
    if len(variants) == 1:
        return next(iter(variants.values()))[0]
    if variants:
        raise LtxError(f"{folder} holds {names}", "choose one with --variant")
    if has_shards(folder):
        raise LtxError(f"{folder} holds shards without their index", f"download the *{INDEX_SUFFIX}*.json too")
    raise LtxError(f"{folder} holds no {' or '.join(f'{stem}.safetensors' for stem in _STEMS)}", "check the path")


def variants_in(folder: Path) -> dict[str, list[Path]]:
    """Returns the weights files and indices of shards in a component's folder, by variant ("" for no variant).

    Raises:
        LtxError: the folder cannot be read.
    """
    variants: dict[str, list[Path]] = {}
    with explaining(f"read {folder}"):
        for path in sorted(folder.iterdir()):
            variant = _variant_of(path.name)
            if variant is not None:
                variants.setdefault(variant, []).append(path)
    return variants


def has_shards(folder: Path) -> bool:
    """Returns whether a folder holds shards of a component.

    Raises:
        LtxError: the folder cannot be read.
    """
    with explaining(f"read {folder}"):
        return any(_SHARD_OF_STEM.fullmatch(path.name) for path in folder.iterdir())


def _variant_of(name: str) -> str | None:
    """Returns the variant in a file name, or None for shards and other files.

    It is `bf16` in `model.bf16.safetensors` and in `model.safetensors.index.bf16.json`, and empty in
    `model.safetensors`.
    """
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
