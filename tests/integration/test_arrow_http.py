"""Arrow IPC streams and Parquet over real HTTP: kept as they came, and in the lake value for value."""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterator
from decimal import Decimal
from typing import Any
from urllib.parse import urlencode

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from arcpipe.wal import WALReader
from tests.support.http import Response
from tests.support.lake import lake_types
from tests.support.server import Server

STREAM = "application/vnd.apache.arrow.stream"
# 2026-01-01T00:00:00Z in µs
NEW_YEAR = 1_767_225_600_000_000
DAY = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("arrow"), server_workers=1) as server:
        yield server
        server.stop()


def stream(table: pa.Table, compression: str | None = None, rows: int | None = None) -> bytes:
    """Write a table as a stream, in batches of so many rows."""
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression=compression)
    with pa.ipc.new_stream(sink, table.schema, options=options) as writer:
        writer.write_table(table, max_chunksize=rows)
    written: bytes = sink.getvalue().to_pybytes()
    return written


def ingest(server: Server, database: str, body: bytes, **parameters: str) -> Response:
    query = urlencode({"db": database, **parameters})
    return server.post(f"/api/v1/ingest/m?{query}", body, {"Content-Type": STREAM})


def times(count: int) -> pa.Array:
    return pa.array(NEW_YEAR + np.arange(count), pa.timestamp("us", "UTC"))


@pytest.mark.parametrize("compression", [None, "lz4", "zstd"])
def test_a_stream_is_acknowledged_with_202_and_comes_out_of_the_lake(
    server: Server, database: str, compression: str | None
) -> None:
    hosts = [f"host-{number % 7}" for number in range(10_000)]
    values = [None if number % 5 == 0 else number / 3 for number in range(10_000)]
    table = pa.table(
        {
            "time": times(10_000),
            "host": pa.array(hosts).dictionary_encode(),
            "text": hosts,
            "f": values,
            "n": range(10_000),
            "b": [number % 2 == 0 for number in range(10_000)],
        }
    )
    for rows in (None, 999):
        answer = ingest(server, database, stream(table, compression, rows), tag_fields="host")
        assert (answer.status, answer.body) == (202, b"")
    rows_found = server.wait_for_rows(20_000, database)
    wanted = [row | {"time": NEW_YEAR + number} for number, row in enumerate(table.to_pylist())]
    assert rows_found[::2] == wanted
    assert rows_found[1::2] == wanted


TYPED: list[tuple[pa.DataType, Any, str, Any]] = [
    (pa.int8(), -5, "BIGINT", -5),
    (pa.uint32(), 1 << 31, "BIGINT", 1 << 31),
    (pa.uint64(), 7, "BIGINT", 7),
    (pa.float16(), np.float16(0.5), "DOUBLE", 0.5),
    (pa.float32(), 0.25, "DOUBLE", 0.25),
    (pa.bool_(), True, "BOOLEAN", True),
    (pa.string(), "é", "VARCHAR", "é"),
    (pa.large_string(), "x", "VARCHAR", "x"),
    (pa.string_view(), "a text of more than twelve bytes", "VARCHAR", "a text of more than twelve bytes"),
    (pa.dictionary(pa.int8(), pa.string()), "x", "VARCHAR", "x"),
    (pa.dictionary(pa.int8(), pa.int64()), 9, "BIGINT", 9),
    (pa.binary(), b"\xff", "BLOB", b"\xff"),
    (pa.binary(2), b"ab", "BLOB", b"ab"),
    (pa.timestamp("s"), datetime.datetime(2026, 1, 1), "TIMESTAMP WITH TIME ZONE", DAY),
    (pa.timestamp("ns", "Asia/Tokyo"), DAY, "TIMESTAMP WITH TIME ZONE", DAY),
    (pa.date32(), datetime.date(2026, 1, 1), "TIMESTAMP WITH TIME ZONE", DAY),
    (pa.duration("ms"), datetime.timedelta(seconds=2), "BIGINT", 2000),
    (pa.decimal128(10, 2), Decimal("1.50"), "VARCHAR", "1.50"),
    (pa.time64("us"), datetime.time(1, 2, 3), "VARCHAR", "01:02:03"),
]


def test_every_type_becomes_a_column(server: Server, database: str) -> None:
    columns = {f"c{at}": pa.array([value, None], type_) for at, (type_, value, _, _) in enumerate(TYPED)}
    assert ingest(server, database, stream(pa.table({"time": times(2), **columns}))).status == 202
    first, second = server.wait_for_rows(2, database)
    types = lake_types(server.lake, database)
    for at, (type_, _, name, value) in enumerate(TYPED):
        assert (types[f"c{at}"], first[f"c{at}"], second[f"c{at}"]) == (name, value, None), type_


def test_nested_values_are_rescued_and_misfits_have_siblings(server: Server, database: str) -> None:
    server.write({"m": "m", "columns": {"time": [NEW_YEAR], "v": [0.5], "s": ["x"]}}, database)
    server.wait_for_rows(1, database)
    table = pa.table(
        {
            "time": pa.array([NEW_YEAR + 1, NEW_YEAR + 2], pa.timestamp("us")),
            "v": pa.array([2**53 + 1, 3]),
            "s": [5, None],
            "nested": pa.array([{"a": [1, 2], "t": DAY}, None]),
            "big": pa.array([2**64 - 1, 1], pa.uint64()),
        }
    )
    assert ingest(server, database, stream(table)).status == 202
    _, first, second = server.wait_for_rows(3, database)
    assert (first["v"], first["v_i64"], first["s"], first["s_i64"]) == (None, 2**53 + 1, None, 5)
    assert (second["v"], second["v_i64"], second["big"]) == (3.0, None, 1)
    assert int(first["big_u64"]) == 2**64 - 1
    nested = json.loads(first["_rescued_data"])["nested"]
    assert nested["a"] == [1, 2]
    assert nested["t"].startswith("2026-01-01 00:00:00")


NS: int = 1_767_225_600_123_456_789


def test_values_that_python_does_not_hold_become_text(server: Server, database: str) -> None:
    """Nanoseconds and far years: the uploader has no pandas, and without it pyarrow gives no such values."""
    in_ns, zoned = pa.list_(pa.timestamp("ns")), pa.list_(pa.timestamp("ns", "Asia/Tokyo"))
    columns = {
        "at": pa.array([1, None], pa.time64("ns")),
        "list": pa.array([[NS, None], []], in_ns),
        "zoned": pa.array([[NS], None], zoned),
        "struct": pa.array([{"a": NS, "b": "x"}, None], pa.struct([("a", pa.timestamp("ns")), ("b", pa.string())])),
        "map": pa.array([[("k", NS)], []], pa.map_(pa.string(), pa.timestamp("ns"))),
        "fixed": pa.array([[NS, NS], None], pa.list_(pa.timestamp("ns"), 2)),
        "far": pa.array([[2**60], [0]], pa.list_(pa.timestamp("s"))),
        "day": pa.array([[2**31 - 1], None], pa.list_(pa.date32())),
        "span": pa.array([[2**62], None], pa.list_(pa.duration("s"))),
        "nowhere": pa.array([[0], None], pa.list_(pa.timestamp("s", "No/Where"))),
    }
    table = pa.table({"time": times(2), **columns})
    assert ingest(server, database, stream(table)).status == 202
    first, second = server.wait_for_rows(2, database)
    text = "2026-01-01 00:00:00.123456789"
    assert (first["at"], second["at"]) == ("00:00:00.000000001", None)
    assert json.loads(first["_rescued_data"]) == {
        "list": [text, None],
        "zoned": [f"{text}+00:00"],
        "struct": {"a": text, "b": "x"},
        "map": [["k", text]],
        "fixed": [text, text],
        "far": ["36534630048-05-13 13:56:16"],
        "day": ["5881580-07-11"],
        "span": [f"{2**62} seconds"],
        "nowhere": ["1970-01-01 00:00:00+00:00"],
    }
    assert json.loads(second["_rescued_data"]) == {"list": [], "map": [], "far": ["1970-01-01 00:00:00"]}


@pytest.mark.parametrize(
    ("array", "parameters"),
    [
        (pa.array([NEW_YEAR // 1_000_000], pa.timestamp("s")), {}),
        (pa.array([NEW_YEAR * 1000], pa.timestamp("ns", "UTC")), {}),
        (pa.array([datetime.date(2026, 1, 1)], pa.date32()), {}),
        (pa.array([datetime.date(2026, 1, 1)], pa.date64()), {}),
        (pa.array([NEW_YEAR // 1000]), {}),
        (pa.array([NEW_YEAR // 1000]), {"precision": "ms"}),
        (pa.array([NEW_YEAR / 1e6]), {}),
        (pa.array(["2026-01-01T00:00:00Z"]), {}),
        (pa.array(["2026-01-01"]).dictionary_encode(), {}),
    ],
    ids=lambda value: str(getattr(value, "type", "")),
)
def test_times_are_of_any_type(server: Server, database: str, array: pa.Array, parameters: dict[str, str]) -> None:
    table = pa.table({"ts": array, "n": [1], "time": ["kept"]})
    assert ingest(server, database, stream(table), time_field="ts", **parameters).status == 202
    assert server.wait_for_rows(1, database) == [{"time": NEW_YEAR, "n": 1, "time_field": "kept"}]


def test_a_row_without_a_time_has_that_of_its_arrival(server: Server, database: str) -> None:
    before = datetime.datetime.now(datetime.UTC).timestamp() * 1e6
    assert ingest(server, database, stream(pa.table({"n": [1]}))).status == 202
    nulls = pa.table({"time": pa.array([None, NEW_YEAR], pa.timestamp("us")), "n": [2, 3]})
    assert ingest(server, database, stream(nulls)).status == 202
    by_n = {row["n"]: row["time"] for row in server.wait_for_rows(3, database)}
    assert by_n[3] == NEW_YEAR
    assert min(by_n[1], by_n[2]) > before - 1e6


def test_streams_and_columns_of_messagepack_share_a_table(server: Server, database: str) -> None:
    for number in range(20):
        table = pa.table({"time": times(3), "n": [number] * 3, "s": ["a", "b", "a"]})
        assert ingest(server, database, stream(table)).status == 202
        server.write({"m": "m", "columns": {"time": [NEW_YEAR], "n": [number], "u": [True]}}, database)
    rows = server.wait_for_rows(80, database)
    assert sorted(row["n"] for row in rows) == sorted([*range(20)] * 4)


def test_the_wal_has_the_stream_as_it_came(server: Server, database: str, tmp_path: Any) -> None:
    with Server(tmp_path, server_workers=1, flush_max_age_seconds=60) as own:
        body = stream(pa.table({"time": times(2), "host": ["a", "b"], "n": [1, None]}))
        assert ingest(own, database, body, tag_fields="host").status == 202
        (segment,) = [path for path in own.wal.glob("worker-1-*.wal") if body in path.read_bytes()]
        own.kill_all()
        (batch,) = WALReader(segment).read_all()
        assert [(record["measurement"], record["_database"], record["n"]) for record in batch] == [
            ("m", database, 1),
            ("m", database, None),
        ]
        assert [record["time"] for record in batch] == [DAY, DAY + datetime.timedelta(microseconds=1)]
        own.restart()
        assert [row["n"] for row in own.wait_for_rows(2, database)] == [1, None]


def body_of(**columns: Any) -> bytes:
    return stream(pa.table(columns))


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"no arrow", "does not begin a message"),
        (b"ARROW1\0\0", "send the stream format"),
        (body_of(n=[1])[:-20], "damaged or cut"),
        (body_of(n=[1]) + b"x", "bytes follow the end"),
        (body_of(time=[True], n=[1]), "no type of a time"),
        (body_of(time=["soon"], n=[1]), "row 0 in record batch 0: text 'soon' is no ISO 8601 time"),
        (body_of(time=pa.array([1 << 60], pa.timestamp("s")), n=[1]), "is not of the years 1 to 9999"),
        (body_of(time=times(1)), "no field besides time"),
        (body_of(**{"": [1]}), "field name is empty"),
        (stream(pa.Table.from_arrays([pa.array([1]), pa.array([2])], ["n", "n"])), "is there twice"),
        (body_of(n=pa.array([1]), u=pa.RunEndEncodedArray.from_arrays([1], [5])), "which is not taken"),
    ],
)
def test_a_stream_that_cannot_be_converted_is_refused(server: Server, database: str, body: bytes, reason: str) -> None:
    answer = ingest(server, database, body)
    assert answer.status == 400
    assert reason in answer.reason


def test_a_stream_is_bounded_once_it_is_decompressed(tmp_path: Any) -> None:
    with Server(tmp_path, server_workers=1, server_max_body_mb=1) as server:
        zeros = stream(pa.table({"n": np.zeros(1_000_000)}), "zstd")
        assert len(zeros) < 100_000
        answer = ingest(server, "db", zeros)
        assert (answer.status, answer.json()["code"]) == (413, "body_too_large")
        text = pa.DictionaryArray.from_arrays(pa.array([0] * 1000, pa.int8()), ["x" * 10_000])
        answer = ingest(server, "db", stream(pa.table({"s": text})))
        assert answer.status == 413
        assert "without its dictionaries" in answer.reason
        server.stop()


def test_a_parquet_file_comes_out_of_the_lake(server: Server, database: str) -> None:
    table = pa.table({"ts": times(70_000), "host": ["a", "b"] * 35_000, "n": range(70_000), "l": [[1]] * 70_000})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", row_group_size=20_000)
    body = sink.getvalue().to_pybytes()
    headers = {"Content-Type": "application/vnd.apache.parquet"}
    query = f"db={database}&tag_fields=host&time_field=ts"
    assert server.post(f"/api/v1/ingest/m?{query}", body, headers).status == 202
    rows = server.wait_for_rows(70_000, database)
    assert [(row["time"] - NEW_YEAR, row["host"], row["n"]) for row in rows] == [
        (n, "ab"[n % 2], n) for n in range(70_000)
    ]
    assert {row["_rescued_data"] for row in rows} == {'{"l":[1]}'}
    answer = server.post("/api/v1/ingest/m", body[:-50], headers)
    assert answer.status == 400
    assert "no Parquet file" in answer.reason


@pytest.mark.parametrize("query", ["types=n:f64", "measurement_field=k"])
def test_parameters_that_mean_nothing_to_arrow_are_refused(server: Server, query: str) -> None:
    answer = server.post(f"/api/v1/ingest/m?{query}", b"", {"Content-Type": STREAM})
    assert answer.status == 400
    assert "not for Arrow" in answer.reason
