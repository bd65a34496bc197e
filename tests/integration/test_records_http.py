"""JSON and CSV over real HTTP: roles of fields, bad records, formats, and the rows that readers find."""

from __future__ import annotations

import gzip
import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote, urlencode

import pytest

from tests.support.http import Client, Response
from tests.support.lake import lake_types
from tests.support.server import Server

PATH = "/api/v1/ingest/"
# 2026-01-01T00:00:00Z in µs
NEW_YEAR = 1_767_225_600_000_000
TYPES = {"ndjson": "application/x-ndjson", "json": "application/json", "csv": "text/csv; charset=utf-8"}
BODIES = {
    "ndjson": b'{"time":1767225600,"host":"a","usage":0.5}\n{"time":1767225601,"host":"b","usage":1.5}\n',
    "json": b'[{"time":1767225600,"host":"a","usage":0.5}, {"time":1767225601,"host":"b","usage":1.5}]',
    "csv": b"time,host,usage\n1767225600,a,0.5\n1767225601,b,1.5\n",
}
ROWS = [
    {"time": NEW_YEAR, "host": "a", "usage": 0.5},
    {"time": NEW_YEAR + 1_000_000, "host": "b", "usage": 1.5},
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("records"), server_workers=1) as server:
        yield server
        server.stop()


def ingest(
    server: Server, database: str, body: bytes, format_: str = "ndjson", measurement: str = "m", **parameters: str
) -> Response:
    query = urlencode({"db": database, **parameters})
    return server.post(f"{PATH}{quote(measurement, safe='')}?{query}", body, {"Content-Type": TYPES[format_]})


@pytest.mark.parametrize("format_", TYPES)
def test_records_are_acknowledged_with_202_and_come_out_of_the_lake(
    server: Server, database: str, format_: str
) -> None:
    answer = ingest(server, database, BODIES[format_], format_, "a/b ü", tag_fields="host")
    assert (answer.status, answer.body) == (202, b"")
    assert server.wait_for_rows(2, database) == ROWS


@pytest.mark.parametrize("format_", TYPES)
def test_a_body_may_be_compressed_and_its_format_named(server: Server, database: str, format_: str) -> None:
    answer = server.post(
        f"{PATH}m?db={database}&format={format_}", gzip.compress(BODIES[format_]), {"Content-Encoding": "gzip"}
    )
    assert answer.status == 202
    assert server.wait_for_rows(2, database) == ROWS


def test_headers_name_what_the_query_does_not(server: Server, database: str) -> None:
    headers = {
        "x-arc-database": database,
        "x-arc-format": "ndjson",
        "x-arc-time-field": "ts",
        "x-arc-precision": "ms",
        "x-arc-measurement-field": "kind",
        "x-arc-tag-fields": "host",
        "x-arc-types": "usage:f64",
    }
    body = b'{"ts":1767225600000,"kind":"cpu","host":"a","usage":1}'
    for path in (f"{PATH}m", f"{PATH}m?precision=ms"):
        assert server.post(path, body, headers).status == 202
    rows = server.wait_for_rows(2, database, "cpu")
    assert rows == [{"time": NEW_YEAR, "host": "a", "usage": 1.0}] * 2
    assert lake_types(server.lake, database, "cpu")["usage"] == "DOUBLE"
    assert server.post(f"{PATH}m?precision=s", body, headers).status == 400


def test_values_are_kept_as_columns_siblings_and_rescued(server: Server, database: str) -> None:
    records = [
        {"time": 1767225600, "n": 9007199254740993, "s": "x", "o": {"a": [1, None]}},
        {"time": 1767225601, "n": 18446744073709551615, "s": 5},
        {"time": 1767225602, "n": 0.5, "s": 123456789012345678901234567890},
    ]
    body = "\n".join(map(json.dumps, records)).encode()
    assert ingest(server, database, body).status == 202
    first, second, third = server.wait_for_rows(3, database)
    assert (first["n"], first["n_i64"], first["s"]) == (None, 9007199254740993, "x")
    assert json.loads(first["_rescued_data"]) == {"o": {"a": [1, None]}}
    assert int(second["n_u64"]) == 18446744073709551615
    assert (second["s_i64"], third["n"], third["s"]) == (5, 0.5, "123456789012345678901234567890")


def test_integers_above_2_to_the_53_survive(server: Server, database: str) -> None:
    values = [2**53 + 1, 2**63 - 1, -(2**63)]
    body = json.dumps([{"time": NEW_YEAR + at, "n": value} for at, value in enumerate(values)]).encode()
    assert ingest(server, database, body, "json").status == 202
    assert [row["n"] for row in server.wait_for_rows(3, database)] == values


# Bad records


def test_good_lines_are_written_and_bad_ones_listed(server: Server, database: str) -> None:
    body = BODIES["ndjson"] + b'bad\n{"time":"soon","host":"c"}\n'
    answer = ingest(server, database, body)
    assert answer.status == 400
    found = answer.json()
    assert (found["code"], found["written"], found["refused"]) == ("bad_request", 2, 2)
    assert found["error"].startswith("partial write: 2 records were written, 2 were not; line 3: not a JSON object")
    assert [(bad["line_number"], bad["original_line"]) for bad in found["data"]] == [
        (3, "bad"),
        (4, '{"time":"soon","host":"c"}'),
    ]
    assert server.wait_for_rows(2, database) == ROWS


def test_nothing_is_written_if_the_request_says_so(server: Server, database: str) -> None:
    answer = ingest(server, database, BODIES["ndjson"] + b"bad\n", accept_partial="false")
    assert answer.status == 400
    assert (answer.json()["written"], answer.json()["error"].partition(";")[0]) == (0, "nothing was written")
    assert ingest(server, database, b'{"time":1767225600,"n":1}').status == 202
    assert server.wait_for_rows(1, database) == [{"time": NEW_YEAR, "n": 1}]


@pytest.mark.parametrize(
    ("query", "headers", "status", "reason"),
    [
        ("", {}, 415, "this path takes the Content-Type application/x-ndjson"),
        ("", {"Content-Type": "application/x-www-form-urlencoded"}, 415, "or a parameter 'format'"),
        ("?format=xml", {}, 400, "'xml' is not one of"),
        ("?format=json&tag_fields=a,", {}, 400, "empty name"),
        ("?format=json&precision=d", {}, 400, "precision"),
        ("?format=json&time_field=%00", {}, 400, "control character"),
        ("?format=json", {"x-arc-tag-fields": "\udcff"}, 400, "not UTF-8"),
    ],
)
def test_what_the_head_says_wrong_is_refused_before_the_body(
    server: Server, query: str, headers: dict[str, str], status: int, reason: str
) -> None:
    with server.client() as client:
        head = [f"POST {PATH}m{query} HTTP/1.1", "Host: x", "Content-Length: 10", "Expect: 100-continue"]
        head += [f"{name}: {value}" for name, value in headers.items()]
        client.send("\r\n".join([*head, "", ""]).encode("utf-8", "surrogateescape"))
        answer = client.receive()
    assert answer.status == status
    assert reason in answer.reason


@pytest.mark.parametrize("path", [PATH, "/api/v1/ingest", f"{PATH}a/b"])
def test_there_is_nothing_without_one_measurement(client: Client, path: str) -> None:
    assert client.request("POST", path, b"{}").status == 404


def test_a_measurement_of_the_path_must_be_a_name(client: Client) -> None:
    for name in ("%00", "%ff", "x" * 300):
        assert client.request("POST", f"{PATH}{name}?format=json", b"{}").status == 400
    assert client.request("GET", f"{PATH}m").headers["allow"] == "POST"


def test_metrics_count_the_route_and_not_the_measurement(server: Server, database: str) -> None:
    ingest(server, database, BODIES["json"], "json", "one")
    ingest(server, database, BODIES["json"], "json", "two")
    server.wait_for_rows(4, database)
    text = server.get("/metrics").body.decode()
    assert '"/api/v1/ingest/{measurement}"' in text
    assert "ingest/one" not in text


def test_a_large_body_is_read_whole(server: Server, database: str) -> None:
    records = [{"time": NEW_YEAR + number, "n": number, "s": "x" * 20} for number in range(40_000)]
    assert ingest(server, database, json.dumps(records).encode(), "json").status == 202
    lines = "\n".join(map(json.dumps, records)).encode()
    assert ingest(server, database, lines, measurement="lines").status == 202
    rows = server.wait_for_rows(80_000, database)
    assert sorted(row["n"] for row in rows) == sorted([*range(40_000)] * 2)


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_curl_sends_a_file(server: Server, database: str, tmp_path: Path) -> None:
    for format_, body in BODIES.items():
        file = tmp_path / format_
        file.write_bytes(body)
        url = f"{server.url}{PATH}{format_}?db={database}&tag_fields=host"
        command = [
            "curl",
            "-sS",
            "-w",
            "%{http_code}",
            "--data-binary",
            f"@{file}",
            "-H",
            f"Content-Type: {TYPES[format_]}",
        ]
        done = subprocess.run([*command, url], capture_output=True, text=True, check=True)
        assert done.stdout == "202"
    assert len(server.wait_for_rows(6, database)) == 6
