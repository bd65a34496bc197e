"""Names of columns in the lake: unique without regard to case, and no word that a reader takes for itself.

Most engines compare names without regard to case: DuckDB answers `v` and `V` with one column, and Spark refuses the
folder. Hidden columns of table formats and the folders of the layout `hive` shadow a column of their name.
This module must not know what is recorded where: `table_schema` does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from arcpipe.codec.columns import TIME
from arcpipe.lake.file_schema import RESCUED_DATA, TIME_NS

HIVE_NAMES: Final = frozenset({"year", "month", "day", "hour"})
"""The folders of the layout `hive`, which readers take for columns."""

# Iceberg: _file, _pos, _deleted, _partition, _spec_id. Delta's change data: _change_type, _commit_version,
# _commit_timestamp. Spark: _metadata.
_TAKEN: Final = frozenset(
    {
        *(TIME, TIME_NS, RESCUED_DATA),
        *("_file", "_pos", "_deleted", "_partition", "_spec_id"),
        *("_change_type", "_commit_version", "_commit_timestamp", "_metadata"),
    }
)
_HIDDEN: Final = "__"  # the first characters of columns that engines make for themselves


def folded(name: str) -> str:
    """Return the same text for names that some engine takes for one.

    Some compare the lower case, others the upper case: Java takes "ı" for "I", and so for "i".
    """
    return name.lower() if name.isascii() else name.casefold().upper().casefold()


def is_reserved(name: str, hive: bool) -> bool:
    """Tell whether a reader, a table format or arcpipe itself takes the name; `hive` is the layout."""
    key = folded(name)
    return key in _TAKEN or key.startswith(_HIDDEN) or (hive and key in HIVE_NAMES)


def unreserved(name: str, role: str) -> str:
    """Return another name for a reserved one: `time` and `Time` are both `time_field`, and `__x` is `_x_field`.

    Args:
        role: "tag" or "field".
    """
    stem = folded(name)
    if stem.startswith(_HIDDEN):
        stem = "_" + (name.lstrip("_") or "column")
    return f"{stem}_{role}"


def numbered(wanted: str, is_free: Callable[[str], bool], first: int = 2) -> tuple[str, int]:
    """Return the first of `{wanted}_2`, `{wanted}_3`, … that is free, and the number after it."""
    number = first
    while not is_free(f"{wanted}_{number}"):
        number += 1
    return f"{wanted}_{number}", number + 1
