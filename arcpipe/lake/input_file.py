"""Read a file that is merged: check that it is one of arcpipe's, then give its row groups as tables.

This module must not know stores: it reads from a spool, which holds the whole file.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from arcpipe.codec.columns import TIME
from arcpipe.errors import ArcpipeError
from arcpipe.lake.file_schema import DATABASE, MEASUREMENT, ROLE, TIME_TYPE
from arcpipe.lake.folders import Folder
from arcpipe.lake.footer_check import check_file
from arcpipe.lake.keys import database_components, measurement_components
from arcpipe.lake.parts_file import PartsFile
from arcpipe.lake.spool import Spool
from arcpipe.units import MB

_ROLES: Final = frozenset({b"time", b"tag", b"field", b"rescued"})
_TYPES: Final = frozenset(
    {pa.int16(), pa.int64(), pa.uint64(), pa.float64(), pa.bool_(), pa.string(), pa.binary(), TIME_TYPE}
)
_BUFFER_BYTES: Final = MB // 2  # of a column of a row group: by default all of it is read at once
_BATCH_ROWS: Final = 131_072  # of one table: bounds the memory of a row group whatever its file says


class Odd(ArcpipeError):
    """A file that stays as it is; the text says why, and begins with its key."""

    def __init__(self, key: str, reason: str, others: Collection[str] = ()) -> None:
        """Make the error.

        Args:
            others: more files for which it holds.
        """
        super().__init__(f"{key}: {reason}")
        self.keys = frozenset({key, *others})
        self.reason = reason


class InputFile:
    """An open file: its schema as readers see it, its names, and its rows."""

    def __init__(self, key: str, spool: Spool, folder: Folder) -> None:
        """Open a file.

        Raises:
            Odd: it cannot be read, or arcpipe did not write it.
        """
        self.key = key
        try:
            file = pq.ParquetFile(PartsFile(spool.size, spool.read_at))
            check_file(PartsFile(spool.size, spool.read_at), file.metadata)
            texts = [
                file.schema_arrow.names[number]
                for number in range(len(file.schema_arrow))
                if file.schema_arrow.field(number).type == pa.string() and _has_dictionaries(file, number)
            ]
            self._file = pq.ParquetFile(
                PartsFile(spool.size, spool.read_at),
                metadata=file.metadata,
                read_dictionary=texts,
                buffer_size=_BUFFER_BYTES,
            )
            self.dictionaries = frozenset(texts)  # the columns that come with dictionaries
            self.schema: pa.Schema = file.schema_arrow
        except (pa.ArrowException, OSError, ValueError) as error:
            raise _unreadable(key, error) from error
        metadata = self.schema.metadata or {}
        try:
            self.database = metadata[DATABASE].decode()
            self.measurement = metadata[MEASUREMENT].decode()
        except (KeyError, UnicodeDecodeError):
            raise Odd(key, "arcpipe did not write it") from None
        if folder.database not in database_components(
            self.database
        ) or folder.measurement not in measurement_components(self.measurement):
            raise Odd(key, f"it is of {self.database!r}, {self.measurement!r}, and not of its folder")
        self._check_columns()

    def _check_columns(self) -> None:
        for field in self.schema:
            role = (field.metadata or {}).get(ROLE)
            if role not in _ROLES or not (field.type in _TYPES or pa.types.is_decimal128(field.type)):
                raise Odd(self.key, f"arcpipe did not write its column {field.name!r} of type {field.type}")
        time = self.schema.get_field_index(TIME)
        if time < 0 or self.schema.field(time).type != TIME_TYPE:
            raise Odd(self.key, f"it has no column {TIME!r} of type {TIME_TYPE}")
        if len(set(self.schema.names)) < len(self.schema.names):
            raise Odd(self.key, "it has two columns of one name")

    @property
    def rows(self) -> int:
        return int(self._file.metadata.num_rows)

    @property
    def nbytes(self) -> int:
        """Estimate the bytes of all rows in memory, from the footer."""
        metadata = self._file.metadata
        groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
        return sum(map(self._bytes_of, groups))

    def _bytes_of(self, group: Any) -> int:
        fixed = rest = 0
        for number, field in enumerate(self.schema):
            if pa.types.is_string(field.type) or pa.types.is_binary(field.type):
                fixed += 4 * group.num_rows  # an index or an offset
                rest += group.column(number).total_uncompressed_size
            else:
                fixed += group.num_rows * field.type.bit_width // 8
        return fixed + rest

    def tables(self, columns: list[str] | None = None) -> Iterator[pa.Table]:
        """Yield the rows in their order; text columns may have dictionaries.

        Args:
            columns: all columns by default.

        Raises:
            Odd: a part of it cannot be read.
        """
        rows = 0
        try:
            for batch in self._file.iter_batches(_BATCH_ROWS, columns=columns):
                rows += len(batch)
                if batch.column(TIME).null_count:
                    raise Odd(self.key, f"it has a row without {TIME!r}")
                yield pa.Table.from_batches([batch])
        except (pa.ArrowException, OSError, ValueError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            raise _unreadable(self.key, error) from error
        if rows != self.rows:
            raise Odd(self.key, f"it has {rows} rows, and its footer says {self.rows}")

    def close(self) -> None:
        self._file.close()


def _has_dictionaries(file: Any, column: int) -> bool:
    groups: int = file.metadata.num_row_groups
    return groups > 0 and all(
        file.metadata.row_group(group).column(column).has_dictionary_page for group in range(groups)
    )


def _unreadable(key: str, error: Exception) -> Odd:
    return Odd(key, f"it cannot be read: {' '.join(str(error).split())[:300]}")
