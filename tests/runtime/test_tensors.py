"""Laws of tensor files: what is written is read back, in any type that fits; damaged or partial files are refused."""

import errno
import json
import math
import os
import struct
from pathlib import Path

import numpy as np
import pytest

from ltx_runtime.errors import LtxError
from ltx_runtime.tensors import names_in, read_metadata, read_tensors, write_tensors


def write_by_hand(path, tensors):
    """Writes a safetensors file from name -> (dtype as the format calls it, shape, bytes)."""
    header, data = {}, b""
    for name, (dtype, shape, raw) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


@pytest.fixture
def path(tmp_path):
    return tmp_path / "some.safetensors"


def refused(path, *required, match):
    with pytest.raises(LtxError, match=match) as raised:
        read_tensors(path, required)
    assert "\n" not in str(raised.value)
    assert " - " in str(raised.value)


def test_what_is_written_is_read(path):
    tensors = {
        "latents": np.arange(24, dtype=np.float32).reshape(1, 2, 3, 4),
        "mask": np.array([[1, 1, 0]]),
        "empty": np.zeros((0, 3), np.float32),
        "scalar": np.float32(2.5).reshape(()),
    }
    write_tensors(path, tensors, {"seed": "7", "what": "näh"})
    found = read_tensors(path, tensors)
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(found[name], tensor)
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape)
    assert read_metadata(path) == {"seed": "7", "what": "näh"}
    assert list(path.parent.iterdir()) == [path]


def test_arrays_that_do_not_lie_in_c_order_are_written_as_they_look(path):
    turned = np.arange(6, dtype=np.float32).reshape(2, 3).T
    write_tensors(path, {"turned": turned, "every other": np.arange(8, dtype=np.float32)[::2]})
    found = read_tensors(path, ("turned", "every other"))
    np.testing.assert_array_equal(found["turned"], turned)
    np.testing.assert_array_equal(found["every other"], [0, 2, 4, 6])


def test_a_file_without_metadata_has_none(path):
    write_tensors(path, {"x": np.zeros(1, np.float32)})
    assert read_metadata(path) == {}


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
def test_floats_become_float32(path, dtype):
    values = np.array([0.5, -3.0, 1 / 3], dtype)
    write_tensors(path, {"x": values})
    found = read_tensors(path, ["x"])["x"]
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, values.astype(np.float32))


def test_every_finite_bfloat16_is_read_exactly(path):
    halves = np.arange(1 << 16, dtype=np.uint16)
    halves = halves[(halves >> 7 & 0xFF) != 0xFF]  # this exponent is that of infinities and NaN
    write_by_hand(path, {"before": ("U8", [3], b"abc"), "x": ("BF16", [2, halves.size // 2], halves.tobytes())})
    found = read_tensors(path, ["x"])["x"]
    sign, exponent, fraction = (np.int64(halves) >> shift & mask for shift, mask in ((15, 1), (7, 255), (0, 127)))
    normal = np.ldexp(1 + fraction / 128, exponent - 127)
    magnitude = np.where(exponent > 0, normal, np.ldexp(fraction / 128, -126))
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found.reshape(-1), (1 - 2 * sign) * magnitude)


@pytest.mark.parametrize("dtype", ["int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8", "bool"])
def test_whole_numbers_and_booleans_become_int64(path, dtype):
    write_tensors(path, {"x": np.array([0, 1, 1], dtype)})
    found = read_tensors(path, ["x"])["x"]
    assert (found.dtype, found.tolist()) == (np.int64, [0, 1, 1])


def test_only_what_is_named_is_read(path):
    write_tensors(
        path, {"a": np.zeros(2, np.float32), "b": np.ones(2, np.float32), "c": np.full(2, np.nan, np.float32)}
    )
    assert set(read_tensors(path, ["a"], ["b", "d"])) == {"a", "b"}
    assert read_tensors(path, ()) == {}


def test_a_missing_name_is_refused_with_the_names_that_are_there(path):
    write_tensors(path, {f"t{i}": np.zeros(1, np.float32) for i in range(12)})
    refused(path, "t1", "x", "y", match=r"has no tensor x, y; it holds t0, t1, t10, .* and 4 more - ")
    write_tensors(path, {})
    refused(path, "x", match="has no tensor x; it holds nothing - ")
    write_tensors(path, {"a\nb\x1b": np.zeros(1, np.float32), "c" * 1000: np.zeros(1, np.float32)})
    refused(path, "x", match=r"it holds a\\nb\\x1b, c{60} - check the file$")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
def test_what_is_no_finite_number_is_refused(path, bad, dtype):
    write_tensors(path, {"x": np.array([1, bad, 2], dtype)})
    refused(path, "x", match="1 of 3 numbers in x of .* are not finite in float32 - ")


def test_numbers_that_do_not_fit_are_refused(path):
    write_tensors(path, {"x": np.array([1e300, 1.0]), "n": np.array([2**63, 1], np.uint64)})
    refused(path, "x", match="1 of 2 numbers in x .* are not finite in float32")
    refused(path, "n", match="1 of 2 numbers in n .* do not fit int64")
    infinity = struct.pack("<H", 0x7F80)
    refused(write_by_hand(path, {"b": ("BF16", [1], infinity)}), "b", match="1 of 1 numbers in b .* are not finite")


@pytest.mark.parametrize(("dtype", "raw"), [("F8_E4M3", b"ab"), ("F8_E5M2", b"ab")])
def test_a_type_that_says_too_little_is_refused(path, dtype, raw):
    write_by_hand(path, {"x": (dtype, [2], raw), "y": ("F32", [1], bytes(4))})
    refused(path, "x", match=f"x of .* is stored as {dtype} - save it as")
    assert read_tensors(path, ["y"])["y"].tolist() == [0]


def test_a_truncated_file_is_refused_at_any_length(path):
    write_tensors(path, {"x": np.arange(3, dtype=np.float32)})
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        refused(path, match="is not a complete safetensors file")
        with pytest.raises(LtxError, match="is not a complete safetensors file"):
            read_metadata(path)


@pytest.mark.parametrize("raw", [b"\xff" * 100, b"{}" * 50, struct.pack("<Q", 4) + b"nope", b"\x00" * 64])
def test_another_file_is_refused(path, raw):
    path.write_bytes(raw)
    refused(path, match="is not a complete safetensors file")


def test_a_file_that_is_not_there_or_a_folder_is_refused(path):
    refused(path, match="cannot read .*some.safetensors: no such file or directory - check the path")
    refused(path.parent, match="cannot read .*: is a directory - give a file")


def test_nothing_is_left_where_the_disk_is_full(path, monkeypatch):
    write_tensors(path, {"x": np.ones(2, np.float32)})
    before = path.read_bytes()

    def full(self: Path, data: bytes) -> None:
        with self.open("wb") as file:
            file.write(data[:9])
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(LtxError, match=r"cannot write .*some.safetensors: no space left on device - free some space"):
        write_tensors(path, {"x": np.zeros(2, np.float32)})
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_a_place_that_cannot_be_written_is_refused(path):
    with pytest.raises(LtxError, match=r"cannot write .*: no such file or directory - check the path"):
        write_tensors(path / "x.safetensors", {"x": np.zeros(1, np.float32)})
    path.mkdir()
    with pytest.raises(LtxError, match=r"cannot write .*: is a directory - give a file"):
        write_tensors(path, {"x": np.zeros(1, np.float32)})
    assert list(path.parent.iterdir()) == [path]


def sparse(path, name, shape):
    """Writes a file with a float32 tensor of zeros, of which the disk holds the header alone."""
    end = 4 * math.prod(shape)
    header = json.dumps({name: {"dtype": "F32", "shape": shape, "data_offsets": [0, end]}}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    os.truncate(path, 8 + len(header) + end)
    return path


def test_a_tensor_that_takes_gigabytes_is_refused_before_it_is_read(tmp_path):
    path = sparse(tmp_path / "a.safetensors", "x", (1 << 20, 1 << 10))
    with pytest.raises(LtxError, match=r"x of .* is of shape .* needs about 9\.66 GB of memory, more than"):
        read_tensors(path, ["x"])
    assert names_in(path) == ["x"]


@pytest.mark.parametrize("count", [50_000, 50_001])
def test_a_header_lists_50_000_tensors_at_most(tmp_path, count):
    entry = '"%d":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}'
    header = ("{" + ",".join(entry % number for number in range(count)) + "}").encode()
    (tmp_path / "a").write_bytes(len(header).to_bytes(8, "little") + header)
    if count == 50_000:
        assert len(names_in(tmp_path / "a")) == count
        return
    with pytest.raises(LtxError, match=r"lists 50,001 tensors, more than the 50,000 that are read"):
        names_in(tmp_path / "a")
