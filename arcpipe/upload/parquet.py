"""Arrow tables -> Parquet files, one series of files per (database, measurement, UTC hour).

Files are functions of the tables that they are given and of the settings: the same tables make the same bytes under
the same keys. Bytes wait for their upload in a `Spool`: in memory while they are few, in an unlinked file beyond that.
This module must not know MessagePack, the WAL, threads or object stores.
"""

from __future__ import annotations

import base64
import contextlib
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from arcpipe import __version__
from arcpipe.codec.arrow.arrays import DICTIONARY_ROWS
from arcpipe.codec.columns import TIME
from arcpipe.config.settings import MB, Parquet
from arcpipe.upload.keys import Layout, Partition
from arcpipe.upload.open_files import OPEN_FILES, STATISTICS_BYTES, OpenFiles, Quota, open_file_cost, row_group_cost
from arcpipe.upload.spool import Spool, SpoolMemory

HOUR_US: Final = 3_600_000_000
TIME_NS: Final = "time_ns"
"""Column of the digits below µs, with `parquet.keep_nanoseconds`."""
RESCUED_DATA: Final = "_rescued_data"
"""Column of the values that fit no other, as JSON: see `codec.rescued`."""

ROLE: Final = b"arcpipe.role"
"""Field metadata: b"time", b"tag", b"field", or b"rescued" for `_rescued_data`."""

TIME_TYPE: Final = pa.timestamp("us", tz="UTC")


class Unwritable(Exception):
    """The Parquet writer refuses rows; the text says why. Trying again does not help."""


@contextlib.contextmanager
def _refusals() -> Iterator[None]:
    """Raise Unwritable for what the writer raises, but not for a disk or memory that is full.

    An OSError of the system has a number. One of pyarrow has none where Parquet itself complains.
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


class Rows(NamedTuple):
    """The rows of a file."""

    total: int
    min_us: int  # µs since the epoch: the least and the greatest time
    max_us: int


OnFile = Callable[[str, Spool, Rows], None]
"""Takes a finished file: its key, its bytes (to be closed by the taker) and its rows."""


HUGE_BYTES: Final = MB
"""Bytes of a text or binary value above which its column has no statistics."""


class FileSettings(NamedTuple):
    """Settings and bounds that all files of a batch share."""

    batch_id: str
    layout: Layout
    parquet: Parquet
    memory: SpoolMemory
    open_files: OpenFiles = OPEN_FILES
    huge_bytes: int = HUGE_BYTES

    @property
    def max_bytes(self) -> int:
        return self.parquet.max_file_mb * MB


class _File:
    """A Parquet file that is being written.

    Text columns are dictionary arrays or plain ones as they are in its first table, and later ones are made alike: the
    writer wants one Arrow schema. For readers all of them are plain text, and the schema that is stored says so.
    Columns with a huge value have no statistics: Parquet drops them as too long, but to compute them copies the value
    four times.
    """

    def __init__(
        self,
        settings: FileSettings,
        schema: pa.Schema,
        first_us: int,
        first: pa.Table,
        huge: frozenset[str],
        is_small: bool,
    ) -> None:
        """`schema` is that of a reader; `first` is the first table to be appended, and the only one if `is_small`."""
        self.schema = schema
        self.first_us = first_us
        self.rows = Rows(0, first_us, first_us)
        self.spool = Spool(settings.memory)
        self._most_bytes = settings.max_bytes
        self.huge = huge
        self.cost = open_file_cost(len(schema), _name_bytes(schema))
        self._written = pa.schema(({field.name: field for field in [*schema, *first.schema]}).values())
        texts = {field.name for field in schema if field.type == pa.string()}
        if len(first) >= DICTIONARY_ROWS:  # the others have too many different values
            texts -= {field.name for field in first.schema if field.type == pa.string()}
        compression, level = settings.parquet.compression, settings.parquet.codec_level
        split = _columns_to_split(first, level) if compression == "zstd" and level is not None else set()
        # A writer that came to Python with each page and each column's end would wait for the GIL thousands of times.
        self._sink = (
            pa.BufferOutputStream()
            if is_small
            else pa.BufferedOutputStream(pa.PythonFile(self.spool, mode="w"), _BUFFER_BYTES)
        )
        self._is_small = is_small
        self._writer = pq.ParquetWriter(
            self._sink,
            self._written,
            compression=compression,
            compression_level={name: _SPLIT_LEVEL if name in split else level for name in self._written.names}
            if split
            else level,
            use_dictionary=sorted(texts) or False,
            column_encoding={
                field.name: _ENCODINGS[field.type]
                for field in schema
                if field.type in _ENCODINGS and field.name not in texts
            }
            | dict.fromkeys(split, "BYTE_STREAM_SPLIT"),
            sorting_columns=[pq.SortingColumn(0)],
            write_batch_size=_LONG_BATCH if _has_long_values(first) else _BATCH,
            write_statistics=[field.name for field in schema if field.name not in self.huge] if self.huge else True,
            write_page_index=True,
            store_schema=False,
        )

    def has_room(self, most_bytes: int) -> bool:
        """Tell whether a row group of at most `most_bytes` may be appended."""
        return bool(self._sink.tell() + most_bytes <= self._most_bytes)

    def append(self, table: pa.Table) -> None:
        """Write a table, whose columns are among the file's, as a row group."""
        given = dict(zip(table.schema.names, table.columns, strict=True))
        columns = [
            _as_type(given[field.name], field.type) if field.name in given else pa.nulls(len(table), field.type)
            for field in self._written
        ]
        self._writer.write_table(pa.table(columns, schema=self._written), row_group_size=len(table))
        times = given[TIME]
        total, min_us, max_us = self.rows
        self.rows = Rows(total + len(table), min(min_us, times[0].value), max(max_us, times[-1].value))

    def finish(self) -> Spool:
        stored = base64.b64encode(self.schema.serialize())
        self._writer.add_key_value_metadata({**self.schema.metadata, b"ARROW:schema": stored})
        self._writer.close()
        if self._is_small:
            self.spool.write(self._sink.getvalue())
        else:
            self._sink.detach()  # what it holds is written; it would close the spool
        self.spool.flush()
        return self.spool

    def abort(self) -> None:
        """Let go of the file unfinished."""
        self.spool.close()
        self._writer.is_open = False  # or it would try to finish the file when it is collected


# What is not a dictionary and has a better encoding than the plain one.
_ENCODINGS: Final = {
    **dict.fromkeys((TIME_TYPE, pa.int64(), pa.uint64(), pa.int16()), "DELTA_BINARY_PACKED"),
    pa.string(): "DELTA_LENGTH_BYTE_ARRAY",
}

# zstd level of columns that are split into one stream for each byte of a float. The lower bytes of floats of full
# precision are noise: a fast level steps over their streams, and makes less of the others than level 1 of the whole.
_SPLIT_LEVEL: Final = -3
# Values that are sampled to find such columns, and the rows below which a table is not sampled: the sample is to be a
# small part of it.
_SPLIT_SAMPLE: Final = 8_192
_SPLIT_ROWS: Final = 4 * _SPLIT_SAMPLE


def _columns_to_split(table: pa.Table, level: int) -> set[str]:
    """Find the float columns that byte stream split at its level makes smaller than zstd's `level` of the whole."""
    if len(table) < _SPLIT_ROWS:
        return set()
    whole, split = pa.Codec("zstd", level), pa.Codec("zstd", _SPLIT_LEVEL)
    chosen = set()
    for name, column in zip(table.schema.names, table.columns, strict=True):
        if column.type == pa.float64():
            sample = column.slice((len(table) - _SPLIT_SAMPLE) // 2, _SPLIT_SAMPLE).drop_null().to_numpy()
            streams = np.ascontiguousarray(sample.view(np.uint8).reshape(-1, 8).T)
            if len(split.compress(streams)) < len(whole.compress(sample)):
                chosen.add(name)
    return chosen


# Values that a page may grow by at once: large steps are faster, but pages of long values would exceed their size.
_BATCH: Final = 16_384
_LONG_BATCH: Final = 1_024
_LONG_BYTES: Final = 256  # a value, on average, from which on a column counts as long

# Columns of a table from which on they share HUGE_BYTES, so that the statistics of one row group stay below it.
_MANY_COLUMNS: Final = 256

_BUFFER_BYTES: Final = MB // 4  # Arrow's writes to a spool: each takes the GIL

# Bytes, at most, of a file of one row group that is made in Arrow's memory and spooled in one piece: no GIL until then.
_SMALL_FILE: Final = 4 * MB


def _name_bytes(schema: pa.Schema) -> int:
    return sum(len(name.encode()) for name in schema.names)


class _Texts(NamedTuple):
    """Facts about the text and binary columns of a row group."""

    huge: frozenset[str]  # the columns that have a huge value
    statistics_bytes: int  # the longest value of each other column, as far as it is stored


def _texts_of(table: pa.Table, huge_bytes: int) -> _Texts:
    if table.num_columns > _MANY_COLUMNS:
        huge_bytes = max(huge_bytes // table.num_columns, 1)
    huge = set()
    statistics_bytes = 0
    for field, column in zip(table.schema, table.columns, strict=True):
        if pa.types.is_dictionary(field.type):
            longest = max((_longest(pa.chunked_array([chunk.dictionary])) for chunk in column.chunks), default=0)
        elif field.type in (pa.string(), pa.binary()):
            longest = column.nbytes
            if longest > _SHORT_COLUMN:
                longest = _longest(column)
        else:
            continue
        if longest > huge_bytes and not pa.types.is_dictionary(field.type):
            huge.add(field.name)
        elif longest <= STATISTICS_BYTES:
            statistics_bytes += longest
    return _Texts(frozenset(huge), statistics_bytes)


_SHORT_COLUMN: Final = 256  # bytes of a whole column: its size stands for its longest value, which saves a search


def _longest(column: pa.ChunkedArray) -> int:
    """Measure the longest text or binary value, in bytes."""
    longest = 0
    for chunk in column.chunks:
        offsets = np.frombuffer(chunk.buffers()[1], np.int32, len(chunk) + 1, chunk.offset * 4)
        longest = max(longest, int((offsets[1:] - offsets[:-1]).max(initial=0)))
    return longest


def _has_long_values(table: pa.Table) -> bool:
    return any(
        column.type in (pa.string(), pa.binary()) and column.nbytes > _LONG_BYTES * len(table)
        for column in table.columns
    )


def _as_type(column: pa.ChunkedArray, type_: pa.DataType) -> pa.ChunkedArray:
    if column.type == type_:
        return column
    return column.dictionary_encode() if pa.types.is_dictionary(type_) else column.cast(type_)


def _for_readers(schema: pa.Schema) -> pa.Schema:
    """Give the schema plain types where it has dictionaries."""
    return pa.schema(
        field.with_type(field.type.value_type) if pa.types.is_dictionary(field.type) else field for field in schema
    )


class PartitionWriters:
    """The open files of one measurement in one batch. One thread at a time.

    `append` takes the rows of one hour, sorted by time, as row groups of that hour's file. A file is finished when the
    next row group might not fit under `parquet.max_file_mb` or would make the file too costly, when a column is new or
    has another type (the next file then has the columns of both) or has its first huge value, when more hours are open,
    or cost more, than `limit` allows, and by `close`.

    All but `abort` raise Unwritable where the writer refuses rows; `abort` is all that is left to do then.
    """

    __slots__ = (
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
        self._open: dict[int, _File] = {}  # by hour, the one appended to longest ago first
        self._numbers: dict[int, int] = {}

    def append(self, hour_us: int, table: pa.Table, first_us: int, *, last: bool = False) -> None:
        """Write rows of the hour that begins at `hour_us`; `first_us` is the time of the first one.

        `last` says that no more of this hour come before `close`: its file is finished at once.
        """
        file = self._open.get(hour_us)
        schema = _for_readers(table.schema)
        if file is not None:
            schema = _union(file.schema, schema)
            if not schema.equals(file.schema, check_metadata=True):
                self._finish(hour_us)
        schema = schema.with_metadata(self._metadata())
        for piece, most_bytes in self._pieces(table):
            texts = _texts_of(piece, self._settings.huge_bytes)
            cost = row_group_cost(len(schema), _name_bytes(schema), texts.statistics_bytes)
            file = self._open_file(hour_us, cost, most_bytes, texts.huge)
            if file is None:
                at = first_us if piece is table else piece.column(TIME)[0].value
                is_small = last and piece is table and most_bytes <= _SMALL_FILE
                self._make_room(1, open_file_cost(len(schema), _name_bytes(schema)) + cost)
                with _refusals():
                    file = _File(self._settings, schema, at, piece, texts.huge, is_small)
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

    def _open_file(self, hour_us: int, cost: int, most_bytes: int, huge: frozenset[str]) -> _File | None:
        """Return the hour's open file if a row group of this cost and size may go into it; else finish it."""
        file = self._open.pop(hour_us, None)
        if file is None:
            return None
        self._open[hour_us] = file  # as the last one
        most_cost = min(self._settings.open_files.file_cost, self._quota.cost)
        if file.cost + cost > most_cost or not file.has_room(most_bytes) or not file.huge >= huge:
            self._finish(hour_us)
            return None
        self._make_room(0, cost)
        return file

    def _metadata(self) -> dict[bytes, bytes]:
        return {
            b"arcpipe.version": __version__.encode(),
            b"arcpipe.database": self.database.encode(),
            b"arcpipe.measurement": self.measurement.encode(),
            b"arcpipe.batch": self._settings.batch_id.encode(),
        }

    def _pieces(self, table: pa.Table) -> list[tuple[pa.Table, int]]:
        """Cut a table into row groups, each with the bytes that it may need: one, unless that might overfill a file."""
        most = _most_bytes(table)
        if most <= self._settings.max_bytes:
            return [(table, most)]
        rows = -(-len(table) // min(len(table), -(-most * 4 // self._settings.max_bytes)))
        pieces = [table.slice(start, rows) for start in range(0, len(table), rows)]
        return [(piece, _most_bytes(piece)) for piece in pieces]

    def limit(self, quota: Quota) -> None:
        """Finish the files appended to longest ago, until what is open is within `quota`, and stay within it."""
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
        """Let go of all files unfinished."""
        for file in self._open.values():
            file.abort()
        self._open.clear()
        self.cost = 0

    def _finish(self, hour_us: int) -> None:
        file = self._open[hour_us]
        partition = Partition(self.database, self.measurement, hour_us)
        key = partition.key(self._settings.layout, file.first_us, self._settings.batch_id, self._numbers[hour_us])
        with _refusals():
            spool = file.finish()
        del self._open[hour_us]
        self.cost -= file.cost
        self._on_file(key, spool, file.rows)


def _most_bytes(table: pa.Table) -> int:
    """Bound the bytes of a table as a row group: its size in memory, and room for headers and statistics."""
    size: int = table.nbytes
    columns: int = table.num_columns
    return size + size // 50 + 4_096 * (columns + 1)


def _union(left: pa.Schema, right: pa.Schema) -> pa.Schema:
    """Join the columns of both in file order; where types or roles differ, those of `right` count, which are newer."""
    fields = {field.name: field for field in left} | {field.name: field for field in right}
    return pa.schema(sorted(fields.values(), key=file_order), metadata=left.metadata)


_ROLE_ORDER: Final = {b"time": 0, b"tag": 1, b"field": 2, b"rescued": 3}


def file_order(field: pa.Field) -> tuple[int, str]:
    """Order fields as files have them: time, its digits below µs, tags, fields, rescued values; each by name."""
    return _ROLE_ORDER[field.metadata[ROLE]], field.name
