"""The networks' weights -> where the graphs find them: linked into the version folder, left where they are, or
rewritten.

A file whose bytes can stay is hard-linked, so that nothing is copied, or copied across file systems. A file of which
one network must be rewritten is not kept at all: every network in it gets a file of its own.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ltx_export.lora import Lora
from ltx_export.networks import Part
from ltx_export.rewrite import Weight, must_be_rewritten, rewrite
from ltx_export.streaming import Progress, copy_file
from ltx_runtime.errors import LtxError

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
    changes = [loras if part.source == "transformer" else () for part in parts]
    rewritten = [must_be_rewritten(part.tensors, store, merged) for part, merged in zip(parts, changes, strict=True)]
    spoilt = {
        tensor.file for part, yes in zip(parts, rewritten, strict=True) if yes for tensor in part.tensors.values()
    }
    names: dict[Path, str] = {}
    placed = []
    shared = _shared(parts)
    for part, merged in zip(parts, changes, strict=True):
        files = _files(part)
        if spoilt & set(files):
            placed.append(_rewritten(part, folder, store, merged, progress))
        elif link:
            placed.append(_linked(part, files))
        else:
            kept = shared if set(shared) & set(files) else files
            for source, name in _names_of(_SHARED if kept is shared else part.source, kept).items():
                if source in files and source not in names:
                    names[source] = name
                    place_file(source, folder / name, progress)
            placed.append(Placed(part.tensors, {source: names[source] for source in files}, folder))
    _refuse_namesakes(placed)
    return placed


def _files(part: Part) -> list[Path]:
    return sorted({tensor.file for tensor in part.tensors.values()})


def _rewritten(part: Part, folder: Path, store: str | None, loras: Sequence[Lora], progress: Progress) -> Placed:
    path = folder / f"{part.source}.safetensors"
    weights = rewrite(part.tensors, path, tables=part.tables, store=store, loras=loras, progress=progress)
    return Placed(weights, {path: path.name}, folder)


def _linked(part: Part, files: Sequence[Path]) -> Placed:
    """Named with the folder they are in: in diffusers' layout all networks' files are called the same."""
    resolved = {file: file.resolve() for file in files}
    folder = resolved[files[0]].parent.parent
    strays = [place for place in resolved.values() if not place.is_relative_to(folder)]
    if strays:
        raise LtxError(
            f"{strays[0]} is not beside the other shards in {folder}, so it cannot be linked - leave --link out"
        )
    names = {file: place.relative_to(folder).as_posix() for file, place in resolved.items()}
    return Placed(part.tensors, names, folder, linked=True)


def _shared(parts: Sequence[Part]) -> list[Path]:
    """The files of all networks that have one in common with another."""
    of = {part.source: set(_files(part)) for part in parts}
    return sorted({file for a in of for b in of if a != b and of[a] & of[b] for file in of[a] | of[b]})


def _names_of(stem: str, files: Sequence[Path]) -> dict[Path, str]:
    """Names in the version folder: by the network, or what is shared, and by the place among its shards."""
    if len(files) == 1:
        return {files[0]: f"{stem}{files[0].suffix}"}
    return {file: f"{stem}-{i:05d}-of-{len(files):05d}{file.suffix}" for i, file in enumerate(files, start=1)}


def _refuse_namesakes(placed: Sequence[Placed]) -> None:
    places: dict[str, Path] = {}
    for place in placed:
        for name in place.names.values():
            if places.setdefault(name, place.folder) != place.folder:
                raise LtxError(
                    f"{places[name] / name} and {place.folder / name} have one name, so they cannot be linked - "
                    "leave --link out"
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
