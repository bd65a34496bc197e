"""Describe files as Iceberg's manifests do: partition, counts and bounds of columns, all from the footer.

Bounds are those of the footer's statistics; a column without them in any row group has none. Arrow leaves NaN out of
statistics, as Iceberg's specification wants it of bounds.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any, Final, NamedTuple

from pyiceberg.manifest import DataFile, DataFileContent, FileFormat
from pyiceberg.partitioning import PartitionSpec
from pyiceberg.transforms import VoidTransform
from pyiceberg.typedef import Record
from pyiceberg.types import (
    BinaryType,
    BooleanType,
    DecimalType,
    DoubleType,
    FloatType,
    IcebergType,
    IntegerType,
    LongType,
    StringType,
    TimestamptzType,
)
from pyiceberg.utils.truncate import truncate_upper_bound_binary_string, truncate_upper_bound_text_string

from arcpipe.codec.columns import TIME
from arcpipe.tables.base import NewFile, Refused, TableName
from arcpipe.tables.schema import shown

# Columns with counts and bounds, as `write.metadata.metrics.max-inferred-column-defaults` has it; others would make
# manifests long.
_MOST_COLUMNS: Final = 100
_TRUNCATED: Final = 16  # characters or bytes of a bound, as `write.metadata.metrics.default` has it

Encode = Callable[[Any], bytes]


class Layout(NamedTuple):
    """What a table says about its files."""

    table: TableName
    ids: Mapping[str, int]  # of the files' columns, by the name mapping
    types: Mapping[int, IcebergType]  # of the table's columns, by id
    spec: PartitionSpec
    sort_order_id: int | None  # of a sort order that begins with time, ascending; None if the table has another


def data_file(layout: Layout, file: NewFile, location: str) -> DataFile:
    """Describe a file.

    Args:
        location: its absolute URI.

    Raises:
        Refused: its times are not in one partition, or its footer does not say them.
    """
    columns = _columns_of(layout, file.metadata)
    metrics = _Metrics()
    for column in columns:
        metrics.add(column)
    metadata = file.metadata
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    described = DataFile.from_args(
        content=DataFileContent.DATA,
        file_path=location,
        file_format=FileFormat.PARQUET,
        partition=_partition(layout, file, columns),
        record_count=file.rows,
        file_size_in_bytes=file.size,
        column_sizes=metrics.sizes,
        value_counts=metrics.values,
        null_value_counts=metrics.nulls,
        nan_value_counts={},
        lower_bounds=metrics.lower,
        upper_bounds=metrics.upper,
        key_metadata=None,
        split_offsets=sorted(_offset(group.column(0)) for group in groups) or None,
        equality_ids=None,
        sort_order_id=layout.sort_order_id if _is_sorted_by_time(metadata, groups) else None,
    )
    described.spec_id = layout.spec.spec_id
    return described


class _Column(NamedTuple):
    """A column over all row groups of a file."""

    id: int
    type: IcebergType
    size: int  # compressed bytes
    values: int
    nulls: int | None  # None: not known
    least: Any  # in the form of the file; None: not known
    greatest: Any


def _columns_of(layout: Layout, metadata: Any) -> list[_Column]:
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    columns = []
    for number in range(metadata.num_columns):
        chunks = [group.column(number) for group in groups]
        name = metadata.schema.column(number).path
        if (id_ := layout.ids.get(name)) is not None:
            columns.append(_joined(id_, layout.types[id_], chunks))
    return columns


def _joined(id_: int, type_: IcebergType, chunks: list[Any]) -> _Column:
    size = sum(chunk.total_compressed_size for chunk in chunks)
    values = sum(chunk.num_values for chunk in chunks)
    nulls: int | None = 0
    least: list[Any] = []
    greatest: list[Any] = []
    is_bounded = True
    for chunk in chunks:
        told = chunk.statistics
        if told is None:
            nulls, is_bounded = None, False
            break
        nulls = nulls + told.null_count if nulls is not None and told.has_null_count else None
        if told.has_min_max:
            least.append(_comparable(type_, told.min_raw))
            greatest.append(_comparable(type_, told.max_raw))
        elif not (told.has_null_count and told.null_count == chunk.num_values):  # NaN, or a value that is too long
            is_bounded = False
    if not is_bounded or not least:
        return _Column(id_, type_, size, values, nulls, None, None)
    return _Column(id_, type_, size, values, nulls, min(least), max(greatest))


def _comparable(type_: IcebergType, raw: Any) -> Any:
    if isinstance(type_, DecimalType) and isinstance(raw, bytes):
        return int.from_bytes(raw, "big", signed=True)
    return raw


class _Metrics:
    """Counts and bounds of columns, by their ids."""

    def __init__(self) -> None:
        self.sizes: dict[int, int] = {}
        self.values: dict[int, int] = {}
        self.nulls: dict[int, int] = {}
        self.lower: dict[int, bytes] = {}
        self.upper: dict[int, bytes] = {}

    def add(self, column: _Column) -> None:
        self.sizes[column.id] = column.size
        if len(self.values) == _MOST_COLUMNS:
            return
        self.values[column.id] = column.values
        if column.nulls is not None:
            self.nulls[column.id] = column.nulls
        if column.least is not None:
            lower, upper = _bounds(column)
            if lower is not None:
                self.lower[column.id] = lower
            if upper is not None:
                self.upper[column.id] = upper


def _bounds(column: _Column) -> tuple[bytes | None, bytes | None]:
    """Return both bounds as Iceberg's single values. An upper bound that cannot be truncated is missing."""
    match column.type:
        case StringType():
            low, high = _text(column.least), _text(column.greatest)
            lower = low[:_TRUNCATED].encode() if low is not None else None
            upper = truncate_upper_bound_text_string(high, _TRUNCATED) if high is not None else None
            return lower, upper.encode() if upper is not None else None
        case BinaryType():
            return column.least[:_TRUNCATED], truncate_upper_bound_binary_string(column.greatest, _TRUNCATED)
        case DecimalType():
            return _decimal(column.least), _decimal(column.greatest)
    encode = _ENCODE.get(type(column.type))
    return (encode(column.least), encode(column.greatest)) if encode is not None else (None, None)


def _text(raw: bytes) -> str | None:
    try:
        return raw.decode()
    except UnicodeDecodeError:  # of a file that somebody else wrote
        return None


def _decimal(unscaled: int) -> bytes:
    return unscaled.to_bytes((unscaled + (unscaled < 0)).bit_length() // 8 + 1, "big", signed=True)


_ENCODE: Final[dict[type[IcebergType], Encode]] = {
    BooleanType: struct.Struct("<?").pack,
    IntegerType: struct.Struct("<i").pack,
    LongType: struct.Struct("<q").pack,
    FloatType: struct.Struct("<f").pack,
    DoubleType: struct.Struct("<d").pack,
    TimestamptzType: struct.Struct("<q").pack,
}


def _partition(layout: Layout, file: NewFile, columns: list[_Column]) -> Record:
    """Return the partition that all of the file's times are in."""
    values: list[Any] = []
    time = next((column for column in columns if column.id == layout.ids.get(TIME)), None)
    for field in layout.spec.fields:
        if isinstance(field.transform, VoidTransform):
            values.append(None)
            continue
        if time is None or time.least is None:
            raise Refused(
                f"{shown(layout.table)}: the footer of {file.key} does not say its times, so its partition is not "
                "known: did arcpipe write it?",
                key=file.key,
            )
        apply = field.transform.transform(TimestamptzType())
        first, last = apply(time.least), apply(time.greatest)
        if first != last:
            raise Refused(
                f"{shown(layout.table)}: the times of {file.key} are in more than one partition of {field.name!r}: "
                "write a file for each hour",
                key=file.key,
            )
        values.append(first)
    return Record(*values)


def _offset(chunk: Any) -> int:
    data: int = chunk.data_page_offset
    first = chunk.dictionary_page_offset if chunk.has_dictionary_page else None
    return min(data, first) if first else data


def _is_sorted_by_time(metadata: Any, groups: list[Any]) -> bool:
    """Tell whether the footer says that all rows ascend by time, in one row group or in several that follow."""
    if not groups or not all(group.sorting_columns for group in groups):
        return False
    first = [group.sorting_columns[0] for group in groups]
    if any(one.descending or metadata.schema.column(one.column_index).path != TIME for one in first):
        return False
    times = [group.column(one.column_index).statistics for group, one in zip(groups, first, strict=True)]
    return all(_follows(before, after) for before, after in pairwise(times))


def _follows(before: Any, after: Any) -> bool:
    return (
        before is not None
        and after is not None
        and before.has_min_max
        and after.has_min_max
        and before.max_raw <= after.min_raw
    )
