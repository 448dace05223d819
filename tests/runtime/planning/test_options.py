"""Laws of run options: tiles are cut if the memory requires it or if they are requested, and modes mean something."""

from dataclasses import FrozenInstanceError, fields

import pytest

from ltx_runtime.errors import LtxError
from ltx_runtime.planning import options
from ltx_runtime.planning.options import RunOptions, check_options
from ltx_runtime.sessions import AUTO
from ltx_runtime.spec.geometry import Grid
from ltx_runtime.vae.tile_sizes import peak_bytes
from ltx_runtime.vae.tiling import Tiling

SIZES = [Grid(1, 1, 1), Grid(4, 8, 12), Grid(13, 16, 24), Grid(16, 22, 38), Grid(33, 24, 40)]
EVERY_SIZE = pytest.mark.parametrize("size", SIZES, ids=str)


@EVERY_SIZE
@pytest.mark.parametrize("memory_bytes", [2_000_000_000, 8_000_000_000])
def test_tiles_are_cut_so_that_the_memory_is_kept(size, memory_bytes):
    tiling = RunOptions(memory_bytes=memory_bytes).tiling(size)
    assert peak_bytes(size, tiling) <= memory_bytes


@EVERY_SIZE
def test_with_memory_for_the_whole_nothing_is_cut(size):
    assert RunOptions(memory_bytes=peak_bytes(size, Tiling())).tiling(size) == Tiling()


@EVERY_SIZE
def test_tiles_that_are_asked_for_are_cut_even_where_the_whole_would_fit(size):
    tiling = RunOptions(memory_bytes=10**15, tiled=True).tiling(size)
    assert (tiling.frames, tiling.rows, tiling.columns) == (10, 16, 16)


@EVERY_SIZE
def test_tiles_that_are_asked_for_are_no_larger_than_the_memory_allows(size):
    memory_bytes = 2_000_000_000
    tiling = RunOptions(memory_bytes=memory_bytes, tiled=True).tiling(size)
    assert peak_bytes(size, tiling) <= memory_bytes


def test_too_little_memory_for_any_tile_is_said():
    with pytest.raises(
        LtxError,
        match=r"GB even in the smallest tiles; got 0.00 GB - raise the memory limit or request a smaller video",
    ):
        RunOptions(memory_bytes=1000).tiling(Grid(13, 16, 24))


def test_what_is_not_said_takes_nothing_from_files_and_keeps_nothing():
    assert RunOptions().backend == AUTO
    paths = {field.name for field in fields(RunOptions) if "Path" in str(field.type)}
    assert {getattr(RunOptions(), name) for name in paths} == {None}
    with pytest.raises(FrozenInstanceError):
        RunOptions().backend = "other"


def test_the_memory_is_what_was_asked_for_or_the_gpu_s_or_a_fixed_one():
    size = Grid(16, 28, 50)
    assert RunOptions().tiling(size) == RunOptions(memory_bytes=8_000_000_000).tiling(size) != Tiling()
    assert RunOptions().tiling(size, bytes_per_pixel=95, gpu_bytes=40 * 10**9) == Tiling()
    assert RunOptions(memory_bytes=8_000_000_000).tiling(size, bytes_per_pixel=95, gpu_bytes=40 * 10**9) != Tiling()


def test_a_mode_of_the_cpu_that_is_unknown_without_effect_or_without_its_library_is_refused(monkeypatch):
    def refused(match, **asked):
        with pytest.raises(LtxError, match=match):
            check_options(RunOptions(**asked))

    monkeypatch.setattr(options, "find_spec", lambda name: None)
    refused("unknown cpu-mode 'int4' - use one of auto, exact, bf16, q8", cpu_mode="int4")
    refused("cpu-mode exact has no effect on backend cpu - leave one of them out", cpu_mode="exact", backend="cpu")
    refused(r"cpu-mode q8 needs OpenVINO, .* - run: .*pip install .*openvino", cpu_mode="q8")
    assert check_options(RunOptions(cpu_mode="exact")).cpu_mode == "exact"
    monkeypatch.setattr(options, "find_spec", lambda name: object())
    assert check_options(RunOptions(cpu_mode="q8")).cpu_mode == "q8"
