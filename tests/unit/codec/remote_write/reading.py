"""An independent, slow reader of remote write: protobuf's own parser, and a loop over its objects."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from typing import Any

from arcpipe.codec.columns import Encoded
from tests.support.entry_rows import rows_of
from tests.support.prometheus_messages import V1, V2

Row = tuple[Any, ...]


def bits(value: float) -> bytes:
    """A double bit by bit: there are many NaNs, and one of them is the stale marker."""
    return struct.pack("<d", value)


def samples_written(encoded: Encoded | None) -> list[Row]:
    """The samples of an encoded body: metric, labels, time and value."""
    return [
        (row["metric"], json.loads(row["labels"]), row["time"], bits(row["value"]))
        for row in rows_of(encoded).get("prometheus", [])
    ]


def exemplars_written(encoded: Encoded | None) -> list[Row]:
    """The exemplars of an encoded body: metric, labels, own labels, time and value."""
    return [
        (
            row["metric"],
            json.loads(row["labels"]),
            json.loads(row["exemplar_labels"]),
            row["time"],
            bits(row["value"]),
        )
        for row in rows_of(encoded).get("prometheus_exemplars", [])
    ]


def _split(labels: dict[str, str]) -> tuple[str, dict[str, str]]:
    return labels.pop("__name__", ""), labels


def series_of(body: bytes, version: int) -> Iterator[tuple[dict[str, str], Any, list[dict[str, str]]]]:
    """Each series: its labels, its message, and the labels of its exemplars."""
    if version == 1:
        for one in V1["WriteRequest"].FromString(body).timeseries:
            own = [{label.name: label.value for label in exemplar.labels} for exemplar in one.exemplars]
            yield {label.name: label.value for label in one.labels}, one, own
        return
    request = V2["Request"].FromString(body)

    def labels_of(refs: Any) -> dict[str, str]:
        texts = [request.symbols[ref] for ref in refs]
        return dict(zip(texts[::2], texts[1::2], strict=True))

    for one in request.timeseries:
        yield labels_of(one.labels_refs), one, [labels_of(exemplar.labels_refs) for exemplar in one.exemplars]


def samples_expected(body: bytes, version: int) -> list[Row]:
    """The samples of a good body."""
    rows = []
    for labels, one, _ in series_of(body, version):
        metric, rest = _split(labels)
        rows += [(metric, rest, sample.timestamp, bits(sample.value)) for sample in one.samples]
    return rows


def exemplars_expected(body: bytes, version: int) -> list[Row]:
    """The exemplars of a good body."""
    rows = []
    for labels, one, own in series_of(body, version):
        metric, rest = _split(labels)
        for exemplar, exemplar_labels in zip(one.exemplars, own, strict=True):
            rows.append((metric, rest, exemplar_labels, exemplar.timestamp, bits(exemplar.value)))
    return rows
