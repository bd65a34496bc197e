"""The grammar of times that are ISO 8601 text: for the server, and for clients that refuse what it would refuse.

A date, or a date and a time of day: `2026-09-21`, `2026-09-21T14:13`, `2026-09-21 14:13:20.123456789+02:00`,
`20260921T141320Z`. The time of day may have a fraction of a second, of which nine digits count, and a zone; without
one it is UTC. A leap second is no time: none of the readers of the files has it.
"""

from __future__ import annotations

import re
from datetime import date
from typing import Final

MIN_SECONDS: Final = -62_135_596_800
"""0001-01-01T00:00:00Z, in seconds since the epoch."""
MAX_SECONDS: Final = 253_402_300_799
"""9999-12-31T23:59:59Z"""
MAX_CHARACTERS: Final = 64
"""Of a text that is tried: no time needs more."""

_EXTENDED: Final = r"(\d{4})-(\d\d)-(\d\d)(?:[Tt ](\d\d)(?::(\d\d)(?::(\d\d)(?:[.,](\d++))?+)?+)?+{zone})?+"
_BASIC: Final = r"(\d{4})(\d\d)(\d\d)(?:[Tt](\d\d)(?:(\d\d)(?:(\d\d)(?:[.,](\d++))?+)?+)?+{zone})?+"
_ZONE: Final = r"(?:[Zz]|([-+])(\d\d)(?::?(\d\d))?+)?+"
_FORMS: Final = tuple(re.compile(form.replace("{zone}", _ZONE), re.ASCII).fullmatch for form in (_EXTENDED, _BASIC))

_EPOCH_DAY: Final = date(1970, 1, 1).toordinal()


def in_extended_form(text: str) -> re.Match[str] | None:
    """Match a text of the form with dashes and colons; None for any other."""
    return _FORMS[0](text) if len(text) <= MAX_CHARACTERS else None


def parse_time(text: str) -> tuple[int, int] | None:
    """Read one text: (seconds since the epoch, nanoseconds after them), or None if it is no time."""
    if len(text) > MAX_CHARACTERS:
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
    if not MIN_SECONDS <= seconds <= MAX_SECONDS:
        return None
    return seconds, int((fraction or "0")[:9].ljust(9, "0"))
