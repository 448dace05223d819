"""Writes an engine with its sidecar completely or not at all, checks it, and takes over engines of other folders.

The module `engine_from_onnx` builds the engine itself.
"""

from __future__ import annotations

import glob
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from ltx_export.engines.engine_from_onnx import Recipe, engine_from_onnx
from ltx_export.engines.graph import Prepared, prepare
from ltx_export.engines.progress import BuildProgress
from ltx_export.weights.staging import put_in_place
from ltx_runtime.errors import LtxError
from ltx_runtime.files import partial_folder
from ltx_runtime.folder.address import EngineAddress, check_engine
from ltx_runtime.folder.manifest import MANIFEST, checksum
from ltx_runtime.folder.sidecar import (
    Sidecar,
    Weights,
    is_own,
    read_sidecar,
    refit_graph_path,
    sidecar_path,
    write_sidecar,
)
from ltx_runtime.graph.check import check_graph
from ltx_runtime.replacing.exchange import finish_exchanges, writing
from ltx_runtime.replacing.keeping import keep_rest
from ltx_runtime.sessions.trt.library import load_library
from ltx_runtime.spec.components import Component
from ltx_runtime.trust.made_here import still_known


def prepared_for(address: EngineAddress, weights: Weights) -> Prepared:
    """Returns the graph of an engine in the form that its builder gets.

    Args:
        address: address of the engine.
        weights: where the engine's weights will be, see sidecar.Weights.

    Raises:
        LtxError: the version folder has no such graph, or it is not one that may be loaded, see `check_graph`.
    """
    return prepare(_checked_graph(address), _signature(address), weights)


def _checked_graph(address: EngineAddress) -> Path:
    """Returns the path of an engine's graph, after checking that a library may load it."""
    graph, sizes = address.graph(), address.engines.weight_sizes(address.component, address.precision)
    check_graph(graph, _signature(address), sizes)
    return graph


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
    graph, weights = _checked_graph(address), address.engines.weights_folder(address.component)
    with _replacing(address) as (temporary, finish):
        prepared = engine_from_onnx(library, graph, weights, _signature(address), temporary, recipe, progress)
        finish(_sidecar_of(address, recipe, prepared, temporary), prepared)
    return address.path


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
        if not (address.engines.trusted or is_own(engine)):
            continue
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
    with _replacing(address) as (temporary, finish):
        try:
            with still_known(other.parent):
                os.link(other, temporary)
        except OSError:  # another file system, or one without hard links
            shutil.copyfile(other, temporary)
        finish(_sidecar_of(address, recipe, prepared, temporary), prepared)
    return address.path


def note_numbers(engine: Path, relative_l2: float | None) -> None:
    """Records in the sidecar the relative L2 error of an engine's output against the fp32 graph's."""
    with writing(engine.parent):
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
def _replacing(address: EngineAddress) -> Iterator[tuple[Path, Finish]]:
    """Yields a path to write an engine to, and a function that puts the complete engine in the place of an earlier one.

    It replaces the whole folder of engines, in which the others are the same files. So an engine, its sidecar and what
    sessions have saved beside it change together, and whatever happens, there is the earlier one or the new one.

    Raises:
        LtxError: another process builds an engine of this folder, or the version folder was replaced meanwhile.
    """
    target, version_folder = address.path, address.engines.folder
    folder = target.parent
    finish_exchanges(version_folder)

    def keep_others() -> None:
        own, beside = {target.name, refit_graph_path(target).name}, f"{target.name}."
        with still_known(folder):
            keep_rest(folder, staging, lambda name: name in own or name.startswith(beside))

    with writing(folder), ExitStack() as deleting, partial_folder(version_folder) as partial:
        staging = partial / folder.name
        staging.mkdir()
        if folder.exists():
            keep_others()  # what cannot be kept is told before an engine is built for an hour

        def finish(sidecar: Sidecar, prepared: Prepared) -> None:
            engine = staging / target.name
            if sidecar.weights == "refit":
                refit_graph_path(engine).write_bytes(prepared.model)
            write_sidecar(engine, sidecar)
            address.engines.held.check_stands()
            if folder.exists():
                keep_others()  # what sessions have saved meanwhile
            put_in_place(staging, folder, deleting)

        yield staging / target.name, finish
