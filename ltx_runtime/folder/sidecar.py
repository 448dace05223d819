"""Reads and writes an engine's sidecar, a JSON file beside it that records its sources, its builder and its GPU.

No library can tell the graph and weights of an engine, so an engine whose sidecar does not match the version folder,
the installed library and the GPU is refused before it is loaded.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import asdict, dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any, Literal, get_args

from ltx_runtime.errors import LtxError
from ltx_runtime.files import written_whole
from ltx_runtime.folder.profiles import Profile, Span
from ltx_runtime.trust.listed import MOST_SIDECAR_BYTES, read_small
from ltx_runtime.trust.made_here import is_made_here, record_made

_MOST_COUNTED = 1 << 50  # bytes or values
_TEXTS = (
    *("builder", "builder_version", "target", "system", "gpu", "driver"),
    *("component", "precision", "structure", "engine_checksum", "options"),
)
_OPTIONS = re.compile(r"(--[a-z-]+( \w+)?( (?=-)|$))*")

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
    """Writes the sidecar of an engine to a temporary file and renames it; records both as made here, see `is_own`."""
    with written_whole(sidecar_path(engine)) as temporary:
        temporary.write_text(json.dumps(asdict(sidecar), indent=1))
    record_made(*filter(Path.is_file, _files_of(engine)))


def is_own(engine: Path) -> bool:
    """Returns whether this machine's user has built an engine, with its sidecar and the graph that it is refitted with.

    An engine is code, and its sidecar says how its memory is used.
    """
    graph = refit_graph_path(engine)
    return all(is_made_here(path) for path in _files_of(engine) if path != graph or os.path.lexists(path))


def _files_of(engine: Path) -> tuple[Path, ...]:
    return engine, sidecar_path(engine), refit_graph_path(engine)


def read_sidecar(engine: Path) -> Sidecar:
    """Reads the sidecar of an engine.

    Raises:
        LtxError: the sidecar is missing or damaged; the error has no advice.
    """
    path = sidecar_path(engine)
    content = read_small(path, MOST_SIDECAR_BYTES)
    if content is None:
        raise LtxError(f"{engine} has no sidecar {path.name}")
    try:
        data: dict[str, Any] = json.loads(content)
        profiles = [{axis: Span(**span) for axis, span in profile.items()} for profile in data.pop("profiles")]
        weight_inputs = {
            name: WeightInput(**{**values, "shape": tuple(values["shape"])})
            for name, values in data.pop("weight_inputs").items()
        }
        sidecar = Sidecar(**data, profiles=profiles, weight_inputs=weight_inputs)
        _check_values(sidecar)
        return sidecar
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise LtxError(f"{path} is damaged") from None


def _check_values(sidecar: Sidecar) -> None:
    """Raises ValueError for values of another kind than an export writes; `options` become part of a command."""
    texts = [getattr(sidecar, name) for name in _TEXTS]
    texts += [text for weight in sidecar.weight_inputs.values() for text in (weight.file, weight.dtype)]
    counts = [count for weight in sidecar.weight_inputs.values() for count in (weight.size_bytes, *weight.shape)]
    spans = [span for profile in sidecar.profiles for span in profile.values()]
    error = sidecar.relative_l2
    is_well = (
        sidecar.weights in WEIGHTS
        and sidecar.profiles
        and all(isinstance(text, str) for text in (*texts, *sidecar.sources, *sidecar.sources.values()))
        and all(map(_is_count, counts))
        and all(weight.offset == 0 or _is_count(weight.offset) for weight in sidecar.weight_inputs.values())
        and all(_is_count(size) for span in spans for size in (span.min, span.best, span.max))
        and all(span.min <= span.best <= span.max for span in spans)
        and (error is None or (isinstance(error, float) and isfinite(error)))
        and isinstance(sidecar.weight_streaming, bool)
        and _OPTIONS.fullmatch(sidecar.options)
    )
    if not is_well:
        raise ValueError(sidecar)


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 < value < _MOST_COUNTED
