"""Columns of text -> typed values. The type of a column is that of all its values in the file, never of some.

A text is an integer only if it is written as Python and JSON write it: `007` and `1_000` are texts, and so are integers
that 64 bits do not hold, also beside fractions. Empty is nil. Pure functions.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, Final

from arcpipe.load.plan import Kind

_INT: Final = re.compile(r"-?(?:0|[1-9]\d{0,19})\Z", re.ASCII)
_LONG_INT: Final = re.compile(r"-?[1-9]\d{18,}\Z", re.ASCII)
_FLOAT: Final = re.compile(r"-?(?:(?:0|[1-9]\d*)(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?\Z|[nN]a[nN]\Z", re.ASCII)
_BOOL: Final = {"true": True, "false": False}
_LEAST: Final = -(1 << 63)
_MOST: Final = (1 << 64) - 1  # the server keeps those above 2^63-1 in a sibling, from whatever format
_MAX_SIGNS: Final = 20  # of an integer that 64 bits may hold; Python reads no integer of more than 4300 digits
EXACT: Final = 1 << 53
"""The integers up to this one are all exact as float64. The server keeps others in a column beside the floats."""


def _whole(text: str) -> int:
    """Read an integer. Raises ValueError, also for one that 64 bits do not hold."""
    number = int(text)
    if not _LEAST <= number <= _MOST:
        raise ValueError
    return number


_READERS: Final[dict[Kind, Callable[[str], Any]]] = {
    "int": _whole,
    "float": float,
    "bool": lambda text: _BOOL[text.lower()],
    "text": str,
}


def kind_of(values: Sequence[str], kind: Kind | None) -> Kind | None:
    """Return the type of more values of a column.

    Args:
        kind: that of the values before; None if there was none, or all were empty.
    """
    present = [value for value in values if value]
    if kind == "text" or not present:
        return kind
    found = _kind(present)
    if kind is None or kind == found:
        return found
    return "float" if {kind, found} == {"int", "float"} else "text"


def _kind(values: Sequence[str]) -> Kind:
    if any(map(_is_too_long, values)):
        return "text"
    if all(map(_INT.match, values)):
        return "int"
    if all(map(_FLOAT.match, values)):
        return "float"
    if all(value.lower() in _BOOL for value in values):
        return "bool"
    return "text"


def _is_too_long(text: str) -> bool:
    """Tell whether it is an integer that 64 bits do not hold."""
    return bool(_LONG_INT.match(text)) and (len(text) > _MAX_SIGNS or not _LEAST <= int(text) <= _MOST)


def times(values: Sequence[str]) -> list[Any]:
    """Return the values of a column of times, each by its own look: so one bad time is one bad row."""
    return [
        None if not text else int(text) if _INT.match(text) else float(text) if _FLOAT.match(text) else text
        for text in values
    ]


def _number(text: str) -> float | int:
    """Read a float, or an integer that float64 may not hold."""
    if _INT.match(text) and abs(whole := int(text)) > EXACT:
        return whole
    return float(text)


def typed(values: Sequence[str], kind: Kind | None, *, found: bool = True) -> list[Any]:
    """Return the values as they are; empty ones are None.

    Args:
        found: whether the kind is that of the values. If somebody has named it, all values of a column of floats are
            floats; else integers that float64 may not hold stay what they are.

    Raises:
        ValueError: one is not of the kind; its arguments are its index and the text.
    """
    read = _number if found and kind == "float" else _READERS[kind or "text"]
    try:
        return [read(value) if value else None for value in values]
    except (ValueError, KeyError):
        for index, value in enumerate(values):
            try:
                read(value or "0")
            except (ValueError, KeyError):
                raise ValueError(index, value) from None
        raise
