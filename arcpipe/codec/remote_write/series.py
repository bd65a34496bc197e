"""Series of both versions: where their labels, samples, histograms and exemplars are."""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from arcpipe.codec.effort import Check, Growth
from arcpipe.codec.json_texts import objects, quoted
from arcpipe.codec.packing import taken
from arcpipe.codec.protobuf.buffer import Buffer, Ints
from arcpipe.codec.protobuf.fields import Level, Mask, packed_varints
from arcpipe.codec.protobuf.pairs import Pairs, is_named, read_pairs
from arcpipe.codec.protobuf.scan import LENGTH_DELIMITED, Fields, Spans, scan
from arcpipe.codec.protobuf.varints import read_varints, varint_sizes
from arcpipe.codec.remote_write.labels import METRIC_NAME, find_bad, json_of, values_of
from arcpipe.codec.remote_write.usual_labels import read_usual
from arcpipe.units import MB

# Tags of the two fields of labels and samples: a number and a wire type each.
_FIRST_DOUBLE, _SECOND_VARINT = 0x09, 0x10
_SYMBOL: Final = "a symbol"
# Bytes of the symbols of a body up to which all are made JSON texts at once, which may be six times as long. Of more
# symbols, those that a piece refers to are, in each piece.
_QUOTED_BYTES: Final = 4 * MB
_CHECKED_BYTES: Final = MB  # of symbols that are checked in one step


class Samples(NamedTuple):
    """Values with the index of their series; times in ms, `started` is 0 where nobody tells it."""

    owner: Ints
    values: npt.NDArray[np.float64]
    times: Ints
    started: Ints

    def take(self, rows: Ints) -> Samples:
        """Return some of them."""
        return Samples(self.owner[rows], self.values[rows], self.times[rows], self.started[rows])


class Series(NamedTuple):
    """The parts of some series."""

    total: int  # of the series
    identity: Identity
    samples: Samples
    histograms: Spans
    exemplars: Spans
    started: Ints
    bad: dict[int, str]
    fields: Fields


class Identity(NamedTuple):
    """What tells series apart: a value per series."""

    metric: pa.Array
    labels: pa.Array
    promoted: tuple[pa.Array, ...]

    def take(self, rows: Ints, growth: Growth) -> Identity:
        """Return the identity of each row by the index of its series. Raises PayloadTooLarge as `Growth` does."""
        return Identity(
            taken(self.metric, rows, growth),
            taken(self.labels, rows, growth),
            tuple(taken(one, rows, growth) for one in self.promoted),
        )


def read_series_1(buffer: Buffer, starts: Ints, ends: Ints, promote: tuple[str, ...], check: Check) -> Series:
    """Find the parts of the series of version 1, which stand one after the other."""
    usual = read_usual(buffer, starts, ends, promote, check)
    bad: dict[int, str] = {}
    if usual is not None:
        fields = usual.rest
        identity = Identity(usual.metric, usual.labels, usual.promoted)
    else:
        fields = scan(buffer, starts, ends, check)
        labels = read_pairs(buffer, fields.of(1, LENGTH_DELIMITED), len(starts), check)
        bad = find_bad(buffer, labels, check)
        json = json_of(buffer, labels.chosen(~is_named(buffer, labels, METRIC_NAME)))
        identity = _identity(buffer, labels, json, promote)
    check()
    none_started = np.zeros(len(starts), np.int64)
    samples = read_samples(buffer, fields.of(2, LENGTH_DELIMITED), none_started, check)
    histograms, exemplars = fields.of(4, LENGTH_DELIMITED), fields.of(3, LENGTH_DELIMITED)
    return Series(len(starts), identity, samples, histograms, exemplars, none_started, bad, fields)


def _identity(buffer: Buffer, labels: Pairs, json: pa.Array, promote: tuple[str, ...]) -> Identity:
    metric = values_of(buffer, labels, METRIC_NAME)
    promoted = tuple(values_of(buffer, labels, name.encode()) for name in promote)
    return Identity(metric.fill_null("") if metric.null_count else metric, json, promoted)


def read_samples(buffer: Buffer, spans: Spans, started: Ints, check: Check) -> Samples:
    """Read value and time of each sample.

    Args:
        started: of each series, where its samples do not tell it.
    """
    owner, start, end = spans
    text = buffer.text
    usual = (text[start] == _FIRST_DOUBLE) & (text[start + 9] == _SECOND_VARINT)
    usual &= varint_sizes(buffer, start + 10) == end - start - 10
    values = buffer.doubles(start + 1)
    begins = started[owner]
    check()
    if usual.all():
        return Samples(owner, values, read_varints(buffer, start + 10, end).view(np.int64), begins)
    times = np.zeros(len(owner), np.int64)
    good, odd = np.flatnonzero(usual), np.flatnonzero(~usual)
    times[good] = read_varints(buffer, start[good] + 10, end[good]).view(np.int64)
    level = Level(buffer, scan(buffer, start[odd], end[odd], check), len(odd))
    values[odd], times[odd] = level.doubles(1), level.integers(2)
    own = level.integers(3)
    begins[odd] = np.where(own != 0, own, begins[odd])
    return Samples(owner, values, times, begins)


# Version 2


class Symbols(NamedTuple):
    """The symbols of a body: their places, and their JSON texts if they are few."""

    start: Ints
    end: Ints
    quoted: pa.Array | None

    def json(self, buffer: Buffer, names: Ints, values: Ints, growth: Growth) -> tuple[pa.Array, pa.Array]:
        """Make the symbols at these indices JSON texts. Raises PayloadTooLarge as `Growth` does."""
        known = self.quoted
        if known is None:
            used = np.zeros(len(self.start), np.bool_)
            used[names] = used[values] = True
            places = np.cumsum(used) - 1
            names, values = places[names], places[values]
            known = quoted(buffer.gather_texts(self.start[used], self.end[used], _SYMBOL))
        return taken(known, names, growth), taken(known, values, growth)


def read_symbols(buffer: Buffer, spans: Spans, check: Check) -> Symbols:
    """Find the symbols of a body. The first one is empty by the specification.

    Raises:
        BadPayload: one is not UTF-8, used or not.
    """
    ends = np.cumsum(spans.end - spans.start)
    if not len(ends) or ends[-1] <= _QUOTED_BYTES:
        return Symbols(spans.start, spans.end, quoted(buffer.gather_texts(spans.start, spans.end, _SYMBOL)))
    first = 0
    while first < len(ends):
        before = int(ends[first - 1]) if first else 0
        last = max(first + 1, int(np.searchsorted(ends, before + _CHECKED_BYTES, side="right")))
        buffer.gather_texts(spans.start[first:last], spans.end[first:last], _SYMBOL)
        check()
        first = last
    return Symbols(spans.start, spans.end, None)


def read_series_2(
    buffer: Buffer,
    symbols: Symbols,
    starts: Ints,
    ends: Ints,
    promote: tuple[str, ...],
    check: Check,
    growth: Growth,
) -> Series:
    """Find the parts of the series of version 2."""
    count = len(starts)
    fields = scan(buffer, starts, ends, check)
    level = Level(buffer, fields, count)
    owner, refs = label_refs(buffer, fields, 1)
    check()
    bad, known = bad_refs(symbols, owner, refs, count)
    owner, names, values = paired(owner, refs, known)
    labels = Pairs(
        np.bincount(owner, minlength=count),
        owner,
        symbols.start[names],
        symbols.end[names],
        symbols.start[values],
        symbols.end[values],
    )
    # Many labels may share a text, which each of them repeats in a column.
    growth.add(int((labels.value_end - labels.value_start).sum()))
    rest = ~is_named(buffer, labels, METRIC_NAME)
    texts = objects(*symbols.json(buffer, names[rest], values[rest], growth), np.bincount(owner[rest], minlength=count))
    check()
    bad = {**find_bad(buffer, labels, check), **bad}  # after the growth was counted: it compares whole names
    check()
    started = level.integers(6)
    samples = read_samples(buffer, fields.of(2, LENGTH_DELIMITED), started, check)
    identity = _identity(buffer, labels, texts, promote)
    histograms, exemplars = fields.of(3, LENGTH_DELIMITED), fields.of(4, LENGTH_DELIMITED)
    return Series(count, identity, samples, histograms, exemplars, started, bad, fields)


def label_refs(buffer: Buffer, fields: Fields, number: int) -> tuple[Ints, Ints]:
    """Read references to symbols: (owner, index) of each; an index that is no int64 becomes a large one."""
    owner, refs = packed_varints(buffer, fields, number)
    return owner, np.minimum(refs, np.uint64(1 << 40)).astype(np.int64)


def bad_refs(symbols: Symbols, owner: Ints, refs: Ints, count: int) -> tuple[dict[int, str], Mask]:
    """Find the owners with bad references: their reasons, and which owners are good."""
    bad = {}
    known = np.ones(count, np.bool_)
    for one in np.unique(owner[refs >= len(symbols.start)]).tolist():
        bad[one] = f"a label refers to a symbol beyond the last of {len(symbols.start)}"
        known[one] = False
    for one in np.flatnonzero(np.bincount(owner, minlength=count) % 2).tolist():
        bad[one] = "the references of its labels are no pairs"
        known[one] = False
    return bad, known


def paired(owner: Ints, refs: Ints, known: Mask) -> tuple[Ints, Ints, Ints]:
    """Split the references of good owners into owner, name and value."""
    if not known.all():
        good = known[owner]
        owner, refs = owner[good], refs[good]
    return owner[::2], refs[::2], refs[1::2]
