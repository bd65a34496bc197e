"""Idempotency keys over real HTTP: every format, and tokens that use the same key."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.integration.test_otlp_http import one_log
from tests.integration.test_remote_write_http import TYPES, UP, snappy
from tests.support import tokens
from tests.support.http import Response, pack
from tests.support.lake import lake_rows
from tests.support.server import Server
from tests.support.sets import long
from tests.support.table_readers import numbers_in
from tests.unit.codec.remote_write.test_body import make

MOMENT = 1_767_225_600  # 2026-01-01T00:00:00Z
INGEST = "/api/v1/ingest/m"
# Tries of one request: two workers, so the last two of them reach one that has acknowledged it.
TRIES = 4


def _table() -> pa.Table:
    return pa.table({"time": pa.array([MOMENT * 10**6], pa.timestamp("us", "UTC")), "n": [1]})


def _stream() -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, _table().schema) as writer:
        writer.write_table(_table())
    stream: bytes = sink.getvalue().to_pybytes()
    return stream


def _parquet() -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(_table(), sink)
    file: bytes = sink.getvalue().to_pybytes()
    return file


def _requests() -> dict[str, tuple[str, bytes, dict[str, str]]]:
    """A request of one record in each format: path, body and headers."""
    line, record = b"m n=1i 1767225600", b'{"time":1767225600,"n":1}'
    columns = pack({"m": "m", "columns": {"time": [MOMENT], "n": [1]}})
    protobuf = {"Content-Type": "application/x-protobuf"}
    packed = {"Content-Type": TYPES[1], "Content-Encoding": "snappy"}
    return {
        "line protocol 1": ("/write?precision=s", line, {}),
        "line protocol 2": ("/api/v2/write?precision=s", line, {}),
        "line protocol 3": ("/api/v3/write_lp?precision=second", line, {}),
        "MessagePack": ("/write/v2/msgpack", columns, {}),
        "MessagePack of Arc": ("/api/v1/write/msgpack", columns, {}),
        "NDJSON": (INGEST, record + b"\n", {"Content-Type": "application/x-ndjson"}),
        "JSON": (INGEST, b"[%b]" % record, {"Content-Type": "application/json"}),
        "CSV": (INGEST, b"time,n\n1767225600,1\n", {"Content-Type": "text/csv"}),
        "Arrow": (INGEST, _stream(), {"Content-Type": "application/vnd.apache.arrow.stream"}),
        "Parquet": (INGEST, _parquet(), {"Content-Type": "application/vnd.apache.parquet"}),
        "OTLP": ("/v1/logs", one_log().SerializeToString(), protobuf),
        "remote write": ("/api/v1/write", snappy(make([UP], 1)), packed),
    }


def _replayed(response: Response) -> bool:
    return response.headers.get("idempotency-replayed") == "true"


@pytest.mark.slow
def test_a_retry_is_no_second_record_in_any_format(tmp_path: Path) -> None:
    """The key is in the header, and then in the query. Each try has a connection, and so a worker, of its own."""
    requests = _requests()
    with Server(tmp_path, server_workers=2) as server:
        for number, (path, body, headers) in enumerate(requests.values()):
            to = f"{path}{'&' if '?' in path else '?'}db=db{number}"
            for sent_to, more in ((to, {"Idempotency-Key": f'"k-{number}"'}), (f"{to}&idempotency_key=k-q", {})):
                answers = [server.post(sent_to, body, headers | more) for _ in range(TRIES)]
                assert {(answer.status, answer.body) for answer in answers} == {(answers[0].status, answers[0].body)}
                assert answers[0].status in (200, 202, 204), (path, answers[0].body)
                assert not _replayed(answers[0])
                assert sum(map(_replayed, answers)) >= TRIES - 2, path
        server.stop()
        found = {name: len(lake_rows(server.lake, f"db{number}")) for number, name in enumerate(requests)}
        assert found == dict.fromkeys(requests, 2)  # of two keys


@pytest.mark.slow
def test_tokens_cannot_see_nor_use_up_each_others_keys(tmp_path: Path) -> None:
    senders = [tokens.bearer(tokens.create(tmp_path, "--scope", "write")) for _ in range(2)]
    body = pack({"m": "m", "columns": {"time": [MOMENT], "n": [1]}})
    with Server(tmp_path, server_workers=1, auth_enabled=True) as server:

        def write(sender: int, database: str = "db", number: int = 1) -> bool:
            columns = {"time": [MOMENT], "n": [number], "by": [sender]}
            response = server.post(
                f"/write/v2/msgpack?db={database}",
                pack({"m": "m", "columns": columns}),
                {**senders[sender], "Idempotency-Key": "the-same"},
            )
            assert response.status == 202
            return _replayed(response)

        assert [write(0), write(1), write(0), write(1)] == [False, False, True, True]
        assert [write(1, "other"), write(0, "other")] == [False, False]
        dead = server.kill("ingest 1")  # its successor knows no key, so the uploader decides
        server.wait_for_successor("ingest 1", dead)
        assert [write(0, number=2), write(1, number=3)] == [False, False]
        assert server.post("/write/v2/msgpack?db=db", body, {"Idempotency-Key": "the-same"}).status == 401
        server.stop()
        for database in ("db", "other"):
            rows = sorted((row["by"], row["n"]) for row in lake_rows(server.lake, database))
            assert rows == [(0, 1), (1, 1)]


@pytest.mark.slow
@pytest.mark.parametrize("format_name", [pytest.param("iceberg", marks=long), "delta"])
def test_a_retry_is_no_second_row_of_a_table(tmp_path: Path, format_name: str) -> None:
    """Also over kills of the worker, the uploader and the committer between a request and its retry."""
    with Server(tmp_path, server_workers=1, tables_format=format_name, tables_commit_interval_seconds=0.2) as server:
        for killed in ("ingest 1", "uploader", "committer", ""):
            for number in range(6):
                body = json.dumps({"time": MOMENT, "n": number}).encode()
                headers = {"Content-Type": "application/x-ndjson", "Idempotency-Key": f"row-{number}"}
                assert server.post("/api/v1/ingest/cpu", body, headers).status == 202
            if killed:
                server.wait_for_successor(killed, server.kill(killed))
        server.stop()
        assert "stopped; everything is uploaded" in server.log
        assert numbers_in(format_name, server.lake, server.wal) == list(range(6))
