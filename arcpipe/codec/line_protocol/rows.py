"""Rows of lines, gathered by shape: measurement, tags, fields and their types, with or without a timestamp.

Lines with the same keys in another order have one shape. This module must not know the grammar of lines.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from operator import itemgetter
from struct import Struct
from typing import Any, Final, NamedTuple

import numpy as np

from arcpipe.codec.columns import (
    TIME,
    ColumnBatch,
    array_header,
    check_column_name,
    check_measurement,
    field_column_names,
    pack_float64,
    pack_int64,
    pack_str,
    pack_uint64,
    pack_values,
    quote,
)
from arcpipe.codec.line_protocol.grammar import (
    ESCAPINGS,
    FLOAT,
    INTEGER,
    TEXT,
    TRUE,
    UNSIGNED,
    Escapes,
    Escaping,
)
from arcpipe.errors import BadPayload


class RowGroup:
    """Rows of one shape; their values are in the order of `names.columns`."""

    __slots__ = ("has_long", "names", "rows")

    def __init__(self, names: _LineNames) -> None:
        self.names = names
        self.rows: list[Sequence[Any]] = []
        self.has_long = False
        """Some texts of these rows are `bytes`, in MessagePack already."""

    def batch(self) -> ColumnBatch:
        """Make the rows columns."""
        columns: dict[str, bytes] = {}
        types: dict[str, str] = {}
        for (name, type_), values in zip(self.names.columns, zip(*self.rows, strict=True), strict=True):
            if self.has_long and type_ == TEXT:
                columns[name] = _pack_long(values)
            else:
                columns[name] = _pack(type_, values)
            if type_ == UNSIGNED:
                types[name] = "u64"
        return ColumnBatch(self.names.measurement, columns, len(self.rows), list(self.names.tags), types)


_FEW_ROWS: Final = 24  # numbers of a column up to which they are packed one by one: numpy costs more for these

_PACK_ONE: Final[dict[int, Callable[[Any], bytes]]] = {
    FLOAT: partial(Struct(">Bd").pack, 0xCB),
    INTEGER: partial(Struct(">Bq").pack, 0xD3),
    UNSIGNED: partial(Struct(">BQ").pack, 0xCF),
}
_PACK: Final[dict[int, Callable[[Any], bytes]]] = {
    FLOAT: lambda values: pack_float64(np.array(values, np.float64)),
    INTEGER: lambda values: pack_int64(np.array(values, np.int64)),
    UNSIGNED: lambda values: pack_uint64(np.array(values, np.uint64)),
    TEXT: pack_values,
    TRUE: pack_values,
}


def _pack(type_: int, values: Sequence[Any]) -> bytes:
    """Pack the values of a column as a MessagePack array; each number has 9 bytes."""
    if len(values) <= _FEW_ROWS and type_ in _PACK_ONE:
        return b"".join((array_header(len(values)), *map(_PACK_ONE[type_], values)))
    return _PACK[type_](values)


def _pack_long(values: Sequence[str | bytes]) -> bytes:
    """Pack texts as a MessagePack array; those that are `bytes` are in MessagePack already."""
    packed = [pack_str(value) if isinstance(value, str) else value for value in values]
    return b"".join((array_header(len(values)), *packed))


class RowPlan(NamedTuple):
    """The way from the values of a line with these very keys, as they are read, to a row of a group."""

    group: RowGroup | None  # None if such lines are refused
    take: Callable[[Sequence[Any]], Sequence[Any]]  # puts values in the order of the group's columns
    bad: str = ""  # why such lines are refused


class _LineNames(NamedTuple):
    """The names in the keys of a line, and the place of each value in a row as it is read."""

    measurement: str
    tags: dict[str, int]
    fields: dict[str, int]
    time: int | None
    columns: list[tuple[str, int]]  # names and types: time, tags, fields
    identity: tuple[Any, ...]  # the same for all lines with the same names and types in any order

    def take_as(self, other: _LineNames) -> Callable[[Sequence[Any]], Sequence[Any]]:
        """Make a function that puts a row, as it is read, in the order of `other`, which has the same identity."""
        places = [] if self.time is None else [self.time]
        places += [self.tags[tag] for tag in other.tags]
        places += [self.fields[field] for field in other.fields]
        return itemgetter(*places) if len(places) > 1 else lambda row: (row[places[0]],)


def plan_rows(key: tuple[Any, ...], escapes: Escapes, groups: dict[tuple[Any, ...], RowGroup]) -> RowPlan:
    """Plan the rows of lines with these raw keys. `groups` gets a group where none has the same names and types."""
    try:
        names = _remember_names(key, escapes) if len(key) <= _USUAL_KEYS else _read_names(key, escapes)
    except BadPayload as error:
        return RowPlan(None, tuple, str(error))
    group = groups.get(names.identity)
    if group is None:
        group = groups[names.identity] = RowGroup(names)
    return RowPlan(group, names.take_as(group.names))


def _read_names(key: tuple[Any, ...], escapes: Escapes) -> _LineNames:
    """Read the names in raw keys. Raises BadPayload if a name is not allowed, or a tag is there twice."""
    escaping = ESCAPINGS[escapes]
    between = key.index(None)
    timed = key[-1] is None
    pairs = key[between + 1 : len(key) - timed]
    measurement = _decoded("measurement", escaping.unescaped_measurement(key[0]))
    check_measurement(measurement)
    tags = {_column_name("tag", raw, escaping): at for at, raw in enumerate(key[1:between])}
    fields = {_column_name("field", raw, escaping): between - 1 + at for at, raw in enumerate(pairs[::2])}
    if len(tags) < between - 1:
        raise BadPayload(f"tag {_repeated(key[1:between], escaping)} is there twice")
    types = {field: pairs[2 * (at - between + 1) + 1] for field, at in fields.items()}
    columns = [(TIME, INTEGER)] if timed else []
    columns += [(tag, TEXT) for tag in tags]
    columns += zip(field_column_names(tags, types), types.values(), strict=True)
    identity = (measurement, timed, frozenset(tags), frozenset(types.items()))
    return _LineNames(measurement, tags, fields, between - 1 + len(pairs) // 2 if timed else None, columns, identity)


# Clients send the same shapes over and over: 256 of at most 32 keys take 4 MB.
_USUAL_KEYS: Final = 64  # keys and types of a remembered line; longer ones are rare
_remember_names: Final = lru_cache(maxsize=256)(_read_names)


def _repeated(raws: Sequence[bytes], escaping: Escaping) -> str:
    counts = Counter(_column_name("tag", raw, escaping) for raw in raws)
    return quote(counts.most_common(1)[0][0])


def _column_name(what: str, raw: bytes, escaping: Escaping) -> str:
    unescaped = escaping.unescaped_tag if what == "tag" else escaping.unescaped_field
    name = _decoded(f"{what} name", unescaped(raw) if b"\\" in raw else raw)
    check_column_name(name, what)
    if name == TIME and what == "tag":
        raise BadPayload("a tag cannot be called 'time', which is the timestamp")
    return name


def _decoded(what: str, raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise BadPayload(f"{what} {quote(raw)} is not valid UTF-8") from None
