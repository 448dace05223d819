"""Laws of names made from prompts: they keep the prompt's script, are allowed everywhere, and never run out."""

from itertools import islice
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ltx_runtime.outputs.names import names_for


def name_of(title, seed=7):
    return next(names_for(Path(), title, seed)).name


@pytest.mark.parametrize(
    ("title", "name"),
    [
        ("A red fox, running!", "a-red-fox-running-7.mp4"),
        ("Рыжая лиса бежит", "рыжая-лиса-бежит-7.mp4"),
        ("赤い狐が走る", "赤い狐が走る-7.mp4"),
        ("लाल लोमड़ी", "लाल-लोमड़ी-7.mp4"),
        ("ثعلب أحمر", "ثعلب-أحمر-7.mp4"),
        ("Cafe\N{COMBINING ACUTE ACCENT} 42", "café-42-7.mp4"),
        ("🦊 / ..", "video-7.mp4"),
        ("", "video-7.mp4"),
    ],
)
def test_the_first_words_of_a_prompt_are_kept_in_its_script(title, name):
    assert name_of(title) == name


@given(st.text(), st.integers(0, 2**64 - 1))
def test_every_name_is_short_and_has_no_character_with_a_meaning(title, seed):
    for path in islice(names_for(Path("videos"), title, seed), 3):
        assert path.parent == Path("videos")
        assert len(f"{path.name}.unfinished".encode()) <= 255
        assert not set(path.name) & set('/\\:*?"<>|\0\n\r\t %')
        assert not path.name.startswith((".", "-"))


def test_names_that_are_taken_are_followed_by_numbers():
    names = [path.name for path in islice(names_for(Path(), "a cat", 1), 3)]
    assert names == ["a-cat-1.mp4", "a-cat-1-2.mp4", "a-cat-1-3.mp4"]
