"""The verdict on an instance, from figures as a worker publishes them."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path

import pytest

from arcpipe import health, snapshot
from arcpipe.clock import steady_us
from arcpipe.config import WAL, Server, Settings, Storage
from arcpipe.counters import Counters, Node, Uploader
from arcpipe.counters import Worker as Field
from arcpipe.wal.directory import WALDirectory
from tests.edge import Edge

MEGABYTE = 1 << 20


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    wal = WAL(dir=str(tmp_path / "wal"), max_size_mb=4)
    WALDirectory(wal.dir).make()
    return Settings(server=Server(workers=1), wal=wal, storage=Storage(url=f"file://{tmp_path / 'lake'}"))


@pytest.fixture
def counters() -> Counters:
    """Of an instance that is well: everybody has just given a sign of life, and there is room."""
    counters = Counters(1)
    now_us = time.time_ns() // 1000
    for block, field in ((counters.worker(1), Field), (counters.uploader, Uploader)):
        block[field.PID] = os.getpid()
        block[field.HEARTBEAT_US] = now_us
    counters.node[Node.DISK_TOTAL_BYTES] = 1 << 41
    counters.node[Node.DISK_FREE_BYTES] = 1 << 40
    return counters


@pytest.mark.parametrize(("megabytes", "is_told"), [(0.0, False), (3.5, False), (3.7, True), (4.0, True)])
def test_a_segment_near_its_limit_is_told_and_is_no_reason_for_alarm(
    settings: Settings, counters: Counters, megabytes: float, is_told: bool
) -> None:
    counters.worker(1)[Field.SEGMENT_BYTES] = int(megabytes * MEGABYTE)
    found = health.judge(snapshot.take(settings, counters, []))
    assert [(issue.code, issue.severity) for issue in found] == [("segment_near_limit", "info")] * is_told
    assert all(issue.message and issue.recommendation for issue in found)
    assert health.is_healthy(found)


def test_a_worker_publishes_its_segment_and_that_it_has_none() -> None:
    with Edge() as edge:
        worker, block = edge.worker, edge.worker._block
        worker._publish()
        segment = edge.commit.writer.segment
        assert (block[Field.SEGMENT_SEQ], block[Field.SEGMENT_BYTES]) == (segment.name.seq, segment.offset)
        assert block[Field.SEGMENT_CREATED_US] == segment.created
        edge.commit.writer.current = None
        worker._publish()
        fields = (Field.SEGMENT_SEQ, Field.SEGMENT_BYTES, Field.SEGMENT_CREATED_US, Field.SEGMENT_ENTRIES)
        assert [block[field] for field in fields] == [0, 0, 0, 0]
        edge.commit.writer.current = segment


# Before anybody has started


def test_who_has_not_started_yet_has_no_age_and_is_given_some_seconds(settings: Settings) -> None:
    counters = Counters(1)
    counters.node[Node.STARTED_US] = steady_us()
    taken = snapshot.take(settings, counters, [])
    for process in (*taken.workers, taken.uploader):
        assert (process.alive, process.heartbeat_age_seconds, process.uptime_seconds) == (False, 0, 0)
    assert health.judge(taken) == []
    counters.node[Node.STARTED_US] = steady_us() - 6_000_000
    found = health.judge(snapshot.take(settings, counters, []))
    assert [issue.code for issue in found] == ["worker_down", "uploader_down"]
    assert [issue.message for issue in found] == [
        "ingest 1 has no process at the moment",
        "the uploader has no process at the moment",
    ]


def test_a_process_that_was_there_and_is_silent_is_down_however_short_the_instance_runs(
    settings: Settings, counters: Counters
) -> None:
    counters.node[Node.STARTED_US] = steady_us()
    counters.worker(1)[Field.HEARTBEAT_US] -= 90_000_000
    [found] = health.judge(snapshot.take(settings, counters, []))
    assert found.code == "worker_down"
    assert re.search(r"has given no sign of life for (89|9\d) s$", found.message)


def test_the_latest_warning_comes_first_whatever_the_clock_said(settings: Settings, counters: Counters) -> None:
    for number, process in enumerate(("ingest 1", "supervisor", "uploader", "supervisor")):
        counters.notes(process).add(2_000_000_000_000_000 - number * 3_600_000_000, 30, f"warning {number}")
    found = snapshot.take(settings, counters, []).warnings
    assert [warning.text for warning in found] == [f"warning {number}" for number in (3, 2, 1, 0)]
