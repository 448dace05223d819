"""Places the networks' weights where the graphs find them: linked into the version folder, left in place, or rewritten.

A file whose bytes can stay is hard-linked, or copied if it is on another file system. If one network in a file must be
rewritten, the file is not used at all: every source in it gets a file of its own. A source is a set of tensors that
several networks may share: the VAE's encoder and decoder have some tensors in common.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ltx_export.networks.parts import Part
from ltx_export.weights.rewrite import BlockWeight, Weight, must_be_rewritten, rewrite
from ltx_export.weights.streaming import place_file
from ltx_runtime.errors import LtxError
from ltx_runtime.progress import Progress
from ltx_runtime.weights.checkpoint import StoredTensor
from ltx_runtime.weights.lora import Lora

_SHARED_STEM = "checkpoint"


@dataclass(frozen=True)
class Placed:
    """Location of the weights of one network.

    Attributes:
        weights: stored weights by parameter name.
        names: names of the files as graphs refer to them, relative to `folder`.
        folder: folder that contains the files.
        linked: whether the files were left in place, so that `folder` is not the version folder.
    """

    weights: Mapping[str, Weight]
    names: Mapping[Path, str]
    folder: Path
    linked: bool = False


def place_weights(
    parts: Sequence[Part], folder: Path, store: str | None, loras: Sequence[Lora], link: bool, progress: Progress
) -> list[Placed]:
    """Places the weights of all parts.

    Args:
        parts: the networks.
        folder: the version folder.
        store: F32, F16 or BF16 for all weights; None keeps the dtypes that graphs can use.
        loras: merged into the transformer.
        link: whether files that need no rewriting are left where they are.
        progress: shows what is copied or rewritten.

    Returns:
        One entry for each part, in the same order.

    Raises:
        LtxError: the disk is full, weights cannot be rewritten, or files cannot be linked because of where they are.
    """
    sources = _sources(parts)
    changes = {source.name: loras if source.name == "transformer" else () for source in sources}
    unusable_files = {
        file
        for source in sources
        if must_be_rewritten(source.tensors, store, changes[source.name])
        for file in source.files
    }
    names: dict[Path, str] = {}
    placed: dict[str, Placed] = {}
    shared_files = _shared_files(sources)
    for source in sources:
        if unusable_files & set(source.files):
            placed[source.name] = _rewritten(source, folder, store, changes[source.name], progress)
        elif link:
            placed[source.name] = _linked(source)
        else:
            files = shared_files if set(shared_files) & set(source.files) else source.files
            for file, name in _names_of(_SHARED_STEM if files is shared_files else source.name, files).items():
                if file in source.files and file not in names:
                    names[file] = name
                    place_file(file, folder / name, progress)
            placed[source.name] = Placed(source.tensors, {file: names[file] for file in source.files}, folder)
    _refuse_namesakes([*placed.values()])
    return [_placed_part(placed[part.source], part) for part in parts]


@dataclass(frozen=True)
class _Source:
    """The weights of all networks of one source, each tensor once."""

    name: str
    tensors: Mapping[str, StoredTensor]
    tables: frozenset[str]

    @property
    def files(self) -> list[Path]:
        return sorted({tensor.file for tensor in self.tensors.values()})


def _sources(parts: Sequence[Part]) -> list[_Source]:
    tensors: dict[str, dict[str, StoredTensor]] = {}
    tables: dict[str, frozenset[str]] = {}
    for part in parts:
        tensors.setdefault(part.source, {}).update(part.tensors)
        tables[part.source] = tables.get(part.source, frozenset()) | part.tables
    return [_Source(name, tensors[name], tables[name]) for name in tensors]


def _placed_part(place: Placed, part: Part) -> Placed:
    """Returns the location of those weights of a source that belong to one network."""
    weights = {name: place.weights[name] for name in part.tensors}
    files = {(weight.codes if isinstance(weight, BlockWeight) else weight).file for weight in weights.values()}
    return replace(place, weights=weights, names={file: place.names[file] for file in place.names if file in files})


def _rewritten(source: _Source, folder: Path, store: str | None, loras: Sequence[Lora], progress: Progress) -> Placed:
    path = folder / f"{source.name}.safetensors"
    weights = rewrite(source.tensors, path, tables=source.tables, store=store, loras=loras, progress=progress)
    return Placed(weights, {path: path.name}, folder)


def _linked(source: _Source) -> Placed:
    """Leaves a source's files in place; their names include their folder, as a diffusers layout repeats file names."""
    resolved = {file: file.resolve() for file in source.files}
    folder = resolved[source.files[0]].parent.parent
    strays = [place for place in resolved.values() if not place.is_relative_to(folder)]
    if strays:
        raise LtxError(
            f"{strays[0]} is outside {folder}, which holds the other shards, so it cannot be linked",
            "leave --link out",
        )
    names = {file: place.relative_to(folder).as_posix() for file, place in resolved.items()}
    return Placed(source.tensors, names, folder, linked=True)


def _shared_files(sources: Sequence[_Source]) -> list[Path]:
    """Returns the files of all sources that share a file with another source."""
    sets = {source.name: set(source.files) for source in sources}
    return sorted({file for a in sets for b in sets if a != b and sets[a] & sets[b] for file in sets[a] | sets[b]})


def _names_of(stem: str, files: Sequence[Path]) -> dict[Path, str]:
    """Returns file names for the version folder: the stem, with the shard's number if there are several files."""
    if len(files) == 1:
        return {files[0]: f"{stem}{files[0].suffix}"}
    return {file: f"{stem}-{i:05d}-of-{len(files):05d}{file.suffix}" for i, file in enumerate(files, start=1)}


def _refuse_namesakes(placed: Sequence[Placed]) -> None:
    places: dict[str, Path] = {}
    for place in placed:
        for name in place.names.values():
            if places.setdefault(name, place.folder) != place.folder:
                raise LtxError(
                    f"{places[name] / name} and {place.folder / name} have the same name, so they cannot be linked",
                    "leave --link out",
                )
