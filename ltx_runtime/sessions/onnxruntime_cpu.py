"""ONNX Runtime on the CPU: fp32 arithmetic on weights that stay memory-mapped in their stored dtype."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import onnxruntime

from ltx_runtime.errors import LtxError, explaining, one_line
from ltx_runtime.folder.manifest import Engines
from ltx_runtime.graph.reading import EXPORT_AGAIN
from ltx_runtime.sessions import BACKENDS, Arrays, graph_found
from ltx_runtime.sessions.found import Found
from ltx_runtime.sessions.merged_weights import put_into_session
from ltx_runtime.spec.components import UNEVEN, ComponentName
from ltx_runtime.weights.merging import Weight, merged

_NO_MEMORY = re.compile("allocate memory|bad.?alloc")
_FATAL = 4  # log only fatal errors: a terminated run would be logged as an error


def find(engines: Engines, name: ComponentName, backend: str) -> Found:
    """Returns the fp32 graph of a component, since only fp32 graphs are run on the CPU.

    Raises:
        LtxError: the version folder lacks the component or its fp32 graph.
    """
    return graph_found(engines, name, backend, BACKENDS[backend].precisions)


class CpuRunner:
    """One graph in ONNX Runtime's CPU provider, with weights memory-mapped from files in the folder `weights`.

    With `arena`, memory that one layer has freed is kept for the next. That is fast if all layers have equal sizes, but
    takes up to twice the memory if each layer has a different size. Weights in `merged` take the place of those in the
    files.
    """

    def __init__(
        self,
        graph: Path,
        weights: Path,
        *,
        arena: bool = True,
        threads: int | None = None,
        merged: Mapping[str, Weight] = MappingProxyType({}),
    ) -> None:
        self._graph = graph
        options = onnxruntime.SessionOptions()
        options.enable_cpu_mem_arena = arena
        options.intra_op_num_threads = threads or 0  # 0: one thread per core
        # Threads that wait in a loop take processor time from everything else, and made no step faster.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        # Memory reuse would keep the fp32 weights of several layers until the end of the run, and speeds up no step.
        options.enable_mem_reuse = False
        # Constant folding would turn every mapped bf16 weight into a private fp32 copy at load; without it, the cast
        # runs just before its consumer and its result is freed at once.
        options.add_session_config_entry("optimization.disable_specified_optimizers", "ConstantFolding")
        # Block-quantized weights are dequantized in the same way: fusion would unpack them into private memory.
        options.add_session_config_entry("session.disable_quant_qdq", "1")
        options.add_session_config_entry("session.disable_prepacking", "1")  # would copy blocks' minimums and scales
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(weights))
        self._merged = merged  # the session uses their memory
        put_into_session(onnxruntime, options, merged)
        self._session: Any = _opened(graph, options)
        self._thread = ThreadPoolExecutor(1)  # one for all runs, since the C library keeps freed memory per thread
        self.outputs = [output.name for output in self._session.get_outputs()]

    def run(self, feeds: Arrays, wanted: Sequence[str]) -> dict[str, np.ndarray[Any, Any]]:
        """Runs the graph once, in a thread, so that Ctrl-C ends the run after the current operator.

        Raises:
            LtxError: a node of the graph cannot be computed, for example as its inputs do not fit each other.
            MemoryError: there is too little memory.
        """
        options = onnxruntime.RunOptions()
        options.log_severity_level = _FATAL
        future = self._thread.submit(self._session.run, list(wanted), dict(feeds), options)
        try:
            outputs = future.result()
        except Exception as error:
            if _NO_MEMORY.search(str(error)):
                raise MemoryError(str(error)) from error
            raise LtxError(f"ONNX Runtime cannot run {self._graph} ({one_line(error)})", EXPORT_AGAIN) from error
        except BaseException:
            options.terminate = True
            wait([future])
            raise
        return dict(zip(wanted, outputs, strict=True))

    def close(self) -> None:
        """Ends the thread and frees weights and buffers."""
        self._thread.shutdown()
        self._session = None
        self._merged = {}


def load(found: Found) -> CpuRunner:
    """Loads a graph, with an arena unless its layers differ in size.

    Raises:
        LtxError: a file is missing or damaged.
        MemoryError: there is too little.
    """
    arena = found.component.name not in UNEVEN
    weights = {} if found.merging is None else merged(found.merging)
    return CpuRunner(found.path, found.weights, arena=arena, threads=found.threads, merged=weights)


def _opened(graph: Path, options: Any) -> Any:
    with explaining(f"read {graph}"):
        model = graph.read_bytes()
    try:
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's own
        if _NO_MEMORY.search(str(error)):
            raise MemoryError(str(error)) from error
        raise LtxError(f"{graph} cannot be loaded ({one_line(error)})", EXPORT_AGAIN) from error
