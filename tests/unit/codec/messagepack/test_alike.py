"""Rows that are alike go in, columns come out: held against the walk over each row."""

from __future__ import annotations

import random
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arcpipe.codec.effort import Effort, go_on
from arcpipe.codec.messagepack.alike import FEWEST_ROWS, AlikeRows, read_alike
from arcpipe.codec.messagepack.body import encode
from arcpipe.codec.messagepack.read import read_length
from arcpipe.codec.messagepack.rows import read_row
from arcpipe.codec.messagepack.walk import Walker
from arcpipe.errors import BadPayload


def alike(body: bytes) -> AlikeRows | None:
    return read_alike(body, Effort(len(body), go_on), fewest=1, unlike={})


def by_row(found: AlikeRows) -> list[dict[str, Any]]:
    """The rows of columns, each with its values as they are in MessagePack."""
    columns = {("tags", name): column for name, column in found.tags}
    columns.update({("fields", name): column for name, column in found.fields})
    columns.update({("t", ""): found.times} if found.times is not None else {})
    columns.update({("h", ""): found.hosts} if found.hosts is not None else {})
    rows: list[dict[str, Any]] = [{} for _ in range(found.rows)]
    for name, column in columns.items():
        walker, at = Walker(column), 0
        for row in rows:
            end = walker.end_of(at)
            row[str(name)] = column[at:end]
            at = end
        assert at == len(column)
    return rows


def by_walk(body: bytes) -> list[dict[str, Any]]:
    """The same by `read_row`. Raises BadPayload if the body is not good."""
    count, at = read_length(body, 0)
    walker = Walker(body)
    rows = []
    for _ in range(count):
        try:
            row, at = read_row(body, at, walker)
        except IndexError:
            raise BadPayload("cut off") from None
        rows.append(
            {
                **{str(("tags", name)): bytes(value) for name, value in row.tags.items()},
                **{str(("fields", name)): bytes(value) for name, value in row.fields.items()},
                **({} if bytes(row.t) == b"\xc0" else {str(("t", "")): bytes(row.t)}),
            }
        )
    if at != len(body):
        raise BadPayload("trailing bytes")
    return rows


def body_of(rows: int, seed: int = 1, **changes: Any) -> bytes:
    """Rows of one shape, with values of many widths."""
    source = random.Random(seed)
    return bytes(
        msgpack.packb(
            [
                {
                    "m": "cpu",
                    "t": 1_700_000_000_000_000 + number,
                    "tags": {"host": f"h-{source.randrange(1000)}", "text": "x" * source.choice([0, 5, 31, 32, 255])},
                    "fields": {
                        "a": source.random(),
                        "b": source.choice([0, 1, -1, 127, 128, 1 << 20, -(1 << 40)]),
                        "c": source.choice([None, True, False]),
                        "d": source.random(),
                        "e": source.choice(["", "ü", "\x04\xa1m", "m"]),
                    },
                    **changes,
                }
                for number in range(rows)
            ]
        )
    )


@pytest.mark.parametrize("rows", [1, 2, 24, 300])
def test_rows_that_are_alike_are_read_by_column(rows: int) -> None:
    body = body_of(rows)
    found = alike(body)
    assert found is not None
    assert (found.measurement, found.rows) == ("cpu", rows)
    assert by_row(found) == by_walk(body)


@pytest.mark.parametrize(
    "order", ["m t tags fields", "fields m", "tags fields t m", "t m fields", "m fields", "m tags t fields"]
)
def test_the_keys_of_a_row_may_have_any_order(order: str) -> None:
    values = {"m": "cpu", "t": 1_700_000_000, "tags": {"a": "x", "b": "y" * 40}, "fields": {"f": 1.5, "g": 1}}
    body = msgpack.packb([{key: values[key] for key in order.split()} for _ in range(40)])
    found = alike(body)
    assert found is not None
    assert by_row(found) == by_walk(body)


def test_a_host_and_a_missing_time_are_columns_too() -> None:
    body = msgpack.packb([{"m": "cpu", "h": f"h{n}", "t": None, "fields": {"f": n}} for n in range(200)])
    found = alike(body)
    assert found is not None
    assert (found.times, found.tags) == (b"\xc0" * 200, [])
    assert msgpack.unpackb(b"\xdc\x00\xc8" + (found.hosts or b"")) == [f"h{n}" for n in range(200)]


def test_values_that_look_like_the_start_of_a_row_are_told_apart() -> None:
    body = msgpack.packb([{"m": "cpu", "fields": {"f": 0.5, "g": b"\x82\xa1m"}} for n in range(50)])
    body = body.replace(b"\xc4\x03\x82\xa1m", b"\xa3\x82\xa1m")
    found = alike(body)
    assert found is not None
    assert by_row(found) == by_walk(body)


UNLIKE: dict[str, list[dict[str, Any]]] = {
    "another measurement": [{"m": "mem", "fields": {"f": 1}}],
    "another name": [{"m": "cpu", "fields": {"g": 1}}],
    "one more": [{"m": "cpu", "fields": {"f": 1, "g": 1}}],
    "no time": [{"m": "cpu", "t": 5, "fields": {"f": 1}}],
    "a list": [{"m": "cpu", "fields": {"f": [1]}}],
    "a long text": [{"m": "cpu", "fields": {"f": "x" * 300}}],
}


@pytest.mark.parametrize("others", UNLIKE.values(), ids=UNLIKE.keys())
@pytest.mark.parametrize("at", [0, 1, 30, 60])
def test_rows_that_are_not_alike_are_left(others: list[dict[str, Any]], at: int) -> None:
    rows = [{"m": "cpu", "fields": {"f": 1}} for _ in range(60)]
    body = msgpack.packb([*rows[:at], *others, *rows[at:]])
    assert alike(body) is None
    assert encode(msgpack.packb([*rows * 3, *others])).records == 181


@pytest.mark.slow
@settings(deadline=None, max_examples=60)
@given(st.integers(1, 12), st.integers(0, 20), st.data())
def test_damaged_rows_are_read_as_the_walk_reads_them(rows: int, seed: int, data: st.DataObject) -> None:
    """What is damaged is left, or it is still good and means the same."""
    body = bytearray(body_of(rows, seed))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(body) - 1))
        change = data.draw(st.sampled_from(["set", "drop", "add"]))
        byte = data.draw(st.sampled_from([0, 1, 0x80, 0x84, 0xA0, 0xA1, 0xC0, 0xC1, 0xCB, 0xCF, 0xD9, 0xFF, ord("m")]))
        if change == "set":
            body[at] = byte
        elif change == "drop":
            del body[at]
        else:
            body.insert(at, byte)
    found = alike(bytes(body))
    if found is None:
        return
    names = [name for name, _ in (*found.tags, *found.fields)]
    try:
        expected = by_walk(bytes(body))
    except BadPayload:  # names and times are checked later
        with pytest.raises(BadPayload):
            encode(bytes(body))
        return
    assert len(set(names)) == len(names)
    assert by_row(found) == expected


def test_many_rows_give_what_few_at_a_time_give() -> None:
    """A body of rows that are read by column is the columnar map of the same rows, read one by one."""
    rows = FEWEST_ROWS + 50
    whole = encode(body_of(rows))
    assert (whole.batch, whole.records) == (False, rows)
    source = msgpack.unpackb(body_of(rows), strict_map_key=False)
    exact = encode(msgpack.packb([*source, {"m": "other", "fields": {"f": 1}}]))
    first, _ = msgpack.unpackb(exact.body)
    assert msgpack.unpackb(whole.body) == first
    assert list(msgpack.unpackb(whole.body)["columns"]) == list(first["columns"])


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"t": True}, "row 0: 't' is neither a number, a timestamp nor a text but a boolean"),
        ({"m": ""}, "element 0: measurement is empty"),
        ({"tags": {"time": "x"}}, "row 0: a tag cannot be called 'time', the name of the timestamp column"),
        ({"tags": {"a\n": "x"}}, "row 0: tag name 'a\\n' has a control character"),
        ({"h": 1.5}, "row 0: 'h' is neither a string nor an integer but a float"),
    ],
)
def test_what_is_wrong_in_all_rows_is_said_of_the_first(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(BadPayload) as caught:
        encode(body_of(FEWEST_ROWS + 1, **changes))
    assert str(caught.value) == reason


def test_a_key_that_is_there_twice_in_all_rows_is_refused() -> None:
    row = b"\x82\xa1m\xa1c\xa6fields\x82\xa1f\x01\xa1f\x02"
    with pytest.raises(BadPayload, match="row 0: field 'f' is there twice"):
        encode(b"\xdc\x01\x00" + row * 256)


def test_a_long_first_row_before_many_that_begin_like_it_is_left() -> None:
    """Memory is that of the body, however many places look like the start of a row."""
    row = msgpack.packb({"m": "c", "fields": {f"f{n}": n for n in range(300)}})
    body = b"\xdc\xff\xff" + row + row[:3] * 30_000
    assert alike(body) is None


def test_rows_that_were_not_alike_are_not_tried_again_for_a_while() -> None:
    rows = [{"m": "cpu", "fields": {"f": n}} for n in range(60)]
    good, bad = msgpack.packb(rows), msgpack.packb([*rows, {"m": "cpu", "fields": {"g": 1}}])
    unlike: dict[bytes, int] = {}
    effort = Effort(len(good), go_on)
    assert read_alike(bad, effort, 1, unlike) is None
    waits = sum(unlike.values())
    assert [read_alike(good, effort, 1, unlike) is None for _ in range(waits + 1)] == [True] * waits + [False]
    for number in range(1000):
        rows = [{"m": f"m{number}", "fields": {"f": 1.5}}, {"m": f"m{number}", "fields": {"f": 1}}]
        assert read_alike(msgpack.packb(rows), effort, 1, unlike) is None
        assert len(unlike) <= 64
