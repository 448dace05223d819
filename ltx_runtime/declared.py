"""Holds values that users give from Python against the types that fields declare, before anything runs.

Numbers of numpy become Python's, whole floats such as 64.0 integers, lists and arrays tuples; anything else is refused.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from ltx_runtime.errors import LtxError, shown

_Declared = TypeVar("_Declared")
_OPTIONAL, _TUPLE, _ITEMS = " | None", "tuple[", ", ...]"


def declared(instance: _Declared) -> _Declared:
    """Returns a dataclass whose values, and those of dataclasses in it, have the types that its fields declare.

    Raises:
        LtxError: a value has another type; names the field.
    """
    assert is_dataclass(instance) and not isinstance(instance, type)
    values = {
        field.name: _value(getattr(instance, field.name), str(field.type), field.name) for field in fields(instance)
    }
    return replace(instance, **values)


def path_of(value: Any, name: str) -> Path:
    """Returns a path that was given as such or as text. Raises LtxError if it is anything else, or cannot be a path."""
    if not isinstance(value, (str, os.PathLike)):
        raise _refusal(value, name, "a path")
    path = Path(value)
    if "\0" in str(path):
        raise LtxError(f"{name} has a NUL character, which no path can have", "remove it")
    return path


def number_of(value: Any, name: str) -> float:
    """Returns a number that was given as Python's or numpy's. Raises LtxError if it is anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise _refusal(value, name, "a number")
    return float(value)


def _value(value: Any, kind: str, name: str) -> Any:
    if kind.endswith(_OPTIONAL):
        return None if value is None else _value(value, kind.removesuffix(_OPTIONAL), name)
    if kind.startswith(_TUPLE):
        if isinstance(value, (str, bytes)) or not isinstance(value, Iterable) or getattr(value, "ndim", 1) != 1:
            raise _refusal(value, name, "a list")
        return tuple(_value(item, kind.removeprefix(_TUPLE).removesuffix(_ITEMS), name) for item in value)
    if kind in _KINDS:
        return _KINDS[kind](value, name)
    bases = [base.__name__ for base in type(value).mro()]
    if not is_dataclass(value) or kind not in bases:
        raise _refusal(value, name, f"a {kind}")
    return declared(value)


def _whole(value: Any, name: str) -> int:
    if isinstance(value, (float, np.floating)) and float(value).is_integer():
        return int(value)
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise _refusal(value, name, "a whole number")
    return int(value)


def _flag(value: Any, name: str) -> bool:
    if not isinstance(value, (bool, np.bool_)):
        raise _refusal(value, name, "True or False")
    return bool(value)


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise _refusal(value, name, "text")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise LtxError(f"{name} is not valid text: {value!r}", "remove its surrogate characters") from None
    return value


def _source(value: Any, name: str) -> Any:
    """Pictures: a path, an array, or a PIL image, which is known by its methods as PIL may not be loaded."""
    if isinstance(value, (str, os.PathLike)):
        return path_of(value, name)
    if not isinstance(value, np.ndarray) and not hasattr(value, "convert"):
        raise _refusal(value, name, "a path, a PIL image or an array")
    return value


def _refusal(value: Any, name: str, kind: str) -> LtxError:
    return LtxError(f"{name} must be {kind}; got {shown(value)} of type {type(value).__name__}", f"give {kind}")


_KINDS: dict[str, Callable[[Any, str], Any]] = {
    "int": _whole,
    "float": number_of,
    "bool": _flag,
    "str": _text,
    "Path": path_of,
    "Source": _source,
}
