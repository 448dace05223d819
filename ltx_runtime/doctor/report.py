"""Reports what a machine can run: its system, GPU and libraries, its version folders, and what to do next.

Nothing is changed and no checkpoint is hashed. A problem that is found becomes part of the report and raises no error.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ltx_runtime.doctor.advice import Advice, advice_of
from ltx_runtime.doctor.folders import FolderFacts, folders_in, look_at
from ltx_runtime.doctor.machine import Machine, look
from ltx_runtime.errors import LtxError
from ltx_runtime.folder.sidecar import Maker
from ltx_runtime.sessions.cuda.gpu import Gpu
from ltx_runtime.sessions.trt.library import LIBRARIES, load_library, maker_of


@dataclass(frozen=True)
class Report:
    """The doctor's report as plain data.

    Attributes:
        machine: facts about system, GPU and libraries.
        root: the folder in which version folders were looked for.
        root_exists: whether that folder exists.
        free_bytes: free space on its disk; None if it is unknown.
        folders: the version folders in it.
        advice: what to do next, in order.
    """

    machine: Machine
    root: str
    root_exists: bool
    free_bytes: int | None
    folders: tuple[FolderFacts, ...]
    advice: tuple[Advice, ...]


def examine(root: Path, version: str | None = None, *, trust: bool = False) -> Report:
    """Examines the machine and the version folders in a root, or only that of `version`.

    Args:
        root: a folder of version folders, or a version folder.
        version: the only version to examine; None for all.
        trust: whether engines and links in them are used that the user has not made on this machine.

    Raises:
        LtxError: the root is not a folder, cannot be read, or neither it nor its parent folder exists.
    """
    paths = folders_in(root, version)
    machine, gpu = look()
    makers = _makers(machine, gpu)
    folders = tuple(look_at(path, makers, trust=trust) for path in paths)
    advice = advice_of(machine, folders, version)
    return Report(machine, str(root), root.is_dir(), _free_bytes(root), folders, advice)


def _makers(machine: Machine, gpu: Gpu | None) -> Mapping[str, Maker]:
    """Returns the libraries that build and run engines here, by builder."""
    makers = {}
    for library in machine.libraries:
        if library.loads and library.module in LIBRARIES:
            try:
                makers[library.module] = maker_of(library.module, load_library(library.module), gpu)
            except LtxError:
                continue  # this library builds only on a GPU, and there is none
    return makers


def _free_bytes(root: Path) -> int | None:
    try:
        place = next(path for path in (root, *root.absolute().parents) if path.exists())
        return shutil.disk_usage(place).free
    except OSError:
        return None
