"""The hours of a measurement are found by their folders' names."""

from __future__ import annotations

import asyncio
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arcpipe.config.settings import StorageS3
from arcpipe.lake.hours import hours_until, newest_hour
from arcpipe.storage import open_store
from tests.support.compaction import key_of

HOUR = 3_600_000_000
START = int(datetime(2025, 12, 30, tzinfo=UTC).timestamp()) * 1_000_000


def find(root: Path, end_us: int) -> tuple[list[int], int | None]:
    async def main() -> tuple[list[int], int | None]:
        store = open_store(f"file://{root}", StorageS3())
        try:
            found = [folder.hour_us async for folder in hours_until(store, "db/m/", end_us)]
            return found, await newest_hour(store, "db/m/", end_us)
        finally:
            await store.close()

    return asyncio.run(main())


def make(root: Path, hour_us: int, layout: Any = "arc") -> None:
    path = root / key_of(1, hour_us=hour_us, layout=layout)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


hours = st.integers(0, 24 * 500).map(lambda number: START + number * HOUR)


@given(st.sets(hours, max_size=8), hours, st.integers(0, HOUR - 1), st.sampled_from(["arc", "hive"]))
def test_hours_that_end_by_a_time_are_found_oldest_first(there: set[int], end: int, more: int, layout: str) -> None:
    with tempfile.TemporaryDirectory() as directory:
        for hour in there:
            make(Path(directory), hour, layout)
        found, newest = find(Path(directory), end + more)
        assert found == sorted(hour for hour in there if hour + HOUR <= end + more)
        assert newest == max((hour for hour in there if hour < end + more), default=None)


@pytest.mark.parametrize(
    "other",
    [
        "2025/12/30/00/sub/m_20251230T000000000000_x_0.parquet",
        "2025/12/30/24/x",
        "2025/13/01/00/x",
        "2025/12/3/0/x",
        "notes/2025/12/30/00/x",
        "year=2025/12/day=30/00/x",
        "2025/12/30/x",
    ],
)
def test_folders_of_other_names_are_passed_over(tmp_path: Path, other: str) -> None:
    path = tmp_path / "db" / "m" / other
    path.parent.mkdir(parents=True)
    path.touch()
    found, newest = find(tmp_path, START + 1000 * HOUR)
    assert newest is None
    assert found == ([START] if "sub" in other else [])  # the hour of the folder above


def test_a_folder_without_files_of_arcpipe_is_not_the_newest_hour(tmp_path: Path) -> None:
    make(tmp_path, START)
    later = tmp_path / "db" / "m" / "2025" / "12" / "31" / "05"
    later.mkdir(parents=True)
    (later / "other.parquet").touch()
    assert find(tmp_path, START + 1000 * HOUR)[1] == START
