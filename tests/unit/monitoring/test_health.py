"""The verdict on an instance, from figures as a worker publishes them."""

from __future__ import annotations

import os
import re
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

from arcpipe.clock import steady_us
from arcpipe.config.settings import WAL, Flush, Server, Settings, Storage
from arcpipe.config.settings import Uploader as UploaderSettings
from arcpipe.counters import HANDED_OVER, LATENCY_BOUNDS_US, Counters, Histogram, Node, Uploader
from arcpipe.counters import Worker as Field
from arcpipe.disk import space
from arcpipe.ingest.endpoints.admission import Admission
from arcpipe.ingest.publishing import Loaded, Publisher
from arcpipe.ingest.worker import note_lost_records
from arcpipe.monitoring import health, snapshot
from arcpipe.monitoring.directory_look import Looker
from arcpipe.wal import findings
from arcpipe.wal.directory import WALDirectory
from arcpipe.wal.findings import Finding
from tests.support.edge import Edge
from tests.support.waiting import wait_until

MEGABYTE = 1 << 20


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    wal = WAL(dir=str(tmp_path / "wal"), max_size_mb=4)
    WALDirectory(wal.dir).make()
    return Settings(server=Server(workers=1), wal=wal, storage=Storage(url=f"file://{tmp_path / 'lake'}"))


@pytest.fixture
def counters() -> Counters:
    """Of an instance that is well: every process has just sent a heartbeat, and there is space."""
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


@pytest.mark.parametrize(
    ("field", "code"),
    [(Node.UNLISTED, "wal_unlisted"), (Node.REPLACED, "wal_replaced"), (Node.UNLOCKED, "lock_lost")],
)
def test_what_the_supervisor_finds_wrong_with_the_directory_is_told(
    settings: Settings, counters: Counters, field: int, code: str
) -> None:
    counters.node[field] = 1
    found = health.judge(snapshot.take(settings, counters, []))
    assert [(issue.code, issue.severity) for issue in found] == [(code, "critical")]


@pytest.mark.parametrize(("seconds", "is_told"), [(0, False), (30, False), (7000, False), (7300, True)])
def test_a_segment_that_its_worker_left_and_nobody_seals_is_told(
    settings: Settings, counters: Counters, seconds: int, is_told: bool
) -> None:
    assert settings.wal.max_age_seconds == 3600
    counters.node[Node.OLDEST_UNSEALED_US] = steady_us() - seconds * 1_000_000 if seconds else 0
    found = [issue for issue in health.judge(snapshot.take(settings, counters, [])) if issue.code == "segment_too_old"]
    assert ["left" in issue.message for issue in found] == [True] * is_told


def test_a_supervisor_that_measures_nothing_is_told(settings: Settings, counters: Counters) -> None:
    """A supervisor that measures nothing is told, and its figures are not judged."""
    counters.node[Node.BACKLOG_BYTES] = 1 << 50
    counters.node[Node.MEASURED_US] = time.monotonic_ns() // 1000
    assert next(issue.code for issue in health.judge(snapshot.take(settings, counters, []))) == "writes_refused"
    counters.node[Node.MEASURED_US] -= 6_000_000
    assert [issue.code for issue in health.judge(snapshot.take(settings, counters, []))] == ["supervisor_down"]


def test_workers_of_a_former_version_see_no_hung_supervisor(settings: Settings, counters: Counters) -> None:
    """Their supervisor loads the new version: health and admission give it the same time."""
    counters.node[Node.DRAINING] = HANDED_OVER
    for seconds, codes in ((59, []), (61, ["supervisor_down"])):
        counters.node[Node.MEASURED_US] = time.monotonic_ns() // 1000 - seconds * 1_000_000
        admission = Admission(settings, counters.node)
        admission.tick()
        admission.tick()
        taken = snapshot.take(settings, counters, [])
        assert [issue.code for issue in health.judge(taken)] == codes
        assert (admission.refusal() is None) == taken.supervisor_alive == (not codes)


def test_what_cannot_be_listed_now_is_not_judged_by_what_was_listed_before(
    settings: Settings, counters: Counters
) -> None:
    counters.node[Node.BACKLOG_BYTES] = 1 << 50
    counters.node[Node.OLDEST_BACKLOG_US] = 1
    counters.node[Node.UNLISTED] = 1
    assert [issue.code for issue in health.judge(snapshot.take(settings, counters, []))] == ["wal_unlisted"]


def test_each_part_of_the_directory_is_told_whatever_became_of_the_others(
    settings: Settings, counters: Counters
) -> None:
    directory = WALDirectory(settings.wal.dir)
    findings.note(directory, [Finding(code, "subject", 2, "what was wrong") for code in findings.CODES])
    Path(directory.quarantine, "odd").write_bytes(b"odd")
    Path(directory.path, "acknowledged.json").write_bytes(b"damaged")
    os.rmdir(directory.free)
    taken = snapshot.take(settings, counters, [])
    found = {issue.code: issue.message for issue in health.judge(taken)}
    assert found.keys() == {*findings.CODES, "quarantine", "findings_unreadable", "wal_unlisted"}
    for code in findings.CODES:
        assert found[code].startswith("2 ")
        assert found[code].endswith("subject: what was wrong")
    assert "acknowledged.json is damaged" in found["findings_unreadable"]
    assert set(taken.segments) == {"active", "completed", "recovered", "quarantine"}


def test_a_look_that_takes_long_holds_up_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = WALDirectory(tmp_path / "wal")
    directory.make()
    may_go_on = threading.Event()
    scandir = os.scandir

    def hang(path: str) -> object:
        assert may_go_on.wait(60)
        return scandir(path)

    looker = Looker(directory, patience_seconds=0.01)
    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", hang)
        for _ in range(3):
            found = looker.look()
            assert (found.segments, found.unacknowledged) == ({}, {})
            assert "has not answered for" in found.problem
            assert found.findings_problem
        may_go_on.set()
        found = wait_until(lambda: None if (look := looker.look()).problem else look, "the disk to answer")
    assert set(found.segments) == {"active", "completed", "recovered", "free", "quarantine"}


def test_what_each_start_loses_counts_with_equal_pids(tmp_path: Path) -> None:
    """As they have in a container."""
    directory = WALDirectory(tmp_path / "wal")
    directory.make()
    for boot, lost in ((1, 5), (2, 3)):
        assert note_lost_records(directory, 1, boot, lost)
        assert note_lost_records(directory, 1, boot, lost)
    assert not note_lost_records(directory, 1, 3, 0)
    record = findings.load(directory)
    assert record is not None
    assert record.counts == {findings.LOST_RECORDS: 8}


def test_a_worker_publishes_its_segment_and_that_it_has_none() -> None:
    with Edge() as edge:
        block = edge.counters.worker(1)
        publisher = Publisher(block, edge.service, Histogram(LATENCY_BOUNDS_US))
        publisher.publish(Loaded(0, 0, 0))
        segment = edge.commit.writer.segment
        assert (block[Field.SEGMENT_SEQ], block[Field.SEGMENT_BYTES]) == (segment.name.seq, segment.offset)
        assert block[Field.SEGMENT_CREATED_US] == segment.created
        edge.commit.writer.current = None
        publisher.publish(Loaded(0, 0, 0))
        fields = (Field.SEGMENT_SEQ, Field.SEGMENT_BYTES, Field.SEGMENT_CREATED_US, Field.SEGMENT_ENTRIES)
        assert [block[field] for field in fields] == [0, 0, 0, 0]
        edge.commit.writer.current = segment


@pytest.mark.parametrize(
    ("flush_seconds", "wal_seconds", "interval", "waited", "is_behind"),
    [
        (5, 3600, 0, 290, False),
        (5, 3600, 0, 310, True),
        (600, 3600, 0, 850, False),  # its segment was not sealed before 600 s, as somebody has asked for
        (600, 3600, 0, 910, True),
        (86_400, 3600, 0, 3850, False),
        (86_400, 3600, 0, 3910, True),  # its segment was sealed after an hour
        (5, 3600, 600, 890, False),  # it waited for its turn by choice
        (5, 3600, 600, 910, True),
    ],
)
def test_records_that_wait_no_longer_than_was_asked_for_are_not_behind(
    settings: Settings,
    counters: Counters,
    flush_seconds: float,
    wal_seconds: float,
    interval: float,
    waited: float,
    is_behind: bool,
) -> None:
    settings = msgspec.structs.replace(
        settings,
        wal=msgspec.structs.replace(settings.wal, max_age_seconds=wal_seconds),
        flush=Flush(max_age_seconds=flush_seconds),
        uploader=UploaderSettings(interval_seconds=interval),
    )
    taken = msgspec.structs.replace(snapshot.take(settings, counters, []), oldest_unshipped_seconds=waited)
    assert [issue.code for issue in health.judge(taken)] == ["uploads_behind"] * is_behind


@pytest.mark.parametrize(("segments", "ago", "is_behind"), [(2, 290, False), (2, 310, True), (0, 3000, False)])
def test_batch_that_takes_too_long_is_behind_whatever_the_interval(
    settings: Settings, counters: Counters, segments: int, ago: int, is_behind: bool
) -> None:
    settings = msgspec.structs.replace(settings, uploader=UploaderSettings(interval_seconds=86_400))
    counters.uploader[Uploader.BATCHED_SEGMENTS] = segments
    counters.uploader[Uploader.PLANNED_US] = steady_us() - ago * 1_000_000
    issues = health.judge(snapshot.take(settings, counters, []))
    assert [issue.code for issue in issues] == ["uploads_behind"] * is_behind


def test_what_waits_for_its_turn_is_told_from_a_batch(settings: Settings, counters: Counters) -> None:
    node, uploader = counters.node, counters.uploader
    node[Node.BACKLOG_BYTES], node[Node.BACKLOG_SEGMENTS] = 1000, 10
    node[Node.UNRECOVERED_BYTES], node[Node.UNRECOVERED_SEGMENTS] = 100, 1
    uploader[Uploader.BATCHED_BYTES], uploader[Uploader.BATCHED_SEGMENTS] = 600, 6
    uploader[Uploader.PLANNED_US] = steady_us() - 20_000_000
    taken = snapshot.take(settings, counters, [])
    assert (taken.waiting_bytes, taken.waiting_segments) == (300, 3)
    assert taken.next_batch_seconds == pytest.approx(40, abs=5)
    uploader[Uploader.PLANNED_US] -= 100_000_000
    assert snapshot.take(settings, counters, []).next_batch_seconds == 0


def test_the_disk_is_as_full_as_df_says(tmp_path: Path) -> None:
    """Blocks that ext4 keeps for root are neither used nor free: here 38% of them, so that 52% were told as 82%."""
    sizes = {"f_bsize": 4096, "f_frsize": 4096, "f_blocks": 1000, "f_bfree": 675, "f_bavail": 300}
    free, total = space(os.statvfs_result([*sizes.values(), *[0] * 5]))
    assert (free, total) == (300 * 4096, 625 * 4096)
    told = subprocess.run(["df", "--output=pcent", str(tmp_path)], capture_output=True, text=True, check=True)
    free, total = space(os.statvfs(tmp_path))
    assert 100 * (1 - free / total) == pytest.approx(int(told.stdout.split()[1].rstrip("%")), abs=1.1)


# Before anybody has started


def test_who_has_not_started_yet_has_no_age_and_is_given_some_seconds(settings: Settings) -> None:
    counters = Counters(1)
    counters.node[Node.STARTED_US] = steady_us()
    taken = snapshot.take(settings, counters, [])
    processes: list[Any] = [*taken.workers, taken.uploader]
    for process in processes:
        assert (process.alive, process.heartbeat_age_seconds, process.uptime_seconds) == (False, 0, 0)
    assert health.judge(taken) == []
    counters.node[Node.STARTED_US] = steady_us() - 6_000_000
    found = health.judge(snapshot.take(settings, counters, []))
    assert [issue.code for issue in found] == ["worker_down", "uploader_down"]
    assert [issue.message for issue in found] == [
        "ingest 1 has no process at the moment",
        "the uploader has no process at the moment",
    ]


def test_a_process_that_fell_silent_is_down_from_the_beginning(settings: Settings, counters: Counters) -> None:
    """A process that was there and is silent is down however short the instance runs."""
    counters.node[Node.STARTED_US] = steady_us()
    counters.worker(1)[Field.HEARTBEAT_US] -= 90_000_000
    [found] = health.judge(snapshot.take(settings, counters, []))
    assert found.code == "worker_down"
    assert re.search(r"has sent no heartbeat for (89|9\d) s$", found.message)


def test_the_latest_warning_comes_first_whatever_the_clock_said(settings: Settings, counters: Counters) -> None:
    for number, process in enumerate(("ingest 1", "supervisor", "uploader", "supervisor")):
        counters.notes(process).add(2_000_000_000_000_000 - number * 3_600_000_000, 30, f"warning {number}")
    found = snapshot.take(settings, counters, []).warnings
    assert [warning.text for warning in found] == [f"warning {number}" for number in (3, 2, 1, 0)]
