"""Tables of every kind of value: what is sent to the server, and the rows that each reader is to find.

A table is a function of its name and its number of rows, so that the processes of a test run, each of which reads the
same lake, know its rows without asking each other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from types import MappingProxyType
from typing import Any, Final, NamedTuple

import msgpack

Row = dict[str, Any]
"""A row by column: int, float, bool, str, bytes, aware datetime in UTC, or None."""

FEW: Final = (10, 5_000)
"""Rows of a file: less than Spark's reader takes at once (4,096), and more."""

MANY: Final = (*FEW, 100_000)
"""For columns whose encoding depends on the number of rows."""

NEW_YEAR: Final = datetime(2026, 1, 1, tzinfo=UTC)
NEW_YEAR_US: Final = 1_767_225_600_000_000
STEP_US: Final = 7_001  # 100,000 rows of it are within one hour, which makes one file

TEXTS: Final = (
    "plain",
    'a "quoted" word',
    "it's",
    "back\\slash",
    "ends with a backslash\\",
    "C:\\Program Files\\x",
    "\\\\nas\\share",
    "a\\,b\\=c\\ d",
    "line\nbreak",
    "carriage\r\nreturn",
    "tab\tstop",
    "comma, equals = space",
    " blank at both ends ",
    "",
    "null",
    "NaN",
    "1i",
    "true",
    "#hash",
    '{"json": [1, null]}',
    "üöäß ñ ç ø",
    "日本語 中文 한국어",
    "العربية עברית",
    "🚀 👩\u200d💻 e\u0301",
    "\u00a0\u2028\ufeff",
    "x" * 300,
)

_FLOATS: Final = (0.0, -0.0, 1.0, -1.5, 0.1, 1e300, -1e-300, 5e-324, 1.7976931348623157e308, math.inf, -math.inf)
_INTEGERS: Final = (0, 1, -1, 2**31, -(2**31), 2**53 + 1, -(2**53) - 1, 2**63 - 1, -(2**63))
_UNSIGNED: Final = (0, 1, 2**31, 2**63 - 1, 2**63, 2**64 - 1)


def time_of(row: int) -> datetime:
    return NEW_YEAR + timedelta(microseconds=row * STEP_US)


def noise(row: int) -> int:
    """64 bits that no encoding makes smaller (SplitMix64)."""
    mixed = (row + 1) * 0x9E3779B97F4A7C15 % 2**64
    mixed = (mixed ^ mixed >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    mixed = (mixed ^ mixed >> 27) * 0x94D049BB133111EB % 2**64
    return mixed ^ mixed >> 31


class Table(NamedTuple):
    """A kind of columns: the value of each by its row, as it is sent; and the row that a reader finds."""

    sent: dict[str, Callable[[int], Any]]
    sizes: tuple[int, ...] = FEW
    types: Mapping[str, str] = MappingProxyType({})
    tags: tuple[str, ...] = ()
    found: Callable[[Row], Row] = dict

    def body(self, measurement: str, first: int, count: int) -> bytes:
        """Encode rows as columnar MessagePack."""
        numbers = range(first, first + count)
        columns: dict[str, Any] = {"time": [NEW_YEAR_US + number * STEP_US for number in numbers]}
        columns |= {name: [value(number) for number in numbers] for name, value in self.sent.items()}
        value: Row = {"m": measurement, "columns": columns}
        value |= {"types": dict(self.types)} if self.types else {}
        value |= {"tags": list(self.tags)} if self.tags else {}
        packed: bytes = msgpack.packb(value, datetime=True)
        return packed

    def rows(self, count: int) -> list[Row]:
        """Tell the rows of the lake, ordered by time."""
        return [
            {"time": time_of(number), **self.found({name: value(number) for name, value in self.sent.items()})}
            for number in range(count)
        ]


def _above_i64(row: Row) -> Row:
    """An unsigned integer above the signed ones is in a column of its own."""
    fits = row["total"] < 2**63
    return {"total": row["total"] if fits else None, "total_u64": None if fits else row["total"]}


TABLES: Final = {
    "integers": Table(
        {
            "count": lambda row: _INTEGERS[row % len(_INTEGERS)],
            "id": lambda row: row,
            "far": lambda row: noise(row) - 2**63,
        },
        MANY,
    ),
    "floats": Table(
        {
            "usage": lambda row: _FLOATS[row % len(_FLOATS)],
            "whole": float,
            "sine": lambda row: math.sin(noise(row) / 2**64),
        },
        MANY,
    ),
    "nans": Table({"usage": lambda row: math.nan if row % 3 == 0 else row / 7}),
    "gaps": Table(
        {
            "usage": lambda row: None if row % 3 == 0 else row / 7,
            "count": lambda row: None if row % 3 == 1 else row,
            "note": lambda row: None if row % 3 == 2 else TEXTS[row % len(TEXTS)],
            "up": lambda row: None if row % 5 == 4 else row % 2 == 0,
            "unique": lambda row: None if row % 4 == 3 else f"{TEXTS[row % len(TEXTS)]} {row}",
        },
        MANY,
    ),
    "texts": Table(
        {
            "host": lambda row: f"web {row % 7},a=b",
            "note": lambda row: TEXTS[row % len(TEXTS)],
            "unique": lambda row: f"{TEXTS[row % (len(TEXTS) - 1)]} {row}",
        },
        MANY,
        tags=("host",),
    ),
    "booleans": Table({"up": lambda row: row % 3 == 0, "always": lambda row: True}),
    "bytes": Table({"raw": lambda row: row.to_bytes(3, "big") + b"\xff\x00" * (row % 3)}),
    "unsigned": Table({"total": lambda row: _UNSIGNED[row % len(_UNSIGNED)]}, types={"total": "u64"}, found=_above_i64),
    "small unsigned": Table({"total": lambda row: row * 1_000}, types={"total": "u64"}),
    "stamps": Table({"created": lambda row: time_of(row) - timedelta(days=row % 1000, microseconds=row)}),
}


SIZES: Final = [(name, rows) for name, table in TABLES.items() for rows in table.sizes]
"""Every table in each of its sizes."""

SMALL: Final = [("floats", 100_000), ("texts", 5_000)]
"""The tables whose columns have other encodings with `parquet.encodings = "small"`: each kind once."""


def database_of(table: str, rows: int) -> str:
    """Tell the database of a table, which is its measurement, too."""
    return f"{table.replace(' ', '_')}_{rows}"
