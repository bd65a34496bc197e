"""Checksums do not depend on the order of rows, and notice each change of a value."""

from __future__ import annotations

import random
from decimal import Decimal
from typing import Any

import hypothesis.strategies as st
import pyarrow as pa
import pytest
from hypothesis import given

from arcpipe.lake.checksums import Checksums

COLUMNS: dict[str, tuple[pa.DataType, st.SearchStrategy[Any]]] = {
    "i": (pa.int64(), st.integers(-(2**63), 2**63 - 1)),
    "s": (pa.int16(), st.integers(0, 999)),
    "f": (pa.float64(), st.floats(allow_nan=False)),
    "b": (pa.bool_(), st.booleans()),
    "t": (pa.string(), st.text(max_size=20)),
    "y": (pa.binary(), st.binary(max_size=20)),
    "d": (pa.decimal128(20, 0), st.integers(2**63, 2**64 - 1).map(Decimal)),
}
rows = st.lists(
    st.fixed_dictionaries({name: st.none() | values for name, (_, values) in COLUMNS.items()}), min_size=1, max_size=12
)
SCHEMA = pa.schema([(name, type_) for name, (type_, _) in COLUMNS.items()])


def sums(content: list[dict[str, Any]], dictionary: bool = False) -> Checksums:
    table = pa.Table.from_pylist(content, SCHEMA)
    if dictionary:
        table = table.set_column(4, "t", table["t"].dictionary_encode())
    found = Checksums(list(COLUMNS))
    middle = len(table) // 2
    found.add(table.slice(middle))  # arrays with an offset, too
    found.add(table.slice(0, middle))
    return found


@given(rows, st.randoms(use_true_random=False))
def test_the_order_of_rows_and_dictionaries_do_not_count(content: list[dict[str, Any]], pick: random.Random) -> None:
    mixed = list(content)
    pick.shuffle(mixed)
    assert sums(content).difference(sums(mixed, dictionary=True)) == ""


@given(rows, st.data())
def test_a_value_that_changes_is_noticed(content: list[dict[str, Any]], data: st.DataObject) -> None:
    number = data.draw(st.integers(0, len(content) - 1))
    name = data.draw(st.sampled_from(sorted(COLUMNS)))
    value = data.draw(st.none() | COLUMNS[name][1])
    before = content[number][name]
    if repr(before) == repr(value):
        return
    changed = [dict(row) for row in content]
    changed[number][name] = value
    assert sums(content).difference(sums(changed)) == f"other values in column {name!r}"


def test_values_that_got_into_another_row_are_noticed() -> None:
    right = [{"i": 1, "t": "a"}, {"i": 2, "t": "b"}]
    wrong = [{"i": 1, "t": "b"}, {"i": 2, "t": "a"}]
    assert sums(right).difference(sums(wrong)) == "values that are in other rows"
    assert sums(right).difference(sums(right[:1])) == "1 rows in place of 2"


def test_long_texts_and_columns_that_are_missing_count_as_they_are() -> None:
    content = [{"t": "x" * 5_000 + end, "i": n} for n, end in enumerate("abc")]
    assert sums(content).difference(sums([*content[:2], {"t": "x" * 5_001, "i": 2}])) == "other values in column 't'"
    without = Checksums(list(COLUMNS))
    without.add(pa.Table.from_pylist([{"i": 1}], pa.schema([("i", pa.int64())])))
    assert without.difference(sums([{"i": 1}])) == ""


@pytest.mark.parametrize("at", [0, 1])
def test_rows_can_be_taken_out_again(at: int) -> None:
    content = [{"i": 1, "t": "a"}, {"i": 2, "t": "b"}]
    assert sums(content).without(sums([content[at]])).difference(sums([content[1 - at]])) == ""
