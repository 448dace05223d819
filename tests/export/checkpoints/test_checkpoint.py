"""The checkpoint reader against the safetensors package, and every way a file can be damaged."""

import json
import re
import struct

import numpy as np
import pytest
import torch
from oracles.networks import normal
from safetensors import safe_open
from safetensors.torch import save_file

from ltx_runtime.errors import LtxError
from ltx_runtime.weights.checkpoint import ITEM_BYTES, open_safetensors

DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
OTHER_DTYPES = [torch.float64, torch.complex64, torch.bool, torch.float8_e4m3fn, torch.float8_e5m2]
OTHER_DTYPES += [torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8]
OTHER_DTYPES += [torch.uint16, torch.uint32, torch.uint64, torch.float8_e8m0fnu]
METADATA = {"config": json.dumps({"transformer": {"num_layers": 28}, "vae": {"blocks": [["res_x", 4]]}})}


def as_bytes(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


@pytest.fixture
def written(tmp_path):
    """Writes a file with the safetensors package, with tensors of several shapes in every dtype that graphs take."""
    shapes = {"scalar": (), "vector": (5,), "matrix": (4, 7), "kernel": (2, 3, 3, 3, 3), "empty": (0, 4)}
    path = tmp_path / "model.safetensors"
    tensors = {f"{d}.{s}": normal(1, *shape).to(DTYPES[d]) for d in DTYPES for s, shape in shapes.items()}
    save_file(tensors, path, METADATA)
    return path


def raw_file(path, header, data=b"", header_bytes=None):
    """Writes a file with an arbitrary header."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw) if header_bytes is None else header_bytes) + raw + data)
    return path


def entry(begin=0, end=8, shape=(2,), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


def refusal(path, opening=open_safetensors) -> str:
    """Returns the message of the refusal, which must be one sentence that names the file and says what to do."""
    with pytest.raises(LtxError) as refused:
        opening(path)
    message = str(refused.value)
    assert "\n" not in message
    assert str(path) in message
    assert " - " in message
    return message


def test_names_shapes_dtypes_and_bytes_are_those_that_safetensors_reads(written):
    checkpoint = open_safetensors(written)
    with safe_open(written, "pt") as expected:
        assert set(checkpoint.tensors) == set(expected.keys())
        for name, stored in checkpoint.tensors.items():
            tensor = expected.get_tensor(name)
            assert stored.shape == tuple(tensor.shape)
            assert DTYPES[stored.dtype] == tensor.dtype
            assert stored.mapped().tobytes() == as_bytes(tensor)


def test_the_bytes_of_a_tensor_lie_at_its_offset(written):
    raw = written.read_bytes()
    for stored in open_safetensors(written).tensors.values():
        assert raw[stored.offset : stored.offset + stored.length] == stored.mapped().tobytes()


def test_bytes_that_are_written_to_change_nothing_in_the_file(written):
    before = written.read_bytes()
    for stored in open_safetensors(written).tensors.values():
        stored.mapped()[:] = 0xFF
    assert written.read_bytes() == before


def test_the_configuration_is_that_of_the_header(written):
    opened = open_safetensors(written)
    assert opened.path == written
    assert opened.config == json.loads(METADATA["config"])


def test_metadata_beside_the_configuration_are_kept(tmp_path):
    save_file({"x": torch.zeros(2)}, tmp_path / "x.safetensors", METADATA | {"format": "pt", "lora": "{}"})
    opened = open_safetensors(tmp_path / "x.safetensors")
    assert opened.config == json.loads(METADATA["config"])
    assert opened.metadata == METADATA | {"format": "pt", "lora": "{}"}


@pytest.mark.parametrize("metadata", [None, {}, {"format": "pt"}])
def test_a_file_without_configuration_has_an_empty_one(tmp_path, metadata):
    save_file({"x": torch.zeros(2)}, tmp_path / "x.safetensors", metadata)
    assert open_safetensors(tmp_path / "x.safetensors").config == {}


def test_item_sizes_are_those_of_the_dtypes():
    names = {"F32": "f4", "F16": "f2", "F64": "f8", "BOOL": "?", "C64": "c8"}
    names |= {f"{kind.upper()}{8 * size}": f"{kind}{size}" for kind in "iu" for size in (1, 2, 4, 8)}
    halves = {"BF16": torch.bfloat16, "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2}
    halves |= {"F8_E8M0": torch.float8_e8m0fnu}
    sizes = {name: np.dtype(numpy_name).itemsize for name, numpy_name in names.items()}
    assert sizes | {name: dtype.itemsize for name, dtype in halves.items()} == ITEM_BYTES


@pytest.mark.parametrize("dtype", OTHER_DTYPES, ids=str)
def test_tensors_that_no_network_uses_may_have_any_dtype_of_safetensors(tmp_path, dtype):
    tensors = {"first": torch.arange(6).to(dtype), "second": torch.ones(2, 3).to(dtype)}
    save_file(tensors, tmp_path / "x.safetensors")
    found = open_safetensors(tmp_path / "x.safetensors").tensors
    assert {name: stored.mapped().tobytes() for name, stored in found.items()} == {
        name: as_bytes(values) for name, values in tensors.items()
    }
    assert len({stored.dtype for stored in found.values()}) == 1


def test_opening_reads_the_header_only(written):
    """The file's size tells whether data is missing, without reading it: a hole of any size costs nothing."""
    header = {"x": entry(0, 1 << 33, (1 << 31,))}
    path = raw_file(written.with_name("huge.safetensors"), header)
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size + (1 << 33))
    assert open_safetensors(path).tensors["x"].length == 1 << 33


def test_a_truncated_file_is_refused_at_every_length(written):
    raw = written.read_bytes()
    header_end = 8 + int.from_bytes(raw[:8], "little")
    for length in (0, 1, 7, 8, 9, header_end - 1, header_end, header_end + 1, len(raw) - 1):
        written.write_bytes(raw[:length])
        assert "download it again" in refusal(written)


@pytest.mark.parametrize(
    "junk", [b"", b"\0" * 64, b"\xff" * 64, b"PK\x03\x04" + b"x" * 200, b"<html>" * 50, b"GGUF" * 9]
)
def test_what_is_no_safetensors_file_is_refused(tmp_path, junk):
    (tmp_path / "junk").write_bytes(junk)
    assert "download it again" in refusal(tmp_path / "junk")


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    assert "no such file" in refusal(tmp_path / "missing.safetensors")
    assert "directory" in refusal(tmp_path)
    (tmp_path / "file").write_bytes(b"x")
    assert "not a directory" in refusal(tmp_path / "file" / "below")


@pytest.mark.parametrize("announced", [0, 1, 1 << 20, (100 << 20) + 1, 1 << 40, (1 << 64) - 1])
def test_a_header_longer_than_its_file_or_too_short_is_refused(tmp_path, announced):
    refusal(raw_file(tmp_path / "x", {"x": entry()}, bytes(8), announced))


def test_a_header_over_the_limit_of_the_format_is_refused_before_it_is_read(tmp_path):
    path = tmp_path / "x"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", (100 << 20) + 1))
        file.truncate(200 << 20)
    refusal(path)


@pytest.mark.parametrize(
    "wrong",
    [
        entry(end=4),
        entry(end=12),
        entry(begin=4),
        entry(begin=8, end=0),
        entry(shape=(3,)),
        entry(dtype="F64"),
        entry(dtype="Q4_K"),
        entry(dtype=None),
        entry(begin=-8, end=0),
        entry(begin=0, end=-8, shape=(-2,)),
        {**entry(), "data_offsets": [0]},
        {**entry(), "data_offsets": ["0", "8"]},
        {**entry(), "shape": None},
        {**entry(), "shape": ["2"]},
        {**entry(), "shape": [2.0]},
        {**entry(), "shape": [True, 2]},
        {**entry(), "shape": [1 << 64, 0], "data_offsets": [0, 0]},
        {**entry(), "data_offsets": [0.0, 8.0]},
        {"dtype": "F32"},
        [],
        None,
        7,
    ],
    ids=str,
)
def test_an_entry_that_contradicts_itself_is_refused(tmp_path, wrong):
    refusal(raw_file(tmp_path / "x", {"x": wrong}, bytes(16)))


@pytest.mark.parametrize(("begin", "end"), [(0, 8), (4, 12), (4, 8), (0, 4)])
def test_tensors_that_lie_on_each_other_are_refused_by_name(tmp_path, begin, end):
    header = {"x": entry(), "y": entry(begin, end, ((end - begin) // 4,))}
    assert re.search("[xy] and [xy] overlap", refusal(raw_file(tmp_path / "x", header, bytes(16))))


def test_tensors_may_stand_in_any_order_with_gaps_and_empty_ones_between(tmp_path):
    header = {"last": entry(12, 20), "empty": entry(8, 8, (0, 3)), "first": entry(), "also": entry(8, 8, (0,))}
    tensors = open_safetensors(raw_file(tmp_path / "x", header, bytes(20))).tensors
    assert {name: tensor.length for name, tensor in tensors.items()} == {"last": 8, "empty": 0, "first": 8, "also": 0}


@pytest.mark.parametrize("header", [b"[]", b"7", b"null", b'"text"', b"{not json", b"\xff\xfe{}", b'{"x": '])
def test_a_header_that_is_no_object_is_refused(tmp_path, header):
    refusal(raw_file(tmp_path / "x", header, bytes(16)))


@pytest.mark.parametrize("metadata", [[], 7, "text", None])
def test_metadata_that_are_no_object_are_refused(tmp_path, metadata):
    refusal(raw_file(tmp_path / "x", {"__metadata__": metadata, "x": entry()}, bytes(8)))


def test_a_tensor_that_stands_twice_in_a_header_is_refused(tmp_path):
    twice = b'{"x": %s, "x": %s}' % ((json.dumps(entry()).encode(),) * 2)
    assert "a key appears twice" in refusal(raw_file(tmp_path / "x", twice, bytes(8)))


def test_a_shape_of_a_million_sizes_is_refused_before_they_are_multiplied(tmp_path):
    assert "1000000 dimensions" in refusal(raw_file(tmp_path / "x", {"x": entry(shape=[3] * 1_000_000)}, bytes(8)))


def test_a_header_nested_without_end_is_refused(tmp_path):
    refusal(raw_file(tmp_path / "x", b'{"x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", bytes(8)))


@pytest.mark.parametrize("config", ["{not json", '{"vae": 3}', '{"scheduler": []}', '{"x": ' + "[" * 99_999])
def test_a_damaged_configuration_is_refused_where_it_is_asked_for(tmp_path, config):
    path = raw_file(tmp_path / "x", {"__metadata__": {"config": config}, "x": entry()}, bytes(8))
    assert list(open_safetensors(path).tensors) == ["x"]
    refusal(path, lambda path: open_safetensors(path).config)


@pytest.mark.parametrize(
    "config", ["", " ", "null", "[]", "7", '"text"', "configs/x.yaml", "None", "[" * 99_999, 7, {}, None, []]
)
def test_a_config_that_is_no_object_is_another_programs_and_says_nothing(tmp_path, config):
    path = raw_file(tmp_path / "x", {"__metadata__": {"config": config}, "x": entry()}, bytes(8))
    assert open_safetensors(path).config == {}


def test_a_part_of_the_configuration_that_is_null_is_left_out(tmp_path):
    config = json.dumps({"transformer": None, "vae": {"dims": 3}, "scheduler": None, "other": None})
    path = raw_file(tmp_path / "x", {"__metadata__": {"config": config}, "x": entry()}, bytes(8))
    assert open_safetensors(path).config == {"vae": {"dims": 3}, "other": None}
