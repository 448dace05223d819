"""Reads the body of a request: JSON, or a form with uploads, as OpenAI's clients send both."""

from __future__ import annotations

import asyncio
import json
import math
import re
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.requests import Request

from ltx_runtime.errors import shown
from ltx_serve.http.answers import MOST_SHOWN, RATE_LIMIT, RETRY, ApiError
from ltx_serve.http.fields import CONDITION, FIELDS, MOST_INPUTS, TEXT, Draft, draft_of, number_of, wrong

_MOST_JSON_BYTES = 32_000_000  # since a text is read whole; larger files are uploaded
_MOST_VALUES = 100_000
_MOST_FORM_FIELDS = 200
_SMALL_BYTES = 1_000_000
_MOST_LARGE = 8
_PLACE_S = 10.0
_KEY = re.compile(r"(\w+)(\[\])?(?:\[(\w+)\])?", re.ASCII)
_JSON, _FORM = "application/json", "multipart/form-data"


class Intake:
    """Reads bodies. Only a few large ones are read at a time: until it is checked, each takes memory or disk."""

    def __init__(self) -> None:
        self._places = asyncio.Semaphore(_MOST_LARGE)

    @asynccontextmanager
    async def draft_in(self, request: Request, first: int = 1) -> AsyncIterator[Draft]:
        """Yields what a request asks for; its uploads can be read until the end of the block.

        Args:
            request: the request, of which nothing was read.
            first: number of the first image or clip, for the names of their files.

        Raises:
            ApiError: the body cannot be read, a field of it is wrong, or too many others are being read.
        """
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind not in (_JSON, _FORM):
            problem = f"the body is {shown(kind)}" if kind else "the kind of the body is not said"
            raise ApiError(415, f"{problem} - send {_JSON} or {_FORM} as Content-Type", "unsupported_media_type")
        async with self._place_for(request):
            if kind == _JSON:
                yield await run_in_threadpool(_draft_of_json, await _json_in(request), first)
                return
            form = await _form_in(request)
            try:
                yield await run_in_threadpool(_draft_of_form, form.multi_items(), first)
            finally:
                await form.close()

    @asynccontextmanager
    async def _place_for(self, request: Request) -> AsyncIterator[None]:
        """Waits for a place among those whose large bodies are read; small ones need none, so they never wait."""
        length = request.headers.get("content-length", "")
        if length.isascii() and length.isdigit() and int(length) <= _SMALL_BYTES:
            yield
            return
        try:
            await asyncio.wait_for(self._places.acquire(), _PLACE_S)
        except asyncio.TimeoutError:
            message = "many large requests are being received - try again later"
            raise ApiError(429, message, "too_many_uploads", None, RATE_LIMIT, RETRY) from None
        try:
            yield
        finally:
            self._places.release()


async def _json_in(request: Request) -> bytearray:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > _MOST_JSON_BYTES:
            message = f"a body in JSON has at most {_MOST_JSON_BYTES / 1e6:g} MB - upload files as {_FORM}"
            raise ApiError(413, message, "body_too_large", headers={"Connection": "close"})
    return body


def _draft_of_json(body: bytearray, first: int) -> Draft:
    try:
        values = json_of(body.decode())
    except (ValueError, TypeError, RecursionError):
        raise ApiError(400, "the body is no valid JSON in UTF-8 - check its syntax", "invalid_body") from None
    if not isinstance(values, dict):
        raise ApiError(400, f"the body must be a JSON object; got {shown(values)}", "invalid_body")
    return draft_of(values, {}, first)


async def _form_in(request: Request) -> FormData:
    try:
        return await request.form(max_files=MOST_INPUTS, max_fields=_MOST_FORM_FIELDS, max_part_size=_MOST_JSON_BYTES)
    except (HTTPException, MultiPartException, LookupError, ValueError) as error:
        reason = getattr(error, "detail", None) or getattr(error, "message", None) or "it is damaged"
        raise ApiError(400, f"the form cannot be read: {reason}", "invalid_body") from None


def _draft_of_form(items: list[tuple[str, UploadFile | str]], first: int) -> Draft:
    uploads: dict[str, UploadFile] = {}
    for key, item in items:
        if isinstance(item, UploadFile) and _is_for_conditions(key):
            name = item.filename or ""
            if name in uploads:
                raise wrong("conditions", f"two uploads are named {shown(name)}", "give each a name of its own")
            uploads[name] = item
    return draft_of(_values_of(items), uploads, first)


def _is_for_conditions(key: str) -> bool:
    """Returns whether a field of a form holds an upload that `conditions` name."""
    return key.removesuffix("[]") == "conditions"


def _values_of(items: list[tuple[str, UploadFile | str]]) -> dict[str, Any]:
    """Returns the values of a form by field, with the lists and objects that names in brackets spell.

    Clients write `skip_blocks[]` for each item of a list, `input_reference[image_url]` for an item of an object, and
    `conditions[][frame]` for those of objects in a list.

    Raises:
        ApiError: a field is given in two ways, or is no value of its type.
    """
    single: dict[str, Any] = {}
    lists: dict[str, list[Any]] = {}
    objects: dict[str, dict[str, Any]] = {}
    columns: dict[str, dict[str, list[Any]]] = {}
    for key, item in items:
        match = _KEY.fullmatch(key)
        name, is_list, part = match.groups() if match else (key, None, None)
        if isinstance(item, UploadFile) and _is_for_conditions(key):
            continue
        value = item if isinstance(item, UploadFile) else value_of_text(name, item, part, in_list=bool(is_list))
        if is_list and part:
            columns.setdefault(name, {}).setdefault(part, []).append(value)
        elif is_list:
            lists.setdefault(name, []).append(value)
        elif name in single or part in objects.get(name, {}):
            raise wrong(name[:MOST_SHOWN], f"{shown(name)} is given twice", "give it once")
        elif part:
            objects.setdefault(name, {})[part] = value
        else:
            single[name] = value
    kinds = (single, lists, objects, {name: _transposed(name, lists) for name, lists in columns.items()})
    values: dict[str, Any] = {}
    for kind in kinds:
        for name, value in kind.items():
            if name in values:
                raise wrong(name[:MOST_SHOWN], f"{shown(name)} is given in two ways", "use one of them")
            values[name] = value
    return values


def _transposed(name: str, columns: Mapping[str, list[Any]]) -> list[dict[str, Any]]:
    """Returns objects from the values of each of their fields, which can be told apart only if none is left out."""
    counts = {len(values) for values in columns.values()}
    if len(counts) > 1:
        raise wrong(
            name[:MOST_SHOWN], f"{shown(name)} has objects with different fields", "send it as one text in JSON"
        )
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def value_of_text(name: str, text: str, part: str | None = None, *, in_list: bool = False) -> Any:
    """Returns the value of a text in a form; empty text is a field that was left out.

    Args:
        name: the field.
        text: its text.
        part: what it is of an object in the field; None if it is the field itself.
        in_list: whether it is one item of a list.

    Raises:
        ApiError: the text is no value of that type.
    """
    schema = FIELDS.get(name, TEXT) if part is None else CONDITION.get(part, TEXT)
    kind = schema.get("items", TEXT)["type"] if in_list and part is None else schema["type"]
    if kind == "string":
        return text or None
    try:
        return _READERS[kind](text.strip()) if text.strip() else None
    except (ValueError, TypeError, KeyError, RecursionError):
        raise wrong(name, f"{part or name} must be {_LABELS[kind]}; got {shown(text)}", "send another value") from None


def json_of(text: str) -> Any:
    """Returns a value in JSON.

    Raises:
        ApiError: it holds so many values that they would take much time and memory.
        ValueError, RecursionError: it is none, or a number in it is not finite.
    """
    if sum(map(text.count, ",[{")) > _MOST_VALUES:
        raise wrong(None, f"the JSON has more than {_MOST_VALUES} values", "send fewer")
    value = json.loads(text, parse_constant=number_of)
    if not _is_finite(value):
        raise ValueError
    return value


def _is_finite(value: Any) -> bool:
    """Returns whether all numbers in a value are finite; JSON has 1e999, which is none."""
    if isinstance(value, dict):
        return all(map(_is_finite, value.values()))
    if isinstance(value, list):
        return all(map(_is_finite, value))
    return not isinstance(value, float) or math.isfinite(value)


_READERS: dict[str, Callable[[str], Any]] = {
    "integer": int,
    "number": number_of,
    "boolean": {"true": True, "false": False, "True": True, "False": False, "1": True, "0": False}.__getitem__,
    "array": json_of,
}
_LABELS = {"integer": "a whole number", "number": "a number", "boolean": "true or false", "array": "a list in JSON"}
