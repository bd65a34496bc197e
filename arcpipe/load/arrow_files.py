"""Parquet and Arrow IPC (files and streams) -> chunks of columns, one batch of rows in memory at a time.

Files that arcpipe wrote say in their schema which columns are tags. Values are sent as they are, but for types that
MessagePack has not: decimals with a fraction, dates, times of day and durations are sent as text, as Arrow prints them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import IO, Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from arcpipe.client.encoding import Stream
from arcpipe.client.options import Precision
from arcpipe.codec.arrow_ipc.odd_values import UNHELD, values_of
from arcpipe.lake.file_schema import ROLE
from arcpipe.load.chunks import BadInput, Chunk, ColumnChunk, Row, RowChunk, within
from arcpipe.load.plan import DEFAULT_DATABASE, TIME, BadPlan, Plan

_FILE_MAGIC: Final = b"ARROW1"


def read_parquet(file: IO[bytes], plan: Plan, name: str) -> Iterator[Chunk]:
    """Make chunks of a Parquet file. Raises BadInput and BadPlan."""
    try:
        # INT96 in ns would make years before 1678 and after 2261 others.
        with pq.ParquetFile(file, pre_buffer=False, coerce_int96_timestamp_unit="us") as parquet:
            plan = _with_tags(plan, parquet.schema_arrow)
            batches = parquet.iter_batches(batch_size=plan.batch_records, use_threads=False)
            yield from _chunks(batches, parquet.schema_arrow, plan, name)
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise BadInput(f"{name}: no Parquet file, or a damaged one: {error}") from None


def read_arrow(file: IO[bytes], plan: Plan, name: str) -> Iterator[Chunk]:
    """Make chunks of an Arrow file or stream. Raises BadInput and BadPlan."""
    start = file.read(len(_FILE_MAGIC))
    file.seek(0)
    try:
        if start == _FILE_MAGIC:
            with pa.ipc.open_file(file) as reader:
                batches = (reader.get_batch(number) for number in range(reader.num_record_batches))
                yield from _chunks(_validated(batches), reader.schema, _with_tags(plan, reader.schema), name)
        else:
            with pa.ipc.open_stream(file) as reader:
                yield from _chunks(_validated(reader), reader.schema, _with_tags(plan, reader.schema), name)
    except (pa.ArrowException, UnicodeDecodeError, MemoryError) as error:  # MemoryError: lengths that are damaged
        raise BadInput(f"{name}: no Arrow file or stream, or a damaged one: {error}") from None


def _validated(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Yield batches whose values are within their memory: pyarrow takes offsets and lengths of a file as they are."""
    for batch in batches:
        batch.validate(full=True)
        yield batch


def _with_tags(plan: Plan, schema: pa.Schema) -> Plan:
    """Return the plan with the tags that the file says, unless it has some of its own."""
    plan.needs_measurement()
    for tag in plan.tags:
        if tag not in schema.names:
            raise BadPlan(f"--tags: there is no column {tag!r}; there are: {', '.join(schema.names[:20])}")
    said = tuple(field.name for field in schema if (field.metadata or {}).get(ROLE) == b"tag")
    return replace(plan, tags=plan.tags or said)


def _chunks(batches: Iterator[pa.RecordBatch], schema: pa.Schema, plan: Plan, name: str) -> Iterator[Chunk]:
    if len(set(schema.names)) != len(schema.names):
        raise BadInput(f"{name}: two columns have the same name: rename one of them")
    time = plan.time_of(schema.names)
    precision = _precision(schema, time, plan)
    stream = Stream("msgpack", plan.database or DEFAULT_DATABASE, precision)
    first = 0
    for table in _regrouped(batches, schema, plan.batch_records):
        columns = {
            TIME if column == time else column: _values(table.column(column), column == time, f"{name}: {column!r}")
            for column in schema.names
        }
        chunk: ColumnChunk | RowChunk
        if plan.measurement_column:
            chunk = _by_row(stream, plan, columns, first, name)
        else:
            chunk = ColumnChunk(stream, plan.measurement, plan.tags, columns, first)
        yield from within(chunk, plan.batch_bytes)
        first += table.num_rows


def _regrouped(batches: Iterator[pa.RecordBatch], schema: pa.Schema, most: int) -> Iterator[pa.Table]:
    """Group rows, `most` at a time, however the file groups them."""
    held: list[pa.RecordBatch] = []
    rows = 0
    for batch in batches:
        while batch.num_rows:
            part = batch.slice(0, most - rows)
            held.append(part)
            rows += part.num_rows
            batch = batch.slice(part.num_rows)
            if rows == most:
                yield pa.Table.from_batches(held, schema)
                held, rows = [], 0
    if held:
        yield pa.Table.from_batches(held, schema)


def _precision(schema: pa.Schema, time: str | None, plan: Plan) -> Precision:
    """Return the unit of the times: a timestamp says its own."""
    if time is not None and pa.types.is_timestamp(schema.field(time).type):
        unit: Precision = schema.field(time).type.unit
        return unit
    return plan.precision


def _values(column: pa.ChunkedArray, is_time: bool, place: str) -> list[Any]:
    type_ = column.type
    try:
        if pa.types.is_dictionary(type_):
            column, type_ = column.cast(type_.value_type), type_.value_type
        if pa.types.is_timestamp(type_) and is_time:
            column = column.cast(pa.int64())
        elif pa.types.is_timestamp(type_):
            # MessagePack's timestamps; digits below the microsecond have no place in the files either. A zone changes
            # no instant, and Python may not know it.
            column = column.cast(pa.timestamp("us" if type_.unit == "ns" else type_.unit, "UTC"), safe=False)
        elif _is_sent_as_text(type_):
            column = column.cast(pa.string())
        elif pa.types.is_decimal(type_):
            return [None if value is None else int(value) for value in column.to_pylist()]
        if column.null_count == 0 and (pa.types.is_floating(type_) or pa.types.is_integer(type_)):
            found: list[Any] = column.to_numpy().tolist()
            return found
        return _python(column)
    except (pa.ArrowException, ValueError, OverflowError, KeyError) as error:  # KeyError: a zone, in nested values
        raise BadInput(f"{place}: values of the type {type_} cannot be sent: {error}") from None


def _python(column: pa.ChunkedArray) -> list[Any]:
    try:
        values: list[Any] = column.to_pylist()
    except UnicodeDecodeError:  # text of a damaged file
        raise
    except UNHELD:  # such as nanoseconds in a list: those become text, as over HTTP
        values = [value for chunk in column.chunks for value in values_of(chunk)]
    return values


def _is_sent_as_text(type_: pa.DataType) -> bool:
    kinds = pa.types
    has_fraction = kinds.is_decimal(type_) and type_.scale != 0
    return bool(has_fraction or kinds.is_date(type_) or kinds.is_time(type_) or kinds.is_duration(type_))


def _by_row(stream: Stream, plan: Plan, columns: dict[str, list[Any]], first: int, name: str) -> RowChunk:
    names = list(columns)
    rows = []
    for number, values in enumerate(zip(*columns.values(), strict=True), first + 1):
        record = {column: value for column, value in zip(names, values, strict=True) if value is not None}
        measurement = record.pop(plan.measurement_column, plan.measurement)
        if not isinstance(measurement, str) or not measurement:
            raise BadInput(
                f"{name}: row {number}: column {plan.measurement_column!r} names no measurement: write one there"
            )
        rows.append(Row(measurement, plan.tags, record, number))
    return RowChunk(stream, first, rows, "row")
