"""The clients that people have: of InfluxDB 1, 2 and 3, and curl, as they are on PyPI and on a machine.

They are pointed at arcpipe and nothing else is changed; what they wrote is read back from the Parquet files.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from influxdb import InfluxDBClient as InfluxDBClient1
from influxdb.exceptions import InfluxDBClientError
from influxdb_client import InfluxDBClient as InfluxDBClient2
from influxdb_client import Point, WriteOptions, WritePrecision
from influxdb_client.client.write_api import SYNCHRONOUS
from influxdb_client.rest import ApiException
from influxdb_client_3 import InfluxDBClient3, InfluxDBError, write_client_options
from influxdb_client_3 import Point as Point3
from influxdb_client_3 import WriteOptions as WriteOptions3
from influxdb_client_3.exceptions import InfluxDBPartialWriteError
from influxdb_client_3.write_client.client.write_api import WriteType

from arcpipe import __version__
from tests.support import preloaded
from tests.support.lake import lake_types
from tests.support.program import environment
from tests.support.server import Server

# 2026-01-01T00:00:00.123456Z
TIME = datetime(2026, 1, 1, 0, 0, 0, 123456, UTC)
TIME_US = 1_767_225_600_123_456
FIELDS: dict[str, Any] = {"usage": 0.5, "whole": 1.0, "count": -7, "up": True, "note": 'a "b", c=d \\ é'}
TAGS = {"host": "web 1,a=b", "dc": "eu"}
ROW = {"time": TIME_US, **TAGS, **FIELDS}
TYPES = {
    "time": "TIMESTAMP WITH TIME ZONE",
    "dc": "VARCHAR",
    "host": "VARCHAR",
    "usage": "DOUBLE",
    "whole": "DOUBLE",
    "count": "BIGINT",
    "up": "BOOLEAN",
    "note": "VARCHAR",
}


def assert_written(server: Server, database: str) -> None:
    """ROW is in the lake, alone, with its types."""
    (row,) = server.wait_for_rows(1, database)
    assert row == ROW
    assert {name: type(value) for name, value in row.items()} == {name: type(value) for name, value in ROW.items()}
    assert lake_types(server.lake, database) == TYPES


# InfluxDB 1


@pytest.fixture(params=[False, True], ids=["plain", "gzip"])
def client1(request: pytest.FixtureRequest, server: Server) -> Iterator[InfluxDBClient1]:
    with InfluxDBClient1("127.0.0.1", server.port, "me", "secret", gzip=request.param) as client:
        yield client


def test_influxdb_1_writes_points(client1: InfluxDBClient1, server: Server, database: str) -> None:
    client1.create_database(database)
    client1.switch_database(database)
    assert client1.write_points(
        [{"measurement": "cpu", "tags": TAGS, "time": TIME, "fields": FIELDS}],
        time_precision="u",
        retention_policy="autogen",
        consistency="one",
    )
    assert_written(server, database)


def test_influxdb_1_writes_lines(server: Server, database: str) -> None:
    with InfluxDBClient1("127.0.0.1", server.port, database=database) as client:
        lines = [f"m v={number}i {number}" for number in range(5)]
        assert client.write_points(lines, time_precision="h", protocol="line", batch_size=2)
    rows = server.wait_for_rows(5, database)
    assert [(row["time"], row["v"]) for row in rows] == [(number * 3_600_000_000, number) for number in range(5)]


def test_influxdb_1_finds_what_it_looks_for_at_its_start(client1: InfluxDBClient1) -> None:
    assert client1.ping() == "1.8.10"
    assert client1.get_list_database() == []
    with pytest.raises(InfluxDBClientError, match="arcpipe answers no queries") as caught:
        client1.query("SELECT * FROM cpu")
    assert caught.value.code == 400


def test_influxdb_1_is_told_of_a_partial_write(server: Server, database: str) -> None:
    with InfluxDBClient1("127.0.0.1", server.port, database=database) as client:
        with pytest.raises(InfluxDBClientError, match=r"partial write: unable to parse 'bad': .* dropped=1") as caught:
            client.write(["m v=1", "bad"], {"db": database}, protocol="line")
        assert caught.value.code == 400
        with pytest.raises(InfluxDBClientError, match="is no database name"):
            client.write(["m v=1"], {"db": "a/b"}, protocol="line")
    assert [row["v"] for row in server.wait_for_rows(1, database)] == [1.0]


# InfluxDB 2


@pytest.fixture(params=[False, True], ids=["plain", "gzip"])
def client2(request: pytest.FixtureRequest, server: Server) -> Iterator[InfluxDBClient2]:
    with InfluxDBClient2(server.url, "secret", org="me", enable_gzip=request.param) as client:
        yield client


def point2() -> Point:
    return Point.from_dict({"measurement": "cpu", "tags": TAGS, "time": TIME, "fields": FIELDS}, WritePrecision.US)


def test_home_assistant_writes_to_its_default_bucket(client2: InfluxDBClient2, server: Server, database: str) -> None:
    """Its integration tries an empty body first, and takes a 400 for a server that works."""
    with client2.write_api(SYNCHRONOUS) as api:
        with pytest.raises(ApiException) as tried:
            api.write("Home Assistant", record=b"")
        assert tried.value.status == 400
        tags = {"domain": "sensor", "entity_id": database, "friendly_name": "Küche, Temperatur"}
        sent = {
            "measurement": f"°C {database}",
            "tags": tags,
            "time": TIME,
            "fields": {"value": 21.5, "state_str": 'ok \\ "gut"'},
        }
        api.write("Home Assistant", record=sent, write_precision=WritePrecision.US)
    (row,) = server.wait_for_rows(1, "Home%20Assistant", f"%C2%B0C%20{database}")
    assert row == {"time": TIME_US, **tags, "value": 21.5, "state_str": 'ok \\ "gut"'}


def test_influxdb_2_finds_its_bucket_and_organization(client2: InfluxDBClient2) -> None:
    bucket = client2.buckets_api().find_bucket_by_name("Home Assistant")
    assert (bucket.name, bucket.retention_rules) == ("Home Assistant", [])
    assert [each.name for each in client2.buckets_api().find_buckets_iter(name="a", limit=1)] == ["a"]
    (organization,) = client2.organizations_api().find_organizations(org="me")
    assert (organization.name, len(organization.id)) == ("me", 16)
    assert client2.buckets_api().find_buckets(name="a", org="me").buckets[0].org_id == organization.id


def test_influxdb_2_writes_at_once(client2: InfluxDBClient2, server: Server, database: str) -> None:
    with client2.write_api(SYNCHRONOUS) as api:
        api.write(database, record=point2(), write_precision=WritePrecision.US)
    assert_written(server, database)


def test_influxdb_2_writes_in_batches(client2: InfluxDBClient2, server: Server, database: str) -> None:
    failed: list[Any] = []
    options = WriteOptions(batch_size=300, flush_interval=100)
    with client2.write_api(options, error_callback=lambda *about: failed.append(about)) as api:
        for number in range(1000):
            record = Point("m").tag("host", f"web-{number % 3}").field("v", number).time(TIME_US + number, "us")
            api.write(f"{database}/autogen", record=record)
    assert not failed
    rows = server.wait_for_rows(1000, database)
    assert [(row["time"], row["v"], row["host"]) for row in rows] == [
        (TIME_US + number, number, f"web-{number % 3}") for number in range(1000)
    ]


@pytest.mark.parametrize("precision", [WritePrecision.S, WritePrecision.MS, WritePrecision.US, WritePrecision.NS])
def test_influxdb_2_writes_in_every_precision(server: Server, database: str, precision: WritePrecision) -> None:
    with InfluxDBClient2(server.url, "secret", org="me") as client, client.write_api(SYNCHRONOUS) as api:
        api.write(database, record=point2().time(TIME, precision))
    unit = {"s": 1_000_000, "ms": 1000, "us": 1, "ns": 1}[str(precision)]
    assert [row["time"] for row in server.wait_for_rows(1, database)] == [TIME_US // unit * unit]


def test_influxdb_2_finds_the_server_well(client2: InfluxDBClient2) -> None:
    assert client2.ping()
    assert client2.version() == "1.8.10"
    with pytest.warns(DeprecationWarning, match="ping"):
        health = client2.health()
    assert (health.name, health.status, health.version) == ("arcpipe", "pass", __version__)
    assert client2.ready().status == "ready"


def test_influxdb_2_is_told_of_a_partial_write(server: Server, database: str) -> None:
    with InfluxDBClient2(server.url, "secret", org="me") as client, client.write_api(SYNCHRONOUS) as api:
        with pytest.raises(ApiException) as partial:
            api.write(database, record="m v=1\nbad")
        with pytest.raises(ApiException) as bad_name:
            api.write("..", record="m v=1")
    assert partial.value.status == bad_name.value.status == 400
    assert partial.value.message.startswith("partial write: unable to parse 'bad': ")
    assert "is no database name" in bad_name.value.message
    assert [row["v"] for row in server.wait_for_rows(1, database)] == [1.0]


# InfluxDB 3


@pytest.mark.parametrize("gzip", [False, True], ids=["plain", "gzip"])
@pytest.mark.parametrize("v2", [False, True], ids=["v3 API", "v2 API"])
@pytest.mark.parametrize("kind", [WriteType.synchronous, WriteType.batching], ids=["at once", "in batches"])
def test_influxdb_3_writes(server: Server, database: str, kind: WriteType, v2: bool, gzip: bool) -> None:
    failed: list[Any] = []
    options = write_client_options(
        write_options=WriteOptions3(write_type=kind, flush_interval=100, use_v2_api=v2),
        error_callback=lambda *about: failed.append(about),
    )
    with InfluxDBClient3(
        server.url, token="secret", database=database, write_client_options=options, enable_gzip=gzip
    ) as client:
        record = Point3.from_dict({"measurement": "cpu", "tags": TAGS, "time": TIME, "fields": FIELDS})
        client.write(record)
    assert not failed
    assert_written(server, database)


@pytest.mark.parametrize("precision", ["s", "ms", "us", "ns"])
def test_influxdb_3_writes_in_every_precision(server: Server, database: str, precision: str) -> None:
    with InfluxDBClient3(server.url, token="secret", database=database) as client:
        client.write(Point3("m").field("v", 1).time(TIME, precision), write_precision=precision)
    unit = {"s": 1_000_000, "ms": 1000, "us": 1, "ns": 1}[precision]
    assert [row["time"] for row in server.wait_for_rows(1, database)] == [TIME_US // unit * unit]


def test_influxdb_3_is_told_each_line_of_a_partial_write(server: Server, database: str) -> None:
    options = write_client_options(write_options=WriteOptions3(write_type=WriteType.synchronous, use_v2_api=False))
    with InfluxDBClient3(server.url, token="secret", database=database, write_client_options=options) as client:
        with pytest.raises(InfluxDBPartialWriteError) as partial:
            client.write("m v=1\nbad\nm v=2\nm v=")
        with pytest.raises(InfluxDBPartialWriteError) as whole:
            client.write("m v=3\nbad", accept_partial=False)
        with pytest.raises(InfluxDBError, match="is no database name"):
            client.write("m v=3", database="a/b")
        assert client.get_server_version() == "1.8.10"
    assert [(line.line_number, line.original_line) for line in partial.value.line_errors] == [(2, "bad"), (4, "m v=")]
    assert [(line.line_number, line.original_line) for line in whole.value.line_errors] == [(2, "bad")]
    assert sorted(row["v"] for row in server.wait_for_rows(2, database)) == [1.0, 2.0]


# curl


def curl(*arguments: str) -> tuple[str, int]:
    """The body of the answer and its status."""
    done = subprocess.run(
        ["curl", "--silent", "--show-error", "--max-time", "20", "--write-out", "\n%{http_code}", *arguments],
        capture_output=True,
        text=True,
        check=True,
    )
    body, _, status = done.stdout.rpartition("\n")
    return body, int(status)


def test_curl_writes_lines_of_its_command_line_and_of_a_file(server: Server, database: str, tmp_path: Path) -> None:
    url = f"{server.url}/write?db={database}&precision=s"
    assert curl(url, "--data-binary", "m,host=a v=1 1\nm,host=b v=2 2") == ("", 204)
    lines = tmp_path / "lines"
    lines.write_text("m,host=c v=3 3\r\n# a comment\n\nm,host=d v=4 4\n")
    assert curl(url, "-XPOST", "--user", "me:secret", "--data-binary", f"@{lines}") == ("", 204)
    assert curl(url, "-XPOST", "--header", "Transfer-Encoding: chunked", "-T", str(lines)) == ("", 204)
    rows = server.wait_for_rows(6, database)
    assert [(row["host"], row["v"]) for row in rows] == [("a", 1), ("b", 2), *[("c", 3)] * 2, *[("d", 4)] * 2]


def test_curl_writes_what_gzip_made(server: Server, database: str, tmp_path: Path) -> None:
    lines = tmp_path / "lines"
    lines.write_text("".join(f"m v={number}i {number}\n" for number in range(1000)))
    subprocess.run(["gzip", str(lines)], check=True)
    url = f"{server.url}/api/v2/write?org=me&bucket={database}&precision=ms"
    headers = ["--header", "Content-Encoding: gzip", "--header", "Authorization: Token secret"]
    assert curl(url, *headers, "--data-binary", f"@{lines}.gz") == ("", 204)
    rows = server.wait_for_rows(1000, database)
    assert [(row["time"], row["v"]) for row in rows] == [(number * 1000, number) for number in range(1000)]


def test_curl_creates_a_database_and_pings(server: Server) -> None:
    assert curl(f"{server.url}/query", "--data-urlencode", "q=CREATE DATABASE mydb") == (
        '{"results":[{"statement_id":0}]}',
        200,
    )
    assert curl("--get", f"{server.url}/query", "--data-urlencode", "q=CREATE DATABASE mydb")[1] == 200
    assert curl("--head", f"{server.url}/ping")[1] == 204


# With tokens


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, str]]:
    """A server that asks for tokens, and one that may write to the database `ours`."""
    directory = tmp_path_factory.mktemp("guarded")
    tokens = {"auth_enabled": True, "auth_tokens_file": directory / "tokens.toml"}
    options = ("--scope", "write", "--database", "ours,our home", "--json")
    created = preloaded.run("token", "create", *options, environ=environment(**tokens), check=True)
    with Server(directory, server_workers=1, **tokens) as server:
        yield server, json.loads(created.stdout)["token"]
        server.stop()


def test_tokens_are_taken_where_each_client_puts_them(guarded: tuple[Server, str]) -> None:
    server, token = guarded
    with InfluxDBClient1("127.0.0.1", server.port, "anybody", token, "ours") as client1:
        client1.create_database("ours")
        client1.write_points([{"measurement": "m", "fields": {"v": 1}}])
    with InfluxDBClient2(server.url, token, org="me") as client2, client2.write_api(SYNCHRONOUS) as api:
        assert client2.ping()
        api.write("ours", record="m v=2i")
    for scheme in ("Token", "Bearer"):
        with InfluxDBClient3(server.url, token=token, database="ours", auth_scheme=scheme) as client3:
            client3.write("m v=3i")
    assert curl(f"{server.url}/write?db=ours&u=me&p={token}", "--data-binary", "m v=4i") == ("", 204)
    assert sorted(row["v"] for row in server.wait_for_rows(5, "ours")) == [1, 2, 3, 3, 4]


def test_the_buckets_of_a_token_are_those_that_it_may_write(guarded: tuple[Server, str]) -> None:
    server, token = guarded
    with InfluxDBClient2(server.url, token, org="me") as client:
        buckets = client.buckets_api()
        assert [bucket.name for bucket in buckets.find_buckets().buckets] == ["our home", "ours"]
        assert buckets.find_bucket_by_name("our home").name == "our home"
        with pytest.raises(ApiException) as refused:
            buckets.find_bucket_by_name("theirs")
        assert refused.value.status == 403
        with client.write_api(SYNCHRONOUS) as api:
            api.write("our home", record="m v=1")
            with pytest.raises(ApiException, match="this token is not for the database 'our'"):
                api.write("our", record="m v=1")
    assert len(server.wait_for_rows(1, "our%20home")) == 1
    with InfluxDBClient2(server.url, "wrong", org="me") as client, pytest.raises(ApiException) as unknown:
        client.organizations_api().find_organizations()
    assert unknown.value.status == 401


def test_clients_without_the_right_token_are_told_so(guarded: tuple[Server, str]) -> None:
    server, token = guarded
    with (
        InfluxDBClient1("127.0.0.1", server.port, "anybody", "wrong", "ours") as client1,
        pytest.raises(InfluxDBClientError, match="the token is not known here") as refused1,
    ):
        client1.write_points([{"measurement": "m", "fields": {"v": 1}}])
    assert refused1.value.code == 401
    for secret, bucket, status, reason in [
        ("wrong", "ours", 401, "the token is not known here"),
        (token, "theirs", 403, "this token is not for the database 'theirs'"),
    ]:
        with InfluxDBClient2(server.url, secret, org="me") as client2, client2.write_api(SYNCHRONOUS) as api:
            with pytest.raises(ApiException) as refused2:
                api.write(bucket, record="m v=1")
            assert (refused2.value.status, refused2.value.message) == (status, reason)
        with (
            InfluxDBClient3(server.url, token=secret, database=bucket) as client3,
            pytest.raises(InfluxDBError, match=reason),
        ):
            client3.write("m v=1")
    with (
        InfluxDBClient1("127.0.0.1", server.port, "anybody", token) as client1,
        pytest.raises(InfluxDBClientError, match="this token is not for the database 'theirs'"),
    ):
        client1.create_database("theirs")
