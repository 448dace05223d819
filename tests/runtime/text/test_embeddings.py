"""Laws of prompt embedding files: what is written is read back, under four well-known names, and strictly checked."""

import numpy as np
import pytest

from ltx_runtime.errors import LtxError
from ltx_runtime.tensors import read_tensors, write_tensors
from ltx_runtime.text.embeddings import Text, read_text, write_text

CHANNELS = 6
POSITIVE = ("prompt_embeds", "prompt_attention_mask")
NEGATIVE = ("negative_prompt_embeds", "negative_prompt_attention_mask")


def drawn(seed, *shape):
    return np.random.RandomState(seed).standard_normal(shape).astype(np.float32)


def stored(batch=1, length=5, negative_length=5):
    """Returns the tensors of a file, in which only the first tokens of each prompt are unmasked."""
    tensors = {}
    for seed, (names, tokens) in enumerate(((POSITIVE, length), (NEGATIVE, negative_length))):
        mask = (np.arange(tokens) < tokens - seed).astype(np.int64)
        tensors |= {names[0]: drawn(seed, batch, tokens, CHANNELS), names[1]: np.tile(mask, (batch, 1))}
    return tensors


@pytest.fixture
def path(tmp_path):
    return tmp_path / "text.safetensors"


def text_of(tensors):
    return Text(*(tensors[name] for name in (*POSITIVE, *NEGATIVE)))


def same(actual, expected):
    np.testing.assert_array_equal(actual, expected, strict=True)


@pytest.mark.parametrize("batch", [1, 3])
def test_what_is_written_is_read(path, batch):
    tensors = stored(batch)
    write_text(path, text_of(tensors))
    text = read_text(path, CHANNELS, negative=True)
    for array, name in zip(
        (text.embeddings, text.mask, text.negative_embeddings, text.negative_mask), (*POSITIVE, *NEGATIVE), strict=True
    ):
        same(array, tensors[name])


def test_a_file_has_exactly_the_names_that_other_programs_use(path):
    tensors = stored()
    write_text(path, text_of(tensors))
    assert read_tensors(path, (*POSITIVE, *NEGATIVE)).keys() == tensors.keys()
    write_text(path, Text(tensors[POSITIVE[0]], tensors[POSITIVE[1]]))
    with pytest.raises(LtxError, match=NEGATIVE[0]):
        read_tensors(path, NEGATIVE)


def test_negative_embeddings_are_read_only_if_a_step_uses_them(path):
    write_tensors(path, {name: array for name, array in stored().items() if name in POSITIVE})
    text = read_text(path, CHANNELS, negative=False)
    assert text.negative_embeddings is None
    assert text.negative_mask is None
    with pytest.raises(LtxError, match="has no tensor negative_prompt_embeds"):
        read_text(path, CHANNELS, negative=True)


def test_negative_embeddings_that_nobody_needs_may_be_anything(path):
    tensors = stored() | {NEGATIVE[0]: np.full(2, np.nan, np.float32)}
    write_tensors(path, tensors)
    same(read_text(path, CHANNELS, negative=False).embeddings, tensors[POSITIVE[0]])


@pytest.mark.parametrize("lengths", [(5, 9), (9, 5)])
def test_prompts_of_different_lengths_are_made_alike_by_tokens_that_do_not_count(path, lengths):
    tensors = stored(2, *lengths)
    write_tensors(path, tensors)
    text = read_text(path, CHANNELS, negative=True)
    pairs = [(text.embeddings, text.mask), (text.negative_embeddings, text.negative_mask)]
    for (embeddings, mask), names, length in zip(pairs, (POSITIVE, NEGATIVE), lengths, strict=True):
        assert embeddings.shape == (2, 9, CHANNELS)
        same(embeddings[:, :length], tensors[names[0]])
        same(mask[:, :length], tensors[names[1]])
        assert not mask[:, length:].any()


@pytest.mark.parametrize("dtype", [np.bool_, np.int32, np.uint8, np.float32, np.float16])
def test_a_mask_may_be_of_any_type_and_any_number_but_0_counts(path, dtype):
    tensors = stored()
    mask = np.array([[1, 2, 0, 1, 0]], dtype)
    write_tensors(path, tensors | {POSITIVE[1]: mask})
    same(read_text(path, CHANNELS, negative=True).mask, np.array([[1, 1, 0, 1, 0]], np.int64))


@pytest.mark.parametrize("dtype", [np.float16, np.float64, np.int64])
def test_embeddings_are_float32_whatever_they_are_stored_as(path, dtype):
    whole = np.arange(5 * CHANNELS).reshape(1, 5, CHANNELS)
    write_tensors(path, stored() | {POSITIVE[0]: whole.astype(dtype)})
    same(read_text(path, CHANNELS, negative=True).embeddings, whole.astype(np.float32))


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("prompt_embeds", drawn(0, 1, 5, CHANNELS + 1), r"prompt_embeds .* shape \[1, 5, 7\]"),
        ("prompt_embeds", drawn(0, 5, CHANNELS), r"prompt_embeds .* shape \[5, 6\]"),
        ("prompt_embeds", drawn(0, 0, 5, CHANNELS), r"prompt_embeds .* shape \[0, 5, 6\]"),
        ("prompt_embeds", drawn(0, 1, 0, CHANNELS), r"prompt_embeds .* shape \[1, 0, 6\]"),
        ("prompt_embeds", np.float32(1), r"prompt_embeds .* shape \[\]"),
        ("negative_prompt_embeds", drawn(0, 1, 5, 4), r"negative_prompt_embeds .* shape \[1, 5, 4\]"),
        ("prompt_attention_mask", np.ones((1, 4), np.int64), r"mask of prompt_embeds .* shape \[1, 4\]"),
        ("prompt_attention_mask", np.ones(5, np.int64), r"mask of prompt_embeds .* shape \[5\]"),
        ("negative_prompt_attention_mask", np.ones((2, 5), np.int64), r"mask of negative_prompt_embeds"),
        ("prompt_attention_mask", np.zeros((1, 5), np.int64), "mask of prompt_embeds"),
        ("prompt_embeds", np.full((1, 5, CHANNELS), np.nan, np.float32), "30 of 30 numbers in prompt_embeds"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused_in_one_sentence_with_advice(path, name, array, message):
    write_tensors(path, stored() | {name: array})
    with pytest.raises(LtxError, match=message) as raised:
        read_text(path, CHANNELS, negative=True)
    assert str(path) in str(raised.value)
    assert " - " in str(raised.value)


def test_as_many_negative_prompts_are_needed_as_prompts(path):
    two = stored(2)
    write_tensors(path, stored() | {name: two[name] for name in NEGATIVE})
    with pytest.raises(LtxError, match="has 1 prompts but 2 negative prompts"):
        read_text(path, CHANNELS, negative=True)
    assert len(read_text(path, CHANNELS, negative=False).embeddings) == 1
