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
from ltx_export.engines.progress import BuildProgress
from ltx_runtime.errors import LtxError
from ltx_runtime.files import locked
from ltx_runtime.folder.address import EngineAddress, check_engine
from ltx_runtime.folder.manifest import MANIFEST, checksum
from ltx_runtime.folder.sidecar import Sidecar, Weights, read_sidecar, refit_graph_path, sidecar_path, write_sidecar
from ltx_runtime.sessions.trt.library import load_library
from ltx_runtime.spec.components import Component


def prepared_for(address: EngineAddress, weights: Weights) -> Prepared:
    """Prepares the graph of an engine as its builder would be given it.

    Args:
        address: names the engine.
        weights: where the engine's weights are to be, see sidecar.Weights.

    Raises:
        LtxError: the version folder has no such graph, or the file is no ONNX graph.
    """
    return prepare(address.graph(), _signature(address), weights)


def _signature(address: EngineAddress) -> Component:
    return address.engines.component(address.component).signature


def check_built(address: EngineAddress, recipe: Recipe, prepared: Prepared) -> Sidecar:
    """Checks that an engine exists which is just what would be built, and returns its sidecar.

    Raises:
        LtxError: there is none, or it does not fit the folder, the library, the sizes or the place for weights.
    """
    sidecar = check_engine(address)
    wanted = {
        "profiles": (recipe.profiles(_signature(address)), "serves other sizes"),
        "weights": (recipe.weights, "has its weights elsewhere"),
        "structure": (prepared.structure, "was built by another release of this program"),
        "weight_streaming": (
            recipe.weight_streaming,
            f"was built with{'out' * recipe.weight_streaming} --weight-streaming",
        ),
    }
    for attribute, (value, misfit) in wanted.items():
        if getattr(sidecar, attribute) != value:
            raise LtxError(f"{address.path} {misfit}", command=address.rebuild_command(recipe.options))
    return sidecar


def build_engine(address: EngineAddress, recipe: Recipe, progress: BuildProgress | None = None) -> Path:
    """Builds an engine; it and its sidecar appear under their names only when whole.

    An engine that was there stays until then.

    Raises:
        LtxError: the version folder has no such graph, or the library refuses it; says why in its words.
        KeyboardInterrupt: Ctrl-C, once the build has ended.
    """
    library = load_library(address.maker.builder)
    graph, weights = address.graph(), address.engines.weights_folder(address.component)
    with _replaced(address.path) as (target, temporary, finish):
        prepared = engine_from_onnx(library, graph, weights, _signature(address), temporary, recipe, progress)
        finish(_described(address, recipe, prepared, temporary), prepared)
    return target


def find_equal(address: EngineAddress, recipe: Recipe, prepared: Prepared, folders: Iterable[Path]) -> Path | None:
    """Finds an engine in another version folder that differs from the one wanted only in weights outside of it.

    Args:
        address: the engine that is wanted.
        recipe: how it would be built.
        prepared: its graph.
        folders: version folders to search, in this order.
    """
    if recipe.weights == "embedded":
        return None
    wanted = {
        **address.maker.marks(),
        "component": address.component,
        "precision": address.precision,
        "weights": recipe.weights,
        "profiles": recipe.profiles(_signature(address)),
        "structure": prepared.structure,
    }
    for folder in folders:
        engine = replace(address, engines=replace(address.engines, folder=folder)).path
        try:
            sidecar = read_sidecar(engine)
        except LtxError:
            continue
        fits = all(getattr(sidecar, attribute) == value for attribute, value in wanted.items())
        if fits and engine.is_file() and checksum(engine) == sidecar.engine_checksum:
            return engine
    return None


def siblings_of(folder: Path) -> list[Path]:
    """The other version folders beside one."""
    others = sorted(path.parent for path in folder.resolve().parent.glob(f"[!.]*/{MANIFEST}"))
    return [other for other in others if other != folder.resolve()]


def take_over(address: EngineAddress, recipe: Recipe, prepared: Prepared, other: Path) -> Path:
    """Makes another folder's engine this one's: the same file where the disk allows it, with a sidecar of its own."""
    with _replaced(address.path) as (target, temporary, finish):
        try:
            os.link(other, temporary)
        except OSError:  # another file system, or one without links
            shutil.copyfile(other, temporary)
        finish(_described(address, recipe, prepared, temporary), prepared)
    return target


def note_numbers(engine: Path, relative_l2: float | None) -> None:
    """Writes into the sidecar how near the engine comes to the fp32 graph."""
    write_sidecar(engine, replace(read_sidecar(engine), relative_l2=relative_l2))


def remove_engine(engine: Path) -> None:
    """Removes an engine and what is beside it: the sidecar first, and also what sessions kept."""
    kept = engine.parent.glob(f"{glob.escape(engine.name)}.*")
    for path in (sidecar_path(engine), engine, refit_graph_path(engine), *kept):
        path.unlink(missing_ok=True)


def _described(address: EngineAddress, recipe: Recipe, prepared: Prepared, engine: Path) -> Sidecar:
    """The sidecar of an engine that was built into the file `engine` and is to be moved to its address."""
    maker = address.maker
    return Sidecar(
        **maker.marks(),
        gpu=maker.gpu,
        driver=maker.driver,
        component=address.component,
        precision=address.precision,
        weights=recipe.weights,
        profiles=recipe.profiles(_signature(address)),
        sources=address.sources(),
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
