"""The version of this program, and commands that install packages where it runs, with the tool of its environment.

Extras are spelled out as the packages that they bring: no index has this project's own name, and a wheel or a checkout
need not be there any more.
"""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from ltx_runtime.errors import LtxError

RELEASE = "0.1.0"
DISTRIBUTION = "ltx-engines"
_CHECKOUT = Path(__file__).parents[1]


def install_command(extra: str, *options: str) -> str:
    """Returns the command that installs what an extra brings.

    Args:
        extra: the extra's name in pyproject.toml.
        options: options of `pip install`, such as --force-reinstall.
    """
    return pip_command("install", *options, *requirements_of(extra))


def need(*modules: str, extra: str) -> None:
    """Raises LtxError if a module is not installed, with the command that installs the extra that brings it."""
    absent = [name for name in modules if find_spec(name) is None]
    if absent:
        raise LtxError(f"{', '.join(absent)} not installed", command=install_command(extra))


def replace_command(packages: tuple[str, ...], extra: str) -> str:
    """Returns the command that removes packages and then installs what an extra brings."""
    return f"{pip_command('uninstall', *packages)} && {install_command(extra)}"


def requirements_of(extra: str) -> list[str]:
    """Returns the packages that an extra of this project brings on this system, as pip takes them.

    They are read from the metadata of the installed project; where it was copied instead of installed, or installed
    before there was such an extra, its checkout is the only requirement.
    """
    from packaging.requirements import Requirement  # noqa: PLC0415  (20 ms, for messages only)

    try:
        stated = metadata.requires(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        stated = []
    requirements = []
    for requirement in map(Requirement, stated):
        marker = requirement.marker
        if marker is not None and marker.evaluate({"extra": extra}) and not marker.evaluate({"extra": ""}):
            requirement.marker = None
            requirements.append(str(requirement))
    return requirements or [f"{_CHECKOUT}[{extra}]"]


def pip_command(action: str, *arguments: str) -> str:
    """Returns a command of pip, or of uv in an environment that uv made, which has no pip.

    Args:
        action: install or uninstall.
        arguments: options and packages.
    """
    words = " ".join(map(_quoted, arguments))
    if find_spec("pip") is None:
        return f"uv pip {action} --python {_quoted(sys.executable)} {words}"
    if action == "uninstall":
        words = f"--yes {words}"
    pip = shutil.which("pip")
    ours = pip is not None and Path(pip).parent == Path(sys.executable).parent
    return f"{'pip' if ours else f'{_quoted(sys.executable)} -m pip'} {action} {words}"


def _quoted(word: str) -> str:
    """Returns a word as a shell takes it: cmd and PowerShell know no single quotes, and bash takes double ones too."""
    if os.name == "nt" or not set(word) & set('\\"$`'):
        return word if word == shlex.quote(word) else f'"{word}"'
    return shlex.quote(word)
