"""Attributes that are texts take a quicker way than others; both are held against the SDK's own messages."""

from __future__ import annotations

from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord

from arcpipe.codec.effort import go_on
from arcpipe.codec.otlp.body import encode
from arcpipe.codec.otlp.plain_attributes import plain_objects
from arcpipe.codec.protobuf.buffer import Buffer
from arcpipe.codec.protobuf.pairs import read_pairs
from arcpipe.codec.protobuf.scan import LENGTH_DELIMITED, scan, scan_one
from benchmarks.load.telemetry import sized
from tests.support.entry_rows import rows_of
from tests.unit.codec.otlp.reading import READERS, REQUESTS, as_read

names = st.sampled_from(["http.route", "k8s.pod.name", "Ärger", "x" * 130, 'a"b']) | st.text(
    st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12
)
plain = st.text("abcxyz019/:. é🔥", max_size=20)
others = st.sampled_from(['"', "\\", "a\nb", "y" * 128]) | st.integers(-5, 5) | st.booleans() | st.none()
attribute_sets = st.dictionaries(names, plain | others, max_size=4) | st.dictionaries(names, plain, max_size=4)
# The second part of a record's attributes comes after another field.
records = st.lists(st.tuples(attribute_sets, attribute_sets | st.just({})), min_size=1, max_size=8)


def attributes_of(attributes: dict[str, Any]) -> list[KeyValue]:
    def value(content: Any) -> AnyValue:
        if isinstance(content, str):
            return AnyValue(string_value=content)
        if isinstance(content, bool):
            return AnyValue(bool_value=content)
        return AnyValue() if content is None else AnyValue(int_value=content)

    return [KeyValue(key=name, value=value(content)) for name, content in attributes.items()]


def record_of(first: dict[str, Any], second: dict[str, Any]) -> bytes:
    rest = {name: content for name, content in second.items() if name not in first}
    early = LogRecord(attributes=attributes_of(first)).SerializeToString()
    late = LogRecord(attributes=attributes_of(rest)).SerializeToString()
    return bytes(early + LogRecord(severity_text="INFO").SerializeToString() + late)


@given(records=records)
@settings(deadline=None, max_examples=100, suppress_health_check=list(HealthCheck), database=None)
def test_attributes_of_all_kinds_are_written_beside_one_another(records: list[tuple[Any, Any]]) -> None:
    body = sized(1, sized(2, b"".join(sized(2, record_of(*parts)) for parts in records)))
    expected = READERS["logs"](REQUESTS["logs"].FromString(body))["otel_logs"]
    for arrow_rows in (1 << 40, 1):
        outcome = encode(body, signal="logs", promote=("http.route",), arrow_rows=arrow_rows)
        for row, one in zip(rows_of(outcome.encoded)["otel_logs"], expected, strict=True):
            route = row.pop("http.route", None)
            assert as_read(row, one) | one == one
            assert as_read(row, one)["LogAttributes"] == one["LogAttributes"]
            assert (route is None) == (one["LogAttributes"].get("http.route") is None)


texts = st.dictionaries(st.sampled_from(["http.route", "pod", "Ärger"]), plain, min_size=1, max_size=3)


@given(sets=st.lists(texts, min_size=1, max_size=80), odd=st.integers(0, 79))
@settings(deadline=None, max_examples=60, suppress_health_check=list(HealthCheck), database=None)
def test_texts_that_need_no_escapes_take_the_quick_way(sets: list[dict[str, str]], odd: int) -> None:
    """A message with a quote among them takes the other one, and spoils no byte for it."""
    odd %= len(sets)
    sets[odd] = {"quote": 'say "hi"'}
    body = b"".join(sized(2, record_of(one, {})) for one in sets)
    buffer = Buffer(body)
    top = scan_one(buffer, buffer.start, buffer.end, go_on).of(2, LENGTH_DELIMITED)
    spans = scan(buffer, top.start, top.end, go_on).of(6, LENGTH_DELIMITED)
    _, done = plain_objects(buffer, spans, read_pairs(buffer, spans, len(sets), go_on))
    assert done.tolist() == [number != odd for number in range(len(sets))]
    assert bytes(buffer.text) == bytes(Buffer(body).text)
