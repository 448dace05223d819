"""Reads protobuf messages of untrusted files, in which a field that no export writes is an error.

A field is named by its key, which holds its number and its type: a library passes over a field of another type than it
expects, and so must not see one. Encoding: https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Set as AbstractSet

# Key and content of a field: a number and None, or where the bytes of anything longer begin and end.
Field = tuple[int, int, int | None]
Message = dict[int, list[Field]]  # the fields of a message by key

VARINT, EIGHT_BYTES, LENGTH, FOUR_BYTES = 0, 1, 2, 5  # types on the wire
_COUNTED = (LENGTH, VARINT)  # those that begin with a number
_FIXED_BYTES = {EIGHT_BYTES: 8, FOUR_BYTES: 4}
_LARGEST, _LONGEST_BYTES = 1 << 64, 10


def key_of(number: int, wire_type: int = LENGTH) -> int:
    """Returns the key of a field with this number, of texts and messages unless another type is named."""
    return number << 3 | wire_type


def fields(data: bytes, start: int, end: int) -> Iterator[Field]:
    """Yields the fields of the message that lies from `start` to `end`, in their order.

    Raises:
        ValueError: the message ends within a field, or has a field of a type that is no longer written.
    """
    position = start
    while position < end:
        key = data[position]
        position += 1
        if key > 127:
            key, position = _varint(data, position - 1, end)
        wire_type = key & 7
        if wire_type in _COUNTED:
            if position >= end:
                raise ValueError("it ends within a field")
            value = data[position]
            position += 1
            if value > 127:
                value, position = _varint(data, position - 1, end)
            if wire_type == VARINT:
                yield key, value, None
                continue
        elif wire_type in _FIXED_BYTES:
            value = _FIXED_BYTES[wire_type]
        else:
            raise ValueError(f"it has a field of type {wire_type}")
        if value > end - position:
            raise ValueError("it ends within a field")
        yield key, position, position + value
        position += value


def message(
    data: bytes, start: int, end: int, once: AbstractSet[int], often: AbstractSet[int] = frozenset()
) -> Message:
    """Returns the fields of a message by key.

    Args:
        data: the file.
        start, end: where the message lies.
        once: keys of the fields that it may have once; libraries differ in what they make of a second one.
        often: keys of the fields that it may have any number of times.

    Raises:
        ValueError: the message is damaged, has another field, or one of `once` twice.
    """
    found: Message = {}
    for field in fields(data, start, end):
        key = field[0]
        if key in found:
            if key not in often:
                raise ValueError(f"it has field {key >> 3} twice where one is expected")
            found[key].append(field)
        elif key in once or key in often:
            found[key] = [field]
        else:
            raise ValueError(f"it has a field {key >> 3} that no export writes")
    return found


def number_in(found: Message, key: int, default: int = 0) -> int:
    """Returns the number in a field that a message has once; the default if it lacks the field."""
    return found[key][0][1] if key in found else default


def text_in(data: bytes, found: Message, key: int) -> str:
    """Returns the text in a field that a message has once, empty if it lacks the field.

    Raises:
        ValueError: the text is not UTF-8.
    """
    return text_of(data, found[key][0]) if key in found else ""


def text_of(data: bytes, field: Field) -> str:
    """Returns the text in a field. Raises ValueError if it is not UTF-8."""
    return data[field[1] : field[2]].decode()


def packed_in(data: bytes, field: Field) -> list[int]:
    """Returns all numbers that a field packs one behind another."""
    _, position, end = field
    assert end is not None
    numbers = []
    while position < end:
        number, position = _varint(data, position, end)
        numbers.append(number)
    return numbers


def _varint(data: bytes, position: int, end: int) -> tuple[int, int]:
    """Returns a number that is stored in groups of seven bits, the lowest first, and the position behind it."""
    value = 0
    for count in range(_LONGEST_BYTES):
        if position >= end:
            raise ValueError("it ends within a number")
        byte = data[position]
        position += 1
        value |= (byte & 127) << 7 * count
        if byte < 128 and value < _LARGEST:
            return value, position
    raise ValueError("it has a number of more than 64 bits")
