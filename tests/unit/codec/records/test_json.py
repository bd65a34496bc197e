"""NDJSON and JSON arrays: value for value against the json module, bad lines, and the bounds."""

from __future__ import annotations

import json
import sys
from collections import Counter
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arcpipe.codec.line_protocol.bad_lines import MAX_ERRORS
from arcpipe.codec.messagepack.times import TimeRule
from arcpipe.codec.records import json_array, json_lines
from arcpipe.codec.records.report import Records
from arcpipe.codec.records.roles import Roles, read_roles
from arcpipe.errors import BadPayload, PayloadTooLarge
from tests.unit.codec.records.model import Row, expected_row, rows_of

PLAIN = Roles("m")
ENCODERS = [json_lines.encode, json_array.encode]


def roles(time: str = "", measurement: str = "", tags: str = "", types: str = "") -> Roles:
    return read_roles("m", time, measurement, tags, types)


def columnar(records: Records) -> dict[str, Any]:
    assert records.encoded is not None
    assert not records.encoded.batch
    found: dict[str, Any] = msgspec.msgpack.decode(records.encoded.body)
    return found


def reasons(records: Records) -> dict[int, str]:
    return {error.line: error.reason for error in records.errors}


def fingerprint(rows: list[tuple[str, Row]]) -> Counter[str]:
    """Rows in any order, integers told from floats."""
    return Counter(repr((measurement, sorted(row.items()))) for measurement, row in rows)


# Values

NAMES = st.sampled_from(["a", "b", "c", "\u00e9", "time", "x y"])
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(1 << 70), 1 << 70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=10)
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab$", max_size=3), inner, max_size=3),
    max_leaves=6,
)
RECORDS = st.dictionaries(NAMES.filter(lambda name: name != "time"), VALUES, min_size=1, max_size=4)


@given(st.lists(RECORDS, max_size=40), st.sampled_from(["\n", "\r\n"]), st.booleans(), st.booleans())
@settings(max_examples=150, deadline=None)
def test_every_value_is_kept_as_json_has_it(records: list[Row], end: str, ascii_only: bool, blank: bool) -> None:
    lines = [json.dumps(record, ensure_ascii=ascii_only) for record in records]
    body = (end * (1 + blank)).join(lines).encode()
    wanted = fingerprint([("m", expected_row(record)) for record in records])
    found = json_lines.encode(body, roles=PLAIN)
    assert not found.errors
    assert fingerprint(rows_of(found)) == wanted
    array = json_array.encode(f"[{','.join(lines)}]".encode(), roles=PLAIN)
    assert not array.errors
    assert fingerprint(rows_of(array)) == wanted


def test_a_large_body_is_read_in_pieces_and_nothing_is_lost() -> None:
    records = [{"n": number, "s": 'a,"]}[{\\' * (number % 7), "f": number / 3} for number in range(20_000)]
    lines = [json.dumps(record) for record in records]
    for found in (
        json_lines.encode("\n".join(lines).encode(), roles=PLAIN),
        json_array.encode(f" [ {' , '.join(lines)} ] ".encode(), roles=PLAIN),
    ):
        assert not found.errors
        assert [row for _, row in rows_of(found)] == records


@pytest.mark.parametrize("encode", ENCODERS)
def test_integers_keep_all_of_their_digits(encode: Any) -> None:
    values = [2**53 + 1, -(2**63), 2**63 - 1, 2**64 - 1, 2**64, -(2**63) - 1, 10**40]
    found = encode(json.dumps({f"v{at}": value for at, value in enumerate(values)}).encode(), roles=PLAIN)
    kept = [column[0] for column in columnar(found)["columns"].values()]
    assert kept == [*values[:4], *map(str, values[4:])]


def test_of_a_member_that_is_there_twice_the_last_one_counts() -> None:
    assert rows_of(json_lines.encode(b'{"a":1,"a":2}', roles=PLAIN)) == [("m", {"a": 2})]


def test_integers_of_a_column_have_nine_bytes_each() -> None:
    """The uploader steps through values of one width."""
    body = "\n".join(json.dumps({"n": 10**at}) for at in range(18)).encode()
    for lines in (body, body + b"\n" + body):
        encoded = json_lines.encode(lines, roles=PLAIN).encoded
        assert encoded is not None
        assert bytes(encoded.body).count(b"\xd3") >= encoded.records


# Roles


def test_fields_have_the_roles_that_a_request_names() -> None:
    body = b'{"ts": 1700000000000, "kind": "cpu", "host": "a", "time": 5, "usage": 1, "m": "x"}'
    found = columnar(json_lines.encode(body, roles=roles("ts", "kind", "host,dc", "usage:f64,other:str")))
    assert found == {
        "m": "cpu",
        "columns": {"time": [1_700_000_000_000], "host": ["a"], "time_field": [5], "usage": [1], "m": ["x"]},
        "tags": ["host"],
        "types": {"usage": "f64"},
    }


def test_records_may_name_their_measurements() -> None:
    body = b'{"k":"a","v":1}\n{"v":2}\n{"k":null,"v":3}\n{"k":7,"v":4}\n{"k":"","v":5}\n{"k":"a","v":6}'
    found = json_lines.encode(body, roles=roles(measurement="k"))
    assert fingerprint(rows_of(found)) == fingerprint(
        [("a", {"v": 1}), ("m", {"v": 2}), ("m", {"v": 3}), ("a", {"v": 6})]
    )
    assert reasons(found) == {4: "field 'k' names no measurement", 5: "measurement is empty"}


@pytest.mark.parametrize(
    ("named", "reason"),
    [
        ({"tags": "a,,b"}, "empty name"),
        ({"time": "t", "tags": "t"}, "both a tag and the time"),
        ({"measurement": "t", "tags": "t"}, "both a tag and the measurement"),
        ({"measurement": "t", "time": "t"}, "both the time and the measurement"),
        ({"time": "t", "tags": "time"}, "cannot be called 'time'"),
        ({"types": "a"}, "types: 'a' is not a field"),
        ({"types": "a:int"}, "one of i64, u64, f64, bool, str"),
        ({"tags": "x" * 300}, "has 300 bytes"),
        ({"tags": ",".join(map(str, range(2000)))}, "more than 1024 names"),
    ],
)
def test_roles_that_contradict_one_another_are_refused(named: dict[str, str], reason: str) -> None:
    with pytest.raises(BadPayload, match=reason):
        roles(**named)


# Times


def test_times_are_those_of_messagepack() -> None:
    body = b'{"time":1700000000,"v":1}\n'
    body += b'{"time":"2026-01-01T00:00:00.5Z","v":2}\n{"time":1700000000.25,"v":3}\n{"time":null,"v":4}'
    found = columnar(json_lines.encode(body, roles=PLAIN))["columns"]["time"]
    assert found[0] == 1_700_000_000
    assert found[1].isoformat() == "2026-01-01T00:00:00.500000+00:00"
    assert found[2:] == [1_700_000_000.25, None]


@pytest.mark.parametrize("time", ["true", '"soon"', "[]", "1e300", '{"a":1}', "1e17", "123456789012345678901234567890"])
def test_a_record_without_a_usable_time_is_bad_and_alone(time: str) -> None:
    body = f'{{"time":1,"v":1}}\n{{"time":{time},"v":2}}\n{{"time":3,"v":3}}'.encode()
    found = json_lines.encode(body, roles=PLAIN, rule=TimeRule("s"))
    assert [row["v"] for _, row in rows_of(found)] == [1, 3]
    assert reasons(found)[2].startswith("the time is not valid")


# Bad records


def test_bad_lines_have_their_numbers_and_reasons() -> None:
    lines = [
        b'{"v": 1}',
        b"",
        b"no json",
        b"[1]",
        b'{"v": 1e999}',
        b'{"v": "\xff"}',
        b'{"v": ' + b"[" * 200_000 + b"]" * 200_000 + b"}",  # Python 3.11 goes 1000 levels deep, 3.13 goes 10,000
        b"{}",
        b'{"time": 5}',
        b'{"": 5}',
        b'{"a\\u0000": 5}',
        b'{"v": 2} {"v": 3}',
        b'{"v": NaN}',
        b'{"v": 4}',
    ]
    found = json_lines.encode(b"\n".join(lines), roles=PLAIN)
    assert [row for _, row in rows_of(found)] == [{"v": 1}, {"v": 4}]
    assert reasons(found) == {
        3: "not a JSON object: invalid character (byte 4)",
        4: "not a JSON object: expected `object`, got `array`",
        5: "not a JSON object: number out of range",
        6: "not a JSON object: not valid UTF-8",
        7: "not a JSON object: nested too deep",
        8: "no fields",
        9: "no field besides time and measurement",
        10: "field name is empty",
        11: "field name 'a\\x00' has a control character",
        12: "not a JSON object: trailing characters (byte 10)",
        13: "not a JSON object: invalid character (byte 6)",
    }
    assert found.errors[0].text == "no json"


def test_bad_elements_of_an_array_have_their_places() -> None:
    found = json_array.encode(b'[{"v":1}, {"v":}, 5, {"v":"a,b]"}, {}]', roles=PLAIN)
    assert [row for _, row in rows_of(found)] == [{"v": 1}, {"v": "a,b]"}]
    assert sorted(reasons(found)) == [2, 3, 5]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b'[{"v":1}', "does not end"),
        (b'[{"v":1}, {"v":"]', "does not end"),
        (b'[{"v":1}] x', "something follows it"),
        (b"5", "neither a JSON array nor an object"),
        (b"\xff", "neither a JSON array nor an object"),
    ],
)
def test_a_body_whose_end_is_unclear_is_refused_as_a_whole(body: bytes, reason: str) -> None:
    with pytest.raises(BadPayload, match=reason):
        json_array.encode(body, roles=PLAIN)


@pytest.mark.parametrize("body", [b"", b" \n", b"[]", b" [ ] "])
def test_a_body_without_records_has_none(body: bytes) -> None:
    assert json_array.encode(body, roles=PLAIN) == Records(None, [], 0)


def test_one_object_over_several_lines_is_a_record_and_so_are_lines_of_objects() -> None:
    for body, count in ((b'{\n "v": 1\n}', 1), (b'{"v": 1}\n{"v": 1}', 2), (b'\xef\xbb\xbf{"v": 1}', 1)):
        assert rows_of(json_array.encode(body, roles=PLAIN)) == [("m", {"v": 1})] * count


def test_further_bad_lines_are_counted_up_to_a_bound() -> None:
    found = json_lines.encode(b"x\n" * 500 + b'{"v":1}', roles=PLAIN)
    assert (len(found.errors), found.more_errors) == (MAX_ERRORS, 500 - MAX_ERRORS)
    with pytest.raises(BadPayload, match="more than 4408 bad lines"):
        json_lines.encode(b"x\n" * 5_000, roles=PLAIN)


def test_a_record_above_its_bound_is_bad_and_alone() -> None:
    large = b'{"v":"%b"}' % (b"x" * json_lines.MAX_RECORD_BYTES)
    lines = json_lines.encode(b'{"v":1}\n' + large + b'\n{"v":2}', roles=PLAIN)
    array = json_array.encode(b'[{"v":1},' + large + b',{"v":2}]', roles=PLAIN)
    for found in (lines, array):
        assert [row["v"] for _, row in rows_of(found)] == [1, 2]
        assert reasons(found) == {2: "more than 1048576 bytes"}


def test_too_many_shapes_are_refused() -> None:
    body = b"\n".join(b'{"f%d":1}' % number for number in range(10_000))
    with pytest.raises(PayloadTooLarge, match="shapes"):
        json_lines.encode(body, roles=PLAIN)


def test_check_is_called_while_a_large_body_is_read() -> None:
    calls = 0

    def check() -> None:
        nonlocal calls
        calls += 1

    body = b'{"v":1,"s":"xxxxxxxxxxxxxxxxxxxxxxxxxx"}\n' * 100_000
    json_lines.encode(body, check, roles=PLAIN)
    assert calls > len(body) // json_lines.CHUNK_BYTES
    calls = 0
    json_array.encode(b"[%b]" % body[:-1].replace(b"\n", b","), check, roles=PLAIN)
    assert calls > len(body) // json_lines.CHUNK_BYTES


BLANKS = b" \t\r\n" * 1_000_000


@pytest.mark.parametrize(
    ("body", "rows"),
    [
        (BLANKS, 0),
        (b"[" + BLANKS + b"]", 0),
        (BLANKS + b"[]" + BLANKS, 0),
        (b'[{"v":1}' + BLANKS + b',{"v":1}]' + BLANKS, 2),
        (BLANKS + b"[" + BLANKS + b'{"v":1}' + BLANKS + b',{"v":1}' + BLANKS + b"]", 2),
    ],
    ids=["nothing", "in an array", "around", "behind", "everywhere"],
)
def test_check_is_called_while_blanks_are_skipped(body: bytes, rows: int) -> None:
    """100 MB of them, 10 kB when compressed, kept the encoding thread for 11 s, and the interpreter for 0.26 s."""
    looks: list[None] = []
    found = json_array.encode(body, lambda *_: looks.append(None), roles=PLAIN)
    assert rows_of(found) == [("m", {"v": 1})] * rows
    assert found.errors == []
    assert len(looks) >= len(body) // (64 << 10)


def test_a_long_element_is_bad_whatever_is_around_it() -> None:
    long = b'{"v":"' + b"x" * 1_100_000 + b'"}'
    spaced = b'{"v":1' + b" " * 1_100_000 + b"}"  # its blanks are within it
    for one in (long, spaced, BLANKS + long + BLANKS):
        found = json_array.encode(b'[{"v":1},' + one + b',{"v":1}]', roles=PLAIN)
        assert rows_of(found) == [("m", {"v": 1})] * 2
        assert [(error.line, error.reason) for error in found.errors] == [(2, "more than 1048576 bytes")]


def test_blank_lines_are_counted() -> None:
    blank = 600_000
    found = json_lines.encode(b"\n" * blank + b"no JSON\n" + b" \r\n" * blank + b"nor this\n", roles=PLAIN)
    assert sorted(reasons(found)) == [blank + 1, 2 * blank + 2]


@pytest.mark.parametrize("encode", ENCODERS)
def test_a_record_at_the_border_of_what_is_too_deep_is_taken_or_bad(encode: Any) -> None:
    """Some calls need a level more than others: one of them failed for a record that is refused anyway."""
    for depth in range(sys.getrecursionlimit() - 150, sys.getrecursionlimit() + 1):
        record = b'{"v":%b%d%b}' % (b"[" * depth, 1 << 64, b"]" * depth)
        found = encode(b"[%b]" % record if encode is json_array.encode else record, roles=PLAIN)
        if found.encoded is None:
            assert reasons(found)[1] in ("a value is nested too deep", "not a JSON object: nested too deep")
