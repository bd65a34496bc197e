"""Bodies of remote write, held against protobuf's own parser and a loop over its objects."""

from __future__ import annotations

import json
import struct
from typing import Any, Final

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from arcpipe.codec.collected import ARROW_ROWS
from arcpipe.codec.protobuf.buffer import Buffer
from arcpipe.codec.remote_write.body import Version, encode
from arcpipe.codec.remote_write.tables import Layout
from arcpipe.errors import BadPayload, PayloadTooLarge
from tests.support.entry_rows import ARROW, rows_of
from tests.support.prometheus_messages import V1, V2
from tests.unit.codec.remote_write import reading

(STALE,) = struct.unpack("<d", bytes.fromhex("020000000000f07f"))
TIME: Final = 1_700_000_000_000

both = pytest.mark.parametrize("version", [1, 2])

Labels = dict[str, str]
Series = tuple[Labels, list[tuple[int, float]], list[tuple[Labels, int, float]]]


def make(series: list[Series], version: Version) -> bytes:
    """Make a body of series: labels, samples, and exemplars."""
    if version == 1:
        request = V1["WriteRequest"]()
        for labels, samples, exemplars in series:
            one = request.timeseries.add()
            for name, text in labels.items():
                one.labels.add(name=name, value=text)
            for time, value in samples:
                one.samples.add(timestamp=time, value=value)
            for own, time, value in exemplars:
                exemplar = one.exemplars.add(timestamp=time, value=value)
                for name, text in own.items():
                    exemplar.labels.add(name=name, value=text)
        return bytes(request.SerializeToString())
    request = V2["Request"]()
    symbols = {"": 0}

    def refs(labels: Labels) -> list[int]:
        return [symbols.setdefault(text, len(symbols)) for pair in labels.items() for text in pair]

    for labels, samples, exemplars in series:
        one = request.timeseries.add(labels_refs=refs(labels))
        for time, value in samples:
            one.samples.add(timestamp=time, value=value)
        for own, time, value in exemplars:
            one.exemplars.add(timestamp=time, value=value, labels_refs=refs(own))
    request.symbols.extend(symbols)
    return bytes(request.SerializeToString())


names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=40) | st.sampled_from(["x" * 127, "y" * 200, '"\\'])
times = st.integers(0, 1 << 42)
values = st.floats() | st.just(STALE)
label_sets = st.dictionaries(names, texts, max_size=5).map(lambda labels: {"__name__": "up", **labels})
unsorted = st.dictionaries(names | st.just("__name__"), texts, min_size=1, max_size=5)
series_lists = st.lists(
    st.tuples(
        label_sets | unsorted,
        st.lists(st.tuples(times, values), max_size=3),
        st.lists(st.tuples(st.dictionaries(names, texts, max_size=2), times, values), max_size=2),
    ),
    max_size=5,
)


@both
@given(series=series_lists)
@settings(deadline=None, max_examples=150, suppress_health_check=list(HealthCheck), database=None)
def test_each_record_is_written_as_protobuf_reads_it(version: Version, series: list[Series]) -> None:
    body = make(series, version)
    expected = reading.samples_expected(body, version)
    exemplars = reading.exemplars_expected(body, version)
    for arrow_rows in (ARROW_ROWS, 1):
        outcome = encode(body, version=version, arrow_rows=arrow_rows)
        assert not outcome.errors
        assert reading.samples_written(outcome.encoded) == expected
        assert outcome.samples == len(expected)
        assert reading.exemplars_written(outcome.encoded) == exemplars
        assert outcome.exemplars == len(exemplars)


@both
def test_many_series_of_the_usual_shape_are_written(version: Version) -> None:
    """Several pieces, with each kind of text that needs more than a copy at the end of one of them."""
    series: list[Series] = []
    for number in range(9_000):
        labels = {"__name__": f"m_{number % 7}", "host": f"h{number}", "path": "/" + "x" * (number % 200)}
        if number == 8_000:
            labels["odd"] = 'a "quoted"\n\\ text\x01'
        if number == 8_500:
            labels["z"] = "Ärger 🔥"
        series.append((labels, [(TIME + number, number / 3)], []))
    body = make(series, version)
    expected = reading.samples_expected(body, version)
    for arrow_rows in (ARROW_ROWS, len(series) + 1):
        outcome = encode(body, version=version, arrow_rows=arrow_rows)
        assert outcome.encoded is not None
        assert (outcome.encoded.batch == ARROW) == (arrow_rows == ARROW_ROWS)
        assert reading.samples_written(outcome.encoded) == expected


@both
def test_a_stale_marker_keeps_its_bits(version: Version) -> None:
    outcome = encode(make([({"__name__": "up"}, [(TIME, STALE)], [])], version), version=version)
    ((*_, value),) = reading.samples_written(outcome.encoded)
    assert value == bytes.fromhex("020000000000f07f")


@both
def test_a_series_without_labels_is_left_out_and_told(version: Version) -> None:
    good: Series = ({"__name__": "up"}, [(TIME, 1.0)], [])
    outcome = encode(make([good, ({}, [(TIME, 2.0)], []), good], version), version=version)
    assert (outcome.samples, outcome.errors, outcome.more_errors) == (2, ["series 1: it has no labels"], 0)
    assert len(reading.samples_written(outcome.encoded)) == 2


@both
def test_a_time_that_no_file_can_hold_is_left_out(version: Version) -> None:
    series: list[Series] = [({"__name__": "up"}, [(TIME, 1.0), (1 << 62, 2.0)], [])]
    outcome = encode(make(series, version), version=version)
    assert (outcome.samples, outcome.errors) == (1, [f"series 0: the timestamp {1 << 62} ms is out of range"])


def test_a_label_that_is_there_twice_is_told() -> None:
    request = V1["WriteRequest"]()
    one = request.timeseries.add()
    for name in ("__name__", "kubernetes_namespace_name_of_a_long_kind", "kubernetes_namespace_name_of_a_long_kind"):
        one.labels.add(name=name, value="x")
    one.samples.add(value=1, timestamp=TIME)
    outcome = encode(request.SerializeToString())
    assert outcome.encoded is None
    assert outcome.errors == ["series 0: it has the label 'kubernetes_namespace_name_of_a_long_kind' twice"]


@pytest.mark.parametrize(("refs", "reason"), [([0, 1, 2], "no pairs"), ([1, 9], "beyond the last of 3")])
def test_references_that_lead_nowhere_are_told(refs: list[int], reason: str) -> None:
    request = V2["Request"](symbols=["", "__name__", "up"])
    request.timeseries.add(labels_refs=[1, 2]).samples.add(value=1, timestamp=TIME)
    request.timeseries.add(labels_refs=refs).samples.add(value=2, timestamp=TIME)
    outcome = encode(request.SerializeToString(), version=2)
    assert outcome.samples == 1
    assert reason in outcome.errors[0]


HISTOGRAM: Final[dict[str, Any]] = {
    "count_int": 12,
    "sum": 18.4,
    "schema": -1,
    "zero_threshold": 0.001,
    "zero_count_int": 2,
    "positive_deltas": [1, 1, -1, 0],
    "negative_deltas": [1, 1, -1, 0],
    "reset_hint": 2,
    "timestamp": TIME,
    "custom_values": [0.5, float("inf")],
}


@both
def test_a_native_histogram_is_json(version: Version) -> None:
    if version == 1:
        request = V1["WriteRequest"]()
        one = request.timeseries.add()
        one.labels.add(name="__name__", value="h")
    else:
        request = V2["Request"](symbols=["", "__name__", "h"])
        one = request.timeseries.add(labels_refs=[1, 2])
    histogram = one.histograms.add(**HISTOGRAM)
    histogram.positive_spans.add(offset=0, length=2)
    histogram.positive_spans.add(offset=-1, length=2)
    outcome = encode(request.SerializeToString(), version=version)
    (row,) = rows_of(outcome.encoded)["prometheus_histograms"]
    assert (row["metric"], row["time"], row["count"], row["sum"]) == ("h", TIME, 12, 18.4)
    assert json.loads(row["histogram"]) == {
        "count": 12,
        "schema": -1,
        "zero_threshold": 0.001,
        "zero_count": 2,
        "positive_spans": [[0, 2], [-1, 2]],
        "positive_deltas": [1, 1, -1, 0],
        "negative_deltas": [1, 1, -1, 0],
        "custom_values": [0.5, "Infinity"],
        "reset_hint": "NO",
    }
    assert (outcome.samples, outcome.histograms) == (0, 1)


def test_metadata_of_version_1_is_a_table() -> None:
    request = V1["WriteRequest"]()
    request.metadata.add(type=1, metric_family_name="http_requests_total", help="Requests.", unit="")
    (row,) = rows_of(encode(request.SerializeToString()).encoded)["prometheus_metadata"]
    assert row == {"metric": "http_requests_total", "type": "counter", "help": "Requests.", "unit": ""}
    assert encode(request.SerializeToString(), layout=Layout(metadata=False)).encoded is None


def test_metadata_of_version_2_is_told_once_for_each_metric() -> None:
    request = V2["Request"](symbols=["", "__name__", "up", "host", "a", "b", "Help.", "seconds"])
    for host in (4, 5):
        one = request.timeseries.add(labels_refs=[1, 2, 3, host])
        one.samples.add(value=1, timestamp=TIME)
        one.metadata.type, one.metadata.help_ref, one.metadata.unit_ref = 2, 6, 7
    rows = rows_of(encode(request.SerializeToString(), version=2).encoded)
    assert rows["prometheus_metadata"] == [{"metric": "up", "type": "gauge", "help": "Help.", "unit": "seconds"}]


def test_the_start_of_a_counter_is_a_column() -> None:
    request = V2["Request"](symbols=["", "__name__", "up"])
    one = request.timeseries.add(labels_refs=[1, 2], created_timestamp=5)
    one.samples.add(value=1, timestamp=TIME)
    one.samples.add(value=1, timestamp=TIME, start_timestamp=7)
    rows = rows_of(encode(request.SerializeToString(), version=2).encoded)["prometheus"]
    assert [row["start_ms"] for row in rows] == [5, 7]


@both
def test_a_table_for_each_metric(version: Version) -> None:
    series: list[Series] = [
        ({"__name__": name, "n": str(n)}, [(TIME + n, float(n))], []) for n, name in enumerate(["a", "b", "a", "\x00"])
    ]
    outcome = encode(make(series, version), version=version, layout=Layout(per_metric=True))
    rows = rows_of(outcome.encoded)
    assert {table: [row["value"] for row in found] for table, found in rows.items()} == {
        "a": [0.0, 2.0],
        "b": [1.0],
        "prometheus": [3.0],  # of a name that no table can have
    }


@pytest.mark.slow
def test_too_many_tables_are_refused() -> None:
    series: list[Series] = [({"__name__": f"m{n}"}, [(TIME, 1.0)], []) for n in range(6_000)]
    with pytest.raises(PayloadTooLarge, match="shapes"):
        encode(make(series, 1), layout=Layout(per_metric=True))


@both
def test_promoted_labels_are_columns_besides_the_text(version: Version) -> None:
    series: list[Series] = [
        ({"__name__": "a", "job": "x", "value": "v"}, [(TIME, 1.0)], []),
        ({"__name__": "a"}, [(TIME, 2.0)], []),
    ]
    outcome = encode(make(series, version), version=version, layout=Layout(promote=("job", "value")))
    first, second = rows_of(outcome.encoded)["prometheus"]
    assert (first["job"], first["value_label"], json.loads(first["labels"])["job"]) == ("x", "v", "x")
    assert (second["job"], second["value_label"]) == (None, None)


@pytest.mark.parametrize(
    "body",
    [
        b"\x0a\x05",
        b"\x0a\x02\x0a\x05",
        b"\x0a\x06\x0a\x04\x0a\x02\xff\xfe",  # a name that is not UTF-8
        b"\x0a\x04\x12\x02\x09\x00",
        b"\xff",
    ],
)
def test_a_body_that_is_no_message_is_refused(body: bytes) -> None:
    with pytest.raises(BadPayload):
        encode(body)


def test_an_empty_body_is_no_error() -> None:
    assert encode(b"") == (None, 0, 0, 0, [], 0)


@both
def test_shared_labels_cannot_grow_without_bound(version: Version) -> None:
    """A label of 1 MB for 200 samples would take 200 MB."""
    series: list[Series] = [({"__name__": "a", "x": "y" * (1 << 20)}, [(TIME, 1.0)] * 200, [])]
    with pytest.raises(PayloadTooLarge, match="texts that many records share"):
        encode(make(series, version), version=version)


@pytest.mark.parametrize("metrics", [60, 70])
def test_a_help_text_that_many_metrics_share_is_bounded(metrics: int) -> None:
    """500 kB became an entry of 1 GB: each metric had a copy of one text of 500 kB."""
    request = V2["Request"](symbols=["", "__name__", "h" * 1_000_000])
    for number in range(metrics):
        request.symbols.append(f"metric_{number}")
        one = request.timeseries.add(labels_refs=[1, number + 3])
        one.metadata.help_ref = 2
    body = bytes(request.SerializeToString())
    if metrics == 60:
        assert len(rows_of(encode(body, version=2).encoded)["prometheus_metadata"]) == 60
    else:
        with pytest.raises(PayloadTooLarge, match="texts that many records share would take more than 64 MB"):
            encode(body, version=2)


def test_long_names_that_many_series_share_are_not_copied_for_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """They were, to compare them: seconds for a body of a megabyte, minutes for one of ten."""
    copied = 0
    copy = Buffer.slice

    def counted(buffer: Buffer, start: int, end: int) -> bytes:
        nonlocal copied
        copied += end - start
        return copy(buffer, start, end)

    monkeypatch.setattr(Buffer, "slice", counted)
    request = V2["Request"](symbols=["", "x", "n" * 400_000 + "b", "n" * 400_000 + "a"])
    for _ in range(1000):
        request.timeseries.add(labels_refs=[2, 1, 3, 1])
    body = bytes(request.SerializeToString())
    with pytest.raises(PayloadTooLarge, match="texts that many records share would take more than 64 MB"):
        encode(body, version=2)
    assert copied < len(body)


def test_many_bytes_of_symbols_are_written_as_few_are() -> None:
    """Above 4 MB of symbols, each piece makes JSON of those that it refers to."""
    series: list[Series] = []
    for number in range(3_000):
        labels = {
            "__name__": f"m_{number % 7}",
            "host": f"h{number % 900}" * 300,
            'path "': '/"\n\\\x01ü' * 250 + str(number),
        }
        series.append((labels, [(TIME + number, number / 3)], [({"trace": f"t{number}" * 9}, TIME, 0.5)]))
    body = make(series, 2)
    outcome = encode(body, version=2)
    assert not outcome.errors
    assert reading.samples_written(outcome.encoded) == reading.samples_expected(body, 2)
    assert reading.exemplars_written(outcome.encoded) == reading.exemplars_expected(body, 2)
    request = V2["Request"].FromString(body)
    assert sum(map(len, request.symbols)) > 5_000_000
    request.symbols.append("x" * 1000)  # nobody refers to it
    encoded = bytes(request.SerializeToString())
    with pytest.raises(BadPayload, match="a symbol is not UTF-8"):
        encode(encoded.replace(b"x" * 1000, b"\xff" * 1000), version=2)
