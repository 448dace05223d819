"""Tries integer products: writes their weights and a graph, measures its error, and chooses which products stay q8."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ltx_export.calibration.measure import Feeds
from ltx_export.calibration.products import IntegerInput, IntegerProduct, use_integers
from ltx_export.calibration.smoothing import Smoothing, integers_of
from ltx_export.checkpoints.values import float32_of
from ltx_export.recorded import relative_l2, run_graph
from ltx_runtime.errors import LtxError
from ltx_runtime.folder.manifest import CALIBRATED, QUANTIZED, Engines
from ltx_runtime.weights.checkpoint import StoredTensor
from ltx_runtime.weights.writing import Chunk, Entry, write_safetensors

GRAPH, WEIGHTS = f"transformer.{CALIBRATED}.onnx", f"transformer.{CALIBRATED}.safetensors"

Report = Callable[[str], None]
Step = tuple[Feeds, NDArray[np.float32]]


@dataclass(frozen=True)
class Calibrated:
    """The products of a transformer and how each could be quantized.

    Attributes:
        matrices: matrices that multiply each value, by the value's name.
        stored: place of each matrix (N, K).
        smoothing: how each value is quantized.
    """

    matrices: Mapping[str, Sequence[str]]
    stored: Mapping[str, StoredTensor]
    smoothing: Mapping[str, Smoothing]

    def errors(self) -> dict[str, float]:
        """Returns relative L2 of each product, by its matrix."""
        return {
            matrix: error
            for x, names in self.matrices.items()
            for matrix, error in zip(names, self.smoothing[x].errors, strict=True)
        }


@dataclass(frozen=True)
class Trial:
    """Graphs of which some products are integers, tried on steps that were held out.

    Attributes:
        engines: the version folder.
        calibrated: the products, and how each is quantized.
        work: folder with the weights of the q8 graph, and the integers of all products.
        steps: inputs and the exact output of some steps.
    """

    engines: Engines
    calibrated: Calibrated
    work: Path
    steps: Sequence[Step]

    def write_and_measure(self, kept: AbstractSet[str], steps: Sequence[Step] = ()) -> float:
        """Writes the graph in which these products are integers; returns its largest relative L2 in the steps."""
        component = self.engines.component("transformer").signature
        model = ir.load(self.engines.folder / self.engines.component("transformer").graphs[QUANTIZED])
        integers = _write_weights(self.calibrated, kept, self.work / WEIGHTS)
        use_integers(model.graph, *integers, self.work)
        ir.save(model, self.work / GRAPH)
        return max(
            relative_l2(run_graph(self.work / GRAPH, self.work, component, [feeds])[0], velocity)
            for feeds, velocity in steps or self.steps
        )

    def chosen(self, limit: float, report: Report) -> tuple[AbstractSet[str], float]:
        """Writes the graph with as many products as the limit allows; returns them and its error.

        The graph of the last attempt is the one that remains.

        Products of one kind go together. What a kind adds to the error of a step is measured, since errors that are
        alike in all tokens, as behind the attention to the text, count more than their size.

        Raises:
            LtxError: no kind can be kept.
        """
        every = self.calibrated.errors().keys()
        error = self.write_and_measure(every)
        if error <= limit:
            return every, error
        if (least := self.write_and_measure(frozenset())) > limit:
            raise LtxError(
                f"all products in int8 make an error of {error:.1e}, and the q8 graph alone {least:.1e}; the limit is "
                f"{limit:g}",
                "calibrate with a larger one",
            )
        report(f"transformer: relative L2 {error:.1e} with all products in int8, more than {limit:g}")
        kinds: dict[str, set[str]] = {}
        for name in every:
            kinds.setdefault(place_of(name)[1], set()).add(name)
        first = self.steps[:1]
        added = {}
        for kind, names in kinds.items():
            added[kind] = self.write_and_measure(names, first)
            report(f"transformer: relative L2 {added[kind]:.1e} with {kind} of every block in int8")
        order = sorted(kinds, key=added.__getitem__)
        for count in range(len(order) - 1, 0, -1):
            kept = set().union(*(kinds[kind] for kind in order[:count]))
            error = self.write_and_measure(kept, first)
            if error <= limit and (error := self.write_and_measure(kept)) <= limit:
                return kept, error
        raise LtxError(
            f"{order[0]} alone in int8 makes an error of {error:.1e}; the limit is {limit:g}",
            "use q8, or calibrate with a larger limit",
        )


def place_of(name: str) -> tuple[str, str]:
    """Returns the number of the block and the kind of a product, by its matrix."""
    _, block, kind = name.removesuffix(".weight").split(".", 2)
    return block, kind


def _write_weights(
    calibrated: Calibrated, kept: AbstractSet[str], path: Path
) -> tuple[dict[str, IntegerInput], dict[str, IntegerProduct]]:
    """Writes the integers of some products, and the factors and steps of their inputs."""
    groups: list[tuple[tuple[Entry, ...], Callable[[], Iterator[Chunk]]]] = []
    inputs = {x: set(names) & kept for x, names in calibrated.matrices.items()}
    for x in filter(inputs.__getitem__, inputs):
        smoothing = calibrated.smoothing[x]
        width = len(smoothing.factors)
        entries = Entry(f"{x}.factors", "F32", (width,)), Entry(f"{x}.step", "F32", ())
        groups.append((entries, partial(_input_bytes, smoothing)))
        for name in sorted(inputs[x]):
            rows, columns = calibrated.stored[name].shape
            entries = Entry(f"{name}.codes", "I8", (columns, rows)), Entry(f"{name}.scales", "F32", (rows,))
            groups.append((entries, partial(_matrix_bytes, calibrated.stored[name], smoothing)))
    path.unlink(missing_ok=True)  # so that there is never more than one on the disk
    stored = write_safetensors(path, groups)
    return (
        {x: IntegerInput(stored[f"{x}.factors"], stored[f"{x}.step"]) for x, names in inputs.items() if names},
        {name: IntegerProduct(stored[f"{name}.codes"], stored[f"{name}.scales"]) for name in kept},
    )


def _input_bytes(smoothing: Smoothing) -> Iterator[Chunk]:
    yield smoothing.factors.astype("<f4").tobytes()
    yield smoothing.step.astype("<f4").tobytes()


def _matrix_bytes(matrix: StoredTensor, smoothing: Smoothing) -> Iterator[Chunk]:
    codes, scales = integers_of(float32_of(matrix), smoothing.factors)
    yield codes.T.tobytes()
    yield scales.astype("<f4").tobytes()
