"""The Session protocol, the table of backends, and the functions that find and open a component's graph or engine."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from ltx_runtime.errors import LtxError
from ltx_runtime.folder.address import EngineAddress
from ltx_runtime.folder.manifest import CALIBRATED, QUANTIZED, Engines
from ltx_runtime.folder.sidecar import ENGINE_PRECISIONS, Sidecar
from ltx_runtime.graph.check import check_graph
from ltx_runtime.packages import install_command
from ltx_runtime.sessions.found import Found, FoundEngine
from ltx_runtime.spec.components import Component, ComponentName, check_feeds, check_outputs
from ltx_runtime.weights.lora import LoraFile
from ltx_runtime.weights.merging import merging_of

# ONNX Runtime (from 1.29) and OpenVINO send statistics of their use to their makers, and write an identifier into the
# home for it, unless they are told not to before they are imported. OpenVINO does without a package that is not there.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]

Arrays = Mapping[str, np.ndarray[Any, Any]]
AUTO = "auto"


class UnsupportedError(LtxError):
    """The error of a backend whose library turns out, at load or in the first run, not to run a graph."""


class Runner(Protocol):
    """A loaded graph or engine, as a backend's `load` returns it; it can be run until it is closed.

    `outputs` are the names of all outputs: those of the component and, for a decoder on a GPU, also
    `frames` (B, F, H, W, 3) uint8 RGB and `mean` (B,) float32 of the video, which is not finite if any value is not.
    """

    @property
    def outputs(self) -> Sequence[str]: ...

    def run(self, feeds: Arrays, wanted: Sequence[str]) -> dict[str, np.ndarray[Any, Any]]: ...

    def close(self) -> None: ...


class Session(Protocol):
    """An open component, which takes arrays by port name and returns arrays by port name."""

    @property
    def component(self) -> Component: ...

    @property
    def outputs(self) -> Sequence[str]: ...

    def run(self, feeds: Arrays, wanted: Sequence[str] = ()) -> dict[str, np.ndarray[Any, Any]]: ...


@dataclass(frozen=True)
class Backend:
    """The module of a backend, and the extra that installs its library.

    The module has `find(engines, name, backend) -> Found`, which raises LtxError with the reason if it cannot run the
    component, and `load(found) -> Runner`. The module of a backend that is not `always_preferable` to those after it
    also has `check_preferable(found, measure=)`, which raises LtxError with the reason why AUTO should not use it.

    Attributes:
        precisions: precisions of the graphs that it runs, or from which its engines are built, in order of preference.
        on_cpu: whether it computes on the CPU.
        always_preferable: whether AUTO uses it wherever it can run a component.
        loads_graphs: whether it loads the graph of a component, which is checked before that, and not an engine.
        stores_scores: whether attention holds the scores of all pairs of tokens, if it runs on a CPU.
    """

    module: str
    extra: str
    precisions: tuple[str, ...] = ()
    on_cpu: bool = False
    always_preferable: bool = True
    loads_graphs: bool = False
    stores_scores: bool = True


_OPENVINO = "ltx_runtime.sessions.openvino_cpu"
# Backends in the order in which they are tried; openvino_int8 only where it is asked for, see CPU_MODES.
BACKENDS: dict[str, Backend] = {
    "tensorrt": Backend("ltx_runtime.sessions.trt.session", "tensorrt", ENGINE_PRECISIONS),
    "tensorrt_rtx": Backend("ltx_runtime.sessions.trt.session", "tensorrt-rtx", ENGINE_PRECISIONS),
    "cuda": Backend("ltx_runtime.sessions.onnxruntime_cuda", "gpu", ("bf16", "fp16", "fp32"), loads_graphs=True),
    "openvino_int8": Backend(_OPENVINO, "openvino", (CALIBRATED, QUANTIZED, "bf16"), True, False, True, False),
    "openvino_q8": Backend(_OPENVINO, "openvino", (QUANTIZED, "bf16"), True, False, True, False),
    "openvino": Backend(_OPENVINO, "openvino", ("bf16",), True, False, True, False),
    "cpu": Backend("ltx_runtime.sessions.onnxruntime_cpu", "cpu", ("fp32",), True, loads_graphs=True),
}
# Way to compute on a CPU -> the backends on the CPU that AUTO may use for it. With "auto" it uses one that is not
# always preferable only where that was measured to be faster.
CPU_MODES: dict[str, frozenset[str]] = {
    AUTO: frozenset({"openvino_q8", "openvino", "cpu"}),
    "exact": frozenset({"cpu"}),
    "bf16": frozenset({"openvino", "cpu"}),
    "q8": frozenset({"openvino_q8", "openvino", "cpu"}),
    "int8": frozenset({"openvino_int8", "openvino_q8", "openvino", "cpu"}),
}


@dataclass(frozen=True)
class CheckedSession:
    """A runner whose inputs are checked against the component's ports before every run."""

    component: Component
    runner: Runner

    @property
    def outputs(self) -> Sequence[str]:
        """Names of all outputs that `run` can return."""
        return self.runner.outputs

    def run(self, feeds: Arrays, wanted: Sequence[str] = ()) -> dict[str, np.ndarray[Any, Any]]:
        """Runs the component once; returns the outputs in `wanted`, or the component's own outputs if it is empty.

        A read-only array that is the same object as in the previous run is assumed to be unchanged.

        Raises:
            ValueError: the feeds do not fit the component's ports.
            LtxError: the outputs do not fit the component's ports.
        """
        sizes = check_feeds(self.component, feeds)
        outputs = self.runner.run(feeds, wanted or [port.name for port in self.component.outputs])
        check_outputs(self.component, sizes, outputs)
        return outputs


def find(
    engines: Engines,
    name: ComponentName,
    backend: str = AUTO,
    *,
    after: str = "",
    cpu_mode: str = AUTO,
    loras: Sequence[LoraFile] = (),
) -> Found:
    """Finds the graph or engine that runs a component, for one backend or for the first backend that has one.

    Args:
        engines: the version folder.
        name: name of the component.
        backend: a name of BACKENDS, or AUTO.
        after: AUTO tries only the backends that follow this one in BACKENDS.
        cpu_mode: a name of CPU_MODES, which AUTO follows on the CPU.
        loras: LoRAs that are merged into the component's weights.

    Raises:
        LtxError: the backend is unknown, not installed, or cannot run the component here; or a LoRA does not fit.
    """
    if backend != AUTO and backend not in BACKENDS:
        raise LtxError(f"unknown backend {backend!r}", f"use one of {', '.join((AUTO, *BACKENDS))}")
    order = [name for name, row in BACKENDS.items() if not row.on_cpu or name in CPU_MODES[cpu_mode]]
    candidates = order[order.index(after) + 1 if after else 0 :]
    if backend != AUTO:
        return _found(engines, name, backend, loras)
    reasons: list[str] = []
    for candidate in candidates:
        try:
            found = find_preferable(engines, name, candidate, measure=cpu_mode == AUTO, loras=loras)
            return replace(found, reasons=tuple(reasons))
        except LtxError as error:
            reasons.append(f"{candidate}: {error.problem}")
            refusal = error
    for candidate in candidates:
        with suppress(LtxError):  # one that is not the best choice is better than none
            if not BACKENDS[candidate].always_preferable:
                return replace(_found(engines, name, candidate, loras), reasons=tuple(reasons))
    raise refusal


def find_preferable(
    engines: Engines, name: ComponentName, backend: str, *, measure: bool = True, loras: Sequence[LoraFile] = ()
) -> Found:
    """Finds the graph or engine that one backend would run for a component, if AUTO may choose this backend.

    Args:
        engines: the version folder.
        name: name of the component.
        backend: a name of BACKENDS.
        measure: whether it must also be the fastest on this machine.
        loras: LoRAs that are merged into the component's weights.

    Raises:
        LtxError: the backend is not installed, cannot run the component here, or would do so worse than a later one.
    """
    found = _found(engines, name, backend, loras)
    if not BACKENDS[backend].always_preferable:
        _module(backend).check_preferable(found, measure=measure)
    return found


def _found(engines: Engines, name: ComponentName, backend: str, loras: Sequence[LoraFile] = ()) -> Found:
    found = _module(backend).find(engines, name, backend)
    assert isinstance(found, Found)
    return _with_loras(engines, found, loras) if loras else found


def _with_loras(engines: Engines, found: Found, loras: Sequence[LoraFile]) -> Found:
    """Returns what was found, to be loaded with LoRAs.

    Raises:
        LtxError: its weights cannot change, or a LoRA cannot be read or does not fit.
    """
    name = found.component.name
    if isinstance(found, FoundEngine):
        raise LtxError(
            f"the weights of the {found.backend} engine of {name} cannot take LoRAs",
            "use --backend cuda or cpu, or export the version again with --lora and build its engines",
        )
    files = engines.component(name).weights_of(found.precision)
    checksums = [engines.manifest.files[file].checksum for file in files if file in engines.manifest.files]
    merging = merging_of(found.path, found.weights, checksums, loras)
    held = {**found.file_bytes, merging.path or found.path: merging.size_bytes}
    return replace(found, merging=merging, file_bytes=held)


def check_loadable(found: Found) -> None:
    """Raises LtxError if the graph that was found is not one that a library may load; see `check_graph`."""
    if BACKENDS[found.backend].loads_graphs:
        check_graph(found.path, found.component, found.named)


@contextmanager
def open_session(found: Found) -> Iterator[Session]:
    """Yields an open session of a graph or engine, and frees its memory at the end of the `with` block.

    Raises:
        LtxError: the graph or engine cannot be loaded.
    """
    runner: Runner = found.held.read(lambda: _loaded(found.placed()))
    try:
        yield CheckedSession(found.component, runner)
    finally:
        runner.close()


def _loaded(found: Found) -> Runner:
    check_loadable(found)
    runner: Runner = _module(found.backend).load(found)
    return runner


def graph_found(engines: Engines, name: ComponentName, backend: str, precisions: Sequence[str]) -> Found:
    """Returns the graph of a component in the first of `precisions` that the version folder has.

    Raises:
        LtxError: the folder lacks the component, or has no graph of it in these precisions.
    """
    entry = engines.component(name)
    for precision in precisions:
        if precision in entry.graphs:
            path = engines.folder / entry.graphs[precision]
            is_usual = entry.weights_of(precision) == entry.weights
            weights = engines.weights_folder(name) if is_usual else engines.folder
            named, held = engines.weight_sizes(name, precision), engines.held
            sizes = {weights / file: size for file, size in named.items()}
            parameters = entry.parameters
            return Found(backend, entry.signature, path, weights, precision, parameters, sizes, named=named, held=held)
    raise LtxError(
        f"{engines.folder} has no {' or '.join(precisions)} graph of {name}, which backend {backend} needs",
        command=engines.export_command(),
    )


def engine_found(address: EngineAddress, sidecar: Sidecar, gpu_bytes: int | None = None) -> FoundEngine:
    """Returns the engine at an address, to be run on a GPU with `gpu_bytes` of total memory."""
    engines, name = address.engines, address.component
    weights = engines.weights_folder(name)
    sizes = {address.path: address.path.stat().st_size}
    for weight in sidecar.weight_inputs.values():
        sizes[weights / weight.file] = sizes.get(weights / weight.file, 0) + weight.size_bytes
    return FoundEngine(
        address.maker.builder,
        engines.component(name).signature,
        address.path,
        weights,
        address.precision,
        engines.component(name).parameters,
        file_bytes=sizes,
        gpu_bytes=gpu_bytes,
        held=engines.held,
        address=address,
        sidecar=sidecar,
    )


def _module(backend: str) -> Any:
    row = BACKENDS[backend]
    try:
        return importlib.import_module(row.module)
    except ModuleNotFoundError as error:
        raise LtxError(f"{error.name} is not installed", command=install_command(row.extra)) from error
