"""Requests as plain data, as JSON holds them, and back: in rows of a batch, on a server, and in records.

{"prompt": "A red fox", "seed": 7, "image": "first.png", "conditions": [{"media": "last.png", "frame": 96}]}
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass, replace
from difflib import get_close_matches
from pathlib import Path, PurePath
from typing import Any, TypeVar

import numpy as np

from ltx_runtime.declared import declared, path_of
from ltx_runtime.errors import LtxError, shown
from ltx_runtime.media.pictures import Source, is_url
from ltx_runtime.planning.options import RunOptions
from ltx_runtime.planning.preset import Preset
from ltx_runtime.planning.request import Condition, Request
from ltx_runtime.spec.presets import Guidance, Pass, Schedule
from ltx_runtime.weights.lora import LoraFile

IMAGE = "image"  # short for a condition at frame 0
_Kind = TypeVar("_Kind")
# What files of prompts for other programs call some fields.
_MEANT = {
    "text": "prompt",
    "caption": "prompt",
    "description": "prompt",
    "negative": "negative_prompt",
    "frame_rate": "fps",
    "num_inference_steps": "steps",
    "file": "output",
    "filename": "output",
    "file_name": "output",
}
# What plain data can hold, by the name that messages use.
_LABELS: dict[type, str] = {
    Request: "a request",
    RunOptions: "a run",
    Condition: "a condition",
    LoraFile: "a LoRA",
    Preset: "a preset",
    Pass: "a pass",
    Guidance: "a guidance",
    Schedule: "a schedule",
}
_KINDS = {kind.__name__: kind for kind in _LABELS}
_PATHS = ("Path", "Source")


def request_from_fields(fields: Mapping[str, Any], folder: Path) -> Request:
    """Returns the request that plain data describes.

    Args:
        fields: fields of Request by name, as JSON has them: lists for tuples, and mappings of fields for conditions,
            LoRAs and a preset. `image` is short for a condition at frame 0; None means that a field is left out.
        folder: where the paths of images, clips and LoRAs begin that are not absolute; `~` is the home folder.

    Raises:
        LtxError: a field is unknown, is missing, or has a value of another type; names the field.
    """
    given = {**fields}
    image = given.pop(IMAGE, None)
    request = from_fields(Request, given, folder)
    if image is None:
        return request
    return replace(request, conditions=(Condition(_path(image, IMAGE, folder)), *request.conditions))


def fields_of_request(request: Request, folder: Path) -> dict[str, Any]:
    """Returns the fields of a request that differ from the defaults as plain data, for `request_from_fields`.

    Args:
        request: the request.
        folder: the folder to which paths are made relative.

    Raises:
        LtxError: the request has pictures in memory.
    """

    def named(source: Source) -> str:
        if not isinstance(source, (str, Path)):
            raise LtxError("pictures in memory are no plain data", "save them to files first")
        kept = is_url(str(source)) or (str(source).startswith("~") and not Path(source).exists())
        return str(source) if kept else relative_name(Path(source), folder)

    return {name: plain(value, named) for name, value in differing(declared(request), Request()).items()}


def from_fields(kind: type[_Kind], values: Mapping[str, Any], folder: Path) -> _Kind:
    """Returns an instance of a dataclass, and of those in it, from plain data; see `request_from_fields`."""
    instance: _Kind = declared(_built(kind, values, folder))
    return instance


def plain(value: Any, named: Callable[[Source], Any]) -> Any:
    """Returns a value as plain data for JSON, of dataclasses the fields that differ from their defaults.

    Args:
        value: a field of a request or of the options of a run.
        named: returns plain data for a path or for pictures in memory.
    """
    if is_dataclass(value) and not isinstance(value, type):
        return plain(_set_fields(value), named)
    if isinstance(value, Mapping):
        return {name: plain(item, named) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item, named) for item in value]
    if isinstance(value, (str, int, float, bool, type(None))):
        return value
    return named(value)


def differing(instance: Any, usual: Any) -> dict[str, Any]:
    """Returns the fields of a dataclass that differ from those of another, by name."""
    return {
        one.name: value
        for one in fields(usual)
        if not _same(value := getattr(instance, one.name), getattr(usual, one.name))
    }


def relative_name(path: Path, folder: Path) -> str:
    """Returns the path of a file relative to a folder, with slashes; the whole path if it is on another drive."""
    path = Path(os.path.realpath(path.parent), path.name)  # `link/..` is not the folder of the link
    try:
        return PurePath(os.path.relpath(path, os.path.realpath(folder))).as_posix()
    except ValueError:
        return path.as_posix()


def nearest(name: str, known: Sequence[str]) -> str:
    """Returns the known name that resembles a mistyped one, or all of them as a choice."""
    return _resembling(name, known) or f"one of {', '.join(known)}"


def is_near(name: str, known: Sequence[str]) -> bool:
    """Returns whether a known name resembles a mistyped one, or is what other programs call so."""
    return _resembling(name, known) is not None


def _resembling(name: str, known: Sequence[str]) -> str | None:
    meant = _MEANT.get(name.lower())
    if meant in known:
        return meant
    return next(iter(get_close_matches(name, known, n=1)), None)


def _set_fields(value: Any) -> dict[str, Any]:
    """Returns the fields of a dataclass that differ from their defaults, by name."""
    given = {one.name: getattr(value, one.name) for one in fields(value)}
    return {one.name: given[one.name] for one in fields(value) if not _same(given[one.name], one.default)}


def _same(one: Any, other: Any) -> bool:
    return type(one) is type(other) and not isinstance(one, np.ndarray) and bool(one == other)


def _built(kind: Any, values: Any, folder: Path) -> Any:
    """Returns an instance of a dataclass from plain data, with the dataclasses and paths in it; types are not checked.

    Raises:
        LtxError: the data are no mapping, or have an unknown field or lack one.
    """
    label = _LABELS[kind]
    if not isinstance(values, Mapping):
        raise LtxError(f"{label} must be a mapping of its fields; got {shown(values)}", 'give {"name": value, ...}')
    declared_as = {one.name: str(one.type) for one in fields(kind)}
    for name in values:
        if name not in declared_as:
            known = [*declared_as, IMAGE] if kind is Request else [*declared_as]
            raise LtxError(f"{label} has no field {shown(name)}", f"use {nearest(str(name), known)}")
    set_fields = {name: value for name, value in values.items() if value is not None}
    given = {name: _value(name, value, declared_as[name], folder) for name, value in set_fields.items()}
    for one in fields(kind):
        if one.default is MISSING and one.default_factory is MISSING and one.name not in given:
            raise LtxError(f"{label} needs the field {one.name}", "add it")
    return kind(**given)


def _value(name: str, value: Any, kind: str, folder: Path) -> Any:
    item = kind.removesuffix(" | None").removeprefix("tuple[").removesuffix(", ...]")
    if item in _PATHS:
        return _path(value, name, folder)
    if item not in _KINDS:
        return value
    if isinstance(value, list):
        return tuple(_built(_KINDS[item], one, folder) for one in value)
    return _built(_KINDS[item], value, folder)


def _path(value: Any, name: str, folder: Path) -> Path:
    """Returns the path of a file that plain data name, as text or, as records do, as {"path": text}."""
    if isinstance(value, Mapping) and value.keys() == {"path"}:
        if str(value["path"]).startswith("<"):
            raise LtxError("it was made from pictures in memory, which no file holds")
        return folder / str(value["path"])
    path = path_of(value, name)
    elsewhere = is_url(str(value)) or str(value).startswith("~")
    return path if elsewhere and not (folder / path).exists() else folder / path
