"""With the native kernel, rows in MessagePack become the same columns, and are refused with the same words."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arcpipe.codec.columns import array_header
from arcpipe.codec.effort import FREE_SHAPES, Effort, go_on
from arcpipe.codec.messagepack import rows_by_kernel
from arcpipe.codec.messagepack.body import encode
from arcpipe.codec.messagepack.rows_by_kernel import Gathered, gather_piece
from arcpipe.errors import PayloadTooLarge
from tests.support.kernel import kernel_of_checkout
from tests.unit.codec.messagepack.test_alike import UNLIKE
from tests.unit.codec.messagepack.test_body import damage, pack, row_maps
from tests.unit.codec.messagepack.test_by_kernel import ODD, RULES, VALUES, same_with_both

PIECE = 128 * 1024  # bytes after which no further row is begun in one call
Row = dict[str, Any]
Shape = tuple[bytes, int, int, int, int]


def gather() -> Callable[..., tuple[int, int, tuple[Shape, ...]] | None]:
    found: Callable[..., tuple[int, int, tuple[Shape, ...]] | None] = kernel_of_checkout().gather_rows
    return found


def gathered(rows: Sequence[Row | bytes]) -> tuple[int, int, tuple[Shape, ...]] | None:
    """The rows of a piece, by the kernel."""
    return gather()(b"".join(map(packed, rows)), 0, len(rows))


def packed(row: Row | bytes) -> bytes:
    return row if isinstance(row, bytes) else bytes(msgpack.packb(row))


def body_of(rows: Sequence[Row | bytes]) -> bytes:
    return array_header(len(rows)) + b"".join(map(packed, rows))


def piece(body: bytes, count: int, effort: Effort | None = None) -> Gathered | None:
    """What the encoder gets of the kernel, for a body of so many rows."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rows_by_kernel, "_GATHER", gather())
        header = len(array_header(count))
        return gather_piece(body, header, count, RULES[0], effort or Effort(len(body), go_on))


def some_row(choose: random.Random, shape: int) -> bytes:
    """A row of one of some shapes, with values of all kinds."""
    names = random.Random(shape)
    pairs = [b"\xa1m" + packed_text(names.choice(["cpu", "a measurement of more than 31 bytes"]))]
    if names.random() < 0.8:
        pairs.append(b"\xa1t" + choose.choice([b"\xcf\x00\x05" + bytes(6), b"\x07", b"\xcb\x41" + bytes(7)]))
    if names.random() < 0.3:
        pairs.append(b"\xa1h" + packed_text(choose.choice(["", "web", "x" * 40])))
    for key, most in ((b"\xa4tags", 3), (b"\xa6fields", 20)):
        if key == b"\xa6fields" or names.random() < 0.7:
            count = names.randrange(1, most)
            values = [choose.choice(VALUES) for _ in range(count)]
            named = (packed_text(f"{'n' * names.choice([1, 8, 40])}{number}") for number in range(count))
            pairs.append(
                key + map_header(count) + b"".join(name + value for name, value in zip(named, values, strict=True))
            )
    names.shuffle(pairs)
    return map_header(len(pairs)) + b"".join(pairs)


def packed_text(text: str) -> bytes:
    return bytes(msgpack.packb(text))


def map_header(count: int) -> bytes:
    return bytes(msgpack.Packer().pack_map_header(count))


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(st.lists(row_maps(), min_size=1, max_size=12), st.booleans(), st.sampled_from(RULES), st.data())
def test_rows_good_or_damaged_have_one_outcome(rows: Any, wide: bool, rule: Any, data: st.DataObject) -> None:
    body = bytearray(pack(rows * data.draw(st.integers(1, 3)), wide))
    assert same_with_both(bytes(body))
    same_with_both(bytes(body), rule)
    same_with_both(pack(rows[0], wide), rule)
    for _ in range(data.draw(st.integers(1, 3))):
        damage(body, data)
        same_with_both(bytes(body), rule)


@pytest.mark.parametrize("seed", range(4))
def test_rows_of_all_kinds_of_values_and_shapes(seed: int) -> None:
    choose = random.Random(seed)
    taken = 0
    for number in range(60):
        shapes = choose.sample(range(1000), choose.choice([1, 2, 5]))
        cycle = choose.random() < 0.5
        count = choose.choice([1, 2, 15, 16, 17, 200])
        rows = [some_row(choose, shapes[row % len(shapes)] if cycle else choose.choice(shapes)) for row in range(count)]
        body = body_of(rows)
        taken += piece(body, count) is not None
        assert same_with_both(body)
        same_with_both(body, RULES[number % len(RULES)])
        same_with_both(body[: choose.randrange(1, len(body))])
        rows[choose.randrange(count)] += choose.choice([b"\x00", b"\x80", b"\xc1"])
        same_with_both(body_of(rows))
        odd = body.replace(choose.choice(VALUES), choose.choice(ODD), 1)
        same_with_both(odd)
    assert taken > 20


def test_what_is_gathered() -> None:
    row: Row = {"fields": {"f": 1.5, "g": None}, "m": "cpu", "t": 5, "h": "web", "tags": {"a": "x", "b": "y" * 40}}
    found = gathered([row, {"m": "mem", "t": None, "fields": {"used": 7}}, row])
    assert found is not None
    rows, end, (cpu, mem) = found
    assert (rows, end) == (3, 2 * len(packed(row)) + len(packed({"m": "mem", "t": None, "fields": {"used": 7}})))
    columns = {
        "time": [5, 5],
        "host": ["web", "web"],
        "a": ["x", "x"],
        "b": ["y" * 40] * 2,
        "f": [1.5, 1.5],
        "g": [None, None],
    }
    expected = msgpack.packb({"m": "cpu", "columns": columns, "tags": ["host", "a", "b"]})
    times = expected.index(b"\x05\x05")
    assert cpu == (expected, 2, times, times + 2, 1)
    assert mem == (msgpack.packb({"m": "mem", "columns": {"used": [7]}}), 1, 0, 0, 0)


@pytest.mark.parametrize("rows", [1, 15, 16, 2000])
@pytest.mark.parametrize("names", [1, 14, 15, 16, 100])
def test_headers_of_all_sizes(rows: int, names: int) -> None:
    body = body_of(
        [
            {
                "m": "n" * (names + 20),
                "t": 1 << 40,
                "tags": {"t" * 30 + f"{number:04}": number for number in range(names)},
                "fields": {"f" * number: number for number in range(1, names + 1)},
            }
            for _ in range(rows)
        ]
    )
    assert piece(body, rows) is not None
    assert same_with_both(body)


@pytest.mark.parametrize("others", UNLIKE.values(), ids=UNLIKE.keys())
@pytest.mark.parametrize("at", [0, 1, 30, 60])
def test_rows_that_are_not_alike(others: list[Row], at: int) -> None:
    rows = [{"m": "cpu", "fields": {"f": 1}} for _ in range(60)]
    assert same_with_both(body_of([*rows[:at], *others, *rows[at:]]))


LEFT: dict[str, Sequence[Row | bytes]] = {
    "no map": [b"\x93\x01\x02\x03"],
    "another key": [{"m": "cpu", "fields": {"f": 1}, "x": 1}],
    "numbered fields": [{"m": "cpu", "f": [1]}],
    "no measurement": [{"fields": {"f": 1}}],
    "an empty measurement": [{"m": "", "fields": {"f": 1}}],
    "a number for a measurement": [{"m": 1, "fields": {"f": 1}}],
    "no fields": [{"m": "cpu", "tags": {"a": "b"}}],
    "empty fields": [{"m": "cpu", "fields": {}}],
    "fields that are no map": [{"m": "cpu", "fields": [1]}],
    "tags that are nil": [{"m": "cpu", "fields": {"f": 1}, "tags": None}],
    "an empty name": [{"m": "cpu", "fields": {"": 1}}],
    "a name that is no ASCII": [{"m": "cpu", "fields": {"ü": 1}}],
    "a name with a control character": [{"m": "cpu", "fields": {"a\n": 1}}],
    "a name of 256 bytes": [{"m": "cpu", "fields": {"n" * 256: 1}}],
    "a nested value": [{"m": "cpu", "fields": {"f": [1]}}],
    "a nested time": [{"m": "cpu", "t": {}, "fields": {"f": 1}}],
    "a key that is there twice": [b"\x83\xa1m\xa3cpu\xa1m\xa3cpu\xa6fields\x81\xa1f\x01"],
    "a long header of a short name": [b"\x82\xa1m\xd9\x03cpu\xa6fields\x81\xa1f\x01"],
    "a long header of a small map": [b"\x82\xa1m\xa3cpu\xa6fields\xde\x00\x01\xa1f\x01"],
    "a value that is cut off": [b"\x82\xa1m\xa3cpu\xa6fields\x81\xa1f\xcb\x00"],
    "nothing after the header": [b"\x82"],
}


@pytest.mark.parametrize("rows", LEFT.values(), ids=LEFT.keys())
def test_a_row_that_is_not_plain_leaves_all_to_python(rows: Sequence[Row | bytes]) -> None:
    usual = {"m": "cpu", "fields": {"f": 1}}
    for each in (rows, [packed(usual), *map(packed, rows)], [*map(packed, rows), packed(usual)]):
        assert gathered(each) is None
        same_with_both(body_of(each))


@pytest.mark.parametrize(
    "rows",
    [
        [{"m": "a", "fields": {"x": 1, "y": 2}}, {"m": "a", "fields": {"y": 3, "x": 4}}],
        [{"m": "a", "fields": {"x": 1}}, {"fields": {"x": 1}, "m": "a"}],
        [{"m": "a", "t": 5, "fields": {"x": 1}}, {"m": "a", "fields": {"x": 1}}],
        [{"m": "a", "tags": {}, "fields": {"x": 1}}, {"m": "a", "fields": {"x": 1}}],
        [{"m": "a", "tags": {"x": "1"}, "fields": {"x": 1}}, {"m": "a", "h": "1", "fields": {"x": 1}}],
        [{"m": "a", "h": None, "fields": {"x": 1}}],
        [{"m": "a", "h": "b", "tags": {"host": "b"}, "fields": {"x": 1}}],
        [{"m": "a", "t": "no time", "fields": {"x": 1}}],
        [{"m": "a", "fields": {"time": 1}}],
        [{"m": "a", "tags": {"x": "1"}, "fields": {"x": 1, "x_field": 2}}],
    ],
)
def test_names_in_another_order_and_other_rare_rows(rows: list[Row]) -> None:
    body = body_of(rows * 3)
    assert piece(body, 3 * len(rows)) is None
    same_with_both(body)


def test_a_name_that_is_there_twice_is_refused_as_by_python() -> None:
    row = b"\x82\xa1m\xa3cpu\xa6fields\x82\xa1f\x01\xa1f\x02"
    assert gathered([row]) is None
    assert not same_with_both(body_of([row]))
    assert not same_with_both(row)


@pytest.mark.parametrize("host", [b"\xa0", b"\xa2\xc3\xa9", b"\xd9\x01a", b"\xda\x00\x01a", b"\xdb\0\0\0\x01a"])
def test_a_host_is_a_text(host: bytes) -> None:
    row = b"\x83\xa1m\xa3cpu\xa6fields\x81\xa1f\x01\xa1h"
    assert gathered([row + host] * 2) is not None
    assert same_with_both(body_of([row + host] * 2))
    for bad in (b"\xa1\xff", b"\xc4\x01a", b"\x05", b"\xc0", b"\xa3\xed\xa0\x80"):
        for rows in ([row + bad], [row + host, row + bad], [row + bad, row + host]):
            assert gathered(rows) is None
            same_with_both(body_of(rows))


def test_a_tag_and_a_field_of_one_name() -> None:
    assert same_with_both(body_of([{"m": "cpu", "tags": {"a": "x"}, "fields": {"a": 1, "a_field": 2}}]))


@pytest.mark.parametrize("values", [255, 256, 257, 300])
def test_as_many_values_as_are_taken_at_once(values: int) -> None:
    rows = [{"m": "cpu", "fields": {f"f{number}": number for number in range(values)}}] * 3
    assert (gathered(rows) is None) == (values > 256)
    assert same_with_both(body_of(rows))


@pytest.mark.parametrize("shapes", [255, 1000, 4096, 4097])
def test_as_many_shapes_as_are_taken_at_once(shapes: int) -> None:
    rows = [{"m": f"m{number % shapes}", "fields": {"f": number}} for number in range(5000)]
    assert (gathered(rows) is None) == (shapes > 4096)
    assert same_with_both(body_of(rows))


def test_a_piece_ends_after_128_kb() -> None:
    row = packed({"m": "cpu", "fields": {"f": "x" * 1000}})
    rows = [row] * 400
    found = gathered(rows)
    assert found is not None
    assert found[:2] == (PIECE // len(row) + 1, (PIECE // len(row) + 1) * len(row))
    assert same_with_both(body_of(rows))
    assert same_with_both(body_of([*rows, packed({"m": "cpu", "fields": {"f": [1]}})]))
    assert not same_with_both(body_of([*rows, b"\x80"]))
    assert not same_with_both(body_of(rows)[:-1])


def test_a_long_row_is_left() -> None:
    for size in (PIECE, 2 * PIECE - 100, 2 * PIECE, 4 * PIECE):
        rows = [{"m": "cpu", "fields": {"f": "x" * size}}, {"m": "cpu", "fields": {"f": 1}}]
        assert (gathered(rows) is None) == (size >= 2 * PIECE)
        assert same_with_both(body_of(rows))


def test_shapes_are_counted_against_the_body() -> None:
    rows = [{"m": f"m{number}", "fields": {"f": 1}} for number in range(3)]
    body = body_of(rows)
    effort = Effort(0, go_on)
    effort.add_shape(FREE_SHAPES - 3)
    assert piece(body, 3, effort) is not None
    with pytest.raises(PayloadTooLarge):
        piece(body, 3, effort)


def test_shapes_of_a_piece_that_python_does_are_not_counted() -> None:
    body = body_of([{"m": "good", "fields": {"f": 1}}, {"m": "bad", "t": "no time", "fields": {"f": 1}}])
    effort = Effort(0, go_on)
    effort.add_shape(FREE_SHAPES - 1)
    assert piece(body, 2, effort) is None
    effort.add_shape()
    with pytest.raises(PayloadTooLarge):
        effort.add_shape()


def test_rows_in_batches_and_beside_columns() -> None:
    row, columns = {"m": "cpu", "fields": {"f": 1}}, {"m": "mem", "columns": {"a": [1, 2]}}
    for body in ([row, columns, row], {"batch": [row] * 3}, [{"batch": [row] * 3}, row, row], [columns, row]):
        assert same_with_both(msgpack.packb(body))


def test_a_single_row_comes_out_as_one_map() -> None:
    row = msgpack.packb({"m": "cpu", "t": 5, "fields": {"f": 1}})
    assert same_with_both(row)
    assert not same_with_both(row + b"\x00")
    assert encode(row).records == 1


@pytest.mark.parametrize("arguments", [(), (b"",), ("text", 0, 1), (b"ab", 3, 1), (b"ab", -1, 1), (b"ab", 0, 0)])
def test_what_is_no_question_is_refused(arguments: tuple[Any, ...]) -> None:
    with pytest.raises(TypeError, match="gather_rows takes bytes"):
        gather()(*arguments)
