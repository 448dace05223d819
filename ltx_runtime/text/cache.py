"""Keeps embeddings of prompts on disk, so that a prompt is encoded once, and the text encoder loaded only for new ones.

The folder is LTX_CACHE, or else the usual place for caches of the system; an empty LTX_CACHE turns the cache off. A
cache never fails a run: what cannot be read is encoded again, and what cannot be written is not kept.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ltx_runtime.errors import LtxError
from ltx_runtime.tensors import read_tensors, write_tensors

Floats = NDArray[np.float32]

LARGEST_BYTES = 500_000_000  # about 250 prompts of 128 tokens and 4096 channels
_VARIABLE = "LTX_CACHE"
_EMBEDDINGS = "embeddings"


class EmbeddingsCache:
    """Embeddings by the token ids of their prompt and by what computed them.

    Args:
        encoder: identifies the text encoder: its weights, its graph and the backend.
    """

    def __init__(self, encoder: str) -> None:
        self.encoder = encoder
        self._folder = cache_folder()

    def read(self, ids: Sequence[int]) -> Floats | None:
        """Returns the embeddings (T, C) float32 of a prompt with these T token ids; None if they are not kept."""
        if self._folder is None:
            return None
        path = self._path(self._folder, ids)
        try:
            if not path.is_file():
                return None
            embeddings = read_tensors(path, (_EMBEDDINGS,))[_EMBEDDINGS]
            if embeddings.ndim != 2 or len(embeddings) != len(ids):
                raise LtxError(f"{path} is not for {len(ids)} tokens", "delete it")
            os.utime(path)  # it was used now: the oldest are removed first
        except (OSError, LtxError):
            with suppress(OSError):
                path.unlink()
            return None
        return embeddings.astype(np.float32, copy=False)

    def write(self, ids: Sequence[int], embeddings: Floats) -> None:
        """Keeps embeddings (T, C) float32, and removes those that were not used for longest if there is no room."""
        if self._folder is None:
            return
        with suppress(OSError, LtxError):
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            temporary = self._folder / f"{os.getpid()}-{self._path(self._folder, ids).name}"
            try:
                write_tensors(temporary, {_EMBEDDINGS: embeddings}, {})
                temporary.replace(self._path(self._folder, ids))
            finally:
                temporary.unlink(missing_ok=True)
            _prune(self._folder)

    def _path(self, folder: Path, ids: Sequence[int]) -> Path:
        described = repr((self.encoder, [int(token) for token in ids]))
        return folder / f"{hashlib.sha256(described.encode()).hexdigest()}.safetensors"


def cache_folder() -> Path | None:
    """Returns the folder of cached embeddings; None if LTX_CACHE is empty."""
    named = os.environ.get(_VARIABLE)
    if named is not None:
        return Path(named) / _EMBEDDINGS if named else None
    try:
        home = Path.home()
    except RuntimeError:  # a user without a home, as in some containers
        return None
    places = {
        "darwin": home / "Library" / "Caches",
        "win32": Path(os.environ.get("LOCALAPPDATA", home / "AppData" / "Local")),
    }
    place = places.get(sys.platform, Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache"))
    return place / "ltx-engines" / _EMBEDDINGS


def _prune(folder: Path) -> None:
    """Removes files, those that were not used for longest first, until the folder has at most LARGEST_BYTES."""
    files = []
    for path in folder.glob("*.safetensors"):
        with suppress(OSError):  # another process has removed it
            status = path.stat()
            files.append((status.st_mtime_ns, status.st_size, path))
    excess = sum(size for _, size, _ in files) - LARGEST_BYTES
    for _, size, path in sorted(files):
        if excess <= 0:
            return
        with suppress(OSError):
            path.unlink()
        excess -= size
