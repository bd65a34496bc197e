"""Values of attributes (`AnyValue`) as JSON text, a level of nesting at a time."""

from __future__ import annotations

import base64
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from arcpipe.codec.effort import Check
from arcpipe.codec.json_texts import arrays, doubles, numbers, objects, quoted
from arcpipe.codec.otlp.plain_attributes import plain_objects
from arcpipe.codec.protobuf.buffer import Buffer, Bytes, Ints
from arcpipe.codec.protobuf.pairs import Pairs, read_pairs
from arcpipe.codec.protobuf.scan import FIXED64, LENGTH_DELIMITED, VARINT, Spans, scan
from arcpipe.codec.protobuf.varints import read_varints
from arcpipe.errors import BadPayload

MAX_DEPTH: Final = 32
"""Lists and maps within each other. Readers of JSON take as many; no telemetry has them."""

MOST_IN_ONE_PLACE: Final = 1 << 18
"""Attributes, events or the like that are read in one call: a step takes some 10 ms for these."""

_STRING, _BOOL, _INT, _DOUBLE, _ARRAY, _MAP, _BYTES = range(1, 8)
_WIRES: Final = {
    _STRING: LENGTH_DELIMITED,
    _BOOL: VARINT,
    _INT: VARINT,
    _DOUBLE: FIXED64,
    _ARRAY: LENGTH_DELIMITED,
    _MAP: LENGTH_DELIMITED,
    _BYTES: LENGTH_DELIMITED,
}
_WHAT: Final = "an attribute"


def require_few(count: int) -> None:
    """Bound what one call reads of messages that are not divided.

    Raises:
        BadPayload: there are too many.
    """
    if count > MOST_IN_ONE_PLACE:
        raise BadPayload(
            f"there are more than {MOST_IN_ONE_PLACE} attributes, events or exemplars in one place; send it in parts"
        )


class AnyValues:
    """Values, and where the content of each is. A value that is not set has kind 0."""

    __slots__ = ("_buffer", "_check", "_depth", "ends", "kinds", "starts")

    def __init__(self, buffer: Buffer, starts: Ints, ends: Ints, check: Check, depth: int = 0) -> None:
        """Find the content of the messages at these places.

        Raises:
            BadPayload: a message is malformed, or nested too deep.
        """
        if depth > MAX_DEPTH:
            raise BadPayload(f"attributes are nested more than {MAX_DEPTH} deep")
        self._buffer = buffer
        self._check = check
        self._depth = depth
        text = buffer.text
        size = text[starts + 1].astype(np.int64)
        usual = (text[starts] == 0x0A) & (size < 0x80) & (starts + 2 + size == ends)
        self.kinds: Bytes = np.where(usual, np.uint8(_STRING), np.uint8(0))
        self.starts, self.ends = starts + 2, ends.copy()
        odd = np.flatnonzero(~usual)
        if not len(odd):
            return
        fields = scan(buffer, starts[odd], ends[odd], check)
        known = np.zeros(len(fields.owner), np.bool_)
        for number, wire in _WIRES.items():
            known |= (fields.number == number) & (fields.wire == wire)
        found = np.flatnonzero(known)
        at = odd[fields.owner[found]]  # of several, the last one counts
        self.kinds[at] = fields.number[found]
        self.starts[at], self.ends[at] = fields.start[found], fields.end[found]

    def texts(self) -> pa.Array:
        """Make strings themselves, and all other values JSON texts; null where nothing is set."""
        return self._made(is_json=False)

    def json(self) -> pa.Array:
        """Make each value a JSON text; null where nothing is set."""
        return self._made(is_json=True)

    def _made(self, *, is_json: bool) -> pa.Array:
        kinds = np.unique(self.kinds).tolist()
        if kinds == [_STRING]:
            return self._of(_STRING, self.starts, self.ends, is_json)
        parts = [pa.array([None], pa.string())]
        index = np.zeros(len(self.kinds), np.int64)
        begin = 1
        for kind in kinds:
            rows = np.flatnonzero(self.kinds == kind)
            if kind:
                parts.append(self._of(kind, self.starts[rows], self.ends[rows], is_json))
                index[rows] = np.arange(begin, begin + len(rows))
                begin += len(rows)
        return pa.concat_arrays(parts).take(pa.array(index))

    def _of(self, kind: int, starts: Ints, ends: Ints, is_json: bool) -> pa.Array:
        buffer = self._buffer
        if kind == _STRING:
            texts = buffer.gather_texts(starts, ends, _WHAT)
            return quoted(texts) if is_json else texts
        if kind == _BOOL:
            return pc.if_else(pa.array(read_varints(buffer, starts, ends) != 0), "true", "false")
        if kind == _INT:
            return numbers(read_varints(buffer, starts, ends).view(np.int64))
        if kind == _DOUBLE:
            return doubles(buffer.doubles(starts))
        if kind == _BYTES:
            coded = [base64.b64encode(one).decode() for one in buffer.gather(starts, ends).to_pylist()]
            texts = pa.array(coded, pa.string())
            return quoted(texts) if is_json else texts
        inner = scan(buffer, starts, ends, self._check).of(1, LENGTH_DELIMITED)
        require_few(len(inner.owner))
        self._check()
        if kind == _ARRAY:
            values = AnyValues(buffer, inner.start, inner.end, self._check, self._depth + 1).json()
            return arrays(values.fill_null("null"), np.bincount(inner.owner, minlength=len(starts)))
        pairs = read_pairs(buffer, inner, len(starts), self._check)
        return json_attributes(buffer, pairs, self._check, self._depth + 1)


class Attributes:
    """The attributes of many messages of one field, read when they are asked for."""

    __slots__ = ("_buffer", "_check", "_spans", "pairs")

    def __init__(self, buffer: Buffer, spans: Spans, count: int, check: Check) -> None:
        self._buffer = buffer
        self._check = check
        self._spans = spans
        require_few(len(spans.owner))
        self.pairs = read_pairs(buffer, spans, count, check)

    def json(self) -> pa.Array:
        """Make the attributes of each message a JSON object."""
        pairs = self.pairs
        plain, done = plain_objects(self._buffer, self._spans, pairs)
        if len(plain) == len(done):
            return plain
        self._check()
        rest = np.flatnonzero(~done)
        chosen = ~done[pairs.owner]
        others = Pairs(pairs.counts[rest], *(column[chosen] for column in pairs[1:]))
        texts = json_attributes(self._buffer, others, self._check)
        if not len(plain):
            return texts
        index = np.empty(len(done), np.int64)
        index[done], index[rest] = np.arange(len(plain)), np.arange(len(plain), len(done))
        return pa.concat_arrays([plain, texts]).take(pa.array(index))

    def named(self, found: Ints) -> pa.Array:
        """Return the value of some attribute of each message as text; null for a message without it.

        Args:
            found: the indices of the attribute among all pairs.
        """
        pairs = self.pairs
        values = AnyValues(self._buffer, pairs.value_start[found], pairs.value_end[found], self._check).texts()
        index = np.full(len(pairs.counts), -1)
        index[pairs.owner[found]] = np.arange(len(found))
        return values.take(pa.array(index, mask=index < 0))


def json_attributes(buffer: Buffer, pairs: Pairs, check: Check, depth: int = 0) -> pa.Array:
    """Make the attributes of each message a JSON object."""
    keys = quoted(buffer.gather_texts(pairs.name_start, pairs.name_end, _WHAT))
    values = AnyValues(buffer, pairs.value_start, pairs.value_end, check, depth).json()
    check()
    return objects(keys, values.fill_null("null") if values.null_count else values, pairs.counts, ": ", ", ")
