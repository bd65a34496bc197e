"""The records of a request as typed columns, until it is known in which form the WAL holds them cheapest.

Many rows of one table become an Arrow IPC stream (envelope kind 3): its columns are those that were made, and the
uploader needs none of them decoded. Other requests become columnar maps (kinds 1 and 2): rows of several tables, which
one entry can only hold so; a few rows, of which a stream's schema is longer than they are; and numbers that their
column's type cannot hold, which go to its sibling. The rows of both forms are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property, lru_cache, partial
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from arcpipe.codec.columns import TIME, ColumnBatch, Encoded, Maps, array_header
from arcpipe.codec.effort import Check, Growth
from arcpipe.codec.envelope import ArrowBody, arrow_front
from arcpipe.codec.packing import FLOAT, SIGNED, UNSIGNED, bytes_of_taken, pack_taken, pack_texts, pack_wide
from arcpipe.codec.protobuf.buffer import Ints, Words
from arcpipe.codec.protobuf.fields import Mask
from arcpipe.codec.records.plan import make_plan
from arcpipe.codec.records.roles import Roles
from arcpipe.errors import BadPayload
from arcpipe.units import KB, MB

ARROW_ROWS: Final = 256
"""Rows of a request from which on it becomes an Arrow IPC stream. Each stream has a fixed cost in the uploader, which
reads the columnar maps of many entries at once. Between 128 and 256 rows worker and uploader together take as long for
either form (`benchmarks/NOTES.md`)."""

_ARROW: Final = 2  # as in `Encoded`
_NO_STREAM: Final = memoryview(b"")
_MOST_SIGNED: Final = np.uint64((1 << 63) - 1)
_EXACT: Final = 1 << 53  # the integers up to this one are all exact as float64
# Most different texts of a dictionary, and their bytes: those that Parquet takes as they are.
_DICTIONARY_TEXTS: Final = 1 << 15
_DICTIONARY_BYTES: Final = 512 * KB
_RELEASED_BYTES: Final = 32 * MB  # of maps, after which the memory of their arrays is given back


class Column:
    """A column in both forms, each of which is made when it is asked for. `pack` makes the one in MessagePack."""

    def __init__(
        self,
        make: Callable[[], pa.Array | None],
        pack: Callable[[], bytes],
        word: str | None = None,
        shared_bytes: int = 0,
    ) -> None:
        """Note how to make a column.

        Args:
            make: returns the array, or None if its Arrow type cannot hold all values.
            word: the sender's type, where MessagePack alone does not show it.
            shared_bytes: that the texts take, written out, if the array is a dictionary.
        """
        self._make = make
        self.pack = pack
        self.word = word
        self._shared_bytes = shared_bytes

    @cached_property
    def array(self) -> pa.Array | None:
        """The array, or None if its Arrow type cannot hold all values."""
        return self._make()

    @property
    def written_out_bytes(self) -> int:
        """What the texts of a dictionary take, written out."""
        return self._shared_bytes if isinstance(self.array, pa.DictionaryArray) else 0


def times(values: Ints, unit: str, missing: Mask | None = None) -> Column:
    """Make times: `unit` is "ms" or "ns"."""
    make = partial(_fixed, pa.timestamp(unit, "UTC"), values, missing)
    return Column(make, partial(pack_wide, SIGNED, values, missing))


def integers(values: Ints | Words, missing: Mask | None = None) -> Column:
    """Make integers of 64 bits."""
    unsigned = values.dtype == np.uint64

    def make() -> pa.Array | None:
        if unsigned and len(values) and values.max() > _MOST_SIGNED:
            return None
        return _fixed(pa.int64(), values, missing)

    return Column(make, partial(pack_wide, UNSIGNED if unsigned else SIGNED, values, missing), _word("i64", missing))


def doubles(values: npt.NDArray[np.float64], missing: Mask | None = None) -> Column:
    """Make doubles, bit by bit."""
    make = partial(_fixed, pa.float64(), values, missing)
    return Column(make, partial(pack_wide, FLOAT, values, missing), _word("f64", missing))


def _word(word: str, missing: Mask | None) -> str | None:
    """Return the word for a type that senders state, whatever the values; None where there are no values."""
    return None if missing is not None and missing.all() else word


def numbers(bits: Words, is_integer: Mask, missing: Mask) -> Column:
    """Make doubles and integers of one column, which is of doubles; what does not fit goes to its sibling."""

    def pack() -> bytes:
        return pack_wide(np.where(is_integer, np.uint8(SIGNED), np.uint8(FLOAT)), bits, missing)

    def make() -> pa.Array | None:
        values = bits.view(np.float64)
        if is_integer.any():
            signed = bits.view(np.int64)[is_integer]
            if not ((signed >= -_EXACT) & (signed <= _EXACT)).all():
                return None
            values = values.copy()
            values[is_integer] = signed
        return _fixed(pa.float64(), values, missing)

    return Column(make, pack, _word("f64", missing))


def booleans(values: Mask) -> Column:
    """Make booleans."""

    def pack() -> bytes:
        return array_header(len(values)) + (np.uint8(0xC2) + values.astype(np.uint8)).tobytes()

    return Column(lambda: pa.array(values), pack)


def texts(values: pa.Array) -> Column:
    """Make texts of an array of strings; null stays null."""
    return Column(lambda: values, partial(pack_texts, values))


def shared(values: pa.Array, rows: Ints, growth: Growth) -> Column:
    """Make texts that many rows share: `rows` are the indices of their values.

    Raises:
        PayloadTooLarge: as `Growth` does.
    """
    size = bytes_of_taken(values, rows)
    growth.add(size)

    def make() -> pa.Array:
        coded = values.dictionary_encode()
        different = coded.dictionary
        if not 0 < len(different) <= _DICTIONARY_TEXTS or different.nbytes > _DICTIONARY_BYTES or values.null_count:
            return values.take(pa.array(rows))
        indices = _zeros(len(rows)) if len(different) == 1 else pa.array(coded.indices.to_numpy()[rows])
        return pa.DictionaryArray.from_arrays(indices, different, safe=False)

    return Column(make, partial(pack_taken, values, rows), None, size)


@lru_cache(2)  # several columns of the same rows ask for them
def _zeros(count: int) -> pa.Array:
    return pa.array(np.zeros(count, np.int32))


def repeating(values: pa.Array) -> Column:
    """Make texts of which most repeat others of their column."""

    def make() -> pa.Array:
        coded = values.dictionary_encode()
        size = len(coded.dictionary)
        if size > len(values) // 2 or size > _DICTIONARY_TEXTS or coded.dictionary.nbytes > _DICTIONARY_BYTES:
            return values
        return coded

    return Column(make, partial(pack_texts, values), None, values.nbytes)


def _fixed(type_: pa.DataType, values: npt.NDArray[Any], missing: Mask | None) -> pa.Array:
    """Make an Arrow array of eight bytes for each value, without a copy."""
    valid = None
    if missing is not None and missing.any():
        valid = pa.py_buffer(np.packbits(~missing, bitorder="little"))
    return pa.Array.from_buffers(type_, len(values), [valid, pa.py_buffer(np.ascontiguousarray(values))])


class Rows(NamedTuple):
    """Some rows of one table."""

    table: str
    tags: Sequence[str]
    columns: dict[str, Column]
    total: int


class Collected:
    """The rows of a request. `growth` counts its shared texts."""

    def __init__(self, growth: Growth, check: Check, arrow_rows: int = ARROW_ROWS) -> None:
        """Begin without rows.

        Args:
            arrow_rows: from which on they become an Arrow IPC stream.
        """
        self.growth = growth
        self._check = check
        self._arrow_rows = arrow_rows
        self._parts: list[Rows] = []
        self._total = 0

    def add(self, table: str, tags: Sequence[str], columns: dict[str, Column], count: int) -> None:
        """Add rows of a table."""
        self._parts.append(Rows(table, tags, columns, count))
        self._total += count

    def encoded(self) -> Encoded | None:
        """Make them the body of an entry; None if there are none."""
        parts = self._parts
        if not parts:
            return None
        if self._total >= self._arrow_rows and all(_is_plain(part, parts[0]) for part in parts):
            return _stream(parts, self._total, self._check)
        maps = Maps()
        packed_bytes = 0
        for at in range(len(parts)):
            part, parts[at] = parts[at], _NO_ROWS  # both forms together would take twice the memory
            columnar = _columnar(part)
            maps.add(columnar, part.total)
            packed_bytes += len(columnar)
            del part, columnar
            if packed_bytes >= _RELEASED_BYTES:  # Arrow keeps what it has freed for a while
                packed_bytes = 0
                pa.default_memory_pool().release_unused()
            self._check()
        return maps.encoded()


_NO_ROWS: Final = Rows("", (), {}, 0)


def _is_plain(part: Rows, first: Rows) -> bool:
    """Tell whether a stream that begins with the first rows may hold these, too."""
    return (
        part.table == first.table
        and part.tags == first.tags
        and _are_fields(part.table, tuple(part.tags), tuple(part.columns))
        and all(column.array is not None for column in part.columns.values())
    )


@lru_cache(256)
def _are_fields(table: str, tags: tuple[str, ...], names: tuple[str, ...]) -> bool:
    """Tell whether these columns of a stream keep their names, which come from settings in part."""
    try:
        plan = make_plan(names, table, Roles(table, TIME, None, frozenset(tags)))
    except BadPayload:
        return False
    return plan.columns == plan.fields


def _columnar(part: Rows) -> bytes:
    columns = {name: column.pack() for name, column in part.columns.items()}
    types = {name: column.word for name, column in part.columns.items() if column.word is not None}
    return ColumnBatch(part.table, columns, part.total, part.tags, types or None).encode()


def _stream(parts: list[Rows], total: int, check: Check) -> Encoded:
    """Write rows of one table as the body of an envelope of kind 3, copying each byte once."""
    types: dict[str, pa.DataType] = {}
    for part in parts:
        for name, column in part.columns.items():
            array = column.array
            assert array is not None
            if array.null_count < len(array):  # a column without values would only be one of nulls
                known = types.setdefault(name, array.type)
                if known != array.type:  # texts, and a dictionary of them
                    types[name] = pa.string()
    schema = pa.schema(list(types.items()))
    batches = [_batch(part, schema) for part in parts]
    check()
    written_out = sum(column.written_out_bytes for part in parts for column in part.columns.values())
    size = _write(pa.MockOutputStream(), schema, batches, check)
    tags = tuple(tag for tag in parts[0].tags if tag in types)
    front = arrow_front(ArrowBody(parts[0].table, total, _NO_STREAM, size + written_out, tags or None), size)
    body = np.empty(len(front) + size, np.uint8)
    body[: len(front)] = np.frombuffer(front, np.uint8)
    _write(pa.FixedSizeBufferWriter(pa.py_buffer(body[len(front) :])), schema, batches, check)
    return Encoded(_ARROW, body.data, total)


def _batch(part: Rows, schema: pa.Schema) -> pa.RecordBatch:
    arrays = []
    for field in schema:
        column = part.columns.get(field.name)
        array = None if column is None else column.array
        if array is None or (array.null_count == len(array) and array.type != field.type):
            array = pa.nulls(part.total, field.type)
        arrays.append(array if array.type == field.type else array.cast(field.type))
    return pa.record_batch(arrays, schema=schema)


def _write(sink: Any, schema: pa.Schema, batches: list[pa.RecordBatch], check: Check) -> int:
    """Write a stream; return its bytes."""
    with pa.ipc.new_stream(sink, schema) as writer:
        for batch in batches:
            writer.write_batch(batch)
            check()
    return int(sink.tell())
