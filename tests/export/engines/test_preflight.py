"""Disk space is checked before the first engine is built: how much is needed, and the message if it is short."""

import shutil
from collections import namedtuple
from dataclasses import replace

import pytest
from stand_ins.tiny_engines import address, copied, small

from ltx_export.engines import preflight
from ltx_export.engines.files import build_engine, prepared_for
from ltx_runtime.errors import LtxError

RELEASE = "0.9.8-13b-distilled"
Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def engines(exported, tmp_path):
    return copied(exported(RELEASE), tmp_path)


@pytest.mark.parametrize("name", ["text_encoder", "upsampler", "vae_decoder", "transformer"])
@pytest.mark.parametrize("weights", ["embedded", "inputs"])
def test_an_engine_is_no_larger_than_expected(engines, name, weights):
    recipe = small(weights)
    prepared = prepared_for(address(engines, name), recipe.weights)
    served = len(recipe.profiles(engines.component(name).signature))
    size = build_engine(address(engines, name), recipe).stat().st_size
    expected = preflight.engine_bytes(prepared, weights, served)
    assert size < expected < 12 * size


def test_weights_count_where_they_are_embedded_and_kernels_for_every_profile(engines):
    prepared = replace(prepared_for(address(engines, "upsampler"), "embedded"), weights_bytes=10**10)
    one, four = (preflight.engine_bytes(prepared, "inputs", profiles) for profiles in (1, 4))
    assert four == 4 * one < 10**8
    assert preflight.engine_bytes(prepared, "embedded", 4) == four + 10**10
    assert preflight.engine_bytes(prepared, "refit", 4) == four


def test_a_disk_without_room_is_said_with_two_ways_out(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: Usage(10**12, 0, 4 * 10**9))
    preflight.check_disk(tmp_path, 4 * 10**9)
    with pytest.raises(LtxError, match=r"may take 4\.5 GB, and its disk has 4\.0 GB free - add --weights inputs, or"):
        preflight.check_disk(tmp_path, 45 * 10**8)


def test_memory_is_short_only_for_weights_that_become_part_of_the_engine(engines, monkeypatch):
    prepared = replace(prepared_for(address(engines, "upsampler"), "embedded"), weights_bytes=4 * 10**9)
    monkeypatch.setattr(preflight, "free_memory", lambda: 7_680_000_000)
    preflight.check_memory([("upsampler", prepared, "embedded")])
    monkeypatch.setattr(preflight, "free_memory", lambda: 6_100_000_000)
    preflight.check_memory([("upsampler", prepared, "inputs")])
    with pytest.raises(LtxError, match=r"building upsampler .* takes 7\.6 GB of memory, and 6\.1 GB are free - add"):
        preflight.check_memory([("upsampler", prepared, "embedded")])
