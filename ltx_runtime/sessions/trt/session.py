"""Finds, opens and runs engines with TensorRT or TensorRT-RTX, with the same code for both.

Runs take and return arrays. Engine, weights and buffers stay on the GPU for as long as the session is open. The
libraries and CUDA are imported only if there is an engine to run.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np

from ltx_runtime.errors import LtxError
from ltx_runtime.folder.address import EngineAddress, check_engine, engine_paths, engines_option
from ltx_runtime.folder.manifest import Engines
from ltx_runtime.folder.profiles import profile_for, sizes_of
from ltx_runtime.folder.sidecar import ENGINE_PRECISIONS
from ltx_runtime.sessions import Arrays, engine_found
from ltx_runtime.sessions.cuda import device as cuda
from ltx_runtime.sessions.cuda.gpu import find_gpu
from ltx_runtime.sessions.found import FoundEngine
from ltx_runtime.sessions.trt.engine import OpenEngine, advice_on_weights
from ltx_runtime.sessions.trt.library import load_library, maker_of, refuse_unserved
from ltx_runtime.sessions.trt.ports import PortBuffers
from ltx_runtime.sessions.trt.weights import WeightInputs
from ltx_runtime.spec.components import UNEVEN, ComponentName

_NO_PROFILE = -1
_MOST_SHOWN = 5  # folders of engines in a message


def find(engines: Engines, name: ComponentName, backend: str) -> FoundEngine:
    """Finds the engine of a component that fits the version folder, the library and the GPU; cheap checks come first.

    Raises:
        LtxError: there is no such engine; the error has the reason in one clause and the command that builds it.
    """
    version = engines.manifest.version
    folder_option = engines_option(engines.folder, version)
    command = f"ltx-export engine {shlex.quote(version)} --component {name} --builder {backend}{folder_option}"
    folders = list(dict.fromkeys(path.parent.name for path in engine_paths(engines, f"*-{backend}-*/{name}.*.engine")))
    if not folders:
        links = sorted(path.name for path in engines.folder.glob(f"*-{backend}-*") if path.is_symlink())
        where = f": {links[0]} is a link, and engines are used only if they are in the folder itself" if links else ""
        raise LtxError(f"no engine of {name}{where}", command=command)
    library = load_library(backend)
    gpu = find_gpu()
    refuse_unserved(library, backend, gpu)
    maker = maker_of(backend, library, gpu)
    refusals: list[LtxError] = []
    for precision in ENGINE_PRECISIONS:
        address = EngineAddress(engines, name, maker, precision)
        if not address.path.is_file():
            continue
        try:
            return engine_found(address, check_engine(address), gpu.memory_bytes)
        except LtxError as error:
            refusals.append(error)
    if refusals:
        raise refusals[0]
    others = ", ".join(folders[:_MOST_SHOWN])
    raise LtxError(f"no engine of {name} for {maker.folder}, only for {others}", command=command)


class TrtRunner:
    """One open engine; `close` frees everything that it holds."""

    def __init__(
        self,
        found: FoundEngine,
        gpu: cuda.Device,
        engine: OpenEngine,
        ports: PortBuffers,
        weights: dict[str, int],
        held: ExitStack,
    ) -> None:
        """Takes over an open engine and all that belongs to it.

        Args:
            found: the engine's address and sidecar.
            gpu: the device, which has been joined.
            engine: the engine, with its execution context.
            ports: buffers of the inputs and outputs.
            weights: GPU addresses of the weights that are inputs, by input name.
            held: a stack of callbacks that free all of these.
        """
        self._found, self._device, self._engine, self._ports, self._weights = found, gpu, engine, ports, weights
        self._held = held
        self._held.callback(self._drop_graph)
        self._profile = _NO_PROFILE
        self._shaped: tuple[int, dict[str, tuple[int, ...]]] | None = None
        self._activations = 0
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._bound: list[tuple[str, int]] = []
        self._ran = False
        self._captures = not engine.captures
        self._graph: Any = None

    @property
    def outputs(self) -> Sequence[str]:
        """Names of all outputs that `run` can return."""
        return self._engine.outputs

    def run(self, feeds: Arrays, wanted: Sequence[str]) -> dict[str, np.ndarray[Any, Any]]:
        """Runs the engine once, and waits until all work is done.

        Raises:
            LtxError: the engine does not serve these sizes, or there is too little GPU memory; smaller inputs may fit.
        """
        self._shape(feeds)
        for name, array in feeds.items():
            self._ports.fill(name, array)
        self._bind()
        self._compute()
        outputs = {name: self._ports.fetch(name, self._shapes[name]) for name in wanted}
        self._device.synchronize()
        return outputs

    def _shape(self, feeds: Arrays) -> None:
        """Sets profile and input shapes, and queries the output shapes and the memory that activations need."""
        sizes = sizes_of(self._found.component, feeds)
        index = profile_for(self._found.profiles, sizes)
        if index is None:
            raise refusal_of(self._found, sizes)
        shapes = {name: array.shape for name, array in feeds.items()}
        if self._shaped == (index, shapes):
            return
        context = self._engine.context
        self._shaped, self._bound = None, []
        if index != self._profile:
            self._profile = _NO_PROFILE
            if not context.set_optimization_profile_async(index, self._device.stream):
                raise self._engine.failure(f"choose profile {index} of")
            self._profile = index
        for name, shape in shapes.items():
            if not context.set_input_shape(name, shape):
                raise self._engine.failure(f"give {name} the shape {shape} in")
        self._activations = context.update_device_memory_size_for_shapes()
        self._shapes = {name: tuple(context.get_tensor_shape(name)) for name in self.outputs}
        if any(size < 0 for shape in self._shapes.values() for size in shape):
            raise self._engine.failure(f"say what it makes of {shapes} in")
        self._shaped = (index, shapes)

    def _bind(self) -> None:
        """Makes room for outputs and activations, and passes all addresses to the engine if any has changed."""
        name = self._found.component.name
        for output in self.outputs:
            self._ports.make_room(output, self._shapes[output])
        arena = self._device.arena.reserve(self._activations, f"one run of {name}", _advice_on_sizes(name))
        addresses = {**self._ports.addresses(), **self._weights}
        bound = [("", arena.address), ("size", arena.size), *addresses.items()]
        if bound == self._bound:
            return
        self._drop_graph()  # a captured graph is valid only while the context stays unchanged
        self._bound, self._ran = [], False
        context = self._engine.context
        context.set_device_memory(arena.address, arena.size)
        for port, address in addresses.items():
            if not context.set_tensor_address(port, address):
                raise self._engine.failure(f"give {port} an address in")
        self._bound = bound

    def _compute(self) -> None:
        """Runs the engine; the second run with unchanged bindings is captured as a CUDA graph, which is then replayed.

        A library that captures CUDA graphs by itself is only run.
        """
        if self._graph is None and self._captures and self._ran:
            try:
                self._graph = self._device.record(self._engine.enqueue)
            except (RuntimeError, LtxError):  # not every engine can be captured; a plain run reports real errors
                self._captures = False
        if self._graph is not None:
            self._device.launch(self._graph)
        else:
            self._engine.enqueue()
        self._ran = True

    def _drop_graph(self) -> None:
        if self._graph is not None:
            graph, self._graph = self._graph, None
            self._device.forget(graph)

    def close(self) -> None:
        """Waits for all work and frees everything that the runner holds."""
        self._held.close()


def refusal_of(found: FoundEngine, sizes: dict[str, int]) -> LtxError:
    """Returns the error for an engine that does not serve these sizes."""
    listed = ", ".join(f"{count} {axis}" for axis, count in sizes.items())
    return LtxError(f"the {found.backend} engine of {found.component.name} does not serve {listed}", "use other sizes")


def _advice_on_sizes(name: ComponentName) -> str:
    if name in UNEVEN:
        return "give a smaller --memory"
    return "ask for a smaller size or fewer frames" + (", or add --low-memory" if name == "transformer" else "")


def load(found: FoundEngine) -> TrtRunner:
    """Opens an engine, and frees everything again if that fails.

    Raises:
        LtxError: the engine is damaged, or there is too little memory.
    """
    library = load_library(found.backend)
    name = found.component.name
    with ExitStack() as stack:
        gpu = cuda.device()
        gpu.join()
        stack.callback(gpu.leave)
        weights: dict[str, int] = {}
        engine = OpenEngine(library, found, gpu)
        stack.callback(engine.close)
        engine.load()
        if found.sidecar.weight_inputs:
            inputs = WeightInputs(gpu, found, advice_on_weights(found))
            stack.callback(inputs.free)
            weights = inputs.addresses
        engine.make_context()
        names = (*(port.name for port in found.component.inputs), *engine.outputs)
        ports = PortBuffers(gpu, {port: engine.dtype_of(port) for port in names}, name, _advice_on_sizes(name))
        stack.callback(ports.free)
        runner = TrtRunner(found, gpu, engine, ports, weights, stack.pop_all())
        runner._held.callback(gpu.synchronize)
        return runner
