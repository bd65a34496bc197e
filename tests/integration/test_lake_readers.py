"""The files in the hands of their readers: DuckDB, Polars and pyarrow open them, and skip what a filter excludes.

A query for five minutes of one hour should read one file of six, and of its row groups only those with such times. The
readers themselves say how many they left out.
"""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pad
import pyarrow.parquet as pq
import pytest

from tests.support.http import pack, request_bytes
from tests.support.lake import lake_files
from tests.support.server import Server

# 2026-01-01T00:00:00Z
NEW_YEAR = 1_767_225_600
HOURS = 6
ROWS_PER_HOUR = 5000
ROW_GROUP = 1000

# Five minutes of the third hour: rows 834 to 1250 of it, which are in its first and its second row group.
HOUR = 2
START = datetime(2026, 1, 1, HOUR, 10, tzinfo=UTC)
STOP = START + timedelta(minutes=5)
STEP_US = 720_000
EXPECTED = [HOUR * ROWS_PER_HOUR + row for row in range(ROWS_PER_HOUR) if 600 <= row * STEP_US / 1e6 < 900]


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hive lake of one measurement `cpu` over six hours; and `weather`, whose columns come, go and get siblings."""
    with Server(
        tmp_path_factory.mktemp("readers"),
        server_workers=1,
        storage_layout="hive",
        parquet_row_group_rows=ROW_GROUP,
        flush_max_age_seconds=60,
    ) as server:
        with server.client() as client:
            for first in range(0, HOURS * ROWS_PER_HOUR, 500):
                ids = range(first, first + 500)
                body = {
                    "m": "cpu",
                    "columns": {
                        "time": [NEW_YEAR * 1_000_000 + identity * STEP_US for identity in ids],
                        "id": list(ids),
                        "usage": [identity / 7 for identity in ids],
                        "host": [f"host-{identity % 5}" for identity in ids],
                    },
                    "tags": ["host"],
                }
                client.send(request_bytes("POST", "/write/v2/msgpack", pack(body)))
                assert client.receive().status == 202
        server.stop()
        # Each start and stop is a batch, and so a file.
        for columns in (
            {"time": [NEW_YEAR], "wind": [3]},
            {"time": [NEW_YEAR + 1], "wind": [4.5], "rain": [True]},
            {"time": [NEW_YEAR + 2], "rain": ["heavy"], "sky": ["grey"], "wind": [["none"]]},
        ):
            server.restart()
            server.write({"m": "weather", "columns": columns})
            server.stop()
        assert len(lake_files(server.lake, "default", "cpu")) == HOURS
        assert len(lake_files(server.lake, "default", "weather")) == 3
        return server.lake / "default"


def test_row_groups_are_cut_by_time_and_say_so_in_their_statistics(lake: Path) -> None:
    for hour, path in enumerate(sorted(lake.glob("cpu/**/*.parquet"))):
        file = pq.ParquetFile(path)
        assert f"hour={hour:02}" in str(path)
        assert file.metadata.num_row_groups == ROWS_PER_HOUR // ROW_GROUP
        ends = []
        for number in range(file.metadata.num_row_groups):
            group = file.metadata.row_group(number)
            assert [(column.column_index, column.descending) for column in group.sorting_columns] == [(0, False)]
            time = group.column(0)
            assert time.path_in_schema == "time"
            ends += [time.statistics.min, time.statistics.max]
        first = datetime(2026, 1, 1, hour, tzinfo=UTC)
        assert ends == sorted(set(ends))
        assert (ends[0], ends[-1]) == (first, first + timedelta(microseconds=STEP_US * (ROWS_PER_HOUR - 1)))


def test_pyarrow_prunes_partitions_and_row_groups(lake: Path) -> None:
    dataset = pad.dataset(lake / "cpu", partitioning="hive")
    minutes = (pc.field("time") >= START) & (pc.field("time") < STOP)
    (fragment,) = dataset.get_fragments(filter=pc.field("hour") == HOUR)
    assert len(fragment.row_groups) == 5
    assert [group.id for group in fragment.subset(minutes).row_groups] == [0, 1]
    # The statistics alone do it, too, without the partition.
    assert sum(len(each.subset(minutes).row_groups) for each in dataset.get_fragments()) == 2
    table = dataset.to_table(filter=(pc.field("hour") == HOUR) & minutes)
    assert table["id"].to_pylist() == EXPECTED
    assert table["year"].unique().to_pylist() == [2026]


def test_duckdb_prunes_partitions_and_row_groups(lake: Path) -> None:
    query = (
        f"SELECT id FROM read_parquet('{lake}/cpu/**/*.parquet', hive_partitioning = true) "
        f"WHERE hour = {HOUR} AND time >= '{START}' AND time < '{STOP}' ORDER BY id"
    )
    with duckdb.connect() as connection:
        assert [row[0] for row in connection.execute(query).fetchall()] == EXPECTED
        ((_, text),) = connection.execute(f"EXPLAIN (ANALYZE, FORMAT json) {query}").fetchall()
    plan = json.loads(text)
    assert "1/6" in find(plan, "Scanning Files")
    assert set(find(plan, "row_groups_scanned")) == {2}
    assert set(find(plan, "total_row_groups_to_scan")) == {5}


def find(value: Any, name: str) -> list[Any]:
    """Find all values of a key, wherever it is."""
    if isinstance(value, dict):
        here = [value[name]] if name in value else []
        return here + [found for each in value.values() for found in find(each, name)]
    return [found for each in value for found in find(each, name)] if isinstance(value, list) else []


def test_polars_prunes_partitions_and_row_groups(lake: Path, capfd: pytest.CaptureFixture[str]) -> None:
    minutes = (pl.col("time") >= START) & (pl.col("time") < STOP)
    query = pl.scan_parquet(lake / "cpu", hive_partitioning=True).filter((pl.col("hour") == HOUR) & minutes)
    (files,) = re.findall(r"Parquet SCAN \[([^\]]*)\]", query.explain())
    assert files == str(*lake.glob(f"cpu/**/hour={HOUR:02}/*.parquet"))
    with pl.Config(verbose=True):
        table = query.sort("id").collect()
    assert table["id"].to_list() == EXPECTED
    assert "reading 2 / 5 row groups" in capfd.readouterr().err


WEATHER: list[dict[str, Any]] = [
    {"wind": 3, "wind_f64": None, "rain": None, "rain_str": None, "sky": None, "_rescued_data": None},
    {"wind": None, "wind_f64": 4.5, "rain": True, "rain_str": None, "sky": None, "_rescued_data": None},
    {
        "wind": None,
        "wind_f64": None,
        "rain": None,
        "rain_str": "heavy",
        "sky": "grey",
        "_rescued_data": '{"wind":["none"]}',
    },
]


def test_pyarrow_reads_columns_that_come_go_and_get_siblings(lake: Path) -> None:
    files = [str(path) for path in lake.glob("weather/**/*.parquet")]
    schema = pa.unify_schemas([pq.read_schema(path).remove_metadata() for path in files])  # no type differs
    table = pad.dataset(files, schema=schema).to_table().sort_by("time")
    assert table.select(list(WEATHER[0])).to_pylist() == WEATHER


def test_duckdb_reads_columns_that_come_go_and_get_siblings(lake: Path) -> None:
    with duckdb.connect() as connection:
        rows = connection.execute(
            f"SELECT {', '.join(WEATHER[0])} "
            f"FROM read_parquet('{lake}/weather/**/*.parquet', union_by_name = true) ORDER BY time"
        ).fetchall()
    assert [dict(zip(WEATHER[0], row, strict=True)) for row in rows] == WEATHER


def test_polars_reads_columns_that_come_go_and_get_siblings(lake: Path) -> None:
    files = [pl.scan_parquet(path, hive_partitioning=False) for path in lake.glob("weather/**/*.parquet")]
    table = pl.concat(files, how="diagonal").sort("time").collect()
    assert table.select(list(WEATHER[0])).to_dicts() == WEATHER


def test_the_role_of_a_column_is_in_its_metadata(lake: Path) -> None:
    schema = pq.read_schema(next(lake.glob("cpu/**/*.parquet")))
    roles = {field.name: field.metadata[b"arcpipe.role"] for field in schema}
    assert roles == {"time": b"time", "host": b"tag", "id": b"field", "usage": b"field"}
    assert (schema.metadata[b"arcpipe.database"], schema.metadata[b"arcpipe.measurement"]) == (b"default", b"cpu")
