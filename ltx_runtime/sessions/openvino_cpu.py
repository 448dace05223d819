"""OpenVINO on the CPU: products in bf16, or of 8-bit integers, for processors on which that is faster than fp32.

OpenVINO's own cache of compiled models is never used: with our graphs it returned wrong numbers, once even NaN.
"""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from ltx_runtime.errors import LtxError, explaining
from ltx_runtime.files import amount, partial_file
from ltx_runtime.folder.manifest import CALIBRATED, QUANTIZED, QUANTIZED_BLOCK, Engines
from ltx_runtime.packages import install_command
from ltx_runtime.sessions import BACKENDS, Arrays, UnsupportedError, graph_found
from ltx_runtime.sessions.found import Found
from ltx_runtime.sessions.merged_weights import put_into_model
from ltx_runtime.sessions.openvino_pieces import Piece, pieces_of
from ltx_runtime.sessions.processor import GROUP, free_memory, saturates, speedups
from ltx_runtime.spec.components import CONSTANT_INPUTS, ComponentName
from ltx_runtime.weights.merging import Weight, merged

_HINTS = {
    CALIBRATED: "f32",
    QUANTIZED: "f32",
    "bf16": "bf16",
}  # precision of everything that the graph computes in float32
# Least number of parameters and least speedup over fp32 for which the seconds that it takes to compile pay off.
_LEAST_PARAMETERS, _LEAST_SPEEDUP = 20_000_000, 1.25
# Private memory of a network: its parameters as they are packed for the processor, and its activations.
_BYTES_PER_PARAMETER, _ACTIVATION_BYTES = {CALIBRATED: 1.3, QUANTIZED: 1.3, "bf16": 2.3}, 1_000_000_000
_NO_MEMORY = re.compile(r"allocate memory|bad.?alloc|out of memory", re.IGNORECASE)
_POLL_MS = 50


def find(engines: Engines, name: ComponentName, backend: str) -> Found:
    """Returns a component's graph for this backend, or else one with more exact products.

    Raises:
        LtxError: OpenVINO is not installed, or the version folder lacks the component or such a graph of it.
    """
    if importlib.util.find_spec("openvino") is None:
        raise LtxError("openvino is not installed", command=install_command("openvino"))
    found = graph_found(engines, name, backend, BACKENDS[backend].precisions)
    return replace(found, packed_bytes=int(_BYTES_PER_PARAMETER[found.precision] * found.parameters))


def check_preferable(found: Found, *, measure: bool) -> None:
    """Checks that no later backend is the better choice for a component on this machine.

    Args:
        found: the graph.
        measure: whether its precision must also be the fastest on this processor, and its weights fit into memory.

    Raises:
        LtxError: a later backend is better; the problem says why.
    """
    precision, name = BACKENDS[found.backend].precisions[0], found.component.name
    if found.parameters < _LEAST_PARAMETERS:
        raise LtxError("the network is too small to be worth compiling")
    if found.precision != precision:
        made_by = ", which ltx-export calibrate makes" if precision == CALIBRATED and name == "transformer" else ""
        raise LtxError(f"no {precision} graph of {name}{made_by}")
    if name == "text_encoder":
        raise LtxError("ONNX Runtime encodes a prompt before OpenVINO has loaded the text encoder")
    if precision == CALIBRATED:
        _check_integers(measure)
    elif measure:
        _check_memory(found)
        _check_speed(precision)


def _check_integers(measure: bool) -> None:
    if measure:
        raise LtxError("int8 is used only where it is asked for")
    if saturates():
        raise LtxError("this processor has no exact products of 8-bit integers")


def _check_memory(found: Found) -> None:
    needed, free = found.packed_bytes + _ACTIVATION_BYTES, free_memory()
    if needed > free:
        raise LtxError(f"{found.component.name} takes {amount(needed, 1)} of memory, and {amount(free, 1)} are free")


def _check_speed(precision: str) -> None:
    try:
        faster = speedups()
    except Exception as error:  # an incomplete package may raise anything
        raise LtxError(f"OpenVINO cannot be used ({_reason_of(error)})") from error
    if precision not in faster:
        raise LtxError(f"this processor has no {precision} arithmetic")
    speedup = faster[precision]
    if speedup < _LEAST_SPEEDUP:
        raise LtxError(f"this processor computes in {precision} at {speedup:.1f} times the speed of fp32")
    if precision == QUANTIZED and speedup < (bf16 := faster.get("bf16", 0.0)):
        raise LtxError(f"this processor computes in bf16 at {bf16:.1f} times the speed of fp32, in q8 at {speedup:.1f}")


@dataclass
class _Compiled:
    """A piece that is compiled.

    Attributes:
        request: openvino.InferRequest of the piece.
        fixed: whether its inputs usually stay the same from run to run.
        inputs: a name of each input.
        outputs: all names of all outputs.
        seen: the arrays that its last run was given; empty if that run did not end well.
    """

    request: Any
    fixed: bool
    inputs: Sequence[str]
    outputs: Sequence[str]
    seen: Sequence[Any] = ()

    def run(self, tensors: Sequence[Any]) -> None:
        """Runs the piece on tensors of OpenVINO; Ctrl-C ends the run."""
        for name, tensor in zip(self.inputs, tensors, strict=True):
            self.request.set_tensor(name, tensor)
        try:
            self.request.start_async()
            while not self.request.wait_for(_POLL_MS):
                pass
        except BaseException:
            with suppress(RuntimeError):  # it raises that the run was cancelled
                self.request.cancel()
                self.request.wait()
            raise


class OpenVinoRunner:
    """One graph compiled for the CPU, with its weights packed in private memory.

    Weights in `merged` take the place of those in the files.
    """

    def __init__(self, found: Found, merged: Mapping[str, Weight] = MappingProxyType({})) -> None:
        import openvino  # noqa: PLC0415  (takes 0.2 s)

        settings: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": _HINTS[found.precision],
            "PERFORMANCE_HINT": "LATENCY",
            GROUP: QUANTIZED_BLOCK,
        }
        if found.threads is not None:
            settings["INFERENCE_NUM_THREADS"] = found.threads
        self._graph = found.path
        core = openvino.Core()

        def compiled(piece: Piece) -> _Compiled:
            model = core.compile_model(piece.model, "CPU", settings)
            inputs = [value.get_any_name() for value in model.inputs]
            outputs = [name for value in model.outputs for name in value.get_names()]
            return _Compiled(model.create_infer_request(), piece.fixed, inputs, outputs)

        with _beside_weights(found) as graph:
            model = core.read_model(str(graph))
        self._merged = merged  # the model uses their memory
        put_into_model(openvino, model, merged)
        self.outputs: Sequence[str] = [output.get_any_name() for output in model.outputs]
        with ThreadPoolExecutor(found.threads or os.cpu_count()) as threads:
            self._pieces = list(threads.map(compiled, pieces_of(model, CONSTANT_INPUTS)))
        self._tensor = openvino.Tensor

    def run(self, feeds: Arrays, wanted: Sequence[str]) -> dict[str, np.ndarray[Any, Any]]:
        """Runs the graph once; Ctrl-C ends the run. What depends only on the same text as before is not run again.

        Raises:
            LtxError: a node of the graph cannot be computed, for example as its inputs do not fit each other.
            MemoryError: there is too little memory.
        """
        try:
            # Copied, once for all pieces: OpenVINO refuses to share memory of arrays that are read-only.
            values = {name: self._tensor(np.ascontiguousarray(array)) for name, array in feeds.items()}
            for piece in self._pieces:
                given = [feeds[name] for name in piece.inputs if name in feeds]
                if not (piece.fixed and _are_same(given, piece.seen)):
                    piece.seen = ()
                    piece.run([values[name] for name in piece.inputs])
                    piece.seen = given
                values |= {name: piece.request.get_tensor(name) for name in piece.outputs}
            return {name: np.array(values[name].data) for name in wanted}
        except RuntimeError as error:
            if _NO_MEMORY.search(str(error)):
                raise MemoryError(str(error)) from error
            raise LtxError(f"OpenVINO cannot run {self._graph} ({_reason_of(error)})", "try --backend cpu") from error

    def close(self) -> None:
        """Frees weights and buffers."""
        self._pieces = []
        self._merged = {}


def _are_same(given: Sequence[Any], seen: Sequence[Any]) -> bool:
    """Returns whether arrays are the objects that they were, and read-only, so that nobody can have changed them."""
    return len(given) == len(seen) and all(
        now is before and not now.flags.writeable for now, before in zip(given, seen, strict=True)
    )


@contextmanager
def _beside_weights(found: Found) -> Iterator[Path]:
    """Yields a path of the graph at which OpenVINO finds the weights: in the graph's own folder, and not through links.

    If the weights are elsewhere, a copy of the graph lies beside them while it is read.
    """
    if found.path.parent == found.weights:
        yield found.path
        return
    doing = f"copy {found.path.name} to {found.weights}, beside its weights"
    with explaining(doing), partial_file(found.weights, ".onnx") as copy:
        copy.write_bytes(found.path.read_bytes())
        yield copy


def load(found: Found) -> OpenVinoRunner:
    """Compiles a graph.

    Raises:
        LtxError: LoRAs cannot be merged into its weights.
        UnsupportedError: OpenVINO cannot read or compile the graph, or there is too little memory for packed weights.
    """
    weights = {} if found.merging is None else merged(found.merging)
    try:
        return OpenVinoRunner(found, weights)
    except Exception as error:  # OpenVINO raises RuntimeError for everything
        lacks_memory = isinstance(error, MemoryError) or _NO_MEMORY.search(str(error))
        reason = "there is too little memory" if lacks_memory else _reason_of(error)
        raise UnsupportedError(f"OpenVINO cannot run {found.path} ({reason})", "use --backend cpu") from error


def _reason_of(error: Exception) -> str:
    """Returns the end of an error's message, where OpenVINO names the cause."""
    return " ".join(str(error).split())[-200:] or type(error).__name__
