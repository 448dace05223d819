"""Finds the version folder that is meant."""

from __future__ import annotations

from pathlib import Path

from ltx_runtime.errors import LtxError
from ltx_runtime.files import engines_folder
from ltx_runtime.folder.commands import export_command, fetch_advice, no_versions
from ltx_runtime.folder.manifest import MANIFEST, read_manifest


def find_folder(engines: Path, version: str | None) -> Path:
    """Returns the version folder selected by `--engines` (a version folder, or a root of several) and `--version`.

    Raises:
        LtxError: there is no such folder, it has another version, or there are several and no version was named.
    """
    if (engines / MANIFEST).exists() or any(engines.glob("*.onnx")):
        folder_version = read_manifest(engines).version
        if version not in (None, folder_version):
            raise LtxError(f"{engines} holds version {folder_version}, not {version}", "leave --version out")
        return engines
    if version is not None:
        if not (engines / version).is_dir():
            versions = ", ".join(_versions_in(engines)) or "none"
            raise LtxError(
                f"no engines for {version} in {engines} (found: {versions})",
                fetch_advice(version),
                export_command(version, engines),
            )
        return engines / version
    names = _versions_in(engines)
    if len(names) == 1:
        return engines / names[0]
    if names:
        raise LtxError(f"{engines} holds several versions", f"choose one with --version: {', '.join(names)}")
    if not engines.is_dir():
        if engines == engines_folder(None):
            problem = f"there are no exported versions: neither ./engines nor {engines} is a folder"
            raise no_versions(problem, "add --version and a release to see how to get it")
        raise no_versions(f"{engines} is not a folder", "check the path")
    raise no_versions(f"{engines} holds no complete version folder")


def _versions_in(root: Path) -> list[str]:
    return sorted(path.parent.name for path in root.glob(f"[!.]*/{MANIFEST}"))
