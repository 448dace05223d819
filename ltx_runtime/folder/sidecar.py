"""Reads and writes an engine's sidecar, a JSON file beside it that records its sources, its builder and its GPU.

No library can tell the graph and weights of an engine, so an engine whose sidecar does not match the version folder,
the installed library and the GPU is refused before it is loaded.
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
# Where an engine's weights are: inside it, passed as inputs, or left out and refitted from the checkpoint at load.
Weights = Literal["embedded", "inputs", "refit"]
WEIGHTS: tuple[Weights, ...] = get_args(Weights)


@dataclass(frozen=True)
class Maker:
    """The library that builds or runs engines, and the GPU and system that they are for.

    Attributes:
        builder: name of the library, a key of LIBRARIES.
        version: version of the library.
        target: compute capability and name of the GPU, or PORTABLE.
        system: operating system and processor; empty if engines are portable.
        gpu: name of the machine's GPU, for the record; empty if there is none.
        driver: CUDA version of the machine's driver, for the record; empty if there is no GPU.
    """

    builder: str
    version: str
    target: str = PORTABLE
    system: str = ""
    gpu: str = ""
    driver: str = ""

    @property
    def folder(self) -> str:
        """Name of the folder of these engines within a version folder."""
        return f"{self.target}-{self.builder}-{self.version}"

    def marks(self) -> dict[str, Any]:
        """Returns the fields of a sidecar that must have these values for the engine to run here."""
        return {
            "builder": self.builder,
            "builder_version": self.version,
            "target": self.target,
            "system": self.system,
        }


@dataclass(frozen=True)
class WeightInput:
    """Location of the values of a weight that is an input of the engine.

    Attributes:
        file: name of the file, relative to the folder of the weights.
        offset: position of the first byte in the file.
        size_bytes: number of bytes, which are passed to the engine unchanged.
        dtype: dtype of the input, such as "bf16", "fp16", "fp32" or "int8".
        shape: shape of the input.
    """

    file: str
    offset: int
    size_bytes: int
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Sidecar:
    """Everything that an engine depends on.

    Attributes:
        builder, builder_version, target, system, gpu, driver: see Maker.
        component, precision: component and precision of the graph.
        weights: where the engine's weights are, see Weights.
        profiles: the sizes that the engine serves, in the engine's order.
        sources: checksums of the graph and of the weight files to which it refers, by file name.
        structure: hash of the graph without its weights. Folders with equal structure can share an engine whose
            weights are outside it.
        engine_checksum: checksum of the engine file.
        weight_inputs: locations of the weights that are inputs, by input name.
        relative_l2: relative L2 error of the engine's output against the fp32 graph's; None if it was not measured.
        weight_streaming: whether weights that do not fit on the GPU may stay in host memory.
        options: options for sizes and weights of the command that built the engine.
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
        """The library that built the engine, and the GPU and system that it was built for."""
        return Maker(self.builder, self.builder_version, self.target, self.system, self.gpu, self.driver)


def sidecar_path(engine: Path) -> Path:
    """Returns the path of the sidecar beside an engine."""
    return engine.with_name(f"{engine.name}.json")


def refit_graph_path(engine: Path) -> Path:
    """Returns the path of the graph with which an engine without weights is refitted, a copy of a few megabytes."""
    return engine.with_suffix(".onnx")


def write_sidecar(engine: Path, sidecar: Sidecar) -> None:
    """Writes the sidecar of an engine to a temporary file and renames it."""
    with written_whole(sidecar_path(engine)) as temporary:
        temporary.write_text(json.dumps(asdict(sidecar), indent=1))


def read_sidecar(engine: Path) -> Sidecar:
    """Reads the sidecar of an engine.

    Raises:
        LtxError: the sidecar is missing or damaged; the error has no advice.
    """
    try:
        data: dict[str, Any] = json.loads(sidecar_path(engine).read_text())
        profiles = [{axis: Span(**span) for axis, span in profile.items()} for profile in data.pop("profiles")]
        weight_inputs = {
            name: WeightInput(**{**values, "shape": tuple(values["shape"])})
            for name, values in data.pop("weight_inputs").items()
        }
        sidecar = Sidecar(**data, profiles=profiles, weight_inputs=weight_inputs)
        if sidecar.weights not in WEIGHTS or not profiles:
            raise ValueError(sidecar.weights)
        return sidecar
    except FileNotFoundError:
        raise LtxError(f"{engine} has no sidecar {sidecar_path(engine).name}") from None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise LtxError(f"{sidecar_path(engine)} is damaged") from None
