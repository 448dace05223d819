"""Reads files of prompts row by row: text with a prompt a line, JSON lines, or CSV; all of them in UTF-8.

The form follows from the suffix; standard input, pipes and files of other names are recognized by their first line.
"""

from __future__ import annotations

import codecs
import csv
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from itertools import chain
from pathlib import Path
from typing import Any, TextIO

from ltx_runtime.batch.cells import value_of
from ltx_runtime.errors import LtxError, explaining, shown
from ltx_runtime.outputs.plain import IMAGE, is_near, nearest
from ltx_runtime.planning.request import Request

STANDARD_INPUT = Path("-")
OUTPUT = "output"
COLUMNS = (*(one.name for one in fields(Request)), IMAGE, OUTPUT)
_SPREADSHEETS = (".xlsx", ".xls", ".ods", ".numbers")
_DELIMITERS = (",", ";", "\t")
_COMMENT = "#"
_LONGEST_LINE = 1_000_000  # characters; /dev/zero has no second line
# How files in UTF-16 begin, when their bytes are read as UTF-8.
_UTF16 = tuple(mark.decode("utf-8", "surrogateescape") for mark in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
_SAVE_AS_UTF8 = "save it as text in UTF-8"


@dataclass(frozen=True)
class Row:
    """A row of a file of prompts.

    Attributes:
        line: the line of the file in which it begins, from 1.
        fields: fields of Request by name, as JSON has them.
        output: the name of its video; None for one that is made from the prompt.
        problem: why the row cannot be read; empty if it can.
    """

    line: int
    fields: dict[str, Any] = field(default_factory=dict)
    output: str | None = None
    problem: str = ""


def read_rows(path: Path, note: Callable[[str], None]) -> Iterator[Row]:
    """Yields the rows of a file of prompts, one after another; blank lines are none.

    Args:
        path: the file; STANDARD_INPUT for standard input.
        note: is called with what the user should know: how many lines are comments, or that prompts look like fields.

    Raises:
        LtxError: the file cannot be read, is not in UTF-8, or has a column that no request has.
    """
    name = name_of(path)
    if path.suffix.lower() in _SPREADSHEETS:
        raise LtxError(f"{name} is a spreadsheet", "save it as CSV in UTF-8")
    with _opened(path) as file:
        lines = _lines(file, name)
        head = []
        for number, line in lines:  # the first line that is not blank decides the form
            head.append((number, line))
            if line.strip():
                break
        seems = _form_of(head[-1][1] if head else "")
        form = _FORMS.get(path.suffix.lower()) or seems
        if form is _text_rows is not seems:
            kind, suffix = ("CSV", ".csv") if seems is _csv_rows else ("JSON lines", ".jsonl")
            note(f"{name} begins like {kind}, but every line of it is taken for a prompt; for fields, call it {suffix}")
        if path.suffix.lower() == ".json":
            raise LtxError(f"{name} is JSON as a whole", "write one object a line, in a file that ends in .jsonl")
        yield from form(chain(head, lines), name, note)


def name_of(path: Path) -> str:
    """Returns the name of a file of prompts in messages."""
    return "standard input" if path == STANDARD_INPUT else str(path)


@contextmanager
def _opened(path: Path) -> Iterator[TextIO]:
    """Opens a file, or standard input, as UTF-8 whose errors remain visible; a byte order mark is left out."""
    file = sys.stdin.fileno() if path == STANDARD_INPUT else path
    with explaining(f"read {path}"):
        kept = file == path
        text = open(file, encoding="utf-8-sig", errors="surrogateescape", newline="", closefd=kept)  # noqa: SIM115
    with text:
        yield text


def _lines(text: TextIO, name: str) -> Iterator[tuple[int, str]]:
    """Yields numbers and lines with their ends, as the csv library wants them."""
    number = 0
    while line := text.readline(_LONGEST_LINE):
        number += 1
        if line.startswith(_UTF16):
            raise LtxError(f"{name} is in UTF-16", _SAVE_AS_UTF8)
        if "\0" in line:
            raise LtxError(f"line {number} of {name} has a NUL character, which no text has", "give a text file")
        if len(line) == _LONGEST_LINE:
            raise LtxError(f"line {number} of {name} is longer than {_LONGEST_LINE} characters", "give a text file")
        try:
            line.encode()
        except UnicodeEncodeError:
            raise LtxError(f"line {number} of {name} is not in UTF-8", _SAVE_AS_UTF8) from None
        yield number, line


Lines = Iterable[tuple[int, str]]
Form = Callable[[Lines, str, Callable[[str], None]], Iterator[Row]]


def _text_rows(lines: Lines, name: str, note: Callable[[str], None]) -> Iterator[Row]:
    comments = 0
    for number, line in lines:
        prompt = line.strip()
        if prompt.startswith(_COMMENT):
            comments += 1
        elif prompt:
            yield Row(number, {"prompt": prompt})
    if comments:
        begin = "line begins" if comments == 1 else "lines begin"
        note(f"{comments} {begin} with {_COMMENT} in {name}, as comments do")


def _json_rows(lines: Lines, name: str, note: Callable[[str], None]) -> Iterator[Row]:
    for number, line in lines:
        if line.strip():
            try:
                fields_of_row = json.loads(line, object_pairs_hook=_once, parse_constant=_no_constant)
            except RecursionError:
                yield Row(number, problem="it is nested too deeply - write one flat object")
            except ValueError as error:
                column = f" (at character {error.colno})" if isinstance(error, json.JSONDecodeError) else ""
                reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
                yield Row(number, problem=f"it is not JSON: {reason}{column} - write one object a line")
            else:
                yield _row_of(number, fields_of_row)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Returns the object of JSON pairs. Raises ValueError if it says a name twice."""
    row = dict(pairs)
    if len(row) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"it has {next(name for name in names if names.count(name) > 1)!r} twice")
    return row


def _name_of(written: str) -> str:
    """Returns the name of a field that a column or a key says, which may be spelled like its option."""
    return written.replace("-", "_")


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number")


def _row_of(number: int, fields_of_row: Any) -> Row:
    if not isinstance(fields_of_row, dict):
        return Row(number, problem='it is no object - write {"prompt": "..."}')
    try:
        fields_of_row = _once([(_name_of(key), value) for key, value in fields_of_row.items()])
    except ValueError as error:
        return Row(number, problem=f"{error} - remove one")
    output = fields_of_row.pop(OUTPUT, None)
    if output is not None and not isinstance(output, str):
        return Row(number, problem=f"output must be text; got {output!r} - give a file name")
    return Row(number, fields_of_row, output)


def _csv_rows(lines: Lines, name: str, note: Callable[[str], None]) -> Iterator[Row]:
    """Yields the rows below the header; an empty cell means that the field is left out."""
    numbers = [0]  # that of the last line that the library took: a row ends there, and may have begun above

    def heard() -> Iterator[str]:
        for number, line in lines:
            numbers[0] = number
            yield line

    taken = heard()
    header, taken = _header(taken, name)
    reader = csv.reader(taken, delimiter=header.delimiter, strict=True)
    while True:
        begins = numbers[0] + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise LtxError(f"the row of {name} from line {begins} on is no CSV: {error}", "correct it") from None
        if cells is None:
            return
        if any(cell.strip() for cell in cells):
            yield _row_of_cells(begins, header.columns, cells)


@dataclass(frozen=True)
class _Header:
    columns: list[str]
    delimiter: str


def _header(lines: Iterator[str], name: str) -> tuple[_Header, Iterator[str]]:
    """Returns the header of a CSV file, and its other lines.

    Raises:
        LtxError: a column is unknown or there twice.
    """
    first = next((line for line in lines if line.strip()), "")
    columns, delimiter = _columns(first)
    if columns and not any(column in COLUMNS or is_near(column, COLUMNS) for column in columns):
        raise LtxError(
            f"the first row of {name} must name the columns; got {shown(first.strip())}",
            "begin it with a row such as prompt,seed",
        )
    for column in columns:
        if column not in COLUMNS:
            raise LtxError(
                f"{name} has the column {shown(column)}, which no request has", f"use {nearest(column, COLUMNS)}"
            )
        if columns.count(column) > 1:
            raise LtxError(f"{name} has the column {column!r} twice", "remove one")
    return _Header(columns, delimiter), lines


def _columns(line: str) -> tuple[list[str], str]:
    """Returns the names in the header of a CSV file and its delimiter: the one that separates known names best."""

    def split(delimiter: str) -> list[str]:
        try:
            cells = next(csv.reader([line.strip()], delimiter=delimiter), [])
        except csv.Error:  # such as a text of more characters than a cell may have
            cells = [line]
        return [_name_of(cell.strip().lower()) for cell in cells]

    delimiter = max(_DELIMITERS, key=lambda character: sum(column in COLUMNS for column in split(character)))
    return split(delimiter), delimiter


def _row_of_cells(line: int, columns: list[str], cells: list[str]) -> Row:
    if len(cells) > len(columns) and any(cell.strip() for cell in cells[len(columns) :]):
        problem = f"it has {len(cells)} cells for {len(columns)} columns - put cells with a comma in quotes"
        return Row(line, problem=problem)
    filled_cells = {column: cell for column, cell in zip(columns, cells, strict=False) if cell.strip()}
    output = filled_cells.pop(OUTPUT, None)
    try:
        return Row(line, {column: value_of(column, cell) for column, cell in filled_cells.items()}, output)
    except LtxError as error:
        return Row(line, problem=str(error))


def _form_of(line: str) -> Form:
    """Recognizes the form of a file by its first line: an object, a header of known columns, or else a prompt."""
    try:
        if isinstance(json.loads(line), dict):
            return _json_rows
    except (ValueError, RecursionError):
        pass
    columns, _ = _columns(line)
    return _csv_rows if "prompt" in columns and all(column in COLUMNS for column in columns) else _text_rows


_FORMS: dict[str, Form] = {
    ".txt": _text_rows,
    ".jsonl": _json_rows,
    ".ndjson": _json_rows,
    ".csv": _csv_rows,
    ".tsv": _csv_rows,
}
SUFFIXES = (*_FORMS,)
