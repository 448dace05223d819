"""Types of the TensorRT stand-ins: enumerations, and records for tests."""

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from stand_ins.gpu_machine import Machine

BITS = {"FLOAT": 32, "HALF": 16, "BF16": 16, "INT64": 64, "INT32": 32, "INT8": 8, "UINT8": 8, "INT4": 4}
NUMPY = {"FLOAT": np.float32, "HALF": np.float16, "INT64": np.int64, "INT32": np.int32, "UINT8": np.uint8}
_ACTIVATION_BYTES = 24  # activation bytes per input value
SCRATCH = 4096

DataType = enum.Enum("DataType", list(BITS))
TensorIOMode = enum.Enum("TensorIOMode", ["NONE", "INPUT", "OUTPUT"])
ExecutionContextAllocationStrategy = enum.IntEnum(
    "ExecutionContextAllocationStrategy", ["STATIC", "ON_PROFILE_CHANGE", "USER_MANAGED"], start=0
)
CudaGraphStrategy = enum.IntEnum("CudaGraphStrategy", ["DISABLED", "WHOLE_GRAPH_CAPTURE"], start=0)
DynamicShapesKernelSpecializationStrategy = enum.IntEnum(
    "DynamicShapesKernelSpecializationStrategy", ["LAZY", "EAGER", "NONE"], start=0
)
SerializationFlag = enum.IntEnum(
    "SerializationFlag", ["EXCLUDE_WEIGHTS", "EXCLUDE_LEAN_RUNTIME", "INCLUDE_REFIT"], start=0
)
ComputeCapability = enum.IntEnum(
    "ComputeCapability", ["NONE", "CURRENT", "SM75", "SM80", "SM86", "SM89", "SM120", "SM121"], start=0
)


@dataclass
class Seen:
    """Record of what a library was asked to do, in order."""

    compiled: list[str] = field(default_factory=list)
    deserialized: list[type] = field(default_factory=list)
    refitted: list[str] = field(default_factory=list)
    budgets: list[int] = field(default_factory=list)
    runs: list[str] = field(default_factory=list)


@dataclass
class World:
    """Surroundings of a library: the GPU, and functions that replace the graphs of components."""

    machine: Machine
    functions: Mapping[str, Callable]
    seen: Seen = field(default_factory=Seen)


class ILogger:
    class Severity(enum.IntEnum):
        INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)

    def log(self, severity, message):
        raise AssertionError("a logger says what happens to its messages")


class Dims(tuple):
    """Shape of a tensor."""


class IHostMemory(bytes):
    """Host memory of the library."""


class ParserError:
    def __init__(self, description):
        self._description = description

    def desc(self):
        return self._description


def activations_of(shapes):
    return _ACTIVATION_BYTES * sum(int(np.prod(shape)) for shape in shapes)
