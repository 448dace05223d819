"""A stranger's version folder: the demo's, in which a test changes what it likes, and lists it like an honest one."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ltx_runtime.folder.manifest import MANIFEST, checksum

Change = Callable[[dict[str, Any]], None]


class Stranger:
    """A version folder of the demo.

    Attributes:
        folder: the folder.
        outside: a folder beside it with files that nobody may read.
    """

    def __init__(self, folder: Path, outside: Path) -> None:
        self.folder, self.outside = folder, outside

    @property
    def manifest(self) -> Path:
        """Path of its manifest."""
        return self.folder / MANIFEST

    def change(self, change: Change) -> None:
        """Changes the manifest, which `change` gets as plain data."""
        data = json.loads(self.manifest.read_text())
        change(data)
        self.manifest.write_text(json.dumps(data))

    def list(self, name: str, path: Path | None = None) -> None:
        """Lists a file with the size and checksum that it has, as a stranger would; by default that of this name."""
        path = path or self.folder / name
        entry = {"size_bytes": path.stat().st_size, "checksum": checksum(path)}
        self.change(lambda data: data["files"].update({name: entry}))

    def rename(self, old: str, new: str) -> None:
        """Calls a file by another name everywhere in the manifest; on the disk, it stays as it is."""
        self.manifest.write_text(self.manifest.read_text().replace(json.dumps(old), json.dumps(new)))
