"""The road of a bundle: what goes in, how large it will be, and the one file that it becomes."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ltx_export.bundle.archive import Archive, archive_at, archive_bytes
from ltx_export.bundle.contents import Contents, contents_of
from ltx_export.bundle.materials import bill_of_materials
from ltx_export.bundle.own_wheel import own_wheel
from ltx_export.bundle.target import Target, least_system
from ltx_export.bundle.wheel_file import Wheel, read_wheel
from ltx_export.bundle.wheels import download_wheels, lock_of
from ltx_runtime.errors import LtxError, explaining
from ltx_runtime.files import amount, check_space, written_whole
from ltx_runtime.folder.manifest import MANIFEST, Engines, manifest_text
from ltx_runtime.packages import RELEASE
from ltx_runtime.progress import Progress, silent
from ltx_runtime.replacing.tidying import tidy
from ltx_runtime.spec.versions import find_version

INSTALLER = "install.py"
FACTS, LOCK, MATERIALS = "bundle.json", "requirements.txt", "materials.cdx.json"
FORMAT = 1
# The smallest video that every version makes, as the first try after an installation.
TRIAL = ("--height", "64", "--width", "96", "--num-frames", "9", "--seed", "0")
_PACKED = {".gz", ".tgz", ".xz", ".txz", ".bz2", ".zst", ".zip"}


@dataclass(frozen=True)
class Options:
    """The target and the contents of a bundle.

    Attributes:
        target: the machine to install on.
        extras: the extras to install.
        precisions: keeps only graphs of these; empty for all that the backends of the extras run.
        overwrite: whether a file under the name of the bundle is replaced.
    """

    target: Target
    extras: tuple[str, ...]
    precisions: tuple[str, ...] = ()
    overwrite: bool = False


def bundle(
    engines: Engines,
    output: Path,
    options: Options,
    report: Callable[[str], None],
    progress: Progress = silent,
    make_wheel: Callable[[Path], Path] = own_wheel,
) -> Path:
    """Writes a bundle, which appears under its name when it is complete.

    Args:
        engines: the version folder, verified.
        output: the tar file.
        options: what it is for.
        report: called with each line of progress.
        progress: shows how many bytes are written.
        make_wheel: writes this program's wheel to an empty folder, and returns its path.

    Raises:
        LtxError: the output cannot be written, something is asked for that the folder or the extras lack, pip cannot
            get a wheel, or the disk has too little space.
    """
    with explaining(f"write {output}"):
        tidy(output.parent, report)
        _check_output(output, engines, overwrite=options.overwrite)
        contents = contents_of(engines, options.extras, options.precisions)
        check_space(output.parent, contents.size_bytes)
        graphs = ", ".join(contents.precisions)
        report(f"{len(contents.paths) + 1} files of {engines.folder}, {amount(contents.size_bytes)} (graphs: {graphs})")
        # Beside the output there is as much space as it needs, and perhaps nowhere else.
        with written_whole(output, replace=options.overwrite) as temporary:
            wheels = _wheels(temporary.with_name(f"{temporary.name}.wheels"), options, report, make_wheel)
            _write(temporary, contents, wheels, options, report, progress)
            engines.held.check_stands()
    return output


def _check_output(output: Path, engines: Engines, *, overwrite: bool) -> None:
    """Raises LtxError if a bundle must not or cannot have this name."""
    if output.suffix.lower() in _PACKED:
        raise LtxError(f"{output} would be packed, which weights do not become smaller by", "choose a name like x.tar")
    if not output.parent.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, "", str(output.parent))
    if output.is_dir():
        raise LtxError(f"cannot write {output}: it is a folder", "give a file name")
    inside = {engines.folder.resolve(), *(Path(folder).resolve() for folder in engines.manifest.linked.values())}
    if inside & {output.resolve(), *output.resolve().parents}:
        raise LtxError(f"{output} is inside the version folder", "choose another folder")
    if os.path.lexists(output) and not overwrite:
        raise LtxError(f"{output} exists", "choose another name, or add --overwrite")
    if output.exists() and not output.is_file():
        raise LtxError(f"cannot write {output}: it is no ordinary file", "choose another name")


def _wheels(
    folder: Path, options: Options, report: Callable[[str], None], make_wheel: Callable[[Path], Path]
) -> list[Wheel]:
    target = options.target
    report(f"getting wheels for Python {target.python_text} on {target.platform} with pip")
    (folder / "own").mkdir(parents=True)
    own = read_wheel(make_wheel(folder / "own"))
    wheels = download_wheels(own, options.extras, target, folder)
    size, installed = sum(wheel.path.stat().st_size for wheel in wheels), installed_bytes(wheels)
    report(f"{len(wheels)} wheels, {amount(size)}; installed, they take {amount(installed)}")
    return wheels


def installed_bytes(wheels: Iterable[Wheel]) -> int:
    """Returns the size of the files of wheels when they are installed."""
    return sum(wheel.installed_bytes for wheel in wheels)


def _write(
    path: Path,
    contents: Contents,
    wheels: Sequence[Wheel],
    options: Options,
    report: Callable[[str], None],
    progress: Progress,
) -> None:
    """Writes the tar file: small files first, then wheels, then the version folder, and the checksums at its end."""
    version = find_version(contents.manifest.version)
    engines = f"engines/{version.name}"
    named = {f"wheels/{wheel.path.name}": wheel.path for wheel in wheels}
    named |= {f"{engines}/{name}": place for name, place in contents.paths.items()}
    texts = {
        INSTALLER: Path(__file__).with_name(INSTALLER).read_text("utf-8"),
        LOCK: lock_of(wheels),
        MATERIALS: bill_of_materials(version, contents.manifest, wheels),
        f"{engines}/{MANIFEST}": manifest_text(contents.manifest),
    }
    facts = facts_of(version.name, contents, wheels, options, len(named) + len(texts) + 1)
    texts[FACTS] = json.dumps(facts, indent=1)
    sizes = {name: place.stat().st_size for name, place in named.items()}
    sizes |= {name: len(text.encode()) for name, text in texts.items()}
    check_space(path.parent, archive_bytes(sizes))
    digests: list[str] = []
    with (
        archive_at(path, folder_of(version.name, options.target), digests.append) as archive,
        progress("bundle", sum(sizes.values())) as advance,
    ):
        _add(archive, texts, named, advance)
    report(f"{amount(path.stat().st_size)}, SHA-256 {digests[0]}")


def folder_of(version: str, target: Target) -> str:
    """Returns the name of the folder that holds everything in the bundle of a version."""
    return f"ltx-engines-{version}-{target.platform}"


def _add(archive: Archive, texts: dict[str, str], named: dict[str, Path], advance: Callable[[int], None]) -> None:
    for name, text in texts.items():
        archive.add_text(name, text, program=name == INSTALLER)
    for name, place in named.items():
        archive.add_file(name, place, advance)
    archive.add_sums()


def facts_of(version: str, contents: Contents, wheels: Sequence[Wheel], options: Options, files: int) -> dict[str, Any]:
    """Returns what the installer must know, as plain data.

    Args:
        version: name of the version.
        contents: the files of the version folder.
        wheels: all wheels.
        options: what the bundle is for.
        files: number of files in the bundle without the checksums.
    """
    target = options.target
    return {
        "format": FORMAT,
        "release": RELEASE,
        "version": version,
        "extras": list(options.extras),
        "python": list(target.python),
        "system": target.system,
        "machine": target.machine,
        "least": least_systems(target, wheels),
        "installed_bytes": installed_bytes(wheels),
        "files": files,
        "trial": list(TRIAL) if "text_encoder" in contents.manifest.components else None,
    }


def least_systems(target: Target, wheels: Iterable[Wheel]) -> dict[str, list[int]]:
    """Returns the least version of a machine's system that all wheels run on, by its name: glibc, musl or macos."""
    order = {tag: index for index, tag in enumerate(target.tags)}
    least: dict[str, list[int]] = {}
    for wheel in wheels:
        tags = [tag for tag in wheel.platforms if tag in order]
        needed = least_system(max(tags, key=order.__getitem__)) if tags else None
        if needed is not None:
            name, version = needed
            least[name] = max(version, least.get(name, version))
    return least
