"""The main job: written over HTTP, read back with DuckDB from the store, equal in values, types and times."""

from __future__ import annotations

import math
import re
import struct
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any

import msgpack
import pytest

from tests.support.http import pack, request_bytes
from tests.support.lake import lake_files, lake_rows, lake_types
from tests.support.server import Server
from tests.support.stores import Store, local_store, s3_store
from tests.support.waiting import wait_until

US = 1_000_000
# 2026-01-01T00:00:00Z; a whole hour, and seconds that have 10 digits in every unit's range.
NEW_YEAR = 1_767_225_600
HOUR = 3600

V2 = "/write/v2/msgpack"
V1 = "/api/v1/write/msgpack"


@pytest.fixture(params=["local", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "local":
        return local_store(tmp_path)
    return s3_store(request.getfixturevalue("s3"), tmp_path)


class Database:
    """A database of its own on a server that all tests of the module share."""

    def __init__(self, server: Server, name: str) -> None:
        self._server = server
        self._name = name

    def write(self, value: Any) -> None:
        self._server.write(value, self._name)

    def post(self, body: bytes) -> None:
        assert self._server.post(V2, body, {"x-arc-database": self._name}).status == 202

    def rows(self, count: int, measurement: str = "*") -> list[dict[str, Any]]:
        """Wait for `count` rows; return all."""
        rows = self._server.wait_for_rows(count, self._name, measurement)
        assert len(rows) == count
        return rows

    def types(self) -> dict[str, str]:
        return lake_types(self._server.lake, self._name)

    def files(self) -> list[Path]:
        return lake_files(self._server.lake, self._name)


@pytest.fixture(scope="module")
def shared_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("shared"), server_workers=1) as server:
        yield server
        server.stop()
        server.assert_log_is_shipped()


@pytest.fixture
def database(shared_server: Server) -> Database:
    return Database(shared_server, f"test_{next(_numbers)}")


_numbers = count(1)


def test_every_shape_to_two_databases_comes_back_whole(tmp_path: Path, store: Store) -> None:
    """Columnar, rows, batch and arrays; int, float, string, boolean, binary and null; three hours, two workers."""
    expected: dict[str, list[dict[str, Any]]] = {"production": [], "staging": []}

    def row(number: int) -> dict[str, Any]:
        return {
            "time": (NEW_YEAR + number * 600) * US + number,
            "host": f"host-{number % 5}",
            "count": number * 1_000_000_007,
            "ratio": number / 7,
            "text": f"ü{number}" if number % 3 else None,
            "on": number % 2 == 0,
            "raw": bytes([number % 256, 0, 255]),
        }

    def as_row(values: dict[str, Any]) -> dict[str, Any]:
        fields = {name: values[name] for name in ("count", "ratio", "text", "on", "raw")}
        return {"m": "events", "t": values["time"], "h": values["host"], "fields": fields}

    def as_columnar(rows: list[dict[str, Any]]) -> dict[str, Any]:
        return {"m": "events", "columns": {name: [values[name] for values in rows] for name in rows[0]}}

    with Server(tmp_path, server_workers=2, **store.settings) as server:
        for number in range(0, 240, 12):
            rows = [row(number + index) for index in range(12)]
            bodies = [
                as_columnar(rows[:3]),
                as_row(rows[3]),
                {"batch": [as_row(rows[4]), as_columnar(rows[5:7]), as_row(rows[7])]},
                [as_columnar(rows[8:9]), as_row(rows[9]), as_columnar(rows[10:])],
            ]
            database = "production" if number % 24 else "staging"
            expected[database] += rows
            with server.client() as client:  # each on a connection of its own: the kernel spreads them over the workers
                for path, body in zip((V2, V1, V2, V1), bodies, strict=True):
                    response = client.request("POST", path, pack(body), {"x-arc-database": database})
                    assert response.status == (202 if path == V2 else 204)
        server.stop()
        server.assert_log_is_shipped()

    lake = store.read()
    for database, rows in expected.items():
        assert lake_rows(lake, database) == sorted(rows, key=lambda values: values["time"])
        assert lake_types(lake, database) == {
            "time": "TIMESTAMP WITH TIME ZONE",
            "host": "VARCHAR",
            "count": "BIGINT",
            "ratio": "DOUBLE",
            "text": "VARCHAR",
            "on": "BOOLEAN",
            "raw": "BLOB",
        }
    assert sorted(path.name for path in lake.iterdir() if not path.name.startswith(".")) == ["production", "staging"]


@pytest.mark.parametrize(
    ("layout", "folders"),
    [
        ("arc", ["2025/12/31/23", "2026/01/01/00"]),
        (
            "hive",
            [f"year={d[:4]}/month={d[5:7]}/day={d[8:10]}/hour={d[11:]}" for d in ("2025/12/31/23", "2026/01/01/00")],
        ),
    ],
)
def test_files_are_partitioned_by_database_measurement_and_utc_hour(
    tmp_path: Path, store: Store, layout: str, folders: list[str]
) -> None:
    with Server(tmp_path, server_workers=1, storage_layout=layout, **store.settings) as server:
        server.write({"m": "cpu", "columns": {"time": [NEW_YEAR - 1, NEW_YEAR], "n": [1, 2]}}, "db-1")
        server.write({"m": "disk /ä", "columns": {"time": [NEW_YEAR], "n": [3]}})
        server.stop()
        node = server.wal.joinpath("node.json").read_text()
    lake = store.read()
    keys = [path.relative_to(lake).as_posix() for path in lake_files(lake)]
    batch = r"[0-9a-f]{12}-\d{8}T\d{6}-1\.\d+-[0-9a-f]{8}"
    patterns = [
        rf"db-1/cpu/{folders[0]}/cpu_20251231T235959000000_{batch}_0\.parquet",
        rf"db-1/cpu/{folders[1]}/cpu_20260101T000000000000_{batch}_0\.parquet",
        rf"default/disk%20%2F%C3%A4/{folders[1]}/disk%20%2F%C3%A4_20260101T000000000000_{batch}_0\.parquet",
    ]
    assert len(keys) == len(patterns)
    for key, pattern in zip(keys, patterns, strict=True):
        assert re.fullmatch(pattern, key), key
    assert {re.search(r"[0-9a-f]{12}(?=-\d{8}T)", key)[0] for key in keys} == {re.search(r"[0-9a-f]{12}", node)[0]}  # type: ignore[index]
    assert [row["n"] for row in lake_rows(lake, "db-1")] == [1, 2]


# Times


@pytest.mark.parametrize(
    ("given", "expected_us"),
    [
        (NEW_YEAR, NEW_YEAR * US),
        (NEW_YEAR * 1000 + 123, NEW_YEAR * US + 123_000),
        (NEW_YEAR * US + 123_456, NEW_YEAR * US + 123_456),
        (NEW_YEAR * 1000 * US + 123_456_789, NEW_YEAR * US + 123_456),
        (NEW_YEAR + 0.25, NEW_YEAR * US + 250_000),
        (0, 0),
        (-1, -US),
        (-(NEW_YEAR * 1000), -NEW_YEAR * US),
        (99_999_999_999, 99_999_999_999 * US),
        (100_000_000_000, 100_000_000 * US),
        (datetime(2026, 1, 1, 0, 0, 0, 7, tzinfo=UTC), NEW_YEAR * US + 7),
    ],
    ids=["s", "ms", "us", "ns", "float seconds", "zero", "negative s", "negative ms", "last s", "first ms", "msgpack"],
)
def test_the_unit_of_a_time_is_read_from_its_size(database: Database, given: Any, expected_us: int) -> None:
    body = msgpack.packb({"m": "t", "columns": {"time": [given, given], "n": [1, 2]}}, datetime=True)
    database.post(body)
    database.post(msgpack.packb([{"m": "t", "t": given, "fields": {"n": 3}}], datetime=True))
    assert [row["time"] for row in database.rows(3)] == [expected_us] * 3


def test_units_may_be_mixed_in_one_column(database: Database) -> None:
    times = [NEW_YEAR, NEW_YEAR * 1000 + 1, NEW_YEAR * US + 2, NEW_YEAR * US * 1000 + 3000, NEW_YEAR + 0.5]
    database.write({"m": "t", "columns": {"time": times, "n": list(range(5))}})
    expected = {0: 0, 1: 1000, 2: 2, 3: 3, 4: 500_000}
    assert {row["n"]: row["time"] - NEW_YEAR * US for row in database.rows(5)} == expected


def test_a_missing_time_is_the_moment_of_the_write(database: Database) -> None:
    before = time.time_ns() // 1000
    database.write({"m": "t", "columns": {"n": [1, 2]}})
    database.write({"m": "t", "fields": {"n": 3}})
    database.write({"m": "t", "columns": {"time": [None, NEW_YEAR], "n": [4, 5]}})
    after = time.time_ns() // 1000
    times = {row["n"]: row["time"] for row in database.rows(5)}
    assert times.pop(5) == NEW_YEAR * US
    assert sorted(times) == [1, 2, 3, 4]
    assert all(before <= at <= after for at in times.values())
    assert times[1] == times[2]  # one entry, one moment


def test_a_missing_time_is_that_moment_in_reused_segments_too(tmp_path: Path) -> None:
    """A segment that is written over begins above its stale entries: that must not carry the clock away."""
    pad = [b"\0" * 30_000] * 30
    with Server(tmp_path, server_workers=1, wal_max_size_mb=1) as server, server.client() as client:
        moments = []
        for number in range(60):
            before = time.time_ns() // 1000
            body = pack({"m": "t", "columns": {"n": [number] * 30, "pad": pad}})
            assert client.request("POST", V2, body).status == 202
            moments.append((before, time.time_ns() // 1000))
            if number % 3 == 0:  # shipped, and so free to be written over
                wait_until(lambda: not server.segments(".wal.sealed"), "segments to be shipped")
        server.stop()
        times = {row["n"]: row["time"] for row in lake_rows(server.lake)}
    tolerance = US // 100
    late = {
        number: times[number] - after for number, (_, after) in enumerate(moments) if times[number] > after + tolerance
    }
    early = [number for number, (before, _) in enumerate(moments) if times[number] < before]
    assert (late, early) == ({}, [])


def test_a_missing_time_stays_the_same_when_the_log_is_replayed(tmp_path: Path) -> None:
    with Server(tmp_path, server_workers=1, flush_max_age_seconds=3600) as server:
        before = time.time_ns() // 1000
        server.write({"m": "t", "columns": {"n": [1]}})
        after = time.time_ns() // 1000
        server.kill_all()
        server.restart()
        server.stop()
        (row,) = lake_rows(server.lake)
        assert before <= row["time"] <= after


def test_nanoseconds_are_kept_when_the_setting_asks_for_it(tmp_path: Path) -> None:
    with Server(tmp_path, server_workers=1, parquet_keep_nanoseconds=True) as server:
        server.write({"m": "t", "columns": {"time": [NEW_YEAR * 1000 * US + 123_456_789], "n": [1]}})
        server.stop()
        (row,) = lake_rows(server.lake)
        assert row["time"] == NEW_YEAR * US + 123_456
        assert row["time_ns"] % 1000 == 789


# Values


@pytest.mark.smoke
def test_values_at_the_edges_of_their_types_come_back_equal(database: Database) -> None:
    columns: dict[str, list[Any]] = {
        "time": [NEW_YEAR + index for index in range(4)],
        "i": [-(1 << 63), (1 << 63) - 1, 0, None],
        "u": [(1 << 64) - 1, 1, None, 0],
        "f": [-0.0, 5e-324, 1.7976931348623157e308, None],
        "special": [math.inf, -math.inf, math.nan, 0.1],
        "s": ["", "\x00 \U0001f600\n", "x" * 70_000, None],
        "b": [b"", b"\xff\x00", b"y" * 70_000, None],
        "flag": [True, False, None, True],
        "none": [None, None, None, None],
    }
    database.write({"m": "edges", "columns": columns})
    rows = database.rows(4)
    got = {name: [row.get(name) for row in rows] for name in columns}
    nan: Any = got["special"].pop(2)
    expected = {**columns, "time": [at * US for at in columns["time"]], "special": [math.inf, -math.inf, 0.1]}
    assert got == {**expected, "u": [None, 1, None, 0]}
    assert [row["u_u64"] for row in rows] == [(1 << 64) - 1, None, None, None]
    assert math.isnan(nan)
    assert math.copysign(1, rows[0]["f"]) == -1
    types = database.types()
    assert [types[name] for name in ("i", "u", "u_u64", "f")] == ["BIGINT", "BIGINT", "DECIMAL(20,0)", "DOUBLE"]


def test_float32_comes_back_as_the_same_number(database: Database) -> None:
    number = struct.unpack(">f", struct.pack(">f", 0.1))[0]
    body = msgpack.packb({"m": "single", "columns": {"time": [NEW_YEAR], "f": [0.1]}}, use_single_float=True)
    database.post(body)
    assert [row["f"] for row in database.rows(1)] == [number]


def test_integers_and_floats_in_one_column_become_floats(database: Database) -> None:
    database.write({"m": "mixed", "columns": {"time": [NEW_YEAR, NEW_YEAR + 1, NEW_YEAR + 2], "v": [1, 2.5, -3]}})
    assert [row["v"] for row in database.rows(3)] == [1.0, 2.5, -3.0]
    assert database.types()["v"] == "DOUBLE"


def test_a_value_that_fits_no_column_is_kept_in_its_row(database: Database) -> None:
    database.write({"m": "odd", "columns": {"time": [NEW_YEAR, NEW_YEAR + 1, NEW_YEAR + 2], "v": [1.5, "odd", [2.5]]}})
    rows = database.rows(3)
    assert [row["v"] for row in rows] == [1.5, None, None]
    assert [row["v_str"] for row in rows] == [None, "odd", None]
    assert [row["_rescued_data"] for row in rows] == [None, None, '{"v":[2.5]}']


@pytest.mark.smoke
def test_rows_of_different_shapes_share_a_measurement(database: Database) -> None:
    database.write(
        {
            "batch": [
                {"m": "shapes", "t": NEW_YEAR, "fields": {"a": 1}},
                {"m": "shapes", "t": NEW_YEAR + 1, "fields": {"b": 2.5}, "tags": {"zone": "z"}},
                {"m": "shapes", "columns": {"time": [NEW_YEAR + 2], "a": [3], "c": [True]}},
                {"m": "others", "t": NEW_YEAR, "fields": {"a": "text"}},
            ]
        }
    )
    empty = {"a": None, "b": None, "c": None, "zone": None}
    assert database.rows(3, "shapes") == [
        {**empty, "time": NEW_YEAR * US, "a": 1},
        {**empty, "time": (NEW_YEAR + 1) * US, "b": 2.5, "zone": "z"},
        {**empty, "time": (NEW_YEAR + 2) * US, "a": 3, "c": True},
    ]
    assert database.rows(1, "others") == [{"time": NEW_YEAR * US, "a": "text"}]


def test_a_column_keeps_its_type_from_file_to_file_and_over_a_restart(tmp_path: Path) -> None:
    with Server(tmp_path, server_workers=1) as server:
        server.write({"m": "typed", "columns": {"time": [NEW_YEAR], "v": [0.5]}})
        server.wait_for_rows(1)
        server.write({"m": "typed", "columns": {"time": [NEW_YEAR + 1], "v": [7]}})
        server.wait_for_rows(2)
        server.stop()
        server.restart()
        server.write({"m": "typed", "columns": {"time": [NEW_YEAR + 2], "v": [8]}})
        server.stop()
        files = lake_files(server.lake)
        assert len(files) == 3
        assert [row["v"] for row in lake_rows(server.lake)] == [0.5, 7.0, 8.0]
        for file in files:
            assert lake_types(file.parent, ".", ".")["v"] == "DOUBLE"


def test_names_of_measurements_and_columns_may_be_anything_readable(database: Database) -> None:
    names = ["a b", "ä/ö", "..", "100%", "a=b", "'; DROP TABLE x", "é" * 128]
    for index, name in enumerate(names):
        database.write({"m": name, "columns": {"time": [NEW_YEAR + index], name: [index], "n": [index]}})
    rows = database.rows(len(names))
    assert [row["n"] for row in rows] == list(range(len(names)))
    assert [row[name] for row, name in zip(rows, names, strict=True)] == list(range(len(names)))
    # One folder below the database for each, whatever the name has in it.
    assert len({path.parents[4] for path in database.files()}) == len(names)
    assert len({path.parents[5] for path in database.files()}) == 1


def test_many_small_writes_become_few_files(tmp_path: Path) -> None:
    """Also what a body of several segments' size and a hundred measurements make of it."""
    with Server(tmp_path, server_workers=1, wal_max_size_mb=1, flush_max_age_seconds=300) as server:
        with server.client() as client:
            bodies = [
                pack({"m": f"m{number % 100}", "columns": {"time": [NEW_YEAR], "n": [number]}})
                for number in range(2000)
            ]
            client.send(b"".join(request_bytes("POST", V2, body) for body in bodies))
            assert {client.receive().status for _ in bodies} == {202}
            large = pack({"m": "large", "columns": {"time": [NEW_YEAR] * 40_000, "text": ["x" * 100] * 40_000}})
            assert client.request("POST", V2, large).status == 202
        server.stop()
        assert sorted(row["n"] for row in lake_rows(server.lake, "default", "m[0-9]*")) == list(range(2000))
        assert len(lake_rows(server.lake, "default", "large")) == 40_000
        assert len(lake_files(server.lake, "default", "m7")) <= 4
