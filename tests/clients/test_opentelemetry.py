"""The SDK of OpenTelemetry for Python writes logs, spans and metrics by its own exporters, and they are read back."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk._logs import LoggerProvider, LoggingHandler
from opentelemetry.sdk._logs.export import SimpleLogRecordProcessor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.metrics.view import ExponentialBucketHistogramAggregation, View
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor

from tests.clients.flaky import FlakyProxy
from tests.support.server import Server

RESOURCE = Resource.create({"service.name": "shop", "host.name": "web-1"})


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("otel"), server_workers=1) as started:
        yield started
        started.stop()


@pytest.mark.parametrize("compression", [Compression.NoCompression, Compression.Gzip])
def test_spans_arrive_with_events_and_links(server: Server, compression: Compression) -> None:
    database = f"spans-{compression.value}"
    provider = TracerProvider(resource=RESOURCE)
    exporter = OTLPSpanExporter(f"{server.url}/v1/traces?db={database}", compression=compression)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracer = provider.get_tracer("tests", "1.0")
    with tracer.start_as_current_span("outer", kind=trace.SpanKind.SERVER) as outer:
        outer.set_attribute("http.status", 200)
        outer.add_event("found", {"n": 3})
        with tracer.start_as_current_span(
            "inner", links=[trace.Link(outer.get_span_context(), {"why": "test"})]
        ) as inner:
            inner.set_status(trace.StatusCode.ERROR, "broken")
    provider.shutdown()
    rows = {row["SpanName"]: row for row in server.wait_for_rows(2, database, "otel_traces")}
    first, second = rows["outer"], rows["inner"]
    assert (first["SpanKind"], first["ServiceName"], first["ScopeName"]) == ("Server", "shop", "tests")
    assert json.loads(first["SpanAttributes"]) == {"http.status": 200}
    assert [(one["name"], one["attributes"]) for one in json.loads(first["Events"])] == [("found", {"n": 3})]
    assert first["TraceId"] == format(outer.get_span_context().trace_id, "032x")
    assert (second["ParentSpanId"], second["StatusCode"], second["StatusMessage"]) == (
        first["SpanId"],
        "Error",
        "broken",
    )
    assert [(one["span_id"], one["attributes"]) for one in json.loads(second["Links"])] == [
        (first["SpanId"], {"why": "test"})
    ]
    assert 0 <= second["Duration"] <= first["Duration"]


def test_log_records_arrive_with_their_body(server: Server) -> None:
    provider = LoggerProvider(resource=RESOURCE)
    provider.add_log_record_processor(SimpleLogRecordProcessor(OTLPLogExporter(f"{server.url}/v1/logs?db=logs")))
    logger = logging.Logger("shop.cart")
    logger.addHandler(LoggingHandler(logger_provider=provider))
    logger.warning('a "quoted" %s', "text", extra={"cart": 7})
    provider.shutdown()
    (row,) = server.wait_for_rows(1, "logs", "otel_logs")
    assert (row["Body"], row["SeverityNumber"], row["ScopeName"]) == ('a "quoted" text', 13, "shop.cart")
    assert json.loads(row["LogAttributes"])["cart"] == 7
    assert json.loads(row["ResourceAttributes"])["host.name"] == "web-1"


def test_metrics_of_each_kind_arrive(server: Server) -> None:
    exporter = OTLPMetricExporter(f"{server.url}/v1/metrics?db=metrics")
    reader = PeriodicExportingMetricReader(exporter, export_interval_millis=3_600_000)
    exponential = View(instrument_name="sizes", aggregation=ExponentialBucketHistogramAggregation())
    provider = MeterProvider([reader], resource=RESOURCE, views=[exponential])
    meter = provider.get_meter("tests")
    meter.create_counter("orders", "1", "Orders so far.").add(3, {"country": "NL"})
    meter.create_gauge("temperature").set(21.5)
    seconds = meter.create_histogram("seconds", explicit_bucket_boundaries_advisory=[0.1, 1.0])
    sizes = meter.create_histogram("sizes")
    for value in (0.05, 0.5, 5.0):
        seconds.record(value)
        sizes.record(value)
    provider.shutdown()
    (total,) = server.wait_for_rows(1, "metrics", "otel_metrics_sum")
    assert (total["MetricName"], total["Value"], total["IsMonotonic"]) == ("orders", 3.0, True)
    assert (json.loads(total["Attributes"]), total["MetricDescription"]) == ({"country": "NL"}, "Orders so far.")
    (gauge,) = server.wait_for_rows(1, "metrics", "otel_metrics_gauge")
    assert gauge["Value"] == 21.5
    (histogram,) = server.wait_for_rows(1, "metrics", "otel_metrics_histogram")
    assert (histogram["Count"], histogram["Sum"], histogram["Min"], histogram["Max"]) == (3, 5.55, 0.05, 5.0)
    assert (json.loads(histogram["BucketCounts"]), json.loads(histogram["ExplicitBounds"])) == ([1, 1, 1], [0.1, 1.0])
    (sized,) = server.wait_for_rows(1, "metrics", "otel_metrics_exponential_histogram")
    assert (sized["Count"], sum(json.loads(sized["PositiveBucketCounts"]))) == (3, 3)


def test_the_exporter_repeats_what_was_refused(server: Server, tmp_path: Path) -> None:
    with FlakyProxy(server.url, refusals=2) as proxy:
        provider = TracerProvider(resource=RESOURCE)
        exporter: Any = OTLPSpanExporter(f"{proxy.url}/v1/traces?db=flaky")
        provider.add_span_processor(SimpleSpanProcessor(exporter))
        provider.get_tracer("tests").start_span("once").end()
        provider.shutdown()
    assert len(server.wait_for_rows(1, "flaky", "otel_traces")) == 1
    assert proxy.refused == 2
