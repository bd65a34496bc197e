"""Statistics from footers: never narrower than the values, whatever they are."""

from __future__ import annotations

import io
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from arcpipe.lake.file_schema import TIME_TYPE
from arcpipe.tables.delta.stats import stats_of, text_above

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
TEXTS = st.text(max_size=40) | st.text("a\U0010ffff\ud7ff", min_size=30, max_size=40)


def stats(table: pa.Table, **options: Any) -> dict[str, Any]:
    memory = io.BytesIO()
    pq.write_table(table, memory, **options)
    found: dict[str, Any] = json.loads(stats_of(pq.read_metadata(memory), len(table)))
    return found


def column(values: list[Any], type_: pa.DataType, **options: Any) -> tuple[Any, Any, Any]:
    found = stats(pa.table({"c": pa.array(values, type_)}), **options)
    assert found["numRecords"] == len(values)
    return found["minValues"].get("c"), found["maxValues"].get("c"), found["nullCount"].get("c")


@given(st.lists(st.integers(-(2**63), 2**63 - 1) | st.none(), min_size=1))
def test_integers_and_nulls_are_exact_over_row_groups(values: list[int | None]) -> None:
    known = [value for value in values if value is not None]
    expected = (min(known), max(known)) if known else (None, None)
    assert column(values, pa.int64(), row_group_size=2) == (*expected, values.count(None))


@given(st.lists(st.integers(-62_135_596_800_000_000, 253_402_300_799_999_000) | st.none(), min_size=1))
def test_times_are_widened_to_ms(values: list[int | None]) -> None:
    least, greatest, nulls = column(values, TIME_TYPE)
    assert nulls == values.count(None)
    known = [EPOCH + timedelta(microseconds=value) for value in values if value is not None]
    if known:
        low, high = (datetime.fromisoformat(text) for text in (least, greatest))
        assert timedelta(0) <= min(known) - low < timedelta(milliseconds=1)
        assert timedelta(0) <= high - max(known) < timedelta(milliseconds=1)


@pytest.mark.parametrize("beyond", [-62_135_596_800_000_001, 253_402_300_799_999_001, 2**63 - 1, -(2**63)])
def test_times_that_no_date_has_have_no_bound(beyond: int) -> None:
    least, greatest, _ = column([0, beyond], TIME_TYPE)
    assert (least is None) == (beyond < 0)
    assert (greatest is None) == (beyond > 0)


@given(st.lists(TEXTS | st.none(), min_size=1))
def test_texts_are_widened_to_32_characters(values: list[str | None]) -> None:
    least, greatest, nulls = column(values, pa.string(), row_group_size=3)
    assert nulls == values.count(None)
    known = sorted((value.encode() for value in values if value is not None), key=bytes)
    if known:
        assert least.encode() <= known[0]
        assert len(least) <= 32
        assert greatest is None or (known[-1] <= greatest.encode() and len(greatest) <= 32)
        assert greatest is not None or known[-1].startswith("\U0010ffff".encode() * 32)


def test_a_text_that_has_nothing_above_it_has_no_bound() -> None:
    assert text_above("\U0010ffff" * 33) is None
    assert text_above("a" + "\U0010ffff" * 32) == "b"
    assert text_above("\ud7ff" * 33) == "\ud7ff" * 31 + "\ue000"
    assert text_above("x" * 32) == "x" * 32


def test_floats_have_no_bounds_because_nan_is_the_greatest() -> None:
    assert column([1.0, float("nan")], pa.float64()) == (None, None, 0)


def test_a_column_without_bounds_in_one_row_group_has_none() -> None:
    """A long text has no statistics in a footer, so what is known of the others says nothing."""
    assert column(["a", "b" * 10_000], pa.string(), row_group_size=1)[:2] == (None, None)
    assert column([None, "b"], pa.string(), row_group_size=1) == ("b", "b", 1)


def test_other_types_have_counts_of_nulls_only() -> None:
    for value, type_ in ((True, pa.bool_()), (b"x", pa.binary()), (7, pa.decimal128(20, 0))):
        assert column([value, None], type_) == (None, None, 1)


def test_only_the_first_32_columns_have_statistics() -> None:
    found = stats(pa.table({f"c{number}": [number] for number in range(40)}))
    assert list(found["minValues"]) == [f"c{number}" for number in range(32)]


def test_a_file_without_rows_or_statistics_has_the_count_alone() -> None:
    table = pa.table({"c": pa.array([], pa.int64())})
    assert stats(table) == {"numRecords": 0, "minValues": {}, "maxValues": {}, "nullCount": {}} | {
        "nullCount": stats(table)["nullCount"]
    }
    found = stats(pa.table({"c": [1]}), write_statistics=False)
    assert found == {"numRecords": 1, "minValues": {}, "maxValues": {}, "nullCount": {}}


def test_a_dot_in_a_name_is_no_nested_column() -> None:
    found = stats(pa.table({"a.b": [1], "s": [{"x": 1}], "l": [[1]]}))
    assert found["minValues"] == {"a.b": 1}
    assert found["nullCount"] == {"a.b": 0}
