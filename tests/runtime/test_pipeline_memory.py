"""Laws of the resources of a run: tiles make the same video; output paths and memory are checked before the work."""

from dataclasses import replace

import numpy as np
import pytest
from fakes.runs import make
from fakes.stages import engines_of

from ltx_runtime.errors import LtxError
from ltx_runtime.planning.request import Condition, Request
from ltx_runtime.spec.versions import VERSIONS
from ltx_runtime.tensors import write_tensors

DEMO, SINGLE, MAPPED = VERSIONS["demo"], VERSIONS["0.9.5"], VERSIONS["0.9.1"]
REQUEST = Request("a cat walks", "blurry", 96, 160, 17, 24.0, seed=7)


@pytest.mark.parametrize("size", [(32, 32, 89), (32, 544, 9), (544, 32, 9)], ids=str)
def test_tiles_that_are_asked_for_make_the_same_video(size, spiece, diary, tmp_path):
    """All stages but the transformer use one place of their inputs per output, so that tile borders cause no error."""
    height, width, frames = size
    path = tmp_path / "image.safetensors"
    media = np.random.RandomState(1).uniform(-1, 1, (1, 3, frames, height, width)).astype(np.float32)
    write_tensors(path, {"media": media})
    request = replace(REQUEST, height=height, width=width, num_frames=frames, steps=2)
    request = replace(request, conditions=(Condition(path, 0, 0.5),))
    whole, tiled = (make(engines_of(MAPPED, spiece), request, tiled=tiled) for tiled in (False, True))
    np.testing.assert_allclose(tiled.video.astype(int), whole.video, atol=1)
    assert tiled.units == whole.units
    for name in ("vae_encoder", "vae_decoder"):
        assert diary.opened().count(name) == 2
        assert [len(stage.fed) > 1 for stage in diary.stages if stage.name == name] == [False, True]


def test_with_little_memory_tiles_make_the_same_video(spiece, diary):
    request = replace(REQUEST, height=608, width=1216, num_frames=9, steps=2)
    engines = engines_of(SINGLE, spiece)
    whole, tiled = (make(engines, request, memory_bytes=size) for size in (10**10, 800_000_000))
    np.testing.assert_allclose(tiled.video.astype(int), whole.video, atol=1)
    assert [len(stage.fed) > 1 for stage in diary.stages if stage.name == "vae_decoder"] == [False, True]


def test_too_little_memory_for_the_smallest_tiles_is_said_before_anything_is_opened(spiece, diary, tmp_path):
    path = tmp_path / "image.safetensors"
    write_tensors(path, {"media": np.zeros((1, 3, 1, 96, 160), np.float32)})
    engines = engines_of(DEMO, spiece)
    for request in (REQUEST, replace(REQUEST, conditions=(Condition(path, 0),))):
        with pytest.raises(LtxError, match=r"GB even in the smallest tiles; got 0\.00 GB"):
            make(engines, request, memory_bytes=1000)
    assert diary == []


@pytest.mark.parametrize("option", ["save_noise", "save_latents", "save_embeddings"])
def test_a_place_that_cannot_be_written_is_refused_before_anything_is_opened(option, spiece, diary, tmp_path):
    path = tmp_path / "missing" / "kept.safetensors"
    with pytest.raises(LtxError, match=r"cannot write .*missing.*kept\.safetensors"):
        make(engines_of(DEMO, spiece), REQUEST, **{option: path})
    assert diary == []
