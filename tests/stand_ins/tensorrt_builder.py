"""The part of TensorRT's builder that we use, with the names of its Python bindings 10.13 and 11.4; needs no GPU.

An engine is JSON with the requested settings. A timing cache is "<version>:<number of builds>"; one of another version
is refused.
"""

import json
from enum import IntEnum
from types import ModuleType, SimpleNamespace

FLAGS = ("REFIT", "STRIP_PLAN", "REFIT_IDENTICAL", "WEIGHT_STREAMING")
STRONGLY_TYPED = 1


class ILogger:
    """Base class of loggers."""

    class Severity(IntEnum):
        INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)


class Interface:
    """Base class of interfaces that callers implement."""


class Profile:
    """Optimization profile: shapes by input."""

    def __init__(self):
        self.shapes = {}

    def set_shape(self, name, *shapes):
        self.shapes[name] = shapes


class Cache:
    """Timing cache of arbitrary bytes."""

    def __init__(self, data):
        self.data = data

    def serialize(self):
        return memoryview(self.data)


class Config:
    """Builder configuration that records the requested settings."""

    def __init__(self, version):
        self.version, self.flags, self.profiles = version, [], []
        self.cache, self.progress_monitor = None, None

    def add_optimization_profile(self, profile):
        self.profiles.append(profile)
        return len(self.profiles) - 1

    def set_flag(self, flag):
        self.flags.append(flag.name)

    def create_timing_cache(self, data):
        return Cache(bytes(data))

    def set_timing_cache(self, cache, ignore_mismatch):
        fits = ignore_mismatch or not cache.data or cache.data.startswith(f"{self.version}:".encode())
        self.cache = cache if fits else self.cache
        return fits

    def get_timing_cache(self):
        return self.cache


class Parser:
    """Parser that accepts every graph."""

    num_errors = 0

    def __init__(self, network, logger):
        self.network = network

    def parse(self, model, path=None):
        self.network.model = model
        return True


class Builder:
    """Builder that makes JSON instead of engines."""

    version, failure = "", None

    def __init__(self, logger):
        self.logger = logger

    def create_network(self, flags=0):
        return SimpleNamespace(flags=flags)

    def create_builder_config(self):
        return Config(self.version)

    def create_optimization_profile(self):
        return Profile()

    def build_serialized_network(self, network, config):
        return self._built(network, config, streamed=False)

    def _built(self, network, config, streamed):
        monitor = config.progress_monitor
        monitor.phase_start("Building engine", None, 1)
        if self.failure is not None or not monitor.step_complete("Building engine", 0):
            self.logger.log(ILogger.Severity.ERROR, self.failure or "cancelled")
            return None
        monitor.phase_finish("Building engine")
        asked = {"network_flags": network.flags, "flags": sorted(config.flags), "profiles": len(config.profiles)}
        timings = config.cache.data.decode()
        config.cache = Cache(f"{self.version}:{int(timings.partition(':')[2] or 0) + 1}".encode())
        return json.dumps(asked | {"timings": timings, "streamed": streamed}).encode()


class StreamingBuilder(Builder):
    """Builder that can also write an engine to a stream."""

    def build_serialized_network_to_stream(self, network, config, writer):
        built = self._built(network, config, streamed=True)
        return built is not None and writer.write(built) == len(built)


def full_tensorrt(version, *, strongly_typed=True, to_stream=True, flags=frozenset(), failure=None):
    """Returns a module `tensorrt` of a version.

    Args:
        version: version of TensorRT.
        strongly_typed: whether it has the flag for strongly typed networks.
        to_stream: whether it can write an engine to a stream.
        flags: builder flags that it lacks.
        failure: error message with which every build fails; None if builds succeed.
    """
    module = ModuleType("tensorrt")
    module.__version__ = version
    module.ILogger, module.IProgressMonitor, module.IStreamWriter = ILogger, Interface, Interface
    module.OnnxParser = Parser
    kind = StreamingBuilder if to_stream else Builder
    module.Builder = type("Builder", (kind,), {"version": version, "failure": failure})
    members = {"STRONGLY_TYPED": STRONGLY_TYPED} if strongly_typed else {"PREFER_JIT_PYTHON_PLUGINS": 2}
    module.NetworkDefinitionCreationFlag = IntEnum("NetworkDefinitionCreationFlag", members)
    known = [flag for flag in FLAGS if flag not in flags]
    module.BuilderFlag = IntEnum("BuilderFlag", {flag: i for i, flag in enumerate(known)})
    return module
