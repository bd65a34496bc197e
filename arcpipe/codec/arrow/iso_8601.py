"""Read times that are ISO 8601 text.

A date, or a date and a time of day: `2026-09-21`, `2026-09-21T14:13`, `2026-09-21 14:13:20.123456789+02:00`,
`20260921T141320Z`. The time of day may have a fraction of a second, of which nine digits count, and a zone; without
one it is UTC. A leap second is no time: none of the readers of the files has it.
"""

from __future__ import annotations

import re
from datetime import date
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

# Texts from the first of these up to the second are years of which Arrow's nanoseconds have 64 bits.
_FIRST_NS, _LAST_NS = "1678", "2262"

_EPOCH_DAY: Final = date(1970, 1, 1).toordinal()
_MIN_SECONDS: Final = -62_135_596_800  # 0001-01-01T00:00:00Z
_MAX_SECONDS: Final = 253_402_300_799  # 9999-12-31T23:59:59Z


class TextTimes(NamedTuple):
    """Texts as times. Those that are not valid have no meaning."""

    seconds: Ints  # since the epoch
    ns: Ints  # after them, 0 to 999,999,999
    valid: Mask


def parse_times(texts: pa.Array) -> TextTimes:
    """Read an array of strings, of which null is no time.

    Arrow reads texts that are all of the form of the first one. A failed attempt costs as much as 20 good ones.
    """
    type_ = None if texts.null_count else _arrow_type(texts)
    if type_ is not None:
        try:
            return _of_units(pc.cast(texts, type_), 1_000_000_000 if type_.unit == "ns" else 1_000_000)
        except pa.ArrowInvalid:
            pass
    parsed = [None if text is None else parse_time(text) for text in texts.to_pylist()]
    seconds, ns = np.array([(0, 0) if time is None else time for time in parsed], np.int64).reshape(-1, 2).T
    return TextTimes(seconds, ns, np.array([time is not None for time in parsed], np.bool_))


def _arrow_type(texts: pa.Array) -> pa.TimestampType | None:
    """Return the type to which Arrow can cast these texts if all are like the first one; None if there is none."""
    first = texts[0].as_py()
    found = _FORMS[0](first) if len(first) <= _MAX_CHARACTERS else None
    if found is None:
        return None
    digits = len(found[7] or "")
    zone = "UTC" if found[8] or first[-1] in "Zz" else None
    if digits <= 6:
        return pa.timestamp("us", zone)
    bounds = pc.min_max(texts)
    if digits > 9 or bounds["min"].as_py() < _FIRST_NS or bounds["max"].as_py() >= _LAST_NS:
        return None
    return pa.timestamp("ns", zone)


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
    clock = int(hour or 0), int(minute or 0), int(second or 0)
    zone = int(zone_hours or 0), int(zone_minutes or 0)
    if clock > (23, 59, 59) or clock[1] > 59 or clock[2] > 59 or zone > (23, 59) or zone[1] > 59:
        return None
    try:
        days = date(int(year), int(month), int(day)).toordinal() - _EPOCH_DAY
    except ValueError:
        return None
    offset = zone[0] * 3_600 + zone[1] * 60
    seconds = days * 86_400 + clock[0] * 3_600 + clock[1] * 60 + clock[2] + (offset if sign == "-" else -offset)
    if not _MIN_SECONDS <= seconds <= _MAX_SECONDS:
        return None
    return seconds, int((fraction or "0")[:9].ljust(9, "0"))
