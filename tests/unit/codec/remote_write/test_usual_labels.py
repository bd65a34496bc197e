"""The quick way through labels, held against the general one.

Both read alike what the quick one takes; the rest it leaves as it came.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from arcpipe.codec.effort import go_on
from arcpipe.codec.protobuf.buffer import Buffer
from arcpipe.codec.protobuf.pairs import is_named, read_pairs
from arcpipe.codec.protobuf.scan import LENGTH_DELIMITED, scan, scan_one
from arcpipe.codec.remote_write.labels import METRIC_NAME, find_bad, json_of, values_of
from arcpipe.codec.remote_write.usual_labels import read_usual
from arcpipe.errors import BadPayload
from tests.support.prometheus_messages import V1

PROMOTE: Final = ("job", "kubernetes_io_arch")

names = st.sampled_from(
    ["a", "az", "instance", "job", "kubernetes_io_arch", "kubernetes_io_os", "kubernetes_io_arch_of_this_node", "pod"]
) | st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=30) | st.just("x" * 128)
plain_texts = st.text("abcxyz0189:/._- é🔥", min_size=1, max_size=30)  # an empty one is left out by protobuf
bytes_at = st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(0, 255)), max_size=3)


def make(series: list[dict[str, str]]) -> bytes:
    """Make a body of series with a sample each, and labels in the order of their names."""
    request = V1["WriteRequest"]()
    for number, labels in enumerate(series):
        one = request.timeseries.add()
        metric = labels.pop("__name__", "up")
        for name, text in [("__name__", metric), *sorted(labels.items())]:
            one.labels.add(name=name, value=text)
        one.samples.add(timestamp=number + 1, value=number / 2)
    return bytes(request.SerializeToString())


def compare(body: bytes) -> bool:
    """Read the series of a body both ways; tell whether the quick one took them."""
    try:
        buffer, other = Buffer(body), Buffer(body)
        _, starts, ends = scan_one(buffer, buffer.start, buffer.end, go_on).of(1, LENGTH_DELIMITED)
    except BadPayload:
        return False
    if not len(starts):
        return False
    try:
        usual = read_usual(buffer, starts, ends, PROMOTE, go_on)
    except BadPayload:  # of the fields after the labels
        return False
    if usual is None:
        assert bytes(buffer.text) == bytes(other.text)
        return False
    fields = scan(other, starts, ends, go_on)
    labels = read_pairs(other, fields.of(1, LENGTH_DELIMITED), len(starts), go_on)
    assert not find_bad(other, labels, go_on)
    assert usual.metric.to_pylist() == values_of(other, labels, METRIC_NAME).to_pylist()
    assert usual.labels.to_pylist() == json_of(other, labels.chosen(~is_named(other, labels, METRIC_NAME))).to_pylist()
    for name, promoted in zip(PROMOTE, usual.promoted, strict=True):
        assert promoted.to_pylist() == values_of(other, labels, name.encode()).to_pylist()
    rest = np.flatnonzero(fields.number != 1)
    for column in fields._fields:
        assert np.array_equal(getattr(usual.rest, column), getattr(fields, column)[rest])
    return True


@given(series=st.lists(st.dictionaries(names, texts, max_size=6), min_size=1, max_size=6), overwritten=bytes_at)
@settings(deadline=None, max_examples=150, suppress_health_check=list(HealthCheck), database=None)
def test_both_ways_read_labels_alike_or_the_quick_one_leaves_them(
    series: list[dict[str, str]], overwritten: list[tuple[int, int]]
) -> None:
    """Also of bodies in which some bytes were written over."""
    body = bytearray(make(series))
    for at, byte in overwritten:
        body[at % len(body)] = byte
    compare(bytes(body))


usual_names = st.sampled_from(["a", "az", "instance", "job", "kubernetes_io_arch", "kubernetes_io_os", "pod", "Ärger"])


@given(series=st.lists(st.dictionaries(usual_names, plain_texts, max_size=6), min_size=1, max_size=90))
@settings(deadline=None, max_examples=60, suppress_health_check=list(HealthCheck), database=None)
def test_plain_labels_in_order_take_the_quick_way(series: list[dict[str, str]]) -> None:
    assert compare(make([{name: text for name, text in one.items() if name > "__name__"} for one in series]))
