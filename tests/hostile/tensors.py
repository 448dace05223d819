"""Files of tensors that claim more than a model has: small files, or such as take no place on the disk."""

import struct
from collections.abc import Callable
from functools import cache


def safetensors(header: bytes) -> bytes:
    """Returns a file with a header and no data."""
    return struct.pack("<Q", len(header)) + header


@cache
def many_tensors(count: int) -> bytes:
    """Returns a file that lists empty tensors."""
    entry = b'"%d":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}'
    return safetensors(b"{" + b",".join(entry % number for number in range(count)) + b"}")


HEADERS: dict[str, Callable[[], bytes]] = {
    "900,000 tensors": lambda: many_tensors(900_000),
    "60,000 tensors": lambda: many_tensors(60_000),
    "objects in 8 MB": lambda: safetensors(b'{"a":[' + b"{}," * ((8 << 20) // 3 - 10) + b"0]}"),
    "digits in 8 MB": lambda: safetensors(b'{"a":' + b"9" * ((8 << 20) - 10) + b"}"),
}


def gguf(tensors: int, pairs: int, body: bytes = b"") -> bytes:
    """Returns a GGUF that claims numbers of tensors and of metadata values."""
    return b"GGUF" + struct.pack("<IQQ", 3, tensors, pairs) + body


def array(kind: int, count: int, items: bytes) -> bytes:
    """Returns a metadata value that is an array."""
    return struct.pack("<Q", 1) + b"a" + struct.pack("<IIQ", 9, kind, count) + items


def tensor(number: int) -> bytes:
    """Returns the entry of a tensor without data."""
    name = b"%07d" % number
    return struct.pack("<Q", len(name)) + name + struct.pack("<IQIQ", 1, 32, 0, 128 * number)


GGUF: dict[str, Callable[[], bytes]] = {
    "2^60 tensors": lambda: gguf(1 << 60, 0),
    "2^60 values": lambda: gguf(0, 1 << 60),
    "600,000 tensors": lambda: gguf(600_000, 0, b"".join(map(tensor, range(600_000)))),
    "600,000 values": lambda: gguf(0, 600_000, (struct.pack("<Q", 1) + b"a" + struct.pack("<IB", 0, 0)) * 600_000),
    "3,000,000 texts": lambda: gguf(0, 1, array(8, 3_000_000, bytes(8 * 3_000_000))),
    "2,000,000 arrays": lambda: gguf(0, 1, array(9, 2_000_000, struct.pack("<IQ", 0, 0) * 2_000_000)),
    "a text of 2^60 bytes": lambda: gguf(0, 1, struct.pack("<Q", 1 << 60)),
    "an array of 2^60 numbers": lambda: gguf(0, 1, array(0, 1 << 60, b"")),
}
