"""Each reader opens what the real server made, and finds each value of the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.readers.adapters import READERS
from tests.readers.comparing import assert_same_rows
from tests.readers.conftest import Read
from tests.readers.folders import FOLDERS
from tests.readers.known import expected_failure
from tests.readers.model import SIZES, TABLES, Row, database_of
from tests.readers.spark import VERSIONS

NAMES = [*READERS, *(f"spark {version}" for version in VERSIONS)]


def cases(*tables: tuple[Any, ...]) -> list[Any]:
    """Combine every reader with each table, marked where the test is expected to fail."""
    return [
        pytest.param(
            name,
            *table,
            id="-".join([name, *map(str, table)]).replace(" ", "_"),
            marks=[pytest.mark.xfail(strict=True, reason=reason)] if (reason := expected_failure(name, *table)) else [],
        )
        for name in NAMES
        for table in tables
    ]


def shown(name: str, rows: list[Row]) -> list[Row]:
    """Tell how a reader shows rows of the model."""
    return [READERS[name].shows(row) for row in rows] if name in READERS else rows


@pytest.mark.parametrize(("name", "table", "count"), cases(*SIZES))
def test_a_file_has_each_value(name: str, table: str, count: int, lake: Path, read: Read) -> None:
    rows = read(name, lake / database_of(table, count))
    assert_same_rows(rows, shown(name, TABLES[table].rows(count)))


@pytest.mark.parametrize(("name", "folder"), cases(*((folder,) for folder in FOLDERS)))
def test_a_folder_of_several_files_has_each_value(name: str, folder: str, lake: Path, read: Read) -> None:
    assert_same_rows(read(name, lake / folder), shown(name, FOLDERS[folder].rows))


def values(row: Row) -> dict[str, Any]:
    """Leave out the time and what is not there; text as text."""
    return {
        name: value.decode() if isinstance(value, bytes) else value
        for name, value in row.items()
        if name != "time" and value is not None
    }


@pytest.mark.parametrize(("name", "folder"), cases(("case",)))
def test_names_that_differ_in_case_only_are_told_apart(name: str, folder: str, lake: Path, read: Read) -> None:
    """Which name the second comer gets is the product's to say."""
    rows = sorted(read(name, lake / folder), key=lambda row: row["time"])
    assert len({column.lower() for column in rows[0]}) == len(rows[0]) == 5
    first, second, both = map(values, rows)
    assert first == {"v": 3}
    ((other, value),) = second.items()
    assert (other != "v", value) == (True, 4)
    assert both.items() >= {"v": 5, other: 6}.items()
    assert sorted(both.values(), key=str) == [5, 6, "a", "b"]


@pytest.mark.parametrize(("name", "folder"), cases(("hive",)))
def test_fields_named_as_hive_folders_are_kept(name: str, folder: str, hive_lake: Path, read: Read) -> None:
    """Some readers make text of a folder's name, some numbers."""
    (row,) = map(values, read(name, hive_lake / folder))
    assert [int(row.pop(part)) for part in ("year", "month", "day", "hour")] == [2026, 9, 21, 14]
    assert sorted(row.values(), key=str) == [1.5, 1999, 3.0, 7.0, "a", "monday"]
