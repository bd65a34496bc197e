"""Lines go in, columnar maps come out: by line and by column, held against a slow reading of the protocol."""

from __future__ import annotations

import math
import random
import struct
from collections.abc import Callable
from typing import Any, NamedTuple

import msgpack
import msgspec
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arcpipe.codec.columns import Encoded, Maps
from arcpipe.codec.effort import BYTES_PER_BAD_LINE, BYTES_PER_SHAPE, FREE_BAD_LINES, FREE_SHAPES, Effort, go_on
from arcpipe.codec.entries import array_length
from arcpipe.codec.envelope import ColumnMap
from arcpipe.codec.line_protocol import blocks, singles
from arcpipe.codec.line_protocol import body as body_module
from arcpipe.codec.line_protocol.bad_lines import MAX_ERRORS, MAX_TEXT
from arcpipe.codec.line_protocol.body import Lines, encode, encode_by_column, encode_by_line
from arcpipe.codec.line_protocol.by_column import read_piece
from arcpipe.codec.line_protocol.grammar import ESCAPINGS, Escapes
from arcpipe.errors import BadPayload, PayloadTooLarge
from tests.support import kernel
from tests.support.values import decode_values

MAX = (1 << 63) - 1
MIN = -(1 << 63)


class U(NamedTuple):
    """An unsigned value."""

    value: int


class Row(NamedTuple):
    """A row; `fields` under the names that their columns have."""

    measurement: str
    tags: dict[str, str]
    fields: dict[str, Any]
    time: int | None


def rows_of(encoded: Encoded | None) -> list[Row]:
    """The rows of all maps, in their order."""
    if encoded is None:
        return []
    maps = msgpack.unpackb(encoded.body)
    assert isinstance(maps, list) == encoded.batch
    rows = []
    for each in maps if encoded.batch else [maps]:
        assert list(each) == ["m", "columns", *(key for key in ("tags", "types") if key in each)]
        columns, types, tags = each["columns"], each.get("types", {}), each.get("tags", [])
        assert set(types.values()) <= {"u64"}
        counts = {len(values) for values in columns.values()}
        assert len(counts) == 1
        for at in range(counts.pop()):
            row: dict[str, Any] = {
                name: U(values[at]) if name in types else values[at] for name, values in columns.items()
            }
            time = row.pop("time", None)
            rows.append(Row(each["m"], {tag: row.pop(tag) for tag in tags}, row, time))
    assert len(rows) == encoded.records
    return rows


def typed(rows: list[Row]) -> list[str]:
    """Rows as texts that differ where values differ in type, in a bit, or in being a tag; in no particular order."""

    def value(of: Any) -> str:
        return struct.pack(">d", of).hex() if type(of) is float else repr(of)

    return sorted(
        f"{row.measurement!r} {sorted(row.tags.items())} "
        f"{sorted((name, value(of)) for name, of in row.fields.items())} {row.time}"
        for row in rows
    )


def both(body: bytes) -> Lines:
    """Return the result of both paths for a body, which is the same; that of the kernel is the same, too."""
    lines = encode_by_line(body)
    rows = typed(rows_of(lines.encoded))
    for path in PATHS[1:]:
        others = path(body)
        assert typed(rows_of(others.encoded)) == rows
        assert others[1:] == lines[1:]
    return lines


def _row(measurement: str = "m", tags: dict[str, str] | None = None, time: int | None = None, **fields: Any) -> Row:
    return Row(measurement, tags or {}, fields, time)


def _m(text: str, value: Any) -> tuple[str, Row]:
    """A line with one field."""
    return f"m f={text}", _row(f=value)


def _name(raw: str, name: str) -> list[tuple[str, Row]]:
    """A name as measurement, tag key, tag value and field key."""
    return [
        (f"{raw} f=1i", Row(name, {}, {"f": 1}, None)),
        (f"m,{raw}=v f=1i", Row("m", {name: "v"}, {"f": 1}, None)),
        (f"m,t={raw} f=1i", Row("m", {"t": name}, {"f": 1}, None)),
        (f"m {raw}=1i", Row("m", {}, {name: 1}, None)),
    ]


# The examples of https://docs.influxdata.com/influxdb/v2/reference/syntax/line-protocol/, rule by rule.
REFERENCE = [
    (
        'myMeasurement,tag1=value1,tag2=value2 fieldKey="fieldValue" 1556813561098000000',
        Row(
            "myMeasurement", {"tag1": "value1", "tag2": "value2"}, {"fieldKey": "fieldValue"}, 1_556_813_561_098_000_000
        ),
    ),
    (
        'measurementName fieldKey="field string value" 1556813561098000000',
        Row("measurementName", {}, {"fieldKey": "field string value"}, 1_556_813_561_098_000_000),
    ),
    ("myMeasurement fieldKey=1.0", Row("myMeasurement", {}, {"fieldKey": 1.0}, None)),
    ("myMeasurement fieldKey=1", Row("myMeasurement", {}, {"fieldKey": 1.0}, None)),
    ("myMeasurement fieldKey=-1.234456e+78", Row("myMeasurement", {}, {"fieldKey": -1.234456e78}, None)),
    ("myMeasurement fieldKey=1i", Row("myMeasurement", {}, {"fieldKey": 1}, None)),
    ("myMeasurement fieldKey=12485903i", Row("myMeasurement", {}, {"fieldKey": 12_485_903}, None)),
    ("myMeasurement fieldKey=-12485903i", Row("myMeasurement", {}, {"fieldKey": -12_485_903}, None)),
    ("myMeasurement fieldKey=1u", Row("myMeasurement", {}, {"fieldKey": U(1)}, None)),
    ("myMeasurement fieldKey=12485903u", Row("myMeasurement", {}, {"fieldKey": U(12_485_903)}, None)),
    ('myMeasurement fieldKey="this is a string"', Row("myMeasurement", {}, {"fieldKey": "this is a string"}, None)),
    *(
        (f"myMeasurement fieldKey={text}", Row("myMeasurement", {}, {"fieldKey": text[0] in "tT"}, None))
        for text in ("t", "T", "true", "True", "TRUE", "f", "F", "false", "False", "FALSE")
    ),
    ("m f=1i -9223372036854775806", _row(f=1, time=-9_223_372_036_854_775_806)),
    ("m f=1i 9223372036854775806", _row(f=1, time=9_223_372_036_854_775_806)),
    ("m f=-9223372036854775808i,g=9223372036854775807i", _row(f=MIN, g=MAX)),
    ("m f=0u,g=18446744073709551615u", _row(f=U(0), g=U((1 << 64) - 1))),
    ('my\\ Measurement fieldKey="string value"', Row("my Measurement", {}, {"fieldKey": "string value"}, None)),
    (
        'myMeasurement fieldKey="\\"string\\" within a string"',
        Row("myMeasurement", {}, {"fieldKey": '"string" within a string'}, None),
    ),
    (
        "myMeasurement,tag\\ Key1=tag\\ Value1,tag\\ Key2=tag\\ Value2 fieldKey=100",
        Row("myMeasurement", {"tag Key1": "tag Value1", "tag Key2": "tag Value2"}, {"fieldKey": 100.0}, None),
    ),
    (
        'myMeasurement,tagKey=🍭 fieldKey="Launch 🚀" 1556813561098000000',
        Row("myMeasurement", {"tagKey": "🍭"}, {"fieldKey": "Launch 🚀"}, 1_556_813_561_098_000_000),
    ),
    *(  # backslashes, before something that needs none; `corpus` has names
        (f'm f="a{chr(92) * count}b"', _row(f="a" + "\\" * left + "b"))
        for count, left in ((1, 1), (2, 1), (3, 2), (4, 2), (5, 3), (6, 3))
    ),
    # Quotes are part of names, keys and tag values, and never delimit them.
    *_name('"quoted"', '"quoted"'),
    *_name("'quoted'", "'quoted'"),
    *_name('a"b', 'a"b'),
    *_name('"', '"'),
    ('m f="true"', _row(f="true")),
    ("m f=\"'single'\"", _row(f="'single'")),
    # The first space that is not escaped ends the tags, the second the fields.
    (
        'my\\ m,t=a\\ b f\\ 1="c d",f2=1i 5',
        Row("my m", {"t": "a b"}, {"f 1": "c d", "f2": 1}, 5),
    ),
]

VALID = [
    *REFERENCE,
    # Floats
    *(
        _m(text, float(text))
        for text in (
            *("0", "-0", "0.0", "-0.0", "00", "007", "1.", ".5", "-.5", "-1.", "5.e3", ".5e3", "1e5", "1E5", "1e+5"),
            *("1e-5", "-1e-5", "1E+05", "123456789", "0.1", "0.30000000000000004", "1.7976931348623157e308"),
            *("-1.7976931348623157e308", "2.2250738585072014e-308", "2.2250738585072011e-308", "5e-324", "4.9e-324"),
            *("2e-324", "1e-400", "-1e-400", "9007199254740993", "9007199254740992.5", "9223372036854775808"),
            *("8.988465674311580e307", "6.631236846766476e-316", "3.2378839133029012895883521e-319", "1e23"),
            *("1" * 300, "0." + "0" * 300 + "1", "0" * 400 + "1.5", "1." + "3" * 800, "179769313486231570793e288"),
        )
    ),
    # Integers
    *(
        _m(f"{text}i", int(text))
        for text in ("0", "-0", "1", "-1", "007", "-007", str(MAX), str(MIN), "0" * 50 + "7", "-" + "0" * 50 + "7")
    ),
    *(
        _m(f"{text}u", U(int(text)))
        for text in ("0", "1", "007", str(MAX), str(MAX + 1), str((1 << 64) - 1), "0" * 50 + "7")
    ),
    # Strings
    *(
        _m(f'"{text}"', value)
        for text, value in (
            ("", ""),
            (" ", " "),
            ("a,b", "a,b"),
            ("a=b", "a=b"),
            ("a b=c,d=e f", "a b=c,d=e f"),
            ("# no comment", "# no comment"),
            ('\\"', '"'),
            ('\\"\\"', '""'),
            ('a\\"', 'a"'),
            ('\\"a', '"a'),
            ("\\\\", "\\"),
            ("\\\\\\\\", "\\\\"),
            ('\\\\\\"', '\\"'),
            ("C:\\dir\\\\file", "C:\\dir\\file"),
            ("\\n\\t\\,\\ \\=", "\\n\\t\\,\\ \\="),
            ("two\nlines", "two\nlines"),
            ("\n", "\n"),
            ("a\r\nb", "a\r\nb"),
            ("m g=1\nm g=2", "m g=1\nm g=2"),
            ("tab\tand\x00null", "tab\tand\x00null"),
            ("é ü 🚀 \u2028", "é ü 🚀 \u2028"),
            ("x" * 31, "x" * 31),
            ("x" * 32, "x" * 32),
            ("x" * 255, "x" * 255),
            ("x" * 256, "x" * 256),
            ("y" * 65_535, "y" * 65_535),
            ("y" * 70_000, "y" * 70_000),
            ('{\\"json\\": [1, 2]}', '{"json": [1, 2]}'),
        )
    ),
    # Names and escapes
    *_name("a\\,b", "a,b"),
    *_name("a\\ b", "a b"),
    *_name("\\ ", " "),
    *_name("a\\ \\,\\ b", "a , b"),
    *_name("\\a", "\\a"),
    *_name("größe", "größe"),
    *_name("温度", "温度"),
    *_name("_x", "_x"),
    *_name("a#b", "a#b"),
    *_name("a/b.c-d:e%f(g)'h*i+j", "a/b.c-d:e%f(g)'h*i+j"),
    *_name("x" * 256, "x" * 256),
    *_name("é" * 128, "é" * 128),
    *_name("true", "true"),
    *_name("1", "1"),
    *_name("-1i", "-1i"),
    *_name("a\\=b", "a=b"),
    ("m time=1i 5", Row("m", {}, {"time_field": 1}, 5)),
    ("m,time_field=a time=1i,f=2i", Row("m", {"time_field": "a"}, {"time_field_2": 1, "f": 2}, None)),
    ("a=b f=1i", Row("a=b", {}, {"f": 1}, None)),
    ("m,t=#x f=1i", _row(tags={"t": "#x"}, f=1)),
    ("m,t=a\tb f=1i", _row(tags={"t": "a\tb"}, f=1)),
    ("m,t=" + "v" * 40 + " f=1i", _row(tags={"t": "v" * 40}, f=1)),
    ("m,t=" + "v" * 300 + " f=1i", _row(tags={"t": "v" * 300}, f=1)),
    # Tags and fields
    ("m,a=1,b=2 f=1i", _row(tags={"a": "1", "b": "2"}, f=1)),
    ("m,b=2,a=1 f=1i", _row(tags={"a": "1", "b": "2"}, f=1)),
    ("m,t=x t=1i", Row("m", {"t": "x"}, {"t_field": 1}, None)),
    ("m,t=x,t_field=y t=1i", Row("m", {"t": "x", "t_field": "y"}, {"t_field_2": 1}, None)),
    ("m,t=x t=1i,t_field=2i", Row("m", {"t": "x"}, {"t_field_2": 1, "t_field": 2}, None)),
    ("m f=1i,f=2i", _row(f=2)),
    ("m f=1i,g=1i,f=2.5", _row(f=2.5, g=1)),
    ('m f="a",f="a"', _row(f="a")),
    ("m f\\,=1i,f\\,=2i", Row("m", {}, {"f,": 2}, None)),
    ("m m=1i", _row(m=1)),
    ("m,m=m m=1i", Row("m", {"m": "m"}, {"m_field": 1}, None)),
    ('m a=1i,b=2u,c=3,d=t,e="x"', _row(a=1, b=U(2), c=3.0, d=True, e="x")),
    ("m,Time=x TIME=1i", Row("m", {"Time": "x"}, {"TIME": 1}, None)),
    ("m " + ",".join(f"f{n}={n}i" for n in range(300)), Row("m", {}, {f"f{n}": n for n in range(300)}, None)),
    # Time
    ("m f=1i 0", _row(f=1, time=0)),
    ("m f=1i -1", _row(f=1, time=-1)),
    ("m f=1i -0", _row(f=1, time=0)),
    ("m f=1i 007", _row(f=1, time=7)),
    (f"m f=1i {MAX}", _row(f=1, time=MAX)),
    (f"m f=1i {MIN}", _row(f=1, time=MIN)),
    ("m f=1i " + "0" * 50 + "5", _row(f=1, time=5)),
    ("m f=t 1", _row(f=True, time=1)),
    ('m f="" 1', _row(f="", time=1)),
    # Whitespace
    ("  m f=1i", _row(f=1)),
    ("\tm f=1i", _row(f=1)),
    (" \t m f=1i", _row(f=1)),
    ("m  f=1i", _row(f=1)),
    ("m \t f=1i", _row(f=1)),
    ("m f=1i  5", _row(f=1, time=5)),
    ("m f=1i \t5", _row(f=1, time=5)),
    ("m f=1i ", _row(f=1)),
    ("m f=1i\t", _row(f=1)),
    ("m f=1i\r", _row(f=1)),
    ("m f=1i \t\r", _row(f=1)),
    ("m f=1i 5\r", _row(f=1, time=5)),
    ("m f=1i 5  ", _row(f=1, time=5)),
    ("m f=1i 5\t\r", _row(f=1, time=5)),
    ('m f="x"\r', _row(f="x")),
    ("m f=t\r", _row(f=True)),
    ("m f=1\r", _row(f=1.0)),
]

LONG = "x" * 257
# A line and why it is bad.
INVALID = [
    # Measurement, tags
    (",t=a f=1", "measurement is missing at column 1"),
    (", f=1", "measurement is missing at column 1"),
    ("m", "fields are missing at column 2"),
    ("m ", "fields are missing at column 3"),
    ("m\r", "fields are missing at column 3"),
    ("m,t=a", "fields are missing at column 6"),
    ("m,t=a ", "fields are missing at column 7"),
    ("m,t=a  ", "fields are missing at column 8"),
    ("m\\ f=1", "fields are missing at column 7"),
    ("m,t=a\\ f=1", "'=' in the value of tag 't' is not escaped at column 9"),
    ("m\tf=1", "fields are missing at column 6"),
    ("\x00", "fields are missing at column 2"),
    ("\ufeff", "fields are missing at column 2"),
    ("m, f=1", "tag key is missing at column 3"),
    ("m,", "tag key is missing at column 3"),
    ("m,,t=a f=1", "tag key is missing at column 3"),
    ("m,=a f=1", "tag key is missing at column 3"),
    ("m,t=a, f=1", "tag key is missing at column 7"),
    ("m,t f=1", "tag 't' has no value at column 4"),
    ("m,t", "tag 't' has no value at column 4"),
    ("m,t,u=a f=1", "tag 't' has no value at column 4"),
    ("m,t\\=a f=1", "tag 't\\=a' has no value at column 7"),
    ("m,t= f=1", "value of tag 't' is missing at column 5"),
    ("m,t=,u=a f=1", "value of tag 't' is missing at column 5"),
    ("m,t=", "value of tag 't' is missing at column 5"),
    ("m,t== f=1", "value of tag 't' is missing at column 5"),
    ("m,t=a=b f=1", "'=' in the value of tag 't' is not escaped at column 6"),
    ("m,t=a= f=1", "'=' in the value of tag 't' is not escaped at column 6"),
    ("m,t=a,t=a f=1", "tag 't' is there twice"),
    ("m,t=a,u=b,t=c f=1", "tag 't' is there twice"),
    ("m,t\\,=a,t\\,=b f=1", "tag 't,' is there twice"),
    ("m,time=a f=1", "a tag cannot be called 'time', which is the timestamp"),
    # Fields
    ("m =1", "field key is missing at column 3"),
    ("m ,f=1", "field key is missing at column 3"),
    ("m f=1,", "field key is missing at column 7"),
    ("m f=1, ", "field key is missing at column 7"),
    ("m f=1,,g=2", "field key is missing at column 7"),
    ("m f=1,=2", "field key is missing at column 7"),
    ("m f=1, g=2", "field key is missing at column 7"),
    ("m f", "field 'f' has no value at column 4"),
    ("m f ", "field 'f' has no value at column 4"),
    ("m f,g=1", "field 'f' has no value at column 4"),
    ("m f 1", "field 'f' has no value at column 4"),
    ("m f=1,g", "field 'g' has no value at column 8"),
    ("m f=1,g 5", "field 'g' has no value at column 8"),
    ("m f\r", "field 'f' has no value at column 4"),
    ("m,t\r", "tag 't' has no value at column 4"),
    ("m f=", "value of field 'f' is missing at column 5"),
    ("m f= ", "value of field 'f' is missing at column 5"),
    ("m f= 5", "value of field 'f' is missing at column 5"),
    ("m f=,g=1", "value of field 'f' is missing at column 5"),
    ("m f=1,g=", "value of field 'g' is missing at column 9"),
    *(
        (f"m f={text}", f"value '{text}' of field 'f' is no number, boolean or quoted string at column 5")
        for text in (
            *("a", "'a'", "x1", "tr", "tru", "truE", "tRUE", "TRUe", "fals", "FALSe", "yes", "no", "null", "nil"),
            *("true1", "tt", "ft", "t1", "1t", "trueTRUE", "+1", "+1i", "--1", "-", "-i", "-u", "i", "u", ".", "-."),
            *("1..", "1.1.1", "1e", "1e+", "1e-", "e5", ".e5", "1ee5", "1e5e5", "1e5.5", "1e5i", "1.0i", "1.5u"),
            *("1ii", "1iu", "1ui", "1I", "1U", "-1u", "-0u", "1_0", "0x10", "0x10i", "0X10u", "0b1", "1f", "1d", "1L"),
            *("inf", "Inf", "-inf", "+inf", "infinity", "-Infinity", "nan", "NaN", "-nan", "1i5", "1-1", "1+1", "9i10"),
            *("1=2", "١", "１", "1e５", "1'000", "1;", "=1", "(1)"),
        )
    ),
    ('m f=a"b"', "value 'a\"b\"' of field 'f' is no number, boolean or quoted string at column 5"),
    ("m f=1e400", "value '1e400' of field 'f' is too large for a float at column 5"),
    ("m f=-1e400", "value '-1e400' of field 'f' is too large for a float at column 5"),
    ("m f=1.7976931348623159e308", "value '1.7976931348623159e308' of field 'f' is too large for a float at column 5"),
    (f"m f={MAX + 1}i", f"value '{MAX + 1}' of field 'f' is out of the range of 64 bits at column 5"),
    (f"m f={MIN - 1}i", f"value '{MIN - 1}' of field 'f' is out of the range of 64 bits at column 5"),
    (f"m f={1 << 64}u", f"value '{1 << 64}' of field 'f' is out of the range of 64 bits at column 5"),
    ("m f=" + "9" * 30 + "i", f"value '{'9' * 30}' of field 'f' is out of the range of 64 bits at column 5"),
    ('m f="a""b"', "the string of field 'f' is followed by neither comma, space nor line end at column 8"),
    ('m f="a"b', "the string of field 'f' is followed by neither comma, space nor line end at column 8"),
    ('m f="a"i', "the string of field 'f' is followed by neither comma, space nor line end at column 8"),
    ('m f="a"=1', "the string of field 'f' is followed by neither comma, space nor line end at column 8"),
    ('m f="a\\\\"b"', "the string of field 'f' is followed by neither comma, space nor line end at column 10"),
    # Timestamps
    ("m f=1 x", "timestamp 'x' is no integer at column 7"),
    ("m f=1 1.5", "timestamp '1.5' is no integer at column 7"),
    ("m f=1 1i", "timestamp '1i' is no integer at column 7"),
    ("m f=1 1e9", "timestamp '1e9' is no integer at column 7"),
    ("m f=1 +1", "timestamp '+1' is no integer at column 7"),
    ("m f=1 -", "timestamp '-' is no integer at column 7"),
    ("m f=1 --1", "timestamp '--1' is no integer at column 7"),
    ("m f=1 0x10", "timestamp '0x10' is no integer at column 7"),
    ("m f=1 1_0", "timestamp '1_0' is no integer at column 7"),
    ("m f=1 ١", "timestamp '١' is no integer at column 7"),
    ("m f=1 g=2", "timestamp 'g=2' is no integer at column 7"),
    ('m f=1 "5"', "timestamp '\"5\"' is no integer at column 7"),
    ("m f=1 1 2", "unexpected '2' after the timestamp at column 9"),
    ("m f=1 1 x", "unexpected 'x' after the timestamp at column 9"),
    ("m f=1 1,2", "unexpected ',' after the timestamp at column 8"),
    ("m f=1 ,g=2", "unexpected ',' at column 7"),
    (f"m f=1 {MAX + 1}", f"timestamp '{MAX + 1}' is out of the range of 64 bits at column 7"),
    (f"m f=1 {MIN - 1}", f"timestamp '{MIN - 1}' is out of the range of 64 bits at column 7"),
    ("m f=1 " + "9" * 40, f"timestamp '{'9' * 40}' is out of the range of 64 bits at column 7"),
    ("é f=1 x", "timestamp 'x' is no integer at column 7"),  # columns are characters
    # Names
    (f"{LONG} f=1", f"measurement '{'x' * 64}…' has 257 bytes, more than 256"),
    (f"m,{LONG}=a f=1", f"tag name '{'x' * 64}…' has 257 bytes, more than 256"),
    (f"m {LONG}=1", f"field name '{'x' * 64}…' has 257 bytes, more than 256"),
    ("a\tb f=1", "measurement 'a\\tb' has a control character"),
    ("a\x00b f=1", "measurement 'a\\x00b' has a control character"),
    ("a\x7fb f=1", "measurement 'a\\x7fb' has a control character"),
    ("a\x85b f=1", "measurement 'a\\x85b' has a control character"),
    ("m,a\tb=1 f=1", "tag name 'a\\tb' has a control character"),
    ("m a\x01b=1", "field name 'a\\x01b' has a control character"),
    ("m a\rb=1", "field name 'a\\rb' has a control character"),
]

UNCLOSED = [
    ('m f="', "the string of field 'f' is not closed: it begins at column 5"),
    ('m f="a', "the string of field 'f' is not closed: it begins at column 5"),
    ('m f="a\\"', "the string of field 'f' is not closed: it begins at column 5"),
    ('m f="a\\', "the string of field 'f' is not closed: it begins at column 5"),
]

INVALID_UTF8 = [
    (b"\xff f=1", "measurement '\\xff' is not valid UTF-8"),
    (b"m,\xff=a f=1", "tag name '\\xff' is not valid UTF-8"),
    (b"m \xc3=1", "field name '\\xc3' is not valid UTF-8"),
    (b"m,t=\xff f=1", "invalid UTF-8 at column 5"),
    (b'm f="a\xed\xa0\x80"', "invalid UTF-8 at column 7"),
    (b'm f="\xc3"', "invalid UTF-8 at column 6"),
    (b"m,t=\xc3\xa9\xc3 f=1", "invalid UTF-8 at column 6"),
    (b"m f=\xff", "value '\\xff' of field 'f' is no number, boolean or quoted string at column 5"),
]

Path = Callable[[bytes], Lines]
PATHS: list[Path] = [encode_by_line, encode_by_column]
if kernel.can_be_built():
    PATHS.append(kernel.by_kernel)
EACH_PATH = pytest.mark.parametrize("path", PATHS, ids=["by line", "by column", "by kernel"][: len(PATHS)])


def _ids(cases: list[tuple[Any, Any]]) -> list[str]:
    return [f"{number}: {case[0]!r:.50}" for number, case in enumerate(cases)]


@pytest.mark.slow
@EACH_PATH
@pytest.mark.parametrize(("line", "row"), VALID, ids=_ids(VALID))
def test_a_valid_line_is_a_row(path: Path, line: str, row: Row) -> None:
    # Many of them make a block; a line of another kind between them shows that each ends where it should.
    body = b"\n".join([line.encode(), b"other g=2i"] * 12)
    lines = path(body)
    assert (lines.errors, lines.more_errors) == ([], 0)
    rows = rows_of(lines.encoded)
    assert typed([each for each in rows if each.measurement != "other"]) == typed([row] * 12)
    assert typed([each for each in rows if each.measurement == "other"]) == typed([_row("other", g=2)] * 12)


@pytest.mark.slow
@EACH_PATH
@pytest.mark.parametrize(
    ("line", "reason"),
    [*((line.encode(), reason) for line, reason in INVALID), *INVALID_UTF8],
    ids=_ids([*INVALID, *INVALID_UTF8]),
)
def test_a_bad_line_is_reported_and_the_others_are_written(path: Path, line: bytes, reason: str) -> None:
    body = b"\n".join([b"m f=1i", line] * 10 + [b"m f=1i\n"])
    lines = path(body)
    assert [(error.line, error.reason) for error in lines.errors] == [(number, reason) for number in range(2, 21, 2)]
    assert typed(rows_of(lines.encoded)) == typed([_row(f=1)] * 11)
    alone = path(line)
    assert alone.encoded is None
    assert [error.line for error in alone.errors] == [1]


@pytest.mark.parametrize(("line", "reason"), INVALID + UNCLOSED, ids=_ids(INVALID + UNCLOSED))
def test_the_reason_of_a_single_bad_line_says_what_and_where(line: str, reason: str) -> None:
    assert [error.reason for error in encode(line.encode()).errors] == [reason]


def test_the_lines_behind_a_string_that_is_not_closed_are_read() -> None:
    body = b'm f=1i\nm f="it\'s open\nm f=2i\nm g="closed"\nm h="a b" 1\nm f=3i\n'
    lines = both(body)
    assert [(error.line, error.reason, error.text) for error in lines.errors] == [
        (
            2,
            "the string of field 'f' is followed by neither comma, space nor line end at column 6 of line 4",
            "m f=\"it's open",
        )
    ]
    assert typed(rows_of(lines.encoded)) == typed(
        [_row(f=1), _row(f=2), _row(g="closed"), _row(h="a b", time=1), _row(f=3)]
    )
    body = b'm f=1i\nm f="open\n' + b"m f=2i\n" * 40
    lines = both(body)
    assert [(error.line, error.reason) for error in lines.errors] == [
        (2, "the string of field 'f' is not closed: it begins at column 5")
    ]
    assert rows_of(lines.encoded) == [_row(f=1)] + [_row(f=2)] * 40


def test_what_a_string_holds_is_never_written_as_lines() -> None:
    """What a string holds is never written as lines, even if its line is bad."""
    plain = b"m f=2i\n" * 30
    for bad in (
        b'm f="\nm f=1i\nm f=1i\n" x\n',
        b'm f="\nm f=1i\nm f=1i\n",g=\n',
        b'm,t= f="\nm f=1i\nm f=1i\n"\n',
        b'm,t=a f=1,g="\nm f=1i\n",h="\nm f=1i\n",f=1x\n',
        b'm,t=a,t=b g="\nm f=1i\n"\n',
    ):
        lines = both(plain + bad + plain)
        assert rows_of(lines.encoded) == [_row(f=2)] * 60
        assert [error.line for error in lines.errors] == [31]
        good = bad.replace(b" x\n", b"\n").replace(b",g=\n", b"\n").replace(b",t=b", b"").replace(b"t= ", b"t=a ")
        lines = both(plain + good.replace(b"=1x", b"=1") + plain)
        assert lines.errors == []
        assert len(rows_of(lines.encoded)) == 61


def test_lines_are_counted_as_they_stand_in_the_body() -> None:
    body = b'\n# comment\r\n\r\n  \n  # f="\nm f=\n' + b"m f=1i\r\n" * 20 + b'm f="\n\n\n"\nm\n\t#\nm f=1i\nx'
    lines = both(body)
    assert [error.line for error in lines.errors] == [6, 31, 34]
    assert len(rows_of(lines.encoded)) == 22


@pytest.mark.parametrize("body", [b"", b"\n", b"\r\n", b"  \n\t\n", b"# m f=1", b"#\n#", b" # \n\n  "])
def test_a_body_without_lines_has_neither_rows_nor_errors(body: bytes) -> None:
    assert both(body) == Lines(None, [], 0)


def test_a_reported_line_is_short_and_printable() -> None:
    (error,) = both(b"m f=\x1b[31m\x00\xff\xe2\x80\xa8" + "é".encode() * 5000).errors
    assert len(error.text) == MAX_TEXT
    assert error.text.isprintable()
    assert error.text.startswith("m f=\\x1b[31m\\x00\\xff\\u2028éé")
    assert error.reason.isprintable()


def test_only_so_many_bad_lines_are_reported_and_the_others_counted() -> None:
    lines = both(b"m f=1i\nbad\n" * (MAX_ERRORS + 50))
    assert [error.line for error in lines.errors] == list(range(2, 2 * MAX_ERRORS + 1, 2))
    assert lines.more_errors == 50
    assert len(rows_of(lines.encoded)) == MAX_ERRORS + 50


def test_rows_of_a_map_are_in_the_order_of_the_lines() -> None:
    body = b"".join(b"m%d f=%di\n" % (n % 3, n) for n in range(300))
    for path in (encode_by_line, encode_by_column):
        rows = rows_of(path(body).encoded)
        for measurement in ("m0", "m1", "m2"):
            values = [row.fields["f"] for row in rows if row.measurement == measurement]
            assert values == sorted(values)


def test_lines_of_another_type_or_without_a_time_have_another_map() -> None:
    """One shape is one map and lines with other types or without a time are others."""
    for path in (encode_by_line, encode_by_column):
        assert not path(b"m,t=a f=1i,g=2 5\n" * 100).encoded.batch  # type: ignore[union-attr]
        body = b'm f=1i 5\nm f=1.5 5\nm f=1u 5\nm f=t 5\nm f="" 5\nm f=1i\nm,f=x f=1i 5\n' * 20
        maps = msgpack.unpackb(path(body).encoded.body)  # type: ignore[union-attr]
        assert [list(each["columns"]) for each in maps] == [["time", "f"]] * 5 + [["f"], ["time", "f", "f_field"]]
    in_any_order = b"m,a=1,b=2 f=1i,g=2 5\nm,b=2,a=1 g=2,f=1i 5\n" * 20
    assert not encode_by_line(in_any_order).encoded.batch  # type: ignore[union-attr]
    assert typed(rows_of(both(in_any_order).encoded)) == typed([_row("m", {"a": "1", "b": "2"}, 5, f=1, g=2.0)] * 40)


def test_values_keep_their_types_to_arrow() -> None:
    body = b'm,t=x i=1i,u=1u,f=1,g=1.0,b=t,s="1" 1700000000000000000\n' * 50
    expected = {
        "time": pa.int64(),
        "t": pa.string(),
        "i": pa.int64(),
        "u": pa.uint64(),
        "f": pa.float64(),
        "g": pa.float64(),
        "b": pa.bool_(),
        "s": pa.string(),
    }
    for path in (encode_by_line, encode_by_column):
        encoded = path(body).encoded
        assert encoded is not None
        each = msgspec.msgpack.decode(encoded.body, type=ColumnMap)
        assert each.tags == ("t",)
        found = {}
        for name, raw in each.columns.items():
            count, header = array_length(bytes(raw))
            assert count == 50
            found[name] = decode_values(bytes(raw)[header:], count, (each.types or {}).get(name)).array.type
        assert found == expected


# Floats, bit for bit

decimals = st.one_of(
    st.floats(allow_nan=False, allow_infinity=False).map(repr),
    st.floats(allow_nan=False, allow_infinity=False).map(lambda x: f"{x:.17e}"),
    st.floats(allow_nan=False, allow_infinity=False, min_value=-1e6, max_value=1e6).map(lambda x: f"{x:.3f}"),
    st.from_regex(r"-?[0-9]{1,25}(\.[0-9]{0,25})?([eE][+-]?[0-9]{1,3})?", fullmatch=True),
    st.from_regex(r"-?[0-9]{0,400}\.[0-9]{1,400}", fullmatch=True),
)


@pytest.mark.slow
@settings(deadline=None, max_examples=30)
@given(st.lists(decimals, min_size=10, max_size=60))
def test_floats_are_those_of_python_bit_for_bit(texts: list[str]) -> None:
    texts = [text for text in texts if math.isfinite(float(text))]
    lines = both("".join(f"m f={text}\n" for text in texts).encode())
    assert lines.errors == []
    found = [row.fields["f"] for row in rows_of(lines.encoded)]
    assert struct.pack(f">{len(found)}d", *found) == struct.pack(f">{len(texts)}d", *map(float, texts))


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(-(1 << 65), 1 << 65) | st.sampled_from([MAX, MAX + 1, MIN, MIN - 1, 1 << 64]), min_size=10))
def test_integers_are_exact_or_refused(numbers: list[int]) -> None:
    body = "".join(f"m i={number}i\nm u={number}u\n" for number in numbers)
    lines = both(body.encode())
    rows = rows_of(lines.encoded)
    signed = [number for number in numbers if MIN <= number <= MAX]
    unsigned = [number for number in numbers if 0 <= number < 1 << 64]
    assert sorted(row.fields["i"] for row in rows if "i" in row.fields) == sorted(signed)
    assert sorted(row.fields["u"].value for row in rows if "u" in row.fields) == sorted(unsigned)
    assert len(lines.errors) + lines.more_errors == 2 * len(numbers) - len(rows)


# The two paths

names = st.sampled_from(
    ["a", "host", "usage_user", "usage_system", "b" * 20, "c" * 20, "xc" * 8 + "yy", "t\\,", "é", "_"]
)
tag_values = st.sampled_from(["a", "b", "1", "server-12", "x" * 33, "ü", '"q"', "a\\ b", "(x)", "1i", "#"])
field_values = st.one_of(
    st.sampled_from(["1", "1.5", "-0.25", "1e5", "123456789.125", ".5", "5.", "1e400", "1..2", "nan", "0x1", "+1"]),
    st.sampled_from(["1i", "-5i", "9223372036854775807i", "9223372036854775808i", "0x1i", "1u", "0u", "-1u", "1.5i"]),
    st.sampled_from(["t", "F", "true", "False", "TRUE", "tRUE", "f1"]),
    st.sampled_from(
        ['""', '"a"', '"a b,c=d"', '"a\\"b"', '"two\nlines"', '"two\r\nlines"', '"' + "x" * 40 + '"', '"open', '"a"b']
    ),
)
pairs = st.tuples(names, field_values).map("=".join)
tags = st.lists(st.tuples(names, tag_values).map("=".join), max_size=3)
times = st.sampled_from(["", " 1700000000000000000", " -5", " 0", " 1x", " ", "  7 ", " 9223372036854775808"])
whole_lines = st.tuples(names, tags, st.lists(pairs, min_size=1, max_size=4), times).map(
    lambda parts: ",".join([parts[0], *parts[1]]) + " " + ",".join(parts[2]) + parts[3]
)
odd_lines = st.sampled_from(["", "# a comment", '# f="', "  ", "\t", "m", "m,t f=1", "\r", "\x00", "m f=1\r", ",", "="])
any_line = st.one_of(whole_lines, whole_lines, odd_lines).map(str.encode) | st.binary(max_size=12)


@st.composite
def bodies(draw: st.DrawFn) -> bytes:
    """Lines, many of them several times, in some order, some of them damaged."""
    lines = []
    for line in draw(st.lists(any_line, min_size=1, max_size=6)):
        lines += [line] * draw(st.sampled_from([1, 1, 3, 10, 30]))
    source = random.Random(draw(st.integers(0, 1000)))
    source.shuffle(lines)
    for _ in range(draw(st.sampled_from([0, 0, 1, 5]))):
        at = source.randrange(len(lines))
        line = lines[at]
        cut = source.randrange(len(line) + 1)
        damage = source.choice([b"", b",", b"=", b" ", b'"', b"\\", b"\n", b"\r", b"i", b"1", b"\xff", b'="', b"\x00"])
        lines[at] = line[:cut] + damage + line[cut + source.choice([0, 0, 1]) :]
    return draw(st.sampled_from([b"\n", b"\r\n"])).join(lines) + draw(st.sampled_from([b"", b"\n", b"\r\n", b"\r"]))


@pytest.mark.slow
@settings(deadline=None, max_examples=200)
@given(bodies())
def test_both_paths_give_the_same_rows_and_errors(body: bytes) -> None:
    both(body)


@settings(deadline=None, max_examples=100)
@given(st.binary(max_size=400) | st.text('m,= \n"\\ft1i.', max_size=400).map(str.encode), st.sampled_from([1, 9]))
def test_any_bytes_are_lines_or_errors(body: bytes, times: int) -> None:
    both(b"\n".join([body] * times))


@pytest.mark.parametrize("size", [1, 7, 100, 1000])
def test_the_pieces_in_which_a_body_is_read_do_not_show(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    body = b"".join(
        b'm,t=a f=%di %d\nm g="%s"\n%s' % (n, n, b"x" * (n % 50), b'm f="a\nb"\nbad\n' if n % 40 == 0 else b"")
        for n in range(400)
    )
    whole = both(body)
    monkeypatch.setattr(body_module, "CHUNK_BYTES", size)
    pieces = both(body)
    assert typed(rows_of(pieces.encoded)) == typed(rows_of(whole.encoded))
    assert pieces.errors == whole.errors


def test_blocks_of_few_lines_are_right_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "MIN_LINES", 1)
    for line, row in VALID:
        body = line.encode()
        assert typed(rows_of(encode_by_column(body).encoded)) == typed([row])
    for line, reason in INVALID + UNCLOSED:
        assert [error.reason for error in encode_by_column(line.encode()).errors] == [reason]


class _Nobody:
    """A reader of leftover lines that gets none."""

    def read(self, pos: int, stop: int) -> int:
        raise AssertionError(f"the lines from {pos} to {stop} are left over")


def read_by_column(body: bytes) -> list[Row]:
    """Return the rows of a body of which no line is left to the line reader."""
    maps = Maps()
    end = read_piece(body, 0, len(body), _Nobody(), Effort(len(body), go_on), maps, "v1", None)
    assert end == len(body)
    return rows_of(maps.encoded())


def test_crlf_ends_lines_as_newlines_do_by_column() -> None:
    lines = [b'm,t=a%d f=%d,s="a b",b=t %d' % (n, n, n) for n in range(20)]
    lines += [b"#", b"# a comment", b"", *(b"n,t=a\\ %d i=%di" % (n, n) for n in range(20))]
    rows = read_by_column(b"\n".join(lines) + b"\n")
    assert len(rows) == 40
    for body in (
        b"\r\n".join(lines) + b"\r\n",
        b"\r\n".join(lines),
        b"\r\n".join(lines[:20]) + b"\n" + b"\n".join(lines[20:]),
    ):
        assert read_by_column(body) == rows


def test_a_string_keeps_its_carriage_returns() -> None:
    other = b'm s="c" 2\r\n' * 20
    for text in ("a\r\nb", "\r\n", "\r", "\r\r\n", "a\r\nm s=", "a\\\r\n"):
        lines = both(other + b'm s="%s" 1\r\n' % text.encode() + other)
        assert lines.errors == []
        assert [row.fields["s"] for row in rows_of(lines.encoded) if row.time == 1] == [text]


def test_names_that_differ_only_in_their_middle_are_told_apart() -> None:
    keys = [f"{'a' * 20}{middle}{'b' * 20}" for middle in "xyz"]
    body = "".join(f"m,t=1 {keys[n % 3]}={n}i 5\n" for n in range(300))
    rows = rows_of(both(body.encode()).encoded)
    for at, key in enumerate(keys):
        assert sorted(row.fields[key] for row in rows if key in row.fields) == list(range(at, 300, 3))


@pytest.mark.parametrize("times", [1, 2])
def test_lines_of_shapes_of_their_own_are_right_too(times: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(singles, "MIN_SINGLES", 1)
    for line, row in VALID:
        body = "\n".join([line] * times).encode()
        assert typed(rows_of(encode_by_column(body).encoded)) == typed([row] * times)
    for line, reason in INVALID + UNCLOSED:
        assert [error.reason for error in encode_by_column(line.encode()).errors] == [reason]


def test_many_lines_with_a_shape_each_are_read_without_the_line_reader() -> None:
    lines = [f'm{n},t{n}=a f{n % 7}={n}.5,i={n}i,u={n}u,s="x{n}",b=true {n}' for n in range(200)]
    lines += [f"cpu,host=a\\ b f{n}={n}" for n in range(200)]
    body = "\n".join(lines).encode()
    assert typed(read_by_column(body)) == typed(rows_of(encode_by_line(body).encoded))


@pytest.mark.parametrize(
    "bad", ["m g=1e999 5", "m g=0x1i", "m g=9223372036854775808i", "m,t=a g= 1", 'm g="a\nb" 5', "m g=1 1e3"]
)
def test_an_unusual_line_among_many_shapes_does_not_show(bad: str) -> None:
    lines = [f"m f{n}={n} {n}" for n in range(60)]
    both("\n".join([*lines[:30], bad, *lines[30:]]).encode())


def test_lines_within_a_string_are_no_lines_of_their_own() -> None:
    lines = "\n".join(f"m f{n}={n} {n}" for n in range(60))
    result = both(f'm s="\n{lines}\n" 1\n{lines}'.encode())
    assert len(rows_of(result.encoded)) == 61


@pytest.mark.slow
@settings(deadline=None, max_examples=100)
@given(bodies())
def test_both_paths_agree_on_lines_that_are_few(body: bytes) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(singles, "MIN_SINGLES", 1)
        both(body)


@pytest.mark.parametrize("count", [3, 7, 8, 50])
def test_few_lines_of_many_fields_are_read_by_column_too(count: int) -> None:
    fields = ",".join(f"f{n}={n}i" for n in range(15))
    for _ in range(2):  # the second time their shapes are known
        body = "".join(f'm{n % 5},t=a{n} {fields},s="x{n}" {n}\n' for n in range(5 * count))
        rows = read_by_column(body.encode())
        assert typed(rows) == typed(rows_of(encode_by_line(body.encode()).encoded))


KNOWN = 'm,t=a f=1.5,g=1i,s="x",b=t 5\n'


@pytest.mark.parametrize(
    "line",
    [
        'm,t=a f=1i,g=1i,s="x",b=t 5',
        "m,t=a f=1.5,g=1i,s=1,b=t 5",
        'm,t=a f=1.5,g=1i,s="x",b=T 5',
        'm,t=a f=1.5,g=1i,s="x",b=tr 5',
        'm,t=a f=1.5,g=1i,s="x",c=t 5',
        'm,t=a f=1.5,h=1i,s="x",b=t 5',
        'm,t=a f=1.5,g=0x1i,s="x",b=t 5',
        'm,t=a f=1.5,g=1i,s="x=y, z",b=t 5',
        'm,t= f=1.5,g=1i,s="x",b=t 5',
        'm,t="a f=1.5,g=1i,s=x",b=t 5',
        'm,t=a"" f=1.5,g=1i,s="x",b=t 5',
        'm,t=a f=1.5,g=1i,s="x",b=t 5i',
        'm,t=a f=1.5 g=1i,s="x",b=t,5',
        'm,t=a f=1.5,g=1i,s="x",b=t 99999999999999999999',
    ],
)
def test_lines_that_look_like_known_ones_are_told_apart(line: str) -> None:
    other = "n,a=b,c=d f=1 5\n" * 10  # so that not all lines have the same delimiters
    both((KNOWN * 10 + other).encode())
    for count in (1, 5, 20):
        both((KNOWN * 10 + (line + "\n") * count + other).encode())
        both(((line + "\n") * count + other).encode())


def test_many_lines_of_few_shapes_are_read_by_column(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Bodies of many lines of few shapes are read by column and others by line."""
    by_line, by_column = encode_by_line(b"m f=1"), encode_by_column(b"m f=1")
    monkeypatch.setattr(body_module, "encode_by_line", lambda *_, **__: by_line)
    monkeypatch.setattr(body_module, "encode_by_column", lambda *_, **__: by_column)
    line = b'cpu,host=a usage=1.5,text="' + b"x" * 200 + b'"\n'
    assert encode(line) is by_line
    assert encode(line * 23) is by_line
    assert encode(line * 24) is by_column
    others = b"".join(b"m%d" % n + line for n in range(30))
    assert encode(others) is by_line
    assert encode(others * 5) is by_column


# Any bytes, in linear time: each of these takes a second or so, and would take hours if it were quadratic.

MB = 1 << 20
LARGE = {
    "no newline": b"a" * 10 * MB,
    "NUL bytes": bytes(10 * MB),
    "invalid UTF-8": b"\xff" * 10 * MB,
    "newlines": b"\n" * 10 * MB,
    "spaces": b" " * 10 * MB,
    "commas": b"," * MB,
    "commas after a field": b"m f=1" + b"," * MB,
    "a million tags": b"m" + b",a=1" * MB + b" f=1",
    "a million fields": b"m f=1" + b",f=1" * MB,
    "digits": b"m f=" + b"1" * 10 * MB,
    "digits of an integer": b"m f=" + b"1" * 10 * MB + b"i",
    "zeros": b"m f=" + b"0" * 10 * MB + b"7i",
    "digits of a time": b"m f=1 " + b"1" * 10 * MB,
    "backslashes": b"\\" * 10 * MB,
    "escaped spaces": b"m,a=" + b"\\ " * 5 * MB + b" f=1",
    "escaped quotes": b'm f="' + b'\\"' * 5 * MB + b'"',
    "escaped quotes without an end": b'm f="' + b'\\"' * 5 * MB,
    "a comment": b"#" * 10 * MB,
    "strings that are not closed": b'm f="x\n' * (MB // 8),
    "strings that are not closed, and escapes": b'm f="\\"\n' * (MB // 8),
    "quotes in tags, and strings that are not closed": b'm,t=",x\\=" f="\n' * (MB // 8),
    "strings in bad lines": b'm ="\n' * (MB // 8),
    "bad lines": b"m\n" * (MB // 8),
    "as many shapes as lines": b"".join(b"m f%d=1\n" % n for n in range(MB // 128)),
    "as many shapes as lines, of one look": b"".join(b"m,t=x f%06d=1\n" % n for n in range(MB // 128)),
}


@pytest.mark.slow
@pytest.mark.timeout(60)
@pytest.mark.parametrize("escapes", ESCAPINGS)
@pytest.mark.parametrize("body", LARGE.values(), ids=LARGE.keys())
def test_large_odd_bodies_take_linear_time(body: bytes, escapes: Escapes) -> None:
    try:
        lines = encode(body, escapes=escapes)
    except (BadPayload, PayloadTooLarge):
        return  # too many bad lines or shapes, which the next tests are about
    assert len(lines.errors) <= MAX_ERRORS


@pytest.mark.slow
def test_a_body_may_have_only_so_many_shapes_for_its_size() -> None:
    few = b"".join(b"m f%d=1\n" % number for number in range(FREE_SHAPES))
    assert len(rows_of(encode(few).encoded)) == FREE_SHAPES
    most = FREE_SHAPES + 10 * len(few) // BYTES_PER_SHAPE
    with pytest.raises(PayloadTooLarge, match=f"more than {most} shapes"):
        encode(b"".join(b"m f%d=1\n" % number for number in range(2 * most))[: 10 * len(few)].ljust(10 * len(few)))


def test_a_body_may_have_only_so_many_bad_lines_for_its_size() -> None:
    assert encode(b"x\n" * FREE_BAD_LINES).more_errors == FREE_BAD_LINES - MAX_ERRORS
    size = 20 * FREE_BAD_LINES
    with pytest.raises(BadPayload, match=f"more than {FREE_BAD_LINES + size // BYTES_PER_BAD_LINE} bad lines"):
        encode(b"x\n" * (size // 2))


def test_whoever_encodes_is_asked_again_and_again_whether_to_go_on() -> None:
    class Enough(Exception):
        pass

    def stop(*_: float) -> None:
        raise Enough

    for body in (b"m f=1\n" * 100, b"m f=1\n" * 10_000, b"x\n" * 100, b"m g=1\n", b"m\\ n f=1\n" * 10_000):
        with pytest.raises(Enough):
            encode(body, stop)


def test_a_line_of_ten_megabytes_can_be_good() -> None:
    lines = encode(b'm f="' + b"x" * 10 * MB + b'"\nm f=1\n' + b"m,t=" + b"y" * 100_000 + b" f=1")
    rows = rows_of(lines.encoded)
    assert lines.errors == []
    assert [len(row.fields["f"]) for row in rows if isinstance(row.fields["f"], str)] == [10 * MB]
    assert [len(row.tags["t"]) for row in rows if row.tags] == [100_000]


@pytest.mark.slow
def test_a_line_may_have_only_so_many_tags_and_fields() -> None:
    most = "m " + ",".join(f"f{n}=1i" for n in range(65_535))
    assert len(rows_of(encode(most.encode()).encoded)) == 1
    (error,) = encode(most.encode() + b",g=1i").errors
    assert error.reason == "more than 65535 tags and fields"
