"""Graph + spans -> engine and sidecar, with TensorRT-RTX. Imports no torch: engines are built where they run.

TensorRT-RTX parses and compiles without a GPU; kernels are made on the first run. Precision is the graph's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from ltx_runtime.components import Component, Port, Profile, line_of, profiles
from ltx_runtime.errors import LtxError
from ltx_runtime.manifest import Engines, checksum
from ltx_runtime.sidecar import describe, engine_path, graph_of, sidecar_path, write_sidecar

BUILDER = "tensorrt_rtx"


def builder_library() -> Any:
    """The tensorrt_rtx module.

    Raises:
        LtxError: it is not installed.
    """
    try:
        import tensorrt_rtx  # noqa: PLC0415  (95 MB of libraries, only to build)
    except ImportError as error:
        raise LtxError(
            f"TensorRT-RTX cannot be loaded ({error}) - run: pip install 'ltx-engines[tensorrt-rtx]'"
        ) from None
    return tensorrt_rtx


def build_engine(engines: Engines, name: str) -> Path:
    """Builds one component's engine; engine and sidecar appear under their names only when whole.

    Raises:
        LtxError: the folder has no bf16 graph, or TensorRT-RTX refuses it; says why in its words.
    """
    library = builder_library()
    graph = engines.folder / graph_of(engines, name)
    target = engine_path(engines, name, BUILDER, library.__version__)
    target.parent.mkdir(exist_ok=True)
    temporary = target.with_name(f".{target.name}.partial")
    sidecar_path(target).unlink(missing_ok=True)
    try:
        _compile(library, graph, engines.weights_folder(name), engines.component(name).signature, temporary)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    write_sidecar(target, describe(engines, name, BUILDER, library.__version__, checksum(target)))
    return target


def _compile(library: Any, graph: Path, weights: Path, component: Component, engine: Path) -> None:
    logger = _logger(library)
    logger.heard.clear()
    builder = library.Builder(logger)
    flag = library.NetworkDefinitionCreationFlag.STRONGLY_TYPED
    network = builder.create_network(1 << int(flag))
    parser = library.OnnxParser(network, builder.logger)
    if not parser.parse(graph.read_bytes(), str(weights / graph.name)):
        reasons = [parser.get_error(i).desc() for i in range(parser.num_errors)]
        raise LtxError(f"TensorRT-RTX cannot parse {graph}: {_first(reasons)} - export it again")
    config = builder.create_builder_config()
    for spans in profiles(component):
        config.add_optimization_profile(_profile(builder, component.inputs, spans))
    with engine.open("wb") as file:
        writer = _writer(library, file)
        built = builder.build_serialized_network_to_stream(network, config, writer)
    # TensorRT takes an exception inside the writer for success.
    if writer.failure is not None:
        raise writer.failure
    if not built:
        raise LtxError(f"TensorRT-RTX cannot build {graph}: {_first(logger.heard)} - see its release notes")


def _first(reasons: Sequence[str]) -> str:
    return " ".join(reasons[0].split()) if reasons else "it gave no reason"


@cache
def _logger(library: Any) -> Any:
    """One for the whole process: the library goes on using the first it was given."""

    class Logger(library.ILogger):
        """Keeps errors for the message instead of printing them."""

        def __init__(self) -> None:
            library.ILogger.__init__(self)
            self.heard: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity <= library.ILogger.Severity.ERROR:
                self.heard.append(message)

    return Logger()


def _writer(library: Any, file: Any) -> Any:
    class Writer(library.IStreamWriter):
        """Hands the engine to a file in pieces, so that memory never holds all of it."""

        failure: BaseException | None = None

        def write(self, data: bytes) -> int:
            if self.failure is None:
                try:
                    return int(file.write(data))
                except BaseException as error:
                    self.failure = error
            return 0

    return Writer()


def _profile(builder: Any, ports: Sequence[Port], spans: Profile) -> Any:
    profile = builder.create_optimization_profile()
    for port in ports:
        if all(isinstance(axis, int) for axis in port.axes):
            continue
        names = {line_of(axis).name for axis in port.axes if isinstance(axis, str)}
        shapes = (port.shape({n: getattr(spans[n], end) for n in names}) for end in ("min", "best", "max"))
        profile.set_shape(port.name, *shapes)
    return profile
