"""Finds the version folder that is meant, and clears away what killed runs have left around it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ltx_runtime.errors import LtxError
from ltx_runtime.files import cache_folder, engines_folder
from ltx_runtime.folder.commands import export_command, fetch_advice, no_versions
from ltx_runtime.folder.manifest import MANIFEST
from ltx_runtime.folder.reading import read_manifest
from ltx_runtime.replacing.exchange import standing, standing_in
from ltx_runtime.replacing.tidying import tidy, tidy_below


def find_tidied(engines: Path, version: str | None, note: Callable[[str], None]) -> Path:
    """Does what `find_folder` does, after clearing away what killed runs have left there and in the caches.

    Args:
        engines: a version folder, or a root of several.
        version: the version; None if there is only one.
        note: is called with what that frees.

    Raises:
        LtxError: there is no such folder, it has another version, or there are several and no version was named.
    """
    for folder in (engines.absolute().parent, engines):
        tidy(folder, note)
    folder = find_folder(engines, version)
    tidy_around(folder, note)
    return folder


def tidy_around(folder: Path, note: Callable[[str], None]) -> None:
    """Clears away what killed runs have left around a version folder, in it and in the caches; see `tidy`."""
    tidy(folder.parent, note)
    tidy_below(folder, note)
    if (cache := cache_folder()) is not None:
        tidy_below(cache, note)


def find_folder(engines: Path, version: str | None) -> Path:
    """Returns the version folder selected by `--engines` (a version folder, or a root of several) and `--version`.

    Raises:
        LtxError: there is no such folder, it has another version, or there are several and no version was named.
    """
    engines = standing(engines)
    if (engines / MANIFEST).exists() or any(engines.glob("*.onnx")):
        folder_version = read_manifest(engines).version
        if version not in (None, folder_version):
            raise LtxError(f"{engines} holds version {folder_version}, not {version}", "leave --version out")
        return engines
    if version is not None:
        if not standing(engines / version).is_dir():
            versions = ", ".join(_versions_in(engines)) or "none"
            raise LtxError(
                f"no engines for {version} in {engines} (found: {versions})",
                fetch_advice(version),
                export_command(version, engines),
            )
        return standing(engines / version)
    names = _versions_in(engines)
    if len(names) == 1:
        return standing(engines / names[0])
    if names:
        raise LtxError(f"{engines} holds several versions", f"choose one with --version: {', '.join(names)}")
    if not engines.is_dir():
        if engines == engines_folder(None):
            problem = f"there are no exported versions: neither ./engines nor {engines} is a folder"
            raise no_versions(problem, "add --version and a release to see how to get it")
        raise no_versions(f"{engines} is not a folder", "check the path")
    raise no_versions(f"{engines} holds no complete version folder")


def _versions_in(root: Path) -> list[str]:
    names = (path.parent.name for path in root.glob(f"[!.]*/{MANIFEST}"))
    return sorted({*names, *(path.name for path in standing_in(root))})
