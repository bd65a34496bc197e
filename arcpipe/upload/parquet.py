"""Arrow tables -> Parquet files, one series of files per (database, measurement, UTC hour).

Files are functions of their tables and of the settings: the same tables make the same bytes under the same keys. Bytes
wait for their upload in a `Spool`: in memory while they are few, in an unlinked file beyond that.
This module must not know MessagePack, the WAL, threads or object stores.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Final

import pyarrow as pa

from arcpipe.codec.columns import TIME
from arcpipe.lake.encodings import far_columns
from arcpipe.lake.file_schema import file_metadata, for_readers, union
from arcpipe.lake.keys import Partition
from arcpipe.lake.open_files import Quota, open_file_cost, row_group_cost
from arcpipe.lake.parquet_file import ParquetFile, Rows, Special, most_bytes, name_bytes, texts_of
from arcpipe.lake.spool import Spool
from arcpipe.units import MB
from arcpipe.upload.file_settings import FileSettings

# Largest file of one row group that is made in Arrow's memory and spooled in one piece: it needs no GIL until then.
_SMALL_FILE_BYTES: Final = 4 * MB


class Unwritable(Exception):
    """The Parquet writer refuses rows; the text says why. Trying again does not help."""


@contextlib.contextmanager
def _refusals() -> Iterator[None]:
    """Raise Unwritable for the errors of the writer, but not for a disk or memory that is full.

    An OSError of the system has a number. One of pyarrow has no number where Parquet itself complains.
    """
    try:
        yield
    except MemoryError:
        raise
    except OSError as error:
        if error.errno is not None:
            raise
        raise Unwritable(f"OSError: {error}") from error
    except Exception as error:
        raise Unwritable(f"{type(error).__name__}: {error}") from error


OnFile = Callable[[str, Spool, Rows], None]
"""Takes a finished file: its key, its bytes (which the callback closes) and its rows."""


class PartitionWriters:
    """The open files of one measurement in one batch. One thread at a time.

    `append` takes the rows of one hour, sorted by time, as row groups of that hour's file. A file is finished when the
    next row group might not fit under `parquet.max_file_mb` or would make the file too costly. A new column, another
    type or a first huge value in a column also finish it (the next file then has the columns of both). So do numbers
    that do not suit the file's encodings, more open hours or a higher cost than `limit` allows, and `close`.

    All methods but `abort` raise Unwritable where the writer refuses rows; then only `abort` may follow.
    """

    __slots__ = (
        "_far",
        "_numbers",
        "_on_file",
        "_open",
        "_quota",
        "_settings",
        "cost",
        "database",
        "measurement",
        "width",
    )

    def __init__(self, settings: FileSettings, database: str, measurement: str, on_file: OnFile) -> None:
        self.cost = 0  # of all open files
        self.width = 0  # columns of the widest file so far
        self._quota = settings.open_files.quota(1)
        self._settings = settings
        self.database = database
        self.measurement = measurement
        self._on_file = on_file
        self._open: dict[int, ParquetFile] = {}  # by hour, the one appended to longest ago first
        self._numbers: dict[int, int] = {}
        self._far: frozenset[str] = frozenset()  # the columns of `far_columns` so far

    def append(self, hour_us: int, table: pa.Table, first_us: int, *, last: bool = False) -> None:
        """Write rows of the hour that begins at `hour_us`; `first_us` is the time of the first one.

        Args:
            last: no more rows of this hour come before `close`: its file is finished at once.
        """
        file = self._open.get(hour_us)
        schema = for_readers(table.schema)
        if file is not None:
            schema = union(file.schema, schema)
            if not schema.equals(file.schema, check_metadata=True):
                self._finish(hour_us)
        schema = schema.with_metadata(file_metadata(self.database, self.measurement, self._settings.batch_id))
        settings = self._settings
        for piece, size in self._pieces(table):
            texts = texts_of(piece, settings.huge_bytes)
            special = Special(texts.huge, far_columns(settings.parquet, piece))
            cost = row_group_cost(len(schema), name_bytes(schema), texts.statistics_bytes)
            file = self._open_file(hour_us, cost, size, special)
            if file is None:
                self._far |= special.far
                special = special._replace(far=self._far)
                at = first_us if piece is table else piece.column(TIME)[0].value
                is_small = last and piece is table and size <= _SMALL_FILE_BYTES
                self._make_room(1, open_file_cost(len(schema), name_bytes(schema)) + cost)
                with _refusals():
                    file = ParquetFile(settings.parquet, settings.memory, schema, at, piece, special, is_small)
                self._open[hour_us] = file
                self._numbers[hour_us] = self._numbers.get(hour_us, -1) + 1
                self.cost += file.cost
                self.width = max(self.width, len(schema))
            with _refusals():
                file.append(piece)
            file.cost += cost
            self.cost += cost
            if self.cost > self._quota.cost:  # by this row group alone
                self._finish(hour_us)
        if last and hour_us in self._open:
            self._finish(hour_us)

    def _open_file(self, hour_us: int, cost: int, size: int, special: Special) -> ParquetFile | None:
        """Return the hour's open file if a row group of this cost and size may go into it; else finish it."""
        file = self._open.pop(hour_us, None)
        if file is None:
            return None
        self._open[hour_us] = file  # as the last one
        most_cost = min(self._settings.open_files.file_cost, self._quota.cost)
        fits = file.cost + cost <= most_cost and file.has_room(size)
        if not fits or not file.special.covers(special):
            self._finish(hour_us)
            return None
        self._make_room(0, cost)
        return file

    def _pieces(self, table: pa.Table) -> list[tuple[pa.Table, int]]:
        """Cut a table into row groups, each with the bytes that it may need: one, unless that might overfill a file."""
        most = most_bytes(table)
        if most <= self._settings.max_bytes:
            return [(table, most)]
        rows = -(-len(table) // min(len(table), -(-most * 4 // self._settings.max_bytes)))
        pieces = [table.slice(start, rows) for start in range(0, len(table), rows)]
        return [(piece, most_bytes(piece)) for piece in pieces]

    def limit(self, quota: Quota) -> None:
        """Finish the files appended to longest ago until the open ones are within `quota`, and stay within it."""
        self._quota = quota
        self._make_room(0, 0)

    def _make_room(self, files: int, cost: int) -> None:
        """Finish the files appended to longest ago, until `files` more, of `cost` bytes together, may be open."""
        while self._open and (len(self._open) + files > self._quota.files or self.cost + cost > self._quota.cost):
            self._finish(next(iter(self._open)))

    def close(self) -> None:
        """Finish all files."""
        while self._open:
            self._finish(next(iter(self._open)))

    def abort(self) -> None:
        """Drop all files unfinished."""
        for file in self._open.values():
            file.abort()
        self._open.clear()
        self.cost = 0

    def _finish(self, hour_us: int) -> None:
        file = self._open[hour_us]
        partition = Partition(self.database, self.measurement, hour_us)
        settings = self._settings
        key = partition.key(settings.layout, file.first_us, settings.batch_id, self._numbers[hour_us], settings.hidden)
        with _refusals():
            spool = file.finish()
        del self._open[hour_us]
        self.cost -= file.cost
        self._on_file(key, spool, file.rows)
