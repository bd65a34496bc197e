"""Sorted rows become row groups, and row groups become files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from arcpipe.codec.columns import TIME
from arcpipe.compaction.tables import compacted, with_one_dictionary
from arcpipe.config.settings import Parquet
from arcpipe.lake.encodings import far_columns
from arcpipe.lake.parquet_file import HUGE_BYTES, ParquetFile, Rows, Special, most_bytes, texts_of
from arcpipe.lake.spool import Spool, SpoolMemory
from arcpipe.units import MB

_LEAST_ROWS: Final = 1_000  # of a row group, however wide its rows are
_MOST_COLUMN_CHUNKS: Final = 16_384  # of a file: Arrow keeps 2 KB of each until the file is finished


class OutputBounds(NamedTuple):
    """Bounds of the files, beside the settings."""

    row_group_bytes: int = 64 * MB  # in memory
    file_bytes: int = 4_000 * MB  # a store renames no larger object in one request


OnOutput = Callable[[int, Spool, Rows], None]
"""Takes a finished file: its number, its bytes (which the callback closes) and its rows."""


class Outputs:
    """The files of one merge, written one after the other."""

    def __init__(
        self,
        parquet: Parquet,
        memory: SpoolMemory,
        schema: pa.Schema,
        sorted_by: Sequence[str],
        on_file: OnOutput,
        bounds: OutputBounds | None = None,
    ) -> None:
        """Begin with no file.

        Args:
            schema: the columns as readers see them, and the metadata of the files.
            sorted_by: the names of the columns by which the rows are sorted.
        """
        self._parquet = parquet
        self._memory = memory
        self._schema = schema
        self._sorted_by = sorted_by
        self._on_file = on_file
        self._bounds = bounds or OutputBounds()
        self._most_groups = max(_MOST_COLUMN_CHUNKS // len(schema), 1)
        self._waiting: list[pa.Table] = []
        self._waiting_rows = 0
        self._file: ParquetFile | None = None
        self._groups = 0
        self._number = 0

    def group_rows(self, table: pa.Table) -> int:
        """Return the number of rows of a row group like this table."""
        width: int = table.nbytes // max(len(table), 1) + 1
        most: int = self._parquet.row_group_rows
        return min(most, max(self._bounds.row_group_bytes // width, _LEAST_ROWS))

    def add(self, table: pa.Table) -> None:
        """Append rows that come after all that were appended before."""
        self._waiting.append(table)
        self._waiting_rows += len(table)
        if self._waiting_rows < self.group_rows(table):
            return
        whole = pa.concat_tables(self._waiting)
        rows = self.group_rows(whole)
        start = 0
        while len(whole) - start >= rows:
            self._write(whole.slice(start, rows))
            start += rows
        self._waiting = [whole.slice(start)] if start < len(whole) else []
        self._waiting_rows = len(whole) - start

    def close(self) -> None:
        """Write the rest, and finish the last file."""
        if self._waiting_rows:
            self._write(pa.concat_tables(self._waiting))
        self._waiting = []
        self._finish()

    def abort(self) -> None:
        """Drop the file that is open."""
        if self._file is not None:
            self._file.abort()
            self._file = None

    def _write(self, table: pa.Table) -> None:
        group = compacted(with_one_dictionary(table))
        texts = texts_of(group, HUGE_BYTES)
        special = Special(texts.huge, far_columns(self._parquet, group, by_time=False))
        size = most_bytes(group)
        file = self._file
        if file is not None and (
            self._groups >= self._most_groups
            or not file.has_room(size)
            or file.size + size > self._bounds.file_bytes
            or not file.special.covers(special)
        ):
            self._finish()
        span = pc.min_max(group.column(TIME).cast(pa.int64())).as_py()
        if self._file is None:
            # `is_small` would hold the whole file in memory.
            self._file = ParquetFile(
                *(self._parquet, self._memory, self._schema, span["min"], group, special),
                is_small=False,
                sorted_by=self._sorted_by,
            )
        self._file.append_between(group, span["min"], span["max"])
        self._groups += 1

    def _finish(self) -> None:
        if self._file is None:
            return
        file, self._file, self._groups = self._file, None, 0
        try:
            spool = file.finish()
        except BaseException:
            file.abort()
            raise
        number, self._number = self._number, self._number + 1
        self._on_file(number, spool, file.rows)
