"""Malformed safetensors headers and shard indexes: each is refused, or every tensor lies inside its file."""

import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from ltx_runtime.errors import LtxError
from ltx_runtime.weights.checkpoint import Checkpoint, open_safetensors, open_shards

FUZZ = settings(
    max_examples=400,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
TENSORS = {"a": np.ones((2, 3), np.float32), "b.weight": np.arange(8, dtype=np.float16), "c": np.zeros((), np.int64)}
SIZE = st.one_of(st.integers(-2, 80), st.integers(1 << 60, 1 << 70), st.floats(), st.booleans(), st.none(), st.text())
ENTRY = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.one_of(st.sampled_from(["F32", "BF16", "I4", "", None, 7]), st.text(max_size=4)),
        "shape": st.one_of(st.lists(SIZE, max_size=4), SIZE),
        "data_offsets": st.one_of(st.lists(SIZE, max_size=3), SIZE),
        "more": SIZE,
    },
)
METADATA = st.one_of(SIZE, st.dictionaries(st.sampled_from(["config", "x"]), st.one_of(SIZE, st.just("[]"))))
HEADER = st.dictionaries(st.text(max_size=3), st.one_of(ENTRY, SIZE), max_size=4)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> bytes:
    path = tmp_path_factory.mktemp("whole") / "whole.safetensors"
    save_file(TENSORS, path, {"config": json.dumps({"transformer": {"num_layers": 2}})})
    return path.read_bytes()


def opened(path: Path, raw: bytes) -> Checkpoint | None:
    """Opens a file with these bytes; returns None if it is refused in one line."""
    path.write_bytes(raw)
    try:
        found = open_safetensors(path)
    except LtxError as error:
        assert "\n" not in str(error) and str(path) in str(error)
        return None
    for tensor in found.tensors.values():
        assert tensor.offset >= 0 and tensor.offset + tensor.length <= len(raw)
        assert len(tensor.read(0, tensor.length)) == tensor.length
    return found


def test_a_whole_file_cut_anywhere_is_refused(tmp_path, whole):
    assert opened(tmp_path / "x", whole) is not None
    assert [length for length in range(len(whole)) if opened(tmp_path / "x", whole[:length])] == []


@FUZZ
@given(data=st.data())
def test_flipped_bytes_are_refused_or_stay_inside_the_file(tmp_path, whole, data):
    raw = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    opened(tmp_path / "x", bytes(raw))


@FUZZ
@given(header=HEADER, metadata=st.one_of(st.just({}), METADATA), body=st.binary(max_size=60))
@example(header={"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, metadata={"config": "{}"}, body=b"1234")
def test_a_made_up_header_is_refused_or_true(tmp_path, header, metadata, body):
    text = json.dumps(header | {"__metadata__": metadata}).encode()
    found = opened(tmp_path / "x", len(text).to_bytes(8, "little") + text + body)
    if found is not None:
        assert set(found.tensors) == set(header) - {"__metadata__"}


@FUZZ
@given(raw=st.binary(max_size=200))
@example(raw=b"\xff" * 8)
@example(raw=(2).to_bytes(8, "little") + b"[]")
def test_any_bytes_are_refused_or_no_tensor_leaves_the_file(tmp_path, raw):
    opened(tmp_path / "x", raw)


@pytest.mark.parametrize("claimed", [1 << 30, 1 << 40, (1 << 64) - 1])
def test_a_header_as_long_as_it_likes_takes_no_memory(tmp_path, whole, claimed):
    tracemalloc.start()
    try:
        assert opened(tmp_path / "x", claimed.to_bytes(8, "little") + whole[8:]) is None
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("text", ["[" * 200_000, '{"a":' * 200_000])
def test_a_header_nested_without_end_is_refused(tmp_path, text):
    raw = text.encode()
    assert opened(tmp_path / "x", len(raw).to_bytes(8, "little") + raw) is None


@FUZZ
@given(index=st.recursive(SIZE, lambda inner: st.dictionaries(st.sampled_from(["weight_map", "a", "c"]), inner)))
def test_an_index_of_anything_is_refused_or_names_what_is_there(tmp_path, whole, index):
    (tmp_path / "whole.safetensors").write_bytes(whole)
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(json.dumps(index))
    with pytest.raises(LtxError) as refused:
        open_shards(path)
    assert "\n" not in str(refused.value)
