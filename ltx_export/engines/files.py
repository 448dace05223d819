"""An engine and its sidecar as files: written whole or not at all, found again in another folder, or taken over.

Stands above engine_from_onnx, which makes the bytes.
"""

from __future__ import annotations

import glob
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from ltx_export.engines.engine_from_onnx import Recipe, engine_from_onnx
from ltx_export.engines.graph import Prepared, prepare
from ltx_export.engines.progress import Progress
from ltx_runtime.errors import LtxError
from ltx_runtime.files import locked
from ltx_runtime.folder.manifest import MANIFEST, Engines, checksum
from ltx_runtime.folder.sidecar import (
    Maker,
    Sidecar,
    check_engine,
    engine_path,
    graph_for,
    read_sidecar,
    rebuild_command,
    refit_graph_path,
    sidecar_path,
    sources_of,
    write_sidecar,
)
from ltx_runtime.sessions.trt.library import load_library


def prepared_for(engines: Engines, name: str, recipe: Recipe) -> Prepared:
    """The graph of a component as a builder would be given it.

    Raises:
        LtxError: the folder lacks it, or it is none.
    """
    graph = engines.folder / graph_for(engines, name, recipe.precision)
    return prepare(graph, engines.component(name).signature, recipe.weights)


def check_built(engines: Engines, name: str, maker: Maker, recipe: Recipe, prepared: Prepared) -> Sidecar:
    """The sidecar of an engine that is just what would be built.

    Raises:
        LtxError: there is none, or it does not fit the folder, the library, the sizes or the kind of weights.
    """
    found = check_engine(engines, name, recipe.precision, maker)
    wanted = {
        "profiles": (recipe.profiles(engines.component(name).signature), "serves other sizes"),
        "weights": (recipe.weights, "has its weights elsewhere"),
        "structure": (prepared.structure, "was built by another release of this program"),
        "weight_streaming": (
            recipe.weight_streaming,
            f"was built with{'out' * recipe.weight_streaming} --weight-streaming",
        ),
    }
    for attribute, (value, misfit) in wanted.items():
        if getattr(found, attribute) != value:
            version = engines.manifest.version
            command = rebuild_command(engines.folder, version, name, recipe.precision, maker.builder, recipe.options)
            raise LtxError(f"{engine_path(engines, name, maker, recipe.precision)} {misfit}", command=command)
    return found


def build_engine(engines: Engines, name: str, maker: Maker, recipe: Recipe, progress: Progress | None = None) -> Path:
    """Builds one component's engine; engine and sidecar appear under their names only when whole.

    An engine that was there stays until then.

    Raises:
        LtxError: the folder lacks the graph, or the library refuses it; says why in its words.
        KeyboardInterrupt: Ctrl-C, once the build has ended.
    """
    library = load_library(maker.builder)
    graph = engines.folder / graph_for(engines, name, recipe.precision)
    weights, component = engines.weights_folder(name), engines.component(name).signature
    with _replaced(engine_path(engines, name, maker, recipe.precision)) as (target, temporary, finish):
        prepared = engine_from_onnx(library, graph, weights, component, temporary, recipe, progress)
        finish(_described(engines, name, maker, recipe, prepared, temporary), prepared)
    return target


def find_equal(
    engines: Engines, name: str, maker: Maker, recipe: Recipe, prepared: Prepared, folders: Iterable[Path]
) -> Path | None:
    """An engine in another version folder that differs from the one wanted in nothing but the weights outside it."""
    if recipe.weights == "embedded":
        return None
    wanted = {
        **maker.marks(),
        "component": name,
        "precision": recipe.precision,
        "weights": recipe.weights,
        "profiles": recipe.profiles(engines.component(name).signature),
        "structure": prepared.structure,
    }
    for folder in folders:
        engine = engine_path(replace(engines, folder=folder), name, maker, recipe.precision)
        try:
            found = read_sidecar(engine)
        except LtxError:
            continue
        fits = all(getattr(found, attribute) == value for attribute, value in wanted.items())
        if fits and engine.is_file() and checksum(engine) == found.engine_checksum:
            return engine
    return None


def siblings_of(folder: Path) -> list[Path]:
    """The other version folders beside one."""
    others = sorted(path.parent for path in folder.resolve().parent.glob(f"[!.]*/{MANIFEST}"))
    return [other for other in others if other != folder.resolve()]


def take_over(engines: Engines, name: str, maker: Maker, recipe: Recipe, prepared: Prepared, other: Path) -> Path:
    """Makes another folder's engine this one's: the same file where the disk allows it, with a sidecar of its own."""
    with _replaced(engine_path(engines, name, maker, recipe.precision)) as (target, temporary, finish):
        try:
            os.link(other, temporary)
        except OSError:  # another file system, or one without links
            shutil.copyfile(other, temporary)
        finish(_described(engines, name, maker, recipe, prepared, temporary), prepared)
    return target


def note_numbers(engine: Path, relative_l2: float | None) -> None:
    """Writes into the sidecar how near the engine comes to the fp32 graph."""
    write_sidecar(engine, replace(read_sidecar(engine), relative_l2=relative_l2))


def remove_engine(engine: Path) -> None:
    """Removes an engine and what is beside it: the sidecar first, and also what sessions kept."""
    kept = engine.parent.glob(f"{glob.escape(engine.name)}.*")
    for path in (sidecar_path(engine), engine, refit_graph_path(engine), *kept):
        path.unlink(missing_ok=True)


def _described(engines: Engines, name: str, maker: Maker, recipe: Recipe, prepared: Prepared, engine: Path) -> Sidecar:
    return Sidecar(
        **maker.marks(),
        gpu=maker.gpu,
        driver=maker.driver,
        component=name,
        precision=recipe.precision,
        weights=recipe.weights,
        profiles=recipe.profiles(engines.component(name).signature),
        sources=sources_of(engines, name, recipe.precision),
        structure=prepared.structure,
        engine_checksum=checksum(engine),
        weight_inputs=prepared.weight_inputs,
        weight_streaming=recipe.weight_streaming,
        options=recipe.options,
    )


Finish = Callable[[Sidecar, Prepared], None]


@contextmanager
def _replaced(target: Path) -> Iterator[tuple[Path, Path, Finish]]:
    """An engine's path, a temporary one beside it, and what gives the latter the former's name; one process at a time.

    The sidecar, which proves an engine whole, goes first and comes last.
    """
    folder = target.parent
    folder.mkdir(exist_ok=True)
    temporary = target.with_name(f".{target.name}.partial")

    def finish(sidecar: Sidecar, prepared: Prepared) -> None:
        remove_engine(target)
        if sidecar.weights == "refit":
            refit_graph_path(target).write_bytes(prepared.model)
        temporary.replace(target)
        write_sidecar(target, sidecar)

    with locked(folder / ".lock", f"build writes {folder}"):
        try:
            temporary.unlink(missing_ok=True)  # of a run that was killed; it may be a link to another folder's
            yield target, temporary, finish
        finally:
            temporary.unlink(missing_ok=True)
