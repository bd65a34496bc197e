"""Streams take the quick road where they fit the table; both roads give the same rows in the same columns."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from arcpipe.codec.rescued import Timestamp, parse_rescued
from arcpipe.config.settings import Parquet
from arcpipe.lake.parquet_file import Rows
from arcpipe.lake.spool import Spool
from arcpipe.upload import conversion_jobs
from arcpipe.upload.budget import BUDGET, Budget
from arcpipe.upload.collect import BatchTables
from arcpipe.upload.conversion_pool import InHand
from arcpipe.upload.convert_arrow import NotPlain, convert_arrow, convert_parts
from arcpipe.upload.dead_letters import DeadLetter
from arcpipe.upload.schema import SchemaRegistry
from arcpipe.upload.table_schema import TableSchema
from tests.unit.codec.arrow_ipc.streams import entry, stream, tables

NOW_US = 1_700_000_000_000_000


class Result(NamedTuple):
    tables: list[pa.Table]
    letters: list[DeadLetter]
    changes: list[TableSchema]

    def rows(self) -> list[str]:
        """Every row with the names and types of its columns, in any order."""
        found = []
        for table in self.tables:
            types = {field.name: str(field.type) for field in table.schema}
            found += [
                repr(sorted((name, types[name], value) for name, value in row.items() if value is not None))
                for row in table.to_pylist()
            ]
        return sorted(found)


def convert(
    path: Path,
    payloads: list[bytes],
    registry: SchemaRegistry | None = None,
    budget: Budget = BUDGET,
    careful: bool = False,
) -> Result:
    files: list[pa.Table] = []
    letters: list[DeadLetter] = []

    def on_file(key: str, spool: Spool, rows: Rows) -> None:
        data = bytes(spool.read_at(0, spool.size))
        files.append(pq.ParquetFile(pa.BufferReader(data)).read(use_threads=False))
        spool.close()

    batch = BatchTables(
        "node-1",
        "arc",
        Parquet(),
        SchemaRegistry(path / "schema.json") if registry is None else registry,
        threads=2,
        spool=path,
        on_file=on_file,
        on_dead_letter=letters.append,
        budget=budget,
        careful=[("db", "m")] if careful else [],
    )
    with batch:
        for number, payload in enumerate(payloads):
            batch.add(NOW_US + number, memoryview(payload), number)
        batch.finish()
    return Result(files, letters, batch.schema_changes)


@pytest.fixture
def slowly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Convert by the slow road alone."""

    def refuse(*_: Any) -> None:
        raise NotPlain

    def run(payloads: list[bytes], registry: SchemaRegistry | None = None) -> Result:
        with monkeypatch.context() as context:
            context.setattr(conversion_jobs, "convert_arrow", refuse)
            return convert(tmp_path, payloads, registry)

    return run


def usable(table: pa.Table) -> bool:
    return not all(pa.types.is_null(field.type) or field.name == "time" for field in table.schema)


@given(st.lists(tables().filter(usable), min_size=1, max_size=4), st.booleans())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_both_roads_give_the_same_rows_in_the_same_columns(
    tmp_path: Path, slowly: Callable[..., Result], given_tables: list[pa.Table], small: bool
) -> None:
    payloads = [entry(stream(table, rows=3 if small else None)) for table in given_tables]
    quick, slow = convert(tmp_path, payloads), slowly(payloads)
    assert (quick.letters, slow.letters) == ([], [])
    assert quick.rows() == slow.rows()
    assert msgspec.json.encode(quick.changes) == msgspec.json.encode(slow.changes)
    assert sum(map(len, quick.tables)) == sum(map(len, given_tables))


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Count the entries of each conversion by the quick road that succeeds."""
    calls: list[int] = []

    def call(entries: Any, *others: Any) -> Any:
        converted = convert_arrow(entries, *others)
        calls.append(len(entries))
        return converted

    monkeypatch.setattr(conversion_jobs, "convert_arrow", call)
    return calls


def plain(number: int, rows: int = 100) -> pa.Table:
    return pa.table(
        {
            "time": pa.array(NOW_US + np.arange(rows)[::-1], pa.timestamp("us")),
            "tag": pa.array([f"t{number}", f"t{number + 1}"] * (rows // 2)).dictionary_encode(),
            "s": ["a"] * rows,
            "n": np.arange(rows),
            "f": np.arange(rows) / 3,
        }
    )


def test_streams_of_one_table_are_converted_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = counted(monkeypatch)
    result = convert(tmp_path, [entry(stream(plain(number))) for number in range(10)])
    assert calls == [10]
    (table,) = result.tables
    assert len(table) == 1_000
    times = table["time"].cast(pa.int64()).to_numpy()
    assert (np.diff(times) >= 0).all()
    assert set(table["tag"].to_pylist()) == {f"t{number}" for number in range(11)}
    assert table.schema.field("tag").metadata[b"arcpipe.role"] == b"tag"


def test_streams_are_converted_in_lots_that_count_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their columns are copied while they are still there. The uploader took 514 MB with remote write before."""
    calls = counted(monkeypatch)
    costs: list[int] = []

    def noted(hand: InHand, cost: int, *others: Any) -> None:
        costs.append(cost)
        begin_writing(hand, cost, *others)

    begin_writing = InHand.begin_writing
    monkeypatch.setattr(InHand, "begin_writing", noted)
    payloads = [entry(stream(plain(number, 2_000))) for number in range(9)]
    size = len(payloads[0])
    lots = convert(tmp_path, payloads, budget=Budget(stream_bytes=3 * size + 1_000))
    assert calls == [3, 3, 3]
    assert all(6 * size <= cost < 6 * size + 10_000 for cost in costs)
    assert lots.rows() == convert(tmp_path, payloads).rows()


def test_a_stream_that_does_not_fit_takes_the_slow_road_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = counted(monkeypatch)
    odd = plain(1).set_column(3, "n", pa.array(["text"] * 100))
    result = convert(tmp_path, [entry(stream(table)) for table in (plain(0), plain(1), odd, plain(2))])
    assert sorted(calls) == [1, 2]
    joined = pa.concat_tables(result.tables, promote_options="default")
    assert joined["n_str"].drop_null().to_pylist() == ["text"] * 100
    assert len(joined["n"].drop_null()) == 300


def test_careful_tables_and_tight_bounds_change_no_row(tmp_path: Path) -> None:
    payloads = [entry(stream(plain(number, 2_000), rows=300)) for number in range(4)]
    usual = convert(tmp_path, payloads)
    assert convert(tmp_path, payloads, careful=True).rows() == usual.rows()
    tight = Budget(table_bytes=50_000, collected_bytes=60_000, release_bytes=10_000)
    assert convert(tmp_path, payloads, budget=tight).rows() == usual.rows()


@pytest.mark.parametrize("rows", [None, 300])
@pytest.mark.parametrize("careful", [False, True])
def test_a_large_stream_is_converted_slice_by_slice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: int | None, careful: bool
) -> None:
    """One of its slices has a number that does not fit; those after it do."""
    sizes: list[int] = []

    def noted(parts: Any, *others: Any) -> Any:
        sizes.append(sum(part.batch.nbytes for part in parts))
        return convert_parts(parts, *others)

    monkeypatch.setattr("arcpipe.upload.conversion_jobs.convert_parts", noted)
    table = plain(0, 2_000)
    numbers = [float(number) if number != 1_000 else 2.0**60 for number in range(2_000)]
    odd = [number if number != 1_000 else (1 << 63) + 1 for number in range(2_000)]
    table = table.append_column("f2", pa.array(numbers)).append_column("u", pa.array(odd, pa.uint64()))
    payloads = [entry(stream(plain(1))), entry(stream(table, rows=rows)), entry(stream(plain(2)))]
    usual = convert(tmp_path, payloads)
    assert not sizes
    tight = Budget(table_bytes=50_000, slice_bytes=10_000)
    assert convert(tmp_path, payloads, budget=tight, careful=careful).rows() == usual.rows()
    assert len(sizes) > 5
    assert max(sizes) < 11_000  # about slice_bytes


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("values", [np.zeros(10_000, np.bool_), np.zeros(10_000, np.int8)])
def test_streams_cost_what_their_rows_become(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, values: Any, count: int
) -> None:
    """A boolean is a bit, but its row has a time. The uploader took 2.4 GB for a stream of 500 M of them."""
    costs: list[int] = []

    def noted(parts: Any, *others: Any) -> Any:
        costs.append(sum(part.batch.num_rows * (8 * part.batch.num_columns + 8) for part in parts))
        return convert_parts(parts, *others)

    monkeypatch.setattr("arcpipe.upload.conversion_jobs.convert_parts", noted)
    monkeypatch.setattr("arcpipe.upload.convert_arrow.convert_parts", noted)
    payloads = [entry(stream(pa.table({"a": values, "b": values, "c": values}), "zstd")) for _ in range(count)]
    usual = convert(tmp_path, payloads)
    assert costs == [count * 320_000]
    for tight in (Budget(table_bytes=100_000, slice_bytes=10_000), Budget(converted_bytes=200_000, slice_bytes=10_000)):
        costs.clear()
        assert convert(tmp_path, payloads, budget=tight).rows() == usual.rows()
        assert sum(costs) == count * 320_000
        assert max(costs) <= tight.slice_bytes


def test_dead_letters_of_a_large_stream_have_names_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its slices are letters of one entry: those with the same number would have one name in the store."""

    def refuse(*_: Any) -> None:
        raise ValueError("refused")

    monkeypatch.setattr(conversion_jobs, "convert_parts", refuse)
    monkeypatch.setattr(conversion_jobs, "convert", refuse)
    tight = Budget(table_bytes=50_000, slice_bytes=10_000)
    letters = convert(tmp_path, [entry(stream(plain(0, 2_000)))], budget=tight).letters
    assert len(letters) > 5
    assert [(letter.origin, letter.part) for letter in letters] == [(0, number) for number in range(len(letters))]


def test_a_large_stream_that_cannot_be_read_is_a_dead_letter_as_a_whole(tmp_path: Path) -> None:
    good = entry(stream(plain(0, 2_000), rows=300))
    damaged = good[:-2_000]
    result = convert(tmp_path, [good, damaged], budget=Budget(table_bytes=50_000, slice_bytes=10_000))
    assert [(letter.origin, letter.payload) for letter in result.letters] == [(1, damaged)]
    assert sum(map(len, result.tables)) == 2_000


def test_a_stream_that_cannot_be_read_is_a_dead_letter_alone(tmp_path: Path) -> None:
    good = entry(stream(plain(0)))
    for damaged in (good[:-300], good[:-2_000].replace(b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", 1)):
        result = convert(tmp_path, [good, damaged, good])
        assert [letter.origin for letter in result.letters] == [1]
        assert result.letters[0].payload == damaged
        assert sum(map(len, result.tables)) == 200


def test_small_entries_do_not_keep_their_segment(tmp_path: Path) -> None:
    small = Budget(release_bytes=1)
    payloads = [entry(stream(plain(number, 10))) for number in range(20)]
    assert convert(tmp_path, payloads, budget=small).rows() == convert(tmp_path, payloads).rows()


@pytest.mark.parametrize(
    ("type_", "last", "unit_ns"),
    [
        (pa.timestamp("us"), 2**63 - 1, 10**3),
        (pa.timestamp("s", "UTC"), -(2**62), 10**9),
        (pa.date32(), 2**31 - 1, 86_400 * 10**9),
        (pa.date64(), 86_400_000 * 10**10, 10**6),
    ],
)
def test_a_moment_that_no_column_holds_is_rescued(tmp_path: Path, type_: pa.DataType, last: int, unit_ns: int) -> None:
    """`infinity` in DuckDB and PostgreSQL is the last moment of the type. It was null in the lake."""
    at = pa.array([1_700_000_000 + row for row in range(3)], pa.timestamp("s", "UTC"))
    result = convert(tmp_path, [entry(stream(pa.table({"time": at, "v": pa.array([last, None, 0], type_)})))])
    (table,) = result.tables
    assert table["v"].cast(pa.int64()).to_pylist() == [None, None, 0]
    rescued, *others = table["_rescued_data"].to_pylist()
    assert parse_rescued(rescued) == {"v": Timestamp(last * unit_ns)}
    assert others == [None, None]
