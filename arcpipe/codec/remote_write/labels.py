"""Labels of many series: where they are in the body, their JSON text, and series whose labels are bad."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np
import pyarrow as pa

from arcpipe.codec.columns import quote
from arcpipe.codec.json_texts import objects, quoted
from arcpipe.codec.protobuf.buffer import LOW_BYTES, Buffer, Ints, Words
from arcpipe.codec.protobuf.pairs import Pairs, is_named

METRIC_NAME: Final = b"__name__"
_NAME_WORD: Final = np.uint64(int.from_bytes(METRIC_NAME, "little"))
# Bytes of names that are compared before Python compares the whole labels of a series.
_COMPARED_WORDS: Final = 4
MAX_LABELS: Final = 1024
"""Labels of one series: many times what servers of Prometheus take."""
_LABELS_BETWEEN_CHECKS: Final = 2048  # about a millisecond


def values_of(buffer: Buffer, labels: Pairs, name: bytes) -> pa.Array:
    """Gather the value of a label of each series; null for a series without it."""
    found = np.flatnonzero(is_named(buffer, labels, name))
    texts = buffer.gather_texts(labels.value_start[found], labels.value_end[found], "a label's value")
    if len(found) == len(labels.counts) and (labels.owner[found] == np.arange(len(found))).all():
        return texts
    index = np.full(len(labels.counts), -1)
    index[labels.owner[found]] = np.arange(len(found))
    return texts.take(pa.array(index, mask=index < 0))


def find_bad(buffer: Buffer, labels: Pairs, check: Callable[[], None]) -> dict[int, str]:
    """Find the series with bad labels: the reason by the index of the series.

    Args:
        check: as in `arcpipe.codec.effort`.
    """
    bad: dict[int, str] = {}
    for series in np.flatnonzero(labels.counts == 0).tolist():
        bad[series] = "it has no labels"
    for series in labels.owner[labels.name_end == labels.name_start].tolist():
        bad[series] = "the name of a label is empty"
    for series in np.flatnonzero(labels.counts > MAX_LABELS).tolist():
        bad[series] = f"it has more than {MAX_LABELS} labels"
    ends = np.cumsum(labels.counts)
    rest = _LABELS_BETWEEN_CHECKS
    for series in _out_of_order(buffer, labels).tolist():
        if labels.counts[series] > MAX_LABELS:
            continue
        rest -= int(labels.counts[series])
        if rest <= 0:
            rest = _LABELS_BETWEEN_CHECKS
            check()
        seen = set()
        for label in range(int(ends[series] - labels.counts[series]), int(ends[series])):
            name = buffer.slice(int(labels.name_start[label]), int(labels.name_end[label]))
            if name in seen:
                bad[series] = f"it has the label {quote(name)} twice"
            seen.add(name)
    return bad


def _out_of_order(buffer: Buffer, labels: Pairs) -> Ints:
    """Return the series whose names perhaps do not go up: only these can have a name twice."""
    undecided = np.flatnonzero(labels.owner[1:] == labels.owner[:-1])
    down: list[Ints] = []
    for step in range(0, 8 * _COMPARED_WORDS, 8):
        if not len(undecided):
            break
        left, right = (_words_of(buffer, labels, at, step) for at in (undecided, undecided + 1))
        down.append(undecided[left > right])
        undecided = undecided[left == right]
    down.append(undecided)
    return np.unique(labels.owner[np.concatenate(down)])


def _words_of(buffer: Buffer, labels: Pairs, at: Ints, step: int) -> Words:
    """Return eight bytes of some names from `step` on, as words that compare as the texts do."""
    starts = labels.name_start[at] + step
    sizes = np.clip(labels.name_end[at] - starts, 0, 8)
    words: Words = (buffer.words[np.where(sizes > 0, starts, buffer.start)] & LOW_BYTES[sizes]).byteswap()
    return words


def json_of(buffer: Buffer, labels: Pairs) -> pa.Array:
    """Make the labels of each series a JSON object."""
    keys = quoted(buffer.gather_texts(labels.name_start, labels.name_end, "a label's name"))
    values = quoted(buffer.gather_texts(labels.value_start, labels.value_end, "a label's value"))
    return objects(keys, values, labels.counts)
