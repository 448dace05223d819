"""What an engine was built from and by, in a JSON file beside it. No library knows an engine's graph and weights, so
one whose sidecar does not match the folder, the installed library and the GPU is refused before it is loaded.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from ltx_runtime.errors import LtxError
from ltx_runtime.files import written_whole
from ltx_runtime.folder.profiles import Profile, Span

PORTABLE = "portable"
ENGINE_PRECISIONS = ("bf16", "fp16")  # in the order in which a session looks for them
# Where an engine's weights are: in it, given to it as inputs, or left out and put back from the checkpoint at load.
Weights = Literal["embedded", "inputs", "refit"]
WEIGHTS: tuple[Weights, ...] = get_args(Weights)


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

    @property
    def maker(self) -> Maker:
        """The library that built the engine, and the GPU it was built for."""
        return Maker(self.builder, self.builder_version, self.target, self.system, self.gpu, self.driver)

    @property
    def weight_inputs_bytes(self) -> int:
        """Size in bytes of all weights that are inputs."""
        return sum(one.size_bytes for one in self.weight_inputs.values())


def sidecar_path(engine: Path) -> Path:
    """The JSON file beside an engine."""
    return engine.with_name(f"{engine.name}.json")


def refit_graph_path(engine: Path) -> Path:
    """Beside an engine without weights, the graph by which they are put back: its own, of a few megabytes."""
    return engine.with_suffix(".onnx")


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
