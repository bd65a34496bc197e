"""Arrow tables -> Parquet files, one series of files per (database, measurement, UTC hour).

Files are functions of the tables that they are given and of the settings: the same tables make the same bytes under
the same keys. Bytes wait for their upload in a `Spool`: in memory while they are few, in an unlinked file beyond that.
This module must not know MessagePack, the log, threads or object stores.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from threading import Lock
from typing import BinaryIO, Final, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from arcpipe import __version__
from arcpipe.codec.arrow.arrays import DICTIONARY_ROWS
from arcpipe.codec.columns import TIME
from arcpipe.config.settings import MB, Parquet
from arcpipe.upload.open_files import OPEN_FILES, STATISTICS_BYTES, OpenFiles, Quota, open_file_cost, row_group_cost

HOUR_US: Final = 3_600_000_000
TIME_NS: Final = "time_ns"
"""Column of the digits below µs, with `parquet.keep_nanoseconds`."""
RESCUED_DATA: Final = "_rescued_data"
"""Column of the values that fit no other, as JSON: see `codec.odd_values`."""

ROLE: Final = b"arcpipe.role"
"""Field metadata: b"time", b"tag", b"field", or b"rescued" for `_rescued_data`."""

TIME_TYPE: Final = pa.timestamp("us", tz="UTC")

Layout = Literal["arc", "hive"]

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)

# Names


_UNRESERVED: Final = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-.")
_MAX_ENCODED: Final = 120


def encode_name(name: str) -> str:
    """A database or measurement name as one path component: percent-encoded, at most 120 characters, never empty.

    What would be longer is cut and ends in `~` and a hash of the whole name. Different names stay different.
    """
    raw = name.encode()
    encoded = "".join(chr(byte) if byte in _UNRESERVED else f"%{byte:02X}" for byte in raw)
    if encoded.startswith("."):
        encoded = "%2E" + encoded[1:]
    if len(encoded) > _MAX_ENCODED:
        return f"{encoded[:100]}~{hashlib.sha256(raw).hexdigest()[:16]}"
    return encoded or "%"


class Partition(NamedTuple):
    """Where the rows of one measurement and hour go; `hour_us` is its first µs."""

    database: str
    measurement: str
    hour_us: int

    def key(self, layout: Layout, first_us: int, batch_id: str, number: int) -> str:
        """The object key of a batch's file `number` (from 0) of this partition, whose first row is of `first_us`."""
        hour, first = _EPOCH + timedelta(microseconds=self.hour_us), _EPOCH + timedelta(microseconds=first_us)
        parts = [f"{hour.year:04}", f"{hour.month:02}", f"{hour.day:02}", f"{hour.hour:02}"]
        if layout == "hive":
            parts = [f"{unit}={value}" for unit, value in zip(("year", "month", "day", "hour"), parts, strict=True)]
        measurement = encode_name(self.measurement)
        # Not strftime, which takes as long as the rest of a small file's key and folder.
        day = f"{first.year:04}{first.month:02}{first.day:02}"
        moment = f"{day}T{first.hour:02}{first.minute:02}{first.second:02}{first.microsecond:06}"
        name = f"{measurement}_{moment}_{batch_id}_{number}.parquet"
        return "/".join((encode_name(self.database), measurement, *parts, name))


# Where finished bytes wait


class SpoolMemory:
    """How many bytes all spools together may keep in memory; also the directory for those that may not."""

    def __init__(
        self, directory: str | os.PathLike[str], total_bytes: int = 64 * MB, each_bytes: int = 16 * MB
    ) -> None:
        self.directory = directory
        self.each_bytes = each_bytes
        self._left = total_bytes
        self._lock = Lock()

    def take(self, size: int) -> bool:
        with self._lock:
            if size > self._left:
                return False
            self._left -= size
            return True

    def give_back(self, size: int) -> None:
        with self._lock:
            self._left += size


class Spool:
    """Bytes that are written once, one after the other, and then read at any place by several threads (a storage Blob).

    They move from memory to an unlinked file when they are more than `SpoolMemory` allows. Raises OSError when that
    file cannot be made or written.
    """

    def __init__(self, memory: SpoolMemory) -> None:
        self._memory = memory
        self._pieces: list[bytes] = []
        self._file: BinaryIO | None = None
        self.size = 0
        self.closed = False

    def write(self, data: bytes | memoryview | pa.Buffer) -> int:
        size = memoryview(data).nbytes
        if self.closed:  # a writer that was let go of unfinished ends its file
            return size
        if self._file is None and (self.size + size > self._memory.each_bytes or not self._memory.take(size)):
            self._move_to_file()
        if self._file is None:
            self._pieces.append(bytes(data))  # no copy, if it is bytes
        else:
            self._file.write(data)
        self.size += size
        return size

    def _move_to_file(self) -> None:
        self._file = tempfile.TemporaryFile(dir=self._memory.directory)  # noqa: SIM115 (closed by close)
        pieces, self._pieces = self._pieces, []
        self._memory.give_back(self.size)
        self._file.writelines(pieces)

    def tell(self) -> int:
        return self.size

    def flush(self) -> None:
        if self._file is not None:
            self._file.flush()
        else:
            self._pieces = [b"".join(self._pieces)]

    def read_at(self, offset: int, length: int) -> bytes | memoryview:
        """`length` bytes from `offset` on, fewer at the end. Only once everything is written and flushed."""
        if self._file is None:
            return memoryview(self._pieces[0])[offset : offset + length]
        pieces = []
        while length > 0 and (piece := os.pread(self._file.fileno(), length, offset)):
            pieces.append(piece)
            offset += len(piece)
            length -= len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def close(self) -> None:
        """Lets the bytes go. Closing twice is fine."""
        if not self.closed:
            self.closed = True
            if self._file is not None:
                self._file.close()
            else:
                self._memory.give_back(self.size)
            self._pieces = []


# Open files


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


# Files


class Rows(NamedTuple):
    """The rows of a file."""

    total: int
    min_us: int  # µs since the epoch: the least and the greatest time
    max_us: int


OnFile = Callable[[str, Spool, Rows], None]
"""Takes a finished file: its key, its bytes (to be closed by the taker) and its rows."""


class FileSettings(NamedTuple):
    """What all files of a batch have in common."""

    batch_id: str
    layout: Layout
    parquet: Parquet
    memory: SpoolMemory
    open_files: OpenFiles = OPEN_FILES

    @property
    def max_bytes(self) -> int:
        return self.parquet.max_file_mb * MB


class _File:
    """A Parquet file that is being written.

    Text columns are dictionary arrays or plain ones as they are in its first table, and later ones are made alike: the
    writer wants one Arrow schema. For readers all of them are plain text, and the schema that is stored says so.
    Columns with a huge value have no statistics: they would be too long to be stored, but cost the value four times.
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
        """Whether a row group of at most so many bytes may be appended."""
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

# Floats of full precision hardly compress: their lower bytes are noise. Split into streams, one of each byte, the noise
# is stepped over by a fast level, and what is left of the others is less than level 1 makes of the whole.
_SPLIT_LEVEL: Final = -3
# Whether a column is like that, so many values tell, of tables that have some times as many.
_SPLIT_SAMPLE: Final = 8_192
_SPLIT_ROWS: Final = 4 * _SPLIT_SAMPLE


def _columns_to_split(table: pa.Table, level: int) -> set[str]:
    """The columns of floats that are smaller by byte stream split and its level than as they are by zstd's `level`."""
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


# The most values that a page may grow by at once: larger is faster, but long values want small steps.
_BATCH: Final = 16_384
_LONG_BATCH: Final = 1_024
_LONG_BYTES: Final = 256


# A value of so many bytes is huge, and a shorter one in tables of many columns: in all, the longest values of a row
# group's columns are to have no more.
_HUGE_BYTES: Final = 1 << 20
_MANY_COLUMNS: Final = 256

# What is written to other files goes to their spools by so many bytes.
_BUFFER_BYTES: Final = 256 << 10

# A file of one row group with at most so many bytes is made in Arrow's memory, and only then spooled.
_SMALL_FILE: Final = 4 * MB


def _name_bytes(schema: pa.Schema) -> int:
    return sum(len(name.encode()) for name in schema.names)


class _Texts(NamedTuple):
    """The text and binary columns of a row group."""

    huge: frozenset[str]  # those that have a huge value
    statistics_bytes: int  # of the longest value of each other one, as far as it is stored


def _texts_of(table: pa.Table) -> _Texts:
    many = table.num_columns > _MANY_COLUMNS
    huge_bytes = max(_HUGE_BYTES // table.num_columns, 1) if many else _HUGE_BYTES
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


# The values of a column of fewer bytes are not looked at.
_SHORT_COLUMN: Final = 256


def _longest(column: pa.ChunkedArray) -> int:
    """Bytes of the longest text or binary value."""
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
    """The schema with plain types where there are dictionaries."""
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
            texts = _texts_of(piece)
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
        """The hour's open file, if a row group of this cost and size may go into it; else it is finished."""
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
        """A table as row groups, each with the bytes that it may need: one, unless that might overfill a file."""
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
        """Finish the files appended to longest ago, until so many more, of that cost together, may be open."""
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
    """More bytes than the table has as a row group: its size in memory, and what headers and statistics may add."""
    size: int = table.nbytes
    columns: int = table.num_columns
    return size + size // 50 + 4_096 * (columns + 1)


def _union(left: pa.Schema, right: pa.Schema) -> pa.Schema:
    """The columns of both in file order; where they differ in type or role, those of `right`, which are newer."""
    fields = {field.name: field for field in left} | {field.name: field for field in right}
    return pa.schema(sorted(fields.values(), key=file_order), metadata=left.metadata)


_ROLE_ORDER: Final = {b"time": 0, b"tag": 1, b"field": 2, b"rescued": 3}


def file_order(field: pa.Field) -> tuple[int, str]:
    """Sorts fields as files have them: time, its digits below µs, tags, fields, rescued values; each by name."""
    return _ROLE_ORDER[field.metadata[ROLE]], field.name
