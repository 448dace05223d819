"""Reads the body of a request: JSON, or a form with uploads, as OpenAI's clients send both."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.requests import Request

from ltx_serve.http.answers import ApiError
from ltx_serve.http.fields import MOST_INPUTS, Asked, asked_of, json_of, shown, value_of_text, wrong

_MOST_JSON_BYTES = 32_000_000  # since a text is read whole; larger files are uploaded
_MOST_FORM_FIELDS = 200
_KEY = re.compile(r"(\w+)(\[\])?(?:\[(\w+)\])?", re.ASCII)
_JSON, _FORM = "application/json", "multipart/form-data"


@asynccontextmanager
async def asked_in(request: Request, first: int = 1) -> AsyncIterator[Asked]:
    """Yields what a request asks for; its uploads can be read until the end of the block.

    Args:
        request: the request, of which nothing was read.
        first: number of the first image or clip, for the names of their files.

    Raises:
        ApiError: the body cannot be read, or a field of it is wrong.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == _JSON:
        yield asked_of(await _json_in(request), {}, first)
        return
    if kind != _FORM:
        problem = f"the body is {shown(kind)}" if kind else "the kind of the body is not said"
        raise ApiError(415, f"{problem} - send {_JSON} or {_FORM} as Content-Type", "unsupported_media_type")
    try:
        form = await request.form(max_files=MOST_INPUTS, max_fields=_MOST_FORM_FIELDS, max_part_size=_MOST_JSON_BYTES)
    except (HTTPException, MultiPartException, LookupError, ValueError) as error:
        reason = getattr(error, "detail", None) or getattr(error, "message", None) or "it is damaged"
        raise ApiError(400, f"the form cannot be read: {reason}", "invalid_body") from None
    try:
        items = form.multi_items()
        uploads = {
            item.filename: item
            for name, item in items
            if isinstance(item, UploadFile) and item.filename and name.removesuffix("[]") == "conditions"
        }
        yield asked_of(_values_of(items), uploads, first)
    finally:
        await form.close()


async def _json_in(request: Request) -> dict[str, Any]:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > _MOST_JSON_BYTES:
            message = f"a body in JSON has at most {_MOST_JSON_BYTES} bytes - upload files as {_FORM}"
            raise ApiError(413, message, "body_too_large", headers={"Connection": "close"})
    try:
        values = json_of(body.decode())
    except (ValueError, TypeError, RecursionError):
        raise ApiError(400, "the body is no valid JSON in UTF-8 - check its syntax", "invalid_body") from None
    if not isinstance(values, dict):
        raise ApiError(400, f"the body must be a JSON object; got {shown(values)}", "invalid_body")
    return values


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
        if isinstance(item, UploadFile) and name == "conditions" and part is None:
            continue  # an upload that `conditions` names
        value = item if isinstance(item, UploadFile) else value_of_text(name, item, part, in_list=bool(is_list))
        if is_list and part:
            columns.setdefault(name, {}).setdefault(part, []).append(value)
        elif is_list:
            lists.setdefault(name, []).append(value)
        elif name in single or part in objects.get(name, {}):
            raise wrong(name[:60], f"{shown(name)} is given twice", "give it once")
        elif part:
            objects.setdefault(name, {})[part] = value
        else:
            single[name] = value
    kinds = (single, lists, objects, {name: _transposed(name, lists) for name, lists in columns.items()})
    values: dict[str, Any] = {}
    for kind in kinds:
        for name, value in kind.items():
            if name in values:
                raise wrong(name[:60], f"{shown(name)} is given in two ways", "use one of them")
            values[name] = value
    return values


def _transposed(name: str, columns: Mapping[str, list[Any]]) -> list[dict[str, Any]]:
    """Returns objects from the values of each of their fields, which can be told apart only if none is left out."""
    counts = {len(values) for values in columns.values()}
    if len(counts) > 1:
        raise wrong(name[:60], f"{shown(name)} has objects with different fields", "send it as one text in JSON")
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
