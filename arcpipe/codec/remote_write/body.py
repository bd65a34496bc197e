"""A body of remote write -> rows of tables, in pieces of bounded size."""

from __future__ import annotations

from typing import Any, Final, Literal, NamedTuple

import numpy as np
import pyarrow as pa

from arcpipe.codec.collected import ARROW_ROWS, Collected
from arcpipe.codec.columns import Encoded
from arcpipe.codec.effort import Check, Effort, Growth, go_on
from arcpipe.codec.protobuf.buffer import Buffer, Ints, Words
from arcpipe.codec.protobuf.fields import Level, Mask
from arcpipe.codec.protobuf.pairs import Pairs, read_pairs
from arcpipe.codec.protobuf.pieces import pieces
from arcpipe.codec.protobuf.scan import LENGTH_DELIMITED, Spans, scan, scan_one
from arcpipe.codec.remote_write.histograms import Histogram, read_histogram
from arcpipe.codec.remote_write.labels import find_bad, json_of
from arcpipe.codec.remote_write.series import (
    Samples,
    Series,
    Symbols,
    bad_refs,
    label_refs,
    paired,
    read_series_1,
    read_series_2,
    read_symbols,
)
from arcpipe.codec.remote_write.tables import Layout, Tables
from arcpipe.codec.time_units import range_of
from arcpipe.errors import BadPayload

Version = Literal[1, 2]

# Reasons that an answer has room for.
MAX_ERRORS: Final = 20
_LEAST_MS, _MOST_MS = range_of("ms")
# Histograms that are read between two calls of `check`: about a millisecond.
_HISTOGRAMS_AT_A_TIME: Final = 64
# Histograms of one columnar map: making it takes some 10 ms.
_HISTOGRAM_ROWS: Final = 4096
# Histograms of a piece, which are objects for a while; useful ones take 40 bytes or more each.
_MOST_HISTOGRAMS: Final = 65_536

_TYPES: Final = ("unknown", "counter", "gauge", "histogram", "gaugehistogram", "summary", "info", "stateset")


class Outcome(NamedTuple):
    """What of a body can be written, and what cannot."""

    encoded: Encoded | None  # None if there is nothing
    samples: int
    histograms: int
    exemplars: int
    errors: list[str]  # the first of them
    more_errors: int


def encode(
    body: bytes,
    check: Check = go_on,
    *,
    version: Version = 1,
    layout: Layout = Layout(),  # noqa: B008
    arrow_rows: int = ARROW_ROWS,
) -> Outcome:
    """Make a decompressed body that of an entry.

    Args:
        arrow_rows: as in `Collected`.

    Raises:
        BadPayload: it is no message of this version; the text says where.
        PayloadTooLarge: it has too many tables for its size.
    """
    reader = _Reader(body, check, layout, arrow_rows)
    if version == 1:
        reader.read_1()
    else:
        reader.read_2()
    return reader.outcome()


class _Reader:
    def __init__(self, body: bytes, check: Check, layout: Layout, arrow_rows: int) -> None:
        self._buffer = Buffer(body)
        self._check = check
        self._layout = layout
        self._tables = Tables(layout, Effort(len(body), check), Collected(Growth(len(body), check), check, arrow_rows))
        self._counts = [0, 0, 0]  # samples, histograms, exemplars
        self._errors: list[str] = []
        self._error_count = 0
        self._first = 0  # index of the first series of the piece
        self._top = scan_one(self._buffer, self._buffer.start, self._buffer.end, check)

    def outcome(self) -> Outcome:
        samples, histograms, exemplars = self._counts
        more = self._error_count - len(self._errors)
        return Outcome(self._tables.collected.encoded(), samples, histograms, exemplars, self._errors, more)

    def read_1(self) -> None:
        buffer = self._buffer
        for _, starts, ends in pieces(buffer, self._top.of(1, LENGTH_DELIMITED)):
            series = read_series_1(buffer, starts, ends, self._layout.promote, self._check)
            good = self._note_bad(series)
            histograms = self._histograms(series, good)
            exemplars, exemplar_labels = self._exemplars_1(series, good)
            self._check()
            self._add(series, good, histograms, exemplars, exemplar_labels)
        self._metadata_1(self._top.of(3, LENGTH_DELIMITED))

    def read_2(self) -> None:
        buffer = self._buffer
        symbols = read_symbols(buffer, self._top.of(4, LENGTH_DELIMITED), self._check)
        told: dict[tuple[Any, ...], None] = {}
        for _, starts, ends in pieces(buffer, self._top.of(5, LENGTH_DELIMITED)):
            series = read_series_2(
                buffer, symbols, starts, ends, self._layout.promote, self._check, self._tables.growth
            )
            good = self._note_bad(series)
            histograms = self._histograms(series, good)
            exemplars, exemplar_labels = self._exemplars_2(series, good, symbols)
            self._check()
            self._add(series, good, histograms, exemplars, exemplar_labels)
            if self._layout.metadata:
                self._collect_metadata_2(series, good, symbols, told)
        if told:
            self._tables.add_metadata(*(pa.array(column, pa.string()) for column in zip(*told, strict=True)))

    def _note_bad(self, series: Series) -> Mask:
        """Report the bad series of a piece; return which are good."""
        good = np.ones(series.total, np.bool_)
        for index, reason in sorted(series.bad.items()):
            good[index] = False
            self._report(index, reason)
        return good

    def _report(self, index: int, reason: str) -> None:
        self._error_count += 1
        if len(self._errors) < MAX_ERRORS:
            self._errors.append(f"series {self._first + index}: {reason}")

    def _timely(self, good: Mask, owner: Ints, times: Ints) -> Ints:
        """Return which of these records of good series have a time that can be written; report the others."""
        bad_time = (times < _LEAST_MS) | (times > _MOST_MS)
        if bad_time.any():
            rows = np.flatnonzero(bad_time & good[owner])
            for row in rows[:MAX_ERRORS].tolist():
                self._report(int(owner[row]), f"the timestamp {int(times[row])} ms is out of range")
            self._error_count += len(rows[MAX_ERRORS:])
        return np.flatnonzero(good[owner] & ~bad_time)

    def _histograms(self, series: Series, good: Mask) -> tuple[Ints, list[Histogram]]:
        owner, start, end = series.histograms
        if len(owner) > _MOST_HISTOGRAMS:
            raise BadPayload(f"there are more than {_MOST_HISTOGRAMS} native histograms within a megabyte")
        found = []
        for at, stop in zip(start.tolist(), end.tolist(), strict=True):
            found.append(read_histogram(self._buffer, at, stop, self._check))
            if not len(found) % _HISTOGRAMS_AT_A_TIME:
                self._check()
        rows = self._timely(good, owner, np.array([one.time for one in found], np.int64))
        return owner[rows], [found[row] for row in rows.tolist()]

    def _exemplars_1(self, series: Series, good: Mask) -> tuple[Samples, pa.Array]:
        owner, start, end = series.exemplars
        if not len(owner):
            return _NO_SAMPLES, _NO_TEXTS
        level = Level(self._buffer, scan(self._buffer, start, end, self._check), len(owner))
        labels = read_pairs(self._buffer, level.fields.of(1, LENGTH_DELIMITED), len(owner), self._check)
        return self._timely_exemplars(level, owner, good, labels, {})

    def _exemplars_2(self, series: Series, good: Mask, symbols: Symbols) -> tuple[Samples, pa.Array]:
        owner, start, end = series.exemplars
        if not len(owner):
            return _NO_SAMPLES, _NO_TEXTS
        level = Level(self._buffer, scan(self._buffer, start, end, self._check), len(owner))
        of, refs = label_refs(self._buffer, level.fields, 1)
        bad, known = bad_refs(symbols, of, refs, len(owner))
        of, names, values = paired(of, refs, known)
        spans = (symbols.start[names], symbols.end[names], symbols.start[values], symbols.end[values])
        labels = Pairs(np.bincount(of, minlength=len(owner)), of, *spans)
        return self._timely_exemplars(level, owner, good, labels, bad)

    def _timely_exemplars(
        self, level: Level, owner: Ints, good: Mask, labels: Pairs, bad: dict[int, str]
    ) -> tuple[Samples, pa.Array]:
        """Read exemplars, and leave out those that are bad."""
        times = level.integers(3)
        # In version 2 many labels may share a text.
        self._tables.growth.add(
            int((labels.name_end - labels.name_start + labels.value_end - labels.value_start).sum())
        )
        texts = json_of(self._buffer, labels)
        wrong = find_bad(self._buffer, labels, self._check) | bad
        usable = np.ones(len(owner), np.bool_)
        for index, reason in sorted(wrong.items()):
            if labels.counts[index] or index in bad:  # an exemplar may have no labels
                usable[index] = False
                if good[owner[index]]:
                    self._report(int(owner[index]), f"of an exemplar: {reason}")
        rows = self._timely(good, owner, times)
        rows = rows[usable[rows]]
        exemplars = Samples(owner[rows], level.doubles(2)[rows], times[rows], np.zeros(len(rows), np.int64))
        return exemplars, texts.take(pa.array(rows))

    def _add(
        self,
        series: Series,
        good: Mask,
        histograms: tuple[Ints, list[Histogram]],
        exemplars: Samples,
        exemplar_labels: pa.Array,
    ) -> None:
        identity, samples = series.identity, series.samples
        rows = self._timely(good, samples.owner, samples.times)
        if len(rows) < len(samples.owner):
            samples = samples.take(rows)
        self._check()
        self._tables.add_samples(identity, samples)
        self._check()
        owner, found_histograms = histograms
        for at in range(0, len(owner), _HISTOGRAM_ROWS):
            part = slice(at, at + _HISTOGRAM_ROWS)
            self._tables.add_histograms(identity, owner[part], found_histograms[part])
            self._check()
        self._tables.add_exemplars(identity, exemplars, exemplar_labels)
        for at, found in enumerate((samples.owner, histograms[0], exemplars.owner)):
            self._counts[at] += len(found)
        self._first += len(good)
        self._check()

    def _metadata_1(self, spans: Spans) -> None:
        if not len(spans.owner) or not self._layout.metadata:
            return
        buffer = self._buffer
        level = Level(buffer, scan(buffer, spans.start, spans.end, self._check), len(spans.owner))
        names, help_, unit = (buffer.gather_texts(*level.spans(number), "metadata") for number in (2, 4, 5))
        self._tables.add_metadata(names, _type_words(level.unsigned(1)), help_, unit)

    def _collect_metadata_2(
        self, series: Series, good: Mask, symbols: Symbols, told: dict[tuple[Any, ...], None]
    ) -> None:
        """Collect what the series of a piece tell about their metrics, each once."""
        level = Level(self._buffer, series.fields, len(good))
        spans = level.message(5, "metadata")
        if not len(spans.owner):
            return
        count = len(symbols.start)
        inner = Level(self._buffer, scan(self._buffer, spans.start, spans.end, self._check), len(spans.owner))
        kinds, helps, units = inner.unsigned(1), inner.unsigned(3), inner.unsigned(4)
        usable = good[spans.owner] & (helps < count) & (units < count) & ((kinds > 0) | (helps > 0) | (units > 0))
        rows = np.flatnonzero(usable)
        metric = series.identity.metric.take(pa.array(spans.owner[rows]))
        codes = np.stack(
            (
                metric.dictionary_encode().indices.to_numpy().astype(np.int64),
                *(column[rows].astype(np.int64) for column in (kinds, helps, units)),
            )
        )
        _, firsts = np.unique(codes, axis=1, return_index=True)
        chosen = rows[np.sort(firsts)]
        texts = [metric.take(pa.array(np.sort(firsts))), _type_words(kinds[chosen])]
        for refs in (helps[chosen].astype(np.int64), units[chosen].astype(np.int64)):
            starts, ends = symbols.start[refs], symbols.end[refs]
            self._tables.growth.add(int((ends - starts).sum()))  # many metrics may share a text
            texts.append(self._buffer.gather_texts(starts, ends, "a symbol"))
        told.update(dict.fromkeys(zip(*(column.to_pylist() for column in texts), strict=True)))
        self._check()


def _type_words(kinds: Words) -> pa.Array:
    """Return the words for types of metrics; an unknown number is "unknown"."""
    known = np.where(kinds < len(_TYPES), kinds, 0).astype(np.int64)
    return pa.array(_TYPES, pa.string()).take(pa.array(known))


_NO_SAMPLES: Final = Samples(np.zeros(0, np.int64), np.zeros(0), np.zeros(0, np.int64), np.zeros(0, np.int64))
_NO_TEXTS: Final = pa.array([], pa.string())
