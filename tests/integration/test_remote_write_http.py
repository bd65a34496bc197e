"""The endpoints of remote write over HTTP: negotiation, statuses, headers, limits, and what is in the lake after it."""

from __future__ import annotations

import gzip
import json
import struct
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest

from arcpipe.codec.remote_write.body import Version
from tests.support import tokens
from tests.support.compression import zstd
from tests.support.http import Response
from tests.support.server import Server
from tests.unit.codec.remote_write.test_body import STALE, TIME, Series, make

V1 = "application/x-protobuf;proto=prometheus.WriteRequest"
V2 = "application/x-protobuf;proto=io.prometheus.write.v2.Request"
TYPES: dict[Version, str] = {1: V1, 2: V2}
UP: Series = ({"__name__": "up", "job": "x"}, [(TIME, 1.0)], [])
NAMELESS: Series = ({}, [(TIME, 2.0)], [])
WRITTEN = "x-prometheus-remote-write-{}-written"


def snappy(body: bytes) -> bytes:
    packed: bytes = pa.Codec("snappy").compress(body, asbytes=True)
    return packed


def post(server: Server, body: bytes, version: Version = 1, path: str = "/api/v1/write", **headers: str) -> Response:
    given = {"Content-Type": TYPES[version], "Content-Encoding": "snappy"}
    given |= {name.replace("_", "-"): value for name, value in headers.items()}
    return server.post(path, body, {name: value for name, value in given.items() if value})


def counts(response: Response) -> tuple[str, ...]:
    return tuple(response.headers[WRITTEN.format(kind)] for kind in ("samples", "histograms", "exemplars"))


@pytest.mark.smoke
@pytest.mark.parametrize("path", ["/api/v1/write", "/api/v1/push"])
@pytest.mark.parametrize("version", [1, 2])
def test_a_body_is_in_the_lake_bit_by_bit(tmp_path: Path, version: Version, path: str) -> None:
    series: list[Series] = [
        ({"__name__": "up", "job": "x"}, [(TIME, 1.0), (TIME - 5_000, STALE)], [({"trace": "t"}, TIME, 0.5)]),
        ({"__name__": "b", "text": 'ä "q"'}, [(TIME + 1, -0.0)], []),
    ]
    with Server(tmp_path, server_workers=1, remote_write_promote="job") as server:
        response = post(server, snappy(make(series, version)), version, f"{path}?db=prod")
        assert (response.status, counts(response)) == (204, ("3", "0", "1"))
        server.wait_for_rows(3, "prod", "prometheus")
        server.wait_for_rows(1, "prod", "prometheus_exemplars")
        server.stop()
        files = f"{server.lake}/prod/prometheus/**/*.parquet"
        query = f"SELECT epoch_ms(time), metric, labels, job, value FROM '{files}' ORDER BY time"
        found = duckdb.execute(query).fetchall()
        rows = [(time, metric, json.loads(labels), job, struct.pack("<d", v)) for time, metric, labels, job, v in found]
        assert rows == [
            (TIME - 5_000, "up", {"job": "x"}, "x", bytes.fromhex("020000000000f07f")),
            (TIME, "up", {"job": "x"}, "x", struct.pack("<d", 1.0)),
            (TIME + 1, "b", {"text": 'ä "q"'}, None, struct.pack("<d", -0.0)),
        ]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("remote-write"), server_workers=1, server_max_body_mb=1) as started:
        yield started
        started.stop()


@pytest.mark.parametrize("version", [1, 2])
def test_good_series_beside_bad_ones_are_written(server: Server, version: Version) -> None:
    database = f"partial{version}"
    response = post(server, snappy(make([UP, NAMELESS], version)), version, f"/api/v1/write?db={database}")
    assert (response.status, counts(response)) == (400, ("1", "0", "0"))
    assert response.json()["error"] == "series 1: it has no labels; all others were written"
    assert len(server.wait_for_rows(1, database, "prometheus")) == 1


def test_nothing_is_written_where_partial_writes_are_not_wanted(server: Server) -> None:
    response = post(server, snappy(make([UP, NAMELESS], 1)), path="/api/v1/write?db=whole&accept_partial=false")
    assert (response.status, counts(response)) == (400, ("0", "0", "0"))
    assert response.json()["error"].endswith("nothing was written")
    assert post(server, snappy(make([NAMELESS], 1)), path="/api/v1/write?db=whole").status == 400
    assert post(server, snappy(make([UP], 1))).status == 204
    server.wait_for_rows(1, "default", "prometheus")
    assert not (server.lake / "whole").exists()


@pytest.mark.parametrize(
    ("content_type", "status"),
    [
        ("", 204),
        ("application/x-protobuf", 204),
        ("application/x-protobuf; proto=prometheus.WriteRequest", 204),
        ('Application/X-Protobuf;proto="prometheus.WriteRequest"', 204),
        ("application/x-protobuf;proto=io.prometheus.write.v3.Request", 415),
        ("application/json", 415),
        ("text/plain", 415),
    ],
)
def test_the_content_type_is_negotiated(server: Server, content_type: str, status: int) -> None:
    response = post(server, snappy(make([UP], 1)), Content_Type=content_type)
    assert response.status == status
    if status == 415:
        assert response.json()["code"] == "unsupported_media_type"


def test_bodies_of_every_encoding_are_taken(server: Server) -> None:
    """A body of version 1 without a header is snappy, as old senders mean it. vmagent's own protocol has zstd."""
    body = make([UP], 1)
    assert post(server, snappy(body), Content_Encoding="").status == 204
    assert post(server, zstd.compress(body), Content_Encoding="zstd").status == 204
    assert post(server, gzip.compress(body), Content_Encoding="gzip").status == 204
    assert post(server, body, Content_Encoding="identity").status == 204
    assert post(server, body, Content_Encoding="br").status == 415


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "does not begin with a size"),
        (b"\xff\xff\xff", "does not begin with a size"),
        (b"\x80\x80\x04ab", "cannot become"),
        (snappy(b"x" * 100)[:-3], "damaged"),
        (snappy(b"\x0a\x05"), "malformed protobuf at byte"),
    ],
)
@pytest.mark.parametrize("encoding", ["snappy", ""])
def test_a_damaged_body_is_refused_with_a_reason(server: Server, body: bytes, reason: str, encoding: str) -> None:
    if not body and encoding:
        pytest.skip("a body without bytes is not decoded")
    response = post(server, body, Content_Encoding=encoding)
    assert response.status == 400
    assert reason in response.json()["error"]


@pytest.mark.parametrize("encoding", ["snappy", ""])
def test_a_body_is_bounded_before_it_is_decoded(server: Server, encoding: str) -> None:
    response = post(server, snappy(bytes(2 << 20)), Content_Encoding=encoding)
    assert (response.status, response.json()["code"]) == (413, "body_too_large")


def test_the_unit_of_times_cannot_be_chosen(server: Server) -> None:
    response = post(server, snappy(make([UP], 1)), path="/api/v1/write?precision=s")
    assert response.status == 400
    assert "always" in response.json()["error"]


def test_tools_of_prometheus_find_the_server_healthy(server: Server) -> None:
    assert server.get("/-/healthy").status == 200
    assert server.get("/-/ready").status == 200
    info = server.get("/api/v1/status/buildinfo").json()
    assert info["status"] == "success"
    assert set(info["data"]) == {"version", "revision", "branch", "buildUser", "buildDate", "goVersion"}


def test_a_token_needs_the_scope_and_the_database(tmp_path: Path) -> None:
    token = tokens.create(tmp_path, "--scope", "write", "--database", "prod")
    with Server(tmp_path, server_workers=1, auth_enabled=True) as server:
        body = snappy(make([UP], 1))
        assert post(server, body).status == 401
        good = tokens.bearer(token)["Authorization"]
        assert post(server, body, path="/api/v1/write?db=prod", Authorization=good).status == 204
        assert post(server, body, path="/api/v1/write?db=other", Authorization=good).status == 403
