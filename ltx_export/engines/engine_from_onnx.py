"""Builds an engine from a graph and optimization profiles with TensorRT or TensorRT-RTX.

Imports no torch, since engines are built on the machines that run them. Both libraries share the same code, which
checks which features a library has. An engine has the precision of its graph. TensorRT-RTX parses and compiles without
a GPU, and makes kernels on the first run.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ltx_export.engines.graph import Prepared, prepare
from ltx_export.engines.progress import BuildProgress, in_thread, monitor_of
from ltx_runtime.errors import LtxError, explaining
from ltx_runtime.files import written_whole
from ltx_runtime.folder.profiles import Limits, Profile, profiles
from ltx_runtime.folder.sidecar import Weights
from ltx_runtime.sessions.trt.library import compiles_at_run_time, first_error, logger_of
from ltx_runtime.spec.components import Component, Port, line_of
from ltx_runtime.trust.made_here import is_made_here, record_made

_REFIT = ("STRIP_PLAN", "REFIT_IDENTICAL")  # REFIT alone would disable fusions
_STREAMING = "WEIGHT_STREAMING"
_PIECE_BYTES = 64 << 20
TIMING_CACHE = "timing.cache"  # a builder's measurements of kernels, so that the next build measures less


@dataclass(frozen=True)
class Recipe:
    """Settings with which an engine is built.

    Attributes:
        weights: where the engine's weights are, see sidecar.Weights.
        limits: limits on the sizes that it serves; None for all sizes.
        weight_streaming: whether the session may keep weights in host memory.
        options: options of the command for all of these, which a command that builds the engine again repeats.
    """

    weights: Weights = "embedded"
    limits: Limits | None = None
    weight_streaming: bool = False
    options: str = ""

    def profiles(self, component: Component) -> list[Profile]:
        """Returns the optimization profiles of a component's engine."""
        return profiles(component, self.limits)


def refuse_impossible(library: Any, title: str, recipe: Recipe) -> None:
    """Raises LtxError if the library cannot build engines with these settings, on this machine or at all."""
    flags = library.BuilderFlag
    if recipe.weights == "refit":
        if not all(hasattr(flags, flag) for flag in _REFIT):
            raise LtxError(f"{title} {library.__version__} has no engines without weights", "use --weights inputs")
        if compiles_at_run_time(library):
            raise LtxError(f"{title} leaves weights out of an engine only where a GPU is", "use --weights inputs")
    if recipe.weight_streaming:
        if not hasattr(flags, _STREAMING):
            raise LtxError(f"{title} {library.__version__} cannot stream weights", "leave --weight-streaming out")
        if recipe.weights == "inputs":
            raise LtxError("weights that are inputs are not streamed", "use --weights embedded with --weight-streaming")


def engine_from_onnx(
    library: Any,
    graph: Path,
    weights: Path,
    component: Component,
    engine: Path,
    recipe: Recipe = Recipe(),
    progress: BuildProgress | None = None,
) -> Prepared:
    """Builds an engine into a file, in a thread so that Ctrl-C can end it; returns the graph it was built from.

    Args:
        library: module that load_library returns.
        graph: path of the ONNX graph, whose precision the engine has.
        weights: folder of the graph's weight files.
        component: ports of the graph.
        engine: path of the engine, half-written after a failure. The caller must hold the lock of its folder, which
            also has the timing cache.

    Raises:
        LtxError: the library refuses the graph; the message has its reason.
        KeyboardInterrupt: Ctrl-C, once the build has ended.
    """
    progress = progress or BuildProgress()
    prepared = prepare(graph, component, recipe.weights)
    logger = logger_of(library)
    logger.heard.clear()
    builder = library.Builder(logger)
    network = builder.create_network(_network_flags(library))
    parser = library.OnnxParser(network, logger)
    if not parser.parse(prepared.model, str(weights / graph.name)):
        reasons = [" ".join(parser.get_error(i).desc().split()) for i in range(parser.num_errors)]
        raise LtxError(f"{graph} is refused by {library.__name__}: {(reasons or ['no reason'])[0]}", "export it again")
    config = _config_of(library, builder, component.inputs, recipe, recipe.profiles(component))
    if hasattr(config, "progress_monitor"):
        config.progress_monitor = monitor_of(library, progress)
    with timings_kept(library, config, engine.parent), explaining(f"write {engine}"), engine.open("wb") as file:
        built = in_thread(lambda: _build(library, builder, network, config, file), progress)
    if not built:
        raise LtxError(
            f"{graph} cannot be built by {library.__name__}: {first_error(library)}", "see its release notes"
        )
    return prepared


@contextmanager
def timings_kept(library: Any, config: Any, folder: Path) -> Iterator[None]:
    """Gives a builder the timing cache of a folder, and saves it with the measurements made inside the block.

    Libraries that compile kernels at run time measure nothing during a build, and have no timing cache. If the library
    refuses the cache, such as one of another version, or it is not one that was made here, it gets an empty one. A
    block that fails changes nothing.
    The caller must hold the folder's lock.
    """
    if compiles_at_run_time(library) or not hasattr(config, "create_timing_cache"):
        yield
        return
    path = folder / TIMING_CACHE
    stored = path.read_bytes() if is_made_here(path) else b""
    cache = config.create_timing_cache(stored)
    if cache is None or not config.set_timing_cache(cache, False):
        config.set_timing_cache(config.create_timing_cache(b""), False)
    yield
    with written_whole(path) as temporary:
        temporary.write_bytes(bytes(config.get_timing_cache().serialize()))
    record_made(path)


def _network_flags(library: Any) -> int:
    """Returns the flag for strongly typed networks; later versions have no other kind, and may lack the flag."""
    flags = library.NetworkDefinitionCreationFlag
    return 1 << int(flags.STRONGLY_TYPED) if hasattr(flags, "STRONGLY_TYPED") else 0


def _config_of(library: Any, builder: Any, ports: Sequence[Port], recipe: Recipe, profiles: Sequence[Profile]) -> Any:
    config = builder.create_builder_config()
    for profile in profiles:
        config.add_optimization_profile(_profile(builder, ports, profile))
    flags = (*(_REFIT if recipe.weights == "refit" else ()), *((_STREAMING,) if recipe.weight_streaming else ()))
    for flag in flags:
        config.set_flag(getattr(library.BuilderFlag, flag))
    return config


def _profile(builder: Any, ports: Sequence[Port], spans: Profile) -> Any:
    profile = builder.create_optimization_profile()
    for port in ports:
        if all(isinstance(axis, int) for axis in port.axes):
            continue
        names = {line_of(axis).name for axis in port.axes if isinstance(axis, str)}
        shapes = (port.shape({n: getattr(spans[n], end) for n in names}) for end in ("min", "best", "max"))
        profile.set_shape(port.name, *shapes)
    return profile


def _build(library: Any, builder: Any, network: Any, config: Any, file: Any) -> bool:
    if not hasattr(builder, "build_serialized_network_to_stream"):
        serialized = builder.build_serialized_network(network, config)
        if serialized is None:
            return False
        view = memoryview(serialized).cast("B")
        for begin in range(0, len(view), _PIECE_BYTES):
            file.write(view[begin : begin + _PIECE_BYTES])
        return True
    writer = _writer(library, file)
    built = builder.build_serialized_network_to_stream(network, config, writer)
    if writer.failure is not None:  # the library reports success even if the writer raises
        raise writer.failure
    return bool(built)


def _writer(library: Any, file: Any) -> Any:
    class Writer(library.IStreamWriter):
        """Writes the engine to a file in pieces, so that memory never holds all of it."""

        def __init__(self) -> None:
            library.IStreamWriter.__init__(self)
            self.failure: BaseException | None = None

        def write(self, data: bytes) -> int:
            if self.failure is None:
                try:
                    return int(file.write(data))
                except BaseException as error:
                    self.failure = error
            return 0

    return Writer()
