"""Whether a SQLite catalogue is older than its lake: a WAL directory that was restored brings an old one along.

The hint of a table names metadata that was committed. It is written after the catalogue, so a catalogue that was read
after the hint is as new at least. A metadata file alone proves nothing: a commit that was cut short leaves one.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import Any, Final

import msgspec

from arcpipe.tables.base import Older, TableName, Unavailable, is_outside
from arcpipe.tables.iceberg.file_io import path_of
from arcpipe.tables.iceberg.version_hint import HINT, SUFFIX
from arcpipe.tables.schema import shown

_VERSION: Final = re.compile(r"(\d+)-[0-9a-f-]+\Z")  # as pyiceberg, and so arcpipe, names metadata


def require_newest(table: TableName, place: str, find: Callable[[], str | None]) -> None:
    """Refuse to work on a table whose hint names newer metadata than the catalogue has.

    Args:
        place: names the catalogue in a text.
        find: asks the catalogue for the location of the table's metadata; None without a table.

    Raises:
        Older: somebody restored the catalogue, or another copy of it is used, too.
        Unavailable: the hint cannot be read.
    """
    location = find()
    if location is None or is_outside(location.removeprefix("file://")):  # of somebody else, elsewhere
        return
    hint = _read_hint(os.path.dirname(path_of(location)))
    if hint is None or not _is_ahead(hint, location):
        return
    location = find()  # another process may have committed, and then written the hint
    if location is None or not _is_ahead(hint, location):
        return
    newer = os.path.join(os.path.dirname(path_of(location)), hint + SUFFIX)
    named, known = _content(newer), _content(path_of(location))
    if named is None or (known is not None and named.get("table-uuid") != known.get("table-uuid")):
        return  # of a table that was dropped: this one was made anew
    raise Older(
        f"{shown(table)} was committed as {newer}, and the catalogue {place} has {os.path.basename(location)}: the "
        "catalogue was restored from an old copy, or another copy of it is in use. Nothing is committed to any table, "
        "so that no rows of later commits are lost from them"
    )


def marker_left_behind(folder: str, marker: str) -> int | None:
    """Return the marker of the table whose metadata is in a folder, and which the catalogue does not know.

    Args:
        folder: where the metadata of a new table would go.
        marker: the name of its property.
    """
    hint = _read_hint(folder)
    content = _content(os.path.join(folder, hint + SUFFIX)) if hint is not None else None
    value = str((content or {}).get("properties", {}).get(marker, ""))
    return int(value) if value.isascii() and value.isdigit() else None


def _is_ahead(hint: str, location: str) -> bool:
    name = os.path.basename(location).removesuffix(SUFFIX)
    versions = _VERSION.match(hint), _VERSION.match(name)
    if hint == name or versions[0] is None or versions[1] is None:
        return False
    return int(versions[0][1]) >= int(versions[1][1])


def _read_hint(folder: str) -> str | None:
    path = os.path.join(folder, HINT)
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return file.read().strip() or None
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise Unavailable(f"{path} cannot be read ({error}); it is tried again") from error


def _content(path: str) -> dict[str, Any] | None:
    """Read a metadata file; None if it is gone, or is something else."""
    try:
        with open(path, "rb") as file:
            found = msgspec.json.decode(file.read())
    except (FileNotFoundError, msgspec.MsgspecError):
        return None
    except OSError as error:
        raise Unavailable(f"{path} cannot be read ({error}); it is tried again") from error
    return found if isinstance(found, dict) else None
