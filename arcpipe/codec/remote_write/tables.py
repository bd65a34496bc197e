"""Columns of samples, histograms, exemplars and metadata -> rows of the tables that they belong to."""

from __future__ import annotations

from functools import partial
from typing import Final, NamedTuple

import numpy as np
import pyarrow as pa

from arcpipe.codec.collected import Collected, Column, doubles, integers, repeating, texts, times
from arcpipe.codec.columns import MAX_NAME_BYTES, TIME, check_measurement, pack_values
from arcpipe.codec.effort import Effort
from arcpipe.codec.protobuf.buffer import Ints
from arcpipe.codec.remote_write.histograms import Histogram
from arcpipe.codec.remote_write.series import Identity, Samples
from arcpipe.errors import BadPayload

SAMPLES: Final = "prometheus"
HISTOGRAMS: Final = "prometheus_histograms"
EXEMPLARS: Final = "prometheus_exemplars"
METADATA: Final = "prometheus_metadata"

METRIC: Final = "metric"
LABELS: Final = "labels"
# Columns of these tables. A promoted label that is called so gets a suffix.
_OWN_COLUMNS: Final = frozenset(
    {TIME, METRIC, LABELS, "value", "start_ms", "count", "sum", "histogram", "exemplar_labels"}
)
_SUFFIX: Final = "_label"
_UNIT: Final = "ms"  # of all times


class Layout(NamedTuple):
    """How records become tables: `[remote_write]` of the settings."""

    per_metric: bool = False  # one table of samples for each metric
    promote: tuple[str, ...] = ()  # labels that are columns of their own, too
    metadata: bool = True


class Tables:
    """Collects the rows of one body."""

    def __init__(self, layout: Layout, effort: Effort, collected: Collected) -> None:
        self.collected = collected
        self.growth = collected.growth
        self._layout = layout
        self._effort = effort
        promoted = (f"{name}{_SUFFIX}" if name in _OWN_COLUMNS else name for name in layout.promote)
        self._tags = (METRIC, LABELS, *promoted)

    def add_samples(self, identity: Identity, samples: Samples) -> None:
        """Add samples; their owners are rows of `identity`."""
        if not len(samples.owner):
            return
        if not self._layout.per_metric:
            self._add_samples(SAMPLES, identity, samples)
            return
        coded = identity.metric.dictionary_encode()
        codes = coded.indices.to_numpy()[samples.owner]
        order = np.argsort(codes, kind="stable")
        names = coded.dictionary.to_pylist()
        ends = np.cumsum(np.bincount(codes, minlength=len(names)))
        start = 0
        for name, end in zip(names, ends.tolist(), strict=True):
            rows = order[start:end]
            start = end
            if len(rows):
                self._effort.add_shape()
                self._add_samples(_table_name(name), identity, samples.take(rows))

    def _add_samples(self, table: str, identity: Identity, samples: Samples) -> None:
        columns = {TIME: times(samples.times, _UNIT), **self._identity(identity, samples.owner)}
        columns["value"] = doubles(samples.values)
        if samples.started.any():
            columns["start_ms"] = integers(samples.started, samples.started == 0)
        self._add(table, columns, len(samples.owner))

    def add_histograms(self, identity: Identity, owner: Ints, histograms: list[Histogram]) -> None:
        """Add native histograms; `owner` are rows of `identity`."""
        if not histograms:
            return
        own_times = np.array([one.time for one in histograms], np.int64)
        columns = {TIME: times(own_times, _UNIT), **self._identity(identity, owner)}
        observations = [one.observations for one in histograms]
        columns["count"] = Column(lambda: None, partial(pack_values, observations), "f64")
        columns["sum"] = doubles(np.array([one.total for one in histograms], np.float64))
        columns["histogram"] = texts(pa.array([one.text for one in histograms], pa.string()))
        started = np.array([one.started for one in histograms], np.int64)
        if started.any():
            columns["start_ms"] = integers(started, started == 0)
        self._add(HISTOGRAMS, columns, len(histograms))

    def add_exemplars(self, identity: Identity, exemplars: Samples, labels: pa.Array) -> None:
        """Add exemplars; `labels` are their own."""
        if not len(exemplars.owner):
            return
        columns = {TIME: times(exemplars.times, _UNIT), **self._identity(identity, exemplars.owner)}
        columns["exemplar_labels"] = texts(labels)
        columns["value"] = doubles(exemplars.values)
        self._add(EXEMPLARS, columns, len(exemplars.owner))

    def add_metadata(self, metric: pa.Array, type_: pa.Array, help_: pa.Array, unit: pa.Array) -> None:
        """Add what senders tell about metrics; its time is that of arrival."""
        if not self._layout.metadata or not len(metric):
            return
        columns = {METRIC: texts(metric), "type": texts(type_), "help": texts(help_), "unit": texts(unit)}
        self.collected.add(METADATA, (METRIC,), columns, len(metric))

    def _identity(self, identity: Identity, owner: Ints) -> dict[str, Column]:
        if len(owner) != len(identity.metric) or not (owner == np.arange(len(owner))).all():
            identity = identity.take(owner, self.growth)
        columns = (repeating(identity.metric), texts(identity.labels), *map(repeating, identity.promoted))
        return dict(zip(self._tags, columns, strict=True))

    def _add(self, table: str, columns: dict[str, Column], rows: int) -> None:
        self.collected.add(table, self._tags, columns, rows)


def _table_name(metric: str) -> str:
    """Return the table of a metric: its own if it may be called so, else that of all."""
    try:
        check_measurement(metric)
    except BadPayload:
        return SAMPLES
    return metric if len(metric) <= MAX_NAME_BYTES else SAMPLES
