"""Laws of prompts that were encoded before: no text encoder is opened, the video is the same, and only new ones run."""

import numpy as np
import pytest
from fakes.stages import engines_of

from ltx_runtime import Pipeline
from ltx_runtime.spec.versions import VERSIONS

SMALL = {"height": 64, "width": 96, "num_frames": 9, "seed": 7, "steps": 2}


@pytest.fixture
def pipe(spiece, diary, tmp_path, monkeypatch):
    monkeypatch.setenv("LTX_CACHE", str(tmp_path / "cache"))
    with Pipeline(engines_of(VERSIONS["0.9.5"], spiece), backend="fake") as pipe:
        yield pipe


def test_a_prompt_that_was_encoded_before_needs_no_text_encoder_and_gives_the_same_video(pipe, diary):
    first = pipe("a fox", guidance_scale=3.0, **SMALL)
    latents = first.latents()
    assert diary.count("open text_encoder") == 1
    second = pipe("a fox", guidance_scale=3.0, **SMALL)
    assert second.latents().tobytes() == latents.tobytes()
    assert diary.count("open text_encoder") == 1
    assert list(second.seconds) == list(first.seconds) and second.seconds["text"] == 0


def test_only_what_is_new_is_encoded(pipe, diary):
    pipe("a fox", guidance_scale=3.0, **SMALL).latents()
    both = pipe("a cat", guidance_scale=3.0, **SMALL).latents()
    assert diary.count("open text_encoder") == 2
    anew = pipe("a cat", guidance_scale=3.0, cache=False, **SMALL).latents()
    np.testing.assert_allclose(both, anew, atol=1e-6)
    assert diary.count("open text_encoder") == 3


def test_without_a_cache_nothing_is_read_or_kept(pipe, diary, tmp_path):
    for _ in range(2):
        pipe("a fox", cache=False, **SMALL).latents()
    assert diary.count("open text_encoder") == 2
    assert not (tmp_path / "cache").exists()


def test_progress_hears_of_the_text_all_the_same(pipe):
    from contextlib import contextmanager

    heard = []

    @contextmanager
    def progress(name, units):
        done = []
        yield done.append
        heard.append((name, units, sum(done)))

    for _ in range(2):
        pipe("a fox", **SMALL).latents(progress)
    assert [entry for entry in heard if entry[0] == "text"] == [("text", 1, 1)] * 2
