"""The execution context of a stand-in engine: checks every argument strictly, and runs the engine's component."""

import weakref
from pathlib import Path

import numpy as np
from stand_ins.tensorrt_types import BITS, NUMPY, SCRATCH, Dims, ILogger, activations_of

from ltx_runtime.sessions.onnxruntime_cpu import CpuRunner


class IExecutionContext:
    def __init__(self, engine, config):
        self._engine, self._config, self._spec = engine, config, engine._spec
        self._machine = engine._world.machine
        self._profile, self._shapes, self._addresses, self._memory = 0, {}, {}, None
        self._state, self._warm = 0, False
        name = self._spec["component"]
        self._function = engine._world.functions.get(name) or _graph_function(self._spec)

    def _changed(self):
        self._machine.refuse_in_capture("a change of the context")
        self._state += 1
        self._warm = False

    def set_optimization_profile_async(self, profile_index, stream_handle):
        assert 0 <= profile_index < len(self._spec["profiles"]), f"there is no profile {profile_index}"
        assert stream_handle in self._machine.streams
        self._changed()
        self._profile, self._shapes = profile_index, {}
        return True

    def set_input_shape(self, name, shape):
        assert isinstance(shape, tuple) and all(type(size) is int for size in shape)
        served = self._spec["profiles"][self._profile][name]
        fits = [low <= size <= high for low, size, high in zip(served["min"], shape, served["max"], strict=True)]
        assert all(fits), f"{name} {shape} is outside profile {self._profile}: {served}"
        self._changed()
        self._shapes[name] = shape
        return True

    def update_device_memory_size_for_shapes(self):
        assert self._shapes.keys() == self._spec["inputs"].keys(), "a shape is missing"
        self._changed()
        self._needed = activations_of(self._shapes.values()) + (
            SCRATCH if self._engine._budget < self._spec["streamable"] else 0
        )
        return self._needed

    def get_tensor_shape(self, name):
        sizes = {}
        for port, shape in self._shapes.items():
            for axis, size in zip(self._spec["inputs"][port]["axes"], shape, strict=True):
                if not isinstance(axis, int):
                    sizes[axis[0]] = (size - axis[2]) // axis[1]
        axes = self._spec["outputs"][name]["axes"]
        return Dims(axis if isinstance(axis, int) else axis[1] * sizes[axis[0]] + axis[2] for axis in axes)

    def set_device_memory(self, memory, size):
        assert memory % 256 == 0
        self._machine.at(memory, size)
        self._changed()
        self._memory = (memory, size)

    def set_tensor_address(self, name, memory):
        assert name in self._engine._names and memory % 256 == 0
        self._changed()
        self._addresses[name] = memory
        return True

    def execute_async_v3(self, stream_handle):
        assert self._spec["weights"] != "refit", "an engine without its weights is run"
        assert self._memory is not None and self._memory[1] >= self._needed, "too little memory for activations"
        touches = [self._memory, *((self._addresses[name], self._size(name)) for name in self._engine._names)]
        if self._machine.capturing is not None:
            assert self._warm, "captured before an ordinary run"
            if not self._spec["capturable"]:
                self._machine.invalidated = True
                self._engine._logger.log(ILogger.Severity.ERROR, "operation not permitted when stream is capturing")
                return False
        self._compile()
        state = self._state

        def compute():
            assert self._state == state, "the context was changed after this was put into the stream"
            self._compute()

        self._machine.put(stream_handle, compute, touches)
        self._warm = True
        return True

    def _compile(self):
        kernels = f"{self._spec['component']} {self._profile}"
        cache = self._config._cache
        if cache is not None and kernels not in cache._kernels:
            self._engine._world.seen.compiled.append(kernels)
            cache._kernels.add(kernels)

    def _size(self, name):
        weight = self._spec["weight_inputs"].get(name)
        shape = weight["shape"] if weight else self._shapes.get(name) or self.get_tensor_shape(name)
        return int(np.prod(shape)) * BITS[self._engine._dtype(name)] // 8

    def _compute(self):
        self._engine._world.seen.runs.append(self._spec["component"])
        self._machine.at(*self._memory)[:] = len(self._engine._world.seen.runs) % 256  # overwritten on every run
        for name, one in self._spec["weight_inputs"].items():
            stored = np.fromfile(one["file"], np.uint8, self._size(name), offset=one["offset"])
            there = self._machine.at(self._addresses[name], self._size(name))
            assert np.array_equal(there, stored), f"{name} is not there"
        feeds = {name: self._array(name, self._shapes[name]).copy() for name in self._spec["inputs"]}
        made = self._function(feeds)
        if "frames" in self._spec["outputs"]:
            made = {**made, **_frames_and_mean(made["video"])}
        for name in self._spec["outputs"]:
            self._array(name, self.get_tensor_shape(name))[:] = made[name]

    def _array(self, name, shape):
        dtype = NUMPY[self._engine._dtype(name)]
        return self._machine.at(self._addresses[name], self._size(name)).view(dtype).reshape(shape)


def _graph_function(spec):
    runner = CpuRunner(Path(spec["graph"]), Path(spec["weights_folder"]))
    weakref.finalize(runner, runner._thread.shutdown)
    return lambda feeds: runner.run(feeds, runner.outputs)


def _frames_and_mean(video):
    levels = np.floor(255 * np.clip(video * np.float32(0.5) + np.float32(0.5), 0, 1))
    with np.errstate(invalid="ignore"):
        return {"frames": levels.transpose(0, 2, 3, 4, 1).astype(np.uint8), "mean": video.mean((1, 2, 3, 4))}
