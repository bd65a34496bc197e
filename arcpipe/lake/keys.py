"""Name the files of a batch: a database, a measurement and an hour become an object key.

Names of clients become components of a path. Whatever the name, its component is ASCII without slashes, neither empty
nor `.` nor `..`. It is the name itself where a path can have it, and `decode_component` gives the name again unless it
was cut. Different names have different components. This module must not know Arrow or object stores.
"""

from __future__ import annotations

import hashlib
import re
from datetime import UTC, datetime, timedelta
from typing import Final, Literal, NamedTuple
from urllib.parse import unquote

Layout = Literal["arc", "hive"]
"""Folders by date: `2026/11/28/18`, or `year=2026/month=11/day=28/hour=18`."""

Hidden = Literal[".", "._", "._~"]
"""First characters of names that are encoded: pyarrow, Spark and Hive see no file below such a path.

Batches that were begun by versions that left `_` as it is keep the keys that they have begun with. `~` at the end means
that the escapes are `~20` instead of `%20`: most readers of Delta find no table below a folder with a percent sign.
"""

WAYS: Final[tuple[Hidden, ...]] = ("._", "._~")
"""The ways in which names are encoded today."""

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)

_RESERVED: Final = re.compile(rb"[^A-Za-z0-9_.-]")
_CUT: Final = re.compile(r".{100}(~([0-9a-f]{16}|[0-9a-f]{64})|~~.*)", re.DOTALL)
_TILDE: Final = re.compile(r"(~[0-9A-F]{2})+")
_MAX_ENCODED: Final = 120  # characters: a file's name holds more, and file systems allow 255 bytes
_MAX_DATABASE: Final = 240  # characters: its component holds nothing more


def encode_name(name: str, hidden: Hidden = "._") -> str:
    """Make a measurement's name one path component: percent-encoded, at most 120 characters, never empty.

    A longer one is cut and ends in `~` and a hash of the whole name.
    """
    encoded = _encode(name, hidden)
    if len(encoded) > _MAX_ENCODED:
        return f"{encoded[:100]}{_cut_mark(hidden)}{_hash(name)[:16]}"
    return encoded


def encode_database(name: str, hidden: Hidden = "._") -> str:
    """Make a database's name one path component, as `encode_name`, of at most 240 characters.

    The hash is whole, because databases keep clients apart: nobody can make two names of one component.
    """
    if hidden == ".":
        return encode_name(name, hidden)
    encoded = _encode(name, hidden)
    if len(encoded) > _MAX_DATABASE:
        return f"{encoded[:100]}{_cut_mark(hidden)}{_hash(name)}"
    return encoded


def database_components(name: str) -> list[str]:
    """Return the components that a database may have, by the format of its tables."""
    return list(dict.fromkeys(encode_database(name, way) for way in WAYS))


def measurement_components(name: str) -> list[str]:
    """Return the components that a measurement may have, by the format of its tables."""
    return list(dict.fromkeys(encode_name(name, way) for way in WAYS))


def decode_component(component: str) -> str | None:
    """Return the name of a database or measurement by its component of a key; None if it was cut, or may have been."""
    if _CUT.fullmatch(component):
        return None
    if component in ("%", "~"):
        return ""
    if "%" in component:
        return unquote(component)
    return _TILDE.sub(lambda found: bytes.fromhex(found[0].replace("~", "")).decode(errors="replace"), component)


def _encode(name: str, hidden: Hidden) -> str:
    escape = "~" if hidden == "._~" else "%"
    encoded = _RESERVED.sub(lambda found: b"%s%02X" % (escape.encode(), found[0][0]), name.encode()).decode()
    if encoded[:1] in (".", "_") and encoded[0] in hidden:
        encoded = f"{escape}{ord(encoded[0]):02X}{encoded[1:]}"
    return encoded or escape


def _cut_mark(hidden: Hidden) -> str:
    """Return what no name that is whole has in its component."""
    return "~~" if hidden == "._~" else "~"


def _hash(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


class Partition(NamedTuple):
    """The place of one measurement's rows of one hour; `hour_us` is its first µs."""

    database: str
    measurement: str
    hour_us: int

    def key(self, layout: Layout, first_us: int, batch_id: str, number: int, hidden: Hidden = "._") -> str:
        """Name a batch's file `number` (from 0) of this partition, whose first row is of `first_us`."""
        hour, first = _EPOCH + timedelta(microseconds=self.hour_us), _EPOCH + timedelta(microseconds=first_us)
        parts = [f"{hour.year:04}", f"{hour.month:02}", f"{hour.day:02}", f"{hour.hour:02}"]
        if layout == "hive":
            parts = [f"{unit}={value}" for unit, value in zip(("year", "month", "day", "hour"), parts, strict=True)]
        measurement = encode_name(self.measurement, hidden)
        name = _file_name(measurement, first, batch_id, number)
        return "/".join((encode_database(self.database, hidden), measurement, *parts, name))


def merged_file_name(measurement: str, first_us: int, merge_id: str, number: int) -> str:
    """Name file `number` (from 0) of a merge, whose first row is of `first_us`.

    Args:
        measurement: the component of its key.
    """
    return _file_name(measurement, _EPOCH + timedelta(microseconds=first_us), merge_id, number)


def _file_name(measurement: str, first: datetime, id_: str, number: int) -> str:
    # Not strftime, which takes as long as the rest of a small file's key and folder.
    day = f"{first.year:04}{first.month:02}{first.day:02}"
    moment = f"{day}T{first.hour:02}{first.minute:02}{first.second:02}{first.microsecond:06}"
    return f"{measurement}_{moment}_{id_}_{number}.parquet"
