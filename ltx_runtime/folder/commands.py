"""Commands that make a version folder, for messages."""

from __future__ import annotations

import shlex
from pathlib import Path

from ltx_runtime.files import amount, engines_folder
from ltx_runtime.spec.versions import VERSIONS


def export_command(version: str, root: Path | None = None) -> str:
    """Returns the command that exports a version again, and that first downloads or makes missing weights.

    Args:
        version: name of the version.
        root: root of the version folders; None for the default one.
    """
    release = VERSIONS.get(version)
    makes_weights = release is not None and release.repository is None
    weights = f"ltx-export random-weights {version}" if makes_weights else f"ltx-export download {version} --missing"
    return f"{weights} && {onnx_command(version, root)}"


def onnx_command(version: str, root: Path | None = None, options: str = "") -> str:
    """Returns the command that exports a version into a root of version folders, None for the default one."""
    into = (
        ""
        if root is None or root.resolve() == engines_folder(None).resolve()
        else f" --engines {shlex.quote(str(root))}"
    )
    return f"ltx-export onnx {version}{options and f' {options}'}{into}"


def fetch_advice(version: str) -> str:
    """Returns what to do in place of an export, and how large its download is."""
    release = VERSIONS.get(version)
    if release is None or release.repository is None:
        return ""
    return (
        f"get an exported one with ltx-run --fetch OWNER/NAME (the first downloads {amount(release.download_bytes, 1)} "
        "and needs PyTorch, the second needs neither weights nor PyTorch)"
    )
