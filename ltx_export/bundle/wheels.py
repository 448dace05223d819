"""The wheels that an extra of this project needs on another machine: downloaded by pip, locked by checksums."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from ltx_export.bundle.target import Target
from ltx_export.bundle.wheel_file import Wheel, read_wheel
from ltx_runtime.doctor.machine import RUNTIMES
from ltx_runtime.errors import LtxError
from ltx_runtime.packages import pip_command

if TYPE_CHECKING:
    from packaging.requirements import Requirement

_INSTALLER = "pip"
_ERROR = "ERROR: "


def download_wheels(own: Wheel, extras: Sequence[str], target: Target, folder: Path) -> list[Wheel]:
    """Downloads the wheels of this project's extras, and that of pip itself, for another machine.

    pip reads environment markers as those of this machine, whatever platform it downloads for. What only the other
    machine needs is therefore looked up in the wheels and asked for by name, and what only this one needs is left out.

    Args:
        own: the wheel of this project.
        extras: names of its extras.
        target: the other machine.
        folder: an empty folder for the wheels.

    Returns:
        All wheels by name, its own one included.

    Raises:
        LtxError: there is no such extra, the extras exclude each other, or pip cannot get a wheel for this machine.
    """
    _check(own, extras, target)
    wanted = [f"{own.path}[{','.join(extras)}]", _INSTALLER]
    for turn in range(len(wanted) + len(RUNTIMES) ** 2):
        destination = folder / str(turn)
        _download(wanted, target, destination)
        wheels = {wheel.name: wheel for wheel in map(read_wheel, sorted(destination.glob("*.whl")))}
        needed, missing = closure({own.name: extras, _INSTALLER: ()}, wheels, target.environments())
        if clashing := needed & set(RUNTIMES) if len(needed & set(RUNTIMES)) > 1 else None:
            raise LtxError(
                f"{' and '.join(sorted(clashing))} would overwrite each other's files",
                "use --extra gpu without cpu, openvino and export",
            )
        if not missing:
            return [wheels[name] for name in sorted(needed)]
        wanted += missing
    raise LtxError(f"pip finds no set of wheels for {target.platform}", "make the bundle on such a machine")


def _check(own: Wheel, extras: Sequence[str], target: Target) -> None:
    from packaging.specifiers import SpecifierSet  # noqa: PLC0415  (20 ms, for bundles only)

    if unknown := [extra for extra in extras if extra not in own.extras]:
        raise LtxError(f"unknown extra {unknown[0]!r}", f"use one of {', '.join(sorted(own.extras))}")
    if not SpecifierSet(own.requires_python).contains(f"{target.python_text}.0"):
        raise LtxError(f"this program needs Python {own.requires_python}, not {target.python_text}", "change --python")


def closure(
    roots: Mapping[str, Iterable[str]], wheels: Mapping[str, Wheel], environments: Sequence[Mapping[str, str]]
) -> tuple[set[str], list[str]]:
    """Follows the requirements of wheels as another machine reads them.

    Args:
        roots: names of distributions, with the extras to install.
        wheels: the wheels by name.
        environments: values of the environment markers; a requirement counts if it counts for one of them.

    Returns:
        The names of all wheels that are needed, and the requirements that none of the wheels satisfies.
    """
    from packaging.utils import canonicalize_name  # noqa: PLC0415

    pending = [(name, extra) for name, extras in roots.items() for extra in ("", *extras)]
    done: set[tuple[str, str]] = set()
    missing: dict[str, None] = {}
    while pending:
        name, extra = pending.pop()
        if (name, extra) in done:
            continue
        done.add((name, extra))
        for need in wheels[name].needs if name in wheels else ():
            if not _counts(need, extra, environments):
                continue
            other = str(canonicalize_name(need.name))
            if other in wheels and need.specifier.contains(wheels[other].version, prereleases=True):
                pending += [(other, inner) for inner in ("", *need.extras)]
            else:
                missing[_without_marker(need)] = None
    return {name for name, _ in done if name in wheels}, list(missing)


def _counts(need: Requirement, extra: str, environments: Sequence[Mapping[str, str]]) -> bool:
    marker = need.marker
    return marker is None or any(marker.evaluate({**values, "extra": extra}) for values in environments)


def _without_marker(need: Requirement) -> str:
    from packaging.requirements import Requirement  # noqa: PLC0415

    plain = Requirement(str(need))
    plain.marker = None
    return str(plain)


def _download(wanted: Sequence[str], target: Target, folder: Path) -> None:
    options = ["--quiet", "--only-binary", ":all:", "--dest", str(folder), *target.pip_options()]
    run_pip(
        ["download", *options, *wanted],
        f"wheels for Python {target.python_text} on {target.platform}",
        "check the network and pip's settings, or change --platform, --python or --extra",
    )


def run_pip(arguments: Sequence[str], what: str, advice: str) -> None:
    """Runs pip.

    Args:
        arguments: a command of pip's, and its arguments.
        what: what is wanted from it, for the message.
        advice: what to do if it fails.

    Raises:
        LtxError: there is no pip, or it fails; the problem ends with its own last error.
    """
    if find_spec("pip") is None:
        raise LtxError("pip is not installed here, and gets the wheels", command=pip_command("install", "pip"))
    command = [sys.executable, "-m", "pip", arguments[0], "--disable-pip-version-check", "--no-input", *arguments[1:]]
    ended = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace")
    if ended.returncode != 0:
        lines = ended.stderr.strip().splitlines() or [f"exit code {ended.returncode}"]
        errors = [line.removeprefix(_ERROR) for line in lines if line.startswith(_ERROR)] or lines[-1:]
        raise LtxError(f"pip cannot get {what}: {errors[-1].strip()}", advice)


def lock_of(wheels: Iterable[Wheel]) -> str:
    """Returns requirements of exactly these wheels with checksums, as `pip install --require-hashes` takes them."""
    return "".join(f"{wheel.name}=={wheel.version} --hash=sha256:{wheel.sha256}\n" for wheel in wheels)
