"""T5's real vocabulary: the ids of the official tokenizer for prompts of many kinds, and what it cannot read."""

import hashlib
import json
import random
from pathlib import Path

import numpy as np
import pytest
from fakes.requests import encoded
from safetensors import safe_open
from samples.prompts import ENDED, LANGUAGES, prompts

from ltx_runtime.text.tokenizer import END_ID, PAD_ID, UNKNOWN_ID, Tokenizer

T5 = Path(__file__).parents[2] / "golden" / "t5"
MAX_TOKENS = 256


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer(T5 / "spiece.model", MAX_TOKENS)


@pytest.fixture(scope="module")
def official():
    """Returns the official ids of every prompt."""
    with safe_open(T5 / "ids.safetensors", "np") as file:
        digest = hashlib.sha256(json.dumps([*prompts(), *ENDED]).encode()).hexdigest()
        assert file.metadata()["prompts"] == digest, "tests/samples/prompts.py has changed: run make_t5_ids.py"
        rows = np.split(file.get_tensor("ids"), np.cumsum(file.get_tensor("lengths"))[:-1])
    return [row.tolist() for row in rows]


def test_the_vocabulary_is_the_published_one(tokenizer):
    digest = hashlib.sha256((T5 / "spiece.model").read_bytes()).hexdigest()
    assert digest in (T5 / "README.md").read_text()
    assert tokenizer.pieces == 32_000


def test_two_hundred_prompts_have_the_official_ids_mask_and_padding(tokenizer, official):
    texts = [*prompts(), *ENDED]
    assert len(texts) > 200
    ids, mask = encoded(tokenizer, texts)
    assert ids.shape[1] == MAX_TOKENS  # some prompts are longer, and the official padding is as wide
    for text, row, kept, expected in zip(texts, ids.tolist(), mask.tolist(), official, strict=True):
        assert row == expected + [PAD_ID] * (MAX_TOKENS - len(expected)), text
        assert kept == [1] * len(expected) + [0] * (MAX_TOKENS - len(expected)), text


def test_a_reading_counts_what_is_encoded(tokenizer, official):
    for text, expected in zip([*prompts(), *ENDED], official, strict=True):
        reading = tokenizer.read(text)
        assert min(reading.tokens, MAX_TOKENS) == len(expected), text
        if reading.tokens <= MAX_TOKENS:
            assert len(reading.unknown) == expected.count(UNKNOWN_ID), text
            assert reading.pieces - reading.tokens in (-1, 0), text  # a prompt may end in </s> itself
        assert bool(list(reading.notes("prompt"))) == bool(reading.unknown or reading.tokens > MAX_TOKENS), text


def test_what_the_vocabulary_lacks_is_told_with_its_text(tokenizer):
    told = {
        "红色的狐狸在雪地里奔跑": ("1 of 2", "'红色的狐狸在雪地里奔跑'"),
        "a fox 🦊, 雪 and 雪": ("3 of 12", "'🦊', '雪'"),
        "一 a 二 a 三 a 四 a 五": ("5 of 18", "'一', '二', '三' and 2 more"),
        "a\0b": ("1 of 4", r"'\x00'"),
        "狐" * 31: ("1 of 2", f"'{'狐' * 30}'..."),
    }
    for prompt, (pieces, shown) in told.items():
        (note,) = tokenizer.read(prompt).notes("prompt")
        assert note.startswith(f"{pieces} pieces of the prompt are unknown to the text encoder: {shown}; "), note
    (note,) = tokenizer.read("雪").notes("negative prompt")
    assert note.startswith("1 of 2 pieces of the negative prompt are")


def test_languages_that_t5_knows_are_read_whole_and_others_are_told(tokenizer):
    known = [text for text in LANGUAGES if not tokenizer.read(text).unknown]
    assert known == [*LANGUAGES[:3]]  # German, French, Romanian


def test_a_prompt_that_is_unknown_throughout_says_the_same_as_any_other(tokenizer):
    """This is why it is told: the ids of two such prompts are equal."""
    chosen = random.Random(3)
    texts = ["".join(chr(chosen.randint(0x4E00, 0x9FA0)) for _ in range(9)) for _ in range(20)]
    assert {tuple(tokenizer.tokens(text)) for text in texts} == {(3, UNKNOWN_ID, END_ID)}
    assert all(list(tokenizer.read(text).notes("prompt")) for text in texts)
