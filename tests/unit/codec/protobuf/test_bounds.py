"""Bounds of the scanner: what no useful body has is refused before it takes memory or time."""

from __future__ import annotations

import numpy as np
import pytest

from arcpipe.codec.otlp.body import Signal
from arcpipe.codec.otlp.body import encode as encode_otlp
from arcpipe.codec.otlp.values import MOST_IN_ONE_PLACE
from arcpipe.codec.protobuf.buffer import Buffer
from arcpipe.codec.protobuf.fields import MAX_PACKED_BYTES, packed_fixed64, packed_varints
from arcpipe.codec.protobuf.pieces import MAX_MESSAGE_BYTES, pieces
from arcpipe.codec.protobuf.scan import MAX_FIELDS, Spans, scan_one
from arcpipe.codec.remote_write.body import encode as encode_series
from arcpipe.codec.remote_write.histograms import MAX_HISTOGRAM_BYTES
from arcpipe.codec.remote_write.labels import MAX_LABELS
from arcpipe.errors import BadPayload
from benchmarks.load.telemetry import sized


def check(_seconds: float = 0.0, /) -> None:
    """Nothing else to do."""


@pytest.mark.slow
def test_fields_are_bounded() -> None:
    buffer = Buffer(b"\x0a\x00" * (MAX_FIELDS + 1))
    with pytest.raises(BadPayload, match="fields in messages of one kind"):
        scan_one(buffer, buffer.start, buffer.end, check)


def test_packed_numbers_are_bounded() -> None:
    buffer = Buffer(sized(1, bytes(MAX_PACKED_BYTES + 8)))
    fields = scan_one(buffer, buffer.start, buffer.end, check)
    for read in (packed_varints, packed_fixed64):
        with pytest.raises(BadPayload, match="packed numbers in one place"):
            read(buffer, fields, 1)


@pytest.mark.parametrize(("content", "reason"), [(b"\x80", "within a varint"), (b"\x80" * 11 + b"\x01", "ten bytes")])
def test_packed_varints_end_where_they_should(content: bytes, reason: str) -> None:
    buffer = Buffer(sized(1, content))
    with pytest.raises(BadPayload, match=reason):
        packed_varints(buffer, scan_one(buffer, buffer.start, buffer.end, check), 1)


def test_a_piece_has_one_message_and_a_bound() -> None:
    buffer = Buffer(bytes(3 << 20))
    ends = buffer.start + np.array([0, 2 << 20, (2 << 20) + 1, 3 << 20])
    starts = np.concatenate(([buffer.start], ends[:-1]))
    found = list(pieces(buffer, Spans(np.arange(4), starts, ends)))
    assert [piece.owner.tolist() for piece in found] == [[0], [1], [2, 3]]
    empty = np.full(40_000, buffer.start)
    assert [len(piece.owner) for piece in pieces(buffer, Spans(empty, empty, empty))] == [16_384, 16_384, 7_232]
    too_large = np.array([buffer.start + MAX_MESSAGE_BYTES + 1])
    with pytest.raises(BadPayload, match="at byte 0 has more than"):
        list(pieces(buffer, Spans(np.zeros(1, np.int64), np.array([buffer.start]), too_large)))


NAME = sized(1, sized(1, b"__name__") + sized(2, b"h"))


def test_labels_of_a_series_are_bounded_and_others_are_written() -> None:
    sample = sized(2, b"\x09" + bytes(8) + b"\x10\x01")
    labels = [sized(1, sized(1, b"l%04d" % at) + sized(2, b"v")) for at in range(MAX_LABELS)]
    found = encode_series(
        sized(1, NAME + b"".join(labels) + sample)
        + sized(1, NAME + b"".join(labels[1:]) + sample)
        + sized(1, NAME + b"".join(reversed(labels)) + sample)
    )
    reason = f"it has more than {MAX_LABELS} labels"
    assert found.errors == [f"series 0: {reason}", f"series 2: {reason}"]
    assert found.samples == 1


def test_labels_out_of_order_let_others_run() -> None:
    calls = 0

    def count(*_: float) -> None:
        nonlocal calls
        calls += 1

    labels = b"".join(sized(1, sized(1, b"l%04d" % (900 - at)) + sized(2, b"v")) for at in range(900))
    encode_series(sized(1, labels + NAME) * 40, count)
    few = calls
    calls = 0
    encode_series(sized(1, labels + NAME) * 80, count)
    assert calls >= few + 40 * 900 // 4096


def test_a_histogram_is_bounded() -> None:
    large = sized(1, NAME + sized(4, sized(11, b"") * (MAX_HISTOGRAM_BYTES // 2)))
    assert encode_series(large).histograms == 1
    with pytest.raises(BadPayload, match=f"the native histogram at byte .* has more than {MAX_HISTOGRAM_BYTES} bytes"):
        encode_series(sized(1, NAME + sized(4, sized(11, b"") * (MAX_HISTOGRAM_BYTES // 2 + 1))))


@pytest.mark.parametrize(("signal", "field"), [("traces", b"\x5a\x00"), ("traces", b"\x6a\x00"), ("logs", b"\x32\x00")])
def test_what_one_record_holds_is_bounded(signal: Signal, field: bytes) -> None:
    body = sized(1, sized(2, sized(2, field * (MOST_IN_ONE_PLACE + 1))))
    with pytest.raises(BadPayload, match=f"more than {MOST_IN_ONE_PLACE} attributes, events or exemplars"):
        encode_otlp(body, signal=signal)


def test_histograms_of_a_piece_are_bounded() -> None:
    name = sized(1, sized(1, b"__name__") + sized(2, b"h"))
    with pytest.raises(BadPayload, match="65536 native histograms"):
        encode_series(sized(1, name + sized(4, b"") * 65_537))


@pytest.mark.parametrize(("number", "what"), [(1, "resources"), (2, "scopes")])
def test_resources_and_scopes_are_bounded(number: int, what: str) -> None:
    many = sized(number, b"") * 65_537
    with pytest.raises(BadPayload, match=f"65536 {what}"):
        encode_otlp(many if number == 1 else sized(1, many), signal="logs")
