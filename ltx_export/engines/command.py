"""`ltx-export engine`: which builder, which sizes, what is there already; then one component after another.

Knows nothing of how a builder is driven. What was built is kept if a later component fails: the same command goes on.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ltx_export.engines import preflight
from ltx_export.engines.arguments import AUTO, Asked
from ltx_export.engines.builder import choose_builder, reason_not_to_run
from ltx_export.engines.engine_from_onnx import Recipe, refuse_impossible
from ltx_export.engines.files import (
    build_engine,
    check_built,
    find_equal,
    note_numbers,
    prepared_for,
    remove_engine,
    siblings_of,
    take_over,
)
from ltx_export.engines.graph import Prepared
from ltx_export.engines.numbers import check_engine_numbers
from ltx_export.engines.progress import shown
from ltx_runtime.errors import LtxError
from ltx_runtime.folder.address import EngineAddress
from ltx_runtime.folder.manifest import MANIFEST, Engines, find_folder, open_engines
from ltx_runtime.folder.profiles import Limits, Profile
from ltx_runtime.folder.sidecar import ENGINE_PRECISIONS, WEIGHTS, Maker, Sidecar, Weights
from ltx_runtime.planning.plan import grids_of
from ltx_runtime.sessions import engine_found
from ltx_runtime.sessions.trt.library import LIBRARIES, load_library, maker_of, title_of
from ltx_runtime.spec.components import COMPONENT_NAMES
from ltx_runtime.spec.geometry import grid_of
from ltx_runtime.spec.versions import Version, find_version

Report = Callable[[str], None]

_MOST_EMBEDDED_BYTES = 8_000_000_000  # above, an engine and the memory it takes to build are worth sparing
_STATIC = re.compile(r"(\d+)x(\d+)x(\d+)", re.ASCII)
_LARGEST = (1600, 1600, 257)  # of what engines serve


@dataclass(frozen=True)
class _Job:
    """One engine that is wanted, and whether something is there that makes building it needless.

    Attributes:
        address: names the engine.
        recipe: how it is built.
        prepared: the graph that it is built from.
        fitting: the sidecar of the engine that is there already and fits; None if there is none.
        equal: another folder's engine that differs only in weights outside of it; None if there is none.
    """

    address: EngineAddress
    recipe: Recipe
    prepared: Prepared
    fitting: Sidecar | None = None
    equal: Path | None = None


@dataclass(frozen=True)
class _Place:
    """The version folder, the library that builds here, and why engines cannot be run here (None if they can)."""

    engines: Engines
    maker: Maker
    no_gpu: LtxError | None


def run_command(asked: Asked, report: Report) -> None:
    """Builds, takes over or only checks the engines of a version folder; tells one line about each.

    Raises:
        LtxError: an option is wrong, no builder is here, room is short, a graph is refused, or an engine computes
            something else than the fp32 graph; with `check`, an engine is missing or does not fit.
    """
    version = find_version(asked.version)
    _check_words(asked)
    most = asked.max_height, asked.max_width, asked.max_frames
    limits = limits_of(version, most, asked.static, single_pass=asked.single_pass)
    try:
        builder, gpu, why = choose_builder(asked.builder)
        library = load_library(builder)
        no_gpu = reason_not_to_run(library, builder, gpu)
    except LtxError as error:
        if not asked.if_possible or asked.builder != AUTO:
            raise
        report(f"ONNX only: {error}")
        return
    recipe = Recipe("embedded", limits, asked.weight_streaming, _options(asked))
    if asked.weights != AUTO:
        refuse_impossible(library, title_of(builder), replace(recipe, weights=_modes(asked, 0)[0]))
    engines = open_engines(find_folder(asked.engines, version.name))
    place = _Place(engines, maker_of(builder, library, gpu), no_gpu)
    report(f"{title_of(builder)} {library.__version__}{why}")
    jobs = [
        _job(place, asked, recipe, name) for name in dict.fromkeys(asked.component or place.engines.manifest.components)
    ]
    try:
        _check_room(place, jobs)
    except LtxError as error:
        if not asked.if_possible:
            raise
        report(f"ONNX only: {error}")
        return
    for job in jobs:
        report(_done(place, asked, job))


def _check_words(asked: Asked) -> None:
    words = (
        ("builder", asked.builder, (AUTO, *LIBRARIES)),
        ("precision of engines", asked.precision, ENGINE_PRECISIONS),
        ("place for weights", asked.weights, (AUTO, *WEIGHTS)),
        *(("component", name, COMPONENT_NAMES) for name in asked.component or ()),
    )
    for what, given, known in words:
        if given not in known:
            raise LtxError(f"unknown {what} {given!r}", f"use one of {', '.join(known)}")
    if asked.reuse is not None and not (asked.reuse / MANIFEST).is_file():
        raise LtxError(f"--reuse must be a version folder; got {asked.reuse}", "use engines/<version>")
    if asked.check and asked.force:
        raise LtxError("--check builds nothing, and --force builds anew", "leave one out")


def limits_of(
    version: Version,
    most: tuple[int | None, int | None, int | None],
    static: str | None,
    *,
    single_pass: bool = False,
) -> Limits | None:
    """What narrows the engines to the sizes asked for; None if nothing does.

    Args:
        version: its passes say which grids a size needs.
        most: height, width and number of frames of the largest video; what is left out is not narrowed.
        static: the one size to serve, as `704x1216x121`.
        single_pass: for videos that are made in one pass, whatever the version has.

    Raises:
        LtxError: a size is none the model can make, or both are given.
    """
    if static is not None:
        match = _STATIC.fullmatch(static)
        if match is None:
            raise LtxError(f"--static must be HEIGHTxWIDTHxFRAMES; got {static!r}", "use 704x1216x121")
        if any(size is not None for size in most):
            raise LtxError("--static is one size and --max-height, --max-width, --max-frames are many", "leave one out")
        return Limits(tuple(grids_of(grid_of(*map(int, match.groups())), version, single_pass=single_pass)), exact=True)
    if all(size is None for size in most):
        return None
    height, width, num_frames = (end if size is None else size for size, end in zip(most, _LARGEST, strict=True))
    return Limits(tuple(grids_of(grid_of(height, width, num_frames), version, single_pass=single_pass)))


def _options(asked: Asked) -> str:
    """What was typed about sizes and weights."""
    typed = [
        f"--{name.replace('_', '-')} {value}"
        for name in ("max_height", "max_width", "max_frames", "static")
        if (value := getattr(asked, name)) is not None
    ]
    typed += [f"--weights {asked.weights}"] * (asked.weights != AUTO)
    flags = ("single_pass", "weight_streaming")
    return " ".join([*typed, *(f"--{name.replace('_', '-')}" for name in flags if getattr(asked, name))])


def _modes(asked: Asked, weights_bytes: int) -> list[Weights]:
    """Where the weights may be: what would be built first, and what would be taken if it is there already."""
    for mode in WEIGHTS:
        if asked.weights == mode:
            return [mode]
    large = weights_bytes > _MOST_EMBEDDED_BYTES or not preflight.is_enough(weights_bytes)
    first: Weights = "inputs" if large and not asked.weight_streaming else "embedded"
    return [first, *(mode for mode in WEIGHTS if mode != first)]


def _job(place: _Place, asked: Asked, recipe: Recipe, name: str) -> _Job:
    address = EngineAddress(place.engines, name, place.maker, asked.precision)
    prepared = prepared_for(address, recipe.weights)
    modes = _modes(asked, prepared.weights_bytes)
    refused: LtxError | None = None
    for mode in () if asked.force else modes:
        try:
            there = replace(recipe, weights=mode)
            return _Job(address, there, prepared, fitting=check_built(address, there, prepared))
        except LtxError as error:
            refused = refused or error
    if asked.check:
        assert refused is not None
        raise refused
    recipe = replace(recipe, weights=modes[0])
    prepared = prepared_for(address, recipe.weights)
    folders = [*([asked.reuse] if asked.reuse else []), *siblings_of(place.engines.folder)]
    equal = None if asked.force else find_equal(address, recipe, prepared, folders)
    return _Job(address, recipe, prepared, equal=equal)


def _served(job: _Job) -> list[Profile]:
    """The sizes that a job's engine serves."""
    return job.recipe.profiles(job.address.engines.component(job.address.component).signature)


def _check_room(place: _Place, jobs: Sequence[_Job]) -> None:
    needed, builds = 0, []
    for job in jobs:
        if job.fitting is None and job.equal is None:
            needed += preflight.engine_bytes(job.prepared, job.recipe.weights, len(_served(job)))
            builds.append((job.address.component, job.prepared, job.recipe.weights))
    preflight.check_disk(place.engines.folder, needed)
    preflight.check_memory(builds)


def _done(place: _Place, asked: Asked, job: _Job) -> str:
    """Builds or takes over one engine and checks its numbers; gives the line about it."""
    address, recipe = job.address, job.recipe
    started = time.perf_counter()
    if job.fitting is not None:
        path = address.path
        if job.fitting.relative_l2 is not None:
            return f"{path} fits, relative L2 {job.fitting.relative_l2:.1e}"
        how = " fits"
    elif job.equal is not None:
        path = take_over(address, recipe, job.prepared, job.equal)
        how = f": that of {job.equal.parents[1]} with other weights"
    else:
        with shown(address.component) as progress:
            path = build_engine(address, recipe, progress)
        how = f": built in {time.perf_counter() - started:.1f} s"
        if asked.reuse is not None:
            how += f" as {asked.reuse} has none to take over"
    served = len(_served(job))
    size = f"{path.stat().st_size / 1e6:.1f} MB, {served} profile{'s'[: served > 1]}, weights {recipe.weights}"
    return f"{path}{how}, {size}, {_checked(place, asked, job, path)}"


def _checked(place: _Place, asked: Asked, job: _Job, path: Path) -> str:
    """Holds the engine's numbers against the fp32 graph's where a GPU can run it, and notes them in the sidecar.

    Raises:
        LtxError: they are wrong; the engine is removed unless it is kept by `force`.
    """
    sidecar = check_built(job.address, job.recipe, job.prepared)
    if place.no_gpu is not None:
        return f"not checked: {place.no_gpu.problem}"
    try:
        numbers = check_engine_numbers(engine_found(job.address, sidecar))
    except LtxError as error:
        if not asked.force:
            remove_engine(path)
            raise
        sys.stderr.write(f"warning: {error}\n")
        return "wrong, and kept all the same"
    if numbers.relative_l2 is None:
        return f"not checked: {numbers.why}"
    note_numbers(path, numbers.relative_l2)
    return f"relative L2 {numbers.relative_l2:.1e}"
