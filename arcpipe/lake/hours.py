"""Walk through the hours of a measurement by their folders' names, without listing the files of those not wanted.

    async for folder in hours_until(store, "default/cpu/", end_us): ...     # the oldest first
    newest = await newest_hour(store, "default/cpu/", now_us)

Some five requests for each measurement, however many files it has. Folders of other names are passed over.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Final

from arcpipe.lake.file_schema import HOUR_US
from arcpipe.lake.folders import Folder, parse_file_name, parse_folder
from arcpipe.storage import LakeStore

_LEVELS: Final = tuple(
    re.compile(f"(?:{unit}=)?([0-9]{{{digits}}})")
    for unit, digits in (("year", 4), ("month", 2), ("day", 2), ("hour", 2))
)


async def hours_until(store: LakeStore, measurement: str, end_us: int) -> AsyncIterator[Folder]:
    """Yield the folders of hours that end by `end_us`, the oldest first.

    Args:
        measurement: the key of its folder, with a slash.
    """
    async for folder in _walk(store, measurement, (), end_us, newest_first=False):
        if folder.hour_us + HOUR_US <= end_us:
            yield folder


async def newest_hour(store: LakeStore, measurement: str, now_us: int) -> int | None:
    """Return the first µs of the newest hour, up to now, that has a file of any node; None if there is none.

    Hours in the future have records of clients whose clocks are wrong, and say nothing.
    """
    async for folder in _walk(store, measurement, (), now_us, newest_first=True):
        async for page in store.list_objects(folder.path + "/"):
            names = (one.key[len(folder.path) + 1 :] for one in page)
            if any(parse_file_name(name, folder) is not None for name in names):
                return folder.hour_us
    return None


async def _walk(
    store: LakeStore, prefix: str, above: tuple[int, ...], before_us: int, *, newest_first: bool
) -> AsyncIterator[Folder]:
    """Yield the folders of hours that begin before `before_us`."""
    level = _LEVELS[len(above)]
    found: list[tuple[int, str]] = []
    for name in await store.list_folders(prefix):
        match = level.fullmatch(name)
        start = _start_us((*above, int(match[1]))) if match is not None else None
        if match is not None and start is not None and start < before_us:
            found.append((int(match[1]), name))
    for number, name in sorted(found, reverse=newest_first):
        if len(above) < len(_LEVELS) - 1:
            async for folder in _walk(
                store, f"{prefix}{name}/", (*above, number), before_us, newest_first=newest_first
            ):
                yield folder
        elif (last := parse_folder(prefix + name)) is not None:
            yield last


def _start_us(parts: tuple[int, ...]) -> int | None:
    """Return the first µs of a year, month, day or hour; None if there is no such one."""
    filled = [*parts, *(0, 1, 1, 0)[len(parts) :]]
    try:
        return int(datetime(filled[0], filled[1], filled[2], filled[3], tzinfo=UTC).timestamp()) * 1_000_000
    except ValueError:
        return None
