"""Converts prompts to T5 token ids and attention masks, with T5's own SentencePiece model.

This module knows nothing about the text encoder.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ltx_runtime.errors import LtxError
from ltx_runtime.files import refuse_pointer

PAD_ID = 0
END_ID = 1


class Tokenizer:
    """A T5 tokenizer: SentencePiece tokens, then `</s>`, padded on the right with id 0."""

    def __init__(self, model_file: Path, max_tokens: int) -> None:
        """Raises LtxError if the file is not a SentencePiece model with T5's special ids."""
        import sentencepiece  # noqa: PLC0415  (2 MB of native code, loaded only when text is encoded)

        refuse_pointer(model_file)
        self._max_tokens = max_tokens
        try:
            self._pieces = sentencepiece.SentencePieceProcessor(model_file=str(model_file))
            fits = (self._pieces.pad_id(), self._pieces.eos_id()) == (PAD_ID, END_ID)
        except (OSError, RuntimeError):
            fits = False
        if not fits:
            raise LtxError(
                f"{model_file} is not T5's SentencePiece model", "export the version with T5's SentencePiece model"
            )

    @property
    def pieces(self) -> int:
        """Size of the vocabulary."""
        return int(self._pieces.get_piece_size())

    def count(self, prompt: str) -> int:
        """Returns the number of tokens of a prompt with `</s>`, before truncation."""
        return len(self._pieces.encode(prompt.strip())) + 1

    def tokens(self, prompt: str) -> list[int]:
        """Returns the token ids of a prompt, the last of which is `</s>`.

        The prompt is stripped, and truncated to `max_tokens` tokens.
        """
        pieces: list[int] = self._pieces.encode(prompt.strip())
        return [*pieces[: self._max_tokens - 1], END_ID]


def padded(prompts: Sequence[Sequence[int]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Returns token ids and attention mask of several prompts, both (B, T) int64; T is the length of the longest one.

    Because of the mask, more padding would not change the embeddings of the valid tokens.
    """
    length = max(map(len, prompts))
    ids = np.full((len(prompts), length), PAD_ID, np.int64)
    mask = np.zeros((len(prompts), length), np.int64)
    for row, prompt in enumerate(prompts):
        ids[row, : len(prompt)] = prompt
        mask[row, : len(prompt)] = 1
    return ids, mask
