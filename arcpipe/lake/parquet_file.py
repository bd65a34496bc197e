"""One Parquet file while it is written, row group by row group, to a `Spool`.

The encodings follow from the settings and from the file's first table, so that the same tables make the same bytes.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from inspect import signature
from typing import Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from arcpipe.codec.arrow.arrays import DICTIONARY_ROWS
from arcpipe.codec.columns import TIME
from arcpipe.config.settings import Parquet
from arcpipe.lake.encodings import choose
from arcpipe.lake.open_files import STATISTICS_BYTES, open_file_cost
from arcpipe.lake.spool import Spool, SpoolMemory
from arcpipe.units import KB, MB

HUGE_BYTES: Final = MB
"""Bytes of a text or binary value above which its column has no statistics."""


class Rows(NamedTuple):
    """The rows of a file."""

    total: int
    min_us: int  # µs since the epoch: the least and the greatest time
    max_us: int


# Values per step in which a page grows: large steps are faster, but pages of long values would exceed their size.
# By the bytes of an average value up to which a table has them; a step of long ones has the last number.
_BATCHES: Final = ((32, 65_536), (256, 16_384))
_LONG_BATCH: Final = 1_024

# Most values of a page: each costs some 40 µs besides its values. Versions of pyarrow without
# this bound have pages of 1 MB, which are 131,072 floats.
_PAGE_ROWS: Final = 65_536
_PAGES: Final = (
    {"max_rows_per_page": _PAGE_ROWS} if "max_rows_per_page" in signature(pq.ParquetWriter.__init__).parameters else {}
)

# Columns above which all columns of a table share HUGE_BYTES: so the statistics of a row group stay below it.
_MANY_COLUMNS: Final = 256

_BUFFER_BYTES: Final = 256 * KB  # Arrow's writes to a spool: each takes the GIL


class Special(NamedTuple):
    """Columns that are written in another way than most of their type. A file begins where there are more of them."""

    huge: frozenset[str] = frozenset()  # with a huge value: they have no statistics
    far: frozenset[str] = frozenset()  # of `encodings.far_columns`: they are plain

    def covers(self, other: Special) -> bool:
        return self.huge >= other.huge and self.far >= other.far


class ParquetFile:
    """A Parquet file that is being written.

    Text columns are dictionary arrays or plain ones as in the first table, and later tables are made alike, because the
    writer needs one Arrow schema. For readers all of them are plain text, and the stored schema says so. Columns with a
    huge value have no statistics: Parquet drops them as too long, but computing them copies the value four times.
    """

    def __init__(
        self,
        parquet: Parquet,
        memory: SpoolMemory,
        schema: pa.Schema,
        first_us: int,
        first: pa.Table,
        special: Special,
        is_small: bool,
        sorted_by: Sequence[str] = (TIME,),
    ) -> None:
        """Open a file.

        Args:
            parquet: the settings.
            memory: bounds of the file's spool.
            schema: the columns as readers see them.
            first: the first table that will be appended.
            special: of all tables that will be appended.
            is_small: `first` is the only table.
            sorted_by: the columns by which the rows of each row group are sorted.
        """
        self.schema = schema
        self.first_us = first_us
        self.rows = Rows(0, first_us, first_us)
        self.spool = Spool(memory)
        self._most_bytes = parquet.max_file_mb * MB
        self.special = special
        huge = special.huge
        self.cost = open_file_cost(len(schema), name_bytes(schema))
        self._written = (
            first.schema
            if schema.equals(first.schema)
            else pa.schema(({field.name: field for field in [*schema, *first.schema]}).values())
        )
        texts = {field.name for field in schema if field.type == pa.string()}
        if len(first) >= DICTIONARY_ROWS:  # the others have too many different values
            texts -= {field.name for field in first.schema if field.type == pa.string()}
        encodings = choose(parquet, schema, first, texts, special.far, is_only=is_small)
        # Without a buffer, the writer would take the GIL for each page and each end of a column: thousands of times.
        self._sink = (
            pa.BufferOutputStream()
            if is_small
            else pa.BufferedOutputStream(pa.PythonFile(self.spool, mode="w"), _BUFFER_BYTES)
        )
        self._is_small = is_small
        self._writer = pq.ParquetWriter(
            self._sink,
            self._written,
            compression=encodings.codec,
            compression_level=encodings.levels,
            use_dictionary=sorted(texts) or False,
            column_encoding=encodings.by_column,
            sorting_columns=[
                pq.SortingColumn(self._written.get_field_index(name), nulls_first=name != TIME) for name in sorted_by
            ],
            write_batch_size=_batch(first),
            write_statistics=[field.name for field in schema if field.name not in huge] if huge else True,
            write_page_index=True,
            store_schema=False,
            **_PAGES,
        )

    @property
    def size(self) -> int:
        """The bytes that are written so far."""
        return int(self._sink.tell())

    def has_room(self, size: int) -> bool:
        """Tell whether a row group of at most `size` bytes may be appended."""
        return self.size + size <= self._most_bytes

    def append(self, table: pa.Table) -> None:
        """Write a table, whose columns are among the file's and which is sorted by time, as a row group."""
        times = table.column(TIME)
        self.append_between(table, times[0].value, times[-1].value)

    def append_between(self, table: pa.Table, least_us: int, greatest_us: int) -> None:
        """Write a table, whose columns are among the file's, as a row group.

        Args:
            least_us: its least time, in µs since the epoch.
            greatest_us: its greatest time.
        """
        self._writer.write_table(self._as_written(table), row_group_size=len(table))
        total, min_us, max_us = self.rows
        self.rows = Rows(total + len(table), min(min_us, least_us), max(max_us, greatest_us))

    def _as_written(self, table: pa.Table) -> pa.Table:
        if table.schema.equals(self._written):
            return table
        given = dict(zip(table.schema.names, table.columns, strict=True))
        columns = [
            _as_type(given[field.name], field.type) if field.name in given else pa.nulls(len(table), field.type)
            for field in self._written
        ]
        return pa.table(columns, schema=self._written)

    def finish(self) -> Spool:
        """Write the footer. Returns the bytes of the file."""
        stored = base64.b64encode(self.schema.serialize())
        self._writer.add_key_value_metadata({**self.schema.metadata, b"ARROW:schema": stored})
        self._writer.close()
        if self._is_small:
            self.spool.write(self._sink.getvalue())
        else:
            self._sink.detach()  # all is written; the sink would close the spool
        self.spool.flush()
        return self.spool

    def abort(self) -> None:
        """Drop the file unfinished."""
        self.spool.close()
        self._writer.is_open = False  # or it would try to finish the file when it is collected


def most_bytes(table: pa.Table) -> int:
    """Bound the bytes of a table as a row group: its size in memory, and room for headers and statistics."""
    size: int = table.nbytes
    columns: int = table.num_columns
    return size + size // 50 + 4_096 * (columns + 1)


def name_bytes(schema: pa.Schema) -> int:
    """Return the bytes of all column names, which each row group repeats."""
    return len("".join(schema.names).encode())


class Texts(NamedTuple):
    """Facts about the text and binary columns of a row group."""

    huge: frozenset[str]  # the columns with a huge value
    statistics_bytes: int  # sum of the longest value of each other column, where statistics store it


def texts_of(table: pa.Table, huge_bytes: int) -> Texts:
    """Look for huge values. In a table of many columns, values of a smaller size count as huge."""
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
    return Texts(frozenset(huge), statistics_bytes)


_SHORT_COLUMN: Final = 256  # bytes of a column whose size stands for its longest value, which saves a search


def _longest(column: pa.ChunkedArray) -> int:
    """Measure the longest text or binary value, in bytes."""
    longest = 0
    for chunk in column.chunks:
        offsets = np.frombuffer(chunk.buffers()[1], np.int32, len(chunk) + 1, chunk.offset * 4)
        longest = max(longest, int((offsets[1:] - offsets[:-1]).max(initial=0)))
    return longest


def _batch(table: pa.Table) -> int:
    """Choose the values per step by the column of the longest ones."""
    sizes = [column.nbytes for column in table.columns if column.type in (pa.string(), pa.binary())]
    most = max(sizes, default=0)
    return next((batch for length, batch in _BATCHES if most <= length * len(table)), _LONG_BATCH)


def _as_type(column: pa.ChunkedArray, type_: pa.DataType) -> pa.ChunkedArray:
    if column.type == type_:
        return column
    return column.dictionary_encode() if pa.types.is_dictionary(type_) else column.cast(type_)
