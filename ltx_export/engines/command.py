"""Runs `ltx-export engine`: chooses builder and sizes, looks for existing engines, and builds one component at a time.

This module does not know how a builder is driven. If a component fails, engines that were built before it are kept, and
the same command continues from there.
"""

from __future__ import annotations

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
from ltx_runtime.files import engines_folder
from ltx_runtime.folder.address import EngineAddress
from ltx_runtime.folder.finding import find_tidied
from ltx_runtime.folder.manifest import MANIFEST, Engines
from ltx_runtime.folder.profiles import Limits, Profile
from ltx_runtime.folder.reading import open_engines
from ltx_runtime.folder.sidecar import ENGINE_PRECISIONS, WEIGHTS, Maker, Sidecar, Weights
from ltx_runtime.planning.plan import grids_of
from ltx_runtime.sessions import engine_found
from ltx_runtime.sessions.trt.library import LIBRARIES, load_library, maker_of, title_of
from ltx_runtime.spec.components import COMPONENT_NAMES
from ltx_runtime.spec.geometry import grid_of, size_of
from ltx_runtime.spec.versions import Version, find_version
from ltx_runtime.trust.made_here import check_records

Report = Callable[[str], None]

_MAX_EMBEDDED_BYTES = 8_000_000_000  # larger weights are kept out of the engine, to save disk and memory
_LARGEST = (1600, 1600, 257)  # height, width and frames up to which engines serve videos


@dataclass(frozen=True)
class _Job:
    """One requested engine, and any existing engine that makes building it unnecessary.

    Attributes:
        address: address of the requested engine.
        recipe: settings with which it is built.
        prepared: the graph from which it is built.
        fitting: sidecar of the engine that already exists at this address and fits; None if there is none.
        equal: path of another folder's engine that differs only in weights outside it; None if there is none.
    """

    address: EngineAddress
    recipe: Recipe
    prepared: Prepared
    fitting: Sidecar | None = None
    equal: Path | None = None


@dataclass(frozen=True)
class _Place:
    """The version folder, the library that builds engines, and why they cannot be run here (None if they can)."""

    engines: Engines
    maker: Maker
    no_gpu: LtxError | None


def _check_records(trust: bool, report: Report) -> None:
    """Raises LtxError if engines cannot be recorded as the user's own; only reports it to who trusts the folder."""
    try:
        check_records()
    except LtxError as error:
        if not trust:
            raise
        report(f"{error.problem}: each run with these engines will need --trust-engines")


def run_command(asked: Asked, report: Report) -> None:
    """Builds, takes over or only checks the engines of a version folder, and reports one line about each.

    Raises:
        LtxError: an option is invalid, there is no builder, disk space or memory is short, a graph is refused, or an
            engine's output differs from the fp32 graph's; with `check`, an engine is missing or does not fit.
    """
    version = find_version(asked.version)
    _check_words(asked)
    largest = asked.max_height, asked.max_width, asked.max_frames
    limits = limits_of(version, largest, asked.static, single_pass=asked.single_pass)
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
    trust = asked.trust_engines
    engines = open_engines(find_tidied(engines_folder(asked.engines), version.name, report), trust=trust)
    _check_records(trust, report)
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
        report(_provide_engine(place, asked, job))


def _check_words(options: Asked) -> None:
    words = (
        ("builder", options.builder, (AUTO, *LIBRARIES)),
        ("precision of engines", options.precision, ENGINE_PRECISIONS),
        ("place for weights", options.weights, (AUTO, *WEIGHTS)),
        *(("component", name, COMPONENT_NAMES) for name in options.component or ()),
    )
    for what, word, choices in words:
        if word not in choices:
            raise LtxError(f"unknown {what} {word!r}", f"use one of {', '.join(choices)}")
    if options.reuse is not None and not (options.reuse / MANIFEST).is_file():
        raise LtxError(f"--reuse must be a version folder; got {options.reuse}", "use engines/<version>")
    if options.check and options.force:
        raise LtxError("--check builds nothing, and --force builds anew", "leave one out")


def limits_of(
    version: Version,
    most: tuple[int | None, int | None, int | None],
    static: str | None,
    *,
    single_pass: bool = False,
) -> Limits | None:
    """Returns the limits on the sizes that engines serve; None if the arguments set no limit.

    Args:
        version: the version, whose passes determine the grids of a size.
        most: height, width and number of frames of the largest video; None for no limit.
        static: the only size to serve, as `704x1216x121`.
        single_pass: whether videos are made in one pass, even if the version has two.

    Raises:
        LtxError: the model cannot make a video of this size, or both `most` and `static` are given.
    """
    if static is not None:
        only = size_of(static, "--static")
        if any(size is not None for size in most):
            raise LtxError("--static is one size and --max-height, --max-width, --max-frames are many", "leave one out")
        return Limits(tuple(grids_of(grid_of(*only), version, single_pass=single_pass)), exact=True)
    if all(size is None for size in most):
        return None
    height, width, num_frames = (end if size is None else size for size, end in zip(most, _LARGEST, strict=True))
    return Limits(tuple(grids_of(grid_of(height, width, num_frames), version, single_pass=single_pass)))


def _options(options: Asked) -> str:
    """Returns the options for sizes and weights as the user typed them."""
    typed = [
        f"--{name.replace('_', '-')} {value}"
        for name in ("max_height", "max_width", "max_frames", "static")
        if (value := getattr(options, name)) is not None
    ]
    typed += [f"--weights {options.weights}"] * (options.weights != AUTO)
    flags = ("single_pass", "weight_streaming")
    return " ".join([*typed, *(f"--{name.replace('_', '-')}" for name in flags if getattr(options, name))])


def _modes(options: Asked, weights_bytes: int) -> list[Weights]:
    """Returns where weights may be: first the mode for a new engine, then those accepted in an existing engine."""
    for mode in WEIGHTS:
        if options.weights == mode:
            return [mode]
    large = weights_bytes > _MAX_EMBEDDED_BYTES or not preflight.is_enough(weights_bytes)
    first: Weights = "inputs" if large and not options.weight_streaming else "embedded"
    return [first, *(mode for mode in WEIGHTS if mode != first)]


def _job(place: _Place, options: Asked, recipe: Recipe, name: str) -> _Job:
    address = EngineAddress(place.engines, name, place.maker, options.precision)
    prepared = prepared_for(address, recipe.weights)
    modes = _modes(options, prepared.weights_bytes)
    refusal: LtxError | None = None
    for mode in () if options.force else modes:
        try:
            candidate = replace(recipe, weights=mode)
            return _Job(address, candidate, prepared, fitting=check_built(address, candidate, prepared))
        except LtxError as error:
            refusal = refusal or error
    if options.check:
        assert refusal is not None
        raise refusal
    recipe = replace(recipe, weights=modes[0])
    prepared = prepared_for(address, recipe.weights)
    folders = [*([options.reuse] if options.reuse else []), *siblings_of(place.engines.folder)]
    equal = None if options.force else find_equal(address, recipe, prepared, folders)
    return _Job(address, recipe, prepared, equal=equal)


def _profiles_of(job: _Job) -> list[Profile]:
    """Returns the optimization profiles of a job's engine."""
    return job.recipe.profiles(job.address.engines.component(job.address.component).signature)


def _check_room(place: _Place, jobs: Sequence[_Job]) -> None:
    needed_bytes, builds = 0, []
    for job in jobs:
        if job.fitting is None and job.equal is None:
            needed_bytes += preflight.engine_bytes(job.prepared, job.recipe.weights, len(_profiles_of(job)))
            builds.append((job.address.component, job.prepared, job.recipe.weights))
    preflight.check_disk(place.engines.folder, needed_bytes)
    preflight.check_memory(builds)


def _provide_engine(place: _Place, options: Asked, job: _Job) -> str:
    """Builds or takes over one engine if needed, checks its output, and returns the line to report about it."""
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
        if options.reuse is not None:
            how += f" as {options.reuse} has none to take over"
    count = len(_profiles_of(job))
    size = f"{path.stat().st_size / 1e6:.1f} MB, {count} profile{'s'[: count > 1]}, weights {recipe.weights}"
    return f"{path}{how}, {size}, {_check_output(place, options, job, path)}"


def _check_output(place: _Place, options: Asked, job: _Job, path: Path) -> str:
    """Compares the engine's output with the fp32 graph's if a GPU can run it, and records the error in the sidecar.

    Returns:
        The result, as the end of the line to report.

    Raises:
        LtxError: the output is wrong, and `force` is off; the engine is removed.
    """
    sidecar = check_built(job.address, job.recipe, job.prepared)
    if place.no_gpu is not None:
        return f"not checked: {place.no_gpu.problem}"
    try:
        numbers = check_engine_numbers(engine_found(job.address, sidecar))
    except LtxError as error:
        if not options.force:
            remove_engine(path)
            raise
        sys.stderr.write(f"warning: {error}\n")
        return "wrong, and kept all the same"
    if numbers.relative_l2 is None:
        return f"not checked: {numbers.why}"
    note_numbers(path, numbers.relative_l2)
    return f"relative L2 {numbers.relative_l2:.1e}"
