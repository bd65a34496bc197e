"""Rows are sorted by tags and time, stable, whether they fit in memory or are cut into ranges first."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings

from arcpipe.compaction import sorting
from arcpipe.compaction.sorting import SortColumns, Splitters, order
from arcpipe.compaction.spill import Ranges
from arcpipe.compaction.tables import compacted, joined, taken
from arcpipe.lake.file_schema import TIME_TYPE

Row = tuple[Any, ...]
DICTIONARY = pa.dictionary(pa.int32(), pa.string())
texts = st.none() | st.sampled_from(["", "a", "b", "ä", "zz"])
rows = st.lists(st.tuples(texts, texts, st.integers(0, 6)), max_size=40)


def table_of(rows: list[Row]) -> pa.Table:
    """Make a table of two tags, a time, and the number of each row."""
    a, b, times = zip(*rows, strict=True) if rows else ((), (), ())
    return pa.table(
        {
            "a": pa.array(a, pa.string()).dictionary_encode().cast(DICTIONARY),
            "b": pa.array(b, pa.string()),
            "time": pa.array(times, pa.int64()).cast(TIME_TYPE),
            "n": pa.array(range(len(rows)), pa.int64()),
        }
    )


COLUMNS = SortColumns(["a", "b"], has_ns=False)


def key(row: Row) -> tuple[Any, ...]:
    """Nulls come first."""
    return *((value is not None, value or "") for value in row[:2]), row[2]


@pytest.mark.parametrize("few", [1 << 16, 0], ids=["few series", "many series"])
@settings(deadline=None, max_examples=40)
@given(rows=rows)
def test_order_is_that_of_tags_and_time_and_stable(few: int, rows: list[Row]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sorting, "_FEW_SERIES", few)
        found, superseded = order(table_of(rows), COLUMNS, True)
    assert found.tolist() == sorted(range(len(rows)), key=lambda number: key(rows[number]))
    assert superseded is not None
    keys = [key(rows[number]) for number in found]
    assert superseded.tolist() == [here == after for here, after in zip(keys, [*keys[1:], None], strict=False)]


def test_series_out_of_the_order_of_time_are_sorted_among_others() -> None:
    rows = [(name, None, time) for time in range(100) for name in "abc"]
    rows[30], rows[270] = ("b", None, 99), ("b", None, 2)
    found = order(table_of(rows), COLUMNS, False).rows
    assert found.tolist() == sorted(range(len(rows)), key=lambda number: key(rows[number]))


@pytest.mark.parametrize("few", [1 << 16, 0], ids=["looked up", "searched"])
@settings(deadline=None, max_examples=40)
@given(rows=rows, parts=st.integers(2, 6))
def test_ranges_are_in_the_order_of_their_rows(few: int, rows: list[Row], parts: int) -> None:
    table = table_of(rows)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sorting, "_FEW_CODES", few)
        splitters = Splitters(table, COLUMNS, parts)
    found = splitters.parts_of(table).tolist()
    assert all(0 <= part < splitters.parts for part in found)
    pairs = sorted(zip(map(key, rows), found, strict=True))
    assert [part for _, part in pairs] == sorted(found)


@pytest.mark.parametrize("least_rows", [1, 1 << 30], ids=["as they are", "joined"])
@pytest.mark.parametrize("hosts", [3, 5_000])
def test_rows_come_back_from_their_ranges(
    least_rows: int, hosts: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once, in their order, and without the dictionaries of other ranges."""
    monkeypatch.setattr("arcpipe.compaction.spill._LEAST_ROWS", least_rows)
    chance = np.random.default_rng(1)
    names = [f"host-{number:05}" for number in range(hosts)]
    batches = []
    for number in range(6):
        picked = chance.integers(0, hosts, 4_000)
        batch = table_of([(names[host], None, int(number)) for host in picked])
        batches.append(batch.set_column(3, "n", pa.array(np.arange(4_000) + 4_000 * number)))
    whole = pa.concat_tables(batches)
    ranges = Ranges(tmp_path, whole.schema, Splitters(joined([whole]), COLUMNS, 4), 200_000)
    for batch in batches:
        ranges.add(batch)
    ranges.flush()
    found: list[int] = []
    for file in ranges.files:
        tables = list(file.tables())
        numbers = [number for table in tables for number in table["n"].to_pylist()]
        assert numbers == sorted(numbers)
        assert file.rows == len(numbers)
        found += numbers
        if hosts > 1_000:
            assert max(len(table["a"].chunk(0).dictionary) for table in tables) < 2_500
        for table in tables:
            assert table["a"].to_pylist() == whole["a"].take(table["n"]).to_pylist()
    ranges.close()
    assert sorted(found) == list(range(24_000))


@settings(deadline=None, max_examples=40)
@given(rows=rows, chance=st.randoms())
def test_taken_rows_are_those_that_were_named(rows: list[Row], chance: Any) -> None:
    """Of columns with and without nulls, of all widths, also of slices."""
    table = table_of(rows)
    count = len(rows)
    more: dict[str, pa.Array] = {
        "bool": pa.array([bool(n % 2) for n in range(count)], pa.bool_()),
        "small": pa.array([n if n % 3 else None for n in range(count)], pa.int16()),
        "bytes": pa.array([bytes([n]) for n in range(count)], pa.binary()),
        "float": pa.array([n / 2 for n in range(count)], pa.float64()),
        "decimal": pa.array(range(count), pa.int64()).cast(pa.decimal128(20, 0)),
    }
    for name, column in more.items():
        table = table.append_column(name, column)
    table = table.slice(count // 3)
    numbers = [chance.randrange(len(table)) for _ in range(2 * len(table))]
    found = taken(table, np.array(numbers, np.int64))
    assert found.schema.equals(table.schema)
    assert found.to_pylist() == table.take(pa.array(numbers, pa.int64())).to_pylist()
    assert compacted(found).to_pylist() == found.to_pylist()
