"""Each reader opens what the real server made, and finds each value of the model."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest

from tests.readers.adapters import READERS
from tests.readers.comparing import assert_same_rows
from tests.readers.conftest import Read
from tests.readers.folders import FOLDERS, directory_of
from tests.readers.known import ICEBERG, expected_failure
from tests.readers.model import SIZES, SMALL, TABLES, Row, database_of
from tests.readers.spark import VERSIONS

NAMES = [*READERS, *(f"spark {version}" for version in VERSIONS)]


def cases(*tables: tuple[Any, ...]) -> list[Any]:
    """Combine every reader with each table, marked where the test is expected to fail.

    The readers of a table follow one another, so that its rows are made once.
    """
    return [
        pytest.param(name, *table, id="-".join([name, *map(str, table)]).replace(" ", "_"), marks=marks(name, table[0]))
        for table in tables
        for name in NAMES
    ]


def marks(name: str, table: str) -> list[pytest.MarkDecorator]:
    reason = expected_failure(name, table)
    return [pytest.mark.xfail(strict=True, reason=reason)] if reason else []


@functools.lru_cache(1)
def rows_of(table: str, count: int) -> list[Row]:
    return TABLES[table].rows(count)


def shown(name: str, rows: list[Row]) -> list[Row]:
    """Tell how a reader shows rows of the model."""
    return [READERS[name].shows(row) for row in rows] if name in READERS else rows


@pytest.mark.parametrize(("name", "table", "count"), cases(*SIZES))
def test_a_file_has_each_value(name: str, table: str, count: int, lake: Path, read: Read) -> None:
    rows = read(name, lake / database_of(table, count))
    assert_same_rows(rows, shown(name, rows_of(table, count)))


@pytest.mark.parametrize(("name", "table", "count"), cases(*((f"small {table}", count) for table, count in SMALL)))
def test_a_file_with_the_small_encodings_has_each_value(
    name: str, table: str, count: int, small_lake: Path, read: Read
) -> None:
    table = table.removeprefix("small ")
    rows = read(name, small_lake / database_of(table, count))
    assert_same_rows(rows, shown(name, rows_of(table, count)))


@pytest.mark.parametrize(("name", "folder"), cases(*((folder,) for folder in FOLDERS)))
def test_a_folder_of_several_files_has_each_value(name: str, folder: str, lake: Path, read: Read) -> None:
    assert_same_rows(read(name, lake / directory_of(folder)), shown(name, FOLDERS[folder].rows))


def values(row: Row) -> dict[str, Any]:
    """Leave out the time and what is not there; text as text."""
    return {
        name: value.decode() if isinstance(value, bytes) else value
        for name, value in row.items()
        if name != "time" and value is not None
    }


@pytest.mark.parametrize(("name", "folder"), [case for case in cases(("hive",)) if case.values[0] != ICEBERG])
def test_fields_named_as_hive_folders_are_kept(name: str, folder: str, hive_lake: Path, read: Read) -> None:
    """Some readers make text of a folder's name, some numbers. Iceberg has partitions of its own."""
    (row,) = map(values, read(name, hive_lake / folder))
    assert [int(row.pop(part)) for part in ("year", "month", "day", "hour")] == [2026, 9, 21, 14]
    fields = {"year_field": 1999, "month_field": 3.0, "day_field": "monday", "hour_field": 7.0}
    assert row == {"site": "a", "kwh": 1.5, **fields}
