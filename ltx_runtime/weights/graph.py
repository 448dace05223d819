"""The weights of an ONNX graph: where each of its initializers lies in a file."""

from __future__ import annotations

from pathlib import Path

from ltx_runtime.graph.operators import BFLOAT16, FLOAT, FLOAT16
from ltx_runtime.graph.reading import read_graph
from ltx_runtime.weights.checkpoint import StoredTensor

# Names of the data types of onnx that are stored floats; others keep their number, such as `onnx 3` for int8.
_DTYPES = {FLOAT: "F32", FLOAT16: "F16", BFLOAT16: "BF16"}


def weights_of(graph: Path, folder: Path) -> dict[str, StoredTensor]:
    """Returns the place of every weight of a graph, by the name of its initializer.

    Args:
        graph: path of the graph.
        folder: folder to which the graph's names of weight files are relative.

    Raises:
        LtxError: the graph cannot be read, or is not an ONNX graph.
    """
    return {
        constant.name: StoredTensor(
            folder / constant.place.location,
            constant.place.offset,
            constant.place.length,
            _DTYPES.get(constant.data_type, f"onnx {constant.data_type}"),
            constant.dims,
        )
        for constant in read_graph(graph).initializers
        if constant.place is not None
    }
