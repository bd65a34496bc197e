"""The statistics of a file, as the log has them, from its footer alone. Pure.

Whoever reads them leaves out files by them, and answers `count(*)` and `min(…)` from them. So they are exact, or wider
than the values, or missing:

- `numRecords`, and `nullCount` where every row group has it.
- Times are in ms: the least is rounded down, the greatest is rounded up.
- Texts have 32 characters at most: the least is cut, the greatest is cut and then made greater.
- Floats have none. Writers of Parquet leave NaN out of a footer's statistics, but for Spark it is the greatest value.
- Binary values, booleans and decimals have none, as with other writers.

The protocol's default is to have them of the first 32 columns. Time is the first one, then come the tags.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Final

import orjson
import pyarrow.parquet as pq

_COLUMNS: Final = 32
_CHARACTERS: Final = 32
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_GREATEST: Final = 0x10FFFF  # code point
_SURROGATES: Final = (0xD800, 0xDFFF)  # no text has them


def stats_of(metadata: pq.FileMetaData, rows: int) -> str:
    """Return the statistics of a file as JSON."""
    least: dict[str, Any] = {}
    greatest: dict[str, Any] = {}
    nulls: dict[str, int] = {}
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    for number in range(min(metadata.num_columns, _COLUMNS) if groups else 0):
        column = metadata.schema.column(number)
        name = column.name
        found = [group.column(number).statistics for group in groups]
        if column.path != name or any(one is None or not one.has_null_count for one in found):  # nested, or not known
            continue
        nulls[name] = sum(one.null_count for one in found)
        with_values = [
            one for group, one in zip(groups, found, strict=True) if one.has_min_max or one.null_count < group.num_rows
        ]
        if not with_values or not all(one.has_min_max for one in with_values):
            continue
        bounds = _bounds(min(one.min for one in with_values), max(one.max for one in with_values))
        if bounds is not None:
            least[name], above = bounds
            if above is not None:
                greatest[name] = above
    return orjson.dumps({"numRecords": rows, "minValues": least, "maxValues": greatest, "nullCount": nulls}).decode()


def _bounds(least: Any, greatest: Any) -> tuple[Any, Any] | None:
    """Return what the log says of the least and the greatest value; None for a type that has no statistics."""
    match least:
        case bool():
            return None
        case int():
            return least, greatest
        case str():
            return least[:_CHARACTERS], text_above(greatest)
        case datetime():
            return _milliseconds(least, up=False), _milliseconds(greatest, up=True)
        case _:
            return None


def text_above(text: str) -> str | None:
    """Return a text of at most 32 characters that is not below this one; None if there is none."""
    if len(text) <= _CHARACTERS:
        return text
    for end in range(_CHARACTERS, 0, -1):
        following = ord(text[end - 1]) + 1
        if _SURROGATES[0] <= following <= _SURROGATES[1]:
            following = _SURROGATES[1] + 1
        if following <= _GREATEST:
            return text[: end - 1] + chr(following)
    return None


def _milliseconds(moment: datetime, up: bool) -> str:
    since = moment - _EPOCH if moment.tzinfo is not None else moment.replace(tzinfo=UTC) - _EPOCH
    in_us = (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds
    in_ms = -(-in_us // 1000) if up else in_us // 1000
    seconds, rest = divmod(in_ms, 1000)
    days, second = divmod(seconds, 86_400)
    day = datetime.fromordinal(_EPOCH.toordinal() + days)
    hour, minute = divmod(second // 60, 60)
    return f"{day.year:04}-{day.month:02}-{day.day:02}T{hour:02}:{minute:02}:{second % 60:02}.{rest:03}Z"
