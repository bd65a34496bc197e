"""The folders of a lake, one per hour of a measurement, and the names of the files in them.

The reverse of `lake.keys`. This module must not know stores or Parquet.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Final, NamedTuple

from arcpipe.lake.keys import decode_component

SUFFIX: Final = ".parquet"

_FOLDER: Final = re.compile(
    r"(?P<database>[^/]+)/(?P<measurement>[^/]+)/"
    r"(?:(\d{4})/(\d\d)/(\d\d)/(\d\d)|year=(\d{4})/month=(\d\d)/day=(\d\d)/hour=(\d\d))"
)
_FILE: Final = re.compile(r"_(?P<moment>\d{8}T\d{12})_(?P<batch>[^/]+)_(?P<number>\d+)\.parquet\Z")


class Folder(NamedTuple):
    """One hour of one measurement: the names as components of a key, and the first µs of the hour."""

    path: str
    database: str
    measurement: str
    hour_us: int

    @property
    def names(self) -> tuple[str, str]:
        """Database and measurement as clients call them; the component itself where a name was cut."""
        return name_of(self.database), name_of(self.measurement)


class FileName(NamedTuple):
    """What the name of a file says: the time of its first row, in µs since the epoch, and its batch."""

    first_us: int
    batch: str
    number: int


def table_folder(path: str) -> str:
    """Return the folder of the table that a key, or a folder in it, belongs to: `{database}/{measurement}`."""
    return "/".join(path.split("/")[:2])


def name_of(component: str) -> str:
    """Return the name that a component of a key stands for; one that was cut stays as it is."""
    name = decode_component(component)
    return component if name is None else name


def parse_folder(path: str) -> Folder | None:
    """Parse the folder of a key; None for other folders than those of an hour, in either layout."""
    match = _FOLDER.fullmatch(path)
    if match is None or match["database"][0] in "._":
        return None
    parts = [int(part) for part in match.groups()[2:] if part is not None]
    try:
        hour = datetime(parts[0], parts[1], parts[2], parts[3], tzinfo=UTC)
    except ValueError:
        return None
    return Folder(path, match["database"], match["measurement"], int(hour.timestamp()) * 1_000_000)


def parse_file_name(name: str, folder: Folder) -> FileName | None:
    """Parse the name of a file in this folder; None if arcpipe did not choose it."""
    if not name.startswith(folder.measurement):
        return None
    match = _FILE.fullmatch(name, len(folder.measurement))
    if match is None:
        return None
    moment = match["moment"]
    try:
        second = datetime.strptime(f"{moment[:15]}+0000", "%Y%m%dT%H%M%S%z")
    except ValueError:
        return None
    return FileName(int(second.timestamp()) * 1_000_000 + int(moment[15:]), match["batch"], int(match["number"]))
