"""The verdict on an instance, from figures as a worker publishes them."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import msgspec
import pytest

from arcpipe import health, snapshot
from arcpipe.backlog import space
from arcpipe.config import WAL, Flush, Server, Settings, Storage
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


@pytest.mark.parametrize(
    ("flush_seconds", "wal_seconds", "waited", "is_behind"),
    [
        (5, 3600, 290, False),
        (5, 3600, 310, True),
        (600, 3600, 850, False),  # its segment was not sealed before 600 s, as somebody has asked for
        (600, 3600, 910, True),
        (86_400, 3600, 3850, False),
        (86_400, 3600, 3910, True),  # its segment was sealed after an hour
    ],
)
def test_records_that_wait_no_longer_than_was_asked_for_are_not_behind(
    settings: Settings, counters: Counters, flush_seconds: float, wal_seconds: float, waited: float, is_behind: bool
) -> None:
    wal = msgspec.structs.replace(settings.wal, max_age_seconds=wal_seconds)
    settings = msgspec.structs.replace(settings, wal=wal, flush=Flush(max_age_seconds=flush_seconds))
    taken = msgspec.structs.replace(snapshot.take(settings, counters, []), oldest_unshipped_seconds=waited)
    assert [issue.code for issue in health.judge(taken)] == ["uploads_behind"] * is_behind


def test_the_disk_is_as_full_as_df_says(tmp_path: Path) -> None:
    """Blocks that ext4 keeps for root are neither used nor free: here 38% of them, so that 52% were told as 82%."""
    sizes = {"f_bsize": 4096, "f_frsize": 4096, "f_blocks": 1000, "f_bfree": 675, "f_bavail": 300}
    free, total = space(os.statvfs_result([*sizes.values(), *[0] * 5]))
    assert (free, total) == (300 * 4096, 625 * 4096)
    told = subprocess.run(["df", "--output=pcent", str(tmp_path)], capture_output=True, text=True, check=True)
    free, total = space(os.statvfs(tmp_path))
    assert 100 * (1 - free / total) == pytest.approx(int(told.stdout.split()[1].rstrip("%")), abs=1.1)
