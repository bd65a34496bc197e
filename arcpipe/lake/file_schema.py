"""The columns of Parquet files: their special names, their roles, and their order."""

from __future__ import annotations

from typing import Final

import pyarrow as pa

from arcpipe import __version__

HOUR_US: Final = 3_600_000_000
TIME_NS: Final = "time_ns"
"""The column of the digits below µs, with `parquet.keep_nanoseconds`."""
RESCUED_DATA: Final = "_rescued_data"
"""The column of the values that fit no other, as JSON: see `codec.rescued`."""

ROLE: Final = b"arcpipe.role"
"""Field metadata: b"time", b"tag", b"field", or b"rescued" for `_rescued_data`."""

SENDERS_NAME: Final = b"arcpipe.name"
"""Field metadata of a column whose name is not the sender's: that name. A sibling has its column's."""

TIME_TYPE: Final = pa.timestamp("us", tz="UTC")

VERSION: Final = b"arcpipe.version"
DATABASE: Final = b"arcpipe.database"
MEASUREMENT: Final = b"arcpipe.measurement"
BATCH: Final = b"arcpipe.batch"
"""File metadata: the program's version, the names as the senders wrote them, and the id of the batch or merge."""


def file_metadata(database: str, measurement: str, batch_id: str) -> dict[bytes, bytes]:
    """Return the metadata of a file."""
    return {
        VERSION: __version__.encode(),
        DATABASE: database.encode(),
        MEASUREMENT: measurement.encode(),
        BATCH: batch_id.encode(),
    }


def for_readers(schema: pa.Schema) -> pa.Schema:
    """Give the schema plain types where it has dictionaries."""
    fields = list(schema)
    if not any(pa.types.is_dictionary(field.type) for field in fields):
        return schema
    return pa.schema(
        field.with_type(field.type.value_type) if pa.types.is_dictionary(field.type) else field for field in fields
    )


def union(left: pa.Schema, right: pa.Schema) -> pa.Schema:
    """Join the columns of both in file order; where types differ, those of `right`, the newer one, count.

    What one of them calls a tag is one: values of tags tell points apart, whoever else sends them as a field.
    """
    fields = {field.name: field for field in left}
    for field in right:
        known = fields.get(field.name)
        if known is not None and known.metadata[ROLE] == b"tag" != field.metadata[ROLE]:
            field = field.with_metadata({**field.metadata, ROLE: b"tag"})
        fields[field.name] = field
    return pa.schema(sorted(fields.values(), key=file_order), metadata=left.metadata)


_ROLE_ORDER: Final = {b"time": 0, b"tag": 1, b"field": 2, b"rescued": 3}


def file_order(field: pa.Field) -> tuple[int, str]:
    """Order fields as files have them: time, its digits below µs, tags, fields, rescued values; each by name."""
    return _ROLE_ORDER[field.metadata[ROLE]], field.name
