"""ONNX Runtime on the CPU: fp32 arithmetic on weights mapped from the checkpoint as they are stored."""

from __future__ import annotations

import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from ltx_runtime.folder.manifest import Engines
from ltx_runtime.sessions import Arrays, Found, graph_found
from ltx_runtime.spec.components import UNEVEN, ComponentName

_NO_MEMORY = re.compile("allocate memory|bad.?alloc")
_FATAL = 4  # a run that is ended counts as an error


def find(engines: Engines, name: ComponentName, backend: str) -> Found:
    """The fp32 graph of a component: the CPU has no other arithmetic here.

    Raises:
        LtxError: the folder lacks it.
    """
    return graph_found(engines, name, backend, ["fp32"])


class CpuRunner:
    """One graph in ONNX Runtime's CPU provider; its weights are mapped from files in the folder `weights`, not read.

    With `arena`, what one layer has freed is kept for the next: fast where layers are equal, and up to twice the
    memory where each has a size of its own.
    """

    def __init__(self, graph: Path, weights: Path, *, arena: bool = True, threads: int | None = None) -> None:
        options = onnxruntime.SessionOptions()
        options.enable_cpu_mem_arena = arena
        options.intra_op_num_threads = threads or 0  # 0 for one a core
        options.log_severity_level = 3
        # Reuse would keep the floats of several layers' weights until the end, and makes no step faster.
        options.enable_mem_reuse = False
        # Folding would turn every mapped bf16 weight into a private fp32 copy at load; left alone, the cast runs
        # just before its consumer and its result is freed at once.
        options.add_session_config_entry("optimization.disable_specified_optimizers", "ConstantFolding")
        # Block-quantized weights are widened the same way: fused, they would be unpacked into private memory.
        options.add_session_config_entry("session.disable_quant_qdq", "1")
        options.add_session_config_entry("session.disable_prepacking", "1")  # would copy minimums and scales
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(weights))
        self._session: Any = onnxruntime.InferenceSession(
            graph.read_bytes(), options, providers=["CPUExecutionProvider"]
        )
        self._thread = ThreadPoolExecutor(1)  # one for all runs, as the C library keeps memory by thread
        self.outputs = [output.name for output in self._session.get_outputs()]

    def run(self, feeds: Arrays, wanted: Sequence[str]) -> dict[str, np.ndarray[Any, Any]]:
        """Runs the graph once, in a thread: Ctrl-C would wait for the end of the run, and ends it after an operator.

        Raises:
            MemoryError: there is too little.
        """
        options = onnxruntime.RunOptions()
        options.log_severity_level = _FATAL
        running = self._thread.submit(self._session.run, list(wanted), dict(feeds), options)
        try:
            made = running.result()
        except Exception as error:
            if _NO_MEMORY.search(str(error)):
                raise MemoryError(str(error)) from error
            raise
        except BaseException:
            options.terminate = True
            wait([running])
            raise
        return dict(zip(wanted, made, strict=True))

    def close(self) -> None:
        """Frees weights and buffers."""
        self._thread.shutdown()
        self._session = None


def load(found: Found) -> CpuRunner:
    """Opens the graph."""
    return CpuRunner(found.path, found.weights, arena=found.component.name not in UNEVEN, threads=found.threads)
