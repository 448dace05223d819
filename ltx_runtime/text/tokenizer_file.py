"""Checks the file of a SentencePiece model before its library sees it.

The library refuses most damaged files itself. But the map with which it normalizes characters is a packed trie that it
walks without looking where it goes, and replaces them by texts of which it does not check that they are any.
Fields: https://github.com/google/sentencepiece/blob/master/src/sentencepiece_model.proto
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import NDArray

from ltx_runtime.graph.protobuf import fields, key_of

MOST_MODEL_BYTES = 16 << 20
_NORMALIZER, _DENORMALIZER, _CHARACTERS = key_of(3), key_of(5), key_of(2)
_COUNT_BYTES = 4
# Bits of a unit of the trie, as in darts-clone: a leaf with a value, the offset to its children, which may be a
# multiple of 256, and whether one of them is a leaf.
_IS_LEAF, _OFFSET_SHIFT, _IS_FAR, _FAR_SHIFT, _HAS_LEAF, _LABELS = 1 << 31, 10, 1 << 9, 8, 1 << 8, 255


def check_model(data: bytes) -> None:
    """Checks the maps of characters in a SentencePiece model.

    Raises:
        ValueError: the file is damaged, or a map leads outside itself or to what is no text.
    """
    for part in _only(data, 0, len(data), (_NORMALIZER, _DENORMALIZER)):
        for start, end in _only(data, *part, (_CHARACTERS,)):
            if start < end:
                _check_characters(data[start:end])


def _only(data: bytes, start: int, end: int, keys: Collection[int]) -> Sequence[tuple[int, int]]:
    """Returns the places of some fields of a message, at most one of each; of two, a library takes parts of both."""
    found: dict[int, tuple[int, int]] = {}
    for key, begin, stop in fields(data, start, end):
        if key in keys:
            if key in found:
                raise ValueError(f"it has field {key >> 3} twice where one is expected")
            assert stop is not None
            found[key] = begin, stop
    return [*found.values()]


def _check_characters(packed: bytes) -> None:
    """Checks a map: the size of its trie, the units of the trie, and texts that end with a zero each."""
    trie_bytes = int.from_bytes(packed[:_COUNT_BYTES], "little")
    texts = packed[_COUNT_BYTES + trie_bytes :]
    if not trie_bytes or trie_bytes % 4 or not texts:
        raise ValueError("its map of characters is incomplete")
    if texts[-1]:
        raise ValueError("its map of characters has a text without an end")
    texts.decode()
    _check_trie(np.frombuffer(packed, "<u4", trie_bytes // 4, _COUNT_BYTES), np.frombuffer(texts, np.uint8))


def _check_trie(units: NDArray[np.uint32], texts: NDArray[np.uint8]) -> None:
    """Raises ValueError if a step from any unit leads outside the trie, or a value to the middle of a text."""
    inner = np.flatnonzero((units & _IS_LEAF) == 0)
    unit = units[inner].astype(np.int64)
    children = inner ^ ((unit >> _OFFSET_SHIFT) << np.where(unit & _IS_FAR, _FAR_SHIFT, 0))
    if not len(inner) or inner[0] != 0 or ((children | _LABELS) >= len(units)).any():
        raise ValueError("its map of characters leads outside itself")
    values = units[children[(unit & _HAS_LEAF) != 0]] & (_IS_LEAF - 1)
    if (values >= len(texts)).any() or texts[values[values > 0] - 1].any():
        raise ValueError("its map of characters leads to what is no text")
