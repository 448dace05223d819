"""What a machine can run: its system, GPU and libraries, its version folders, and what to do next.

Looks and changes nothing, and hashes no checkpoint. An illness that is found is no failure.
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
from ltx_runtime.sessions.trt.library import load_library, maker_of


@dataclass(frozen=True)
class Report:
    """Everything found, as plain data.

    Attributes:
        machine: system, GPU and libraries.
        root: where version folders were looked for.
        root_exists: whether it is there.
        free_bytes: of its disk.
        folders: the version folders in it.
        advice: what to do next, in order.
    """

    machine: Machine
    root: str
    root_exists: bool
    free_bytes: int | None
    folders: tuple[FolderFacts, ...]
    advice: tuple[Advice, ...]


def examine(root: Path, version: str | None = None) -> Report:
    """Looks at the machine and at the version folders of a root, or at one of them.

    Raises:
        LtxError: the root is no place that version folders could be in.
    """
    places = folders_in(root, version)
    machine, gpu = look()
    makers = _makers(machine, gpu)
    folders = tuple(look_at(place, makers) for place in places)
    advice = advice_of(machine, folders, version)
    return Report(machine, str(root), root.is_dir(), _free_bytes(root), folders, advice)


def _makers(machine: Machine, gpu: Gpu | None) -> Mapping[str, Maker]:
    """What makes and runs engines here, by builder."""
    makers = {}
    for library in machine.libraries:
        if library.loads and library.package.startswith("ltx-engines["):
            try:
                makers[library.module] = maker_of(library.module, load_library(library.module), gpu)
            except LtxError:
                continue  # for a GPU only, and there is none
    return makers


def _free_bytes(root: Path) -> int | None:
    try:
        return shutil.disk_usage(root if root.exists() else root.absolute().parent).free
    except OSError:
        return None
