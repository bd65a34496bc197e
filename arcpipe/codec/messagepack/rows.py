"""Gather rows of one shape into columns; each value keeps its bytes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from operator import itemgetter
from typing import Annotated, Final, TypeAlias

import msgspec

from arcpipe.codec.columns import (
    MAX_COLUMNS,
    MAX_NAME_BYTES,
    TIME,
    ColumnBatch,
    array_header,
    check_column_name,
    field_column_names,
    map_header,
    pack_str,
    quote,
    str_header,
)
from arcpipe.codec.effort import Effort
from arcpipe.codec.messagepack.alike import LEAST_BYTES, AlikeRows, read_alike
from arcpipe.codec.messagepack.columnar import numbered
from arcpipe.codec.messagepack.layout import (
    ARRAY,
    EXTENSION,
    FLOAT,
    INTEGER,
    KIND,
    MAP,
    NIL,
    SIZE,
    STRING,
)
from arcpipe.codec.messagepack.read import (
    bad_key,
    find_string,
    kind_of,
    long_name,
    read_key,
    read_length,
    read_measurement,
    text_of,
    truncated_at_end,
)
from arcpipe.codec.messagepack.times import BadTime, TimeRule, settle
from arcpipe.codec.messagepack.walk import MAX_VALUE_BYTES, LongValue, Walker
from arcpipe.errors import BadPayload

_HOST: Final = "host"

# Rows, the quick way: one msgspec call for many rows, then one pass for each shape.

_ABSENT: Final = msgspec.Raw(b"\xc0")  # stands for a missing 't' or 'h'; told from a nil that was sent by identity
_NO_TAGS: Final[dict[str, msgspec.Raw]] = {}  # stands for missing 'tags'; told from an empty map by identity

_RawMap: TypeAlias = Annotated[dict[str, msgspec.Raw], msgspec.Meta(max_length=MAX_COLUMNS)]


class Row(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """A row, whose values stay encoded."""

    m: str
    fields: _RawMap
    t: msgspec.Raw = _ABSENT
    h: msgspec.Raw = _ABSENT
    tags: _RawMap = msgspec.field(default_factory=lambda: _NO_TAGS)


_ROWS: Final = msgspec.msgpack.Decoder(list[Row])
_STRINGS: Final = msgspec.msgpack.Decoder(list[str])


def gather_rows(data: bytes | memoryview, rule: TimeRule, effort: Effort) -> list[ColumnBatch] | None:
    """Gather the rows of a MessagePack array by shape; None if any of them is unusual.

    A dict silently drops a key that is given twice. So the bytes of all that was kept are counted: headers and keys at
    their shortest, values at their length. No row is shorter than that, so a sum that equals the length of `data`
    proves that nothing was dropped. `read_row` decides on all other rows.
    """
    if len(data) >= LEAST_BYTES and (alike := read_alike(bytes(data), effort)) is not None:
        batch = _alike_batch(alike, rule, effort)
        return None if batch is None else [batch]
    try:
        rows = _ROWS.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    effort.check()
    groups = group_by_shape(rows, effort)
    batches = _plain_batches(groups, len(array_header(len(rows))), len(data), rule, effort)
    if batches is None:  # they are counted when they are gathered the exact way
        effort.take_back(len(groups))
    return batches


def _alike_batch(alike: AlikeRows, rule: TimeRule, effort: Effort) -> ColumnBatch | None:
    """Make the batch of rows that are alike, as `shape_batch` would; None if any row is unusual."""
    measurement, count, times, hosts, tags, fields = alike
    by_tag, by_field = dict(tags), dict(fields)
    if len(by_tag) < len(tags) or len(by_field) < len(fields):
        return None
    if not _are_plain(measurement, by_tag, by_field, hosts is not None):
        return None
    if hosts is not None and not _are_strings(hosts, count):
        return None
    header = array_header(count)
    columns: dict[str, bytes] = {}
    if times is not None and times != b"\xc0" * count:
        try:
            columns[TIME] = header + (settle(times, 0, len(times), count, rule, effort.check, each=True) or times)
        except BadTime:
            return None
    if hosts is not None:
        columns[_HOST] = header + hosts
    for tag, values in tags:
        columns[tag] = header + values
    names = [name for name in columns if name != TIME]
    for name, (_field, values) in zip(field_column_names(names, by_field), fields, strict=True):
        columns[name] = header + values
    effort.add_shape()
    return ColumnBatch(measurement, columns, count, names)


def _plain_batches(
    groups: list[list[Row]], size: int, whole_size: int, rule: TimeRule, effort: Effort
) -> list[ColumnBatch] | None:
    """Make the batches of rows by shape; None if any row is unusual. See `gather_rows`."""
    batches = []
    for group in groups:
        effort.check()
        first = group[0]
        has_host = first.h is not _ABSENT
        if not _are_plain(first.m, first.tags, first.fields, has_host):
            return None
        if has_host and not _are_strings(b"".join([row.h for row in group]), len(group)):
            return None
        sent = b"".join([row.t for row in group])
        try:
            batch = shape_batch(group, sent, rule, effort.check)
        except BadTime:
            return None
        size += _least_size(group, batch, sent)
        batches.append(batch)
    return batches if size == whole_size else None


def group_by_shape(rows: Iterable[Row], effort: Effort) -> list[list[Row]]:
    """Group rows by shape, shapes in the order in which they appear first.

    The order of names within a row does not matter: some senders write maps in random order.
    """
    groups: list[list[Row]] = []
    group: list[Row] = []
    by_shape: dict[tuple[object, ...], list[Row]] = {}
    by_names: dict[tuple[object, ...], list[Row]] = {}
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


def _are_plain(measurement: str, tags: Collection[str], fields: Collection[str], has_host: bool) -> bool:
    """Tell whether all names are printable ASCII that is allowed."""
    names = (*tags, *fields)
    text = "".join((measurement, *names))
    return (
        text.isascii()
        and text.isprintable()
        and 0 < len(measurement) <= MAX_NAME_BYTES
        and len(fields) > 0
        and max(map(len, names)) <= MAX_NAME_BYTES
        and "" not in names
        and TIME not in names
        and 1 + has_host + len(names) <= MAX_COLUMNS
        and not (has_host and _HOST in tags)
    )


def _are_strings(values: bytes, count: int) -> bool:
    """Tell whether values in MessagePack are strings in UTF-8."""
    try:
        _STRINGS.decode(array_header(count) + values)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return False
    return True


def shape_batch(rows: list[Row], times: bytes, rule: TimeRule, check: Callable[[], None]) -> ColumnBatch:
    """Make rows of one shape columns: time (unless no row has any), tags, fields.

    Args:
        times: those of the rows in MessagePack, nil where one is missing.
        check: as in `arcpipe.codec.effort`.

    Raises:
        BadTime: one of them is no time.
    """
    first = rows[0]
    count = len(rows)
    header = array_header(count)
    columns: dict[str, bytes] = {}
    if len(times) > count or times != b"\xc0" * count:
        columns[TIME] = header + (settle(times, 0, len(times), count, rule, check, each=True) or times)
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


def _least_size(rows: list[Row], batch: ColumnBatch, times: bytes) -> int:
    """Count the bytes of plain rows, sent with these times, with every header and key at its shortest."""
    first = rows[0]
    count = timed = len(rows)
    if b"\xc0" in times[::9] or len(times) != 9 * count:  # one may be missing
        timed = sum(row.t is not _ABSENT for row in rows)
    # Per row: the map, "m" and its value, "fields", "tags", "t", "h", and the headers and names of the two maps.
    size = 1 + 2 + _str_size(first.m) + 7 + len(map_header(len(first.fields))) + sum(map(_str_size, first.fields))
    if first.tags is not _NO_TAGS:
        size += 5 + len(map_header(len(first.tags))) + sum(map(_str_size, first.tags))
    if first.h is not _ABSENT:
        size += 2
    size *= len(rows)
    header = len(array_header(len(rows)))
    for name, column in batch.columns.items():
        size += len(column) - header if name != TIME else 0
    return size + len(times) + 2 * timed - (count - timed)


def _str_size(name: str) -> int:
    """Count the bytes of an ASCII string in MessagePack."""
    return len(str_header(len(name))) + len(name)


# Rows, the exact way: one walk over each, for unusual rows and for the reason of a refusal.


def read_row(data: bytes, pos: int, walker: Walker) -> tuple[Row, int]:
    """Read the row at `pos`: (row with its host among the tags, offset after it)."""
    keys, pos = read_length(data, pos)
    seen: set[bytes] = set()
    measurement = ""
    time = host = b"\xc0"
    fields: dict[str, msgspec.Raw] = {}
    tags: dict[str, msgspec.Raw] = {}
    for _ in range(keys):
        key, end = read_key(data, pos)
        if key in seen or key not in _ROW_KEYS:
            raise bad_key(data, pos, key, end, _ROW_KEYS, "a row")
        seen.add(key)
        pos = end
        if key == b"m":
            measurement, pos = _measurement(data, end)
        elif key == b"fields":
            fields, pos = _raw_map(data, end, walker, "field")
        elif key == b"f":
            fields, pos = _numbered_fields(data, end, walker)
        elif key == b"tags":
            if KIND[data[end]] == NIL:
                pos = end + 1
            else:
                tags, pos = _raw_map(data, end, walker, "tag")
        elif key == b"t":
            pos = walker.end_of(end)
            if not _may_be_time(data[end : end + 3]):
                raise BadPayload(f"'t' is neither a number, a timestamp nor a text but {kind_of(data, end)}")
            time = data[end:pos]
        else:
            pos = walker.end_of(end)
            host = _host(data, end, pos)
    if pos > len(data):
        raise truncated_at_end(data)
    if not measurement:
        raise BadPayload("measurement 'm' is missing")
    if b"fields" in seen and b"f" in seen:
        raise BadPayload("both 'fields' and 'f' are there")
    if not fields:
        raise BadPayload("'fields' is missing")
    return _with_host(Row(measurement, fields, msgspec.Raw(time), _ABSENT, tags), host), pos


def _measurement(data: bytes, pos: int) -> tuple[str, int]:
    """Read the measurement at `pos`: (its name, offset after it)."""
    if KIND[data[pos]] == INTEGER:
        return numbered("measurement", data, pos)
    end = read_measurement(data, pos)
    start, _end = find_string(data, pos, "measurement 'm'")
    return text_of("measurement", data[start:end]), end


def _host(data: bytes, pos: int, end: int) -> bytes:
    """Return the host from `pos` to `end` as MessagePack."""
    if KIND[data[pos]] == INTEGER:
        return pack_str(numbered("host", data, pos)[0])
    if KIND[data[pos]] not in (STRING, NIL):
        raise BadPayload(f"'h' is neither a string nor an integer but {kind_of(data, pos)}")
    return data[pos:end]


def _with_host(row: Row, host: bytes) -> Row:
    """Return the row with its host among its tags. Raises BadPayload if it has another one there."""
    tags = row.tags
    if host != b"\xc0":
        if _HOST in tags and _payload(bytes(tags[_HOST])) != _payload(host):
            raise BadPayload("'h' and the tag 'host' are different")
        tags = {_HOST: msgspec.Raw(host), **tags}
    if 1 + len(tags) + len(row.fields) > MAX_COLUMNS:
        raise BadPayload(f"more than {MAX_COLUMNS} columns")
    return Row(row.m, row.fields, row.t, _ABSENT, tags)


_ROW_KEYS: Final = (b"m", b"t", b"h", b"fields", b"tags", b"f")


def _numbered_fields(data: bytes, pos: int, walker: Walker) -> tuple[dict[str, msgspec.Raw], int]:
    """Read the array `f` of a row, whose fields have numbers for names: (values as they are, offset after it)."""
    if KIND[data[pos]] != ARRAY:
        raise BadPayload(f"'f' is not an array but {kind_of(data, pos)}")
    count, pos = read_length(data, pos)
    if not 0 < count <= MAX_COLUMNS:
        raise BadPayload(f"more than {MAX_COLUMNS} fields" if count else "'f' is empty")
    values: dict[str, msgspec.Raw] = {}
    for number in range(count):
        start, pos = pos, walker.end_of(pos)
        if pos - start > MAX_VALUE_BYTES:
            raise LongValue(start, pos - start, f", in field 'field_{number}'")
        values[f"field_{number}"] = msgspec.Raw(data[start:pos])
    return values, pos


def _raw_map(data: bytes, pos: int, walker: Walker, what: str) -> tuple[dict[str, msgspec.Raw], int]:
    """Read the `fields` or `tags` of a row: (values as they are, offset after them). `what` is "field" or "tag"."""
    if KIND[data[pos]] != MAP:
        raise BadPayload(f"'{what}s' is not a map but {kind_of(data, pos)}")
    count, pos = read_length(data, pos)
    if count > MAX_COLUMNS:
        raise BadPayload(f"more than {MAX_COLUMNS} {what}s")
    if not count and what == "field":
        raise BadPayload("'fields' is empty")
    values: dict[str, msgspec.Raw] = {}
    for _ in range(count):
        key, start = read_key(data, pos)
        if len(key) > MAX_NAME_BYTES:
            raise long_name(data, f"{what} name", pos)
        end = start + SIZE[data[start]]
        name = text_of(f"{what} name", key)
        check_column_name(name, what)
        if name in values:
            raise BadPayload(f"{what} {quote(name)} is there twice")
        if name == TIME and what == "tag":
            raise BadPayload("a tag cannot be called 'time', the name of the timestamp column")
        if end == start or end > len(data):
            try:
                end = walker.end_of(start)
            except BadPayload as error:
                raise BadPayload(f"{error}, in {what} {quote(name)}") from None
            if end - start > MAX_VALUE_BYTES:
                raise LongValue(start, end - start, f", in {what} {quote(name)}")
        values[name] = msgspec.Raw(data[start:end])
        pos = end
    return values, pos


def _may_be_time(value: bytes) -> bool:
    """Tell whether a MessagePack value is a number, the timestamp extension (type -1), a text or nil."""
    kind = KIND[value[0]]
    if kind == EXTENSION:
        return value[:2] in (b"\xd6\xff", b"\xd7\xff") or value[:3] == b"\xc7\x0c\xff"
    return kind in (INTEGER, FLOAT, STRING, NIL)


def _payload(value: bytes) -> bytes:
    """Return the bytes of a string value after its header; any other value as it is."""
    if KIND[value[0]] != STRING:
        return b"\x00" + value
    start, end = find_string(value, 0, "")
    return b"\x01" + value[start:end]
