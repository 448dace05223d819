"""The files of a version folder that a bundle needs: the graphs that its backends run, and their weights."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ltx_runtime.errors import LtxError
from ltx_runtime.folder.manifest import ComponentEntry, Engines, Manifest
from ltx_runtime.sessions import BACKENDS

# An extra whose backends leave some networks to the backend of another extra, which it brings along.
_ALSO_RUNS = {"openvino": "cpu"}


@dataclass(frozen=True)
class Contents:
    """The part of a version folder that goes into a bundle.

    Attributes:
        manifest: the manifest of this part, in which nothing is linked.
        paths: where each of its files lies now, by its name.
        precisions: precisions of its graphs.
    """

    manifest: Manifest
    paths: dict[str, Path]
    precisions: tuple[str, ...]

    @property
    def size_bytes(self) -> int:
        """Size of all files without the manifest."""
        return sum(self.manifest.files[name].size_bytes for name in self.paths)


def precisions_for(extras: Iterable[str]) -> tuple[str, ...]:
    """Returns the precisions of the graphs that the backends of these extras run.

    Raises:
        LtxError: none of the extras has a backend.
    """
    chosen = set(extras)
    chosen |= {_ALSO_RUNS[extra] for extra in chosen & _ALSO_RUNS.keys()}
    rows = [row for row in BACKENDS.values() if row.extra in chosen]
    if not rows:
        known = sorted({row.extra for row in BACKENDS.values()})
        raise LtxError(
            f"no backend comes with {', '.join(sorted(chosen))}, so nothing could be run",
            f"add --extra and one of {', '.join(known)}",
        )
    return tuple(dict.fromkeys(precision for row in rows for precision in row.precisions))


def contents_of(engines: Engines, extras: Sequence[str], precisions: Sequence[str] = ()) -> Contents:
    """Returns the files that the backends of these extras need; engines are left out, since they are built in place.

    Args:
        engines: the version folder, verified.
        extras: the extras that the bundle installs.
        precisions: keeps only graphs of these; empty for all that the backends run.

    Raises:
        LtxError: no backend comes with the extras, none of them runs a precision, or a component would have no graph.
    """
    runnable = precisions_for(extras)
    if unused := [precision for precision in precisions if precision not in runnable]:
        raise LtxError(
            f"nothing that comes with {', '.join(extras)} runs {' or '.join(unused)} graphs",
            f"use --precision with {', '.join(runnable)}, or another --extra",
        )
    kept = tuple(precision for precision in runnable if precision in precisions) or runnable
    old = engines.manifest
    components = {name: _reduced(engines, name, entry, kept) for name, entry in old.components.items()}
    names = {*filter(None, [old.tokenizer])}.union(*(entry.files() for entry in components.values()))
    manifest = replace(old, components=components, files={name: old.files[name] for name in sorted(names)}, linked={})
    used = {precision for entry in components.values() for precision in entry.graphs}
    paths = {name: old.place(engines.folder, name) for name in manifest.files}
    return Contents(manifest, paths, tuple(precision for precision in kept if precision in used))


def _reduced(engines: Engines, name: str, entry: ComponentEntry, kept: Sequence[str]) -> ComponentEntry:
    """Returns the entry of a component with graphs in these precisions alone, and the weights of those."""
    graphs = {precision: file for precision, file in entry.graphs.items() if precision in kept}
    if not graphs:
        raise LtxError(
            f"{engines.folder} has no {' or '.join(kept)} graph of {name}, only {', '.join(entry.graphs)}",
            "use another --extra or --precision, or export it",
            engines.export_command(),
        )
    quantized = {precision: graph for precision, graph in entry.quantized.items() if precision in graphs}
    weights = tuple(dict.fromkeys(file for precision in graphs for file in entry.weights_of(precision)))
    plain = any(precision not in quantized for precision in graphs)
    return replace(entry, graphs=graphs, quantized=quantized, weights=entry.weights if plain else weights)
