"""The cost of open Parquet files, and the share of it that each table may have.

Arrow keeps the metadata of each column of each row group until the file is finished; finishing it takes as much again
for a moment. All tables together have one budget. A table's share follows from the number of tables with open files,
never from the costs of other tables at the time. This module must not know Arrow or threads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NamedTuple

from arcpipe.units import MB

# Bytes of memory, measured with pyarrow 26.
_FILE_COST: Final = 320_000  # most of it is the buffer before its spool
_COLUMN_COST: Final = 1_900
_COLUMN_NAME_COST: Final = 10  # per byte of its name
_CHUNK_COST: Final = 1_400  # a column of a row group; its name comes on top
_STATISTICS_COST: Final = 4  # per byte of the longest value: least and greatest, in statistics and page index
STATISTICS_BYTES: Final = 4_096
"""Bytes of the longest value that Arrow stores in statistics."""


def open_file_cost(columns: int, name_bytes: int = 0) -> int:
    """Estimate the bytes of memory that an open file costs before its first row group."""
    return _FILE_COST + columns * _COLUMN_COST + name_bytes * _COLUMN_NAME_COST


def row_group_cost(columns: int, name_bytes: int = 0, statistics_bytes: int = 0) -> int:
    """Estimate the bytes of memory that a row group costs until its file is finished."""
    return columns * _CHUNK_COST + name_bytes + statistics_bytes * _STATISTICS_COST


class Quota(NamedTuple):
    """Bounds on the open files of one table."""

    files: int
    cost: int  # bytes of memory; a single row group may cost more, and is finished at once then


@dataclass(frozen=True)
class OpenFiles:
    """Bounds on the open files of all tables together."""

    files: int = 64  # each table may have two all the same: at the turn of an hour its rows are of both
    tables: int = 64  # those that may have any
    cost: int = 64 * MB  # the uploader takes some 500 MB besides in the worst case, and has 600
    file_cost: int = 24 * MB  # of each file: to finish it takes as much again
    cost_beside_large: int = 16 * MB  # of the files of other tables while an enormous entry is converted

    def quota(self, tables: int) -> Quota:
        """Return the share of each table when `tables` of them have open files."""
        return Quota(max(2, self.files // tables), self.cost // tables)


OPEN_FILES: Final = OpenFiles()
