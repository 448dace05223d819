"""Laws of the cache of embeddings: the same bits for the same prompt and encoder, bounded, and never a failure."""

import os
from pathlib import Path

import numpy as np
import platformdirs
import pytest

from ltx_runtime.files import cache_folder
from ltx_runtime.text import cache
from ltx_runtime.text.cache import EmbeddingsCache

IDS = (7, 8, 9, 1)


def embeddings(seed=0, tokens=4):
    return np.random.RandomState(seed).standard_normal((tokens, 6)).astype(np.float32)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("LTX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "embeddings"


def test_what_was_written_is_read_bit_for_bit_by_every_process(folder):
    EmbeddingsCache("t5").write(IDS, embeddings())
    assert EmbeddingsCache("t5").read(IDS).tobytes() == embeddings().tobytes()
    assert [path.suffix for path in folder.iterdir()] == [".safetensors"]


@pytest.mark.parametrize(("encoder", "ids"), [("other", IDS), ("t5", IDS[:-1]), ("t5", (7, 8, 10, 1)), ("t5", ())])
def test_another_encoder_or_prompt_has_nothing_kept(folder, encoder, ids):
    EmbeddingsCache("t5").write(IDS, embeddings())
    assert EmbeddingsCache(encoder).read(ids) is None


def test_writing_again_replaces(folder):
    for seed in (0, 1):
        EmbeddingsCache("t5").write(IDS, embeddings(seed))
    np.testing.assert_array_equal(EmbeddingsCache("t5").read(IDS), embeddings(1))
    assert len(list(folder.iterdir())) == 1


def test_what_was_not_used_for_longest_is_removed_first(folder, monkeypatch):
    kept = EmbeddingsCache("t5")
    for token in range(3):
        kept.write((token, 1), embeddings(token, 2))
    for age, token in ((300, 0), (200, 1), (100, 2)):
        os.utime(kept._path(folder, (token, 1)), (1e9 - age, 1e9 - age))
    size = kept._path(folder, (0, 1)).stat().st_size
    assert kept.read((0, 1)) is not None  # which makes it the newest
    monkeypatch.setattr(cache, "LARGEST_BYTES", 3 * size)
    kept.write((3, 1), embeddings(3, 2))
    assert [kept.read((token, 1)) is not None for token in range(4)] == [True, False, True, True]


@pytest.mark.parametrize("content", [b"", b"half", None], ids=["empty", "damaged", "of another length"])
def test_what_cannot_be_read_is_removed_and_written_anew(folder, content):
    kept = EmbeddingsCache("t5")
    kept.write(IDS, embeddings())
    path = kept._path(folder, IDS)
    if content is None:
        kept.write(IDS, embeddings(tokens=3))
    else:
        path.write_bytes(content)
    assert kept.read(IDS) is None and not path.exists()
    kept.write(IDS, embeddings())
    assert kept.read(IDS) is not None


def test_a_place_that_takes_nothing_keeps_nothing_and_fails_nothing(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("LTX_CACHE", str(tmp_path / "file"))
    EmbeddingsCache("t5").write(IDS, embeddings())
    assert EmbeddingsCache("t5").read(IDS) is None
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_full_disk_leaves_nothing_behind(folder, monkeypatch):
    def full(path, data):
        path.touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    EmbeddingsCache("t5").write(IDS, embeddings())
    assert list(folder.iterdir()) == []


def test_the_folder_is_the_one_that_is_named_or_the_system_s_and_none_if_it_is_empty(monkeypatch, tmp_path):
    monkeypatch.setenv("LTX_CACHE", "")
    assert cache_folder() is None
    EmbeddingsCache("t5").write(IDS, embeddings())
    assert EmbeddingsCache("t5").read(IDS) is None
    monkeypatch.delenv("LTX_CACHE")
    for place in (tmp_path, Path("~/.cache")):  # the second where the user has no home
        monkeypatch.setattr(platformdirs, "user_cache_path", lambda name, appauthor, place=place: place / name)
        assert cache_folder() == (tmp_path / "ltx-engines" if place == tmp_path else None)
