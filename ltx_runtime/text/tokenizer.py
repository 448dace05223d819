"""Prompt -> T5 ids and mask, with T5's own SentencePiece model. Knows nothing of the text encoder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ltx_runtime.errors import LtxError

PAD_ID = 0
END_ID = 1


class Tokenizer:
    """A T5 tokenizer: pieces, then `</s>`, padded on the right with id 0."""

    def __init__(self, model_file: Path, max_tokens: int) -> None:
        """Raises LtxError if the file is no SentencePiece model with T5's special ids."""
        import sentencepiece  # noqa: PLC0415  (2 MB of native code, only when text is encoded)

        self._max_tokens = max_tokens
        try:
            self._pieces = sentencepiece.SentencePieceProcessor(model_file=str(model_file))
            fits = (self._pieces.pad_id(), self._pieces.eos_id()) == (PAD_ID, END_ID)
        except (OSError, RuntimeError):
            fits = False
        if not fits:
            raise LtxError(f"{model_file} is not T5's SentencePiece model", "export the version with that one")

    def encode(self, prompts: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Ids and mask, both (B, T) int64, T the longest prompt's length with `</s>`.

        Prompts are stripped; longer ones than `max_tokens` are cut so that `</s>` stays the last token. With the
        mask, padding further changes nothing for the valid tokens.
        """
        rows = [self._ids(prompt) for prompt in prompts]
        length = max(len(row) for row in rows)
        ids = np.full((len(rows), length), PAD_ID, np.int64)
        mask = np.zeros((len(rows), length), np.int64)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = row
            mask[i, : len(row)] = 1
        return ids, mask

    @property
    def pieces(self) -> int:
        """Size of the vocabulary."""
        return int(self._pieces.get_piece_size())

    def count(self, prompt: str) -> int:
        """Number of tokens the prompt has with `</s>`, before cutting."""
        return len(self._pieces.encode(prompt.strip())) + 1

    def _ids(self, prompt: str) -> list[int]:
        pieces: list[int] = self._pieces.encode(prompt.strip())
        return [*pieces[: self._max_tokens - 1], END_ID]
