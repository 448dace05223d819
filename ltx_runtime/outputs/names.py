"""Names files after prompts."""

from __future__ import annotations

import itertools
import unicodedata
from collections.abc import Iterator
from pathlib import Path

from ltx_runtime.files import numbered

_MOST_CHARACTERS = 40
_MOST_BYTES = 120  # UTF-8; file systems take 255, and other names are made from this one


def names_for(folder: Path, title: str, seed: int) -> Iterator[Path]:
    """Yields names for the video of a prompt: its first words in whatever script, its seed, and a number from 2 on."""
    path = folder / f"{_words_of(title)}-{seed}.mp4"
    return itertools.chain([path], numbered(path))


def _words_of(title: str) -> str:
    """Returns the letters, marks and digits of a text in lower case, with hyphens between words."""
    characters = unicodedata.normalize("NFC", title).lower()
    words = "".join(c if unicodedata.category(c)[0] in "LMN" else " " for c in characters).split()
    name = "-".join(words)[:_MOST_CHARACTERS]
    name = name.encode()[:_MOST_BYTES].decode("utf-8", "ignore")
    return name.rstrip("-") or "video"
