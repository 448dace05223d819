"""The networks' weights -> where the graphs find them: linked into the version folder, left where they are, or
rewritten.

A file whose bytes can stay is hard-linked, so that nothing is copied, or copied across file systems. A file of which
one network must be rewritten is not kept at all: every source in it gets a file of its own. A source is what several
networks may share: the VAE's encoder and decoder have some tensors in common.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ltx_export.checkpoints.checkpoint import StoredTensor
from ltx_export.checkpoints.lora import Lora
from ltx_export.networks.parts import Part
from ltx_export.weights.rewrite import BlockWeight, Weight, must_be_rewritten, rewrite
from ltx_export.weights.streaming import copy_file
from ltx_runtime.errors import LtxError
from ltx_runtime.progress import Progress

_SHARED = "checkpoint"


@dataclass(frozen=True)
class Placed:
    """One network's weights in their place.

    Attributes:
        weights: by parameter name.
        names: of the files, as graphs call them, relative to `folder`.
        folder: that the files are in.
        linked: whether that is not the version folder.
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
        folder: of the version.
        store: see `rewrite`.
        loras: merged into the transformer.
        link: leave files that need no rewriting where they are.
        progress: shows what is copied or rewritten.

    Raises:
        LtxError: the disk is full, or two linked files have one name.
    """
    sources = _sources(parts)
    changes = {source.name: loras if source.name == "transformer" else () for source in sources}
    spoilt = {
        file
        for source in sources
        if must_be_rewritten(source.tensors, store, changes[source.name])
        for file in source.files
    }
    names: dict[Path, str] = {}
    placed: dict[str, Placed] = {}
    shared = _shared(sources)
    for source in sources:
        if spoilt & set(source.files):
            placed[source.name] = _rewritten(source, folder, store, changes[source.name], progress)
        elif link:
            placed[source.name] = _linked(source)
        else:
            kept = shared if set(shared) & set(source.files) else source.files
            for file, name in _names_of(_SHARED if kept is shared else source.name, kept).items():
                if file in source.files and file not in names:
                    names[file] = name
                    place_file(file, folder / name, progress)
            placed[source.name] = Placed(source.tensors, {file: names[file] for file in source.files}, folder)
    _refuse_namesakes([*placed.values()])
    return [_own(placed[part.source], part) for part in parts]


@dataclass(frozen=True)
class _Source:
    """The weights of all networks of one source, each once."""

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


def _own(place: Placed, part: Part) -> Placed:
    """The weights of a source that belong to one network."""
    weights = {name: place.weights[name] for name in part.tensors}
    files = {(one.codes if isinstance(one, BlockWeight) else one).file for one in weights.values()}
    return replace(place, weights=weights, names={file: place.names[file] for file in place.names if file in files})


def _rewritten(source: _Source, folder: Path, store: str | None, loras: Sequence[Lora], progress: Progress) -> Placed:
    path = folder / f"{source.name}.safetensors"
    weights = rewrite(source.tensors, path, tables=source.tables, store=store, loras=loras, progress=progress)
    return Placed(weights, {path: path.name}, folder)


def _linked(source: _Source) -> Placed:
    """Named with the folder they are in: in diffusers' layout all networks' files are called the same."""
    resolved = {file: file.resolve() for file in source.files}
    folder = resolved[source.files[0]].parent.parent
    strays = [place for place in resolved.values() if not place.is_relative_to(folder)]
    if strays:
        raise LtxError(
            f"{strays[0]} is not beside the other shards in {folder}, so it cannot be linked", "leave --link out"
        )
    names = {file: place.relative_to(folder).as_posix() for file, place in resolved.items()}
    return Placed(source.tensors, names, folder, linked=True)


def _shared(sources: Sequence[_Source]) -> list[Path]:
    """The files of all sources that have one in common with another."""
    of = {source.name: set(source.files) for source in sources}
    return sorted({file for a in of for b in of if a != b and of[a] & of[b] for file in of[a] | of[b]})


def _names_of(stem: str, files: Sequence[Path]) -> dict[Path, str]:
    """Names in the version folder: by the source, or what is shared, and by the place among its shards."""
    if len(files) == 1:
        return {files[0]: f"{stem}{files[0].suffix}"}
    return {file: f"{stem}-{i:05d}-of-{len(files):05d}{file.suffix}" for i, file in enumerate(files, start=1)}


def _refuse_namesakes(placed: Sequence[Placed]) -> None:
    places: dict[str, Path] = {}
    for place in placed:
        for name in place.names.values():
            if places.setdefault(name, place.folder) != place.folder:
                raise LtxError(
                    f"{places[name] / name} and {place.folder / name} have one name, so they cannot be linked",
                    "leave --link out",
                )


def place_file(source: Path, target: Path, progress: Progress) -> None:
    """A hard link where the file system allows one, so that nothing is copied; else a copy.

    Raises:
        LtxError: the disk is full.
    """
    try:
        os.link(source.resolve(), target)
    except FileExistsError:
        raise  # writing into it could be writing into a checkpoint that it is a link to
    except OSError:
        copy_file(source, target, progress)
