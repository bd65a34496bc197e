"""An independent, slow reader of OTLP: the messages of the SDK, and a loop over their objects."""

from __future__ import annotations

import base64
import json
import math
import struct
from typing import Any, Final

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

Row = dict[str, Any]

REQUESTS: Final[dict[str, Any]] = {
    "logs": ExportLogsServiceRequest,
    "traces": ExportTraceServiceRequest,
    "metrics": ExportMetricsServiceRequest,
}
KINDS: Final = ("Unspecified", "Internal", "Server", "Client", "Producer", "Consumer")


def any_value(value: Any) -> Any:
    """An AnyValue as Python holds JSON."""
    kind = value.WhichOneof("value")
    if kind is None:
        return None
    content = getattr(value, kind)
    if kind == "array_value":
        return [any_value(one) for one in content.values]
    if kind == "kvlist_value":
        return attributes(content.values)
    if kind == "bytes_value":
        return base64.b64encode(content).decode()
    return double(content) if kind == "double_value" else content


def double(value: float) -> float | str:
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def attributes(pairs: Any) -> dict[str, Any]:
    return {pair.key: any_value(pair.value) for pair in pairs}


def text_of(value: Any) -> Any:
    """The text of a body or a promoted attribute: strings as they are; JSON is compared as what it means."""
    found = any_value(value)
    kind = value.WhichOneof("value")
    return found if kind in (None, "string_value", "bytes_value") else ("json", found)


def trace_id(data: bytes) -> str:
    return data.hex() if len(data) == 16 else ""


def span_id(data: bytes) -> str:
    return data.hex() if len(data) == 8 else ""


def bits(value: Any) -> Any:
    return struct.pack("<d", value) if isinstance(value, float) else value


def origin(resource: Any, scope: Any) -> Row:
    shared = attributes(resource.resource.attributes)
    return {
        "ServiceName": shared["service.name"] if isinstance(shared.get("service.name"), str) else "",
        "ResourceAttributes": shared,
        "ResourceSchemaUrl": resource.schema_url,
        "ScopeName": scope.scope.name,
        "ScopeVersion": scope.scope.version,
        "ScopeAttributes": attributes(scope.scope.attributes),
        "ScopeSchemaUrl": scope.schema_url,
    }


def logs(request: Any) -> dict[str, list[Row]]:
    rows = []
    for resource in request.resource_logs:
        for scope in resource.scope_logs:
            rows += [
                {
                    "time": one.time_unix_nano or one.observed_time_unix_nano or None,
                    "ObservedTimestamp": one.observed_time_unix_nano or None,
                    "TraceId": trace_id(one.trace_id),
                    "SpanId": span_id(one.span_id),
                    "TraceFlags": one.flags,
                    "SeverityText": one.severity_text,
                    "SeverityNumber": one.severity_number,
                    "Body": text_of(one.body),
                    "LogAttributes": attributes(one.attributes),
                    "EventName": one.event_name,
                    "DroppedAttributesCount": one.dropped_attributes_count,
                    **origin(resource, scope),
                }
                for one in scope.log_records
            ]
    return {"otel_logs": rows} if rows else {}


def traces(request: Any) -> dict[str, list[Row]]:
    rows = []
    for resource in request.resource_spans:
        for scope in resource.scope_spans:
            for one in scope.spans:
                start, end = one.start_time_unix_nano, one.end_time_unix_nano
                events = [
                    {"time": event.time_unix_nano, "name": event.name, "attributes": attributes(event.attributes)}
                    for event in one.events
                ]
                links = [
                    {
                        "trace_id": trace_id(link.trace_id),
                        "span_id": span_id(link.span_id),
                        "trace_state": link.trace_state,
                        "attributes": attributes(link.attributes),
                    }
                    for link in one.links
                ]
                rows.append(
                    {
                        "time": start or None,
                        "TraceId": trace_id(one.trace_id),
                        "SpanId": span_id(one.span_id),
                        "ParentSpanId": span_id(one.parent_span_id),
                        "TraceState": one.trace_state,
                        "SpanName": one.name,
                        "SpanKind": KINDS[one.kind],
                        "Duration": end - start if start and end else None,
                        "TraceFlags": one.flags,
                        "StatusCode": ("Unset", "Ok", "Error")[one.status.code],
                        "StatusMessage": one.status.message,
                        "SpanAttributes": attributes(one.attributes),
                        "Events": events or None,
                        "Links": links or None,
                        "DroppedAttributesCount": one.dropped_attributes_count,
                        "DroppedEventsCount": one.dropped_events_count,
                        "DroppedLinksCount": one.dropped_links_count,
                        **origin(resource, scope),
                    }
                )
    return {"otel_traces": rows} if rows else {}


def number(one: Any) -> Any:
    kind = one.WhichOneof("value")
    return None if kind is None else bits(getattr(one, kind))


def optional(one: Any, name: str) -> Any:
    return bits(getattr(one, name)) if one.HasField(name) else None


def exemplars(one: Any) -> Any:
    found = []
    for exemplar in one.exemplars:
        kind = exemplar.WhichOneof("value")
        value = None if kind is None else getattr(exemplar, kind)
        found.append(
            {
                "time": exemplar.time_unix_nano,
                "value": double(value) if isinstance(value, float) else value,
                "trace_id": trace_id(exemplar.trace_id),
                "span_id": span_id(exemplar.span_id),
                "attributes": attributes(exemplar.filtered_attributes),
            }
        )
    return found or None


def own_columns(kind: str, data: Any, one: Any) -> Row:
    """The columns that a kind of data has of its own."""
    if kind in ("gauge", "sum"):
        row = {"Value": number(one), "Exemplars": exemplars(one)}
        if kind == "sum":
            row |= {"AggregationTemporality": data.aggregation_temporality, "IsMonotonic": data.is_monotonic}
        return row
    if kind == "summary":
        quantiles = [{"quantile": double(q.quantile), "value": double(q.value)} for q in one.quantile_values]
        return {"Count": one.count, "Sum": bits(one.sum), "ValueAtQuantiles": quantiles}
    row = {
        "Count": one.count,
        **{name: optional(one, name.lower()) for name in ("Sum", "Min", "Max")},
        "AggregationTemporality": data.aggregation_temporality,
        "Exemplars": exemplars(one),
    }
    if kind == "histogram":
        bounds = [double(bound) for bound in one.explicit_bounds]
        return row | {"BucketCounts": list(one.bucket_counts), "ExplicitBounds": bounds}
    return row | {
        "Scale": one.scale,
        "ZeroCount": one.zero_count,
        "ZeroThreshold": bits(one.zero_threshold),
        "PositiveOffset": one.positive.offset,
        "PositiveBucketCounts": list(one.positive.bucket_counts),
        "NegativeOffset": one.negative.offset,
        "NegativeBucketCounts": list(one.negative.bucket_counts),
    }


def metrics(request: Any) -> dict[str, list[Row]]:
    tables: dict[str, list[Row]] = {}
    for resource in request.resource_metrics:
        for scope in resource.scope_metrics:
            for metric in scope.metrics:
                kind = metric.WhichOneof("data")
                if kind is None:
                    continue
                data = getattr(metric, kind)
                for one in data.data_points:
                    tables.setdefault(f"otel_metrics_{kind}", []).append(
                        {
                            "time": one.time_unix_nano or None,
                            "MetricName": metric.name,
                            "MetricDescription": metric.description,
                            "MetricUnit": metric.unit,
                            "Attributes": attributes(one.attributes),
                            "StartTimeUnix": one.start_time_unix_nano or None,
                            "Flags": one.flags,
                            **own_columns(kind, data, one),
                            **origin(resource, scope),
                        }
                    )
    return tables


READERS: Final = {"logs": logs, "traces": traces, "metrics": metrics}
# Columns whose texts are JSON.
JSON: Final = frozenset(
    {"ResourceAttributes", "ScopeAttributes", "LogAttributes", "SpanAttributes", "Attributes", "Events", "Links"}
    | {"Exemplars", "BucketCounts", "ExplicitBounds", "PositiveBucketCounts", "NegativeBucketCounts"}
    | {"ValueAtQuantiles"}
)


def as_read(row: Row, expected: Row) -> Row:
    """A row that was written, as the slow reader gives it."""
    found = {
        name: json.loads(value) if name in JSON and value is not None else bits(value) for name, value in row.items()
    }
    if isinstance(expected.get("Body"), tuple):
        found["Body"] = ("json", json.loads(row["Body"]))
    return found


def in_stream(expected: Row) -> Row:
    """A row as a stream has it: the column of the values is of doubles."""
    value = expected.get("Value")
    return expected | {"Value": bits(float(value))} if isinstance(value, int) else expected
