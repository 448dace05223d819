"""Laws of T5 ids and masks, on a small SentencePiece model with T5's special ids."""

import numpy as np
import pytest
import sentencepiece
from fakes.requests import encoded
from samples.onnx_bytes import field

from ltx_runtime.errors import LtxError
from ltx_runtime.text.tokenizer import END_ID, PAD_ID, Tokenizer

PROMPTS = ("a cat walks", "", "snow falls slowly over the old town while people walk home", "a red boat")


@pytest.fixture
def tokenizer(spiece):
    return Tokenizer(spiece, 256)


def test_the_special_ids_are_those_of_t5():
    assert (PAD_ID, END_ID) == (0, 1)


@pytest.mark.parametrize("prompt", PROMPTS)
def test_a_prompt_becomes_its_pieces_and_the_end(tokenizer, spiece, prompt):
    ids, mask = encoded(tokenizer, [prompt])
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(spiece)).encode(prompt)
    assert (ids.dtype, mask.dtype) == (np.int64, np.int64)
    assert ids.tolist() == [[*pieces, 1]]
    assert mask.tolist() == [[1] * (len(pieces) + 1)]


@pytest.mark.parametrize("prompt", [prompt for prompt in PROMPTS if prompt])
def test_pieces_spell_the_prompt_again(tokenizer, spiece, prompt):
    ids, _ = encoded(tokenizer, [prompt])
    assert sentencepiece.SentencePieceProcessor(model_file=str(spiece)).decode(ids[0, :-1].tolist()) == prompt


def test_an_empty_prompt_is_the_end_alone(tokenizer):
    for prompt in ("", "   ", "\n"):
        ids, mask = encoded(tokenizer, [prompt])
        assert (ids.tolist(), mask.tolist()) == ([[1]], [[1]])


def test_space_around_a_prompt_changes_nothing(tokenizer):
    np.testing.assert_array_equal(encoded(tokenizer, ["  a cat walks\n"])[0], encoded(tokenizer, ["a cat walks"])[0])


def test_prompts_are_padded_to_the_longest_with_id_0_outside_the_mask(tokenizer):
    ids, mask = encoded(tokenizer, PROMPTS)
    assert ids.shape == mask.shape == (len(PROMPTS), max(tokenizer.read(prompt).tokens for prompt in PROMPTS))
    assert (ids[mask == 0] == 0).all()
    for row, row_mask, prompt in zip(ids, mask, PROMPTS, strict=True):
        alone, _ = encoded(tokenizer, [prompt])
        length = row_mask.sum()
        assert row_mask.tolist() == [1] * length + [0] * (len(row) - length)
        assert row[:length].tolist() == alone[0].tolist()


@pytest.mark.parametrize("max_tokens", [1, 2, 5])
def test_a_long_prompt_is_cut_so_that_the_end_stays_last(spiece, max_tokens):
    prompt = PROMPTS[2]
    whole, _ = encoded(Tokenizer(spiece, 256), [prompt])
    ids, mask = encoded(Tokenizer(spiece, max_tokens), [prompt])
    assert ids.tolist() == [[*whole[0, : max_tokens - 1], 1]]
    assert mask.tolist() == [[1] * max_tokens]


def test_a_prompt_of_exactly_the_limit_is_not_cut(spiece, tokenizer):
    ids, _ = encoded(tokenizer, ["a cat walks"])
    np.testing.assert_array_equal(encoded(Tokenizer(spiece, ids.shape[1]), ["a cat walks"])[0], ids)


@pytest.mark.parametrize("prompt", PROMPTS)
def test_a_count_tells_the_length_before_cutting(spiece, tokenizer, prompt):
    assert Tokenizer(spiece, 2).read(prompt).tokens == encoded(tokenizer, [prompt])[0].shape[1]


@pytest.mark.parametrize("content", [None, b"", b"no model", bytes(1000)], ids=["missing", "empty", "text", "zeros"])
def test_a_file_that_is_no_model_is_refused_by_name(tmp_path, content):
    path = tmp_path / "spiece.model"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(
        LtxError, match=r"cannot read .*spiece\.model|spiece\.model is not T5's SentencePiece model \(.* - "
    ):
        Tokenizer(path, 256)


def test_a_truncated_model_is_refused(tmp_path, spiece):
    path = tmp_path / "spiece.model"
    path.write_bytes(spiece.read_bytes()[:-7])
    with pytest.raises(LtxError, match="is not T5's SentencePiece model"):
        Tokenizer(path, 256)


def changed_maps(model):
    """Yields models whose map of characters differs in one unit of its trie, or in its texts."""
    at = model.index(b"nmt_nfkc") + len(b"nmt_nfkc") + 4
    for unit, value in ((0, 0), (0, 2**32 - 4), (0, 3), (1, 2**31 - 512), (1, 2**31), (40, 2**31 - 512)):
        yield model[: at + 4 * unit] + value.to_bytes(4, "little") + model[at + 4 * unit + 4 :]
    yield model.replace("\u2211".encode(), b"\xff\xff\xff")


def test_a_map_of_characters_that_leads_outside_itself_or_to_no_text_is_refused_before_the_library_walks_it(
    tmp_path, spiece, monkeypatch
):
    model, path = spiece.read_bytes(), tmp_path / "spiece.model"
    changed = [*changed_maps(model), model + field(3, field(2, b"a second one"))]
    monkeypatch.setattr("sentencepiece.SentencePieceProcessor", None)
    for content in changed:
        path.write_bytes(content)
        with pytest.raises(LtxError, match=r"spiece\.model is not T5's SentencePiece model \(.+\) - export") as refused:
            Tokenizer(path, 256)
        assert "\n" not in str(refused.value)


def test_ids_that_the_text_encoder_has_no_words_for_are_refused(tokenizer):
    tokenizer.check_vocabulary(120)
    with pytest.raises(LtxError, match="has 120 pieces, but the text encoder knows 119 - give the text encoder's own"):
        tokenizer.check_vocabulary(119)
