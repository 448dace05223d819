"""Cells of CSV files, which are text, become the values that fields of a request have in JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import fields
from typing import Any

from ltx_runtime.errors import LtxError
from ltx_runtime.planning.request import Request, parse_condition
from ltx_runtime.weights.lora import parse_lora

_FLAGS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
_TYPES = {one.name: str(one.type).removesuffix(" | None") for one in fields(Request)}
_JSON = ("[", "{")


def value_of(name: str, cell: str) -> Any:
    """Returns the value of a field from a cell; text that is no value stays text, which the request then refuses.

    Args:
        name: a field of Request, or another column, whose cells stay text.
        cell: its text, which is not blank.

    Raises:
        LtxError: a condition, a LoRA or JSON cannot be read.
    """
    kind = _TYPES.get(name, "str")
    if kind in ("str", "Source"):
        return cell
    cell = cell.strip()
    if cell.startswith(_JSON):
        try:
            return json.loads(cell)
        except (ValueError, RecursionError):
            raise LtxError(f"{name} is not JSON: {cell!r}", "correct it") from None
    return _READERS[kind](cell)


def _number(cell: str) -> int | float | str:
    for number in (int, float):
        try:
            return number(cell)
        except ValueError:
            continue
    return cell


def _numbers(cell: str) -> list[int | float | str]:
    return [_number(one) for one in re.split(r"[,;\s]+", cell)]


def _flag(cell: str) -> bool | str:
    return _FLAGS.get(cell.lower(), cell)


def _conditions(cell: str) -> list[dict[str, Any]]:
    """Returns the conditions that a cell has as FILE@FRAME[:STRENGTH], separated by semicolons."""
    parsed = [parse_condition(one.strip()) for one in cell.split(";")]
    return [{"media": str(one.media), "frame": one.frame, "strength": one.strength} for one in parsed]


def _loras(cell: str) -> list[dict[str, Any]]:
    """Returns the LoRAs that a cell has as FILE[:SCALE], separated by semicolons."""
    parsed = [parse_lora(one.strip()) for one in cell.split(";")]
    return [{"file": str(one.file), "scale": one.scale} for one in parsed]


_READERS: dict[str, Callable[[str], Any]] = {
    "int": _number,
    "float": _number,
    "bool": _flag,
    "tuple[int, ...]": _numbers,
    "tuple[float, ...]": _numbers,
    "tuple[Condition, ...]": _conditions,
    "tuple[LoraFile, ...]": _loras,
    "Preset": str,
}
