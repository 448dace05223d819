"""TensorRT and TensorRT-RTX made of numpy: engines that compute a graph on the CPU, or a function, on a stand-in GPU.

Every method checks its arguments as strictly as the real one ever would. An engine file is JSON. Nothing is public
here that the real modules lack.
"""

import hashlib
import json
import mmap
import weakref
from pathlib import Path
from types import ModuleType

from stand_ins.execution_context import IExecutionContext
from stand_ins.tensorrt_types import (
    NUMPY,
    SCRATCH,
    ComputeCapability,
    CudaGraphStrategy,
    DataType,
    Dims,
    DynamicShapesKernelSpecializationStrategy,
    ExecutionContextAllocationStrategy,
    IHostMemory,
    ILogger,
    ParserError,
    SerializationFlag,
    TensorIOMode,
    World,
    activations_of,
)


class Runtime:
    _world: World

    def __init__(self, logger):
        assert isinstance(logger, ILogger)
        self._logger = logger

    def deserialize_cuda_engine(self, serialized_engine):
        self._world.seen.deserialized.append(type(serialized_engine))
        assert isinstance(serialized_engine, mmap.mmap), "the engine was read into memory"
        try:
            spec = json.loads(bytes(serialized_engine))
        except ValueError:
            return self._refuse(
                "Serialization assertion stdVersionRead == kVERSION failed. Version tag does not match."
            )
        engine = ICudaEngine(self._world, self._logger, spec)
        if not spec["streamable"] and not engine._take(spec["own_bytes"]):
            return self._refuse("Error Code 2: OutOfMemory (Requested size was more than there is.)")
        return engine

    def _refuse(self, message):
        self._logger.log(ILogger.Severity.ERROR, message)


class ICudaEngine:
    def __init__(self, world, logger, spec):
        self._world, self._logger, self._spec = world, logger, spec
        self._names = [*spec["inputs"], *spec["weight_inputs"], *spec["outputs"]]
        self._held, self._stripped = [], spec["weights"] == "refit"
        self._contexts = weakref.WeakSet()
        self._budget = spec["streamable"]

    def _take(self, size):
        address = self._world.machine.take(size) if size else 0
        if address:
            self._held.append(address)
        return address is not None

    def __del__(self):
        while self._held:
            self._world.machine.give_back(self._held.pop())

    @property
    def num_io_tensors(self):
        return len(self._names)

    def get_tensor_name(self, index):
        return self._names[index]

    def get_tensor_mode(self, name):
        assert name in self._names
        return TensorIOMode.OUTPUT if name in self._spec["outputs"] else TensorIOMode.INPUT

    def get_tensor_dtype(self, name):
        return DataType[self._dtype(name)]

    def _dtype(self, name):
        ports = {**self._spec["inputs"], **self._spec["weight_inputs"], **self._spec["outputs"]}
        return ports[name]["dtype"]

    @property
    def streamable_weights_size(self):
        return self._spec["streamable"]

    @property
    def device_memory_size_v2(self):
        largest = max(
            activations_of(shapes["max"] for shapes in profile.values()) for profile in self._spec["profiles"]
        )
        return largest + (SCRATCH if self._budget < self._spec["streamable"] else 0)

    @property
    def weight_streaming_budget_v2(self):
        return self._budget

    @weight_streaming_budget_v2.setter
    def weight_streaming_budget_v2(self, budget):
        assert self._spec["streamable"] and budget >= 0 and not self._contexts, "a budget at the wrong time"
        self._world.seen.budgets.append(budget)
        self._budget = min(budget, self._spec["streamable"])

    def create_runtime_config(self):
        return IRuntimeConfig(self._world)

    def create_execution_context(self, runtime_config):
        assert runtime_config._strategy == ExecutionContextAllocationStrategy.USER_MANAGED
        if self._spec["streamable"] and not self._take(self._budget):
            self._logger.log(ILogger.Severity.ERROR, "Cuda Runtime (out of memory)")
            return None
        context = IExecutionContext(self, runtime_config)
        self._contexts.add(context)
        return context

    def create_serialization_config(self):
        return ISerializationConfig(self._stripped)

    def serialize_with_config(self, arg0):
        weights = "refit" if arg0._excludes else "embedded"
        return IHostMemory(json.dumps({**self._spec, "weights": weights}).encode())


class ISerializationConfig:
    def __init__(self, excludes):
        self._excludes = excludes

    def clear_flag(self, flag):
        assert flag == SerializationFlag.EXCLUDE_WEIGHTS
        self._excludes = False
        return True


class IRuntimeConfig:
    cuda_graph_strategy = CudaGraphStrategy.DISABLED
    dynamic_shapes_kernel_specialization_strategy = DynamicShapesKernelSpecializationStrategy.LAZY

    def __init__(self, world):
        self._world, self._strategy, self._cache = world, ExecutionContextAllocationStrategy.STATIC, None

    def set_execution_context_allocation_strategy(self, strategy):
        self._strategy = strategy

    def create_runtime_cache(self):
        return IRuntimeCache(self._world.machine)

    def set_runtime_cache(self, cache):
        self._cache = cache
        return True


class IRuntimeCache:
    def __init__(self, machine):
        self._bound_to, self._kernels = [machine.name, machine.driver], set()

    def deserialize(self, blob):
        try:
            stored = json.loads(bytes(blob))
        except ValueError:
            return False
        if stored["bound_to"] != self._bound_to:
            return False
        self._kernels = set(stored["kernels"])
        return True

    def serialize(self):
        return IHostMemory(json.dumps({"bound_to": self._bound_to, "kernels": sorted(self._kernels)}).encode())


class Refitter:
    def __init__(self, engine, logger):
        assert isinstance(engine, ICudaEngine) and isinstance(logger, ILogger)
        self._engine, self._given = engine, False

    def refit_cuda_engine(self):
        if self._given:
            self._engine._spec = {**self._engine._spec, "weights": "embedded"}
            self._engine._world.seen.refitted.append(self._engine._spec["component"])
        return self._given

    def get_missing_weights(self):
        return [] if self._given else ["weight.0"]


class OnnxParserRefitter:
    def __init__(self, refitter, logger):
        assert isinstance(refitter, Refitter) and isinstance(logger, ILogger)
        self._refitter, self._errors = refitter, []

    def refit_from_bytes(self, model, path):
        spec = self._refitter._engine._spec
        lacking = [name for name in spec["weights_files"] if not (Path(path).parent / name).is_file()]
        if hashlib.sha256(bytes(model)).hexdigest() != spec["graph_checksum"]:
            self._errors.append(ParserError("Failed to refit the weights:\n another graph"))
        elif lacking:
            self._errors.append(ParserError(f"{lacking[0]} is not there"))
        self._refitter._given = not self._errors
        return self._refitter._given

    @property
    def num_errors(self):
        return len(self._errors)

    def get_error(self, index):
        return self._errors[index]


def nptype(trt_type):
    if trt_type.name not in NUMPY:
        raise TypeError("Could not resolve TensorRT datatype to an equivalent numpy datatype.")
    return NUMPY[trt_type.name]


_SHARED = (
    ILogger,
    DataType,
    TensorIOMode,
    ExecutionContextAllocationStrategy,
    SerializationFlag,
    Dims,
    IHostMemory,
    ICudaEngine,
    IExecutionContext,
    IRuntimeConfig,
    ISerializationConfig,
    Refitter,
    OnnxParserRefitter,
    ParserError,
)
_ONLY_RTX = (IRuntimeCache, CudaGraphStrategy, DynamicShapesKernelSpecializationStrategy, ComputeCapability)


def library_of(world: World, builder: str, version: str) -> ModuleType:
    """Returns the stand-in for tensorrt, or for tensorrt_rtx, which compiles at run time."""
    made = ModuleType(builder)
    made.__version__, made.nptype = version, nptype
    made.Runtime = type("Runtime", (Runtime,), {"_world": world})
    for one in (*_SHARED, *(_ONLY_RTX if builder == "tensorrt_rtx" else ())):
        setattr(made, one.__name__, one)
    return made
