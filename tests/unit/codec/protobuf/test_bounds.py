"""Bounds of the scanner: what no useful body has is refused before it takes memory or time."""

from __future__ import annotations

import numpy as np
import pytest

from arcpipe.codec.otlp.body import encode as encode_otlp
from arcpipe.codec.protobuf.buffer import Buffer
from arcpipe.codec.protobuf.fields import MAX_PACKED_BYTES, packed_fixed64, packed_varints
from arcpipe.codec.protobuf.pieces import MAX_MESSAGE_BYTES, pieces
from arcpipe.codec.protobuf.scan import MAX_FIELDS, Spans, scan_one
from arcpipe.codec.remote_write.body import encode as encode_series
from arcpipe.errors import BadPayload
from benchmarks.load.telemetry import sized


def check() -> None:
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


def test_histograms_of_a_piece_are_bounded() -> None:
    name = sized(1, sized(1, b"__name__") + sized(2, b"h"))
    with pytest.raises(BadPayload, match="65536 native histograms"):
        encode_series(sized(1, name + sized(4, b"") * 65_537))


@pytest.mark.parametrize(("number", "what"), [(1, "resources"), (2, "scopes")])
def test_resources_and_scopes_are_bounded(number: int, what: str) -> None:
    many = sized(number, b"") * 65_537
    with pytest.raises(BadPayload, match=f"65536 {what}"):
        encode_otlp(many if number == 1 else sized(1, many), signal="logs")
