"""The GGUF reader against the package gguf, and everything that can be wrong in a file, by accident or intent."""

import os
import struct
import time
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFEndian, GGUFReader, GGUFValueType, GGUFWriter
from hypothesis import given, settings
from hypothesis import strategies as st

from ltx_export.checkpoints.gguf import SIZES, TYPE_NAMES, GgufFile, open_gguf
from ltx_runtime.errors import LtxError

TYPES = ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL"]
VALUES = [200, -3, 9, -1, 2, -2, 0.5, True, "GGUF \u00e9", [1, 2, 3], 1 << 60, -4, 0.1]
NESTED = {"words": ["a", "", "bc"], "nested": [[1, 2], [3]], "deep": [[["a"], ["b", "c"]], [["d"]]]}
METADATA = {kind.name: (value, kind) for kind, value in zip(GGUFValueType, VALUES, strict=True)}
METADATA |= {name: (values, GGUFValueType.ARRAY) for name, values in NESTED.items()}
HUGE = 1 << 60
fuzzed = settings(derandomize=True, deadline=None, database=None, max_examples=400)


def data_of(dtype: str, *shape: int) -> np.ndarray:
    """Returns random bytes of a tensor, (..., bytes per row)."""
    elements, size = GGML_QUANT_SIZES[GGMLQuantizationType[dtype]]
    return np.random.default_rng(0).integers(0, 256, (*shape[:-1], shape[-1] // elements * size), np.uint8)


def write(path: Path, tensors: dict, alignment=None, metadata=(), endian=GGUFEndian.LITTLE) -> Path:
    """Writes a file with the package gguf; tensors: name -> (dtype, shape)."""
    writer = GGUFWriter(path, "t5encoder", endianess=endian)
    if alignment:
        writer.add_custom_alignment(alignment)
    for key, (value, kind) in dict(metadata).items():
        writer.add_key_value(key, value, kind)
    for name, (dtype, shape) in tensors.items():
        writer.add_tensor(name, data_of(dtype, *shape), raw_dtype=GGMLQuantizationType[dtype])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def text(value: bytes, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(value) if length is None else length) + value


def pair(key: bytes, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def array(kind: int, count: int, values: bytes = b"") -> bytes:
    return struct.pack("<IQ", kind, count) + values


def info(name=b"x", dims=(8,), kind=0, offset=0) -> bytes:
    """Returns a tensor's entry in a header; dims are innermost first, as they are stored."""
    return text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)


def made(folder: Path, tensors=(), pairs=(), hole=64, version=3, counts=None) -> Path:
    """Writes a file with an arbitrary header, and a hole for tensor data at a multiple of 32 bytes."""
    tensor_count, pair_count = counts or (len(tensors), len(pairs))
    raw = b"GGUF" + struct.pack("<IQQ", version, tensor_count, pair_count) + b"".join(pairs) + b"".join(tensors)
    path = folder / "made.gguf"
    path.write_bytes(raw)
    os.truncate(path, len(raw) + -len(raw) % 32 + hole)
    return path


def same_as_reader(opened: GgufFile, reader: GGUFReader) -> None:
    """Checks that names and their order, dtypes, shapes, offsets and lengths are those of gguf's reader."""
    assert list(opened.tensors) == [tensor.name for tensor in reader.tensors]
    for theirs, ours in zip(reader.tensors, opened.tensors.values(), strict=True):
        assert ours.dtype == theirs.tensor_type.name
        assert ours.shape == tuple(int(n) for n in theirs.shape[::-1])
        assert (ours.offset, ours.length) == (theirs.data_offset, theirs.n_bytes)


def sound(opened: GgufFile) -> None:
    """Checks that every tensor has its own bytes within the file."""
    size, end = opened.file.stat().st_size, 0
    for stored in sorted(opened.tensors.values(), key=lambda tensor: tensor.offset):
        assert end <= stored.offset < stored.offset + stored.length <= size
        end = stored.offset + stored.length


def refusal(path: Path) -> str:
    """Returns the message of the refusal, which must be one sentence that names the file and says what to do."""
    with pytest.raises(LtxError) as refused:
        open_gguf(path)
    message = str(refused.value)
    assert message.startswith((f"{path} ", f"cannot read {path}: "))
    assert " - " in message and message.isprintable()
    return message


def opened_or_refused(path: Path) -> GgufFile | None:
    """Opens any file and checks it; returns None if it is refused with a proper message."""
    try:
        opened = open_gguf(path)
    except LtxError:
        refusal(path)
        return None
    sound(opened)
    return opened


@contextmanager
def cheap() -> Iterator[None]:
    """Fails if the block takes more than a megabyte or a second."""
    tracemalloc.start()
    start = time.perf_counter()
    try:
        yield
        elapsed, peak = time.perf_counter() - start, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20
    assert elapsed < 1


@pytest.mark.parametrize("alignment", [None, 1, 8, 64, 4096])
@pytest.mark.parametrize("metadata", [{}, METADATA], ids=len)
def test_names_types_shapes_and_bytes_are_those_that_gguf_reads(tmp_path, alignment, metadata):
    shapes = {"v": (256,), "m": (3, 512), "t": (2, 3, 256), "f": (2, 1, 3, 256)}
    tensors = {f"{dtype}.{name}": (dtype, shape) for dtype in TYPES for name, shape in shapes.items()}
    tensors |= {"odd.F32": ("F32", (7,)), "odd.F16": ("F16", (5, 3)), "odd.Q4_0": ("Q4_0", (3, 32))}
    path = write(tmp_path / "t5.gguf", tensors, alignment, metadata)
    opened = open_gguf(path)
    same_as_reader(opened, GGUFReader(path))
    sound(opened)
    assert (opened.file, opened.architecture) == (path, "t5encoder")
    for name, (dtype, shape) in tensors.items():
        stored = opened.tensors[name]
        assert (stored.file, stored.dtype, stored.shape) == (path, dtype, shape)
        assert stored.mapped().tobytes() == data_of(dtype, *shape).tobytes()
        assert stored.offset % (alignment or 32) == 0


def test_types_and_their_block_sizes_are_those_of_gguf():
    assert {kind.value: kind.name for kind in GGMLQuantizationType} == TYPE_NAMES
    assert {name: GGML_QUANT_SIZES[GGMLQuantizationType[name]] for name in TYPES} == SIZES


def test_a_header_with_the_tokenizer_of_t5_is_read_in_no_time_and_not_kept(tmp_path):
    words = {"tokens": [f"\u2581piece{i}" for i in range(32128)], "scores": [0.5] * 32128, "kinds": [1] * 32128}
    metadata = {key: (values, GGUFValueType.ARRAY) for key, values in words.items()}
    path = write(tmp_path / "x", {"x": ("F32", (8,))}, metadata=metadata)
    with cheap():
        assert open_gguf(path).tensors["x"].length == 32


def test_opening_reads_the_header_only_and_none_that_is_huge(tmp_path):
    path = made(tmp_path, [info(dims=[1 << 16, 1 << 15])], hole=1 << 33)
    with cheap():
        assert open_gguf(path).tensors["x"].length == 1 << 33
    path = made(tmp_path, pairs=[pair(b"k", 9, array(0, 1 << 32))], hole=1 << 33)
    assert "over the limit of" in refusal(path)


@pytest.mark.parametrize("version", [2, 3])
def test_both_versions_are_read_with_scalars_tensors_in_any_order_and_no_architecture(tmp_path, version):
    path = made(tmp_path, [info(b"b", (4, 4), 1, 32), info(b"a", ())], version=version)
    opened = open_gguf(path)
    assert opened.architecture == ""
    assert [(tensor.shape, tensor.length) for tensor in opened.tensors.values()] == [((4, 4), 32), ((), 4)]
    same_as_reader(opened, GGUFReader(path))


@pytest.mark.parametrize("values", [array(8, 9, bytes(72)), array(9, 9, array(0, 0) * 9), bytes(12)], ids=len)
def test_a_file_may_end_with_its_metadata_and_that_with_empty_values(tmp_path, values):
    path = made(tmp_path, pairs=[pair(b"k", 9, values)])
    os.truncate(path, 24 + len(pair(b"k", 9, values)))
    assert open_gguf(path).tensors == {}


def test_what_is_no_little_endian_gguf_file_is_refused(tmp_path):
    assert "no such file" in refusal(tmp_path / "missing")
    assert "directory" in refusal(tmp_path)
    for junk in (b"PK\x03\x04" + b"x" * 200, b"\0" * 64, b"<html>" * 50, b"FUGG" * 9):
        (tmp_path / "x").write_bytes(junk)
        assert "is not a GGUF file" in refusal(tmp_path / "x")
    assert "big-endian" in refusal(write(tmp_path / "x", {"x": ("F32", (8,))}, endian=GGUFEndian.BIG))


def test_a_file_that_shrinks_while_it_is_read_is_refused(tmp_path, monkeypatch):
    path = made(tmp_path, [text(b"", 500)])
    monkeypatch.setattr("ltx_export.checkpoints.gguf.os.fstat", lambda _: SimpleNamespace(st_size=1000))
    assert "became shorter while it was read" in refusal(path)


@pytest.mark.parametrize("kind", sorted({*range(50), 1 << 31} - {int(GGMLQuantizationType[name]) for name in TYPES}))
def test_tensors_of_other_types_are_refused_by_name(tmp_path, kind):
    assert f"'x' of type {TYPE_NAMES.get(kind, f'number {kind}')} - " in refusal(made(tmp_path, [info(kind=kind)]))


ALIGNMENT = b"general.alignment"
WRONG = {
    **{f"of GGUF version {number} ": {"version": number} for number in (0, 1, 4, 1 << 30, (1 << 32) - 1)},
    "overlapping tensors": {"tensors": [info(b"x", (16,)), info(b"y", offset=32)]},
    "overlapping tensors 'x' and 'z'": {"tensors": [info(b"x"), info(b"y", offset=32), info(b"z", (1,))]},
    "two tensors named 'x'": {"tensors": [info(), info(offset=32)]},
    "5 dimensions": {"tensors": [info(dims=(1, 1, 1, 1, 1))]},
    f"{(1 << 32) - 1} dimensions": {"tensors": [text(b"x") + b"\xff" * 40]},
    "rows of 33, not a multiple of 32": {"tensors": [info(dims=(33, 32), kind=8)]},
    "rows of 128, not a multiple of 256": {"tensors": [info(dims=(128, 2), kind=12)]},
    "rows of 1, not a multiple of 32": {"tensors": [info(dims=(), kind=2)]},
    "without elements": {"tensors": [info(dims=(0, HUGE))]},
    "at offset 4, not a multiple": {"tensors": [info(offset=4)]},
    "multiple of the alignment 64": {"tensors": [info(offset=32)], "pairs": [pair(ALIGNMENT, 4, b"\x40\0\0\0")]},
    "an alignment of 0": {"pairs": [pair(ALIGNMENT, 4, bytes(4))]},
    "an alignment of 48": {"pairs": [pair(ALIGNMENT, 4, b"\x30\0\0\0")]},
    "alignment as a value of type 10": {"pairs": [pair(ALIGNMENT, 10, b"\x20" + bytes(7))]},
    "architecture as a value of type 4": {"pairs": [pair(b"general.architecture", 4, bytes(4))]},
    "has general.alignment twice": {"pairs": [pair(ALIGNMENT, 4, b"\x20\0\0\0")] * 2},
    "a key that is not UTF-8": {"pairs": [pair(b"\xff", 0, b"\0")]},
    "a tensor's name that is not UTF-8": {"tensors": [info(b"\xc3")]},
    "architecture that is not UTF-8": {"pairs": [pair(b"general.architecture", 8, text(b"\x80"))]},
    "a key of 65536 bytes": {"pairs": [pair(bytes(65536), 0, b"\0")]},
    "unknown type 13": {"pairs": [pair(b"k", 13, bytes(8))]},
    "unknown type 99": {"pairs": [pair(b"k", 9, array(99, 0))]},
    "arrays within arrays": {"pairs": [pair(b"k", 9, array(9, 1) * 30 + array(0, 0))]},
}
# Counts and lengths that exceed the file.
ENDLESS = [
    *({"counts": (HUGE, 0)}, {"counts": (0, HUGE)}),
    *({"pairs": [text(b"", HUGE) + bytes(16)]}, {"tensors": [text(b"", HUGE) + bytes(32)]}),
    *({"pairs": [pair(key, 8, text(b"", HUGE))]} for key in (b"k", b"general.architecture")),
    *({"pairs": [pair(b"k", 9, array(kind, HUGE))], "hole": 31 << 20} for kind in GGUFValueType),
    {"pairs": [pair(b"k", 9, array(9, 1, array(9, HUGE)))]},
    {"pairs": [pair(b"k", 9, array(8, 2, text(b"a") + text(b"", HUGE)))]},
    *({"tensors": [info(dims=dims)]} for dims in ((HUGE,), (9, 9), ((1 << 64) - 1,) * 4)),
    *({"tensors": [info(offset=offset)]} for offset in (HUGE, 64, (1 << 64) - 32)),
]


@pytest.mark.parametrize(("problem", "file"), [*WRONG.items(), *(("is truncated: ", file) for file in ENDLESS)])
def test_a_header_that_cannot_be_right_is_refused_before_anything_is_made_of_it(tmp_path, problem, file):
    path = made(tmp_path, **file)
    with cheap():
        assert problem in refusal(path)


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    tensors = {"a": ("F32", (3, 5)), "b.weight": ("Q8_0", (2, 32)), "c": ("Q4_K", (1, 256)), "d": ("BF16", (4,))}
    return write(tmp_path_factory.mktemp("gguf") / "small.gguf", tensors, 16, METADATA)


def test_a_file_cut_at_any_length_is_refused_unless_only_padding_is_gone(small):
    whole, raw = open_gguf(small), small.read_bytes()
    path, end = small.with_name("cut.gguf"), max(t.offset + t.length for t in whole.tensors.values())
    for length in range(len(raw)):
        path.write_bytes(raw[:length])
        opened = opened_or_refused(path)
        assert (opened is None) == (length < end)
        assert opened is None or opened.tensors.keys() == whole.tensors.keys()


@fuzzed
@given(flips=st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(1, 255)), min_size=1, max_size=4))
def test_a_file_with_flipped_bytes_is_refused_or_sound_and_read_as_gguf_reads_it(small, flips):
    raw, path = bytearray(small.read_bytes()), small.with_name("flipped.gguf")
    header = min(tensor.offset for tensor in open_gguf(small).tensors.values())
    for at, bits in flips:
        raw[at % header] ^= bits
    path.write_bytes(raw)
    opened = opened_or_refused(path)
    if opened is not None:
        with suppress(KeyError, ValueError):  # raised for metadata that we skip
            same_as_reader(opened, GGUFReader(path))


@fuzzed
@given(counts=st.tuples(st.integers(0, 3), st.integers(0, 3)), junk=st.binary(max_size=300))
def test_random_bytes_after_the_start_are_refused_or_sound(small, counts, junk):
    path = small.with_name("random.gguf")
    path.write_bytes(b"GGUF" + junk)
    opened_or_refused(path)
    opened_or_refused(made(small.parent, [junk], counts=counts))


@fuzzed
@given(place=st.integers(0, 300), value=st.sampled_from([0, 1, 1 << 31, 1 << 32, HUGE, (1 << 63) - 1, (1 << 64) - 1]))
def test_a_number_written_anywhere_costs_neither_memory_nor_time(small, place, value):
    raw, path = small.read_bytes(), small.with_name("number.gguf")
    path.write_bytes(raw[: 8 + place] + struct.pack("<Q", value) + raw[16 + place :])
    with cheap():
        opened_or_refused(path)
