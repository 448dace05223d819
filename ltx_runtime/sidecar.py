"""What an engine was built from and by, in a JSON file beside it. TensorRT has no check of its own, so an engine
whose sidecar does not match the folder and the installed library is refused before it is loaded.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ltx_runtime.components import Profile, Span, profiles
from ltx_runtime.errors import LtxError
from ltx_runtime.manifest import Engines, checksum, export_command

ENGINE_PRECISION = "bf16"
PORTABLE = "portable"

_MISFITS = {
    "builder": "was built by another library",
    "builder_version": "was built by another version of its library",
    "target": "was built for another GPU",
    "component": "is another component",
    "precision": "has another precision",
    "profiles": "serves other sizes",
    "sources": "was built from another graph or other weights",
    "engine_checksum": "has changed since it was built",
}


@dataclass(frozen=True)
class Sidecar:
    """Everything an engine depends on. `sources` has the checksums of the graph and the files it points into."""

    builder: str
    builder_version: str
    target: str
    component: str
    precision: str
    profiles: list[Profile]
    sources: dict[str, str]
    engine_checksum: str


def engine_path(engines: Engines, name: str, builder: str, builder_version: str) -> Path:
    """`<version folder>/<target>-<builder>-<its version>/<component>.<precision>.engine`."""
    return engines.folder / f"{PORTABLE}-{builder}-{builder_version}" / f"{name}.{ENGINE_PRECISION}.engine"


def sidecar_path(engine: Path) -> Path:
    """The JSON file beside an engine."""
    return engine.with_name(f"{engine.name}.json")


def graph_of(engines: Engines, name: str) -> str:
    """The file name of the graph that engines of this component are built from.

    Raises:
        LtxError: the folder lacks it.
    """
    graph = engines.component(name).graphs.get(ENGINE_PRECISION)
    if graph is None:
        raise LtxError(
            f"{engines.folder} has no {ENGINE_PRECISION} graph of {name} - {export_command(engines.manifest.version)}"
        )
    return graph


def describe(engines: Engines, name: str, builder: str, builder_version: str, engine_checksum: str) -> Sidecar:
    """The sidecar an engine of this component has when it is built here and now."""
    entry = engines.component(name)
    return Sidecar(
        builder=builder,
        builder_version=builder_version,
        target=PORTABLE,
        component=name,
        precision=ENGINE_PRECISION,
        profiles=profiles(entry.signature),
        sources={file: engines.manifest.files[file].checksum for file in (graph_of(engines, name), *entry.weights)},
        engine_checksum=engine_checksum,
    )


def write_sidecar(engine: Path, sidecar: Sidecar) -> None:
    """Writes the JSON file under a temporary name and renames it."""
    path = sidecar_path(engine)
    temporary = path.with_name(f".{path.name}.partial")
    try:
        temporary.write_text(json.dumps(asdict(sidecar), indent=1))
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def read_sidecar(engine: Path) -> Sidecar:
    """Raises LtxError if the engine has no readable sidecar; the message does not say what to do."""
    try:
        data: dict[str, Any] = json.loads(sidecar_path(engine).read_text())
        spans = [{axis: Span(**span) for axis, span in profile.items()} for profile in data.pop("profiles")]
        return Sidecar(**data, profiles=spans)
    except FileNotFoundError:
        raise LtxError(f"{engine} has no sidecar {sidecar_path(engine).name}") from None
    except (ValueError, TypeError, KeyError, AttributeError):
        raise LtxError(f"{sidecar_path(engine)} is damaged") from None


def check_engine(engines: Engines, name: str, engine: Path, builder: str, builder_version: str) -> Sidecar:
    """The sidecar of an engine that may be loaded.

    Raises:
        LtxError: the engine is missing, changed, or built from or by something else; ends with the command that
            rebuilds it.
    """
    rebuild = f"run: ltx-export engine {engines.manifest.version} --component {name} --force"
    if not engine.is_file():
        raise LtxError(f"{engine} does not exist - {rebuild}")
    try:
        found = read_sidecar(engine)
    except LtxError as error:
        raise LtxError(f"{error} - {rebuild}") from None
    wanted = describe(engines, name, builder, builder_version, checksum(engine))
    for field, value in asdict(wanted).items():
        if asdict(found)[field] != value:
            raise LtxError(f"{engine} {_MISFITS[field]} - {rebuild}")
    return found
