"""Traced graphs and whole folders that the workers of a run share, in a folder that conftest.py makes and removes."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from ltx_runtime.files import written_whole

if TYPE_CHECKING:
    import onnx_ir as ir  # conftest.py imports this file where there is no onnx

FOLDER = "LTX_TEST_SHARED"  # environment variable that names the folder
_UNPLACED = "not placed"  # where an initializer without data is said to lie


def folder_of(name: str, make: Callable[[Path], object]) -> Path:
    """Returns a folder that the first worker which asks for it fills, and no test may change.

    Args:
        name: its name.
        make: fills the folder, which exists and is empty.
    """
    from filelock import FileLock

    folder = Path(os.environ[FOLDER]) / name
    complete = folder.with_name(f"{name}.complete")
    with FileLock(folder.with_name(f"{name}.lock")):
        if not complete.exists():
            shutil.rmtree(folder, ignore_errors=True)  # of a worker that failed
            folder.mkdir()
            make(folder)
            complete.touch()
    return folder


def write(key: str, graphs: tuple[ir.Model, ir.Model]) -> None:
    """Keeps the graphs of a network for other workers."""
    shared = Path(os.environ[FOLDER])
    if (shared / f"{key}.1").exists():
        return
    for number, graph in enumerate(graphs):
        with written_whole(shared / f"{key}.{number}") as temporary:
            temporary.write_bytes(_serialized(graph))


def read(key: str) -> tuple[ir.Model, ir.Model] | None:
    """Returns the graphs that another worker has traced; None if there are none yet."""
    shared = Path(os.environ[FOLDER])
    if not (shared / f"{key}.1").exists():
        return None
    first, second = (_deserialized((shared / f"{key}.{number}").read_bytes()) for number in range(2))
    return first, second


def _serialized(graph: ir.Model) -> bytes:
    import onnx_ir as ir

    copy = graph.clone()
    for name, value in copy.graph.initializers.items():
        if value.const_value is None:
            shape = ir.Shape(value.shape)
            value.const_value = ir.ExternalTensor(_UNPLACED, 0, 0, value.dtype, shape=shape, name=name)
    return ir.to_proto(copy).SerializeToString()


def _deserialized(data: bytes) -> ir.Model:
    import onnx
    import onnx_ir as ir

    graph = ir.from_proto(onnx.ModelProto.FromString(data))
    for value in graph.graph.initializers.values():
        if isinstance(value.const_value, ir.ExternalTensor):
            value.const_value = None
    return graph
