"""Locates an engine's file, checks that the engine may be loaded here, and returns the command that builds it again."""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass
from pathlib import Path

from ltx_runtime.errors import LtxError
from ltx_runtime.files import engines_folder
from ltx_runtime.folder.commands import onnx_command
from ltx_runtime.folder.manifest import Engines, checksum
from ltx_runtime.folder.profiles import profiles
from ltx_runtime.folder.sidecar import ENGINE_PRECISIONS, Maker, Sidecar, is_own, read_sidecar, sidecar_path
from ltx_runtime.trust.listed import ordinary_size
from ltx_runtime.trust.made_here import is_made_here

FOREIGN = "was not built by you on this machine, and an engine is code: --trust-engines runs it"
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
            f"ltx-export engine {shlex.quote(version)} --component {self.component} --builder {self.maker.builder}"
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
        LtxError: the engine or its sidecar is missing, the user has not built it on this machine (unless the folder is
            trusted), or the engine has changed, or was built from other files, by another library or for another GPU.
            The error has the command that builds the engine again.
    """
    path = address.path
    try:
        if ordinary_size(path) is None:
            raise LtxError(f"{path} does not exist")
        if has_foreign_sidecar(address.engines, path):
            raise foreign_engine(address)
        sidecar = read_sidecar(path)
    except LtxError as error:
        raise LtxError(error.problem, command=address.rebuild_command()) from None
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
    if not (address.engines.trusted or is_own(path)):
        raise foreign_engine(address)
    _check_fits(address, sidecar)
    return sidecar


def has_foreign_sidecar(engines: Engines, engine: Path) -> bool:
    """Returns whether an engine has a sidecar that is not to be read, since the user has not made it here."""
    sidecar = sidecar_path(engine)
    return not engines.trusted and os.path.lexists(sidecar) and not is_made_here(sidecar)


def foreign_engine(address: EngineAddress) -> LtxError:
    """Returns the error for an engine that the user has not built on this machine: an engine is code."""
    problem = f"the {address.precision} engine of {address.component} {FOREIGN}"
    return LtxError(problem, command=address.rebuild_command())


def _check_fits(address: EngineAddress, sidecar: Sidecar) -> None:
    """Raises LtxError if a sidecar has sizes of another component, or weights outside the component's own files."""
    entry, files = address.engines.component(address.component), address.engines.manifest.files
    axes = profiles(entry.signature)[0].keys()
    ends = ((weight.file, weight.offset + weight.size_bytes) for weight in sidecar.weight_inputs.values())
    if any(profile.keys() != axes for profile in sidecar.profiles) or any(
        file not in entry.weights or end > files[file].size_bytes for file, end in ends
    ):
        raise LtxError(f"{sidecar_path(address.path)} is damaged", command=address.rebuild_command())


def engine_paths(engines: Engines, pattern: str) -> list[Path]:
    """Returns the engines in folders of a version folder; a link to a folder elsewhere is not followed.

    Args:
        engines: the version folder.
        pattern: pattern of the folder's name and the file's name, such as `*-tensorrt-*/transformer.*.engine`.
    """
    of_folder, _, of_file = pattern.partition("/")
    folders = sorted(path for path in engines.folder.glob(of_folder) if path.is_dir() and not path.is_symlink())
    return [path for folder in folders for path in sorted(folder.glob(of_file))]
