"""Who hangs, who is started again and when, and what waits: with times that nobody has to wait for."""

from __future__ import annotations

import errno
import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest

from arcpipe.counters import Counters, Node, Uploader, Worker, unpack_name
from arcpipe.supervisor import backlog as backlog_module
from arcpipe.supervisor.aftermath import Aftermath
from arcpipe.supervisor.backlog import Backlog, Leftovers
from arcpipe.supervisor.child import EXIT_SHORTAGE, Child, Pulse, be_killed_sooner, fork
from arcpipe.wal import WALWriter
from arcpipe.wal.directory import ACTIVE, SEALED, WALDirectory
from tests.support.wal_doubles import Clock

READY = 4711  # a pid: the child has started
KILLED = 9  # statuses as waitpid tells them
FAILED = 1 << 8
SHORTAGE = EXIT_SHORTAGE << 8


def worker(counters: Counters) -> Child:
    block = counters.worker(1)
    child = Child("ingest 1", lambda: READY, lambda: bool(block[Worker.PID]), [Pulse(block, Worker.HEARTBEAT_US, 10)])
    child.started_at = 100.0
    return child


def test_a_child_that_signs_is_well_however_its_clock_runs() -> None:
    counters = Counters(1)
    child, block = worker(counters), counters.worker(1)
    block[Worker.PID] = READY
    child.forgive(100.0)
    for second, sign in enumerate((5_000, 1_000, 2**63, 1)):
        block[Worker.HEARTBEAT_US] = sign
        assert not child.hangs(100.0 + 9 * second)


def test_a_child_without_a_sign_for_longer_than_its_patience_hangs() -> None:
    counters = Counters(1)
    child, block = worker(counters), counters.worker(1)
    block[Worker.PID] = READY
    block[Worker.HEARTBEAT_US] = 1
    assert not child.hangs(101.0)
    assert not child.hangs(111.0)
    assert child.hangs(111.1)


def test_a_start_may_take_a_minute_and_the_first_sign_is_expected_after_it() -> None:
    counters = Counters(1)
    child, block = worker(counters), counters.worker(1)
    block[Worker.HEARTBEAT_US] = 7  # of its predecessor
    assert not child.hangs(159.0)
    block[Worker.PID] = READY
    assert not child.hangs(165.0)
    assert child.hangs(175.1)
    block[Worker.PID] = 0
    assert child.hangs(160.1)


def test_all_are_forgiven_after_a_pause_of_everybody() -> None:
    counters = Counters(1)
    child, block = worker(counters), counters.worker(1)
    block[Worker.PID] = READY
    block[Worker.HEARTBEAT_US] = 1
    assert not child.hangs(101.0)
    child.forgive(500.0)
    assert not child.hangs(509.0)
    assert child.hangs(511.0)


def test_an_uploader_that_gets_nowhere_hangs_in_the_end() -> None:
    """An uploader whose loop turns, but that gets nowhere, hangs in the end."""
    block = Counters(1).uploader
    pulses = [Pulse(block, Uploader.HEARTBEAT_US, 30), Pulse(block, Uploader.STEPS, 900)]
    child = Child("uploader", lambda: READY, lambda: bool(block[Uploader.PID]), pulses)
    block[Uploader.PID] = READY
    child.forgive(0.0)
    for second in range(10, 2000, 10):
        block[Uploader.HEARTBEAT_US] = second
        if second <= 1000 and second % 500 == 0:
            block[Uploader.STEPS] += 1  # a try that failed, or an entry of a long batch
        assert child.hangs(float(second)) == (second > 1900)


# Starting again


def refuse(*_: object) -> NoReturn:
    raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))


def slot(start: Callable[[], int] = lambda: READY, ready: bool = True) -> Child:
    return Child("ingest 1", start, lambda: ready, [])


def die(child: Child, now: float, status: int) -> float:
    """Starts it and lets it die at once; seconds until it may be started again."""
    child.start(now)
    assert child.pid == READY
    return child.note_end(now, status)


def test_the_pause_doubles_up_to_a_limit_however_often_it_dies() -> None:
    child = slot()
    pauses = [die(child, 0.0, KILLED) for _ in range(3000)]  # 2**3000 is no float
    assert pauses[:8] == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10.0])
    assert set(pauses[8:]) == {10.0}
    assert child.start_at == 10.0


def test_a_child_that_was_well_begins_with_a_short_pause_again() -> None:
    child = slot()
    for _ in range(5):
        die(child, 0.0, KILLED)
    child.start(100.0)
    child.check(109.9)
    assert child.failures == 5
    child.check(110.0)
    assert (child.failures, child.was_well) == (0, True)
    assert child.note_end(111.0, KILLED) == pytest.approx(0.1)


def test_a_child_that_lived_long_but_never_got_ready_was_not_well() -> None:
    child = slot(ready=False)
    child.start(0.0)
    child.check(60.0)
    assert not child.was_well
    child.note_end(60.0, KILLED)
    assert child.failures == 1


def test_the_silence_between_two_processes_is_not_the_second_one_s() -> None:
    """It may be ready before anybody has looked, and signs a moment later."""
    counters = Counters(1)
    child, block = worker(counters), counters.worker(1)
    block[Worker.PID], block[Worker.HEARTBEAT_US] = READY, 1
    child.start(100.0)
    assert not child.hangs(100.2)
    child.note_end(100.3, KILLED)
    child.start(115.0)
    assert not child.hangs(115.2)
    assert child.hangs(125.1)


def test_a_start_that_fails_is_tried_again_and_said(caplog: pytest.LogCaptureFixture) -> None:
    child = slot(refuse)
    for number in range(50):
        child.start(float(number))
        assert child.pid == 0
    assert child.failures == 50
    assert child.start_at == 49.0 + 10.0
    assert not child.is_hopeless
    assert "cannot start ingest 1: [Errno 11] Resource temporarily unavailable; trying again in 0.1 s" in caplog.text
    assert "Traceback" not in caplog.text


@pytest.mark.parametrize(
    ("status", "hopeless"), [(KILLED, True), (FAILED, True), (SHORTAGE, False)], ids=["killed", "failed", "shortage"]
)
def test_only_deaths_by_a_childs_own_fault_count_towards_giving_up(status: int, hopeless: bool) -> None:
    child = slot()
    for _ in range(7):
        die(child, 0.0, status)
    assert not child.is_hopeless
    die(child, 0.0, status)
    assert child.is_hopeless == hopeless
    for _ in range(100):
        die(child, 0.0, SHORTAGE)
    assert child.is_hopeless == hopeless


def test_a_child_that_was_well_once_is_never_given_up() -> None:
    child = slot()
    child.start(0.0)
    child.check(10.0)
    child.note_end(10.0, KILLED)
    for _ in range(100):
        die(child, 20.0, KILLED)
    assert not child.is_hopeless


def lack_memory() -> int:
    raise MemoryError


def lack_threads() -> int:
    raise RuntimeError("can't start new thread")


def lack_space() -> int:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/wal/worker-1.wal")


def err() -> int:
    raise RuntimeError("a bug")


@pytest.mark.parametrize(
    ("work", "code"),
    [(lambda: 0, 0), (lack_space, 75), (lack_memory, 75), (lack_threads, 75), (err, 1)],
    ids=["well", "space", "memory", "threads", "bug"],
)
def test_the_exit_code_of_a_child_tells_of_a_shortage(work: Callable[[], int], code: int) -> None:
    """A child tells by its exit code whether the machine refused something."""
    pid = fork("ingest 1", lambda: None, work)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == code


def test_a_child_never_goes_on_in_the_place_of_its_parent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even if its last lines cannot be made: it would be a second supervisor."""
    parent = os.getpid()
    monkeypatch.setattr("arcpipe.supervisor.child.logs.flush", lambda _: lack_memory())
    pid = 0
    try:
        pid = fork("ingest 1", lambda: None, lambda: 7)
    finally:
        if os.getpid() != parent:
            os._exit(99)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7


@pytest.mark.parametrize(
    ("inherited", "own"), [("-100", "0"), ("-50", "0"), ("-150", "-50"), ("-1000", "-900"), ("0", "0"), ("300", "300")]
)
def test_the_memory_killer_takes_a_child_sooner(tmp_path: Path, inherited: str, own: str) -> None:
    """To lower the real one takes a privilege: `make test-systemd` looks at it."""
    file = tmp_path / "oom_score_adj"
    file.write_text(f"{inherited}\n")
    be_killed_sooner(str(file))
    assert file.read_text().split()[0] == own
    be_killed_sooner(str(tmp_path / "none"))


# What waits


class Wal:
    """A directory in which slot 1 left three records in a segment, as a crash leaves it; its name."""

    def __init__(self, path: Path) -> None:
        self.directory = WALDirectory(path)
        self.directory.make()
        self.counters = Counters(1)
        self.leftovers = Leftovers(self.directory)
        self.started: list[str] = []
        self.aftermath = Aftermath(self.leftovers, 1, 0, self.fork)
        self.backlog = Backlog(self.directory, self.leftovers, self.counters)

    def fork(self, name: str, work: Callable[[], int]) -> int:
        self.started.append(name)
        return fork(name, lambda: None, work)

    def recover(self, now: float = 0.0) -> None:
        """Does what follows the death of slot 1's worker, to the end."""
        self.aftermath.note_death(1)
        assert not self.aftermath.is_over(1)
        self.aftermath.look(now)
        self.wait()

    def wait(self) -> None:
        """Waits for all processes of the aftermath."""
        while not self.aftermath.is_idle:
            for child in self.aftermath._children():  # this process may have others, of other tests
                self.aftermath.note_end(*os.waitpid(child.pid, 0))

    def write(self) -> Path:
        writer = WALWriter(self.directory.path, slot=1)
        writer.append([{"measurement": "m", "time": 1_700_000_000, "v": number} for number in range(3)])
        writer.close()
        [sealed] = self.directory.segments(SEALED)
        active = sealed.path.removesuffix(".sealed")
        os.rename(sealed.path, active)
        return Path(active)

    def shared(self) -> tuple[int, int, int, str]:
        self.backlog.measure()
        node = self.counters.node
        return (
            *(node[Node.UNLISTED], node[Node.BACKLOG_SEGMENTS], node[Node.UNRECOVERED_SEGMENTS]),
            unpack_name(node, Node.UNRECOVERED_NAME),
        )


@pytest.fixture
def wal(tmp_path: Path) -> Wal:
    return Wal(tmp_path / "wal")


def test_what_cannot_be_read_stays_counts_and_is_recovered_once_it_can(wal: Wal, tmp_path: Path) -> None:
    file = wal.write()
    size = file.stat().st_size
    file.rename(tmp_path / "aside")
    file.mkdir()  # reading it fails, whoever tries
    wal.recover()
    assert wal.aftermath.is_over(1)
    assert [left.path for left in wal.leftovers.look()] == [str(file)]
    assert wal.shared() == (0, 1, 1, file.name)
    assert wal.counters.node[Node.OLDEST_BACKLOG_US] > 0
    wal.leftovers.retry()
    assert wal.shared() == (0, 1, 1, file.name)
    file.rmdir()
    (tmp_path / "aside").rename(file)
    assert wal.shared()[2:] == (1, file.name)
    assert wal.counters.node[Node.UNRECOVERED_BYTES] == wal.counters.node[Node.BACKLOG_BYTES] == size
    wal.leftovers.retry()
    assert wal.shared() == (0, 1, 0, "")
    assert [sealed.filename for sealed in wal.directory.segments(SEALED)] == [f"{file.name}.sealed"]
    assert not wal.leftovers


def test_a_retry_leaves_the_files_of_living_workers_alone(wal: Wal, tmp_path: Path) -> None:
    file = wal.write()
    file.rename(tmp_path / "aside")
    file.mkdir()
    wal.recover()
    living = file.with_name("worker-1-20991231_235959-000099.wal")
    living.write_bytes(b"a worker writes here")
    file.rmdir()
    (tmp_path / "aside").rename(file)
    wal.leftovers.retry()
    assert living.read_bytes() == b"a worker writes here"
    assert [left.path for left in wal.directory.segments(ACTIVE)] == [str(living)]


def test_a_second_death_does_not_read_again_what_is_known_to_be_unreadable(wal: Wal) -> None:
    """The retry's process may be at it at this moment."""
    first = Path(wal.directory.path, "worker-1-20251008_143000-000001.wal")
    first.mkdir()
    wal.recover()
    second = wal.write()
    assert [file.path for file in wal.leftovers.of_slot(1)] == [str(second)]
    wal.recover()
    assert [file.filename for file in wal.leftovers.look()] == [first.name]
    assert wal.started == ["recovery of ingest 1"] * 2


def test_a_slot_goes_on_above_what_its_dead_worker_wrote(wal: Wal) -> None:
    wal.write()
    before = time.time_ns() // 1000
    assert wal.aftermath.last_timestamp(1) == 0
    wal.recover()
    assert before - 60_000_000 < wal.aftermath.last_timestamp(1) <= time.time_ns() // 1000
    assert not wal.leftovers


def test_a_recovery_for_which_there_is_no_process_is_done_later(wal: Wal) -> None:
    """A recovery for which there is no process is done later and the slot is filled."""
    wal.write()
    with_processes = wal.aftermath
    wal.aftermath = Aftermath(wal.leftovers, 1, 0, refuse)
    wal.recover()
    assert wal.aftermath.is_over(1)
    assert wal.shared()[:3] == (0, 1, 1)
    with_processes.look(0.0)
    with_processes.look(1.0)
    wal.aftermath = with_processes
    wal.wait()
    assert wal.started == ["recovery"]
    assert wal.shared() == (0, 1, 0, "")


def hang(name: str, work: Callable[[], int]) -> int:
    def wait() -> int:
        signal.pause()
        return 0

    return fork(name, lambda: None, wait)


def test_a_recovery_that_dies_or_hangs_leaves_its_segments_for_another_try(wal: Wal) -> None:
    file = wal.write()
    wal.aftermath = Aftermath(wal.leftovers, 1, 0, hang)
    wal.aftermath.note_death(1)
    wal.aftermath.look(100.0)
    wal.aftermath.look(399.0)
    assert not wal.aftermath.is_over(1)
    wal.aftermath.look(401.0)  # ends it
    wal.wait()
    assert wal.aftermath.is_over(1)
    assert [left.path for left in wal.leftovers.look()] == [str(file)]


def test_a_recovery_that_runs_at_the_stop_is_waited_for(wal: Wal) -> None:
    """Two processes would write to the same segment, and nobody would know of the first one."""
    wal.write()
    begun: list[int] = []

    def fork_slowly(name: str, work: Callable[[], int]) -> int:
        reader, writer = os.pipe()

        def wait() -> int:
            os.close(writer)
            os.read(reader, 1)
            return work()

        pid = fork(name, lambda: None, wait)
        os.close(reader)
        gates.append(writer)
        begun.append(pid)
        return pid

    def open_gates() -> None:
        while gates:
            os.close(gates.pop())

    gates: list[int] = []
    wal.aftermath = Aftermath(wal.leftovers, 1, 0, fork_slowly)
    wal.aftermath.note_death(1)
    wal.aftermath.look(0.0)
    wal.aftermath.finish(60.0, open_gates)
    [pid] = begun
    with pytest.raises(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)
    assert wal.shared() == (0, 1, 0, "")


def test_a_slot_waits_for_a_directory_that_cannot_be_listed(wal: Wal, caplog: pytest.LogCaptureFixture) -> None:
    wal.write()
    os.rename(wal.directory.path, f"{wal.directory.path}-away")
    for _ in range(3):
        wal.recover()
        assert not wal.aftermath.is_over(1)
    assert caplog.text.count("cannot look for the segments of ingest 1") == 1
    os.rename(f"{wal.directory.path}-away", wal.directory.path)
    wal.aftermath.look(0.0)
    wal.wait()
    assert wal.aftermath.is_over(1)
    assert wal.shared() == (0, 1, 0, "")


def test_a_recovery_for_which_there_is_no_thread_is_done_without(wal: Wal, monkeypatch: pytest.MonkeyPatch) -> None:
    wal.write()

    def start(self: threading.Thread) -> NoReturn:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    wal.recover()
    assert wal.shared() == (0, 1, 0, "")


def test_a_directory_that_is_gone_is_said_once_and_made_again(
    wal: Wal, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    wal.write()
    wal.recover()
    assert wal.shared()[:2] == (0, 1)
    os.rename(wal.directory.path, tmp_path / "away")
    Path(wal.directory.path).write_bytes(b"in the way")
    with caplog.at_level(logging.ERROR):
        for _ in range(3):
            assert wal.shared()[:2] == (1, 1)  # the backlog as it was known last
    assert caplog.text.count("cannot look at") == 1
    assert wal.counters.node[Node.DISK_TOTAL_BYTES] > 0  # the disk can be measured, so it is
    os.unlink(wal.directory.path)
    assert wal.shared() == (0, 0, 0, "")
    assert os.path.isdir(wal.directory.batches)


@pytest.mark.parametrize(("takes", "pauses"), [(0.01, 0.04), (0.1, 0.4), (3.0, 1.0)])
def test_a_measurement_that_takes_long_is_followed_by_a_pause(
    wal: Wal, monkeypatch: pytest.MonkeyPatch, takes: float, pauses: float
) -> None:
    """Ten thousands of segments wait after a long outage, and each is looked at."""
    clock = Clock()

    def look() -> str:
        clock.pass_seconds(takes)
        return ""

    monkeypatch.setattr(backlog_module, "time", clock)
    monkeypatch.setattr(wal.backlog, "_look", look)
    assert wal.backlog.is_due
    wal.backlog.measure()
    clock.pass_seconds(pauses - 0.01)
    assert not wal.backlog.is_due
    clock.pass_seconds(0.02)
    assert wal.backlog.is_due


def test_another_directory_in_the_place_of_that_of_the_start_is_told(
    wal: Wal, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    wal.backlog.measure()
    assert wal.counters.node[Node.REPLACED] == 0
    os.rename(wal.directory.path, tmp_path / "away")
    wal.directory.make()  # what an unmounted disk leaves is a directory, too
    with caplog.at_level(logging.ERROR):
        for _ in range(3):
            wal.backlog.measure()
    assert (wal.counters.node[Node.REPLACED], wal.counters.node[Node.UNLISTED]) == (1, 0)
    assert caplog.text.count("is another directory than at the start") == 1
