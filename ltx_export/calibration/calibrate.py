"""Adds an int8 graph of the transformer to a version folder: measure activations, choose scales, keep what is exact.

The folder is replaced as a whole by one that has the int8 graph too; all other files are the same ones.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace
from math import inf
from pathlib import Path

import onnx_ir as ir

from ltx_export.calibration.measure import measure
from ltx_export.calibration.products import add_measurements, products_of, stored_matrix
from ltx_export.calibration.smoothing import chosen_smoothing
from ltx_export.calibration.trial import GRAPH, WEIGHTS, Calibrated, Report, Step, Trial, place_of
from ltx_export.checkpoints.values import float32_of
from ltx_export.weights.staging import staged
from ltx_export.weights.streaming import place_file
from ltx_runtime.errors import LtxError
from ltx_runtime.files import check_space
from ltx_runtime.folder.manifest import (
    CALIBRATED,
    QUANTIZED,
    ComponentEntry,
    Engines,
    Quantized,
    describe_files,
    write_manifest,
)
from ltx_runtime.folder.reading import open_engines
from ltx_runtime.graph.check import check_graph
from ltx_runtime.progress import Progress, silent
from ltx_runtime.replacing.keeping import keep_rest
from ltx_runtime.trust.made_here import still_known

# The last one is for tests, the one before it for the errors of products, the others for ranges.
PROMPTS = (
    "A red fox trots through fresh snow between dark fir trees at dawn, mist in the valley, the camera follows it",
    "A woman with short grey hair laughs in a bright kitchen, steam rises from a cup in her hands, shallow focus",
    "Heavy waves break over black rocks below a lighthouse at night, its beam sweeps through the rain",
    "An old fisherman in a yellow coat mends a net on a wooden pier, gulls circle above the calm harbour",
    "A yellow tram turns into a narrow street of an old town in the evening, its windows glow, people step aside",
)
_LEAST_PROMPTS = 3
SIZE = (256, 384, 25)
_MEASURING = "measuring.onnx"
LIMIT = 0.025


def calibrate(
    engines: Engines,
    report: Report,
    *,
    prompts: Sequence[str] = PROMPTS,
    size: tuple[int, int, int] = SIZE,
    limit: float = LIMIT,
    progress: Progress = silent,
) -> None:
    """Writes the int8 graph of a version folder's transformer. If that fails, the folder works as before without one.

    Args:
        engines: the version folder; it is released at the end.
        report: receives a line for each thing that is done.
        prompts: at least three; the last one is only tested, and decides about the error.
        size: height, width and number of frames of the videos that are denoised.
        limit: largest relative L2 of a step's output to the fp32 graph's, a positive number.
        progress: shows how far the steps are.

    Raises:
        LtxError: the folder lacks an fp32 or q8 graph, there are too few prompts, or the limit cannot be kept.
    """
    if not 0 < limit < inf:
        raise LtxError(f"the limit of the error must be a positive number; got {limit}", f"use {LIMIT}")
    folder, trusted = engines.folder, engines.trusted
    engines.held.release()
    with staged(folder) as work:
        engines = open_engines(folder, trust=trusted)  # another process may have replaced it before it was locked
        entry = _checked(engines, prompts)
        for name in entry.quantized[QUANTIZED].weights:
            place_file(engines.folder / name, work / name, silent)
        calibrated, steps = _calibrated(engines, work, prompts, size, report, progress)
        kept, error = Trial(engines, calibrated, work, steps).chosen(limit, report)
        for line in _table(calibrated.errors(), kept):
            report(line)
        _complete(engines, entry, work, error)
    report(f"transformer: {len(kept)} of {len(calibrated.stored)} products are int8, relative L2 {error:.1e} to fp32")


def _calibrated(
    engines: Engines,
    work: Path,
    prompts: Sequence[str],
    size: tuple[int, int, int],
    report: Report,
    progress: Progress,
) -> tuple[Calibrated, list[Step]]:
    """Measures activations and chooses scales; returns them, with some steps that were held out."""
    graphs, weights = engines.component("transformer").graphs, engines.weights_folder("transformer")
    matrices = products_of(ir.load(engines.folder / graphs[QUANTIZED]).graph)
    exact = ir.load(engines.folder / graphs["fp32"])
    stored = {name: stored_matrix(exact.graph, name, weights) for names in matrices.values() for name in names}
    add_measurements(exact.graph, {x: stored[names[0]].shape[1] for x, names in matrices.items()})
    check_space(work, sum(math.prod(matrix.shape) for matrix in stored.values()))
    ir.save(exact, work / _MEASURING)
    measuring = measure(engines, work / _MEASURING, [*matrices], prompts, size, report, progress)
    seen, smoothing = measuring.seen(), {}
    with progress("scales", len(matrices)) as advance:
        for x, names in matrices.items():
            smoothing[x] = chosen_smoothing(seen[x], [float32_of(stored[name]) for name in names])
            advance(1)
    return Calibrated(matrices, stored, smoothing), _some(measuring.steps)


def _checked(engines: Engines, prompts: Sequence[str]) -> ComponentEntry:
    engines.component("text_encoder")  # encodes the prompts
    entry = engines.component("transformer")
    lacking = [precision for precision in ("fp32", QUANTIZED) if precision not in entry.graphs]
    if lacking:
        raise LtxError(
            f"{engines.folder} has no {' and no '.join(lacking)} graph of transformer, which calibration starts from",
            "export it again from float weights, with the options that you used and --precision transformer=fp32 "
            "--precision transformer=bf16 --precision transformer=q8",
        )
    for precision in ("fp32", QUANTIZED):
        sizes = engines.weight_sizes("transformer", precision)
        check_graph(engines.folder / entry.graphs[precision], entry.signature, sizes)
    if len(prompts) < _LEAST_PROMPTS:
        raise LtxError(f"calibration needs {_LEAST_PROMPTS} prompts or more; got {len(prompts)}", "add some")
    return entry


def _some(steps: Sequence[Step]) -> list[Step]:
    """Returns the first step, one in the middle, and the last."""
    return [steps[i] for i in sorted({0, len(steps) // 2, len(steps) - 1})]


def _table(errors: Mapping[str, float], kept: AbstractSet[str]) -> Iterator[str]:
    """Yields a line for each block with the errors of its products in thousandths; those in brackets stay q8."""
    blocks: dict[str, list[str]] = {}
    for name, error in errors.items():
        block, product = place_of(name)
        thousandths = f"{1e3 * error:.0f}"
        blocks.setdefault(block, []).append(f"{product} {thousandths if name in kept else f'({thousandths})'}")
    yield "block: relative L2 of each product with integers, in thousandths; in brackets: stays q8"
    for block, products in blocks.items():
        yield f"{block}: {', '.join(products)}"


def _complete(engines: Engines, entry: ComponentEntry, work: Path, error: float) -> None:
    """Adds to the folder with the int8 graph all that the version folder has besides, and releases that."""
    manifest = engines.manifest
    (work / _MEASURING).unlink()
    for name in (GRAPH, WEIGHTS):
        with (work / name).open("rb") as file:
            os.fsync(file.fileno())  # before the manifest says that it is whole
    weights = (*entry.quantized[QUANTIZED].weights, WEIGHTS)
    added = replace(
        entry,
        graphs={**entry.graphs, CALIBRATED: GRAPH},
        quantized={**entry.quantized, CALIBRATED: Quantized(weights, error)},
    )
    files = manifest.files | describe_files({name: work / name for name in (GRAPH, WEIGHTS)})
    components = manifest.components | {"transformer": added}
    write_manifest(work, replace(manifest, components=components, files=files))
    with still_known(engines.folder):
        keep_rest(engines.folder, work)
    engines.held.release()
