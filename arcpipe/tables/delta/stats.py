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

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final

import orjson
import pyarrow.parquet as pq

_COLUMNS: Final = 32
_CHARACTERS: Final = 32
_EPOCH_DAY: Final = datetime(1970, 1, 1).toordinal()
_GREATEST: Final = 0x10FFFF  # code point
_SURROGATES: Final = (0xD800, 0xDFFF)  # no text has them


def stats_of(metadata: pq.FileMetaData, rows: int) -> str:
    """Return the statistics of a file as JSON. Its times are in µs, as `columns` has made sure."""
    least: dict[str, Any] = {}
    greatest: dict[str, Any] = {}
    nulls: dict[str, int] = {}
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    for number in range(min(metadata.num_columns, _COLUMNS)):
        column = metadata.schema.column(number)
        found = [group.column(number).statistics for group in groups]
        if column.path != column.name or any(one is None or not one.has_null_count for one in found):
            continue  # nested, or not known
        nulls[column.name] = sum(one.null_count for one in found)
        with_values = [
            one for group, one in zip(groups, found, strict=True) if one.has_min_max or one.null_count < group.num_rows
        ]
        if with_values and all(one.has_min_max for one in with_values):
            below, above = _bounds(column, with_values)
            if below is not None:
                least[column.name] = below
            if above is not None:
                greatest[column.name] = above
    return orjson.dumps({"numRecords": rows, "minValues": least, "maxValues": greatest, "nullCount": nulls}).decode()


def _bounds(column: Any, found: Sequence[Any]) -> tuple[Any, Any]:
    """Return what the log says of the least and the greatest value: None for what has no such statistics."""
    if column.logical_type.type == "TIMESTAMP":  # as numbers: a date ends with the year 9999
        least, greatest = min(one.min_raw for one in found), max(one.max_raw for one in found)
        return _milliseconds(least // 1000), _milliseconds(-(-greatest // 1000))
    if column.logical_type.type == "STRING":
        return min(one.min for one in found)[:_CHARACTERS], text_above(max(one.max for one in found))
    if column.logical_type.type in ("NONE", "INT") and column.physical_type in ("INT32", "INT64"):
        return min(one.min for one in found), max(one.max for one in found)
    return None, None


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


def _milliseconds(since: int) -> str | None:
    """Write a time, given in ms since the epoch; None if it is in a year that has not four digits."""
    seconds, rest = divmod(since, 1000)
    days, second = divmod(seconds, 86_400)
    try:
        day = datetime.fromordinal(_EPOCH_DAY + days)
    except (ValueError, OverflowError):
        return None
    hour, minute = divmod(second // 60, 60)
    return f"{day.year:04}-{day.month:02}-{day.day:02}T{hour:02}:{minute:02}:{second % 60:02}.{rest:03}Z"
