"""Prove that an Arrow IPC stream can be converted: its messages, its schema, every value, and the times."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from arcpipe.codec.arrow_ipc.framing import RECORD_BATCH, messages
from arcpipe.codec.arrow_ipc.times import is_text, is_time_type, read_times
from arcpipe.codec.columns import MAX_COLUMNS, quote
from arcpipe.codec.effort import Check, go_on
from arcpipe.codec.messagepack.times import RULE, BadTime, TimeRule
from arcpipe.codec.records.plan import Plan, make_plan
from arcpipe.codec.records.roles import Roles
from arcpipe.errors import BadPayload, PayloadTooLarge
from arcpipe.units import KB

# Values per decompressed byte: a boolean takes a bit, and a struct has its children's values besides. Columns of null,
# and lists of no bytes, would have any number of values without a byte.
_VALUES_PER_BYTE: Final = 16
_FREE_VALUES: Final = 1 << 16

# Of a batch that is decompressed and checked in one step.
_SECONDS_PER_BYTE: Final = 1e-9

_FRONT_BYTES: Final = 8  # before the schema: a mark, and its size
_SCHEMAS_KEPT: Final = 64  # that were checked lately
_KEPT_SCHEMA_BYTES: Final = 8 * KB  # of a schema that is remembered
_KEPT_TAGS: Final = 128  # of its request: names have up to 256 bytes each

_OPTIONS: Final = pa.ipc.IpcReadOptions(use_threads=False)


class Checked(NamedTuple):
    """A stream that can be converted."""

    rows: int
    bytes: int  # of its buffers, decompressed
    tags: list[str]  # the tags that it has


def check_stream(
    body: bytes | memoryview,
    max_bytes: int,
    check: Check = go_on,
    *,
    roles: Roles,
    rule: TimeRule = RULE,
) -> Checked:
    """Check a stream in full.

    Args:
        max_bytes: that it may have, decompressed, and with each value of a dictionary written out.
        check: as in `arcpipe.codec.effort`.
        rule: how times that are numbers or texts are read.

    Raises:
        BadPayload: it cannot be converted.
        PayloadTooLarge: it becomes too large.
    """
    rows, size = _measure(body, max_bytes, check)
    check(size * _SECONDS_PER_BYTE, size - len(body))
    try:
        return Checked(rows, size, _check_batches(body, max_bytes, check, roles, rule))
    except UnicodeDecodeError:
        raise BadPayload("a name in the Arrow schema is not valid UTF-8") from None


def _check_batches(
    body: bytes | memoryview, max_bytes: int, check: Callable[[], None], roles: Roles, rule: TimeRule
) -> list[str]:
    """Check all record batches; return the tags that they have."""
    plan: Plan | None = None
    dictionaries: list[int] = []
    left = max_bytes
    is_near = False  # the limit: from now on bytes are counted, not bounded
    for number, batch in enumerate(read_batches(body)):
        check()
        if plan is None:
            plan, dictionaries = _checked_schema(body, batch.schema, roles)
        try:
            batch.validate(full=True)
        except pa.ArrowException as error:
            raise BadPayload(f"record batch {number} is not valid Arrow: {_first_line(error)}") from None
        left -= _written_out(batch, dictionaries) if is_near else _most_written_out(batch, dictionaries)
        if left < 0 and not is_near:
            is_near = True
            left = max_bytes - _written_out_before(body, number, dictionaries, check)
        if left < 0:
            raise PayloadTooLarge(f"the Arrow IPC stream has more than {max_bytes} bytes without its dictionaries")
        if plan.time is not None:
            check_times(batch.column(batch.schema.get_field_index(plan.time)), rule, number, check)
    return plan.tags if plan is not None else []


class _Schemas:
    """The schemas that were checked lately: small streams of one sender have the same one again and again."""

    def __init__(self) -> None:
        self._known: dict[tuple[bytes, str, str, frozenset[str]], tuple[Plan, list[int]]] = {}

    def find(self, key: tuple[bytes, str, str, frozenset[str]]) -> tuple[Plan, list[int]] | None:
        return self._known.get(key)

    def add(self, key: tuple[bytes, str, str, frozenset[str]], found: tuple[Plan, list[int]]) -> None:
        if len(self._known) >= _SCHEMAS_KEPT:
            self._known.clear()
        self._known[key] = found


_schemas: Final = _Schemas()


def _checked_schema(body: bytes | memoryview, schema: pa.Schema, roles: Roles) -> tuple[Plan, list[int]]:
    """Return the plan of a stream, and its columns with dictionaries. Raises BadPayload as `check_schema`."""
    key = None
    front = _FRONT_BYTES + int.from_bytes(body[4:_FRONT_BYTES], "little")
    if front <= _KEPT_SCHEMA_BYTES and len(roles.tags) <= _KEPT_TAGS:
        key = bytes(body[:front]), roles.measurement, roles.time, roles.tags
        found = _schemas.find(key)
        if found is not None:
            return found
    plan = check_schema(schema, roles)
    found = plan, [at for at, field in enumerate(schema) if pa.types.is_dictionary(field.type)]
    if key is not None:
        _schemas.add(key, found)
    return found


def read_schema(body: bytes | memoryview) -> pa.Schema:
    """Read the schema of a stream. Raises BadPayload as `read_batches`."""
    try:
        with pa.ipc.open_stream(pa.py_buffer(body), options=_OPTIONS) as reader:
            return reader.schema
    except (pa.ArrowException, OSError) as error:
        raise BadPayload(f"the body is no Arrow IPC stream: {_first_line(error)}") from None


def read_batches(body: bytes | memoryview) -> Iterator[pa.RecordBatch]:
    """Read the record batches of a stream. The memory of `body` is theirs where they are not compressed.

    Raises:
        BadPayload: pyarrow cannot read it.
    """
    try:
        with pa.ipc.open_stream(pa.py_buffer(body), options=_OPTIONS) as reader:
            yield from reader
    except (pa.ArrowException, OSError) as error:  # OSError for damaged metadata: nothing is read from a disk here
        raise BadPayload(f"the body is no Arrow IPC stream: {_first_line(error)}") from None


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0][:200]


def _measure(body: bytes | memoryview, max_bytes: int, check: Callable[[], None]) -> tuple[int, int]:
    """Count rows and decompressed bytes without decompressing anything."""
    rows = size = values = 0
    for message in messages(memoryview(body)):
        check()
        size += message.bytes
        values += message.values
        if message.kind == RECORD_BATCH:
            rows += message.rows
            values += message.rows
        if size > max_bytes:
            raise PayloadTooLarge(f"the Arrow IPC stream has more than {max_bytes} bytes once it is decompressed")
        if values > _FREE_VALUES + _VALUES_PER_BYTE * size:
            raise BadPayload("the Arrow IPC stream has more values than its bytes can hold: leave empty columns out")
    return rows, size


def check_schema(schema: pa.Schema, roles: Roles) -> Plan:
    """Check names and types; return the plan of the columns. Columns of the type null are left out.

    Raises:
        BadPayload: a name or a type is not taken.
    """
    if len(schema) > MAX_COLUMNS:
        raise BadPayload(f"more than {MAX_COLUMNS} columns")
    seen: set[str] = set()
    for name in schema.names:
        if name in seen:
            raise BadPayload(f"column {quote(name)} is there twice")
        seen.add(name)
    for field in schema:
        nested = _untaken(storage_of(field.type), is_nested=False)
        if nested is not None:
            raise BadPayload(f"column {quote(field.name)} has the Arrow type {nested}, which is not taken")
    plan = plan_of(schema, roles)
    if plan.time is not None and not is_time_type(storage_of(schema.field(plan.time).type)):
        type_ = schema.field(plan.time).type
        raise BadPayload(f"column {quote(plan.time)} has the Arrow type {str(type_)[:80]}, which is no type of a time")
    return plan


def plan_of(schema: pa.Schema, roles: Roles) -> Plan:
    """Return the plan of the columns that are not of the type null. Raises BadPayload for their names."""
    kept = [field.name for field in schema if not pa.types.is_null(field.type) or field.name == roles.time]
    return make_plan(kept, roles.measurement, roles)


def storage_of(type_: pa.DataType) -> pa.DataType:
    """Return the type of the values of an extension type; any other type is itself."""
    while isinstance(type_, pa.BaseExtensionType):
        type_ = type_.storage_type
    return type_


# Ids of intervals in months, and in days and milliseconds: pyarrow reads them, and has no arrays for them.
_UNKNOWN_TYPES: Final = (21, 22)


def _untaken(type_: pa.DataType, *, is_nested: bool) -> str | None:
    """Return the name of a type within this one that is not taken; None if all are."""
    types = pa.types
    type_ = storage_of(type_)
    if types.is_dictionary(type_):
        if is_nested:
            return "dictionary within another type"
        if types.is_nested(type_.value_type) or types.is_dictionary(type_.value_type):
            return "dictionary of nested values"
        return _untaken(type_.value_type, is_nested=True)
    if types.is_union(type_) or types.is_run_end_encoded(type_):
        return str(type_)[:80]
    if types.is_list_view(type_) or types.is_large_list_view(type_) or type_.id in _UNKNOWN_TYPES:
        return str(type_)[:80]
    for at in range(type_.num_fields):
        found = _untaken(type_.field(at).type, is_nested=True)
        if found is not None:
            return found
    return None


def _most_written_out(batch: pa.RecordBatch, dictionaries: list[int]) -> int:
    """Return a bound of `_written_out` that needs no look at the rows: nearly all streams are far below the limit."""
    total = 0
    for array in map(batch.column, dictionaries):
        lengths = _lengths(array.dictionary)
        if lengths is not None and len(lengths):
            total += len(array) * int(lengths.max())
    return total


def _written_out_before(body: bytes | memoryview, last: int, dictionaries: list[int], check: Callable[[], None]) -> int:
    """Count `_written_out` of all batches up to number `last`: a stream near the limit is read once more."""
    total = 0
    for batch in islice(read_batches(body), last + 1):
        check()
        total += _written_out(batch, dictionaries)
    return total


def _written_out(batch: pa.RecordBatch, dictionaries: list[int]) -> int:
    """Count the bytes of texts and binary values in the columns of dictionaries, as often as rows have them."""
    total = 0
    for array in map(batch.column, dictionaries):
        lengths = _lengths(array.dictionary)
        if lengths is not None and len(lengths):
            counts = np.bincount(array.indices.drop_null().to_numpy(), minlength=len(lengths))
            total += int((counts * lengths).sum())
    return total


def _lengths(values: pa.Array) -> npt.NDArray[np.int64] | None:
    """Return the bytes of each text or binary value; None for values of other types."""
    types = pa.types
    while isinstance(values, pa.ExtensionArray):
        values = values.storage
    if types.is_fixed_size_binary(values.type):
        return np.full(len(values), values.type.byte_width)
    if types.is_string_view(values.type) or types.is_binary_view(values.type):
        values = values.cast(pa.large_binary())
    elif not (is_text(values.type) or types.is_binary(values.type) or types.is_large_binary(values.type)):
        return None
    lengths: npt.NDArray[np.int64] = pc.fill_null(pc.binary_length(values), 0).to_numpy(zero_copy_only=False)
    return lengths.astype(np.int64, copy=False)


def check_times(array: pa.Array, rule: TimeRule, number: int, check: Callable[[], None] = go_on) -> None:
    """Check the times of record batch `number`.

    Raises:
        BadPayload: a value is no time of the years 1 to 9999.
    """
    if isinstance(array, pa.ExtensionArray):
        array = array.storage
    try:
        odd = read_times(array, rule, check).odd
    except BadTime as error:
        raise BadPayload(f"the time of row {error.row} in record batch {number}: {error}") from None
    if len(odd):
        raise BadPayload(f"the time of row {int(odd[0])} in record batch {number} is not of the years 1 to 9999")
