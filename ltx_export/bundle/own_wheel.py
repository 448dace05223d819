"""The wheel of this program itself: built from its source tree, or put together again from its installed files."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import zipfile
from importlib import metadata
from pathlib import Path, PurePosixPath

from ltx_export.bundle.wheels import run_pip
from ltx_runtime import packages
from ltx_runtime.errors import LtxError

_EARLIEST = (1980, 1, 1, 0, 0, 0)  # of a zip file; a fixed time makes the same files the same bytes
_MODE = 0o644 << 16
_MADE_BY_INSTALLING = {"INSTALLER", "REQUESTED", "RECORD", "direct_url.json"}
_REINSTALL = "install it again from a wheel or its source tree"


def own_wheel(folder: Path) -> Path:
    """Writes this program's wheel to an empty folder, and returns its path.

    Raises:
        LtxError: it is neither a source tree nor installed as a whole, or pip cannot build it.
    """
    tree = Path(packages.__file__).parents[1]
    if (tree / "pyproject.toml").is_file():
        arguments = ["wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(tree)]
        run_pip(arguments, f"a wheel of {tree}", "check the network and pip's settings: hatchling builds it")
        (wheel,) = folder.glob("*.whl")
        return wheel
    try:
        return wheel_from_installed(metadata.distribution(packages.DISTRIBUTION), folder)
    except metadata.PackageNotFoundError:
        raise LtxError(f"{tree} was copied and is no installed program", _REINSTALL) from None


def wheel_from_installed(distribution: metadata.Distribution, folder: Path) -> Path:
    """Writes a wheel of pure Python with the installed files of a distribution, and returns its path.

    Raises:
        LtxError: its list of files is missing, one of them is, or the distribution is not pure Python.
    """
    name, tag = distribution.name.replace("-", "_"), "py3-none-any"
    stated = distribution.read_text("WHEEL") or ""
    if f"Tag: {tag}" not in stated.splitlines() or not distribution.files:
        raise LtxError(f"{distribution.name} was not installed from a wheel of its own", _REINSTALL)
    path = folder / f"{name}-{distribution.version}-{tag}.whl"
    info = f"{name}-{distribution.version}.dist-info"
    rows: list[tuple[str, str, int | str]] = []
    with zipfile.ZipFile(path, "w") as archive:
        for member in sorted(distribution.files, key=str):
            if not _belongs(member):
                continue
            try:
                content = Path(str(member.locate())).read_bytes()
            except FileNotFoundError:
                raise LtxError(f"{member} of {distribution.name} is missing", _REINSTALL) from None
            _add(archive, str(PurePosixPath(member)), content)
            digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
            rows.append((str(PurePosixPath(member)), f"sha256={digest}", len(content)))
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([*rows, (f"{info}/RECORD", "", "")])
        _add(archive, f"{info}/RECORD", text.getvalue().encode())
    return path


def _belongs(member: metadata.PackagePath) -> bool:
    """Returns whether a file was in the wheel, rather than made by installing it: programs, bytecode, notes."""
    made = member.name in _MADE_BY_INSTALLING and member.parent.suffix == ".dist-info"
    return not (made or ".." in member.parts or member.is_absolute() or "__pycache__" in member.parts)


def _add(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    entry = zipfile.ZipInfo(name, _EARLIEST)
    entry.compress_type, entry.external_attr = zipfile.ZIP_DEFLATED, _MODE
    archive.writestr(entry, content)
