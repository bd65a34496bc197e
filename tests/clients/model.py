"""What every client writes, and the rows of the lake that it makes.

The clients of other languages get it as JSON: see `as_json`. Integers and times are text there, since JavaScript's
numbers end at 2^53.
"""

from __future__ import annotations

import math
from typing import Any, Final, NamedTuple

from tests.readers.model import TEXTS

# 2026-01-01T00:00:00.123456Z
FIRST_US: Final = 1_767_225_600_123_456

FLOATS: Final = (0.5, 1.0, -0.0, 0.1, 1e300, -1e-300, 5e-324, 1.7976931348623157e308, 123456789.125)
INTEGERS: Final = (0, -7, 2**31, 2**53 + 1, 2**63 - 1, -(2**63))
# Clients replace control characters in tags, since line protocol has no way to write them there, nor an empty tag.
_TAGS: Final = tuple(text for text in TEXTS if text and not {"\n", "\r", "\t"} & {*text} and text[-1] != "\\")
TAGS: Final = tuple(text for text in _TAGS if "\\" not in text)
BACKSLASHES: Final = tuple(text for text in _TAGS if "\\" in text)


class Record(NamedTuple):
    """A row of one measurement."""

    time_us: int
    tags: dict[str, str]
    fields: dict[str, Any]

    @property
    def row(self) -> dict[str, Any]:
        return {"time": self.time_us, **self.tags, **self.fields}


def _numbered(measured: list[tuple[dict[str, str], dict[str, Any]]]) -> list[Record]:
    return [Record(FIRST_US + number, *record) for number, record in enumerate(measured)]


TEXT_RECORDS: Final = _numbered([({"host": "a"}, {"text": text}) for text in TEXTS])
TAG_RECORDS: Final = _numbered([({"host": text}, {"up": True}) for text in TAGS])
BACKSLASH_RECORDS: Final = _numbered([({"host": text}, {"up": True}) for text in BACKSLASHES])
TYPE_RECORDS: Final = _numbered(
    [({"host": "a"}, {"float": value}) for value in FLOATS]
    + [({"host": "a"}, {"integer": value}) for value in INTEGERS]
    + [({"host": "a"}, {"up": value}) for value in (True, False)]
)
NAN_RECORDS: Final = _numbered([({"host": "a"}, {"float": value, "integer": 1}) for value in (0.5, math.nan, 1.5)])
MANY_RECORDS: Final = _numbered([({"host": f"web-{number % 3}"}, {"integer": number}) for number in range(5_000)])

SETS: Final = {
    "texts": TEXT_RECORDS,
    "tags": TAG_RECORDS,
    "backslashes in tags": BACKSLASH_RECORDS,
    "types": TYPE_RECORDS,
    "nan": NAN_RECORDS,
    "many": MANY_RECORDS,
}
"""Sets of records that every client writes, each into a database of its own."""


def rows(records: list[Record]) -> list[dict[str, Any]]:
    """Tell the rows of the lake, ordered by time: each has every column."""
    names = {name for record in records for name in record.row}
    return [dict.fromkeys(names) | record.row for record in records]


def as_json(records: list[Record]) -> list[dict[str, Any]]:
    """Make records JSON for a client of another language: numbers are text."""
    return [
        {
            "time_us": str(record.time_us),
            "tags": record.tags,
            "fields": [[name, type(value).__name__, str(value)] for name, value in record.fields.items()],
        }
        for record in records
    ]
