"""Records of the caller -> parts, the bytes that a batch is made of; and parts -> the body of a request.

A part is encoded once, when the caller gives the record: so a record that cannot be sent is refused then and there, and
the size of what waits is known to the byte. Parts of MessagePack are the elements of one array, parts of line protocol
are lines. This module must not know batches, files or connections.
"""

from __future__ import annotations

import re
import struct
import sys
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, Final, Literal, NamedTuple
from urllib.parse import quote

import msgspec

from arcpipe.client.errors import BadRecord
from arcpipe.client.options import Compression, Precision
from arcpipe.client.times import checked, checked_column, time_now
from arcpipe.names import DATABASE_RULE, is_database_name

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

Format = Literal["msgpack", "lines"]
Record = Mapping[str, Any]
"""One record: fields and tags by name, and perhaps `time`."""

MAX_NAME_BYTES: Final = 256
MAX_COLUMNS: Final = 65_536  # of one record, as the server has it

_TIME: Final = "time"
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_GZIP_LEVEL: Final = 1  # twice as fast as 6, for a tenth more bytes
_GZIP: Final = 31  # of zlib: a window of 32 KB, and gzip's header, whose time is 0: equal bytes for equal input


class Stream(NamedTuple):
    """What all records of a batch have in common."""

    format: Format
    database: str
    precision: Precision

    @property
    def target(self) -> str:
        """Return path and query of its requests."""
        query = f"db={quote(self.database, safe='')}&precision={self.precision}"
        return f"/write/v2/msgpack?{query}" if self.format == "msgpack" else f"/write?{query}&accept_partial=true"


class Part(NamedTuple):
    """The encoded records of one call, or of a slice of it."""

    data: bytes
    records: int


def encode_record(measurement: str, record: Record, tags: Sequence[str], precision: Precision) -> Part:
    """Encode one record as a row. One without a time gets that of now.

    Raises:
        BadRecord: it cannot be sent.
    """
    check_name(measurement, "measurement")
    _check_tags(tags)
    chosen = set(tags)
    row: dict[str, Any] = {"m": measurement, "t": _time_or_now(record.get(_TIME), precision)}
    fields: dict[str, Any] = {}
    tagged: dict[str, Any] = {}
    for name, value in record.items():
        if name == _TIME or value is None:
            continue
        check_name(name, "column")
        (tagged if name in chosen else fields)[name] = value
    if not fields:
        raise BadRecord(f"a record of {measurement!r} has no field: tags and time alone are no record")
    if len(record) > MAX_COLUMNS:
        raise BadRecord(f"a record of {measurement!r} has more than {MAX_COLUMNS} columns")
    row["fields"] = fields
    if tagged:
        row["tags"] = tagged
    return Part(_packed(row, measurement), 1)


def encode_records(
    measurement: str, records: Iterable[Record], tags: Sequence[str], precision: Precision, most: int
) -> Iterator[Part]:
    """Encode records as columns, `most` of them in a part. What a record lacks is nil.

    Raises:
        BadRecord: one of them cannot be sent.
    """
    if not isinstance(records, Iterable):
        raise BadRecord(f"{records!r} is no record: give a mapping from names to values, or several of them")
    slice_: list[Record] = []
    for record in records:
        slice_.append(record)
        if len(slice_) == most:
            yield from encode_columns(measurement, _transposed(slice_), tags, precision, most)
            slice_ = []
    if slice_:
        yield from encode_columns(measurement, _transposed(slice_), tags, precision, most)


def _transposed(records: Sequence[Record]) -> dict[str, list[Any]]:
    try:
        names = dict.fromkeys(name for record in records for name in record)
        return {name: [record.get(name) for record in records] for name in names}
    except (AttributeError, TypeError):
        odd = next((record for record in records if not isinstance(record, Mapping)), None)
        raise BadRecord(f"{odd!r} is no record: give a mapping from names to values") from None


def encode_columns(
    measurement: str, columns: Mapping[str, Any], tags: Sequence[str], precision: Precision, most: int
) -> Iterator[Part]:
    """Encode columns of one length, `most` rows in a part. Rows without a time get that of now.

    Args:
        columns: lists, tuples, or whatever has a method `tolist`, as arrays of numpy have.

    Raises:
        BadRecord: they cannot be sent.
    """
    check_name(measurement, "measurement")
    _check_tags(tags)
    lists = {name: _to_list(values, name) for name, values in columns.items()}
    if not lists.keys() - {_TIME, *tags}:
        raise BadRecord(f"{measurement!r}: there is no column but tags and time")
    if len(lists) > MAX_COLUMNS:
        raise BadRecord(f"{measurement!r}: there are more than {MAX_COLUMNS} columns")
    length = len(next(iter(lists.values())))
    for name, values in lists.items():
        check_name(name, "column")
        if len(values) != length:
            raise BadRecord(f"column {name!r} of {measurement!r} has {len(values)} values, others have {length}")
    now = time_now(precision)
    lists[_TIME] = checked_column(lists.get(_TIME, [None] * length), now, precision)
    present = [name for name in dict.fromkeys(tags) if name in lists and name != _TIME]
    for start in range(0, length, most):
        sliced = {name: values[start : start + most] for name, values in lists.items()}
        value: dict[str, Any] = {"m": measurement, "columns": sliced}
        if present:
            value["tags"] = present
        yield Part(_packed(value, measurement), min(most, length - start))


def _to_list(values: Any, name: str) -> list[Any]:
    if hasattr(values, "tolist"):
        values = values.tolist()
    if isinstance(values, str | bytes | Mapping) or not isinstance(values, Iterable):
        raise BadRecord(f"column {name!r} is no list of values but {type(values).__name__}")
    return list(values)


def encode_lines(lines: str | bytes | Iterable[str]) -> Part | None:
    """Encode line protocol; None if there is no line. The text stays in one batch.

    Raises:
        BadRecord: it is not UTF-8, or is no text.
    """
    if not isinstance(lines, str | bytes):
        lines = "\n".join(lines)
    try:
        data = lines.encode() if isinstance(lines, str) else bytes(lines)
        data.decode()
    except UnicodeError as error:
        raise BadRecord(f"the lines are not UTF-8: {error}") from None
    data = data.strip(b"\n")
    records = sum(1 for line in data.split(b"\n") if line.strip() and not line.lstrip().startswith(b"#"))
    return Part(data, records) if records else None


@lru_cache(maxsize=16_384)
def check_name(name: str, what: str) -> None:
    """Check the name of a measurement or a column, as the server will.

    Raises:
        BadRecord: the server would refuse it.
    """
    if not isinstance(name, str):
        raise BadRecord(f"{what} {name!r} is no text")
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        raise BadRecord(f"{what} {name!r} is not valid Unicode") from None
    if not 1 <= size <= MAX_NAME_BYTES or _CONTROL.search(name):
        raise BadRecord(f"{what} {name!r}: use 1 to {MAX_NAME_BYTES} bytes of UTF-8 without control characters")


@lru_cache(maxsize=1024)
def check_database(name: str) -> None:
    """Check the name of a database, as the server will.

    Raises:
        BadRecord: the server would refuse it.
    """
    if not is_database_name(name):
        raise BadRecord(f"database {name!r} is no database name; {DATABASE_RULE}")


def _check_tags(tags: object) -> None:
    """Refuse a text for a list of names: its characters would be the names, and the tag a field. Raises BadRecord."""
    if isinstance(tags, str):
        raise BadRecord(f"tags {tags!r} is one text: give a list of names, such as [{tags!r}]")


def _time_or_now(value: Any, precision: Precision) -> Any:
    return time_now(precision) if value is None else checked(value, precision)


def _packed(value: object, measurement: str) -> bytes:
    try:
        return msgspec.msgpack.encode(value)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise BadRecord(f"a record of {measurement!r} cannot be encoded: {error}") from None


def body_of(format_: Format, parts: Sequence[bytes]) -> bytes:
    """Make the body of a request of its parts."""
    if format_ == "lines":
        return b"\n".join(parts)
    count = len(parts)
    if count < 16:
        head = bytes([0x90 | count])
    elif count < 1 << 16:
        head = struct.pack(">BH", 0xDC, count)
    else:
        head = struct.pack(">BI", 0xDD, count)
    return b"".join((head, *parts))


def compressed(body: bytes, compression: Compression) -> bytes:
    """Compress a body; the same body gives the same bytes."""
    if compression == "gzip":
        encoder = zlib.compressobj(_GZIP_LEVEL, zlib.DEFLATED, _GZIP)
        return encoder.compress(body) + encoder.flush()
    if compression == "zstd":
        return zstd.compress(body)
    return body
