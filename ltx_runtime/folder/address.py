"""The address of an engine: where its file lies, what it must have been built from, and the command that builds it."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

from ltx_runtime.errors import LtxError
from ltx_runtime.folder.manifest import Engines, checksum, export_command
from ltx_runtime.folder.sidecar import ENGINE_PRECISIONS, Maker, Sidecar, read_sidecar

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
class EngineAddress:
    """Names one engine; whether it exists is another question.

    Attributes:
        engines: the version folder that it belongs to.
        component: the name of the component that it runs.
        maker: the library that builds and runs it, and the GPU it is for.
        precision: the precision of the graph that it is built from, one of ENGINE_PRECISIONS.
    """

    engines: Engines
    component: str
    maker: Maker
    precision: str

    @property
    def path(self) -> Path:
        """`<version folder>/<target>-<builder>-<its version>/<component>.<precision>.engine`."""
        return self.engines.folder / self.maker.folder / f"{self.component}.{self.precision}.engine"

    def graph(self) -> Path:
        """The ONNX graph that the engine is built from.

        Raises:
            LtxError: the version folder has no such graph.
        """
        return self.engines.folder / self._graph_name()

    def _graph_name(self) -> str:
        graph = self.engines.component(self.component).graphs.get(self.precision)
        if graph is None:
            version = self.engines.manifest.version
            command = export_command(version)
            if self.precision != ENGINE_PRECISIONS[0]:
                command = f"ltx-export onnx {version} --precision fp32 --precision {self.precision}"
            raise LtxError(f"{self.engines.folder} has no {self.precision} graph of {self.component}", command=command)
        return graph

    def sources(self) -> dict[str, str]:
        """Checksums of the graph that the engine is built from and of the weight files it points into, by file name.

        Raises:
            LtxError: the version folder has no such graph.
        """
        names = (self._graph_name(), *self.engines.component(self.component).weights)
        return {name: self.engines.manifest.files[name].checksum for name in names}

    def rebuild_command(self, options: str = "") -> str:
        """The command that builds the engine again.

        Args:
            options: further options of `ltx-export engine`, such as those it was built with.
        """
        version = self.engines.manifest.version
        precision = "" if self.precision == ENGINE_PRECISIONS[0] else f" --precision {self.precision}"
        own = f" {options}" if options else ""
        place = engines_option(self.engines.folder, version)
        return (
            f"ltx-export engine {version} --component {self.component} --builder {self.maker.builder}"
            f"{precision}{own}{place} --force"
        )


def engines_option(folder: Path, version: str) -> str:
    """The option that points ltx-export to a version folder, with a leading space; empty for engines/<version>."""
    if folder.resolve() == Path("engines", version).resolve():
        return ""
    return f" --engines {shlex.quote(str(folder))}"


def check_engine(address: EngineAddress) -> Sidecar:
    """Checks that an engine may be loaded here, and returns its sidecar.

    Raises:
        LtxError: the engine is missing, has changed, or was built from other files, by another library or for another
            GPU; carries the command that builds it again.
    """
    path = address.path
    if not path.is_file():
        raise LtxError(f"{path} does not exist", command=address.rebuild_command())
    try:
        sidecar = read_sidecar(path)
    except LtxError as error:
        raise LtxError(str(error), command=address.rebuild_command()) from None
    wanted = {
        **address.maker.marks(),
        "component": address.component,
        "precision": address.precision,
        "sources": address.sources(),
        "engine_checksum": checksum(path),
    }
    for attribute, value in wanted.items():
        if getattr(sidecar, attribute) != value:
            raise LtxError(f"{path} {_MISFITS[attribute]}", command=address.rebuild_command(sidecar.options))
    return sidecar
