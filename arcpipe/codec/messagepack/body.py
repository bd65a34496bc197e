"""Request bodies in MessagePack: check them, and normalise what is not columnar yet.

A body is a columnar map `{"m", "columns", "tags"?, "types"?}`, a row map `{"m", "t"?, "h"?, "fields", "tags"?}`,
`{"batch": [...]}` of both, mixed, or an array of any of these. Arc's forms are taken, too: `tag_keys` for the `tags` of
columns, an array `f` for `fields`, integers for `m` and `h`. The result (`Encoded`) is one columnar map or an array of
them. Columnar maps keep their bytes, but for Arc's forms and times that the WAL does not know (`times`). Rows of one
shape (measurement, tag names, field names) are gathered into columns. Each value keeps its bytes, so that nothing is
lost or changed.

The check covers: exactly one well-formed value, keys, names, columns that are arrays of one length, and all that would
silently drop data later (a key given twice, a key that nobody reads). The values of `time` are checked as well. It does
not read the single values of another column: the conversion to Arrow is total and rescues the odd ones.

Bounds: every path is linear in the body; a declared length is never believed, only walked; values may be nested 1024
deep. No step keeps other threads from running for more than some 20 ms: one call handles `CHUNK_BYTES`, or one value
of `MAX_VALUE_BYTES`. Besides the result, memory is a multiple of `CHUNK_BYTES` and of the longest single value or row
(and one copy of a body that is not `bytes`, or that mixes rows and columns).

This module must not know HTTP or the WAL's envelope.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Final

import msgspec

from arcpipe.codec.columns import (
    MAX_NAME_BYTES,
    TIME,
    ColumnBatch,
    Encoded,
    Maps,
    array_header,
)
from arcpipe.codec.effort import Effort, go_on
from arcpipe.codec.messagepack.columnar import IS_BATCH, IS_ROW, check_columnar
from arcpipe.codec.messagepack.layout import (
    ARRAY,
    KIND,
    KIND_NAMES,
    MAP,
)
from arcpipe.codec.messagepack.patches import patched
from arcpipe.codec.messagepack.read import (
    SHORT,
    bad_end,
    kind_of,
    read_key,
    read_length,
    truncated_at_end,
)
from arcpipe.codec.messagepack.rows import Row, gather_rows, group_by_shape, read_row, shape_batch
from arcpipe.codec.messagepack.rows_by_kernel import gather_piece
from arcpipe.codec.messagepack.times import RULE, BadTime, TimeRule, stay
from arcpipe.codec.messagepack.walk import CHUNK_BYTES, Walker
from arcpipe.errors import BadPayload
from arcpipe.units import KB

__all__ = ["Encoded", "encode"]

# Bytes of rows that are decoded in one call: msgspec takes up to 20 ms for them, and no other thread runs meanwhile.
_ROWS_BYTES: Final = 256 * KB

_ELEMENTS_BETWEEN_CHECKS: Final = 15  # a mask: `check` is called once per 16 elements of an array


def encode(body: bytes | memoryview, check: Callable[[], None] = go_on, rule: TimeRule = RULE) -> Encoded:
    """Check a request body and make it one columnar map or an array of them.

    A body that is one columnar map, or an array of nothing but columnar maps, comes back as the same object. In error
    texts elements and rows are counted from 0, and byte offsets from the start of the body.

    Args:
        check: as in `arcpipe.codec.effort`.
        rule: how its times are read.

    Raises:
        BadPayload: the body is not accepted, whatever its bytes.
        PayloadTooLarge: the body has too many shapes for its size.
    """
    data = body if type(body) is bytes else bytes(body)
    if not data:
        raise BadPayload("body is empty")
    kind = KIND[data[0]]
    try:
        if kind == MAP:
            if _is_one_record(data, rule):
                return Encoded(False, body, 1)
            end, records, patches = check_columnar(data, 0, None, rule, check)
            if end > 0:
                if end != len(data):
                    raise bad_end(data, end)
                return Encoded(False, patched(data, 0, end, patches) if patches else body, records)
            if end == IS_ROW:
                return _encode_row(data, rule, check)
        elif kind != ARRAY:
            raise BadPayload(f"body is neither a map nor an array but {KIND_NAMES[kind]}")
        gatherer = _Gatherer(data, rule, check)
        end = gatherer.batch(0, may_be_last=True) if kind == MAP else gatherer.array(0, "", may_be_last=True)
        if end != len(data):
            raise bad_end(data, end)
        return gatherer.encoded(body)
    except IndexError:  # only reading a byte of `data` raises it: the body ends too early
        raise truncated_at_end(data) from None


# The smallest bodies: one columnar map of one record, in the form that most senders use.


class _OneRecord(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    m: str
    columns: dict[str, tuple[msgspec.Raw]]


_ONE_RECORD: Final = msgspec.msgpack.Decoder(_OneRecord)
# Measurement and column names together; longer ones are left to `check_columnar`.
_ONE_RECORD_NAMES: Final = MAX_NAME_BYTES
# Too short to hold values nested deeper than `check_columnar` allows, which msgspec may allow.
_ONE_RECORD_BYTES: Final = KB


def _is_one_record(data: bytes, rule: TimeRule) -> bool:
    """Tell whether a body is `{"m": …, "columns": {name: [value], …}}`, in this order, with nothing unusual in it.

    True means that `check_columnar` accepts the body; False leaves the decision to it. One msgspec call proves all but
    three things: that no name is there twice (a dict drops one silently, but the map's header counts it), that the
    names have only allowed characters, and that the time is one.
    """
    if not 12 < len(data) <= _ONE_RECORD_BYTES or not data.startswith(b"\x82\xa1m"):
        return False
    at = 3 + SHORT[data[3]]
    if not data.startswith(b"\xa7columns", at):
        return False
    try:
        record = _ONE_RECORD.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return False
    columns = record.columns
    names = "".join((record.m, *columns))
    if (time := columns.get(TIME)) is not None:
        value = bytes(time[0])
        if value[0] not in rule.free and not stay(value, 0, len(value), 1, rule):
            return False
    return (
        names.isascii()
        and names.isprintable()
        and len(names) <= _ONE_RECORD_NAMES
        and 0 < len(columns) <= 15
        and data[at + 8] == 0x80 + len(columns)
        and "" not in columns
        and at > 4  # the measurement is not empty
    )


def _encode_row(data: bytes, rule: TimeRule, check: Callable[[], None]) -> Encoded:
    """Encode a body that is one row."""
    effort = Effort(len(data), check)
    found = gather_piece(data, 0, 1, rule, effort)
    if found is not None and found.end == len(data):
        return Encoded(False, found.maps[0][0], 1)
    batches = gather_rows(b"\x91" + data, rule, effort) if len(data) <= _ROWS_BYTES else None
    if batches is None:
        row, end = read_row(data, 0, Walker(data, check=check))
        if end != len(data):
            raise bad_end(data, end)
        try:
            batches = [shape_batch([row], bytes(row.t), rule, check)]
        except BadTime as error:
            raise BadPayload(f"'t': {error}") from None
    return Encoded(False, batches[0].encode(), 1)


# Arrays of rows, columnar maps and batches


class _Gatherer:
    """Collect the columnar maps of an array.

    Adjacent columnar maps are one span, which is copied only if the array holds anything else.
    """

    __slots__ = (
        "_data",
        "_effort",
        "_maps",
        "_patched",
        "_rule",
        "_span_end",
        "_span_maps",
        "_span_records",
        "_span_start",
        "_untouched_from",
        "_view",
        "_walker",
    )

    def __init__(self, data: bytes, rule: TimeRule, check: Callable[[], None]) -> None:
        self._data = data
        self._rule = rule
        self._patched = False  # whether a columnar map is something else in the WAL
        self._effort = Effort(len(data), check)
        self._view = memoryview(data)
        self._walker = Walker(data, check=check)
        self._maps = Maps()
        self._span_start = self._span_end = self._span_maps = self._span_records = 0
        self._untouched_from: int | None = None
        """The offset of the array if it needs no change: it is several columnar maps and nothing else."""

    def encoded(self, body: bytes | memoryview) -> Encoded:
        """Return the result for this body."""
        start = self._untouched_from
        if start is not None:
            return Encoded(True, self._view[start:] if start else body, self._span_records)
        self._end_span()
        encoded = self._maps.encoded()
        assert encoded is not None
        return encoded

    def _end_span(self) -> None:
        if self._span_maps:
            self._maps.add(self._view[self._span_start : self._span_end], self._span_records, self._span_maps)
        self._span_end = self._span_maps = self._span_records = 0

    def batch(self, pos: int, *, may_be_last: bool) -> int:
        """Take the map with the one key 'batch' at `pos`: the offset after it."""
        _keys, pos = read_length(self._data, pos)
        _name, pos = read_key(self._data, pos)
        if KIND[self._data[pos]] != ARRAY:
            raise BadPayload(f"'batch' is not an array but {kind_of(self._data, pos)}")
        return self.array(pos, " of 'batch'", may_be_last=may_be_last)

    def array(self, pos: int, where: str, *, may_be_last: bool) -> int:
        """Take the array at `pos`: the offset after it.

        Args:
            where: "" or " of 'batch'", inside which there may be no other batch.
            may_be_last: the body probably ends with this array.
        """
        data = self._data
        count, end = read_length(data, pos)
        if not count:
            raise BadPayload(f"no records: {'the batch' if where else 'the body'} is an empty array")
        number = 0
        only_columnar = True
        while number < count:
            start = end
            if number & _ELEMENTS_BETWEEN_CHECKS == _ELEMENTS_BETWEEN_CHECKS:
                self._effort.check()
            end = self._element(start, number, where)
            if end > 0:
                number += 1
                continue
            only_columnar = False
            if end == IS_BATCH:
                end = self._nested_batch(start, number, where)
                number += 1
                continue
            rows, end = self._piece(start, count - number)
            if rows:
                number += rows
                continue
            if number == 0 and may_be_last and len(data) - pos <= CHUNK_BYTES:
                batches = gather_rows(self._view[pos:], self._rule, self._effort)
                if batches is not None:
                    self._take(batches)
                    return len(data)
            starts: list[int] = []
            end = start
            while number + len(starts) < count and end - start < CHUNK_BYTES:
                starts.append(end)
                try:
                    end = self._walker.end_of(end)
                except BadPayload as error:
                    raise BadPayload(f"{error}, in element {number + len(starts) - 1}{where}") from None
            self._elements(starts, end, number, where)
            number += len(starts)
        if only_columnar and may_be_last and count > 1 and not self._patched:
            self._untouched_from = pos
        return end

    def _piece(self, start: int, count: int) -> tuple[int, int]:
        """Take rows by the native kernel: how many of these `count`, and the offset after them."""
        found = gather_piece(self._data, start, count, self._rule, self._effort)
        if found is None:
            return 0, start
        self._end_span()
        for columnar, records in found.maps:
            self._maps.add(columnar, records)
        return found.rows, found.end

    def _element(self, pos: int, number: int, where: str) -> int:
        """Take the element at `pos` if it is a columnar map: the offset after it, else IS_ROW or IS_BATCH."""
        if KIND[self._data[pos]] != MAP:
            raise BadPayload(f"element {number}{where} is not a map but {kind_of(self._data, pos)}")
        try:
            end, records, patches = check_columnar(self._data, pos, self._walker, self._rule, self._effort.check)
        except BadPayload as error:
            raise BadPayload(f"element {number}{where}: {error}") from None
        if end > 0 and patches:
            self._end_span()
            self._patched = True
            self._maps.add(patched(self._data, pos, end, patches), records)
        elif end > 0:
            if self._span_end != pos:
                self._end_span()
                self._span_start = pos
            self._span_end = end
            self._span_maps += 1
            self._span_records += records
        return end

    def _nested_batch(self, pos: int, number: int, where: str) -> int:
        if where:
            raise BadPayload(f"element {number}{where} is a batch itself")
        try:
            return self.batch(pos, may_be_last=False)
        except BadPayload as error:
            raise BadPayload(f"element {number}: {error}") from None

    def _elements(self, starts: list[int], end: int, first: int, where: str) -> None:
        """Take adjacent, well-formed elements, most of which should be rows.

        Args:
            starts: the offset of each.
            end: the offset after the last.
            first: the number of the first.
        """
        data = self._data
        batches = None
        are_few = end - starts[0] <= _ROWS_BYTES
        if are_few:
            batches = gather_rows(array_header(len(starts)) + data[starts[0] : end], self._rule, self._effort)
            if batches is not None:
                self._take(batches)
                return
        rows = []
        spans = []
        for number, (start, stop) in enumerate(pairwise((*starts, end)), first):
            if number & _ELEMENTS_BETWEEN_CHECKS == _ELEMENTS_BETWEEN_CHECKS:
                self._effort.check()
            kind = self._element(start, number, where)
            if kind == IS_ROW:
                rows.append((number, start))
                spans.append(self._view[start:stop])
            elif kind == IS_BATCH:
                self._nested_batch(start, number, where)
        if not rows:
            return
        if are_few and len(rows) < len(starts):
            batches = gather_rows(b"".join((array_header(len(rows)), *spans)), self._rule, self._effort)
        if batches is None:
            batches = self._shape([number for number, _ in rows], [self._row(*row) for row in rows])
        self._take(batches)

    def _shape(self, numbers: list[int], rows: list[Row]) -> list[ColumnBatch]:
        """Make batches of rows, which have these numbers."""
        batches = []
        for group in group_by_shape(rows, self._effort):
            times = b"".join([row.t for row in group])
            try:
                batches.append(shape_batch(group, times, self._rule, self._effort.check))
            except BadTime as error:
                bad = group[error.row]
                number = next(number for number, row in zip(numbers, rows, strict=True) if row is bad)
                raise BadPayload(f"row {number}: 't': {error}") from None
        return batches

    def _row(self, number: int, pos: int) -> Row:
        if number & _ELEMENTS_BETWEEN_CHECKS == _ELEMENTS_BETWEEN_CHECKS:
            self._effort.check()
        try:
            return read_row(self._data, pos, self._walker)[0]
        except BadPayload as error:
            raise BadPayload(f"row {number}: {error}") from None

    def _take(self, batches: list[ColumnBatch]) -> None:
        self._end_span()
        for batch in batches:
            self._effort.check()
            self._maps.add(batch.encode(), batch.records)
