"""The load of `Load` as telemetry, in turn: remote write 1.0, and logs, spans and gauges of OTLP."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from tests.support.http import request_bytes
from tests.support.load import Load
from tests.support.prometheus_messages import V1
from tests.unit.codec.otlp.reading import REQUESTS

PATHS = ("/api/v1/write", "/v1/logs", "/v1/traces", "/v1/metrics")


class TelemetryLoad(Load):
    """Sends its numbered records as senders of Prometheus and OpenTelemetry do."""

    TAKEN = (200, 204)
    # A log has its id as text, a span as its name, samples and points as their value.
    FOUND = """
        SELECT coalesce(TRY_CAST(value AS BIGINT), TRY_CAST(Body AS BIGINT), TRY_CAST(SpanName AS BIGINT)) AS id,
            id / 4 AS value, 'host-0' AS host
        FROM read_parquet(?, union_by_name = true, hive_partitioning = false)
    """

    def _request(self, number: int) -> bytes:
        ids = range(number * self.RECORDS, (number + 1) * self.RECORDS)
        start = 1_767_225_600 + number % 2 * self.HOUR
        kind = number % len(PATHS)
        body = _MAKERS[kind](ids, start)
        headers = {"x-arc-database": self.DATABASES[number % 5 % 2], "Content-Type": "application/x-protobuf"}
        if kind == 0:
            headers["Content-Encoding"] = "snappy"
            body = pa.Codec("snappy").compress(body, asbytes=True)
        return request_bytes("POST", PATHS[kind], body, headers)


def _series(ids: range, start: int) -> bytes:
    request = V1["WriteRequest"]()
    for at, identity in enumerate(ids):
        series = request.timeseries.add()
        series.labels.add(name="__name__", value=f"m{at % 3}")
        series.labels.add(name="pad", value="x" * 300)
        series.samples.add(value=float(identity), timestamp=(start + at) * 1000)
    return bytes(request.SerializeToString())


def _logs(ids: range, start: int) -> bytes:
    request = REQUESTS["logs"]()
    records = request.resource_logs.add().scope_logs.add().log_records
    for at, identity in enumerate(ids):
        one = records.add(time_unix_nano=(start + at) * 1_000_000_000)
        one.body.string_value = str(identity)
        _pad(one)
    return bytes(request.SerializeToString())


def _spans(ids: range, start: int) -> bytes:
    request = REQUESTS["traces"]()
    spans = request.resource_spans.add().scope_spans.add().spans
    for at, identity in enumerate(ids):
        _pad(spans.add(name=str(identity), start_time_unix_nano=(start + at) * 1_000_000_000))
    return bytes(request.SerializeToString())


def _points(ids: range, start: int) -> bytes:
    request = REQUESTS["metrics"]()
    metric = request.resource_metrics.add().scope_metrics.add().metrics.add(name="m")
    for at, identity in enumerate(ids):
        point = metric.gauge.data_points.add(time_unix_nano=(start + at) * 1_000_000_000, as_double=float(identity))
        _pad(point)
    return bytes(request.SerializeToString())


def _pad(item: Any) -> None:
    item.attributes.add(key="pad").value.string_value = "x" * 300


_MAKERS = (_series, _logs, _spans, _points)
