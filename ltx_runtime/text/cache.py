"""Keeps embeddings of prompts on disk, so that a prompt is encoded once, and the text encoder loaded only for new ones.

It never fails a run: what cannot be read is encoded again, and what cannot be written is not kept.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ltx_runtime.errors import LtxError
from ltx_runtime.files import cache_folder, prune
from ltx_runtime.tensors import read_tensors, write_tensors

Floats = NDArray[np.float32]

LARGEST_BYTES = 500_000_000  # about 250 prompts of 128 tokens and 4096 channels
_EMBEDDINGS = "embeddings"


class EmbeddingsCache:
    """Embeddings by the token ids of their prompt and by what computed them.

    Args:
        encoder: identifies the text encoder: its weights, its graph and the backend.
    """

    def __init__(self, encoder: str) -> None:
        self.encoder = encoder
        folder = cache_folder()
        self._folder = None if folder is None else folder / _EMBEDDINGS

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
            write_tensors(self._path(self._folder, ids), {_EMBEDDINGS: embeddings}, {}, replace=True)
            prune(self._folder, LARGEST_BYTES)

    def _path(self, folder: Path, ids: Sequence[int]) -> Path:
        described = repr((self.encoder, [int(token) for token in ids]))
        return folder / f"{hashlib.sha256(described.encode()).hexdigest()}.safetensors"
