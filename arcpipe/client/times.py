"""The times of records, held against what the server takes: one that it refuses would cost a whole batch."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Final

from arcpipe.client.errors import BadRecord
from arcpipe.client.options import Precision
from arcpipe.iso_8601 import MAX_SECONDS, MIN_SECONDS, parse_time

_NS_OF: Final[dict[Precision, int]] = {"ns": 1, "us": 1_000, "ms": 1_000_000, "s": 1_000_000_000}
# The size of a number tells its unit: seconds below the first of these, then milliseconds, microseconds, nanoseconds.
_BORDERS: Final = ((10**11, 10**9), (10**14, 10**6), (10**17, 10**3))
# The greatest integers that certainly are times. Without a unit, each that 64 bits hold has one that makes it a time.
_MOST: Final[dict[Precision, int]] = {
    **{precision: (MAX_SECONDS * 10**9) // unit_ns for precision, unit_ns in _NS_OF.items()},
    **dict.fromkeys(("auto", "ns"), (1 << 64) - 1),
}
_MIN_US: Final = MIN_SECONDS * 1_000_000
_END_US: Final = (MAX_SECONDS + 1) * 1_000_000


def time_now(precision: Precision) -> int:
    """Return the time of day; in µs if the size of a number tells its unit."""
    return time.time_ns() // _NS_OF["us" if precision == "auto" else precision]


def checked_column(values: Sequence[Any], now: Any, precision: Precision) -> list[Any]:
    """Return the times of a column, `now` in place of None. Raises BadRecord as `checked`."""
    if values and all(type(value) is int for value in values) and 0 <= min(values) <= max(values) <= _MOST[precision]:
        return list(values)
    return [now if value is None else checked(value, precision) for value in values]


def checked(value: Any, precision: Precision) -> Any:
    """Return a time as it is.

    Raises:
        BadRecord: it is no time, or not of the years 1 to 9999.
    """
    if type(value) is int and 0 <= value <= _MOST[precision]:  # nearly all are
        return value
    if not _is_time(value, precision):
        raise BadRecord(
            f"time {value!r} is no time: use a number, a datetime, ISO 8601 text or None, of the years 1 to 9999"
        )
    return value


def _is_time(value: Any, precision: Precision) -> bool:
    if isinstance(value, str):
        return parse_time(value) is not None
    if isinstance(value, datetime):
        return value.tzinfo is None or _is_of_utc(value)
    return isinstance(value, int | float) and not isinstance(value, bool) and _is_in_range(value, precision)


def _is_in_range(number: float, precision: Precision) -> bool:
    """Tell whether a number is of the years 1 to 9999, by the same steps as the server."""
    if not math.isfinite(number):
        return False
    if precision == "auto":
        size = abs(number)
        unit_ns = next((unit for border, unit in _BORDERS if size < border), 1)
    else:
        unit_ns = _NS_OF[precision]
    if isinstance(number, int):
        return _MIN_US <= number * unit_ns // 1_000 < _END_US
    us = number / 1_000 if unit_ns == 1 else number * (unit_ns // 1_000)
    return math.isfinite(us) and _MIN_US <= round(us) < _END_US


def _is_of_utc(moment: datetime) -> bool:
    """Tell whether a moment with a zone is of the years 1 to 9999 in UTC, too."""
    try:
        moment.astimezone(UTC)
    except (OverflowError, ValueError):
        return False
    return True
