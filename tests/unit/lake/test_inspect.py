"""Files are compared with their names and footers: each way in which one may be wrong is told."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from arcpipe.lake import footers, inspect
from arcpipe.lake.file_schema import TIME_TYPE, file_metadata
from arcpipe.lake.footers import Unreadable
from arcpipe.lake.inspect import Footer, StoredFile, check, last_rows, list_files, read_file, read_footer
from arcpipe.storage.local import LocalStore

HOUR = datetime(2026, 11, 28, 23, tzinfo=UTC)
HOUR_US = int(HOUR.timestamp()) * 1_000_000
BATCH = "node-20261128T235550-1.1-b0dbaa47"
KEY = f"db/cpu/2026/11/28/23/cpu_20261128T230000000001_{BATCH}_0.parquet"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[LocalStore]:
    store = LocalStore(tmp_path, 8)
    yield store
    asyncio.run(store.close())


def write(
    root: Path,
    times: list[int | None],
    key: str = KEY,
    of: tuple[str, str, str] = ("db", "cpu", BATCH),
    order: list[str] | None = None,
    type_: pa.DataType = TIME_TYPE,
    **columns: list[Any],
) -> None:
    """Write a file; times are µs after the hour began."""
    path = root / key
    path.parent.mkdir(parents=True, exist_ok=True)
    stamps = pa.array([None if time is None else HOUR_US + time for time in times]).cast(pa.timestamp("us", "UTC"))
    table = pa.table({"time": stamps.cast(type_), **columns}).replace_schema_metadata(file_metadata(*of))
    sorting = [pq.SortingColumn(table.schema.get_field_index(name)) for name in (["time"] if order is None else order)]
    with pq.ParquetWriter(path, table.schema, sorting_columns=sorting or None, store_schema=True) as writer:
        writer.write_table(table)


def listed(store: LocalStore, prefix: str = "") -> tuple[list[StoredFile], list[str]]:
    async def listing() -> tuple[list[StoredFile], list[str]]:
        files, others = [], []
        async for found, odd in list_files(store, prefix):
            files += found
            others += [other.key for other in odd]
        return files, others

    return asyncio.run(listing())


def checked(store: LocalStore) -> inspect.Checked:
    [file], _ = listed(store)
    data = asyncio.run(read_file(store, file))
    assert data is not None
    return check(data, file)


def test_a_good_file_has_no_problems(store: LocalStore, tmp_path: Path) -> None:
    write(tmp_path, [1, 2, 2, 3_599_999_999], v=[1, 2, 3, None])
    assert checked(store) == (4, [])


def test_a_merged_file_is_sorted_by_its_tags_first(store: LocalStore, tmp_path: Path) -> None:
    write(tmp_path, [1, 7, 2, 2, 1], order=["host", "time"], host=["a", "a", "b", "b", None])
    assert checked(store) == (5, [])


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"times": [3, 1]}, "row group 0 is not sorted by time"),
        (
            {"times": [1, 2, 3], "host": ["a", "b", "a"], "order": ["host", "time"]},
            "row group 0 is not sorted by host, time",
        ),
        (
            {"times": [1, 3, 2], "host": ["a", "b", "b"], "order": ["host", "time"]},
            "row group 0 is not sorted by host, time",
        ),
        ({"times": [1, 3_600_000_000]}, "it has rows of another hour than its folder's"),
        ({"times": [-1, 2]}, "it has rows of another hour than its folder's"),
        ({"times": [2, 3]}, "the time in its name is not between those of its rows"),
        ({"times": [1, None]}, "1 rows have no time"),
        ({"times": []}, "it has no rows"),
        ({"times": [1], "of": ("other", "cpu", BATCH)}, "it is of the database 'other', and not of its folder's"),
        ({"times": [1], "of": ("db", "mem", BATCH)}, "it is of the measurement 'mem', and not of its folder's"),
        ({"times": [1], "of": ("db", "cpu", "x-1")}, "it is of the batch x-1, and not of its name's"),
        ({"times": [1], "v": [1], "V": [1]}, "it has two columns whose names differ in case only"),
        ({"times": [1], "type_": pa.timestamp("ns", "UTC")}, f"it has no column 'time' of type {TIME_TYPE}"),
    ],
)
def test_each_problem_is_told(store: LocalStore, tmp_path: Path, arguments: dict[str, Any], problem: str) -> None:
    write(tmp_path, **arguments)
    assert checked(store).problems == [problem]


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-5], lambda data: data[:40], lambda data: b"", lambda data: b"x" * 99]
)
def test_a_damaged_file_is_a_problem_and_not_the_end(store: LocalStore, tmp_path: Path, damage: Any) -> None:
    write(tmp_path, [1, 2])
    path = tmp_path / KEY
    path.write_bytes(damage(path.read_bytes()))
    [problem] = checked(store).problems
    assert problem.startswith("it cannot be read: ")
    [file], _ = listed(store)
    with pytest.raises(Unreadable, match="cannot be read"):
        asyncio.run(read_footer(store, file))


def test_a_footer_says_rows_and_times(store: LocalStore, tmp_path: Path) -> None:
    write(tmp_path, [1, 2, 5])
    [file], _ = listed(store)
    assert asyncio.run(read_footer(store, file)) == Footer(3, HOUR_US + 1, HOUR_US + 5)


def test_a_long_footer_is_read_whole(store: LocalStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(footers, "_TAIL_BYTES", 100)
    write(tmp_path, [1, 2, 5])
    [file], _ = listed(store)
    assert asyncio.run(read_footer(store, file)) == Footer(3, HOUR_US + 1, HOUR_US + 5)


def test_a_file_that_vanished_is_none(store: LocalStore, tmp_path: Path) -> None:
    write(tmp_path, [1])
    [file], _ = listed(store)
    (tmp_path / KEY).unlink()
    assert asyncio.run(read_footer(store, file)) is None
    assert asyncio.run(read_file(store, file)) is None


def test_the_last_rows_are_those_with_the_latest_times(
    store: LocalStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inspect, "_BATCH_ROWS", 3)
    times = [*range(1, 20, 2), *range(2, 20, 2)]
    write(tmp_path, list(times), order=[], v=times)
    [file], _ = listed(store)
    data = asyncio.run(read_file(store, file))
    assert data is not None
    assert last_rows(data, KEY, 4).column("v").to_pylist() == [19, 18, 17, 16]
    assert len(last_rows(data, KEY, 100)) == 19


def test_what_is_not_of_arcpipe_is_listed_apart(store: LocalStore, tmp_path: Path) -> None:
    write(tmp_path, [1])
    for other in ("db/cpu/notes.txt", "README", "_dead_letter/db/x.msgpack", "db/cpu/2026/11/28/23/mine.parquet"):
        (tmp_path / other).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / other).write_bytes(b"x")
    files, others = listed(store)
    assert [file.key for file in files] == [KEY]
    assert sorted(others) == ["README", "db/cpu/2026/11/28/23/mine.parquet", "db/cpu/notes.txt"]
    assert listed(store, "db/mem/") == ([], [])
