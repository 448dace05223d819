"""Reads single fields of a header; an invalid value raises an LtxError that says what is wrong with it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar, cast

from ltx_runtime.errors import LtxError

Word = TypeVar("Word", bound=str)

LARGEST = 1 << 16  # largest size accepted in a header; the widest layer of a release has 24,576


def required(part: str, config: Mapping[str, Any], field: str) -> int:
    """Returns a required size. Raises LtxError unless it is an integer from 1 to LARGEST."""
    value = config.get(field)
    if type(value) is not int or not 1 <= value <= LARGEST:
        raise LtxError(
            f"the checkpoint's {part}.{field} is {value!r}, not an integer from 1 to {LARGEST}", "use an official file"
        )
    return value


def positive(field: str, value: Any) -> float:
    """Returns a number of the transformer's as a float. Raises LtxError unless it is positive and below LARGEST**2."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < LARGEST**2:
        raise LtxError(
            f"the checkpoint's transformer.{field} is {value!r}, not a positive number below {LARGEST**2}",
            "use an official file",
        )
    return float(value)


def flag(part: str, config: Mapping[str, Any], field: str, default: bool) -> bool:
    """Returns a field that is true or false, or the default if it is null or missing.

    Raises:
        LtxError: the value is something else, such as the string "false".
    """
    value = config.get(field)
    if value is not None and not isinstance(value, bool):
        raise LtxError(f"the checkpoint's {part}.{field} is {value!r}, not true or false", "use an official file")
    return default if value is None else value


def one_of(part: str, config: Mapping[str, Any], field: str, known: tuple[Word, ...]) -> Word:
    """Returns a field with one of the known words, or the first if it is missing. Raises LtxError for other values."""
    value = config.get(field, known[0])
    if value not in known:
        words = ", ".join(known)
        raise LtxError(f"the checkpoint's {part}.{field} is {value!r}, not one of {words}", "use an official file")
    return cast(Word, value)


def allowed_sigmas(config: Mapping[str, Any], default: tuple[float, ...]) -> tuple[float, ...]:
    """Returns the sigmas that a distilled transformer was trained on, or the default if the header has none.

    Raises:
        LtxError: the field is not a list of numbers above 0 and at most 1.
    """
    field = "allowed_inference_steps"
    values = config.get(field)
    if values is None:
        return default
    sigmas = values if isinstance(values, list) else []
    if not sigmas or not all(type(sigma) in (int, float) and 0 < sigma <= 1 for sigma in sigmas):
        raise LtxError(
            f"the checkpoint's {field} is {values!r}, not a list of numbers above 0 and at most 1",
            "use an official file",
        )
    return tuple(float(sigma) for sigma in sigmas)


def block_count(block: str, field: str, value: Any) -> int:
    """Returns a count in one of the VAE's blocks. Raises LtxError unless it is an integer from 1 to LARGEST."""
    if type(value) is not int or not 1 <= value <= LARGEST:
        raise LtxError(
            f"the checkpoint's VAE block {block} has {field} {value!r}, not an integer from 1 to {LARGEST}",
            "use an official file",
        )
    return value


def refuse_others(part: str, config: Mapping[str, Any], assumed: Mapping[str, Any]) -> None:
    """Raises LtxError if a field is present with another value than the implemented one."""
    for field, value in assumed.items():
        if config.get(field, value) != value:
            raise LtxError(
                f"the checkpoint's {part}.{field} is {config[field]!r}, but only {value!r} is supported",
                "use an official file",
            )
