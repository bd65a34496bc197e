"""Keys are read as they were made."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arcpipe.lake.folders import FileName, parse_file_name, parse_folder
from arcpipe.lake.keys import Partition

HOUR_US = 3_600_000_000

_names = st.text(st.characters(exclude_categories=("Cs", "Cc"), exclude_characters="/"), min_size=1, max_size=12)
_hours = st.integers(-(62_135_596_800 // 3_600), 253_402_300_799 // 3_600 - 1).map(lambda hour: hour * HOUR_US)


@given(
    database=_names,
    measurement=_names,
    hour_us=_hours,
    after_us=st.integers(0, HOUR_US - 1),
    number=st.integers(0, 99),
    layout=st.sampled_from(["arc", "hive"]),
)
def test_a_key_says_what_it_was_made_of(
    database: str, measurement: str, hour_us: int, after_us: int, number: int, layout: Any
) -> None:
    batch = "dab10814aa7f-20261128T235550-1.1-b0dbaa47"
    key = Partition(database, measurement, hour_us).key(layout, hour_us + after_us, batch, number)
    path, _, name = key.rpartition("/")
    folder = parse_folder(path)
    assert folder is not None
    assert (folder.names, folder.hour_us) == ((database, measurement), hour_us)
    assert parse_file_name(name, folder) == FileName(hour_us + after_us, batch, number)


@pytest.mark.parametrize(
    "path",
    [
        "db/cpu/2026/11/28",
        "db/cpu/2026/11/28/24",
        "db/cpu/2026/02/30/10",
        "db/cpu/year=2026/month=11/day=28/23",
        "_dead_letter/cpu/2026/11/28/23",
        ".arcpipe/cpu/2026/11/28/23",
        "db/cpu/2026/11/28/23/more",
        "",
    ],
)
def test_other_folders_are_none(path: str) -> None:
    assert parse_folder(path) is None


@pytest.mark.parametrize(
    "name",
    [
        "cpu.parquet",
        "mem_20261128T235545167740_node-1.1_0.parquet",
        "cpu_20261128T235545167740_node-1.1_0.parquet.tmp",
        "cpu_20261328T235545167740_node-1.1_0.parquet",
        "cpu_20261128T235545_node-1.1_0.parquet",
        "cpu_20261128T235545167740_node-1.1.parquet",
    ],
)
def test_other_names_are_none(name: str) -> None:
    folder = parse_folder("db/cpu/2026/11/28/23")
    assert folder is not None
    assert parse_file_name(name, folder) is None
