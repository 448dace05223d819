"""LoRAs merged into the weights of a graph when it is loaded; merged weights are kept in the cache for the next time.

Merging is that of an export with the same LoRAs: in float32, then rounded to the dtype in which the weight is stored.
Only the weights that a LoRA changes are kept, in a file of their own; the version folder stays as it is.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ltx_runtime.errors import LtxError, explaining
from ltx_runtime.files import cache_folder, check_space, prune
from ltx_runtime.folder.manifest import checksum
from ltx_runtime.weights.checkpoint import StoredTensor, open_safetensors
from ltx_runtime.weights.floats import FLOAT_DTYPES, Bytes, read_floats, stored_as
from ltx_runtime.weights.graph import weights_of
from ltx_runtime.weights.lora import Lora, LoraFile, files_of, merge, open_lora
from ltx_runtime.weights.writing import Chunk, Entry, write_safetensors

LARGEST_BYTES = 30_000_000_000  # all files of merged weights together: one of a 13B transformer, or eight of a 2B
_RULE = 1  # changes whenever the same files would be merged to other numbers
_FOLDER = "loras"


@dataclass(frozen=True)
class Weight:
    """A weight as a graph takes it.

    Attributes:
        raw: its bytes (length,) in C order.
        dtype: one of FLOAT_DTYPES.
        shape: its shape.
    """

    raw: Bytes
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Merging:
    """LoRAs that are merged into a graph's weights; nothing is merged yet.

    Attributes:
        key: identifies the merged weights: the files, scales and alphas from which they are made.
        changed: the graph's own weights that a LoRA changes, by name.
        loras: the LoRAs, in the order in which they are merged.
        sources: checksum of each file of the LoRAs.
    """

    key: str
    changed: Mapping[str, StoredTensor] = field(compare=False)
    loras: tuple[Lora, ...] = field(compare=False)
    sources: Mapping[Path, str] = field(compare=False)

    @property
    def size_bytes(self) -> int:
        """Size of the merged weights."""
        return sum(tensor.length for tensor in self.changed.values())

    @property
    def path(self) -> Path | None:
        """The file in the cache for the merged weights; None if there is no cache."""
        folder = cache_folder()
        return None if folder is None else folder / _FOLDER / f"{self.key}.safetensors"

    @property
    def is_kept(self) -> bool:
        """Whether the merged weights are in the cache."""
        return self.path is not None and self.path.is_file()


def merging_of(graph: Path, folder: Path, checksums: Sequence[str], files: Sequence[LoraFile]) -> Merging:
    """Opens LoRAs for a graph, and checks that they fit its weights; reads headers and alphas only.

    Args:
        graph: path of the graph.
        folder: folder of its weight files.
        checksums: checksums of its weight files.
        files: the LoRAs and their scales.

    Raises:
        LtxError: a LoRA cannot be read, or was made for other weights; or the graph's weights are not floats.
    """
    weights = weights_of(graph, folder)
    if any(tensor.dtype not in FLOAT_DTYPES for tensor in weights.values()):
        raise LtxError(
            f"the weights of {graph.name} are integers, into which no LoRA can be merged",
            "export the version again with --lora",
        )
    shapes = {name: tensor.shape for name, tensor in weights.items()}
    loras = tuple(open_lora(one.file, one.scale, shapes) for one in files)
    changed = {name: tensor for name, tensor in weights.items() if any(lora.changes(name) for lora in loras)}
    sources = {file: checksum(file) for lora in loras for file in files_of(lora.file)}
    described = [
        ([sources[file] for file in files_of(lora.file)], lora.scale, [pair.factor for pair in lora.pairs.values()])
        for lora in loras
    ]
    key = hashlib.sha256(repr((_RULE, [*checksums], described)).encode()).hexdigest()
    return Merging(key, changed, loras, sources)


def check_room(merging: Merging) -> None:
    """Raises LtxError if the disk of the cache has no room for merged weights that are not there yet."""
    if merging.path is None or merging.is_kept:
        return
    folder = next(parent for parent in merging.path.parents if parent.is_dir())
    try:
        check_space(folder, merging.size_bytes)
    except LtxError as error:
        raise LtxError(error.problem, "free some space, or name another folder in LTX_CACHE") from None


def merged(merging: Merging) -> dict[str, Weight]:
    """Returns the merged weights by name: mapped from the cache, where they are written first if need be.

    Without a cache, they are in memory.

    Raises:
        LtxError: a LoRA is no longer the file that was opened or has values that are not finite, a merged value exceeds
            the range of fp16, or the disk is full.
    """
    path = merging.path
    if path is None:
        _refuse_changed(merging)
        return {
            name: Weight(_merged(name, tensor, merging.loras), tensor.dtype, tensor.shape)
            for name, tensor in merging.changed.items()
        }
    stored = _kept(path, merging)
    if stored is None:
        _refuse_changed(merging)
        with explaining(f"write {path}"):
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        prune(path.parent, LARGEST_BYTES - merging.size_bytes)
        groups = [
            ((Entry(name, tensor.dtype, tensor.shape),), lambda name=name: _chunks(name, merging))
            for name, tensor in merging.changed.items()
        ]
        stored = write_safetensors(path, groups)
    return {name: Weight(tensor.mapped(), tensor.dtype, tensor.shape) for name, tensor in stored.items()}


def _refuse_changed(merging: Merging) -> None:
    """Raises LtxError if a LoRA is no longer the file from which the key was made."""
    for file, digest in merging.sources.items():
        if not file.is_file() or checksum(file) != digest:
            raise LtxError(f"{file} has changed since the video was planned", "start again")


def _kept(path: Path, merging: Merging) -> dict[str, StoredTensor] | None:
    """Returns the merged weights in the cache; None if they are not there, or are damaged."""
    if not path.is_file():
        return None
    with suppress(LtxError, OSError):
        stored = open_safetensors(path).tensors
        expected = {name: (tensor.dtype, tensor.shape) for name, tensor in merging.changed.items()}
        if {name: (tensor.dtype, tensor.shape) for name, tensor in stored.items()} == expected:
            os.utime(path)  # it was used now: the oldest are removed first
            return stored
    return None


def _chunks(name: str, merging: Merging) -> Iterator[Chunk]:
    yield _merged(name, merging.changed[name], merging.loras).data


def _merged(name: str, tensor: StoredTensor, loras: Sequence[Lora]) -> Bytes:
    weight = np.array(read_floats(tensor))  # a writable copy
    merge(weight, name, loras)
    return stored_as(weight, tensor.dtype, name)
