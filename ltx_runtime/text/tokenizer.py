"""Converts prompts to T5 token ids and attention masks, with T5's own SentencePiece model.

This module knows nothing about the text encoder.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ltx_runtime.errors import LtxError, explaining, first_line
from ltx_runtime.text.tokenizer_file import MOST_MODEL_BYTES, check_model
from ltx_runtime.trust.pointers import refuse_pointer

PAD_ID = 0
END_ID = 1
UNKNOWN_ID = 2
_T5_PIECES = 32_000
# What the official tokenizer reads as tokens of their own, wherever they are typed. T5's sentinels are numbered
# downwards behind its pieces; a smaller vocabulary has none.
_SPECIAL_IDS = {"<pad>": PAD_ID, "</s>": END_ID, "<unk>": UNKNOWN_ID}
_SENTINEL_IDS = {f"<extra_id_{number}>": _T5_PIECES + 99 - number for number in range(100)}
_WORD_START = "\u2581"  # SentencePiece's mark of a space
_MOST_SHOWN, _MOST_CHARACTERS = 3, 30


@dataclass(frozen=True)
class Reading:
    """How much of a prompt reaches the text encoder.

    Attributes:
        prompt: the prompt.
        tokens: number of its tokens with `</s>`, before truncation.
        most: number of tokens that the model sees.
        pieces: number of pieces of text that the tokenizer makes of it.
        unknown: the pieces that are not in the vocabulary; all of them have the same token.
    """

    prompt: str
    tokens: int
    most: int
    pieces: int
    unknown: tuple[str, ...]

    def notes(self, name: str) -> Iterator[str]:
        """Yields what the text encoder does not see of the prompt; `name` is "prompt" or "negative prompt"."""
        if self.tokens > self.most:
            shown = repr(self.prompt[:_MOST_CHARACTERS])
            yield f"the {name} {shown}... has {self.tokens} tokens; the model sees the first {self.most}"
        if self.unknown:
            different = [*dict.fromkeys(self.unknown)]
            shown = ", ".join(_shortened(piece) for piece in different[:_MOST_SHOWN])
            more = f" and {len(different) - _MOST_SHOWN} more" if len(different) > _MOST_SHOWN else ""
            yield (
                f"{len(self.unknown)} of {self.pieces} pieces of the {name} are unknown to the text encoder: "
                f"{shown}{more}; it cannot tell them apart, so describe them in English"
            )


def _shortened(piece: str) -> str:
    return repr(piece) if len(piece) <= _MOST_CHARACTERS else f"{piece[:_MOST_CHARACTERS]!r}..."


class Tokenizer:
    """A T5 tokenizer: SentencePiece tokens, then `</s>`, padded on the right with id 0.

    The ids are those of the official pipeline's tokenizer, transformers' T5Tokenizer with SentencePiece.
    """

    def __init__(self, model_file: Path, max_tokens: int) -> None:
        """Opens the file.

        Raises:
            LtxError: it cannot be read, or is not a SentencePiece model with T5's special ids.
        """
        import sentencepiece  # noqa: PLC0415  (2 MB of native code, loaded only when text is encoded)

        refuse_pointer(model_file)
        self._file, self._max_tokens = model_file, max_tokens
        self._special = dict(_SPECIAL_IDS)
        try:
            model = _read(model_file)
            check_model(model)
            self._pieces = sentencepiece.SentencePieceProcessor(model_proto=model)
            self._pieces.id_to_piece([*range(self.pieces)])  # decodes them
            special = self._pieces.pad_id(), self._pieces.eos_id(), self._pieces.unk_id()
            if special != (PAD_ID, END_ID, UNKNOWN_ID):
                raise ValueError(f"its special ids are {special}")
        except (ValueError, RuntimeError) as error:  # the second is the library's refusal
            raise LtxError(
                f"{model_file} is not T5's SentencePiece model ({' '.join(first_line(error).split()[-12:])})",
                "export the version with T5's SentencePiece model",
            ) from None
        if self.pieces == _T5_PIECES:
            self._special |= _SENTINEL_IDS

    @property
    def pieces(self) -> int:
        """Size of the vocabulary."""
        return int(self._pieces.get_piece_size())

    def check_vocabulary(self, words: int) -> None:
        """Raises LtxError if the tokenizer has ids that a text encoder with a table of so many words does not know."""
        ids = max(self.pieces, *self._special.values())
        if ids > words:
            raise LtxError(
                f"{self._file} has {self.pieces} pieces, but the text encoder knows {words}",
                "give the text encoder's own tokenizer",
            )

    def read(self, prompt: str) -> Reading:
        """Returns how many tokens a prompt has, and which of its pieces are unknown."""
        pieces = self._pieces_of(prompt)
        ids = [token for token, _ in pieces]
        unknown = tuple(text.replace(_WORD_START, " ").strip() for token, text in pieces if token == UNKNOWN_ID)
        return Reading(prompt, len(_ended(ids)), self._max_tokens, len(pieces), unknown)

    def tokens(self, prompt: str) -> list[int]:
        """Returns the token ids of a prompt, the last of which is `</s>`.

        The prompt is stripped, and truncated to `max_tokens` tokens.
        """
        return _ended([token for token, _ in self._pieces_of(prompt)][: self._max_tokens - 1])

    def _pieces_of(self, prompt: str) -> list[tuple[int, str]]:
        """Returns the id and the text of every piece of a prompt; special tokens stand between parts of text."""
        pieces: list[tuple[int, str]] = []
        for part in re.split(f"({'|'.join(map(re.escape, self._special))})", prompt.strip()):
            if part in self._special:
                pieces.append((self._special[part], part))
            else:
                pieces += zip(self._pieces.encode(part), self._pieces.encode(part, out_type=str), strict=True)
        return pieces


def _read(path: Path) -> bytes:
    with explaining(f"read {path}"):
        if path.stat().st_size > MOST_MODEL_BYTES:
            raise ValueError(f"it has more than {MOST_MODEL_BYTES} bytes")
        return path.read_bytes()


def _ended(ids: list[int]) -> list[int]:
    """Returns token ids with `</s>` at their end, where the official tokenizer does not repeat it."""
    return ids if ids[-1:] == [END_ID] else [*ids, END_ID]


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
