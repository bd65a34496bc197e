"""The paths of InfluxDB's clients over real HTTP: status codes and bodies of each generation, every parameter, types.

What is expected is what the servers of the three generations answer, as their clients take it apart.
"""

from __future__ import annotations

import json
import re
import select
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from arcpipe import __version__
from arcpipe.names import DATABASE_RULE
from tests.support.http import Client, Response, pack, request_bytes
from tests.support.lake import lake_files, lake_rows, lake_types
from tests.support.server import Server
from tests.support.waiting import wait_until

V1 = "/write"
V2 = "/api/v2/write"
V3 = "/api/v3/write_lp"
ARC = "/api/v1/write/line-protocol"
PATHS = (V1, V2, V3, ARC)

# 2026-01-01T00:00:00Z, which is a whole hour
NEW_YEAR = 1_767_225_600
GOOD = b"cpu,host=a usage=0.5 1767225600000000000"


def write(server: Server, path: str, database: str, body: bytes, **parameters: str) -> Response:
    """Writes as a client of the generation would, the database under the generation's name for it."""
    name = "bucket" if path == V2 else "db"
    return server.post(f"{path}?{urlencode({name: database, **parameters})}", body)


def refused(response: Response) -> str:
    """The reason of a 400 in the shape of the house, InfluxDB 2's included."""
    assert response.status == 400
    answer = response.json()
    if "message" in answer:
        assert answer == {"error": answer["error"], "message": answer["error"], "code": "invalid"}
    else:
        assert answer == {"error": answer["error"], "code": "bad_request"}
    return str(answer["error"])


# Good lines


@pytest.mark.parametrize("path", PATHS)
def test_lines_are_acknowledged_with_204_and_come_out_of_the_lake(server: Server, database: str, path: str) -> None:
    response = write(server, path, database, GOOD)
    assert response.headers.pop("date")
    version = {"x-influxdb-version": "1.8.10", "x-influxdb-build": "arcpipe"}
    assert (response.status, response.headers, response.body) == (204, version, b"")
    assert server.wait_for_rows(1, database) == [{"time": NEW_YEAR * 10**6, "host": "a", "usage": 0.5}]
    assert [file.parent.parts[-6:-4] for file in lake_files(server.lake, database)] == [(database, "cpu")]


@pytest.mark.parametrize("path", PATHS)
def test_values_keep_their_type_and_tags_are_marked(server: Server, database: str, path: str) -> None:
    line = (
        b"types,dc=eu,host=a whole=1,fraction=1.5,exponent=1e3,"
        b"int=-9223372036854775808i,unsigned=18446744073709551615u,small=1u,yes=t,no=FALSE,"
        b'text="a, b=\\"c\\"",number="1" 1767225600000000000\n'
    )
    assert write(server, path, database, line * 2).status == 204
    (row, _) = server.wait_for_rows(2, database)
    assert row == {
        "time": NEW_YEAR * 10**6,
        "dc": "eu",
        "host": "a",
        "whole": 1.0,
        "fraction": 1.5,
        "exponent": 1000.0,
        "int": -(2**63),
        "unsigned": None,
        "unsigned_u64": Decimal(2**64 - 1),
        "small": 1,
        "yes": True,
        "no": False,
        "text": 'a, b="c"',
        "number": "1",
    }
    assert {name: type(row[name]) for name in ("whole", "int", "yes")} == {"whole": float, "int": int, "yes": bool}
    assert lake_types(server.lake, database) == {
        "time": "TIMESTAMP WITH TIME ZONE",
        **dict.fromkeys(("dc", "host", "text", "number"), "VARCHAR"),
        **dict.fromkeys(("whole", "fraction", "exponent"), "DOUBLE"),
        **dict.fromkeys(("int", "unsigned", "small"), "BIGINT"),
        "unsigned_u64": "DECIMAL(20,0)",
        **dict.fromkeys(("yes", "no"), "BOOLEAN"),
    }
    schema = pq.read_schema(lake_files(server.lake, database)[0])
    roles = {field.name: field.metadata[b"arcpipe.role"] for field in schema}
    assert [name for name, role in roles.items() if role == b"tag"] == ["dc", "host"]
    assert roles["time"] == b"time"
    assert {roles[name] for name in roles if name not in ("time", "dc", "host")} == {b"field"}
    # Not the same as a column of floats that happen to be whole: that would be read back as one of integers.
    assert schema.field("whole").type == pa.float64()


def test_a_tag_and_a_field_of_one_name_are_both_kept(server: Server, database: str) -> None:
    assert write(server, V1, database, b'm,host=tag,dc=eu host="field",v=1 1').status == 204
    (row,) = server.wait_for_rows(1, database)
    assert row == {"time": 0, "dc": "eu", "host": "tag", "host_field": "field", "v": 1.0}


def test_a_type_holds_from_request_to_request(server: Server, database: str) -> None:
    for value in (b"1", b"2.5", b"3"):
        assert write(server, V1, database, b"m v=%b" % value).status == 204
        server.wait_for_rows(1, database)
    assert sorted(row["v"] for row in server.wait_for_rows(3, database)) == [1.0, 2.5, 3.0]
    assert lake_types(server.lake, database)["v"] == "DOUBLE"


def test_lines_without_a_time_have_that_of_their_acceptance(server: Server, database: str) -> None:
    before = server.wal.stat()
    assert write(server, V1, database, b"m v=1\nm v=2").status == 204
    first, second = server.wait_for_rows(2, database)
    assert first["time"] == second["time"] > before.st_ctime * 1e6


# Precisions


@pytest.mark.parametrize("path", PATHS)
def test_every_precision(server: Server, database: str, path: str) -> None:
    for words, per_second in [
        (("ns", "n", "nanosecond"), 10**9),
        (("us", "u", "µs", "µ", "microsecond"), 10**6),
        (("ms", "millisecond"), 10**3),
        (("s", "second"), 1),
    ]:
        # Times in the year 1970 too, whose unit no size tells.
        body = b"m v=1 %d\nm v=2 %d" % (NEW_YEAR * per_second, 7 * per_second)
        for word in words:
            assert write(server, path, database, body, precision=word).status == 204
    rows = server.wait_for_rows(24, database)
    assert [row["time"] for row in rows] == [7 * 10**6] * 12 + [NEW_YEAR * 10**6] * 12


@pytest.mark.parametrize(("precision", "seconds"), [("m", 60), ("h", 3600)])
def test_minutes_and_hours(server: Server, database: str, precision: str, seconds: int) -> None:
    assert write(server, V1, database, b"m v=1 %d\nm v=2 -1" % (NEW_YEAR // seconds), precision=precision).status == 204
    assert [row["time"] for row in server.wait_for_rows(2, database)] == [-seconds * 10**6, NEW_YEAR * 10**6]


@pytest.mark.parametrize("path", [V1, V2, ARC])
def test_a_time_is_in_nanoseconds_where_nothing_says_otherwise(server: Server, database: str, path: str) -> None:
    assert write(server, path, database, b"m v=1 %d" % NEW_YEAR, precision="").status == 204
    assert [row["time"] for row in server.wait_for_rows(1, database)] == [NEW_YEAR // 1000]


@pytest.mark.parametrize(("path", "parameters"), [(V3, {}), (V3, {"precision": "auto"}), (V1, {"precision": "auto"})])
def test_auto_reads_the_unit_from_the_size(
    server: Server, database: str, path: str, parameters: dict[str, str]
) -> None:
    body = b"".join(b"m v=1 %d\n" % ((NEW_YEAR + power) * 10**power) for power in (0, 3, 6, 9))
    assert write(server, path, database, body, **parameters).status == 204
    times = [row["time"] - NEW_YEAR * 10**6 for row in server.wait_for_rows(4, database)]
    assert times == [0, 3 * 10**6, 6 * 10**6, 9 * 10**6]


@pytest.mark.parametrize(("path", "word"), [(V1, "s"), (V2, "s"), (ARC, "s"), (V3, "second")])
def test_a_time_of_another_precision_makes_its_line_bad(server: Server, database: str, path: str, word: str) -> None:
    body = b"m v=1 %d\nm v=2 %d" % (NEW_YEAR * 1000, NEW_YEAR)
    response = write(server, path, database, body, precision=word)
    assert response.status == 400
    reason = f"timestamp '{NEW_YEAR}000' is out of the range of precision=s (use precision=ms?) at column 7"
    assert reason in response.body.decode()
    assert [row["time"] for row in server.wait_for_rows(1, database)] == [NEW_YEAR * 10**6]


@pytest.mark.parametrize(("path", "value"), [(V1, r"C:\\ x"), (V2, r"C:\\ x"), (ARC, r"C:\\ x"), (V3, r"C:\ x")])
def test_backslashes_are_those_of_the_generation(server: Server, database: str, path: str, value: str) -> None:
    assert write(server, path, database, rb"m,path=C:\\\ x v=1").status == 204
    assert [row["path"] for row in server.wait_for_rows(1, database)] == [value]


def test_arc_reads_the_size_of_a_time_with_borders_of_its_own(server: Server, database: str) -> None:
    body = pack({"m": "m", "columns": {"time": [20_000_000_000], "v": [1]}})
    assert server.post(f"/api/v1/write/msgpack?db={database}", body).status == 204
    assert server.post(f"/write/v2/msgpack?db={database}", body).status == 202
    assert [row["time"] for row in server.wait_for_rows(2, database)] == [20_000_000_000_000, 20_000_000_000_000_000]


def test_messagepack_takes_a_precision_too(server: Server, database: str) -> None:
    body = pack({"m": "m", "columns": {"time": [7, NEW_YEAR * 1000], "v": [1, 2]}})
    assert server.post(f"/write/v2/msgpack?db={database}&precision=ms", body).status == 202
    assert [row["time"] for row in server.wait_for_rows(2, database)] == [7000, NEW_YEAR * 10**6]


@pytest.mark.parametrize("path", [*PATHS, "/write/v2/msgpack"])
@pytest.mark.parametrize("precision", ["sec", "NS", "1", "ns ", "minute"])
def test_a_precision_that_there_is_not_is_400(server: Server, path: str, precision: str) -> None:
    reason = refused(server.post(f"{path}?precision={quote(precision)}", GOOD))
    assert reason.startswith(f"query parameter 'precision': {precision!r} is not one of ns, ")


# Which database


@pytest.mark.parametrize(
    ("query", "written_to"),
    [
        ("db={}", "{}"),
        ("bucket={}", "{}"),
        ("bucket={}/autogen&org=me", "{}"),
        ("bucket={}%2Fautogen&orgID=0123456789abcdef", "{}"),
        ("db={}&rp=autogen&consistency=all&u=me&p=secret", "{}"),
        ("db={}&bucket=other", "{}"),
        ("no_sync=true&db={}&accept_partial=TRUE", "{}"),
        ("future=1&db={}", "{}"),
    ],
)
def test_the_database_by_any_of_its_names(server: Server, database: str, query: str, written_to: str) -> None:
    for path in PATHS:
        assert server.post(f"{path}?{query.format(database)}", GOOD).status == 204
    assert len(server.wait_for_rows(4, written_to.format(database))) == 4


def test_the_header_wins_and_without_any_name_it_is_default(server: Server, database: str) -> None:
    assert server.post(f"{V1}?db=other", GOOD, {"x-arc-database": database}).status == 204
    assert server.post(V1, b"only_here v=1").status == 204
    assert len(server.wait_for_rows(1, database)) == 1
    assert len(server.wait_for_rows(1, "default", "only_here")) == 1


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("name", ["", ".", "..", "a\nb", "a\x7fb", "é" * 65, "../etc", "/autogen"])
def test_a_name_that_no_database_may_have_is_400(server: Server, path: str, name: str) -> None:
    reason = refused(write(server, path, name, GOOD))
    assert reason.endswith(f"is no database name; {DATABASE_RULE}")
    assert reason.startswith(f"query parameter '{'bucket' if path == V2 else 'db'}': ")


def test_a_database_in_a_header_is_utf_8(server: Server) -> None:
    with server.client() as client:
        for value, status in (("Küche".encode(), 204), ("Küche".encode("latin-1"), 400)):
            head = b"POST /write HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\nx-arc-database: %b\r\n\r\n"
            client.send(head % (len(GOOD), value) + GOOD)
            response = client.receive()
            assert response.status == status
    assert refused(response) == r"header 'x-arc-database': 'K\xfcche' is not UTF-8"
    assert len(server.wait_for_rows(1, "K%C3%BCche")) == 1


@pytest.mark.parametrize("path", PATHS)
def test_a_name_with_blanks_is_a_database(server: Server, database: str, path: str) -> None:
    retention = "/autogen" if path == V2 else ""
    assert write(server, path, f"{database} Living Room{retention}", GOOD).status == 204
    assert len(server.wait_for_rows(1, f"{database}%20Living%20Room")) == 1


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("query", ["db=a&db=b", "db=%ff", "precision=s&precision=s", "&".join(["a=1"] * 40)])
def test_a_query_that_makes_no_sense_is_400(server: Server, path: str, query: str) -> None:
    refused(server.post(f"{path}?{query}", GOOD))


def test_thousands_of_different_queries_are_all_served(client: Client, server: Server, database: str) -> None:
    client.send(b"".join(request_bytes("POST", f"{V1}?db={database}&n={number}", b"m v=1") for number in range(1100)))
    assert [client.receive().status for _ in range(1100)] == [204] * 1100
    assert len(server.wait_for_rows(1100, database)) == 1100


# Bad lines

MIXED = b"m v=1 1\nno_fields\n\n# comment\nm v=2 2\nm v=oops 3\nm v=4 4"


def reasons(text: str) -> list[tuple[str, int]]:
    """(line, its number) of a text in InfluxDB 1's words, each of which has a reason."""
    found = re.findall(r"unable to parse '(.*)': \S.* \(line (\d+)\)", text)
    return [(line, int(number)) for line, number in found]


@pytest.mark.parametrize("path", [V1, ARC])
def test_a_partial_write_of_influxdb_1(server: Server, database: str, path: str) -> None:
    response = write(server, path, database, MIXED)
    text = response.json()["error"]
    assert response.status == 400
    assert text.startswith("partial write: unable to parse 'no_fields': ")
    assert text.endswith(" dropped=2")
    assert reasons(text) == [("no_fields", 2), ("m v=oops 3", 6)]
    assert [row["v"] for row in server.wait_for_rows(3, database)] == [1.0, 2.0, 4.0]


def test_a_partial_write_of_influxdb_2(server: Server, database: str) -> None:
    response = write(server, V2, database, MIXED)
    answer = response.json()
    assert response.status == 400
    assert answer == {"code": "invalid", "message": answer["message"], "error": answer["message"], "line": 2}
    assert answer["message"].startswith("partial write: ")
    assert reasons(answer["message"]) == [("no_fields", 2), ("m v=oops 3", 6)]
    assert [row["v"] for row in server.wait_for_rows(3, database)] == [1.0, 2.0, 4.0]


def test_a_partial_write_of_influxdb_3(server: Server, database: str) -> None:
    response = write(server, V3, database, MIXED)
    answer = response.json()
    assert (response.status, answer["error"]) == (400, "partial write of line protocol occurred")
    assert all(each.pop("error_message") for each in answer["data"])
    assert answer["data"] == [
        {"line_number": 2, "original_line": "no_fields"},
        {"line_number": 6, "original_line": "m v=oops 3"},
    ]
    assert [row["v"] for row in server.wait_for_rows(3, database)] == [1.0, 2.0, 4.0]


def test_nothing_is_written_of_a_partial_write_that_is_not_accepted(server: Server, database: str) -> None:
    response = write(server, V3, database, MIXED, accept_partial="false")
    answer = response.json()
    assert (response.status, answer["error"]) == (400, "parsing failed for write_lp endpoint")
    assert answer["data"].pop("error_message")
    assert answer["data"] == {"line_number": 2, "original_line": "no_fields"}
    assert write(server, V1, database, MIXED, accept_partial="false").json()["error"].startswith("unable to parse ")
    assert write(server, V3, database, b"m v=7", accept_partial="false").status == 204
    assert [row["v"] for row in server.wait_for_rows(1, database)] == [7.0]


def test_accept_partial_is_true_or_false(server: Server) -> None:
    assert "accept_partial" in refused(server.post(f"{V3}?accept_partial=maybe", GOOD))


def test_the_good_lines_of_a_partial_write_survive_a_crash(tmp_path_factory: pytest.TempPathFactory) -> None:
    with Server(tmp_path_factory.mktemp("crash"), server_workers=1, flush_max_age_seconds=60) as server:
        assert [write(server, path, "kept", MIXED).status for path in PATHS] == [400] * 4
        server.kill_all()
        server.restart()
        assert len(server.wait_for_rows(12, "kept")) == 12
        server.stop()


@pytest.mark.parametrize("path", PATHS)
def test_a_body_of_bad_lines_alone_is_400_and_writes_nothing(server: Server, database: str, path: str) -> None:
    response = write(server, path, database, b"bad\nm v=x")
    answer = response.json()
    assert response.status == 400
    if path == V3:
        assert [each["line_number"] for each in answer["data"]] == [1, 2]
    else:
        assert answer["error"].startswith("unable to parse 'bad': ")
        assert [number for _, number in reasons(answer["error"])] == [1, 2]
    assert write(server, path, database, b"m v=7").status == 204
    assert [row["v"] for row in server.wait_for_rows(1, database)] == [7.0]


def test_of_many_bad_lines_a_hundred_are_told_and_the_others_counted(server: Server, database: str) -> None:
    body = b"m v=1 1\n" + b"bad\n" * 1000
    told = write(server, V1, database, body).json()["error"]
    assert told.endswith("\nand 900 more lines dropped=1000")
    assert [number for _, number in reasons(told)] == list(range(2, 102))
    assert len(write(server, V3, database, body).json()["data"]) == 100


@pytest.mark.parametrize(
    ("path", "empty", "no_lines"),
    [
        (V1, None, None),
        (ARC, None, None),
        (V2, "writing requires points", None),
        (V3, "incoming write was empty", "incoming write was empty"),
    ],
)
def test_a_body_without_a_line(server: Server, path: str, empty: str | None, no_lines: str | None) -> None:
    for body, reason in [(b"", empty), (b"\n", no_lines), (b"# comment\n\n  \r\n", no_lines)]:
        response = server.post(path, body)
        if reason is None:
            assert (response.status, response.body) == (204, b"")
        else:
            assert refused(response) == reason


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    "body",
    [
        b"\0",
        b"\xff\xfe v=1",
        b'm v="\xff"',
        b"m,\xc3=\xc3 v=1",
        b'm v="' + b"x" * 100_000,
        b"," * 100_000,
        b"\\" * 9999,
    ],
    ids=["NUL", "BOM", "string", "tag", "unclosed", "commas", "backslashes"],
)
def test_bytes_that_are_no_lines_are_400_with_valid_json(server: Server, path: str, body: bytes) -> None:
    response = server.post(path, body)
    assert response.status == 400
    assert len(response.body) < 4096
    json.loads(response.body)


LINES = b"m v=1\n" + (b"b" * 40 + b"\n") * 200_000  # no more bad ones than its size allows
ROWS = pack([{"m": "m", "fields": {"v": 1}}] * 300_000 + [{"m": "m"}])


@pytest.mark.parametrize(
    ("path", "body", "reason"), [(V1, LINES, "partial write: "), ("/write/v2/msgpack", ROWS, "element 300000")]
)
def test_a_body_that_takes_long_holds_up_nobody_else(
    client: Client, server: Server, database: str, path: str, body: bytes, reason: str
) -> None:
    """Of one worker; in the loop itself, the others would have their answers when this one has."""
    with server.client() as patient:
        patient.send(request_bytes("POST", f"{path}?db={database}", body))
        others = 0
        while not select.select([patient.socket], [], [], 0)[0]:
            assert client.request("GET", "/health").status == 200
            others += 1
        response = patient.receive()
    assert response.status == 400
    assert reason in response.json()["error"]
    assert others >= 20
    if path == V1:
        assert len(server.wait_for_rows(1, database)) == 1


def test_small_requests_behind_a_large_one_are_answered_in_order(client: Client, server: Server, database: str) -> None:
    large = b"m v=1\n" * 100_000
    path = f"{V2}?bucket={database}"
    client.send(request_bytes("POST", path, large) + request_bytes("GET", "/ping") + request_bytes("POST", path, b"x"))
    assert [client.receive().status for _ in range(3)] == [204, 204, 400]
    assert len(server.wait_for_rows(100_000, database)) == 100_000


@pytest.mark.parametrize("path", PATHS)
def test_the_reason_of_a_refusal_is_in_a_header_too(server: Server, database: str, path: str) -> None:
    response = write(server, path, database, "cpu usage=0.5\nschön\nbad,,line\n".encode())
    assert (response.status, response.headers["x-influxdb-version"]) == (400, "1.8.10")
    reason = response.headers["x-influxdb-error"]
    body = response.json()["error"]
    if "\n" in body:
        assert "unable to parse 'sch n'" in reason  # one line, and ASCII
        assert "(line 3)" in reason
    else:
        assert reason == body
    long = write(server, path, database, b"cpu usage=0.5\n" + b"bad " * 400)
    assert len(long.headers["x-influxdb-error"]) <= 500


def test_answers_that_are_no_write_tell_the_version_too(client: Client) -> None:
    for method, path, status in (
        ("POST", "/query?q=CREATE%20DATABASE%20x", 200),
        ("POST", "/query?q=DROP%20DATABASE%20x", 400),
        ("GET", "/ping?verbose=1&verbose=1", 400),
        ("GET", "/write", 405),
    ):
        response = client.request(method, path)
        assert (response.status, response.headers["x-influxdb-version"]) == (status, "1.8.10")
        assert response.headers.get("x-influxdb-error", "") == ("" if status == 200 else response.json()["error"])


# What surrounds them


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_ping_tells_a_version(client: Client, method: str) -> None:
    for query in ("", "?verbose=false", "?verbose=0"):
        response = client.request(method, f"/ping{query}")
        assert (response.status, response.body) == (204, b"")
        assert response.headers.pop("date")
        assert response.headers == {"x-influxdb-version": "1.8.10", "x-influxdb-build": "arcpipe"}


def test_a_verbose_ping_has_the_version_in_its_body(server: Server) -> None:
    response = server.get("/ping?verbose=true")
    assert (response.status, response.json()) == (200, {"version": "1.8.10"})
    assert response.headers["x-influxdb-version"] == "1.8.10"


def test_health_passes(server: Server) -> None:
    answer = server.get("/health").json()
    assert (answer["name"], answer["status"], answer["version"]) == ("arcpipe", "pass", __version__)


FORM = {"content-type": "application/x-www-form-urlencoded; charset=utf-8"}


def ask(server: Server, text: str) -> list[Response]:
    """The same query in every way in which it is sent."""
    encoded = urlencode({"q": text})
    return [
        server.get(f"/query?{encoded}"),
        server.post(f"/query?{encoded}"),
        server.post(f"/query?db=x&{encoded}", b"ignored", {"content-type": "text/plain"}),
        server.post("/query", encoded.encode(), FORM),
        server.post("/query?q=SELECT+1&u=me", encoded.encode(), FORM),
    ]


@pytest.mark.parametrize(
    "text",
    [
        'CREATE DATABASE "telegraf"',
        "CREATE DATABASE telegraf",
        "create\n database\ttelegraf ;",
        'CREATE DATABASE IF NOT EXISTS "telegraf"',
        'CREATE DATABASE "telegraf" WITH DURATION 3d REPLICATION 1 SHARD DURATION 1h NAME "a;b"',
    ],
)
def test_create_database_succeeds(server: Server, text: str) -> None:
    for response in ask(server, text):
        assert (response.status, response.json()) == (200, {"results": [{"statement_id": 0}]})


def test_several_statements_have_a_result_each(server: Server) -> None:
    for response in ask(server, 'CREATE DATABASE a; SHOW DATABASES;CREATE DATABASE "b/c";CREATE DATABASE "b c"'):
        first, second, third, fourth = response.json()["results"]
        assert first == {"statement_id": 0}
        assert second == {"statement_id": 1, "series": [{"name": "databases", "columns": ["name"]}]}
        assert third == {
            "statement_id": 2,
            "error": f"CREATE DATABASE: 'b/c' is no database name; {DATABASE_RULE}",
        }
        assert fourth == {"statement_id": 3}


@pytest.mark.parametrize(
    "text", ["SELECT * FROM cpu", "DROP DATABASE a", "CREATE DATABASE", "CREATE DATABASE a b", 'CREATE DATABASE "a']
)
def test_other_queries_are_400_and_say_why(server: Server, text: str) -> None:
    for response in ask(server, text):
        assert refused(response) == (
            "error parsing query: arcpipe answers no queries; it knows CREATE DATABASE and SHOW DATABASES"
        )


def test_a_query_without_a_query_is_400(server: Server) -> None:
    for response in (server.get("/query"), server.post("/query?q="), server.post("/query", b"db=x", FORM)):
        assert refused(response) == 'missing required parameter "q"'


def test_a_query_of_any_length_is_answered_at_once(server: Server) -> None:
    hostile = b"q=CREATE+DATABASE+a+WITH" + b"+" * 60_000 + b"%22"
    assert server.post("/query", hostile, FORM).status == 400
    assert "65536" in refused(server.post("/query", b"q=" + b"x" * 70_000, FORM))


@pytest.mark.parametrize("path", [*PATHS, "/ping", "/query"])
def test_wrong_methods_are_405(server: Server, path: str) -> None:
    with server.client() as client:
        response = client.request("DELETE", path)
    assert response.status == 405
    assert response.headers["allow"] == {"/ping": "GET, HEAD", "/query": "GET, HEAD, POST"}.get(path, "POST")


def test_whatever_refuses_a_write_of_influxdb_2_does_so_in_its_shape(client: Client) -> None:
    for headers, status, code in [
        ({"content-encoding": "br"}, 415, "unsupported media type"),
        ({"content-encoding": "gzip"}, 400, "invalid"),
    ]:
        response = client.request("POST", V2, GOOD, headers)
        answer = response.json()
        assert (response.status, answer["code"], answer["message"]) == (status, code, answer["error"])


@pytest.mark.parametrize(("path", "code"), [(V1, "backlog"), (V2, "unavailable"), (V3, "backlog"), (ARC, "backlog")])
def test_a_full_backlog_is_503_in_the_words_of_the_generation(full: Server, path: str, code: str) -> None:
    response = full.post(path, GOOD)
    answer = response.json()
    assert (response.status, response.headers["retry-after"], answer["code"]) == (503, "10", code)
    assert answer.get("message", answer["error"]) == answer["error"]
    assert ("message" in answer) is (path == V2)


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose uploads go nowhere, and that has more to upload than it may."""
    directory = tmp_path_factory.mktemp("full")
    (directory / "lake").write_text("a file where the lake should be")
    with Server(directory, server_workers=1, wal_max_size_mb=1, wal_max_backlog_mb=1) as server:
        body = b"\n".join(b'm v="%b"' % (b"x" * 1000) for _ in range(1000))

        def is_full() -> bool:
            return server.post(V1, body).status == 503

        wait_until(is_full, "a full backlog")
        yield server


# As clients of InfluxDB 2 ask before they write


def test_the_bucket_that_is_asked_for_is_there(server: Server) -> None:
    response = server.get("/api/v2/buckets?name=Home+Assistant&org=me&limit=10")
    assert (response.status, response.headers["x-influxdb-version"]) == (200, "1.8.10")
    (bucket,) = response.json()["buckets"]
    (organization,) = server.get("/api/v2/orgs?org=me").json()["orgs"]
    assert (bucket["name"], bucket["retentionRules"], bucket["type"]) == ("Home Assistant", [], "user")
    assert re.fullmatch("[0-9a-f]{16}", bucket["id"])
    assert (organization["name"], organization["id"]) == ("me", bucket["orgID"])
    assert server.post(bucket["links"]["write"], b"asked v=1").status == 204
    assert len(server.wait_for_rows(1, "Home%20Assistant", "asked")) == 1


def test_what_is_asked_for_by_id_has_this_id(server: Server) -> None:
    """A write takes the id for a name, too."""
    given = "0123456789abcdef"
    (bucket,) = server.get(f"/api/v2/buckets?id={given}&orgID=fedcba9876543210").json()["buckets"]
    assert (bucket["id"], bucket["name"], bucket["orgID"]) == (given, given, "fedcba9876543210")
    (organization,) = server.get(f"/api/v2/orgs?orgID={given}").json()["orgs"]
    assert (organization["id"], organization["name"]) == (given, given)
    assert server.get("/api/v2/orgs").json()["orgs"][0]["name"] == "arcpipe"


def test_a_list_of_all_buckets_is_empty(server: Server) -> None:
    """Only the store knows them."""
    assert server.get("/api/v2/buckets").json() == {"links": {"self": "/api/v2/buckets"}, "buckets": []}


@pytest.mark.parametrize("query", ["offset=1", "limit=0", "offset=1&limit=1", "after={id}", "after=unknown"])
def test_a_further_page_of_buckets_is_empty(server: Server, query: str) -> None:
    """Clients ask until a page is not full."""
    (bucket,) = server.get("/api/v2/buckets?name=a&limit=1").json()["buckets"]
    assert server.get(f"/api/v2/buckets?name=a&{query.format(id=bucket['id'])}").json()["buckets"] == []
    (organization,) = server.get("/api/v2/orgs?org=a&limit=1").json()["orgs"]
    assert server.get(f"/api/v2/orgs?org=a&{query.format(id=organization['id'])}").json()["orgs"] == []


@pytest.mark.parametrize("query", ["name=..", "name=%ff", "name=a&name=b", "name=a&limit=x", "offset=-1", "offset=1e9"])
def test_a_question_that_makes_no_sense_is_400(server: Server, query: str) -> None:
    response = server.get(f"/api/v2/buckets?{query}")
    assert (response.status, response.json()["code"]) == (400, "invalid")
    assert response.json()["message"] == response.json()["error"]


# Bodies with good and bad lines, by the setting


def test_the_setting_says_whether_good_lines_are_written(tmp_path: Path) -> None:
    with Server(tmp_path, server_workers=1, ingest_accept_partial=False) as server:
        for path in PATHS:
            assert write(server, path, "whole", MIXED).status == 400
            assert write(server, path, "asked", MIXED, accept_partial="true").status == 400
        reason = refused(write(server, V1, "whole", MIXED))
        assert reason.startswith("unable to parse ")
        assert write(server, V1, "whole", GOOD).status == 204
        assert len(server.wait_for_rows(1, "whole")) == 1
        expected = len(PATHS) * 3
        assert len(server.wait_for_rows(expected, "asked")) == expected


# As Telegraf does it


def telegraf_body(points: int) -> bytes:
    """Lines of Telegraf's inputs: a dozen measurements of different shapes, mixed."""
    lines = []
    for point in range(points):
        host = f"web-{point % 7}"
        time = (NEW_YEAR + point) * 10**9
        lines += [
            f"cpu,cpu=cpu{point % 4},host={host} usage_user={point / 7},usage_steal=0 {time}",
            f"mem,host={host} used={point}i,total=8589934592i,used_percent={point / 3} {time}",
            f"disk,device=sda1,fstype=ext4,host={host},mode=rw,path=/ free={point}i,used_percent=1.5 {time}",
            f"net,host={host},interface=eth0 bytes_recv={point}i,err_in=0i {time}",
            f'system,host={host} load1=0.03,n_cpus=4i,uptime={point}i,uptime_format="1 day,  0:{point:02}" {time}',
            f"processes,host={host} running=1i,zombies=0i,total={point}i {time}",
            f"win_services,host={host},service_name=A\\ B\\,\\ C state=4i,ok=true {time}",
        ]
    return ("\n".join(lines) + "\n").encode()


def test_the_way_of_telegraf_from_its_start(client: Client, server: Server, database: str) -> None:
    create = urlencode({"q": f'CREATE DATABASE "{database}"'}).encode()
    response = client.request("POST", "/query", create, FORM | {"user-agent": "Telegraf/1.37.2"})
    assert (response.status, response.json()["results"][0].get("error")) == (200, None)
    headers = {"content-type": "text/plain; charset=utf-8", "user-agent": "Telegraf/1.37.2"}
    for query in (f"consistency=any&db={database}", f"db={database}&rp=autogen"):
        assert client.request("POST", f"/write?{query}", telegraf_body(100), headers).status == 204
    headers["authorization"] = "Token secret"
    assert client.request("POST", f"/api/v2/write?bucket={database}&org=me", telegraf_body(100), headers).status == 204
    server.wait_for_rows(3 * 7 * 100, database)
    measurements = sorted({path.name for path in (server.lake / database).iterdir()})
    assert measurements == ["cpu", "disk", "mem", "net", "processes", "system", "win_services"]
    rows: dict[str, list[dict[str, Any]]] = {name: lake_rows(server.lake, database, name) for name in measurements}
    assert {name: len(found) for name, found in rows.items()} == dict.fromkeys(measurements, 300)
    assert rows["system"][-1] == {
        "time": (NEW_YEAR + 99) * 10**6,
        "host": "web-1",
        "load1": 0.03,
        "n_cpus": 4,
        "uptime": 99,
        "uptime_format": "1 day,  0:99",
    }
    assert rows["win_services"][0]["service_name"] == "A B, C"
    assert lake_types(server.lake, database, "cpu")["usage_steal"] == "DOUBLE"
