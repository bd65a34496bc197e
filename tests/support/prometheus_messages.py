"""The messages of Prometheus remote write, made from the fields that the specifications list.

Protobuf's own library serialises and parses them: it is the independent reader of what the server decodes.
"""

from __future__ import annotations

from typing import Any, Final

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

_KINDS: Final = descriptor_pb2.FieldDescriptorProto

_HISTOGRAM: Final = """
    uint64 count_int 1; double count_float 2; double sum 3; sint32 schema 4; double zero_threshold 5
    uint64 zero_count_int 6; double zero_count_float 7; *BucketSpan negative_spans 8; *sint64 negative_deltas 9
    *double negative_counts 10; *BucketSpan positive_spans 11; *sint64 positive_deltas 12; *double positive_counts 13
    uint32 reset_hint 14; int64 timestamp 15; *double custom_values 16
"""
_SPAN: Final = "sint32 offset 1; uint32 length 2"

# Message to fields, each `type name number`; `*` repeats it.
_VERSION_1: Final = {
    "Label": "string name 1; string value 2",
    "Sample": "double value 1; int64 timestamp 2",
    "Exemplar": "*Label labels 1; double value 2; int64 timestamp 3",
    "BucketSpan": _SPAN,
    "Histogram": _HISTOGRAM,
    "MetricMetadata": "uint32 type 1; string metric_family_name 2; string help 4; string unit 5",
    "TimeSeries": "*Label labels 1; *Sample samples 2; *Exemplar exemplars 3; *Histogram histograms 4",
    "WriteRequest": "*TimeSeries timeseries 1; *MetricMetadata metadata 3",
}
_VERSION_2: Final = {
    "Sample": "double value 1; int64 timestamp 2; int64 start_timestamp 3",
    "Exemplar": "*uint32 labels_refs 1; double value 2; int64 timestamp 3",
    "BucketSpan": _SPAN,
    "Histogram": _HISTOGRAM + "; int64 start_timestamp 17",
    "Metadata": "uint32 type 1; uint32 help_ref 3; uint32 unit_ref 4",
    "TimeSeries": "*uint32 labels_refs 1; *Sample samples 2; *Histogram histograms 3; *Exemplar exemplars 4; "
    "Metadata metadata 5; int64 created_timestamp 6",
    "Request": "*string symbols 4; *TimeSeries timeseries 5",
}


def _classes(package: str, messages: dict[str, str]) -> dict[str, Any]:
    file = descriptor_pb2.FileDescriptorProto(name=f"{package}.proto", package=package, syntax="proto3")
    for name, fields in messages.items():
        message = file.message_type.add(name=name)
        for field in fields.replace("\n", ";").split(";"):
            if not field.strip():
                continue
            type_, field_name, number = field.split()
            repeated, type_ = type_.startswith("*"), type_.lstrip("*")
            added = message.field.add(name=field_name, number=int(number))
            added.label = _KINDS.LABEL_REPEATED if repeated else _KINDS.LABEL_OPTIONAL
            if type_ in messages:
                added.type, added.type_name = _KINDS.TYPE_MESSAGE, f".{package}.{type_}"
            else:
                added.type = getattr(_KINDS, f"TYPE_{type_.upper()}")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{package}.{name}")) for name in messages}


V1: Final = _classes("prometheus", _VERSION_1)
"""Messages of version 1 by name; `WriteRequest` is a body."""
V2: Final = _classes("write_v2", _VERSION_2)
"""Messages of version 2 by name; `Request` is a body."""
