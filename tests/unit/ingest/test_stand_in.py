"""Workers of a former version measure themselves for as long as the new one cannot start."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from arcpipe.clock import monotonic_us
from arcpipe.config.settings import WAL, Settings
from arcpipe.counters import FIGURES_SECONDS, HANDED_OVER, Counters, Node, Worker
from arcpipe.ingest.endpoints.admission import Admission
from arcpipe.ingest.stand_in import StandIn
from arcpipe.supervisor.backlog import Backlog, Leftovers
from arcpipe.wal.directory import WALDirectory
from tests.support.waiting import wait_until

SEGMENT_BYTES = 2 << 20


@pytest.fixture
def directory(tmp_path: Path) -> WALDirectory:
    """With a sealed segment."""
    found = WALDirectory(tmp_path / "wal")
    found.make()
    (tmp_path / "wal" / "worker-1-20261128_140000-000001.wal.sealed").write_bytes(bytes(SEGMENT_BYTES))
    return found


def test_figures_are_renewed_by_a_worker_while_nobody_else_can(directory: WALDirectory) -> None:
    counters = Counters(1)
    node = counters.node
    node[Node.DRAINING] = HANDED_OVER
    node[Node.UNRECOVERED_SEGMENTS], node[Node.UNRECOVERED_BYTES] = 1, 7
    node[Node.MEASURED_US] = monotonic_us() - int((FIGURES_SECONDS + 60) * 1e6)
    admission = Admission(Settings(wal=WAL(min_free_mb=0, max_backlog_mb=1)), node)
    stand_in = StandIn(directory, counters)
    stand_in.tick()
    wait_until(lambda: monotonic_us() - node[Node.MEASURED_US] < FIGURES_SECONDS * 1e6, "new figures")
    assert (node[Node.BACKLOG_SEGMENTS], node[Node.BACKLOG_BYTES]) == (2, SEGMENT_BYTES + 7)
    assert node[Node.DISK_FREE_BYTES] > 0
    refusals = []
    for _ in range(2):
        admission.tick()
        refusals.append(admission.refusal() or b"")
    assert all(b'"code":"backlog"' in refusal.replace(b" ", b"") for refusal in refusals)  # by what is true now
    os.unlink(os.path.join(directory.path, "worker-1-20261128_140000-000001.wal.sealed"))
    node[Node.MEASURED_US] = 1

    def is_gone() -> bool:
        stand_in.tick()
        return node[Node.BACKLOG_BYTES] <= 7

    wait_until(is_gone, "the segment to be gone")
    assert admission.refusal() is None


def test_a_segment_that_is_being_sealed_counts_for_both(directory: WALDirectory) -> None:
    counters = Counters(1)
    node = counters.node
    with open(os.path.join(directory.path, "worker-1-20261128_140100-000002.wal"), "wb") as file:
        file.write(bytes(SEGMENT_BYTES // 2))
    counters.worker(1)[Worker.SEGMENT_SEQ] = 3
    wanted = (2, SEGMENT_BYTES + SEGMENT_BYTES // 2)
    Backlog(directory, Leftovers(directory), counters).measure()
    assert (node[Node.BACKLOG_SEGMENTS], node[Node.BACKLOG_BYTES]) == wanted
    node[Node.DRAINING], node[Node.BACKLOG_BYTES], node[Node.MEASURED_US] = HANDED_OVER, 0, 1
    StandIn(directory, counters).tick()
    wait_until(lambda: node[Node.MEASURED_US] > 1, "new figures")
    assert (node[Node.BACKLOG_SEGMENTS], node[Node.BACKLOG_BYTES]) == wanted


@pytest.mark.parametrize(("pid", "wanted"), [(4711, 2), (0, 1)])
def test_what_a_worker_left_counts_while_it_can_make_no_other(directory: WALDirectory, pid: int, wanted: int) -> None:
    """It has no segment then. Before it has begun, nobody knows which of the slot's segments it will write."""
    counters = Counters(1)
    with open(os.path.join(directory.path, "worker-1-20261128_140100-000002.wal"), "wb") as file:
        file.write(b"entries")
    counters.worker(1)[Worker.PID] = pid
    Backlog(directory, Leftovers(directory), counters).measure()
    assert counters.node[Node.BACKLOG_SEGMENTS] == wanted


def test_a_directory_that_cannot_be_listed_is_told(directory: WALDirectory, tmp_path: Path) -> None:
    counters = Counters(1)
    counters.node[Node.DRAINING] = HANDED_OVER
    os.rename(directory.path, tmp_path / "away")
    StandIn(directory, counters).tick()
    wait_until(lambda: counters.node[Node.MEASURED_US], "a look")
    assert counters.node[Node.UNLISTED] == 1


@pytest.mark.parametrize(("draining", "age_seconds"), [(0, 100.0), (HANDED_OVER, 1.0)])
def test_nobody_stands_in_for_a_supervisor_that_is_there_or_only_loads(
    directory: WALDirectory, draining: int, age_seconds: float
) -> None:
    """Figures of one that hangs get old: that is what tells of it."""
    counters = Counters(1)
    counters.node[Node.DRAINING] = draining
    counters.node[Node.MEASURED_US] = monotonic_us() - int(age_seconds * 1e6)
    stand_in = StandIn(directory, counters)
    stand_in.tick()
    assert stand_in._thread is None
