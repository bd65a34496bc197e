"""Requests of OTLP, held against the SDK's own messages and a loop over their objects."""

from __future__ import annotations

import base64
import json
from typing import Any, Final

import pytest
from google.protobuf.json_format import MessageToDict

from arcpipe.codec.effort import go_on
from arcpipe.codec.otlp.body import Signal, encode
from arcpipe.codec.otlp.json_form import from_json
from arcpipe.errors import BadPayload, PayloadTooLarge
from tests.support.entry_rows import ARROW, rows_of
from tests.support.sets import IS_LONG
from tests.unit.codec.otlp.messages import NOW, Maker
from tests.unit.codec.otlp.reading import READERS, REQUESTS, as_read, in_stream

SIGNALS: Final[tuple[Signal, ...]] = ("logs", "traces", "metrics")
each = pytest.mark.parametrize("signal", SIGNALS)
SEEDS: Final = 2_000 if IS_LONG else 14


def assert_written(request: Any, signal: Signal, body: bytes, *, is_json: bool = False) -> None:
    expected = READERS[signal](request)
    for arrow_rows in (1 << 40, 1):
        outcome = encode(body, signal=signal, is_json=is_json, arrow_rows=arrow_rows)
        assert outcome.refused == 0
        written = rows_of(outcome.encoded)
        assert written.keys() == expected.keys()
        is_stream = outcome.encoded is not None and outcome.encoded.batch == ARROW
        for table, rows in expected.items():
            for row, one in zip(written[table], rows, strict=True):
                found = as_read(row, one)
                if is_stream:
                    one = in_stream(one)
                    found = {name: found.get(name) for name in one} | found
                assert found == one


@each
@pytest.mark.parametrize("seed", range(SEEDS))
def test_each_item_is_written_as_the_sdk_reads_it(signal: Signal, seed: int) -> None:
    request = Maker(seed).request(signal)
    assert_written(request, signal, request.SerializeToString())


@each
@pytest.mark.slow
def test_many_items_are_written_in_pieces(signal: Signal) -> None:
    """One resource with one scope has most of the items, as senders put them together."""
    maker = Maker(1)
    request = REQUESTS[signal]()
    while len(request.ListFields()) == 0 or request.ByteSize() < 1 << 18:
        request.MergeFrom(maker.request(signal, 6))
    scopes = next(field for field, _ in request.ListFields()[0][1][0].ListFields() if field.name.startswith("scope_"))
    scope = getattr(request.ListFields()[0][1][0], scopes.name)[0]
    for _ in range(2_500):
        getattr(maker, f"_{signal}")(scope)
    assert request.ByteSize() > 1 << 20
    assert_written(request, signal, request.SerializeToString())


def json_of(request: Any) -> bytes:
    """The JSON of OTLP: ids are hexadecimal, and enums numbers."""

    def patched(value: Any, key: str = "") -> Any:
        if isinstance(value, dict):
            return {name: patched(one, name) for name, one in value.items()}
        if isinstance(value, list):
            return [patched(one) for one in value]
        return base64.b64decode(value).hex() if key in ("traceId", "spanId", "parentSpanId") else value

    return json.dumps(patched(MessageToDict(request, use_integers_for_enums=True))).encode()


@each
@pytest.mark.parametrize("seed", range(SEEDS // 2))
def test_json_means_the_same_as_protobuf(signal: Signal, seed: int) -> None:
    request = Maker(seed).request(signal)
    again = REQUESTS[signal].FromString(from_json(json_of(request), signal, go_on))
    assert str(again) == str(request)
    assert_written(request, signal, json_of(request), is_json=True)


@each
def test_a_time_beyond_the_range_is_refused_and_counted(signal: Signal) -> None:
    request = REQUESTS[signal]()
    bad, good = (1 << 63) + 1, NOW
    for time in (bad, good, bad):
        if signal == "logs":
            request.resource_logs.add().scope_logs.add().log_records.add(time_unix_nano=time)
        elif signal == "traces":
            request.resource_spans.add().scope_spans.add().spans.add(start_time_unix_nano=time)
        else:
            metric = request.resource_metrics.add().scope_metrics.add().metrics.add(name="m")
            metric.gauge.data_points.add(time_unix_nano=time)
    outcome = encode(request.SerializeToString(), signal=signal)
    assert (outcome.refused, outcome.encoded and outcome.encoded.records) == (2, 1)
    assert "2262" in outcome.reason


def test_promoted_attributes_are_columns_of_the_item_or_its_resource() -> None:
    request = REQUESTS["logs"]()
    resource = request.resource_logs.add()
    resource.resource.attributes.add(key="host.name").value.string_value = "r"
    records = resource.scope_logs.add().log_records
    records.add(time_unix_nano=NOW).attributes.add(key="host.name").value.string_value = "own"
    records.add(time_unix_nano=NOW).attributes.add(key="Body").value.int_value = 7
    outcome = encode(request.SerializeToString(), signal="logs", promote=("host.name", "Body"))
    first, second = rows_of(outcome.encoded)["otel_logs"]
    assert (first["host.name"], first["Body_attribute"]) == ("own", None)
    assert (second["host.name"], second["Body_attribute"]) == ("r", "7")


def deep(levels: int) -> bytes:
    request = REQUESTS["logs"]()
    value = request.resource_logs.add().scope_logs.add().log_records.add(time_unix_nano=NOW).body
    for _ in range(levels):
        value = value.array_value.values.add()
    value.string_value = "x"
    return bytes(request.SerializeToString())


def test_nesting_is_bounded() -> None:
    assert encode(deep(20), signal="logs").encoded is not None
    with pytest.raises(BadPayload, match="more than 32 deep"):
        encode(deep(40), signal="logs")


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"{", "no JSON"),
        (b"[]", "logs is no object"),
        (b'{"resourceLogs": {}}', "logs.resourceLogs is no array"),
        (b'{"resourceLogs": [{"schemaUrl": 1}]}', r"logs.resourceLogs\[0\].schemaUrl is no string"),
        (b'{"resource_logs": [{"scopeLogs": [{"logRecords": [{"timeUnixNano": "x"}]}]}]}', "no integer in range"),
        (b'{"resourceLogs": [{"scopeLogs": [{"logRecords": [{"traceId": "zz"}]}]}]}', "no hexadecimal text"),
        (b'{"resourceLogs": [{"scopeLogs": [{"logRecords": [{"severityNumber": -1}]}]}]}', "no integer in range"),
    ],
)
def test_json_of_another_shape_is_refused_with_its_place(body: bytes, reason: str) -> None:
    with pytest.raises(BadPayload, match=reason):
        encode(body, signal="logs", is_json=True)


def log_in_json(**members: Any) -> bytes:
    return json.dumps({"resourceLogs": [{"scopeLogs": [{"logRecords": [members]}]}]}).encode()


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        *(("intValue", text) for text in ("1_0", " 7", "7\n", "+7", "\u0667", "0x7", "", "9223372036854775808")),
        *(("doubleValue", text) for text in ("1_0", " 7", "inf", "nan", "-infinity", "\u0667", "", "1e400", "1e")),
    ],
)
def test_text_that_is_a_number_to_python_alone_is_none(kind: str, text: str) -> None:
    with pytest.raises(BadPayload, match=f"body.{kind} is no "):
        encode(log_in_json(body={kind: text}), signal="logs", is_json=True)


@pytest.mark.parametrize(
    ("kind", "text", "body"),
    [
        ("intValue", "-9223372036854775808", "-9223372036854775808"),
        ("doubleValue", "-1.5E3", "-1500.0"),
        ("doubleValue", "-Infinity", '"-Infinity"'),
    ],
)
def test_numbers_may_be_text(kind: str, text: str, body: str) -> None:
    found = encode(log_in_json(body={kind: text}), signal="logs", is_json=True)
    (row,) = rows_of(found.encoded)["otel_logs"]
    assert row["Body"] == body


@pytest.mark.parametrize("id_", ["ab cd" + "0" * 28, "0" * 31, "\u0660" * 32, 5])
def test_an_id_is_nothing_but_hexadecimal_digits(id_: Any) -> None:
    with pytest.raises(BadPayload, match="traceId is no hexadecimal text"):
        encode(log_in_json(traceId=id_), signal="logs", is_json=True)


@each
def test_an_empty_request_is_no_error(signal: Signal) -> None:
    assert encode(b"", signal=signal) == (None, 0, "")
    assert encode(b"{}", signal=signal, is_json=True) == (None, 0, "")


def test_unknown_names_of_json_are_skipped() -> None:
    body = (
        b'{"new": [1], "resourceLogs": [{"scopeLogs": [{"logRecords": [{"x": {}, "body": {"stringValue": "hi"}}]}]}]}'
    )
    outcome = encode(body, signal="logs", is_json=True)
    assert [row["Body"] for row in rows_of(outcome.encoded)["otel_logs"]] == ["hi"]


def test_shared_attributes_cannot_grow_without_bound() -> None:
    """A resource of 1 MB for 2,000 empty records would take 2 GB."""
    request = REQUESTS["logs"]()
    resource = request.resource_logs.add()
    resource.resource.attributes.add(key="k").value.string_value = "x" * (1 << 20)
    records = resource.scope_logs.add().log_records
    for _ in range(2_000):
        records.add()
    with pytest.raises(PayloadTooLarge, match="texts that many records share would take more than 64 MB"):
        encode(request.SerializeToString(), signal="logs")


def test_what_shared_attributes_take_is_told() -> None:
    request = REQUESTS["logs"]()
    resource = request.resource_logs.add()
    resource.resource.attributes.add(key="k").value.string_value = "x" * 10_000
    records = resource.scope_logs.add().log_records
    for _ in range(2_000):
        records.add()
    taken: list[int] = []
    encode(request.SerializeToString(), lambda _seconds=0.0, taken_bytes=0, /: taken.append(taken_bytes), signal="logs")
    assert max(taken) == pytest.approx(20_000_000, rel=0.01)


def test_a_body_in_json_is_bounded() -> None:
    with pytest.raises(PayloadTooLarge, match="a body in JSON has more than 4194304 bytes"):
        encode(b" " * (4 << 20) + b"{}", signal="logs", is_json=True)
