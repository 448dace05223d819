"""Locates an engine's file, checks that the engine may be loaded here, and returns the command that builds it again."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

from ltx_runtime.errors import LtxError
from ltx_runtime.files import engines_folder
from ltx_runtime.folder.commands import onnx_command
from ltx_runtime.folder.manifest import Engines, checksum
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
    """Everything that identifies one engine and locates its file; the file need not exist.

    Attributes:
        engines: the version folder that contains the engine.
        component: name of the component that the engine runs.
        maker: the library that builds and runs the engine, and the GPU that it is for.
        precision: precision of the graph from which the engine is built, one of ENGINE_PRECISIONS.
    """

    engines: Engines
    component: str
    maker: Maker
    precision: str

    @property
    def path(self) -> Path:
        """Path `<version folder>/<target>-<builder>-<builder version>/<component>.<precision>.engine`."""
        return self.engines.folder / self.maker.folder / f"{self.component}.{self.precision}.engine"

    def graph(self) -> Path:
        """Returns the path of the ONNX graph from which the engine is built.

        Raises:
            LtxError: the version folder has no graph of this precision.
        """
        return self.engines.folder / self._graph_name()

    def _graph_name(self) -> str:
        graph = self.engines.component(self.component).graphs.get(self.precision)
        if graph is None:
            version = self.engines.manifest.version
            command = self.engines.export_command()
            if self.precision != ENGINE_PRECISIONS[0]:
                precisions = f"--precision fp32 --precision {self.precision}"
                command = onnx_command(version, self.engines.folder.parent, precisions)
            raise LtxError(f"{self.engines.folder} has no {self.precision} graph of {self.component}", command=command)
        return graph

    def sources(self) -> dict[str, str]:
        """Returns the checksums, by file name, of the engine's graph and of the weight files to which the graph refers.

        Raises:
            LtxError: the version folder has no graph of this precision.
        """
        names = (self._graph_name(), *self.engines.component(self.component).weights)
        return {name: self.engines.manifest.files[name].checksum for name in names}

    def rebuild_command(self, options: str = "") -> str:
        """Returns the command that builds the engine again.

        Args:
            options: further options of `ltx-export engine`, such as those with which the engine was built.
        """
        version = self.engines.manifest.version
        precision = "" if self.precision == ENGINE_PRECISIONS[0] else f" --precision {self.precision}"
        further_options = f" {options}" if options else ""
        folder_option = engines_option(self.engines.folder, version)
        return (
            f"ltx-export engine {version} --component {self.component} --builder {self.maker.builder}"
            f"{precision}{further_options}{folder_option} --force"
        )


def engines_option(folder: Path, version: str) -> str:
    """Returns the `--engines` option for a version folder, with a leading space; empty in the default folder."""
    if folder.resolve() == (engines_folder(None) / version).resolve():
        return ""
    return f" --engines {shlex.quote(str(folder))}"


def check_engine(address: EngineAddress) -> Sidecar:
    """Checks that an engine may be loaded here, and returns its sidecar.

    Raises:
        LtxError: the engine or its sidecar is missing, or the engine has changed, or was built from other files, by
            another library or for another GPU. The error has the command that builds the engine again.
    """
    path = address.path
    if not path.is_file():
        raise LtxError(f"{path} does not exist", command=address.rebuild_command())
    try:
        sidecar = read_sidecar(path)
    except LtxError as error:
        raise LtxError(str(error), command=address.rebuild_command()) from None
    expected = {
        **address.maker.marks(),
        "component": address.component,
        "precision": address.precision,
        "sources": address.sources(),
        "engine_checksum": checksum(path),
    }
    for attribute, value in expected.items():
        if getattr(sidecar, attribute) != value:
            raise LtxError(f"{path} {_MISFITS[attribute]}", command=address.rebuild_command(sidecar.options))
    return sidecar
