"""What an engine was built from and by, in a JSON file beside it. No library knows an engine's graph and weights, so
one whose sidecar does not match the folder, the installed library and the GPU is refused before it is loaded.
"""

from __future__ import annotations

import json
import shlex
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from ltx_runtime.errors import LtxError
from ltx_runtime.files import written_whole
from ltx_runtime.folder.manifest import Engines, checksum, export_command
from ltx_runtime.folder.profiles import Profile, Span

PORTABLE = "portable"
ENGINE_PRECISIONS = ("bf16", "fp16")  # in the order in which a session looks for them
# Where an engine's weights are: in it, given to it as inputs, or left out and put back from the checkpoint at load.
Weights = Literal["embedded", "inputs", "refit"]
WEIGHTS: tuple[Weights, ...] = get_args(Weights)

_MISFITS = {
    "builder": "was built by another library",
    "builder_version": "was built by another version of its library",
    "target": "was built for another GPU",
    "system": "was built on another operating system",
    "component": "is another component",
    "precision": "has another precision",
    "sources": "was built from another graph or other weights",
    "engine_checksum": "has changed since it was built",
}


@dataclass(frozen=True)
class Maker:
    """The library that builds or runs engines here, and for what.

    Attributes:
        builder, version: a name of LIBRARIES, and the library's own version.
        target: PORTABLE, or the GPU.
        system: operating system and processor, empty where engines are portable.
        gpu, driver: told in the sidecar, where there is one.
    """

    builder: str
    version: str
    target: str = PORTABLE
    system: str = ""
    gpu: str = ""
    driver: str = ""

    @property
    def folder(self) -> str:
        """Name of the folder of its engines, within a version folder."""
        return f"{self.target}-{self.builder}-{self.version}"

    def marks(self) -> dict[str, Any]:
        """The fields that its engines' sidecars have, and must have to be run here."""
        return {
            "builder": self.builder,
            "builder_version": self.version,
            "target": self.target,
            "system": self.system,
        }


@dataclass(frozen=True)
class WeightInput:
    """Where the values of one input that is a weight lie: so many bytes of a file, as the engine takes them.

    shape and dtype ("bf16", "fp16", "fp32", "int8", ...) are the input's.
    """

    file: str
    offset: int
    size_bytes: int
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Sidecar:
    """Everything an engine depends on.

    Attributes:
        builder, builder_version, target, system, gpu, driver: see Maker.
        component, precision: the graph's.
        weights: see Weights.
        profiles: the sizes it serves, in the engine's own order.
        sources: checksums of the graph and of the files it points into.
        structure: of the graph without its weights: engines without weights may change hands where it is equal.
        engine_checksum: of the engine file.
        weight_inputs: where the values of weights that are inputs lie, by the input's name.
        relative_l2: of its output to the fp32 graph's; None where no GPU could say.
        options: of the command that built it, for sizes and weights.
        weight_streaming: whether weights that do not fit may stay in the machine's memory.
    """

    builder: str
    builder_version: str
    target: str
    system: str
    gpu: str
    driver: str
    component: str
    precision: str
    weights: Weights
    profiles: list[Profile]
    sources: dict[str, str]
    structure: str
    engine_checksum: str
    weight_inputs: dict[str, WeightInput] = field(default_factory=dict)
    relative_l2: float | None = None
    weight_streaming: bool = False
    options: str = ""


def engine_path(engines: Engines, name: str, maker: Maker, precision: str) -> Path:
    """`<version folder>/<target>-<builder>-<its version>/<component>.<precision>.engine`."""
    return engines.folder / maker.folder / f"{name}.{precision}.engine"


def sidecar_path(engine: Path) -> Path:
    """The JSON file beside an engine."""
    return engine.with_name(f"{engine.name}.json")


def refit_graph_path(engine: Path) -> Path:
    """Beside an engine without weights, the graph by which they are put back: its own, of a few megabytes."""
    return engine.with_suffix(".onnx")


def graph_for(engines: Engines, name: str, precision: str) -> str:
    """The file name of the graph that engines of this component are built from.

    Raises:
        LtxError: the folder lacks it.
    """
    graph = engines.component(name).graphs.get(precision)
    if graph is None:
        command = export_command(engines.manifest.version)
        if precision != ENGINE_PRECISIONS[0]:
            command = f"ltx-export onnx {engines.manifest.version} --precision fp32 --precision {precision}"
        raise LtxError(f"{engines.folder} has no {precision} graph of {name}", command=command)
    return graph


def sources_of(engines: Engines, name: str, precision: str) -> dict[str, str]:
    """Checksums of the graph that an engine is built from and of the files it points into."""
    files = (graph_for(engines, name, precision), *engines.component(name).weights)
    return {file: engines.manifest.files[file].checksum for file in files}


def write_sidecar(engine: Path, sidecar: Sidecar) -> None:
    """Writes the JSON file under a temporary name and renames it."""
    with written_whole(sidecar_path(engine)) as temporary:
        temporary.write_text(json.dumps(asdict(sidecar), indent=1))


def read_sidecar(engine: Path) -> Sidecar:
    """Raises LtxError if the engine has no readable sidecar; the message does not say what to do."""
    try:
        data: dict[str, Any] = json.loads(sidecar_path(engine).read_text())
        spans = [{axis: Span(**span) for axis, span in profile.items()} for profile in data.pop("profiles")]
        inputs = {
            name: WeightInput(**{**one, "shape": tuple(one["shape"])})
            for name, one in data.pop("weight_inputs").items()
        }
        read = Sidecar(**data, profiles=spans, weight_inputs=inputs)
        if read.weights not in WEIGHTS or not spans:
            raise ValueError(read.weights)
        return read
    except FileNotFoundError:
        raise LtxError(f"{engine} has no sidecar {sidecar_path(engine).name}") from None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise LtxError(f"{sidecar_path(engine)} is damaged") from None


def engines_option(folder: Path, version: str) -> str:
    """The option by which ltx-export finds a version folder where it does not look by itself; begins with a space."""
    if folder.resolve() == Path("engines", version).resolve():
        return ""
    return f" --engines {shlex.quote(str(folder))}"


def rebuild_command(folder: Path, version: str, name: str, precision: str, builder: str, options: str = "") -> str:
    """The command that builds an engine anew; `options` are those it was built with."""
    half = "" if precision == ENGINE_PRECISIONS[0] else f" --precision {precision}"
    own = f" {options}" if options else ""
    place = engines_option(folder, version)
    return f"ltx-export engine {version} --component {name} --builder {builder}{half}{own}{place} --force"


def check_engine(engines: Engines, name: str, precision: str, maker: Maker) -> Sidecar:
    """The sidecar of an engine that may be loaded here.

    Raises:
        LtxError: the engine is missing, changed, or built from or by or for something else; ends with the command
            that rebuilds it.
    """
    engine = engine_path(engines, name, maker, precision)
    rebuild = rebuild_command(engines.folder, engines.manifest.version, name, precision, maker.builder)
    if not engine.is_file():
        raise LtxError(f"{engine} does not exist", command=rebuild)
    try:
        found = read_sidecar(engine)
    except LtxError as error:
        raise LtxError(str(error), command=rebuild) from None
    rebuild = rebuild_command(engines.folder, engines.manifest.version, name, precision, maker.builder, found.options)
    wanted = {
        **maker.marks(),
        "component": name,
        "precision": precision,
        "sources": sources_of(engines, name, precision),
        "engine_checksum": checksum(engine),
    }
    for attribute, value in wanted.items():
        if getattr(found, attribute) != value:
            raise LtxError(f"{engine} {_MISFITS[attribute]}", command=rebuild)
    return found
