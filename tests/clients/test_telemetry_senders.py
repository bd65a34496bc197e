"""SDKs, the Collector and a current Prometheus write, and what they wrote is read back, value for value."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.clients.telemetry_senders import LOGS, SAMPLES, collector, needs, prometheus_agent, run_sdk
from tests.support.http import free_port
from tests.support.lake import lake_rows
from tests.support.server import Server

STALE = 0x7FF0000000000002
NEW_YEAR = 1_767_225_600_000_000


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("senders"), server_workers=1) as started:
        yield started
        started.stop()


def assert_spans(server: Server, database: str) -> None:
    rows = {row["SpanName"]: row for row in server.wait_for_rows(2, database, "otel_traces")}
    outer, inner = rows["outer"], rows["inner"]
    assert (outer["SpanKind"], outer["ServiceName"], outer["ScopeName"]) == ("Server", "shop", "tests")
    assert json.loads(outer["ResourceAttributes"])["host.name"] == "web-1"
    assert json.loads(outer["SpanAttributes"])["http.status"] == 200
    assert [(one["name"], one["attributes"]) for one in json.loads(outer["Events"])] == [("found", {"n": 3})]
    assert (inner["TraceId"], inner["ParentSpanId"]) == (outer["TraceId"], outer["SpanId"])
    assert (inner["StatusCode"], inner["StatusMessage"]) == ("Error", "broken")
    assert [(one["span_id"], one["attributes"]) for one in json.loads(inner["Links"])] == [
        (outer["SpanId"], {"why": "test"})
    ]


def assert_logs(server: Server, database: str) -> None:
    rows = sorted(server.wait_for_rows(LOGS, database, "otel_logs"), key=lambda row: row["time"])
    assert [(row["time"], row["Body"]) for row in rows] == [
        (NEW_YEAR + 1000 * number, f'line {number} "quoted"') for number in range(LOGS)
    ]
    assert {(row["ServiceName"], row["SeverityNumber"], row["SeverityText"]) for row in rows} == {("shop", 13, "WARN")}
    attributes = [json.loads(row["LogAttributes"]) for row in rows]
    assert [(one["cart"], one["half"]) for one in attributes] == [(number, 0.5) for number in range(LOGS)]


def point_of(server: Server, database: str, kind: str, metric: str) -> dict[str, Any]:
    """Return the one point of a metric; SDKs add metrics of their own."""
    rows = server.wait_for_rows(1, database, f"otel_metrics_{kind}")
    (point,) = (row for row in rows if row["MetricName"] == metric)
    return point


def assert_metrics(server: Server, database: str) -> None:
    total = point_of(server, database, "sum", "orders")
    assert (total["Value"], total["IsMonotonic"]) == (3.0, True)
    assert (json.loads(total["Attributes"]), total["MetricDescription"]) == ({"country": "NL"}, "Orders so far.")
    assert point_of(server, database, "gauge", "temperature")["Value"] == 21.5
    seconds = point_of(server, database, "histogram", "seconds")
    assert (seconds["Count"], seconds["Sum"], seconds["Min"], seconds["Max"]) == (3, 5.55, 0.05, 5.0)
    assert (json.loads(seconds["BucketCounts"]), json.loads(seconds["ExplicitBounds"])) == ([1, 1, 1], [0.1, 1.0])


def assert_all_signals(server: Server, database: str) -> None:
    assert_spans(server, database)
    assert_logs(server, database)
    assert_metrics(server, database)


@needs("otel-sdk")
@pytest.mark.parametrize("compression", ["none", "gzip"])
def test_the_sdk_for_go_writes_all_signals(server: Server, compression: str) -> None:
    database = f"go-{compression}"
    run_sdk("go", server.url, database, compression)
    assert_all_signals(server, database)
    sizes = point_of(server, database, "exponential_histogram", "sizes")
    assert (sizes["Count"], sum(json.loads(sizes["PositiveBucketCounts"]))) == (3, 3)


@needs("java")
@pytest.mark.parametrize("compression", ["none", "gzip"])
def test_the_sdk_for_java_writes_all_signals(server: Server, compression: str) -> None:
    database = f"java-{compression}"
    run_sdk("java", server.url, database, compression)
    assert_all_signals(server, database)


@needs("otel-collector", "otel-sdk")
@pytest.mark.parametrize("encoding", ["proto", "json"])
@pytest.mark.parametrize("compression", ["zstd", "gzip", "snappy"])
def test_the_collector_passes_all_signals_on(server: Server, tmp_path: Path, encoding: str, compression: str) -> None:
    database = f"collector-{encoding}-{compression}"
    with collector(tmp_path, server.url, database, encoding, compression) as url:
        run_sdk("go", url, "not-used", "none")
        assert_all_signals(server, database)


@needs("otel-collector", "otel-sdk")
def test_the_collector_repeats_what_it_sent_to_a_server_that_was_down(tmp_path: Path) -> None:
    with Server(tmp_path, server_workers=1, server_port=free_port()) as server:
        with collector(tmp_path, server.url, "down", "proto", "zstd") as url:
            server.kill_all()
            run_sdk("go", url, "not-used", "none")
            server.restart()
            assert_spans(server, "down")
            assert_logs(server, "down")
            assert_metrics(server, "down")
        server.stop()


@needs("prometheus-agent")
def test_prometheus_writes_by_remote_write_2(server: Server, tmp_path: Path) -> None:
    """Samples, a stale marker, an exemplar, a native histogram and metadata, all of them by symbols."""
    with prometheus_agent(tmp_path, server.url, "agent") as sent:
        rows = sorted(server.wait_for_rows(SAMPLES, "agent", "prometheus"), key=lambda row: row["time"])
        (native,) = server.wait_for_rows(1, "agent", "prometheus_histograms")
        (exemplar,) = server.wait_for_rows(1, "agent", "prometheus_exemplars")
        metadata = server.wait_for_rows(1, "agent", "prometheus_metadata")
    assert [row["time"] for row in rows] == [1000 * (sent.began + number) for number in range(SAMPLES)]
    *values, stale = [row["value"] for row in rows]
    assert values == [number / 4 for number in range(SAMPLES - 1)]
    assert struct.unpack("<Q", struct.pack("<d", stale)) == (STALE,)
    labels = {"job": "test", "text": 'a "quoted" one'}
    assert {(row["metric"], row["labels"]) for row in rows} == {
        ("requests_total", json.dumps(labels, separators=(",", ":")))
    }
    assert (native["metric"], native["count"], native["sum"]) == ("sizes", 9, 20.5)
    found = json.loads(native["histogram"])
    assert (found["schema"], found["zero_count"], found["positive_deltas"]) == (1, 2, [3, 1])
    assert (exemplar["value"], json.loads(exemplar["exemplar_labels"])) == (0.5, {"trace_id": "abc"})
    about = {"metric": "requests_total", "type": "counter", "help": "Requests so far.", "unit": "requests"}
    assert about.items() <= metadata[0].items()
    assert len(lake_rows(server.lake, "agent", "prometheus")) == SAMPLES
