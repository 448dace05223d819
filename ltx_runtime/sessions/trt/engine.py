"""Deserializes an engine, refits its weights if needed, and makes its execution context.

The session, which runs engines, uses this module. Where the two libraries differ, it checks which features one has.
"""

from __future__ import annotations

import mmap
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ltx_runtime.errors import LtxError, explaining
from ltx_runtime.files import amount
from ltx_runtime.folder.sidecar import read_sidecar
from ltx_runtime.sessions.cuda.device import Device
from ltx_runtime.sessions.cuda.memory import GpuMemoryError
from ltx_runtime.sessions.found import FoundEngine
from ltx_runtime.sessions.trt.files import leave, locked, read
from ltx_runtime.sessions.trt.library import compiles_at_run_time, first_error, logger_of, title_of
from ltx_runtime.sessions.trt.weights import keep_plan, plan_path, refit, weights_bytes
from ltx_runtime.trust.made_here import is_made_here

_NO_MEMORY = re.compile(r"out ?of ?memory|bad.?alloc|cudaErrorMemoryAllocation", re.IGNORECASE)
_CHECKSUM_DIGITS = 16  # of an engine's checksum in the names of files beside it
_SPARE_BYTES = 512 << 20  # for inputs, outputs and the driver


def usable_bytes(device: Device, found: FoundEngine) -> int:
    """Returns how many bytes of the GPU's free memory may be used."""
    free = device.free_bytes()
    return free if found.gpu_memory_bytes is None else min(free, found.gpu_memory_bytes)


def advice_on_weights(found: FoundEngine) -> str:
    """Returns the advice for weights that do not fit on the GPU."""
    advice = "close other programs that use it"
    if not found.sidecar.weight_streaming:
        advice = f"run: {found.rebuild_command()} --weights embedded --weight-streaming"
    return f"{advice}, or use a smaller version"


class OpenEngine:
    """One engine and its execution context, until closed.

    Attributes:
        context: the execution context, to which the caller must give memory for activations; None before make_context.
        outputs: names of the engine's outputs; empty before load.
        captures: whether the library captures CUDA graphs by itself.
    """

    context: Any = None
    outputs: Sequence[str] = ()

    def __init__(self, library: Any, found: FoundEngine, device: Device) -> None:
        """Stores the arguments; `load` loads the engine."""
        self._library, self._found, self._device = library, found, device
        self._sidecar = found.sidecar
        self._runtime: Any = None
        self._engine: Any = None
        self._kernels: Any = None
        self._kernels_read: bytes | None = None
        self.captures = hasattr(library, "CudaGraphStrategy")

    def load(self) -> None:
        """Loads the engine into memory, with all weights that are not inputs.

        Raises:
            LtxError: the engine is damaged, was just built again, has other ports than its graph, or does not fit into
                memory.
        """
        self._runtime = self._library.Runtime(logger_of(self._library))
        if self._sidecar.weights == "refit":
            self._load_refitted()
        else:
            self._refuse_too_large(self._found.path)
            self._deserialize(self._found.path)
            self._refuse_missing()
        if not self._stands():
            raise LtxError(f"{self._found.path} was built again while it was opened", "run the command again")
        self._check_ports()

    def _stands(self) -> bool:
        """Returns whether the engine was not built again since it was found."""
        try:
            return read_sidecar(self._found.path).engine_checksum == self._sidecar.engine_checksum
        except LtxError:
            return False

    def _load_refitted(self) -> None:
        plan = plan_path(self._found)
        with locked(plan):  # another process waits for the refitted engine and then loads it
            if self._may_use(plan):
                self._refuse_too_large(plan)
                self._deserialize(plan)
            if self._engine is not None:
                return
            self._deserialize(self._found.path)
            self._refuse_missing()
            try:
                refit(self._library, self._engine, self._found)
            except LtxError as error:
                raise self._out_of_memory() or LtxError(str(error), command=self._found.rebuild_command()) from None
            keep_plan(self._library, self._engine, plan)

    def _may_use(self, path: Path) -> bool:
        """Returns whether a session left this file beside the engine: of this user, since it is code, or of anyone."""
        return path.is_file() if self._found.address.engines.trusted else is_made_here(path)

    def _refuse_too_large(self, plan: Path) -> None:
        """Raises GpuMemoryError if a plan is too large: it takes about as much memory as its file has bytes."""
        size = plan.stat().st_size + weights_bytes(self._sidecar)
        usable = usable_bytes(self._device, self._found)
        if size > usable and not self._sidecar.weight_streaming:
            raise GpuMemoryError(
                f"the {self._found.backend} engine of {self._found.component.name} needs {amount(size, 1)} of GPU "
                f"memory, and {amount(usable, 1)} may be used",
                advice_on_weights(self._found),
            )

    def _deserialize(self, path: Path) -> None:
        """Deserializes the engine from a memory-mapped file, so that host memory never holds a copy."""
        logger_of(self._library).heard.clear()
        with explaining(f"read {path}"), path.open("rb") as file:
            if path.stat().st_size:
                with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
                    self._engine = self._runtime.deserialize_cuda_engine(mapped)

    def _refuse_missing(self) -> None:
        if self._engine is None:
            raise self._out_of_memory() or LtxError(
                f"{self._found.path} cannot be loaded by {title_of(self._found.backend)} "
                f"({first_error(self._library)})",
                command=self._found.rebuild_command(),
            )

    def _out_of_memory(self) -> GpuMemoryError | None:
        """Returns a GpuMemoryError if the library has logged that memory ran out, else None."""
        if not any(_NO_MEMORY.search(line) for line in logger_of(self._library).heard):
            return None
        free = amount(self._device.free_bytes(), 1)
        return GpuMemoryError(
            f"the {self._found.backend} engine of {self._found.component.name} needs more GPU memory than the {free} "
            f"that are free",
            advice_on_weights(self._found),
        )

    def _check_ports(self) -> None:
        """Raises LtxError unless the engine has exactly the expected inputs, and all outputs of the component."""
        names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        inputs = {name for name in names if self._engine.get_tensor_mode(name) == self._library.TensorIOMode.INPUT}
        self.outputs = [name for name in names if name not in inputs]
        component = self._found.component
        expected = {port.name for port in component.inputs} | self._sidecar.weight_inputs.keys()
        if expected != inputs or not {port.name for port in component.outputs} <= {*self.outputs}:
            raise LtxError(
                f"{self._found.path} has other inputs or outputs than its graph", command=self._found.rebuild_command()
            )

    def make_context(self) -> None:
        """Decides which weights stay in host memory, and makes the execution context.

        Raises:
            LtxError: there is too little memory, or the library cannot make a context.
        """
        self._stream_weights()
        config = self._engine.create_runtime_config()
        strategies = self._library.ExecutionContextAllocationStrategy
        config.set_execution_context_allocation_strategy(strategies.USER_MANAGED)
        if self.captures:
            config.cuda_graph_strategy = self._library.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        if hasattr(self._library, "DynamicShapesKernelSpecializationStrategy"):
            # By default, the first steps run fallback kernels while better ones are compiled, which are cached late.
            strategy = self._library.DynamicShapesKernelSpecializationStrategy.EAGER
            config.dynamic_shapes_kernel_specialization_strategy = strategy
        if compiles_at_run_time(self._library):
            self._kernels = config.create_runtime_cache()
            self._kernels_read = read(self._kernels_path()) if self._may_use(self._kernels_path()) else None
            if self._kernels_read:
                self._kernels.deserialize(self._kernels_read)  # stays empty if they are another driver's
            config.set_runtime_cache(self._kernels)
        logger_of(self._library).heard.clear()
        self.context = self._engine.create_execution_context(config)
        if self.context is None:
            raise self.failure("make a context of")

    def _stream_weights(self) -> None:
        """Sets the weight streaming budget to as many weights as fit on the GPU beside the largest activations."""
        streamable = self._engine.streamable_weights_size
        if not streamable:
            return
        self._engine.weight_streaming_budget_v2 = 0  # moves all weights off the GPU, to measure free memory
        usable = usable_bytes(self._device, self._found) - _SPARE_BYTES
        # With streaming on, device_memory_size_v2 includes the memory that weights are streamed through.
        budget = max(0, usable - self._engine.device_memory_size_v2)
        self._engine.weight_streaming_budget_v2 = min(budget, streamable)

    def _kernels_path(self) -> Path:
        """Returns the path of the cache of compiled kernels, which fit one engine and one GPU only."""
        gpu = re.sub(r"[^a-z0-9]+", "-", self._device.gpu.name.lower()).strip("-")
        engine = self._sidecar.engine_checksum[:_CHECKSUM_DIGITS]
        return self._found.path.with_name(f"{self._found.path.name}.{gpu}.{engine}.kernels")

    def dtype_of(self, name: str) -> np.dtype[Any]:
        """Returns the dtype of an input or output."""
        dtype: np.dtype[Any] = np.dtype(self._library.nptype(self._engine.get_tensor_dtype(name)))
        return dtype

    def enqueue(self) -> None:
        """Puts one run of the engine into the stream.

        Raises:
            LtxError: there is too little memory, or the library refuses the run; the message has its reason.
        """
        logger_of(self._library).heard.clear()
        if not self.context.execute_async_v3(self._device.stream):
            raise self.failure("run")

    def failure(self, doing: str) -> LtxError:
        """Returns the error for a refused action, with the library's reason; `doing` is a verb such as "run"."""
        title, name = title_of(self._found.backend), self._found.component.name
        return self._out_of_memory() or LtxError(
            f"{title} cannot {doing} the engine of {name} ({first_error(self._library)})",
            "add --backend cpu",
            self._found.rebuild_command(),
        )

    def close(self) -> None:
        """Saves newly compiled kernels for the next session and frees everything; no work may be unfinished."""
        try:
            if self._kernels is not None and self.context is not None:
                kernels = bytes(self._kernels.serialize())
                if kernels != self._kernels_read and self._stands():
                    with locked(self._kernels_path()):
                        leave(self._kernels_path(), kernels)
        finally:
            self.context = self._kernels = None
            self._engine = None
            self._runtime = None
