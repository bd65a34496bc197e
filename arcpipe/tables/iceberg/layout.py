"""How arcpipe makes tables, and which tables of somebody else it can append to."""

from __future__ import annotations

from typing import Any, Final, Literal

from pyiceberg.partitioning import PARTITION_FIELD_ID_START, PartitionField, PartitionSpec
from pyiceberg.schema import Schema
from pyiceberg.table import Table
from pyiceberg.table.sorting import NullOrder, SortDirection, SortField, SortOrder
from pyiceberg.transforms import (
    DayTransform,
    HourTransform,
    IdentityTransform,
    MonthTransform,
    VoidTransform,
    YearTransform,
)
from pyiceberg.types import IcebergType, NestedField, TimestamptzType

from arcpipe.codec.columns import TIME
from arcpipe.tables.base import Refused, TableName
from arcpipe.tables.iceberg.names import DATABASE, MEASUREMENT
from arcpipe.tables.schema import shown

MARKER: Final = "arcpipe.node."
"""The beginning of the properties that are markers; the id of the node follows."""
_VERSION: Final = 2  # of Iceberg's format; 3 is not written by pyiceberg

# No column of arcpipe's begins with two underscores, so no name of a sender's can be one of these.
_PARTITIONS: Final = {"day": ("__time_day", DayTransform), "hour": ("__time_hour", HourTransform)}
_OF_TIME: Final = (YearTransform, MonthTransform, DayTransform, HourTransform)

_PREVIOUS_METADATA: Final = 50  # files of earlier metadata that stay, for readers that go by a file's name


def new_schema(columns: list[tuple[str, IcebergType]]) -> Schema:
    """Number columns; every one is optional, because files of other nodes may lack it."""
    return Schema(
        *(NestedField(number, name, type_, required=False) for number, (name, type_) in enumerate(columns, 1))
    )


def new_spec(schema: Schema, partition: Literal["day", "hour"]) -> PartitionSpec:
    """Partition by the day or the hour of `time`."""
    name, transform = _PARTITIONS[partition]
    source = schema.find_field(TIME).field_id
    return PartitionSpec(PartitionField(source, PARTITION_FIELD_ID_START, transform(), name))


def new_order(schema: Schema) -> SortOrder:
    """Sort by time, as files are."""
    source = schema.find_field(TIME).field_id
    return SortOrder(SortField(source, IdentityTransform(), SortDirection.ASC, NullOrder.NULLS_LAST))


def new_properties(table: TableName, history_hours: int) -> dict[str, str]:
    """Return the properties of a new table."""
    return {
        "format-version": str(_VERSION),
        DATABASE: table[0],
        MEASUREMENT: table[1],
        "write.metadata.delete-after-commit.enabled": "true",
        "write.metadata.previous-versions-max": str(_PREVIOUS_METADATA),
        "history.expire.max-snapshot-age-ms": str(history_hours * 3_600_000),
        "write.parquet.compression-codec": "zstd",
        # A rewrite by Spark fails only if somebody changed the very files that it rewrites, and not at each append.
        "write.delete.isolation-level": "snapshot",
        "write.update.isolation-level": "snapshot",
        "write.merge.isolation-level": "snapshot",
    }


def is_ours(loaded: Table) -> bool:
    """Tell whether arcpipe made the table, or has appended to it."""
    return MEASUREMENT in loaded.metadata.properties


def require_usable(table: TableName, loaded: Table) -> None:
    """Check that arcpipe can append to a table, whoever made it.

    Raises:
        Refused: it cannot; the text says why.
    """
    metadata = loaded.metadata
    if metadata.format_version != _VERSION:
        raise Refused(
            f"{shown(table)} has version {metadata.format_version} of Iceberg's format, and arcpipe appends to version "
            f"{_VERSION} only: make another table, or set tables.iceberg.namespace_prefix"
        )
    schema = metadata.schema()
    time = next((field for field in schema.fields if field.name == TIME), None)
    if time is None or not isinstance(time.field_type, TimestamptzType):
        found = "has no column" if time is None else f"has the type {time.field_type} for the column"
        raise Refused(f"{shown(table)} is somebody else's: it {found} {TIME!r}, which has to be of type timestamptz")
    for field in metadata.spec().fields:
        if not isinstance(field.transform, VoidTransform) and not (
            isinstance(field.transform, _OF_TIME) and field.source_id == time.field_id
        ):
            raise Refused(
                f"{shown(table)} is partitioned by {field.name!r}, which is no year, month, day or hour of {TIME!r}: "
                "change its partition spec, or let arcpipe make another table"
            )


def sort_order_id(loaded: Table) -> int | None:
    """Return the id of the table's sort order if that is by time alone, ascending; else None."""
    order = loaded.metadata.sort_order()
    names: list[Any] = [loaded.metadata.schema().find_column_name(field.source_id) for field in order.fields]
    is_plain = all(
        isinstance(field.transform, IdentityTransform) and field.direction == SortDirection.ASC
        for field in order.fields
    )
    return order.order_id if names == [TIME] and is_plain else None


def markers(loaded: Table) -> dict[str, int]:
    """Return the marker of each node.

    Raises:
        Refused: one is no number.
    """
    found = {}
    for name, value in loaded.metadata.properties.items():
        if name.startswith(MARKER):
            if not value.isdecimal():
                raise Refused(
                    f"the property {name} of {'.'.join(loaded.name())} is {value!r}, and has to be a number: somebody "
                    "changed it, and without it nobody knows what the table has"
                )
            found[name.removeprefix(MARKER)] = int(value)
    return found
