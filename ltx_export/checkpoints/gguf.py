"""A GGUF file -> named tensors by offset, as `checkpoint.py` does for safetensors. Only the header is read.

Block-quantized tensors stay as they are: their dtype is the name of the GGUF type, and `blocks.py` unpacks them. This
module knows nothing of models: names are those of the file. The format is specified in
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.

A header is untrusted input: every count and length is compared with the remaining bytes before it is used.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from ltx_export.checkpoints.blocks import BLOCK_TYPES
from ltx_runtime.errors import LtxError, explaining
from ltx_runtime.trust.pointers import refuse_pointer
from ltx_runtime.weights.checkpoint import ITEM_BYTES, StoredTensor

MAGIC = b"GGUF"
# All types of the format, by number, so that unsupported ones can be refused by name; "-" is a withdrawn number.
_TYPES = (
    "F32 F16 Q4_0 Q4_1 - - Q5_0 Q5_1 Q8_0 Q8_1 Q2_K Q3_K Q4_K Q5_K Q6_K Q8_K IQ2_XXS IQ2_XS IQ3_XXS IQ1_S IQ4_NL IQ3_S "
    "IQ2_S IQ4_XS I8 I16 I32 I64 F64 IQ1_M BF16 - - - TQ1_0 TQ2_0 - - - MXFP4 NVFP4 Q1_0"
)
TYPE_NAMES = {number: name for number, name in enumerate(_TYPES.split()) if name != "-"}
# Elements per block and bytes per block of every supported type.
SIZES = {name: (1, ITEM_BYTES[name]) for name in ("F32", "F16", "BF16")} | BLOCK_TYPES

_VERSIONS = (2, 3)
_DEFAULT_ALIGNMENT = 32
_MAX_DIMENSIONS = 4
_MAX_STRING_BYTES = (1 << 16) - 1  # the format's limit for keys; its limit for tensor names is lower
_MAX_HEADER_BYTES = 32 << 20  # a tokenizer of 256,000 words takes a third of it
_MAX_DEPTH = 8
# Counts of what is read one by one. A T5 has 220 tensors, a transformer 2,000; a tokenizer, 256,000 words.
_MAX_TENSORS, _MAX_PAIRS, _MAX_ITEMS = 50_000, 50_000, 1_000_000

_UINT32, _STRING, _ARRAY = 4, 8, 9
_SCALAR_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
# Smallest size of a value of each type: an empty string is its length field, an empty array its type and length fields.
_MIN_VALUE_BYTES = _SCALAR_BYTES | {_STRING: 8, _ARRAY: 12}
_MIN_PAIR_BYTES = 8 + 4 + 1
_MIN_TENSOR_BYTES = 8 + 4 + 4 + 8
# Metadata keys that are read, and the type that their values must have.
_METADATA_TYPES = {"general.architecture": _STRING, "general.alignment": _UINT32, "config": _STRING}


@dataclass(frozen=True)
class GgufFile:
    """Header of a GGUF file.

    Attributes:
        file: path of the file.
        architecture: value of `general.architecture`; empty if the file has none.
        config: JSON that some converters copy from a safetensors header; "{}" if the file has none.
        tensors: tensors by name; their shapes have the outermost axis first.
    """

    file: Path
    architecture: str
    config: str
    tensors: dict[str, StoredTensor]


class _Header:
    """Reads a header from front to back, and raises LtxError instead of reading or skipping beyond the file's end."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path = path
        self.size = os.fstat(file.fileno()).st_size
        self.position = 0
        self.items = 0  # number of texts and arrays that were skipped, which takes time for each
        self._file = file

    def refusal(self, problem: str, advice: str = "download it again") -> LtxError:
        return LtxError(f"{self.path} {problem}", advice)

    def require(self, count: int) -> None:
        """Raises LtxError unless the file has `count` more bytes, within the size limit of a header."""
        end = self.position + count
        if end > self.size:
            raise self.refusal(f"is truncated: {self.size} bytes of at least {end}")
        if end > _MAX_HEADER_BYTES:
            raise self.refusal(f"has a header of at least {end} bytes, over the limit of {_MAX_HEADER_BYTES}")

    def take(self, count: int) -> bytes:
        self.require(count)
        data = self._file.read(count)
        self.position += count
        if len(data) != count:
            raise self.refusal(f"became shorter while it was read, now {self.position - count + len(data)} bytes")
        return data

    def skip(self, count: int) -> None:
        self.require(count)
        self._file.seek(count, os.SEEK_CUR)
        self.position += count

    def integer(self, size: int) -> int:
        """Reads the next unsigned integer of 4 or 8 bytes."""
        return int.from_bytes(self.take(size), "little")

    def text(self, what: str) -> str:
        """Reads the next string, a length and that many bytes of UTF-8; `what` names it in error messages."""
        start, length = self.position, self.integer(8)
        self.require(length)
        if length > _MAX_STRING_BYTES:
            raise self.refusal(f"has {what} of {length} bytes at byte {start}, over the limit of {_MAX_STRING_BYTES}")
        try:
            return self.take(length).decode()
        except UnicodeDecodeError:
            raise self.refusal(f"has {what} that is not UTF-8 at byte {start}") from None


def open_gguf(path: Path) -> GgufFile:
    """Reads the header of a GGUF file of version 2 or 3, little-endian.

    Raises:
        LtxError: the file is missing, not a GGUF, truncated, of another version or byte order, has tensors of a type
            that is not in SIZES, or contradicts itself.
    """
    refuse_pointer(path)
    with explaining(f"read {path}"), path.open("rb") as file:
        header = _Header(path, file)
        _check_start(header)
        tensor_count, pair_count = header.integer(8), header.integer(8)
        header.require(tensor_count * _MIN_TENSOR_BYTES + pair_count * _MIN_PAIR_BYTES)
        for count, most, what in ((tensor_count, _MAX_TENSORS, "tensors"), (pair_count, _MAX_PAIRS, "metadata values")):
            if count > most:
                raise header.refusal(f"lists {count:,} {what}, more than the {most:,} that are read")
        architecture, config, alignment = _read_metadata(header, pair_count)
        tensors: dict[str, StoredTensor] = {}
        for _ in range(tensor_count):
            name, tensor = _read_tensor(header, alignment)
            if name in tensors:
                raise header.refusal(f"has two tensors named {name!r}")
            tensors[name] = tensor
    return GgufFile(path, architecture, config, _with_file_offsets(header, tensors, alignment))


def _check_start(header: _Header) -> None:
    magic, version = header.take(4), header.take(4)
    if magic != MAGIC:
        raise header.refusal(f"is not a GGUF file: it starts with {magic!r}", "give a file that ends in .gguf")
    if int.from_bytes(version, "big") in _VERSIONS:
        raise header.refusal("is a big-endian GGUF file", "give a little-endian one")
    number = int.from_bytes(version, "little")
    if number not in _VERSIONS:
        raise header.refusal(f"is of GGUF version {number}", "give a file of version 2 or 3")


def _read_metadata(header: _Header, count: int) -> tuple[str, str, int]:
    """Reads architecture, configuration and alignment from the metadata, and skips all other values."""
    metadata: dict[str, str | int] = {}
    for _ in range(count):
        key, kind = header.text("a key"), header.integer(4)
        # The format defines the `general.*` keys, but any program may write a `config`: one that is no text is skipped.
        if key not in _METADATA_TYPES or (key == "config" and kind != _STRING):
            _skip_values(header, kind, 1, 0)
            continue
        if key in metadata:
            raise header.refusal(f"has {key} twice")
        if kind != _METADATA_TYPES[key]:
            raise header.refusal(f"has {key} as a value of type {kind} instead of {_METADATA_TYPES[key]}")
        metadata[key] = header.text(f"the value of {key}") if kind == _STRING else header.integer(4)
    alignment = int(metadata.get("general.alignment", _DEFAULT_ALIGNMENT))
    if alignment.bit_count() != 1:
        raise header.refusal(f"has an alignment of {alignment}, which is not a power of two")
    return str(metadata.get("general.architecture", "")), str(metadata.get("config", "{}")), alignment


def _skip_values(header: _Header, kind: int, count: int, depth: int) -> None:
    """Skips `count` values of a type; raises LtxError before the first one if the file is too short for all of them."""
    if kind not in _MIN_VALUE_BYTES:
        raise header.refusal(f"has a value of the unknown type {kind} at byte {header.position}")
    if depth > _MAX_DEPTH:
        raise header.refusal(f"has arrays within arrays at byte {header.position}, deeper than {_MAX_DEPTH}")
    header.require(count * _MIN_VALUE_BYTES[kind])
    if kind in _SCALAR_BYTES:
        header.skip(count * _SCALAR_BYTES[kind])
        return
    header.items += count
    if header.items > _MAX_ITEMS:
        raise header.refusal(f"has more than {_MAX_ITEMS:,} texts in its metadata")
    for _ in range(count):
        if kind == _STRING:
            header.skip(header.integer(8))
        else:
            item_kind, length = header.integer(4), header.integer(8)
            _skip_values(header, item_kind, length, depth + 1)


def _read_tensor(header: _Header, alignment: int) -> tuple[str, StoredTensor]:
    """Reads the next tensor's name and place; its offset is relative to the start of the data, not known yet."""
    name, dimensions = header.text("a tensor's name"), header.integer(4)
    if dimensions > _MAX_DIMENSIONS:
        raise header.refusal(f"has a tensor {name!r} of {dimensions} dimensions, more than {_MAX_DIMENSIONS}")
    # The file stores the innermost axis first.
    shape = tuple(header.integer(8) for _ in range(dimensions))[::-1]
    kind, offset = header.integer(4), header.integer(8)
    dtype = TYPE_NAMES.get(kind, f"number {kind}")
    if dtype not in SIZES:
        advice = f"give a file whose tensors are {', '.join(SIZES)}"
        raise header.refusal(f"has a tensor {name!r} of type {dtype}", advice)
    elements, block_bytes = SIZES[dtype]
    columns = shape[-1] if shape else 1
    if 0 in shape:
        raise header.refusal(f"has a tensor {name!r} without elements, of shape {shape}")
    if columns % elements:
        raise header.refusal(f"has a {dtype} tensor {name!r} with rows of {columns}, not a multiple of {elements}")
    if offset % alignment:
        raise header.refusal(f"has a tensor {name!r} at offset {offset}, not a multiple of the alignment {alignment}")
    return name, StoredTensor(header.path, offset, math.prod(shape) // elements * block_bytes, dtype, shape)


def _with_file_offsets(header: _Header, tensors: dict[str, StoredTensor], alignment: int) -> dict[str, StoredTensor]:
    """Returns the tensors with offsets in the file: the data starts at the next multiple of the alignment.

    Raises:
        LtxError: tensors overlap, or the file is truncated.
    """
    start = -(-header.position // alignment) * alignment
    end, previous = 0, ""
    for name, tensor in sorted(tensors.items(), key=lambda item: item[1].offset):
        if tensor.offset < end:
            raise header.refusal(f"has overlapping tensors {previous!r} and {name!r}")
        end, previous = tensor.offset + tensor.length, name
    if tensors and start + end > header.size:
        raise header.refusal(f"is truncated: {header.size} bytes of {start + end}")
    return {
        name: StoredTensor(header.path, start + tensor.offset, tensor.length, tensor.dtype, tensor.shape)
        for name, tensor in tensors.items()
    }
