"""The ids of prompts against those of the installed transformers, with T5's real vocabulary."""

import shutil
import unicodedata
from pathlib import Path

from samples.prompts import prompts
from transformers import T5Tokenizer

from ltx_runtime.text.tokenizer import Tokenizer

SPIECE = Path(__file__).parent / "golden" / "t5" / "spiece.model"
# From release 5 on, transformers normalizes with the library `tokenizers`, whole characters with their combining marks
# at a time; SentencePiece, T5's own library, does not. These prompts may differ: they have stacked marks or U+0085.
MAY_DIFFER = ("Con cáo đỏ", "é ä ñ ố", "z\u0351\u0352\u0353", "\x85red", "a\x85red")


def composed(text):
    return unicodedata.normalize("NFC", text)


def test_the_ids_of_prompts_are_those_of_transformers(tmp_path):
    shutil.copy(SPIECE, tmp_path)
    theirs, ours = T5Tokenizer.from_pretrained(tmp_path), Tokenizer(SPIECE, 256)
    differing = tuple(map(composed, MAY_DIFFER))
    compared = [text for text in prompts() if not composed(text).startswith(differing)]
    assert len(compared) > 200
    for text in compared:
        assert ours.tokens(text) == theirs(text.strip(), max_length=256, truncation=True).input_ids, text
