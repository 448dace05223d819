"""Checks the values of a manifest as they were read from JSON: every field has its kind, and numbers their range."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from typing import Any
from unicodedata import category

from ltx_runtime.errors import shown
from ltx_runtime.spec.components import COMPONENT_NAMES
from ltx_runtime.spec.presets import SAMPLERS, SHIFTINGS

Check = Callable[[Any, str], None]  # takes a value and its place in the manifest

_MOST_CHARACTERS, _MOST_ENTRIES = 1000, 10_000
_MOST_PATH_CHARACTERS = 32_767  # of the longest path on any system, which is Windows
_LARGEST = 1 << 62
PRECISIONS = ("fp32", "bf16", "fp16", "q8", "int8")


def check_values(data: Any) -> None:
    """Checks the values of a manifest; whether names are those of files is left to others.

    Args:
        data: the manifest as JSON has it; of fields that are unknown nothing is read.

    Raises:
        ValueError: a field is missing, or its value has another kind or is out of range; names the field.
    """
    _MANIFEST(data, "")
    for name, entry in data["components"].items():
        if entry["signature"]["name"] != name:
            raise ValueError(f"components.{name}.signature.name is {shown(entry['signature']['name'])}, not {name}")
        if unknown := sorted(entry["quantized"].keys() - entry["graphs"].keys()):
            raise ValueError(f"components.{name}.quantized has {unknown[0]}, of which there is no graph")


def _refusal(value: Any, place: str, kind: str) -> ValueError:
    return ValueError(f"{place or 'the manifest'} is {shown(value)}, not {kind}")


def _text(value: Any, place: str, most: int = _MOST_CHARACTERS) -> None:
    """Checks a text that may be part of the name of a file, which users write as they like: messages escape it."""
    if not isinstance(value, str) or not 0 < len(value) <= most or any(category(sign) == "Cc" for sign in value):
        raise _refusal(value, place, f"a text of up to {most} characters, none of them control characters")


def _path(value: Any, place: str) -> None:
    _text(value, place, _MOST_PATH_CHARACTERS)


def _flag(value: Any, place: str) -> None:
    if not isinstance(value, bool):
        raise _refusal(value, place, "true or false")


def _axis(value: Any, place: str) -> None:
    (_text if isinstance(value, str) else _whole)(value, place)


def _whole(value: Any, place: str) -> None:
    if type(value) is not int or not 0 <= value <= _LARGEST:
        raise _refusal(value, place, "a whole number from 0")


def _number(value: Any, place: str) -> None:
    if type(value) not in (int, float) or not -_LARGEST <= value <= _LARGEST or not math.isfinite(value):
        raise _refusal(value, place, "a number")


def _above_0(value: Any, place: str) -> None:
    _number(value, place)
    if value <= 0:
        raise _refusal(value, place, "a number above 0")


def _noise_level(value: Any, place: str) -> None:
    _number(value, place)
    if not 0 < value <= 1:
        raise _refusal(value, place, "a number above 0 and up to 1")


def _error(value: Any, place: str) -> None:
    _number(value, place)
    if value < 0:
        raise _refusal(value, place, "a number from 0")


def _one_of(choices: Collection[Any]) -> Check:
    def check(value: Any, place: str) -> None:
        if not isinstance(value, str | None) or value not in choices:
            raise _refusal(value, place, f"one of {', '.join(str(choice) for choice in choices)}")

    return check


def _or_null(check: Check) -> Check:
    return lambda value, place: None if value is None else check(value, place)


def _list(check: Check, least: int = 0, most: int = _MOST_ENTRIES) -> Check:
    """Returns a check of a list, whose entries `check` checks."""
    counted = f"a list of {least}" if least == most else f"a list of {least} to {most}"

    def check_list(value: Any, place: str) -> None:
        if not isinstance(value, list) or not least <= len(value) <= most:
            raise _refusal(value, place, counted)
        for number, entry in enumerate(value):
            check(entry, f"{place}[{number}]")

    return check_list


def _by_name(check: Check, names: Collection[str] = ()) -> Check:
    """Returns a check of an object with any names, or with some of `names`, whose values `check` checks."""

    def check_object(value: Any, place: str) -> None:
        if not isinstance(value, dict) or len(value) > _MOST_ENTRIES:
            raise _refusal(value, place, "an object")
        for name, entry in value.items():
            _text(name, f"a name in {place}")
            if names and name not in names:
                raise ValueError(f"{place} has {shown(name)}, which is none of {', '.join(names)}")
            check(entry, f"{place}.{name}")

    return check_object


def _fields(optional: Collection[str] = (), **checks: Check) -> Check:
    """Returns a check of an object with these fields, of which some may be missing."""

    def check_fields(value: Any, place: str) -> None:
        if not isinstance(value, dict):
            raise _refusal(value, place, "an object")
        for name, check in checks.items():
            inside = f"{place}.{name}".lstrip(".")
            if name in value:
                check(value[name], inside)
            elif name not in optional:
                raise ValueError(f"{inside} is missing")

    return check_fields


_PORT = _fields(name=_text, axes=_list(_axis, most=8), dtype=_one_of(("float32", "int64")))
_PORTS = _list(_PORT, 1, 100)
_COMPONENT = _fields(
    optional=("preview",),  # folders of earlier releases have none
    signature=_fields(name=_text, inputs=_PORTS, outputs=_PORTS),
    weights=_list(_text, 1),
    graphs=_by_name(_text, PRECISIONS),
    parity=_or_null(_fields(relative_l2=_list(_error), sizes=_list(_by_name(_whole)), weights=_text)),
    recorded=_or_null(_text),
    preview=_or_null(_fields(weights=_list(_list(_number), 3, 3), bias=_list(_number, 3, 3))),
    parameters=_whole,
    quantized=_by_name(_fields(weights=_list(_text, 1), error=_error), PRECISIONS),
)
_MANIFEST = _fields(
    version=_text,
    causal_positions=_flag,
    schedule=_fields(
        sampler=_one_of(SAMPLERS), shifting=_one_of(SHIFTINGS), target_shift_terminal=_or_null(_noise_level)
    ),
    rope=_fields(frequencies=_list(_above_0, 1), max_position=_list(_above_0, 3, 3)),
    tokenizer=_or_null(_text),
    components=_by_name(_COMPONENT, COMPONENT_NAMES),
    files=_by_name(_fields(size_bytes=_whole, checksum=_text)),
    linked=_by_name(_path),
    loras=_list(_text),
    allowed_sigmas=_list(_noise_level),
)
