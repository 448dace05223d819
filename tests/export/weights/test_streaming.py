"""Files written tensor by tensor: safetensors reads them, holes take no space, and no truncated file remains."""

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file
from samples.gguf_files import random_blocks

from ltx_export.weights.rewrite import rewrite
from ltx_export.weights.streaming import COPY_BYTES, copy_file
from ltx_runtime.errors import LtxError
from ltx_runtime.weights.checkpoint import StoredTensor, open_safetensors
from ltx_runtime.weights.lora import Lora, LoraPair
from ltx_runtime.weights.writing import Entry, write_safetensors

FILE = "written.safetensors"
BEFORE = b"what was there before"
FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
FAILURES = pytest.mark.parametrize(
    "failure", [FULL, KeyboardInterrupt(), MemoryError()], ids=lambda e: type(e).__name__
)


class Told:
    """A progress that adds up the reported counts, and fails beyond a limit."""

    def __init__(self, limit: float = float("inf"), failure: BaseException | None = None) -> None:
        self.limit, self.failure = limit, failure
        self.stages: dict[str, tuple[int, int]] = {}

    @contextmanager
    def __call__(self, name: str, total: int) -> Iterator[Callable[[int], None]]:
        def done(count: int) -> None:
            self.stages[name] = (self.stages[name][0] + count, total)
            if self.failure is not None and self.stages[name][0] > self.limit:
                raise self.failure

        self.stages[name] = (0, total)
        yield done


@pytest.fixture
def full_disk(monkeypatch) -> Callable[[int], None]:
    """Makes every written file refuse more than a number of bytes, as a full disk does."""

    def with_room(room: int) -> None:
        opened = Path.open

        def open_limited(path: Path, mode: str = "r", *args, **kwargs):
            file = opened(path, mode, *args, **kwargs)
            if "w" not in mode:
                return file
            write, left = file.write, [room]

            class Limited:
                def __getattr__(self, name):
                    return getattr(file, name)

                def __enter__(self):
                    return self

                def __exit__(self, *raised):
                    file.close()

                def write(self, data):
                    left[0] -= len(data)
                    if left[0] < 0:
                        raise FULL
                    return write(data)

            return Limited()

        monkeypatch.setattr(Path, "open", open_limited)

    return with_room


def numbers(count: int) -> list[bytes]:
    return [np.arange(start, start + 10, dtype=np.float32).tobytes() for start in range(0, count, 10)]


def sources(folder: Path) -> dict[str, StoredTensor]:
    """Stores one tensor for each way of rewriting; none of them fits on a disk of 100 KB."""
    folder.mkdir()
    tensors = {}
    for name, dtype, data in (
        ("fp8", "F8_E4M3", bytes(256 * 512)),
        ("copied", "F32", bytes(256 * 512 * 4)),
        ("x.weight", "Q4_K", random_blocks("Q4_K", 256, 512, 1.0, 0).tobytes()),
        ("table.weight", "Q8_0", random_blocks("Q8_0", 256, 512, 1.0, 0).tobytes()),
    ):
        (folder / name).write_bytes(data)
        tensors[name] = StoredTensor(folder / name, 0, len(data), dtype, (256, 512))
    return tensors


def test_a_written_file_is_what_safetensors_and_our_reader_read(tmp_path):
    groups = [
        ((Entry("a", "F32", (5, 4)), Entry("b", "F32", (2, 5))), lambda: numbers(30)),
        ((Entry("c", "F32", ()),), lambda: [np.float32(7).tobytes()]),
        ((Entry("empty", "I8", (0, 3)),), list),
    ]
    places = write_safetensors(tmp_path / FILE, groups, {"format": "pt", "note": '\u00e9 "quoted"'})
    arrays = load_file(tmp_path / FILE)
    np.testing.assert_array_equal(arrays["a"], np.arange(20, dtype=np.float32).reshape(5, 4), strict=True)
    np.testing.assert_array_equal(arrays["b"], np.arange(20, 30, dtype=np.float32).reshape(2, 5), strict=True)
    assert arrays["c"] == 7
    assert arrays["empty"].shape == (0, 3)
    with safe_open(tmp_path / FILE, "np") as file:
        assert file.metadata() == {"format": "pt", "note": '\u00e9 "quoted"'}
    assert places == open_safetensors(tmp_path / FILE).tensors
    assert all(place.offset % 4 == 0 for place in places.values())
    assert [file.name for file in tmp_path.iterdir()] == [FILE]


@pytest.mark.parametrize("order", [(None, None), (None, numbers), (numbers, None), (None, numbers, None)], ids=len)
def test_holes_are_zeros_that_take_no_space(tmp_path, order):
    count = 1 << 20
    groups = [
        ((Entry(str(i), "F32", (count if source is None else 40,)),), source and (lambda: numbers(40)))
        for i, source in enumerate(order)
    ]
    write_safetensors(tmp_path / FILE, groups)
    for name, values in load_file(tmp_path / FILE).items():
        expected = np.zeros(count) if order[int(name)] is None else np.arange(40)
        np.testing.assert_array_equal(values, expected.astype(np.float32), strict=True)
    assert (tmp_path / FILE).stat().st_blocks * 512 < count


def test_progress_is_told_the_file_and_every_byte(tmp_path):
    told = Told()
    rewrite(sources(tmp_path / "given"), tmp_path / FILE, tables={"table.weight"}, progress=told)
    (written, total) = told.stages[FILE]
    assert written == total == sum(t.length for t in open_safetensors(tmp_path / FILE).tensors.values())
    copy_file(tmp_path / FILE, tmp_path / "copy", told)
    assert told.stages["copy"] == ((tmp_path / FILE).stat().st_size,) * 2


@FAILURES
@pytest.mark.parametrize("limit", [0, 200_000, 500_000, 900_000])
def test_what_stops_a_rewrite_leaves_the_file_of_before_and_nothing_else(tmp_path, failure, limit):
    tensors, folder = sources(tmp_path / "given"), tmp_path / "out"
    folder.mkdir()
    (folder / FILE).write_bytes(BEFORE)
    with pytest.raises(LtxError if failure is FULL else type(failure)):
        rewrite(tensors, folder / FILE, tables={"table.weight"}, progress=Told(limit, failure))
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == {FILE: BEFORE}


@pytest.mark.parametrize("room", [0, 10, 100_000, 700_000])
def test_a_full_disk_is_said_in_a_sentence_and_leaves_nothing(tmp_path, full_disk, room):
    tensors, folder = sources(tmp_path / "given"), tmp_path / "out"
    folder.mkdir()
    full_disk(room)
    with pytest.raises(LtxError) as refused:
        rewrite(tensors, folder / FILE)
    assert str(refused.value) == (
        f"cannot write {folder / FILE}: no space left on device - free some space or choose another disk"
    )
    assert list(folder.iterdir()) == []


def test_a_folder_that_is_gone_is_said_in_a_sentence(tmp_path):
    with pytest.raises(LtxError, match=r"cannot write .*: no such file or directory - check the path"):
        rewrite(sources(tmp_path / "given"), tmp_path / "gone" / FILE)


@pytest.mark.parametrize("name", ["fp8", "copied", "x.weight", "table.weight"])
def test_a_source_that_is_cut_while_it_is_read_leaves_nothing(tmp_path, name):
    tensors, folder = sources(tmp_path / "given"), tmp_path / "out"
    folder.mkdir()
    os.truncate(tensors[name].file, tensors[name].length - 1)
    with pytest.raises(LtxError, match=f"{name} became shorter while it was read - download it again"):
        rewrite(tensors, folder / FILE, tables={"table.weight"})
    assert list(folder.iterdir()) == []


def test_values_that_no_weight_may_have_leave_nothing(tmp_path):
    """Covers an infinite scale, a value beyond the range of fp16, and a NaN in a factor of a LoRA."""
    tensors, folder = sources(tmp_path / "given"), tmp_path / "out"
    folder.mkdir()
    given = tensors["copied"].file
    given.write_bytes(np.full((256, 512), 1e6, np.float32).tobytes())
    with pytest.raises(LtxError, match="copied has values beyond fp16"):
        rewrite({"copied": tensors["copied"]}, folder / FILE, store="F16")
    blocks = random_blocks("Q4_K", 256, 512, 1.0, 0)
    blocks[-1, :2] = np.array([np.inf], "<f2").view(np.uint8)
    tensors["x.weight"].file.write_bytes(blocks.tobytes())
    with pytest.raises(LtxError, match="Q4_K block whose scale or minimum is inf"):
        rewrite({"x.weight": tensors["x.weight"]}, folder / FILE)
    given.write_bytes(np.full((256, 512), np.nan, np.float32).tobytes())
    factors = (StoredTensor(given, 0, 4 * 512, "F32", (1, 512)), StoredTensor(given, 0, 4 * 256, "F32", (256, 1)))
    lora = Lora(given, 1.0, {"copied": LoraPair(*factors, None)})
    with pytest.raises(LtxError, match="values for copied that are not finite"):
        rewrite({"copied": tensors["copied"]}, folder / FILE, loras=[lora])
    assert list(folder.iterdir()) == []


def test_copying_keeps_every_byte(tmp_path):
    data = np.random.default_rng(0).bytes(COPY_BYTES + 5)
    (tmp_path / "source").write_bytes(data)
    copy_file(tmp_path / "source", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == data


def test_copying_to_a_full_disk_is_said_in_a_sentence(tmp_path, full_disk):
    (tmp_path / "source").write_bytes(bytes(100))
    full_disk(99)
    with pytest.raises(LtxError, match=f"cannot write {tmp_path / 'copy'}: no space left on device - free"):
        copy_file(tmp_path / "source", tmp_path / "copy")


def test_a_disk_too_small_for_a_file_is_refused_before_a_byte_is_written(tmp_path, monkeypatch):
    (tmp_path / "source").write_bytes(bytes(101))
    nearly = shutil.disk_usage(tmp_path)._replace(free=100)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: nearly)
    room = ((Entry("room", "U8", (100,)),), lambda: [bytes(100)])
    hole = ((Entry("hole", "U8", (1 << 40,)),), None)
    for write in (
        lambda: copy_file(tmp_path / "source", tmp_path / "copy"),
        lambda: write_safetensors(tmp_path / FILE, [room, ((Entry("more", "U8", (1,)),), lambda: [b"1"])]),
    ):
        with pytest.raises(LtxError, match=f"{tmp_path} needs 0.00 MB more, but only 0.00 MB are free - free some"):
            write()
    assert [file.name for file in tmp_path.iterdir()] == ["source"]
    write_safetensors(tmp_path / FILE, [room, hole])
