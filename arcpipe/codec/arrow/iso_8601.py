"""Read times that are ISO 8601 text.

A date, or a date and a time of day: `2026-09-21`, `2026-09-21T14:13`, `2026-09-21 14:13:20.123456789+02:00`,
`20260921T141320Z`. The time of day may have a fraction of a second, of which nine digits count, and a zone; without
one it is UTC. A leap second is no time: none of the readers of the files has it.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from arcpipe.codec.arrow.values import Ints, Mask

_EXTENDED: Final = r"(\d{4})-(\d\d)-(\d\d)(?:[Tt ](\d\d)(?::(\d\d)(?::(\d\d)(?:[.,](\d++))?+)?+)?+{zone})?+"
_BASIC: Final = r"(\d{4})(\d\d)(\d\d)(?:[Tt](\d\d)(?:(\d\d)(?:(\d\d)(?:[.,](\d++))?+)?+)?+{zone})?+"
_ZONE: Final = r"(?:[Zz]|([-+])(\d\d)(?::?(\d\d))?+)?+"
_FORMS: Final = tuple(re.compile(form.replace("{zone}", _ZONE), re.ASCII).fullmatch for form in (_EXTENDED, _BASIC))
_MAX_CHARACTERS: Final = 64  # of a text that is tried: no time needs more

# What Arrow reads in one call, if all texts are alike: with a zone or without one, to the microsecond.
_ARROW_TYPES: Final = (pa.timestamp("us", "UTC"), pa.timestamp("us"))
# Texts from the first of these up to the second are years of which Arrow's nanoseconds have 64 bits.
_FIRST_NS, _LAST_NS = "1678", "2262"

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_SECOND: Final = timedelta(seconds=1)
_MIN_SECONDS: Final = -62_135_596_800  # 0001-01-01T00:00:00Z
_MAX_SECONDS: Final = 253_402_300_799  # 9999-12-31T23:59:59Z


class TextTimes(NamedTuple):
    """Texts as times. Those that are not valid have no meaning."""

    seconds: Ints  # since the epoch
    ns: Ints  # after them, 0 to 999,999,999
    valid: Mask


def parse_times(texts: pa.Array) -> TextTimes:
    """Read an array of strings, of which null is no time."""
    if not texts.null_count:
        for type_ in _ARROW_TYPES:
            try:
                return _of_units(pc.cast(texts, type_), 1_000_000)
            except pa.ArrowInvalid:
                continue
        bounds = pc.min_max(texts)
        if bounds["min"].as_py() >= _FIRST_NS and bounds["max"].as_py() < _LAST_NS:
            try:
                return _of_units(pc.cast(texts, pa.timestamp("ns", "UTC")), 1_000_000_000)
            except pa.ArrowInvalid:
                pass
    parsed = [None if text is None else parse_time(text) for text in texts.to_pylist()]
    seconds, ns = np.array([(0, 0) if time is None else time for time in parsed], np.int64).reshape(-1, 2).T
    return TextTimes(seconds, ns, np.array([time is not None for time in parsed], np.bool_))


def _of_units(times: pa.Array, units: int) -> TextTimes:
    """Split times into seconds and nanoseconds; `units` are in a second."""
    numbers = times.cast(pa.int64()).to_numpy()
    seconds = numbers // units
    valid: Mask = (seconds >= _MIN_SECONDS) & (seconds <= _MAX_SECONDS)
    return TextTimes(seconds, (numbers - seconds * units) * (1_000_000_000 // units), valid)


def parse_time(text: str) -> tuple[int, int] | None:
    """Read one text: (seconds since the epoch, nanoseconds after them), or None if it is no time."""
    if len(text) > _MAX_CHARACTERS:
        return None
    found = _FORMS[0](text) or _FORMS[1](text)
    if found is None:
        return None
    year, month, day, hour, minute, second, fraction, sign, zone_hours, zone_minutes = found.groups()
    offset = int(zone_hours or 0) * 3_600 + int(zone_minutes or 0) * 60
    if int(zone_hours or 0) > 23 or int(zone_minutes or 0) > 59:
        return None
    try:
        day_start = datetime(int(year), int(month), int(day), tzinfo=UTC)
        time = day_start.replace(hour=int(hour or 0), minute=int(minute or 0), second=int(second or 0))
    except ValueError:
        return None
    seconds = (time - _EPOCH) // _SECOND - (-offset if sign == "-" else offset)
    if not _MIN_SECONDS <= seconds <= _MAX_SECONDS:
        return None
    return seconds, int((fraction or "0")[:9].ljust(9, "0"))
