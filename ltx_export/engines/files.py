"""Writes an engine with its sidecar completely or not at all, checks it, and takes over engines of other folders.

The module `engine_from_onnx` builds the engine itself.
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
    """Returns the graph of an engine in the form that its builder gets.

    Args:
        address: address of the engine.
        weights: where the engine's weights will be, see sidecar.Weights.

    Raises:
        LtxError: the version folder has no such graph, or the file is no ONNX graph of the component.
    """
    return prepare(address.graph(), _signature(address), weights)


def _signature(address: EngineAddress) -> Component:
    return address.engines.component(address.component).signature


def check_built(address: EngineAddress, recipe: Recipe, prepared: Prepared) -> Sidecar:
    """Checks that an engine exists which is exactly what would be built, and returns its sidecar.

    Raises:
        LtxError: there is no engine, or it does not fit the folder, the library, the graph or the recipe.
    """
    sidecar = check_engine(address)
    expected = {
        "profiles": (recipe.profiles(_signature(address)), "serves other sizes"),
        "weights": (recipe.weights, "has its weights elsewhere"),
        "structure": (prepared.structure, "was built by another release of this program"),
        "weight_streaming": (
            recipe.weight_streaming,
            f"was built with{'out' * recipe.weight_streaming} --weight-streaming",
        ),
    }
    for attribute, (value, misfit) in expected.items():
        if getattr(sidecar, attribute) != value:
            raise LtxError(f"{address.path} {misfit}", command=address.rebuild_command(recipe.options))
    return sidecar


def build_engine(address: EngineAddress, recipe: Recipe, progress: BuildProgress | None = None) -> Path:
    """Builds an engine and returns its path; the engine and its sidecar get their names only when they are complete.

    Until then, an existing engine stays in place.

    Raises:
        LtxError: the version folder has no such graph, or the library refuses it; the message has the reason.
        KeyboardInterrupt: Ctrl-C, once the build has ended.
    """
    library = load_library(address.maker.builder)
    graph, weights = address.graph(), address.engines.weights_folder(address.component)
    with _replacing(address.path) as (target, temporary, finish):
        prepared = engine_from_onnx(library, graph, weights, _signature(address), temporary, recipe, progress)
        finish(_sidecar_of(address, recipe, prepared, temporary), prepared)
    return target


def find_equal(address: EngineAddress, recipe: Recipe, prepared: Prepared, folders: Iterable[Path]) -> Path | None:
    """Returns the path of an engine in another version folder that differs only in weights outside it, or None.

    Args:
        address: address of the requested engine.
        recipe: settings with which it would be built.
        prepared: the graph from which it would be built.
        folders: version folders to search, in this order.
    """
    if recipe.weights == "embedded":
        return None
    expected = {
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
        fits = all(getattr(sidecar, attribute) == value for attribute, value in expected.items())
        if fits and engine.is_file() and checksum(engine) == sidecar.engine_checksum:
            return engine
    return None


def siblings_of(folder: Path) -> list[Path]:
    """Returns the other version folders beside a version folder."""
    folders = sorted(path.parent for path in folder.resolve().parent.glob(f"[!.]*/{MANIFEST}"))
    return [sibling for sibling in folders if sibling != folder.resolve()]


def take_over(address: EngineAddress, recipe: Recipe, prepared: Prepared, other: Path) -> Path:
    """Hard-links or copies another folder's engine to this address, with its own sidecar; returns its path."""
    with _replacing(address.path) as (target, temporary, finish):
        try:
            os.link(other, temporary)
        except OSError:  # another file system, or one without hard links
            shutil.copyfile(other, temporary)
        finish(_sidecar_of(address, recipe, prepared, temporary), prepared)
    return target


def note_numbers(engine: Path, relative_l2: float | None) -> None:
    """Records in the sidecar the relative L2 error of an engine's output against the fp32 graph's."""
    write_sidecar(engine, replace(read_sidecar(engine), relative_l2=relative_l2))


def remove_engine(engine: Path) -> None:
    """Deletes an engine and all files beside it: the sidecar first, and also the files that sessions saved."""
    companions = engine.parent.glob(f"{glob.escape(engine.name)}.*")
    for path in (sidecar_path(engine), engine, refit_graph_path(engine), *companions):
        path.unlink(missing_ok=True)


def _sidecar_of(address: EngineAddress, recipe: Recipe, prepared: Prepared, engine: Path) -> Sidecar:
    """Returns the sidecar of an engine that was built into the file `engine` and will be moved to its address."""
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
def _replacing(target: Path) -> Iterator[tuple[Path, Path, Finish]]:
    """Yields a path, a temporary path beside it, and a function that replaces the engine by the temporary file.

    The folder is locked inside the block. The sidecar proves that an engine is complete, so it is deleted first and
    written last.
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
            temporary.unlink(missing_ok=True)  # from a killed run; may be a hard link to another folder's engine
            yield target, temporary, finish
        finally:
            temporary.unlink(missing_ok=True)
