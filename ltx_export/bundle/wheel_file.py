"""A wheel as a file: what it is called, what it needs, its licence, and which machines take it."""

from __future__ import annotations

import hashlib
import re
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from email.parser import HeaderParser
from pathlib import Path
from typing import TYPE_CHECKING

from ltx_runtime.errors import LtxError

if TYPE_CHECKING:
    from packaging.requirements import Requirement

_METADATA = re.compile(r"[^/]+\.dist-info/METADATA")
_NO_LICENCE = {"unknown", "none"}


@dataclass(frozen=True)
class Wheel:
    """A wheel and its metadata.

    Attributes:
        path: the file.
        name: name of the distribution, normalized.
        version: its version.
        needs: its requirements, with markers.
        extras: names of its extras.
        requires_python: which versions of Python it takes, such as ">=3.10"; empty for all.
        licence: an SPDX expression, or the words of its metadata; empty if it names none.
        is_expression: whether the licence is an SPDX expression.
        platforms: platform tags of machines that take it; "any" for all.
        installed_bytes: estimated size of its files and of their bytecode.
        sha256: checksum of the file, in hexadecimal digits.
    """

    path: Path
    name: str
    version: str
    needs: tuple[Requirement, ...]
    extras: tuple[str, ...]
    requires_python: str
    licence: str
    is_expression: bool
    platforms: tuple[str, ...]
    installed_bytes: int
    sha256: str


def read_wheel(path: Path) -> Wheel:
    """Reads the metadata of a wheel.

    Raises:
        LtxError: the file is damaged, or no wheel.
    """
    from packaging.requirements import InvalidRequirement, Requirement  # noqa: PLC0415  (20 ms, for bundles only)
    from packaging.utils import InvalidWheelFilename, parse_wheel_filename  # noqa: PLC0415

    try:
        name, version, _, tags = parse_wheel_filename(path.name)
        with zipfile.ZipFile(path) as archive:
            (member,) = filter(_METADATA.fullmatch, archive.namelist())
            metadata = HeaderParser().parsestr(archive.read(member).decode())
            # Installing writes bytecode, which is about as large as its source.
            installed_bytes = sum(
                entry.file_size * (1 + entry.filename.endswith(".py")) for entry in archive.infolist()
            )
        needs = tuple(map(Requirement, metadata.get_all("Requires-Dist", [])))
    except (InvalidWheelFilename, InvalidRequirement, zipfile.BadZipFile, ValueError) as error:
        raise LtxError(f"{path.name} is not a wheel that can be read ({error})", "delete it from pip's cache") from None
    expression = metadata.get("License-Expression", "")
    return Wheel(
        path,
        str(name),
        str(version),
        needs,
        tuple(metadata.get_all("Provides-Extra", [])),
        metadata.get("Requires-Python", ""),
        expression or _licence_in_words(metadata.get("License", ""), metadata.get_all("Classifier", [])),
        bool(expression),
        tuple(sorted({tag.platform for tag in tags})),
        installed_bytes,
        sha256_of(path),
    )


def _licence_in_words(licence: str, classifiers: Iterable[str]) -> str:
    """Returns the licence in older metadata: a short name, or else what the classifiers say."""
    first, *rest = licence.strip().splitlines() or [""]
    first = "" if first.strip().lower() in _NO_LICENCE else first.strip()
    if first and not rest:
        return first
    names = (text.rpartition(" :: ")[2] for text in classifiers if text.startswith("License :: "))
    return ", ".join(names) or first  # some give the whole text


def sha256_of(path: Path) -> str:
    """Returns the SHA-256 of a whole file in hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()
