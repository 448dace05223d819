"""Plain data, as JSON has it, in which one value is another one: what a stranger might have written."""

import math
from collections.abc import Iterator
from copy import deepcopy
from typing import Any

DELETED = object()  # in place of a value: the value is left out
# Values of every kind, of which a reader expects few anywhere.
VALUES = (
    *(DELETED, None, True, -1, 0, 1, 3, 10**30, 1.5, math.nan, math.inf),
    *("", "x", "8*rows", "\ud800", "a\0b", "y" * 2000, [], [1], ["x"], [[]], {}, {"x": 1}, [None] * 3, [math.nan] * 3),
)


def places_in(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yields the keys that lead to each value inside another; of equal entries of a long list, the first two."""
    keys = {dict: list, list: lambda entries: range(min(2, len(entries)))}.get(type(value), lambda _: ())
    for key in keys(value):
        yield (*place, key)
        yield from places_in(value[key], (*place, key))


def changed(data: Any, place: tuple[Any, ...], value: Any) -> Any:
    """Returns a copy of data with another value at a place."""
    copy = deepcopy(data)
    holder = copy
    for key in place[:-1]:
        holder = holder[key]
    if value is DELETED:
        del holder[place[-1]]
    else:
        holder[place[-1]] = value
    return copy
