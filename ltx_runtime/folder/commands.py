"""Commands that make a version folder, for messages."""

from __future__ import annotations

import shlex
from importlib.util import find_spec
from pathlib import Path

from ltx_runtime.errors import LtxError
from ltx_runtime.files import amount, engines_folder
from ltx_runtime.spec.versions import VERSIONS


def export_command(version: str, root: Path | None = None) -> str:
    """Returns the command that exports a version again, and that first downloads missing weights.

    Args:
        version: name of the version.
        root: root of the version folders; None for the default one.
    """
    release = VERSIONS.get(version)
    if release is not None and release.repository is None:  # its weights come with the program
        return onnx_command(version, root)
    name = shlex.quote(version)  # of a folder, or of a manifest that may be a stranger's
    return f"ltx-export download {name} --missing && {onnx_command(version, root)}"


def onnx_command(version: str, root: Path | None = None, options: str = "") -> str:
    """Returns the command that exports a version into a root of version folders, None for the default one."""
    into = (
        ""
        if root is None or root.resolve() == engines_folder(None).resolve()
        else f" --engines {shlex.quote(str(root))}"
    )
    return f"ltx-export onnx {shlex.quote(version)}{options and f' {options}'}{into}"


def check_command(folder: Path) -> str:
    """Returns the command that runs every graph of a version folder on its recorded inputs."""
    return f"ltx-export check {shlex.quote(str(folder))}"


def no_versions(problem: str, advice: str = "") -> LtxError:
    """Returns the error of a place without versions, which says how to get one on this machine.

    Args:
        problem: what is wrong.
        advice: what else can be done where versions can be exported.
    """
    if find_spec("torch") is not None:
        return LtxError(problem, advice, export_command("demo"))
    fetched = "copy a version folder here and give its path with --engines, or get one with ltx-run --fetch OWNER/NAME"
    return LtxError(problem, fetched)


def fetch_advice(version: str) -> str:
    """Returns what to do in place of an export, and how large its download is."""
    release = VERSIONS.get(version)
    if release is None or release.repository is None:
        return ""
    return (
        f"get an exported one with ltx-run --fetch OWNER/NAME (the first downloads {amount(release.download_bytes, 1)} "
        "and needs PyTorch, the second needs neither weights nor PyTorch)"
    )
