"""docs/sizing.md: each figure of its examples follows from its formulas, its first table and the settings' defaults."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import NamedTuple

import pytest

from arcpipe.config.settings import Settings
from arcpipe.units import MB

PAGE = (Path(__file__).parents[2] / "docs" / "sizing.md").read_text()
OUTAGE_SECONDS = 4 * 3600
USED = 0.7  # of a core
SETTINGS = Settings()


def rows(heading: str) -> list[list[str]]:
    """Return the cells of the table below a heading."""
    part = re.split(r"^## ", PAGE.partition(f"## {heading}\n")[2], flags=re.MULTILINE)[0]
    lines = [line for line in part.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


class Record(NamedTuple):
    """What a record takes."""

    wal_bytes: float
    parquet_bytes: float
    cpu_us: float


def records() -> dict[str, Record]:
    return {
        name: Record(float(wal), float(parquet), float(cpu) if cpu != "–" else math.nan)
        for name, wal, parquet, cpu in rows("What a record takes")
    }


def number(cell: str) -> float:
    return float(cell.replace(",", ""))


@pytest.mark.parametrize("row", rows("Examples"), ids=lambda row: f"{row[0]} {row[1]}")
def test_an_example_follows_from_the_formulas(row: list[str]) -> None:
    name, rate_cell, wal_cell, backlog_cell, volume_cell, workers_cell, cores_cell, memory_cell, store_cell = row
    record, rate, workers = records()[name], number(rate_cell), number(workers_cell)
    wal_mb = rate * record.wal_bytes / MB
    assert number(wal_cell) == pytest.approx(wal_mb, abs=0.05)
    backlog = wal_mb * OUTAGE_SECONDS
    assert number(backlog_cell) == math.ceil(backlog / 1000) * 1000
    wal, uploader = SETTINGS.wal, SETTINGS.uploader
    others = 2 * workers * wal.max_size_mb + wal.free_segments * wal.max_size_mb + 2 * uploader.batch_mb
    crash = 2 * workers * wal.max_size_mb
    volume = number(backlog_cell) + others + crash + wal.min_free_mb
    assert number(volume_cell) == math.ceil(volume / 1000)
    cores = rate * record.cpu_us / 1e6 / USED
    assert number(cores_cell) == pytest.approx(cores, abs=0.05)
    assert workers == max(1, math.ceil(cores))
    memory = 150 + workers * (100 + SETTINGS.server.max_inflight_mb) + 600
    assert number(memory_cell) == pytest.approx(memory, abs=1)
    assert number(store_cell) == pytest.approx(rate * record.parquet_bytes * 86_400 / 1e9, rel=0.03)


def test_the_page_names_the_defaults_that_it_reckons_with() -> None:
    for key, value in {
        "wal.max_size_mb": SETTINGS.wal.max_size_mb,
        "wal.free_segments": SETTINGS.wal.free_segments,
        "uploader.batch_mb": SETTINGS.uploader.batch_mb,
        "wal.min_free_mb": SETTINGS.wal.min_free_mb,
        "server.max_inflight_mb": SETTINGS.server.max_inflight_mb,
        "wal.max_backlog_mb": SETTINGS.wal.max_backlog_mb,
    }.items():
        assert f"`{key}` ({value})" in PAGE, key


def test_cpu_times_are_those_of_the_benchmarks() -> None:
    """Of the sustained run for columns, and of the comparison with other servers for lines."""
    page = (Path(__file__).parents[2] / "docs" / "benchmarks.md").read_text()
    sustained = re.search(r"^\| fdatasync \| 3\.00 M \|.* (\d+) µs \|", page, re.MULTILINE)
    lines = re.findall(r"^\| arcpipe \(on disk\) \|.* ([\d,]+) µs \|", page, re.MULTILINE)
    assert sustained is not None
    found = [number(sustained[1]), *map(number, lines[:2])]
    costs = records()
    assert [cost.cpu_us for cost in (costs["columns"], costs["lines"], costs["telegraf"])] == [
        pytest.approx(per_request / 1000, abs=0.005) for per_request in found
    ]
