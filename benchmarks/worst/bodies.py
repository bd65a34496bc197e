"""Bodies that are costly to encode, by kind: `CASES` names the encoder of each and makes its bytes."""

from __future__ import annotations

import gzip
import struct
import zlib
from collections.abc import Callable
from functools import partial
from typing import Any, Final

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from arcpipe.codec.arrow_ipc.check import check_stream
from arcpipe.codec.arrow_ipc.parquet import parquet_stream
from arcpipe.codec.columns import MAX_COLUMNS, array_header, map_header, pack_str
from arcpipe.codec.content_encoding import Coding, decode
from arcpipe.codec.line_protocol import body as line_protocol
from arcpipe.codec.messagepack import body
from arcpipe.codec.records import csv_lines, json_array, json_lines
from arcpipe.codec.records.roles import Roles
from benchmarks.load.bodies import ENCODERS
from benchmarks.worst.series import SERIES
from benchmarks.worst.telemetry import TELEMETRY, Case

# Usual size of a body: the largest that a server takes by default.
BODY_BYTES: Final = 100_000_000

# Of JSON and CSV.
_ROLES: Final = Roles("m")


def _filled(front: bytes, filling: bytes, back: bytes, size: int) -> bytes:
    return b"".join((front, filling * ((size - len(front) - len(back)) // len(filling)), back))


def _lines(front: bytes, filling: bytes = b"", back: bytes = b"") -> Case:
    return line_protocol.encode, partial(_filled, front, filling, back)


def _wide_line(size: int) -> bytes:
    fields = b",".join(b"%x=1" % number for number in range(MAX_COLUMNS - 1))
    return _filled(b"", b"m " + fields + b"\n", b"", size)


def _records(encode: Callable[..., Any], record: bytes, front: bytes = b"", back: bytes = b"") -> Case:
    return partial(encode, roles=_ROLES), partial(_filled, front, record, back)


def _own_shapes(line: bytes, others: bytes, size: int) -> bytes:
    """Return lines with a field of their own, as many as the server takes, and lines of one shape."""
    shapes = 4000 + size // 300
    own = b"".join([line % number for number in range(shapes)])
    return own + _filled(b"", others, b"", max(100, size - len(own)))


def _packed(build: Callable[[int], bytes]) -> Case:
    return body.encode, build


def _column(values: bytes, count: int, size: int) -> bytes:
    """Return one column that repeats `values`, which are `count` values."""
    times = size // len(values)
    return b"\x82\xa1m\xa1m\xa7columns\x81\xa1a\xdd" + struct.pack(">I", count * times) + values * times


def _long(marker: bytes, size: int, filling: bytes = b"x", width: int = 1) -> bytes:
    """Return a value of about `size` bytes, with a length of 32 bits."""
    count = size // (len(filling) * width)
    return marker + struct.pack(">I", count) + filling * (count * width)


def _one_value(marker: bytes, size: int, filling: bytes = b"x", width: int = 1) -> bytes:
    return b"\x82\xa1m\xa1m\xa7columns\x81\xa1a\x91" + _long(marker, size, filling, width)


def _long_values(each: int, size: int) -> bytes:
    return _column(_long(b"\xdb", each), 1, size)


def _row(values: dict[str, bytes], key: bytes = b"fields") -> bytes:
    packed = b"".join([pack_str(name) + value for name, value in values.items()])
    other = b"" if key == b"fields" else b"\xa6fields\x81\xa1a\x01"
    count = 2 + (key != b"fields")
    return map_header(count) + b"\xa1m\xa1m" + other + pack_str(key.decode()) + map_header(len(values)) + packed


def _one_row(marker: bytes, size: int, filling: bytes = b"x", width: int = 1) -> bytes:
    return _row({"a": _long(marker, size, filling, width)})


def _rows(row: Callable[[int], bytes], size: int) -> bytes:
    parts: list[bytes] = []
    total = 0
    while total < size:
        parts.append(row(len(parts)))
        total += len(parts[-1])
    return array_header(len(parts)) + b"".join(parts)


def _again(row: bytes, size: int) -> bytes:
    count = size // len(row)
    return array_header(count) + row * count


def _names(count: int, width: int) -> list[str]:
    return [f"{number:x}".rjust(width, "n") for number in range(count)]


_MAP: Final = b"\x82\xa1m\xa1m\xa7columns\x81\xa1a\x91\x01"
_ROW: Final = _row({"a": b"\x01"})


def _wide_map(width: int, _size: int) -> bytes:
    columns = {name: [1] for name in _names(MAX_COLUMNS, width)}
    return msgspec.msgpack.encode({"m": "m", "columns": columns, "tags": list(columns)})


def _wide_row(width: int, order: int, wrong: bytes = b"") -> bytes:
    names = _names(MAX_COLUMNS - 2, width)[::order]
    return _row(dict.fromkeys(names, b"\x01")) + wrong


def _own_rows(size: int) -> bytes:
    shapes = 4000 + size // 300
    own = b"".join([_row({f"{number:x}": b"\x01"}) for number in range(shapes)])
    rest = max(1, (size - len(own)) // len(_ROW))
    return array_header(shapes + rest) + own + _ROW * rest


def _compressed(coding: Coding, compress: Callable[[bytes], bytes], build: Callable[[int], bytes]) -> Case:
    return lambda body: decode(coding, body, BODY_BYTES + (1 << 20)), lambda size: compress(build(size))


def _noise(size: int) -> bytes:
    return b"".join([zlib.crc32(b"%d" % number).to_bytes(4, "big") for number in range(size // 4)])


def _stored(data: bytes) -> bytes:
    return gzip.compress(data, 0)


def _check_stream(data: bytes) -> object:
    return check_stream(data, BODY_BYTES, roles=_ROLES)


def _read_parquet(data: bytes) -> object:
    return check_stream(parquet_stream(data, BODY_BYTES), BODY_BYTES, roles=_ROLES)


def _table(rows: int, times: pa.DataType | None = None) -> pa.Table:
    numbers = pa.array(range(rows))
    stamps = pa.array(["2026-01-01T00:00:00Z"] * rows) if times is not None else numbers.cast(pa.timestamp("ms"))
    return pa.table({"time": stamps, "n": numbers, "host": pa.array(["a"] * rows).dictionary_encode()})


def _stream(table: pa.Table, rows: int | None) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=rows)
    written: bytes = sink.getvalue().to_pybytes()
    return written


def _arrow(size: int, rows: int | None = None, times: pa.DataType | None = None) -> bytes:
    count = size // (400 if rows is not None else 44 if times is not None else 20)
    return _stream(_table(count, times), rows)


def _wide_arrow(size: int) -> bytes:
    table = pa.table({f"{number:x}": [1.5] * 4 for number in range(16_000)})
    batches = max(1, size // 2_000_000)
    return _stream(pa.concat_tables([table] * batches).combine_chunks(), 4)


def _zeros(size: int) -> pa.Table:
    return pa.table({"a": pa.array(np.zeros(size // 8, np.int64))})


def _arrow_of_zeros(size: int) -> bytes:
    """Return a stream of one batch, compressed to a thousandth."""
    table = _zeros(size)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_table(table)
    written: bytes = sink.getvalue().to_pybytes()
    return written


def _parquet_of_zeros(size: int) -> bytes:
    """Return a file of a few bytes that is large once it is decoded."""
    sink = pa.BufferOutputStream()
    pq.write_table(_zeros(size), sink, compression="zstd", row_group_size=size)
    written: bytes = sink.getvalue().to_pybytes()
    return written


def _parquet(size: int, **options: int) -> bytes:
    small = options["row_group_size"] < 1000 or "data_page_size" in options
    sink = pa.BufferOutputStream()
    pq.write_table(_table(size // (60 if small else 6)), sink, write_batch_size=1 if small else 1024, **options)
    written: bytes = sink.getvalue().to_pybytes()
    return written


CASES: Final[dict[str, Case]] = {
    # Line protocol
    "lines": _lines(b"", b'cpu,host=a usage=0.5,free=12i,text="abc" 1700000000000000000\n'),
    "blank lines": _lines(b"", b"\n"),
    "blank lines and a bad one": _lines(b"", b"\n", b"bad"),
    "spaces": _lines(b"", b" ", b"\nm a=1"),
    "spaces and a bad line": _lines(b"", b" ", b"bad"),
    "a comment": _lines(b"#", b"x", b"\nm a=1"),
    "comments": _lines(b"", b"#\n", b"m a=1"),
    "one string": _lines(b'm a="', b"x", b'"'),
    "one string of quotes": _lines(b'm a="', b'\\"', b'"'),
    "one string of backslashes": _lines(b'm a="', b"\\\\", b'"'),
    "one string of escapes that are none": _lines(b'm a="', b"\\x", b'"'),
    "one string of newlines": _lines(b'm a="', b"\n", b'"'),
    "one string of umlauts": _lines(b'm a="', "ü".encode(), b'"'),
    "one string of emoji": _lines(b'm a="', "😀".encode(), b'"'),
    "one string of bad UTF-8": _lines(b'm a="', b"x", b'\xff"'),
    "one string of bad bytes": _lines(b'm a="', b"\xff", b'"'),
    "an open string": _lines(b'm a="', b"x"),
    "an open string of newlines": _lines(b'm a="', b"\n"),
    "an open string of quotes": _lines(b'm a="', b'\\"'),
    "an open string of umlauts": _lines(b'm a="', "ü".encode()),
    "a string and no end": _lines(b'm a="', b"x", b'"x'),
    "strings of 200 kB": _lines(b"", b'm a="' + b"x" * 200_000 + b'"\n'),
    "strings of 200 kB of quotes": _lines(b"", b'm a="' + b'\\"' * 100_000 + b'"\n'),
    "strings of 200 kB of umlauts": _lines(b"", b'm a="' + "ü".encode() * 100_000 + b'"\n'),
    "strings of 200 kB of newlines": _lines(b"", b'm a="' + b"\n" * 200_000 + b'"\n'),
    "strings of 1 MB": _lines(b"", b'm a="' + b"x" * 1_000_000 + b'"\n'),
    "strings of 10 MB": _lines(b"", b'm a="' + b"x" * 10_000_000 + b'"\n'),
    "one measurement": _lines(b"", b"x", b" a=1"),
    "one measurement of escapes": _lines(b"", b"\\,", b" a=1"),
    "one measurement of umlauts": _lines(b"", "ü".encode(), b" a=1"),
    "one tag value": _lines(b"m,a=", b"x", b" a=1"),
    "one tag value of escapes": _lines(b"m,a=", b"\\,", b" a=1"),
    "one tag value of umlauts": _lines(b"m,a=", "ü".encode(), b" a=1"),
    "one tag key": _lines(b"m,", b"x", b"=a a=1"),
    "one field key": _lines(b"m ", b"x", b"=1"),
    "one field key of escapes": _lines(b"m ", b"\\=", b"=1"),
    "one number": _lines(b"m a=", b"1"),
    "one number after the point": _lines(b"m a=0.", b"1"),
    "one number of zeros": _lines(b"m a=", b"0", b"i"),
    "one integer": _lines(b"m a=", b"1", b"i"),
    "one timestamp": _lines(b"m a=1 ", b"1"),
    "one timestamp of zeros": _lines(b"m a=1 ", b"0", b"1"),
    "numbers of 200 kB": _lines(b"", b"m a=" + b"1" * 200_000 + b"\n"),
    "numbers of 200 kB after the point": _lines(b"", b"m a=0." + b"1" * 200_000 + b"\n"),
    "tag values of 200 kB of escapes": _lines(b"", b"m,a=" + b"\\," * 100_000 + b" a=1\n"),
    "spaces after a line": _lines(b"m a=1", b" "),
    "spaces before a timestamp": _lines(b"m a=1", b" ", b"1"),
    "spaces before fields": _lines(b"m ", b" ", b"a=1"),
    "one line of quotes": _lines(b"m ", b'"'),
    "one line of strings and something": _lines(b"m ", b'a="x"', b"\n"),
    "one line of commas": _lines(b"m ", b","),
    "one line of tags": _lines(b"m", b",a=b", b" a=1"),
    "one line of fields": _lines(b"m a=1", b",a=1"),
    "one bad line": _lines(b"", b"x"),
    "one bad line of bad bytes": _lines(b"", b"\xff"),
    "one bad line of escapes": _lines(b"", b"\\ "),
    "lines of 65,535 fields": (line_protocol.encode, _wide_line),
    "lines of their own fields": (line_protocol.encode, partial(_own_shapes, b"m %x=1\n", b"m a=1,b=2,c=3\n")),
    "lines of their own measurements": (line_protocol.encode, partial(_own_shapes, b"%x a=1\n", b"m a=1,b=2,c=3\n")),
    "NUL": _lines(b"", b"\0"),
    # MessagePack by column
    "small integers": _packed(partial(_column, b"\x01", 1)),
    "integers of two widths": _packed(partial(_column, b"\x01\xcc\xff", 2)),
    "arrays of nil": _packed(partial(_column, b"\x91\xc0", 1)),
    "maps of nil": _packed(partial(_column, b"\x81\xc0\xc0", 1)),
    "nested 90 deep": _packed(partial(_column, b"\x91" * 90 + b"\x01", 1)),
    "nested": _packed(lambda size: b"\x82\xa1m\xa1m\xa7columns\x81\xa1a\x91" + b"\x91" * size + b"\x01"),
    "one string in a column": _packed(partial(_one_value, b"\xdb")),
    "one binary in a column": _packed(partial(_one_value, b"\xc6")),
    "one array in a column": _packed(partial(_one_value, b"\xdd", filling=b"\x01")),
    "one map in a column": _packed(partial(_one_value, b"\xdf", filling=b"\x01", width=2)),
    "strings of 1 MB in a column": _packed(partial(_long_values, 1_000_000)),
    "strings of 10 MB in a column": _packed(partial(_long_values, 10_000_000)),
    "strings of 30 MB in a column": _packed(partial(_long_values, 30_000_000)),
    "a cut string in a column": _packed(lambda size: _one_value(b"\xdb", size)[:-1]),
    "a long measurement": _packed(lambda size: b"\x82\xa1m" + _long(b"\xdb", size)),
    "a long measurement of umlauts": _packed(lambda size: b"\x82\xa1m" + _long(b"\xdb", size, "ü".encode(), 1)),
    "a long key": _packed(lambda size: b"\x82" + _long(b"\xdb", size)),
    "a long column name": _packed(lambda size: b"\x82\xa1m\xa1m\xa7columns\x81" + _long(b"\xdb", size) + b"\x91\x01"),
    "a long column name of bad bytes": _packed(
        lambda size: b"\x82\xa1m\xa1m\xa7columns\x81" + _long(b"\xdb", size, b"\xff") + b"\x91\x01"
    ),
    "a long tag": _packed(lambda size: _MAP.replace(b"\x82", b"\x83", 1) + b"\xa4tags\x91" + _long(b"\xdb", size)),
    "a long type": _packed(
        lambda size: _MAP.replace(b"\x82", b"\x83", 1) + b"\xa5types\x81\xa1a" + _long(b"\xdb", size)
    ),
    "65,536 columns": _packed(partial(_wide_map, 5)),
    "65,536 columns of long names": _packed(partial(_wide_map, 250)),
    # MessagePack by row, and arrays
    "rows": _packed(partial(_again, _row({"a": b"\x01", "b": b"\xcb" + bytes(8), "c": b"\xa3abc"}))),
    "small maps": _packed(partial(_again, _MAP)),
    "small maps in a batch": _packed(lambda size: b"\x81\xa5batch" + _again(_MAP, size)),
    "small maps and a row": _packed(
        lambda size: b"\xdd" + struct.pack(">I", size // len(_MAP) + 1) + _MAP * (size // len(_MAP)) + _ROW
    ),
    "small maps and rows in turn": _packed(
        lambda size: (
            b"\xdd" + struct.pack(">I", size // len(_MAP + _ROW) * 2) + (_MAP + _ROW) * (size // len(_MAP + _ROW))
        )
    ),
    "batches of one row": _packed(partial(_again, b"\x81\xa5batch\x91" + _ROW)),
    "rows of their own fields": _packed(_own_rows),
    "a row of one string": _packed(partial(_one_row, b"\xdb")),
    "a row of one array": _packed(partial(_one_row, b"\xdd", filling=b"\x01")),
    "a row of one map": _packed(partial(_one_row, b"\xdf", filling=b"\x01", width=2)),
    "a row of a nested value": _packed(lambda size: _row({"a": b"\x91" * size + b"\x01"})),
    "a row of one long tag": _packed(lambda size: _row({"a": _long(b"\xdb", size)}, b"tags")),
    "an array of a row of one string": _packed(lambda size: b"\x91" + _one_row(b"\xdb", size)),
    "an array of a row of one array": _packed(lambda size: b"\x91" + _one_row(b"\xdd", size, b"\x01")),
    "rows of strings of 100 kB": _packed(partial(_again, _one_row(b"\xdb", 100_000))),
    "rows of strings of 1 MB": _packed(partial(_again, _one_row(b"\xdb", 1_000_000))),
    "rows of strings of 10 MB": _packed(partial(_again, _one_row(b"\xdb", 10_000_000))),
    "rows of a long host": _packed(lambda size: b"\x83\xa1m\xa1m\xa6fields\x81\xa1a\x01\xa1h" + _long(b"\xdb", size)),
    "a row of a long measurement": _packed(lambda size: b"\x91\x82\xa6fields\x81\xa1a\x01\xa1m" + _long(b"\xdb", size)),
    "a row of a long name": _packed(lambda size: b"\x91\x82\xa1m\xa1m\xa6fields\x81" + _long(b"\xdb", size) + b"\x01"),
    "a row of a long key": _packed(lambda size: b"\x91\x82\xa1m\xa1m" + _long(b"\xdb", size) + b"\x01"),
    "rows of 65,534 fields": _packed(partial(_again, _wide_row(5, 1))),
    "rows of 65,534 fields in two orders": _packed(
        lambda size: (
            array_header(size // len(_wide_row(5, 1)) // 2 * 2 + 2)
            + (_wide_row(5, 1) + _wide_row(5, -1)) * (size // len(_wide_row(5, 1)) // 2 + 1)
        )
    ),
    "rows of 65,534 long names in two orders": _packed(
        lambda size: (
            array_header(size // len(_wide_row(250, 1)) // 2 * 2 + 2)
            + (_wide_row(250, 1) + _wide_row(250, -1)) * (size // len(_wide_row(250, 1)) // 2 + 1)
        )
    ),
    "no map but numbers": _packed(lambda size: b"\xdd" + struct.pack(">I", size) + _ROW + b"\x01" * size),
    # JSON and CSV
    "JSON lines": _records(json_lines.encode, b'{"time":1700000000000,"host":"a","usage":0.5,"text":"abc"}\n'),
    "JSON lines of nothing": _records(json_lines.encode, b"{}\n"),
    "JSON lines of blanks": _records(json_lines.encode, b"\n"),
    "JSON lines of arrays": _records(json_lines.encode, b'{"a":[1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1]}\n'),
    "JSON lines nested 90 deep": _records(json_lines.encode, b'{"a":' * 90 + b"1" + b"}" * 90 + b"\n"),
    "JSON lines of large integers": _records(json_lines.encode, b'{"a":12345678901234567890123}\n'),
    "JSON lines of bad times": _records(json_lines.encode, b'{"time":1,"a":1}\n' * 900 + b'{"time":"x","a":1}\n'),
    "JSON lines of 1 MB of numbers": _records(json_lines.encode, b'{"a":[' + b"1," * 520_000 + b"1]}\n"),
    "JSON lines of 1 MB of maps": _records(json_lines.encode, b'{"a":[' + b"{}," * 340_000 + b"1]}\n"),
    "JSON lines of 60,000 fields": _records(
        json_lines.encode, b"{" + b",".join(b'"%x":1' % number for number in range(60_000)) + b"}\n"
    ),
    "JSON lines of their own fields": (
        partial(json_lines.encode, roles=_ROLES),
        partial(_own_shapes, b'{"%x":1}\n', b'{"a":1,"b":2,"c":3}\n'),
    ),
    "one JSON line": _records(json_lines.encode, b"x"),
    "a JSON array": _records(json_array.encode, b'{"time":1700000000000,"host":"a","usage":0.5},', b"[", b"{}]"),
    "a JSON array of one text": _records(json_array.encode, b"x", b'[{"a":"', b'"}]'),
    "a JSON array of backslashes": _records(json_array.encode, b"\\\\", b'[{"a":"', b'"}]'),
    "a JSON array of brackets": _records(json_array.encode, b"[", b"[", b"]"),
    "a JSON array of numbers": _records(json_array.encode, b"1,", b"[", b"1]"),
    "a JSON array of blanks": _records(json_array.encode, b" ", b"[", b"]"),
    "a JSON array behind blanks": _records(json_array.encode, b" ", b"", b"[]"),
    "a JSON array without an end": _records(json_array.encode, b'{"a":1},', b"["),
    "CSV": _records(csv_lines.encode, b"1700000000000,a,0.5,abc\n", b"time,host,usage,text\n"),
    "CSV of blanks": _records(csv_lines.encode, b"\n", b"a,b\n"),
    "CSV of one quote": _records(csv_lines.encode, b"x", b'a,b\n"'),
    "CSV of a quote and newlines": _records(csv_lines.encode, b"\n", b'a,b\n"'),
    "CSV of one cell": _records(csv_lines.encode, b"x", b"a,b\n"),
    "CSV of commas": _records(csv_lines.encode, b",", b"a,b\n"),
    "CSV of 4,096 cells": _records(
        csv_lines.encode, b"1," * 4095 + b"1\n", b",".join(b"%x" % number for number in range(4096)) + b"\n"
    ),
    # Arrow and Parquet
    "Arrow": (_check_stream, _arrow),
    "Arrow of small batches": (_check_stream, partial(_arrow, rows=1)),
    "Arrow of 16,000 columns": (_check_stream, _wide_arrow),
    "Arrow of zeros": (_check_stream, _arrow_of_zeros),
    "Parquet of zeros": (_read_parquet, _parquet_of_zeros),
    "Arrow of texts as times": (_check_stream, partial(_arrow, times=pa.string())),
    "Parquet": (_read_parquet, partial(_parquet, row_group_size=1 << 20)),
    "Parquet of small row groups": (_read_parquet, partial(_parquet, row_group_size=20)),
    "Parquet of small pages": (_read_parquet, partial(_parquet, row_group_size=1 << 20, data_page_size=1)),
    # Content-Encoding
    "gzip of zeros": _compressed("gzip", gzip.compress, bytes),
    "gzip of noise": _compressed("gzip", _stored, _noise),
    "deflate of zeros": _compressed("deflate", zlib.compress, bytes),
    "zstd of zeros": _compressed("zstd", ENCODERS["zstd"], bytes),
    "zstd of noise": _compressed("zstd", ENCODERS["zstd"], _noise),
    "10,000 gzip members": _compressed(
        "gzip", lambda data: gzip.compress(data) * 9_999, lambda size: bytes(size // 10_000)
    ),
    "10,000 zstd frames": _compressed(
        "zstd", lambda data: ENCODERS["zstd"](data) * 9_999, lambda size: bytes(size // 10_000)
    ),
    **TELEMETRY,
    **SERIES,
}
