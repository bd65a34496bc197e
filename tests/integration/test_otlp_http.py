"""The endpoints of OTLP over HTTP: types of answers and errors, statuses, encodings, and the lake after it."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceResponse

from arcpipe.ingest.http import responses
from tests.support import tokens
from tests.support.compression import zstd
from tests.support.http import Response
from tests.support.lake import lake_rows
from tests.support.server import Server
from tests.support.waiting import wait_until
from tests.unit.codec.otlp.messages import NOW, Maker
from tests.unit.codec.otlp.reading import READERS, REQUESTS
from tests.unit.codec.otlp.test_body import json_of

PROTOBUF = "application/x-protobuf"
JSON = "application/json"
SIGNALS = ("logs", "traces", "metrics")
RETRIED = {429, 502, 503, 504}


def status_class() -> Any:
    """`google.rpc.Status`, but for its details."""
    kinds = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="status.proto", package="rpc", syntax="proto3")
    message = file.message_type.add(name="Status")
    message.field.add(name="code", number=1, type=kinds.TYPE_INT32, label=kinds.LABEL_OPTIONAL)
    message.field.add(name="message", number=2, type=kinds.TYPE_STRING, label=kinds.LABEL_OPTIONAL)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("rpc.Status"))


STATUS = status_class()


def one_log(text: str = "hi", time: int = NOW) -> Any:
    request = REQUESTS["logs"]()
    resource = request.resource_logs.add()
    resource.resource.attributes.add(key="service.name").value.string_value = "shop"
    resource.scope_logs.add().log_records.add(time_unix_nano=time).body.string_value = text
    return request


def post(server: Server, body: bytes, type_: str = PROTOBUF, path: str = "/v1/logs", **headers: str) -> Response:
    given = {"Content-Type": type_} | {name.replace("_", "-"): value for name, value in headers.items()}
    return server.post(path, body, given)


def error_of(response: Response, type_: str) -> tuple[int, str]:
    """Code and reason of an error, which is in the type of its request."""
    assert response.headers["content-type"] == type_
    if type_ == JSON:
        found = response.json()
        return found["code"], found["message"]
    status = STATUS.FromString(response.body)
    return status.code, status.message


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("otlp"), server_workers=1, server_max_body_mb=1) as started:
        yield started
        started.stop()


@pytest.mark.parametrize("type_", [PROTOBUF, JSON])
@pytest.mark.parametrize("signal", SIGNALS)
def test_items_are_in_the_lake_with_their_values(server: Server, signal: str, type_: str) -> None:
    """Value for value, through DuckDB, for those columns that mean the same in any order."""
    database = f"{signal}-{type_[-4:]}"
    request = Maker(7).request(signal, 5)
    expected = READERS[signal](request)
    body = request.SerializeToString() if type_ == PROTOBUF else json_of(request)
    response = post(server, body, type_, f"/v1/{signal}?db={database}")
    assert (response.status, response.headers["content-type"]) == (200, type_)
    assert response.body == (b"" if type_ == PROTOBUF else b"{}")
    assert expected
    for table, rows in expected.items():
        found = server.wait_for_rows(len(rows), database, table)
        for name in ("ServiceName", "ScopeName", "MetricName", "SpanName", "EventName", "TraceId", "Count", "Scale"):
            if name in rows[0]:
                assert sorted(str(row[name]) for row in found) == sorted(str(row[name]) for row in rows)
        for name in ("ResourceAttributes", "LogAttributes", "SpanAttributes", "Attributes"):
            if name in rows[0]:
                texts = [json.dumps(json.loads(row[name]), sort_keys=True) for row in found]
                assert sorted(texts) == sorted(json.dumps(row[name], sort_keys=True) for row in rows)


@pytest.mark.parametrize(("encoding", "encode"), [("gzip", gzip.compress), ("zstd", zstd.compress)])
def test_bodies_may_be_compressed(server: Server, encoding: str, encode: Any) -> None:
    body = encode(one_log().SerializeToString())
    assert post(server, body, path=f"/v1/logs?db={encoding}", Content_Encoding=encoding).status == 200
    (row,) = server.wait_for_rows(1, encoding, "otel_logs")
    assert (row["Body"], row["ServiceName"]) == ("hi", "shop")


@pytest.mark.parametrize("type_", [PROTOBUF, JSON])
def test_a_partial_success_counts_what_was_refused(server: Server, type_: str) -> None:
    request = one_log()
    request.MergeFrom(one_log(time=(1 << 63) + 5))
    body = request.SerializeToString() if type_ == PROTOBUF else json_of(request)
    response = post(server, body, type_, "/v1/logs?db=partial")
    assert response.status == 200
    told = "1 items were refused: a time is beyond the year 2262; all others were written"
    if type_ == PROTOBUF:
        partial = ExportLogsServiceResponse.FromString(response.body).partial_success
        assert (partial.rejected_log_records, partial.error_message) == (1, told)
    else:
        assert response.json() == {"partialSuccess": {"rejectedLogRecords": "1", "errorMessage": told}}


@pytest.mark.parametrize("type_", [PROTOBUF, JSON])
@pytest.mark.parametrize(
    ("path", "body", "status", "code", "reason"),
    [
        ("/v1/logs", b"\x0a\x05", 400, 3, "malformed protobuf at byte 0"),
        ("/v1/logs?db=a/b", b"", 400, 3, "is no database name"),
        ("/v1/logs?precision=s", b"x", 400, 3, "in ns, always"),
        ("/v1/logs", bytes(2 << 20), 413, 8, "server.max_body_mb"),
    ],
)
def test_an_error_has_the_type_of_its_request(
    server: Server, path: str, body: bytes, status: int, code: int, reason: str, type_: str
) -> None:
    if type_ == JSON and body == b"\x0a\x05":
        body, reason = b"{", "no JSON"
    response = post(server, body, type_, path)
    assert response.status == status
    found = error_of(response, type_)
    assert found[0] == code
    assert reason in found[1]


def test_another_type_is_refused(server: Server) -> None:
    response = post(server, b"", "text/plain")
    assert (response.status, error_of(response, JSON)[0]) == (415, 2)


def test_a_full_disk_is_a_status_that_senders_repeat(tmp_path: Path) -> None:
    with Server(tmp_path, server_workers=1, wal_min_free_mb=1 << 30) as server:
        for type_ in (PROTOBUF, JSON):
            body = one_log().SerializeToString() if type_ == PROTOBUF else json_of(one_log())
            response = post(server, body, type_)
            assert response.status == 503
            assert error_of(response, type_)[0] == 14
            assert response.headers["retry-after"] == "10"


def test_each_error_becomes_one_that_the_specification_knows() -> None:
    for status in (400, 401, 403, 404, 405, 408, 413, 415, 429, 500, 503, 507):
        made = responses.as_rpc_status(
            responses.error(status, "x", "a reason" * 30, b"Retry-After: 1\r\n"), is_json=False
        )
        head, _, content = made.partition(b"\r\n\r\n")
        sent = int(head[9:12])
        assert sent == status or (status in (408, 507) and sent in RETRIED)
        assert STATUS.FromString(content).message == "a reason" * 30
        assert b"Retry-After: 1" in head


def test_a_token_needs_the_scope_and_the_database(tmp_path: Path) -> None:
    token = tokens.create(tmp_path, "--scope", "write", "--database", "prod")
    with Server(tmp_path, server_workers=1, auth_enabled=True) as server:
        body = one_log().SerializeToString()
        refused = post(server, body)
        assert (refused.status, error_of(refused, PROTOBUF)[0]) == (401, 16)
        good = tokens.bearer(token)["Authorization"]
        assert post(server, body, path="/v1/logs?db=prod", Authorization=good).status == 200
        refused = post(server, body, path="/v1/logs?db=other", Authorization=good)
        assert (refused.status, error_of(refused, PROTOBUF)[0]) == (403, 7)


def test_a_listener_of_its_own_takes_what_senders_send_by_default(tmp_path: Path) -> None:
    """`server.listeners` opens 4318, here any free port, with the write paths alone."""
    listeners = json.dumps([{"address": "127.0.0.1:0", "paths": "writes"}])
    with Server(tmp_path, server_workers=1, server_listeners=listeners, otlp_promote="host.name") as server:
        wait_until(lambda: len(server.urls) == 2, "both listeners")
        import urllib.request

        request = one_log()
        record = request.resource_logs[0].scope_logs[0].log_records[0]
        record.attributes.add(key="host.name").value.string_value = "web-1"
        sent = urllib.request.Request(
            f"{server.urls[1]}/v1/logs", request.SerializeToString(), {"Content-Type": PROTOBUF}
        )
        with urllib.request.urlopen(sent, timeout=30) as answer:
            assert answer.status == 200
        server.wait_for_rows(1, "default", "otel_logs")
        (row,) = lake_rows(server.lake, "default", "otel_logs")
        assert row["host.name"] == "web-1"
        server.stop()


def test_items_that_were_acknowledged_survive_a_kill(tmp_path: Path) -> None:
    with Server(tmp_path, server_workers=1, flush_max_age_seconds=60) as server:
        for number in range(20):
            assert post(server, one_log(str(number)).SerializeToString()).status == 200
        server.kill_all()
        server.restart()
        rows = server.wait_for_rows(20, "default", "otel_logs")
        assert sorted(int(row["Body"]) for row in rows) == list(range(20))
        server.stop()
