"""Counters in shared memory: what one process writes is what another one reads."""

from __future__ import annotations

import os

from hypothesis import given
from hypothesis import strategies as st

from arcpipe.counters import (
    LATENCY_BOUNDS_US,
    MAX_DATABASES,
    STATUSES,
    Counters,
    Histogram,
    Node,
    Notes,
    Uploader,
    Usage,
    Worker,
    count_statuses,
    observe,
    pack_usage,
    unpack_usage,
)
from arcpipe.monitoring.process_state import Distribution


def test_what_a_forked_process_counts_is_seen_by_its_parent() -> None:
    counters = Counters(2)
    child = os.fork()
    if not child:
        counters.worker(2)[Worker.RECORDS] = 7
        counters.uploader[Uploader.ROWS] = 8
        counters.notes("ingest 2").add(1, 30, "told")
        os._exit(0)
    os.waitpid(child, 0)
    assert (counters.worker(1)[Worker.RECORDS], counters.worker(2)[Worker.RECORDS]) == (0, 7)
    assert counters.uploader[Uploader.ROWS] == 8
    assert [note.text for note in counters.notes("ingest 2").read()] == ["told"]


def test_no_two_blocks_overlap() -> None:
    counters = Counters(3)
    blocks = [counters.node, counters.uploader, *(counters.worker(slot) for slot in (1, 2, 3))]
    blocks += [counters.compaction, counters.committer, counters.endings, counters.failed_starts]
    blocks += [counters.notes(process)._words for process in counters.processes()]
    assert [len(block) for block in blocks[:3]] == [Node.SIZE, Uploader.SIZE, Worker.SIZE]
    for number, block in enumerate(blocks, 1):
        for index in range(len(block)):
            block[index] += number
    assert all(set(block) == {number} for number, block in enumerate(blocks, 1))
    assert sum(map(len, blocks)) == len(counters._view)


@given(st.lists(st.integers(0, 20_000_000)))
def test_a_histogram_counts_each_value_below_its_bound(values: list[int]) -> None:
    histogram = Histogram(LATENCY_BOUNDS_US)
    block = memoryview(bytearray(8 * (len(LATENCY_BOUNDS_US) + 4))).cast("Q")
    for value in values:
        histogram.observe(value)
        observe(block, 1, LATENCY_BOUNDS_US, value)
    assert histogram.values() == block[1:-1].tolist()
    assert histogram.sum == sum(values)
    for number, bound in enumerate(LATENCY_BOUNDS_US):
        assert sum(histogram.counts[: number + 1]) == sum(value <= bound for value in values)


def test_quantiles_lie_within_their_bucket_as_prometheus_has_them() -> None:
    distribution = Distribution([1.0, 2.0, 4.0], [50, 40, 9, 1], 0.0)
    assert [distribution.quantile(share) for share in (0.25, 0.5, 0.7, 0.9, 0.99)] == [0.5, 1.0, 1.5, 2.0, 4.0]
    assert distribution.quantile(1.0) == float("inf")
    assert Distribution([1.0], [0, 0], 0.0).quantile(0.5) is None
    assert (distribution + distribution).counts == [100, 80, 18, 2]
    assert (distribution + distribution - distribution) == distribution


def test_usage_by_database_comes_back_as_it_was() -> None:
    block = Counters(1).worker(1)
    usage = {f"{'ü' * 60}{number:08}": [number + 1, 2, 3] for number in range(MAX_DATABASES - 1)} | {"": [9, 9, 9]}
    words = pack_usage(usage)
    block[Worker.DATABASES : Worker.DATABASES + len(words)] = memoryview(bytearray(8 * len(words))).cast("Q")
    for offset, word in enumerate(words):
        block[Worker.DATABASES + offset] = word
    assert dict(unpack_usage(block)) == {name: Usage(*values) for name, values in usage.items()}
    assert Worker.DATABASES + len(words) == Worker.SIZE


def test_a_status_that_has_no_counter_of_its_own_is_counted_as_other() -> None:
    counts = dict(zip(STATUSES, count_statuses({b"202": 3, b"418": 2}), strict=True))
    assert (counts[b"202"], counts[b"other"], sum(counts.values())) == (3, 2, 5)


def test_the_latest_warnings_are_kept_and_long_ones_are_cut() -> None:
    notes = Counters(1).notes("supervisor")
    for number in range(1, 41):
        notes.add(number, 30, f"{number} " + "ü" * 1000)
    found = sorted(notes.read())
    assert [note.time_us for note in found] == list(range(41 - Notes.LINES, 41))
    assert all(0 < len(note.text.encode()) <= Notes._TEXT_BYTES for note in found)
    assert all(note.text.startswith(f"{note.time_us} ü") for note in found)
