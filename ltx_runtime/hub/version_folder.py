"""A version folder as a repository of the hub: fetched whole, with every byte checked, or not at all.

`ltx-export publish` writes such a repository: the manifest and every file that it lists, and no links to other folders.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from ltx_runtime.errors import LtxError, explaining
from ltx_runtime.folder.manifest import MANIFEST, Manifest
from ltx_runtime.folder.reading import open_engines, read_manifest
from ltx_runtime.hub.environment import influences, prepare
from ltx_runtime.hub.folder import STATE, Report, complete, filling
from ltx_runtime.hub.remote import AbsentError, Published, RemoteFile, UnreachableError, ask, check_name
from ltx_runtime.packages import need
from ltx_runtime.replacing.tidying import tidy
from ltx_runtime.spec.versions import find_version


class _UnusableError(LtxError):
    """Error of a repository of which nothing is worth keeping."""


def fetch_version(repository: str, root: Path, report: Report) -> Path:
    """Downloads a published version folder into a folder of version folders, and returns it.

    An interrupted download is resumed by the next one. The folder appears under its name when it is complete: the hub's
    checksums cover every byte of every file, and the manifest's prove that it is what was exported.

    Args:
        repository: the repository, as "owner/name".
        root: the folder of version folders, created if missing.
        report: called with each line of progress.

    Raises:
        LtxError: there is no such repository, it holds no version folder that this release reads, another export of the
            version is there already, the disk has too little space, or a file cannot be fetched or is not the
            manifest's.
    """
    need("huggingface_hub", "filelock", extra="download")
    check_name(repository)
    prepare()
    tidy(root, report)
    staging = (root / f".{repository.replace('/', '--')}.fetched").absolute()
    try:
        (published,) = _asked(repository, [MANIFEST], "main")
        with filling(staging, "download"):
            target = root / _filled(published, staging, root, report)
    except UnreachableError as error:
        raise LtxError(f"{error}", f"check {influences()}, then run the command again to go on") from None
    except _UnusableError:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    except AbsentError as error:
        raise LtxError(f"{error.problem}: it holds no version folder", "use one of ltx-export publish") from None
    with explaining(f"write {target}"):
        if target.exists():
            shutil.rmtree(staging)
        else:
            shutil.rmtree(staging / STATE.parts[0])
            staging.replace(target)
    return target


def _filled(published: Published, staging: Path, root: Path, report: Report) -> str:
    """Completes the staging folder, and returns the name of its version; does nothing if the root has the same one.

    Args:
        published: the manifest on the hub, at the commit of which all files are fetched.
        staging: the folder to complete.
        root: the folder of version folders.
        report: called with each line of progress.
    """
    repository = published.file.repository
    complete([published], staging, report)
    manifest = _read(repository, staging)
    target = root / manifest.version
    if target.exists():
        _check_same(target, manifest)
        report(f"{target} is this export already, and its files are intact")
        return manifest.version
    files = _asked(repository, sorted(manifest.files), published.commit)
    for one in files:
        if one.size != manifest.files[one.file.name].size_bytes:
            raise _not_as_published(repository, one.file.name)
    complete(files, staging, report)
    try:
        open_engines(staging)
    except LtxError as error:
        raise _not_as_published(repository, error.problem) from None
    _remove_others(staging, manifest)
    return manifest.version


def _asked(repository: str, names: list[str], revision: str) -> list[Published]:
    return [ask(RemoteFile(repository, name, name), revision) for name in names]


def _read(repository: str, folder: Path) -> Manifest:
    """Reads the manifest of a repository, which is not trusted.

    Raises:
        LtxError: this release does not read it, or a file would be written or read outside the version folder.
    """
    try:
        manifest = read_manifest(folder)
        find_version(manifest.version)
    except LtxError as error:
        shown = error.problem.replace(f"{folder}/", "").replace(str(folder), repository)
        raise _UnusableError(
            f"{repository} cannot be used here: {shown}", "update this program, or ask for a newer export"
        ) from None
    if manifest.linked:
        name = next(iter(manifest.linked))
        raise _UnusableError(f"{repository} names {name!r}, which is outside its folder", "do not use it")
    return manifest


def _check_same(target: Path, manifest: Manifest) -> None:
    """Raises LtxError unless a folder is an intact copy of the export that a manifest describes."""
    if read_manifest(target).files != manifest.files:
        raise _UnusableError(
            f"{target} is another export of {manifest.version}", "move it away, or add --engines OTHER"
        )
    open_engines(target)


def _not_as_published(repository: str, what: str) -> LtxError:
    return LtxError(f"{repository} is not what its manifest says: {what}", "ask its owner to publish it again")


def _remove_others(folder: Path, manifest: Manifest) -> None:
    """Removes files of earlier states of the repository, which the manifest does not list."""
    listed = {folder / name for name in (*manifest.files, MANIFEST)}
    for path in folder.rglob("*"):
        if path.is_file() and path not in listed and STATE.parts[0] not in path.relative_to(folder).parts:
            path.unlink()
