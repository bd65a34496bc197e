"""Request bodies in MessagePack: check them, and normalise what is not columnar yet.

A body is a columnar map `{"m", "columns", "tags"?, "types"?}`, a row map `{"m", "t"?, "h"?, "fields", "tags"?}`,
`{"batch": [...]}` of both, mixed, or an array of any of these. What comes out (`Encoded`) is one columnar map or an
array of columnar maps. Columnar maps pass through as the bytes that they came in; rows of one shape (measurement,
tag names, field names) are gathered into columns, each value in the bytes that it came in, so that nothing is lost
or changed on the way.

Checked are: exactly one well-formed value, keys, names, columns that are arrays of one length, and whatever would
silently drop data later (a key given twice, a key that nobody reads). The single values of a column are not looked
at: the conversion to Arrow is total and rescues the odd ones.

Bounds: every path is linear in the body; a declared length is never believed, only walked; values may be nested 1024
deep. No step keeps other threads from running for more than some 20 ms: what is done in one call has `_CHUNK_BYTES`,
or is one value of `MAX_VALUE_BYTES`. Beside the result, memory is a multiple of `_CHUNK_BYTES` and of the longest
single value or row (and one copy of a body that is not `bytes`, or that mixes rows and columns).

This module must not know HTTP, the log's envelope, or Arrow.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from itertools import pairwise
from operator import itemgetter
from typing import Annotated, Final, TypeAlias

import msgpack
import msgspec

from arcpipe.codec.columns import (
    COLUMN_TYPES,
    MAX_COLUMNS,
    MAX_NAME_BYTES,
    TIME,
    ColumnBatch,
    Encoded,
    Maps,
    array_header,
    check_column_name,
    check_measurement,
    field_column_names,
    map_header,
    quote,
    str_header,
)
from arcpipe.codec.effort import Effort, go_on
from arcpipe.codec.messagepack.layout import (
    ARRAY,
    EXTENSION,
    FLOAT,
    INTEGER,
    KIND,
    KIND_NAMES,
    MAP,
    NIL,
    SIZE,
    STRING,
)
from arcpipe.errors import BadPayload

__all__ = ["Encoded", "encode"]

# Rows are decoded this many bytes at a time, because decoding may take 75 times the memory of what is decoded (a row of
# one-letter names and one-byte values), and holds up every other thread meanwhile, for 5 ms at most.
_CHUNK_BYTES: Final = 128 << 10

# The skipper is fed so many bytes at first, then as many again as it had, up to a chunk at once.
_FEED_BYTES: Final = 1 << 14

# Bytes. No value of a row may have more, nor a string, binary value or extension within an array or map: such are
# copied, and while they are, no other thread runs.
MAX_VALUE_BYTES: Final = 16 << 20
# The first bytes of those that may have so many.
_LONG_MARKERS: Final = b"\xc6\xc9\xdb"
_LONG_EXTENSION: Final = 0xC9
# If so many bytes of a value are there, and not all, then it has one of those.
_CUT_BYTES: Final = 1 << 17
# In a column of more values there may be no longer one: such columns are walked one by one.
_WALKED_VALUES: Final = 1 << 16

# Rows of more bytes are taken the exact way: msgspec takes up to 20 ms for them, in which no other thread runs.
_ROWS_BYTES: Final = 256 << 10

# Bytes of a key or name that are read: more than any of those that are taken has, and enough to show.
_SHOWN_BYTES: Final = 320

# Longer columns are left to the skipper: its memory is bounded, that of the stride proof is not.
_STRIDE_VALUES: Final = 1 << 16

_HOST: Final = "host"

# Bytes of a short string, header and all, by its first byte; 0 for anything else.
_SHORT: Final = tuple(size if kind == STRING else 0 for kind, size in zip(KIND, SIZE, strict=True))

# Columns, less one, and other things of an array after which others are given way to: they take 0.2 ms.
_COLUMNS_BETWEEN_CHECKS: Final = 255
_ELEMENTS_BETWEEN_CHECKS: Final = 15

# What `_columnar` answers instead of an offset when a map turns out not to be columnar.
_IS_ROW: Final = -1
_IS_BATCH: Final = -2


def encode(body: bytes | memoryview, check: Callable[[], None] = go_on) -> Encoded:
    """Check a request body and make it one columnar map or an array of them.

    A body that is one columnar map, or an array of nothing but columnar maps, comes back as the same object. In error
    texts elements and rows are counted from 0, and byte offsets from the start of the body.

    Args:
        check: as in `arcpipe.codec.effort`.

    Raises:
        BadPayload: the body is none that is taken, whatever its bytes.
        PayloadTooLarge: the body has too many shapes for its size.
    """
    data = body if type(body) is bytes else bytes(body)
    if not data:
        raise BadPayload("body is empty")
    kind = KIND[data[0]]
    try:
        if kind == MAP:
            if _is_one_record(data):
                return Encoded(False, body, 1)
            end, records = _columnar(data, 0, None, check)
            if end > 0:
                if end != len(data):
                    raise _bad_end(data, end)
                return Encoded(False, body, records)
            if end == _IS_ROW:
                return _encode_row(data, check)
        elif kind != ARRAY:
            raise BadPayload(f"body is neither a map nor an array but {KIND_NAMES[kind]}")
        gatherer = _Gatherer(data, check)
        end = gatherer.batch(0, may_be_last=True) if kind == MAP else gatherer.array(0, "", may_be_last=True)
        if end != len(data):
            raise _bad_end(data, end)
        return gatherer.encoded(body)
    except IndexError:  # only reading a byte of `data` raises it: the body ends before what it announced
        raise _truncated(data) from None


# The smallest bodies: one columnar map of one record, written as most senders write it.


class _OneRecord(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    m: str
    columns: dict[str, tuple[msgspec.Raw]]


_ONE_RECORD: Final = msgspec.msgpack.Decoder(_OneRecord)
# Measurement and column names together; longer ones are left to `_columnar`.
_ONE_RECORD_NAMES: Final = MAX_NAME_BYTES
# Too short to hold values nested deeper than `_columnar` allows, which msgspec may allow.
_ONE_RECORD_BYTES: Final = 1 << 10


def _is_one_record(data: bytes) -> bool:
    """Whether a body is `{"m": …, "columns": {name: [value], …}}`, in this order, with nothing unusual about it.

    Says True for nothing that `_columnar` would refuse, and leaves everything else to it. One msgspec call proves all
    but two things: that no name is there twice (a dict drops one without a word, but the map's header counts it), and
    what the names are made of.
    """
    if not 12 < len(data) <= _ONE_RECORD_BYTES or not data.startswith(b"\x82\xa1m"):
        return False
    at = 3 + _SHORT[data[3]]
    if not data.startswith(b"\xa7columns", at):
        return False
    try:
        record = _ONE_RECORD.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return False
    columns = record.columns
    names = "".join((record.m, *columns))
    return (
        names.isascii()
        and names.isprintable()
        and len(names) <= _ONE_RECORD_NAMES
        and 0 < len(columns) <= 15
        and data[at + 8] == 0x80 + len(columns)
        and "" not in columns
        and at > 4  # the measurement is not empty
    )


# Columnar maps: one walk over the headers and names. Values are proven to be there, not read.


def _columnar(data: bytes, pos: int, skipper: _Skipper | None, check: Callable[[], None]) -> tuple[int, int]:
    """Check the columnar map at `pos`: (offset after it, records), or (_IS_ROW or _IS_BATCH, 0)."""
    marker = data[pos]
    if marker <= 0x8F:
        keys = marker & 15
        pos += 1
    else:
        keys, pos = _length(data, pos)
    measured = False
    names: list[bytes] | None = None
    tags: set[bytes] | None = None
    types: set[bytes] | None = None
    records = 0
    for _ in range(keys):
        short = _SHORT[data[pos]]
        if short:
            end = pos + short
            key = data[pos + 1 : end]
        else:
            key, end = _key(data, pos)
        if key == b"m" and not measured:
            measured = True
            pos = _measurement(data, end)
        elif key == b"columns" and names is None:
            names, records, pos = _columns(data, end, skipper, check)
        elif key == b"tags" and tags is None:
            if names is None and KIND[data[end]] != ARRAY:
                return _IS_ROW, 0
            tags, pos = _tags(data, end)
        elif key == b"types" and types is None:
            types, pos = _types(data, end)
        elif key in (b"t", b"h", b"fields") and names is None:
            return _IS_ROW, 0
        elif key == b"batch":
            if keys > 1:
                raise BadPayload("beside 'batch' there are other keys")
            return _IS_BATCH, 0
        else:
            raise _bad_key(data, pos, key, end, (b"m", b"columns", b"tags", b"types"), "a columnar map")
    if pos > len(data):
        raise _truncated(data)
    if not measured:
        raise BadPayload("measurement 'm' is missing")
    if names is None:
        raise BadPayload("neither 'columns' nor 'fields' is there")
    if tags and (unknown := tags.difference(names)):
        raise BadPayload(f"tag {quote(min(unknown))} is not a column")
    if types and (unknown := types.difference(names)):
        raise BadPayload(f"'types' names {quote(min(unknown))}, which is not a column")
    return pos, records


def _columns(
    data: bytes, pos: int, skipper: _Skipper | None, check: Callable[[], None]
) -> tuple[list[bytes], int, int]:
    """Check the map of columns at `pos`: (names, records, offset after it).

    The offset lies beyond the end of `data` if the last value is cut off there, as that of any value whose bytes are
    not read (a name, a number): the next read at it finds that, or `_columnar` at its end.
    """
    marker = data[pos]
    if 0x80 <= marker <= 0x8F:
        columns = marker & 15
        pos += 1
    elif KIND[marker] == MAP:
        columns, pos = _length(data, pos)
    else:
        raise BadPayload(f"'columns' is not a map but {_kind(data, pos)}")
    if not 0 < columns <= MAX_COLUMNS:
        raise BadPayload(f"more than {MAX_COLUMNS} columns" if columns else "'columns' is empty")
    size = len(data)
    names: list[bytes] = []
    seen: set[bytes] = set()
    checked = 0
    records = -1
    for number in range(columns):
        if number & _COLUMNS_BETWEEN_CHECKS == _COLUMNS_BETWEEN_CHECKS:
            latest = names[checked:]
            _check_names(latest)
            seen.update(latest)
            checked = number
            check()
        short = _SHORT[data[pos]]
        if short:
            start = pos + short
            name = data[pos + 1 : start]
        else:
            name, start = _key(data, pos)
            if len(name) > MAX_NAME_BYTES:
                raise _long_name(data, "column name", pos)
        names.append(name)
        marker = data[start]
        if marker == 0xDC:
            count = data[start + 1] << 8 | data[start + 2]
            pos = start + 3
        elif 0x90 <= marker <= 0x9F:
            count = marker & 15
            pos = start + 1
        elif marker == 0xDD:
            count, pos = _length(data, start)
        else:
            raise BadPayload(f"column {quote(name)} is not an array but {_kind(data, start)}")
        if count != records:
            if not count:
                raise BadPayload(f"no records: column {quote(name)} has no values")
            if records > 0:
                raise BadPayload(f"column {quote(name)} has {count} values, {quote(names[0])} has {records}")
            records = count

        # Where the first byte of a value fixes its width, it leads to the first byte of the next: equal bytes at that
        # stride prove a whole column. Any other column is walked value by value, in C. The last value is looked at
        # before the rest because it alone nearly always shows that the column is not of that kind.
        marker = data[pos]
        width = SIZE[marker]
        if width:
            end = pos + width * count
            if count == 1 or (
                end <= size
                and data[end - width] == marker
                and count <= _STRIDE_VALUES
                and data[pos:end:width] == data[pos : pos + 1] * count
            ):
                pos = end
                continue
        if skipper is None:
            skipper = _Skipper(data, check)
        try:
            try:
                pos = skipper.skip(start)
            except _LongValue:
                if count > _WALKED_VALUES:
                    raise
                pos = _walk(data, pos, count, skipper, check)
        except BadPayload as error:
            raise BadPayload(f"{error}, in column {quote(name)}") from None
    latest = names[checked:] if checked else names
    _check_names(latest)
    seen.update(latest)
    if len(seen) != columns:
        raise BadPayload(f"column {quote(_repeated(names))} is there twice")
    return names, records, pos


def _walk(data: bytes, pos: int, count: int, skipper: _Skipper, check: Callable[[], None]) -> int:
    """The offset after `count` values from `pos` on, of which strings and binary values may have any length.

    As that of `_columns`, it lies beyond the end of `data` if the last value is cut off.
    """
    for number in range(count):
        if number & _COLUMNS_BETWEEN_CHECKS == _COLUMNS_BETWEEN_CHECKS:
            check()
        marker = data[pos]
        if marker in _LONG_MARKERS:
            start = pos + 5
            data[start - 1]  # a slice would be shorter without a word
            pos = start + (marker == _LONG_EXTENSION) + int.from_bytes(data[pos + 1 : start], "big")
        else:
            pos = skipper.skip(pos)
    return pos


def _check_names(names: list[bytes]) -> None:
    joined = b"".join(names)
    if not joined.isascii() or not joined.decode("ascii").isprintable() or not all(names):
        for name in names:
            check_column_name(_text("column name", name))


def _repeated(names: list[bytes]) -> bytes:
    return Counter(names).most_common(1)[0][0]


def _measurement(data: bytes, pos: int) -> int:
    """Check the measurement at `pos`: the offset after it."""
    short = _SHORT[data[pos]]
    start, end = (pos + 1, pos + short) if short else _string(data, pos, "measurement 'm'")
    if end - start > MAX_NAME_BYTES:
        raise _long_name(data, "measurement", pos)
    name = data[start:end]
    if not name or not name.isascii() or not name.decode("ascii").isprintable():
        if end > len(data):
            raise _truncated(data)
        check_measurement(_text("measurement", name))
    return end


def _tags(data: bytes, pos: int) -> tuple[set[bytes], int]:
    """The first bytes of the names in the `tags` array of a columnar map, and the offset after it."""
    if KIND[data[pos]] != ARRAY:
        raise BadPayload(f"'tags' is not an array but {_kind(data, pos)}")
    count, pos = _length(data, pos)
    if count > MAX_COLUMNS:
        raise BadPayload(f"more than {MAX_COLUMNS} tags")
    tags: set[bytes] = set()
    for _ in range(count):
        start, pos = _string(data, pos, "a name in 'tags'")
        tags.add(data[start : pos if pos - start < _SHOWN_BYTES else start + _SHOWN_BYTES])
    if b"time" in tags:
        raise BadPayload("column 'time' is the timestamp and cannot be a tag")
    return tags, pos


def _types(data: bytes, pos: int) -> tuple[set[bytes], int]:
    """The names in the `types` map of a columnar map, and the offset after it."""
    if KIND[data[pos]] != MAP:
        raise BadPayload(f"'types' is not a map but {_kind(data, pos)}")
    count, pos = _length(data, pos)
    if count > MAX_COLUMNS:
        raise BadPayload(f"more than {MAX_COLUMNS} types")
    names: set[bytes] = set()
    for _ in range(count):
        name, pos = _key(data, pos)
        start, pos = _string(data, pos, f"the type of column {quote(name)}")
        word = data[start : min(pos, start + _SHOWN_BYTES)]
        if pos > len(data):
            raise _truncated(data)
        if word not in _TYPE_WORDS:
            raise BadPayload(
                f"column {quote(name)} has the unknown type {quote(word)}, not one of "
                + ", ".join(sorted(COLUMN_TYPES))
            )
        if name in names:
            raise BadPayload(f"'types' names column {quote(name)} twice")
        names.add(name)
    return names, pos


_TYPE_WORDS: Final = frozenset(word.encode() for word in COLUMN_TYPES)


# Rows, the quick way: one msgspec call for many, then work per shape.

_ABSENT: Final = msgspec.Raw(b"\xc0")  # stands for a missing 't' or 'h'; told from a nil that was sent by identity
_NO_TAGS: Final[dict[str, msgspec.Raw]] = {}  # stands for missing 'tags'; told from an empty map by identity

_RawMap: TypeAlias = Annotated[dict[str, msgspec.Raw], msgspec.Meta(max_length=MAX_COLUMNS)]


class _Row(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    m: str
    fields: _RawMap
    t: msgspec.Raw = _ABSENT
    h: msgspec.Raw = _ABSENT
    tags: _RawMap = msgspec.field(default_factory=lambda: _NO_TAGS)


_ROWS: Final = msgspec.msgpack.Decoder(list[_Row])
_STRINGS: Final = msgspec.msgpack.Decoder(list[str])


def _gather(data: bytes | memoryview, effort: Effort) -> list[ColumnBatch] | None:
    """The rows in a MessagePack array of them, by shape; None if there is anything unusual about any of them.

    A dict drops a key that is given twice without a word, so the bytes of everything that was kept are counted:
    headers and keys at their shortest, values at their length. No row is shorter than that, so a sum that equals the
    length of `data` proves that nothing was dropped anywhere. `_row` decides about everything else.
    """
    try:
        rows = _ROWS.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    effort.check()
    groups = _group(rows, effort)
    batches = _plain_batches(groups, len(array_header(len(rows))), len(data), effort)
    if batches is None:  # they are counted when they are gathered the exact way
        effort.take_back(len(groups))
    return batches


def _plain_batches(groups: list[list[_Row]], size: int, whole_size: int, effort: Effort) -> list[ColumnBatch] | None:
    """The batches of rows by shape, unless something about them is unusual; see `_gather`."""
    batches = []
    for group in groups:
        effort.check()
        if not _is_plain(group):
            return None
        times, timed = _join_times(group)
        if times is None:
            return None
        batch = _shape_batch(group, times)
        size += _least_size(group, batch, timed)
        batches.append(batch)
    return batches if size == whole_size else None


def _group(rows: Iterable[_Row], effort: Effort) -> list[list[_Row]]:
    """Rows by shape, shapes in the order in which they appear first.

    The order of names within a row makes no shape: some senders write maps in random order.
    """
    groups: list[list[_Row]] = []
    group: list[_Row] = []
    by_shape: dict[tuple[object, ...], list[_Row]] = {}
    by_names: dict[tuple[object, ...], list[_Row]] = {}
    last: list[object] = []
    for row in rows:
        shape: list[object] = [row.m, row.h is _ABSENT, row.tags is _NO_TAGS, *row.tags, None, *row.fields]
        if shape != last:
            last = shape
            found = by_shape.get(key := tuple(shape))
            if found is None:
                effort.add_shape()
                names = (*shape[:3], frozenset(row.tags), frozenset(row.fields))
                found = by_names.get(names)
                if found is None:
                    found = by_names[names] = []
                    groups.append(found)
                by_shape[key] = found
            group = found
        group.append(row)
    return groups


def _is_plain(rows: list[_Row]) -> bool:
    """Whether rows of one shape need no second look: names are printable ASCII, hosts strings."""
    first = rows[0]
    names = (*first.tags, *first.fields)
    text = "".join((first.m, *names))
    if (
        not (text.isascii() and text.isprintable())
        or not 0 < len(first.m) <= MAX_NAME_BYTES
        or not first.fields
        or max(map(len, names)) > MAX_NAME_BYTES
        or "" in names
        or TIME in names
        or 1 + (first.h is not _ABSENT) + len(names) > MAX_COLUMNS
    ):
        return False
    if first.h is not _ABSENT:
        if _HOST in first.tags:
            return False
        try:
            _STRINGS.decode(b"".join((array_header(len(rows)), *[row.h for row in rows])))
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return False
    return True


def _join_times(rows: list[_Row]) -> tuple[bytes | None, int]:
    """All times in MessagePack, None if one is no time; and how many rows have one."""
    times = b"".join([row.t for row in rows])
    count = len(rows)
    if len(times) == 9 * count and times[0] in b"\xcf\xd3\xcb" and times[::9] == times[:1] * count:
        return times, count
    if all(_is_time(bytes(row.t)) for row in rows):
        return times, sum(row.t is not _ABSENT for row in rows)
    return None, 0


def _shape_batch(rows: list[_Row], times: bytes) -> ColumnBatch:
    """Rows of one shape as columns: time (unless no row has any), tags, fields.

    `times` are those of the rows in MessagePack, nil where one is missing.
    """
    first = rows[0]
    count = len(rows)
    header = array_header(count)
    columns: dict[str, bytes] = {}
    if len(times) > count or times != b"\xc0" * count:
        columns[TIME] = header + times
    if first.h is not _ABSENT:
        columns[_HOST] = header + b"".join([row.h for row in rows])
    if first.tags:
        maps = [row.tags for row in rows]
        for tag in first.tags:
            columns[tag] = header + b"".join(map(itemgetter(tag), maps))
    tags = [name for name in columns if name != TIME]
    maps = [row.fields for row in rows]
    for field, name in zip(first.fields, field_column_names(tags, first.fields), strict=True):
        columns[name] = header + b"".join(map(itemgetter(field), maps))
    return ColumnBatch(first.m, columns, count, tags)


def _least_size(rows: list[_Row], batch: ColumnBatch, timed: int) -> int:
    """Bytes that these plain rows take with every header and key at its shortest. `timed` of them have a time."""
    first = rows[0]
    # Per row: the map, "m" and its value, "fields", "tags", "t", "h", and the headers and names of the two maps.
    size = 1 + 2 + _str_size(first.m) + 7 + len(map_header(len(first.fields))) + sum(map(_str_size, first.fields))
    if first.tags is not _NO_TAGS:
        size += 5 + len(map_header(len(first.tags))) + sum(map(_str_size, first.tags))
    if first.h is not _ABSENT:
        size += 2
    size *= len(rows)
    header = len(array_header(len(rows)))
    for column in batch.columns.values():
        size += len(column) - header
    if TIME in batch.columns:
        return size + 2 * timed - (len(rows) - timed)
    return size + 3 * timed


def _str_size(name: str) -> int:
    """Bytes of an ASCII string in MessagePack."""
    return len(str_header(len(name))) + len(name)


# Rows, the exact way: one walk over each, for what the quick way leaves open and for the reason of a refusal.


def _row(data: bytes, pos: int, skipper: _Skipper) -> tuple[_Row, int]:
    """The row at `pos`, with its host among the tags, and the offset after it."""
    keys, pos = _length(data, pos)
    seen: set[bytes] = set()
    measurement = ""
    time = host = b"\xc0"
    fields: dict[str, msgspec.Raw] = {}
    tags: dict[str, msgspec.Raw] = {}
    for _ in range(keys):
        key, end = _key(data, pos)
        if key in seen or key not in _ROW_KEYS:
            raise _bad_key(data, pos, key, end, _ROW_KEYS, "a row")
        seen.add(key)
        pos = end
        if key == b"m":
            pos = _measurement(data, end)
            start, _end = _string(data, end, "measurement 'm'")
            measurement = _text("measurement", data[start:pos])
        elif key == b"fields":
            fields, pos = _raw_map(data, end, skipper, "field")
        elif key == b"tags":
            if KIND[data[end]] == NIL:
                pos = end + 1
            else:
                tags, pos = _raw_map(data, end, skipper, "tag")
        else:
            pos = skipper.skip(end)
            if key == b"t":
                if not _is_time(data[end : end + 3]):
                    raise BadPayload(f"'t' is neither a number nor a timestamp but {_kind(data, end)}")
                time = data[end:pos]
            else:
                if KIND[data[end]] not in (STRING, NIL):
                    raise BadPayload(f"'h' is not a string but {_kind(data, end)}")
                host = data[end:pos]
    if pos > len(data):
        raise _truncated(data)
    if not measurement:
        raise BadPayload("measurement 'm' is missing")
    if b"fields" not in seen:
        raise BadPayload("'fields' is missing")
    if host != b"\xc0":
        if _HOST in tags and _payload(bytes(tags[_HOST])) != _payload(host):
            raise BadPayload("'h' and the tag 'host' are different")
        tags = {_HOST: msgspec.Raw(host), **tags}
    if 1 + len(tags) + len(fields) > MAX_COLUMNS:
        raise BadPayload(f"more than {MAX_COLUMNS} columns")
    return _Row(measurement, fields, msgspec.Raw(time), _ABSENT, tags), pos


_ROW_KEYS: Final = (b"m", b"t", b"h", b"fields", b"tags")


def _raw_map(data: bytes, pos: int, skipper: _Skipper, what: str) -> tuple[dict[str, msgspec.Raw], int]:
    """The `fields` or `tags` of a row, values as they are, and the offset after it. `what` is "field" or "tag"."""
    if KIND[data[pos]] != MAP:
        raise BadPayload(f"'{what}s' is not a map but {_kind(data, pos)}")
    count, pos = _length(data, pos)
    if count > MAX_COLUMNS:
        raise BadPayload(f"more than {MAX_COLUMNS} {what}s")
    if not count and what == "field":
        raise BadPayload("'fields' is empty")
    values: dict[str, msgspec.Raw] = {}
    for _ in range(count):
        key, start = _key(data, pos)
        if len(key) > MAX_NAME_BYTES:
            raise _long_name(data, f"{what} name", pos)
        end = start + SIZE[data[start]]
        name = _text(f"{what} name", key)
        check_column_name(name, what)
        if name in values:
            raise BadPayload(f"{what} {quote(name)} is there twice")
        if name == TIME:
            raise BadPayload(f"a {what} cannot be called 'time', the name of the timestamp column")
        if end == start or end > len(data):
            try:
                end = skipper.skip(start)
            except BadPayload as error:
                raise BadPayload(f"{error}, in {what} {quote(name)}") from None
            if end - start > MAX_VALUE_BYTES:
                raise _LongValue(start, end - start, f", in {what} {quote(name)}")
        values[name] = msgspec.Raw(data[start:end])
        pos = end
    return values, pos


def _is_time(value: bytes) -> bool:
    """Whether a MessagePack value is a number, the timestamp extension (type -1) or nil."""
    kind = KIND[value[0]]
    if kind == EXTENSION:
        return value[:2] in (b"\xd6\xff", b"\xd7\xff") or value[:3] == b"\xc7\x0c\xff"
    return kind in (INTEGER, FLOAT, NIL)


def _payload(value: bytes) -> bytes:
    """The bytes of a string value behind its header; any other value as it is."""
    if KIND[value[0]] != STRING:
        return b"\x00" + value
    start, end = _string(value, 0, "")
    return b"\x01" + value[start:end]


def _encode_row(data: bytes, check: Callable[[], None]) -> Encoded:
    """A body that is one row."""
    batches = _gather(b"\x91" + data, Effort(len(data), check)) if len(data) <= _ROWS_BYTES else None
    if batches is None:
        row, end = _row(data, 0, _Skipper(data, check))
        if end != len(data):
            raise _bad_end(data, end)
        batches = [_shape_batch([row], bytes(row.t))]
    return Encoded(False, batches[0].encode(), 1)


# Arrays of rows, columnar maps and batches


class _Gatherer:
    """Collects what the elements of an array become.

    Columnar maps that stand one behind the other are one span, which is copied only if there is anything else.
    """

    __slots__ = (
        "_data",
        "_effort",
        "_maps",
        "_skipper",
        "_span_end",
        "_span_maps",
        "_span_records",
        "_span_start",
        "_untouched_from",
        "_view",
    )

    def __init__(self, data: bytes, check: Callable[[], None]) -> None:
        self._data = data
        self._effort = Effort(len(data), check)
        self._view = memoryview(data)
        self._skipper = _Skipper(data, check)
        self._maps = Maps()
        self._span_start = self._span_end = self._span_maps = self._span_records = 0
        self._untouched_from: int | None = None
        """The offset of the array if it already is what it would become: several columnar maps and nothing else."""

    def encoded(self, body: bytes | memoryview) -> Encoded:
        """What the body has become."""
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
        _keys, pos = _length(self._data, pos)
        _name, pos = _key(self._data, pos)
        if KIND[self._data[pos]] != ARRAY:
            raise BadPayload(f"'batch' is not an array but {_kind(self._data, pos)}")
        return self.array(pos, " of 'batch'", may_be_last=may_be_last)

    def array(self, pos: int, where: str, *, may_be_last: bool) -> int:
        """Take the array at `pos`: the offset after it.

        `where` is "" or " of 'batch'", inside which there may be no other batch. `may_be_last`: the body probably
        ends with this array.
        """
        data = self._data
        count, end = _length(data, pos)
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
            if end == _IS_BATCH:
                end = self._nested_batch(start, number, where)
                number += 1
                continue
            if number == 0 and may_be_last and len(data) - pos <= _CHUNK_BYTES:
                batches = _gather(self._view[pos:], self._effort)
                if batches is not None:
                    self._take(batches)
                    return len(data)
            starts: list[int] = []
            end = start
            while number + len(starts) < count and end - start < _CHUNK_BYTES:
                starts.append(end)
                try:
                    end = self._skipper.skip(end)
                except BadPayload as error:
                    raise BadPayload(f"{error}, in element {number + len(starts) - 1}{where}") from None
            self._elements(starts, end, number, where)
            number += len(starts)
        if only_columnar and may_be_last and count > 1:
            self._untouched_from = pos
        return end

    def _element(self, pos: int, number: int, where: str) -> int:
        """Take the element at `pos` if it is a columnar map: the offset after it, else _IS_ROW or _IS_BATCH."""
        if KIND[self._data[pos]] != MAP:
            raise BadPayload(f"element {number}{where} is not a map but {_kind(self._data, pos)}")
        try:
            end, records = _columnar(self._data, pos, self._skipper, self._effort.check)
        except BadPayload as error:
            raise BadPayload(f"element {number}{where}: {error}") from None
        if end > 0:
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
        """Take the elements that begin at `starts`, well-formed and end to end up to `end`; most should be rows.

        `first` is the number of the first.
        """
        data = self._data
        batches = None
        are_few = end - starts[0] <= _ROWS_BYTES
        if are_few:
            batches = _gather(array_header(len(starts)) + data[starts[0] : end], self._effort)
            if batches is not None:
                self._take(batches)
                return
        rows = []
        spans = []
        for number, (start, stop) in enumerate(pairwise((*starts, end)), first):
            if number & _ELEMENTS_BETWEEN_CHECKS == _ELEMENTS_BETWEEN_CHECKS:
                self._effort.check()
            kind = self._element(start, number, where)
            if kind == _IS_ROW:
                rows.append((number, start))
                spans.append(self._view[start:stop])
            elif kind == _IS_BATCH:
                self._nested_batch(start, number, where)
        if not rows:
            return
        if are_few and len(rows) < len(starts):
            batches = _gather(b"".join((array_header(len(rows)), *spans)), self._effort)
        if batches is None:
            groups = _group([self._row(*row) for row in rows], self._effort)
            batches = [_shape_batch(group, b"".join([row.t for row in group])) for group in groups]
        self._take(batches)

    def _row(self, number: int, pos: int) -> _Row:
        if number & _ELEMENTS_BETWEEN_CHECKS == _ELEMENTS_BETWEEN_CHECKS:
            self._effort.check()
        try:
            return _row(self._data, pos, self._skipper)[0]
        except BadPayload as error:
            raise BadPayload(f"row {number}: {error}") from None

    def _take(self, batches: list[ColumnBatch]) -> None:
        self._end_span()
        for batch in batches:
            self._effort.check()
            self._maps.add(batch.encode(), batch.records)


# Values, keys, and what to say of bad ones


class _Skipper:
    """Finds where a MessagePack value ends, in C, at a cost that is linear in the bytes passed.

    Meant to go forward; going back is right, but costs `_FEED_BYTES` each time.
    """

    __slots__ = ("_at", "_check", "_fed", "_first", "_unpacker", "_view")

    def __init__(self, data: bytes, check: Callable[[], None]) -> None:
        self._check = check
        self._view = memoryview(data)
        self._unpacker: msgpack.Unpacker = None
        self._first = self._at = self._fed = 0  # offsets: where this unpacker began, stands, and has bytes up to

    def skip(self, pos: int) -> int:
        """The offset after the value at `pos`. Raises BadPayload with the offset if it is cut off or malformed."""
        if not self._at <= pos < self._fed:
            self._unpacker = msgpack.Unpacker(max_buffer_size=2**31 - 1)
            self._first = self._at = self._fed = pos
        unpacker = self._unpacker
        if pos > self._at:
            unpacker.read_bytes(pos - self._at)
        before = unpacker.tell()
        while True:
            try:
                unpacker.skip()
                end: int = pos + unpacker.tell() - before
                self._at = end
                return end
            except msgpack.OutOfData:
                if self._fed - self._first >= _CUT_BYTES:
                    self._check()
                    self._refuse_long(pos + unpacker.tell() - before)
                if self._fed >= len(self._view):
                    raise BadPayload(f"truncated MessagePack at byte {len(self._view)}") from None
            except msgpack.FormatError:
                raise BadPayload(f"invalid MessagePack at byte {pos + unpacker.tell() - before}") from None
            except msgpack.StackError:
                raise BadPayload(f"the value at byte {pos} is nested more than 1024 deep") from None
            more = self._view[self._fed :][: min(max(_FEED_BYTES, self._fed - self._first), _CHUNK_BYTES)]
            try:
                unpacker.feed(more)
            except msgpack.BufferFull:
                raise BadPayload(f"the value at byte {pos} is longer than 2 GiB") from None
            self._fed += len(more)

    def _refuse_long(self, at: int) -> None:
        """Raise BadPayload if what the unpacker wants to have from `at` on in one piece is too long.

        It copies what it has of such a piece again and again.
        """
        if self._fed - at >= _CUT_BYTES and self._view[at - 5] in _LONG_MARKERS:
            size = int.from_bytes(self._view[at - 4 : at], "big")
            if size > MAX_VALUE_BYTES:
                self._fed = self._at  # this unpacker stands within a value, and can begin with no other
                raise _LongValue(at - 5, size)


def _length(data: bytes, pos: int) -> tuple[int, int]:
    """What the header of the array or map at `pos` declares, and the offset after it."""
    marker = data[pos]
    if marker < 0xA0:
        return marker & 15, pos + 1
    if marker in (0xDC, 0xDE):
        return data[pos + 1] << 8 | data[pos + 2], pos + 3
    end = pos + 5
    data[end - 1]  # a slice would be shorter without a word
    return int.from_bytes(data[pos + 1 : end], "big"), end


def _string(data: bytes, pos: int, what: str) -> tuple[int, int]:
    """Where the bytes of the string at `pos` begin and end; the end may lie beyond that of `data`."""
    marker = data[pos]
    if 0xA0 <= marker <= 0xBF:
        start = pos + 1
        return start, start + (marker & 31)
    if not 0xD9 <= marker <= 0xDB:
        raise BadPayload(f"{what} is not a string but {_kind(data, pos)}")
    start = pos + 1 + (1 << (marker - 0xD9))
    data[start - 1]
    return start, start + int.from_bytes(data[pos + 1 : start], "big")


def _key(data: bytes, pos: int) -> tuple[bytes, int]:
    """The first bytes of the map key at `pos`, and the offset after it; the next read finds a key that is cut off."""
    start, end = _string(data, pos, f"the key at byte {pos}")
    return data[start : min(end, start + _SHOWN_BYTES)], end


def _text(what: str, name: bytes) -> str:
    try:
        return name.decode()
    except UnicodeDecodeError:
        raise BadPayload(f"{what} {quote(name)} is not valid UTF-8") from None


def _kind(data: bytes, pos: int) -> str:
    return KIND_NAMES[KIND[data[pos]]]


class _LongValue(BadPayload):
    def __init__(self, pos: int, size: int, where: str = "") -> None:
        super().__init__(f"the value at byte {pos} has {size} bytes, more than {MAX_VALUE_BYTES}{where}")


def _bad_key(data: bytes, pos: int, key: bytes, end: int, known: tuple[bytes, ...], where: str) -> BadPayload:
    if end > len(data):
        return _truncated(data)
    if key in known:
        return BadPayload(f"key {quote(key)} is there twice, again at byte {pos}")
    return BadPayload(f"unknown key {quote(key)} in {where} at byte {pos}")


def _long_name(data: bytes, what: str, pos: int) -> BadPayload:
    """What to say of the string at `pos`, which is the name of something, which is too long."""
    start, end = _string(data, pos, what)
    if end > len(data):
        return _truncated(data)
    return BadPayload(
        f"{what} {quote(data[start : start + _SHOWN_BYTES])} has {end - start} bytes, more than {MAX_NAME_BYTES}"
    )


def _bad_end(data: bytes, end: int) -> BadPayload:
    if end > len(data):
        return _truncated(data)
    return BadPayload(f"trailing bytes after the MessagePack value at byte {end}")


def _truncated(data: bytes) -> BadPayload:
    return BadPayload(f"truncated MessagePack at byte {len(data)}")
