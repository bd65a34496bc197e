"""When the disk says no: refused with the right answer, never acknowledged, nothing lost, and going on by itself.

First with the writer alone and a disk whose every operation fails once; then on small real file systems that fill up,
become read-only or go away; then the whole server.
"""

from __future__ import annotations

import errno
import os
import random
import shutil
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest

from arcpipe.disk import Buffer
from arcpipe.supervisor.last_words import EXIT_UNKNOWN
from arcpipe.wal import pipeline as pipeline_module
from arcpipe.wal.directory import SEALED, WALDirectory
from arcpipe.wal.pool import FreePool
from arcpipe.wal.reader import SegmentScan
from arcpipe.wal.recovery import recover_at_start
from arcpipe.wal.writer import SyncMode, WALOptions, WALWriter
from tests.crash.scenario import PREFIX, make_body, number_of
from tests.crash.small_disks import MEGABYTE, SmallDisk, small_disk
from tests.support.http import pack
from tests.support.lake import lake_rows
from tests.support.program import COMMAND, environment
from tests.support.server import Server
from tests.support.waiting import wait_until
from tests.support.wal_doubles import FaultyDisk

NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


class Traffic:
    """Commits numbered entries, ships what is completed, and knows what became of each."""

    def __init__(self, directory: WALDirectory, options: WALOptions) -> None:
        self.directory = directory
        self.acknowledged: list[int] = []
        self.refused: list[int] = []
        self.errors: list[int] = []
        self._shipped: dict[str, list[int]] = {}  # by segment: shipping one again gives the same
        self._number = 0
        self._pool = FreePool(directory, 2)
        self._half = options.max_size_bytes // 2
        directory.make()
        self.writer = WALWriter(directory, 1, options)

    def commit(self, entries: int = 2, size: int = 700) -> bool:
        numbers = list(range(self._number, self._number + entries))
        self._number += entries
        group = self.writer.new_group()
        for number in numbers:
            group.add(PREFIX, make_body(number, size), 1, self.writer.next_timestamp())
        try:
            self.writer.commit(group)
        except OSError as error:
            self.errors.append(error.errno or 0)
            self.refused += numbers
            return False
        self.acknowledged += numbers
        return True

    def ship(self) -> None:
        for file in self.directory.segments(SEALED):
            scan = SegmentScan(file.path)
            self._shipped[file.filename] = list(map(number_of, scan))
            kept = scan.report.size >= self._half and self._pool.put(file.path, scan.report.last_timestamp)
            if not kept:
                os.unlink(file.path)

    def finish(self) -> None:
        """Ends the writer and ships all there is, as the next start would."""
        self.writer.close()
        self.directory.make()
        recover_at_start(self.directory)
        self.ship()

    @property
    def shipped(self) -> list[int]:
        return [number for numbers in self._shipped.values() for number in numbers]

    def check(self, refused_may_be_there: bool = False) -> None:
        assert len(set(self.shipped)) == len(self.shipped), "something is there twice"
        assert set(self.acknowledged) <= set(self.shipped), "something that was acknowledged is lost"
        if not refused_may_be_there:
            assert not set(self.refused) & set(self.shipped), "something that was refused is there"


def work(traffic: Traffic) -> None:
    """Some of everything: groups, rotations by size and by age, shipping, recycling."""
    for step in range(14):
        traffic.commit()
        if step % 3 == 1 and traffic.writer._background is not None:
            traffic.writer._background.sync_now()
        if step % 3 == 2:
            traffic.writer.tick()
        if step % 2:
            wait_until(lambda: not traffic.writer._pipeline._ready.empty(), "the next segment is made")
            try:
                traffic.ship()
            except OSError:
                pass  # as the uploader: later


OPTIONS = WALOptions(max_size_bytes=4096, flush_max_age_seconds=0.0, free_segments=2)


class HalfWrite(FaultyDisk):
    """Takes half of one write and refuses the rest of it: a disk that fills up, or a quota."""

    def __init__(self, at: int, error: int) -> None:
        super().__init__()
        self._at = at
        self._error = error

    def _pwritev(self, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
        self._at -= 1
        if self._at == 0:
            data = b"".join(buffers)
            return super()._pwritev(fd, [data[: len(data) // 2]], offset)
        if self._at == -1:
            raise OSError(self._error, os.strerror(self._error))
        return super()._pwritev(fd, buffers, offset)


def operations_of_a_good_run(path: Path, options: WALOptions) -> int:
    disk = FaultyDisk()
    traffic = Traffic(WALDirectory(path, disk), options)
    work(traffic)
    traffic.finish()
    traffic.check()
    assert traffic.refused == []
    assert len(traffic.shipped) == 28
    return len(disk.calls)


@pytest.mark.parametrize("mode", ["fdatasync", "fsync", "async"])
@pytest.mark.parametrize("lasting", [1, 5])
@pytest.mark.parametrize("error", [errno.EIO, errno.ENOSPC])
@pytest.mark.parametrize("when", ["before", "after"])
def test_every_operation_may_fail(
    fast: Path, monkeypatch: pytest.MonkeyPatch, mode: SyncMode, lasting: int, error: int, when: str
) -> None:
    """Each once, and each with the four that follow: before it did anything, or though it was done.

    In the `async` mode every third group is synced, so that a part of a segment is on disk and a part is not.
    """
    monkeypatch.setattr(pipeline_module, "_RETRY_SECONDS", 0.005)
    options = msgspec.structs.replace(OPTIONS, sync_mode=mode, async_interval_seconds=7200.0)
    count = operations_of_a_good_run(fast / "good", options)
    refusals = 0
    for failing in range(1, count + 3, 1 if (mode, lasting, error) == ("fdatasync", 1, errno.EIO) else 5):
        path = fast / str(failing)
        disk = FaultyDisk()
        traffic = Traffic(WALDirectory(path, disk), options)
        disk.calls.clear()

        def fault(operation: str, where: str, disk: FaultyDisk = disk, first: int = failing) -> None:
            if first <= len(disk.calls) < first + lasting:
                raise OSError(error, os.strerror(error), where)

        if when == "before":
            disk.fault = fault
        else:
            disk.fault_after = fault
        work(traffic)
        disk.fault = disk.fault_after = lambda operation, where: None
        wait_until(traffic.commit, f"it goes on after operation {failing} failed")
        traffic.finish()
        traffic.check()
        assert set(traffic.errors) <= {error}
        refusals += bool(traffic.refused)
        shutil.rmtree(path)
    assert refusals > 0


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO])
def test_every_write_may_stop_halfway(fast: Path, error: int) -> None:
    refusals = 0
    for at in range(1, 40):
        disk = HalfWrite(at, error)
        directory = WALDirectory(fast / str(at), disk)
        try:
            traffic = Traffic(directory, OPTIONS)
        except OSError:  # the very first segment: then there is no writer
            continue
        work(traffic)
        wait_until(traffic.commit, f"it goes on after write {at} stopped halfway")
        traffic.finish()
        traffic.check()
        refusals += len(traffic.refused)
    assert refusals


def test_signals_in_the_middle_of_system_calls_change_nothing(tmp_path: Path) -> None:
    """EINTR for real: a timer that strikes thousands of times a second."""
    strikes = 0

    def strike(number: int, frame: object) -> None:
        nonlocal strikes
        strikes += 1

    traffic = Traffic(WALDirectory(tmp_path / "wal"), WALOptions(max_size_bytes=MEGABYTE))
    before = signal.signal(signal.SIGALRM, strike)
    signal.siginterrupt(signal.SIGALRM, True)
    signal.setitimer(signal.ITIMER_REAL, 0.0002, 0.0002)
    try:
        while strikes < 1000:
            assert traffic.commit(size=20_000)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    traffic.finish()
    traffic.check()


# Real file systems


@pytest.mark.parametrize("kind", ["tmpfs", "ext4"])
@pytest.mark.parametrize("recycle", [True, False])
def test_a_full_disk_is_no_space_and_nothing_else(tmp_path: Path, kind: str, recycle: bool) -> None:
    options = WALOptions(max_size_bytes=MEGABYTE, recycle=recycle, flush_max_age_seconds=0.05)
    with small_disk(tmp_path / "disk", kind, 24) as disk:
        traffic = Traffic(WALDirectory(disk.path / "wal"), options)
        for _ in range(20):
            assert traffic.commit(size=10_000)
        disk.fill()
        for _ in range(300):
            traffic.commit(size=10_000)
            traffic.writer.tick()
        assert traffic.refused
        assert set(traffic.errors) <= {errno.ENOSPC}
        traffic.ship()
        assert os.listdir(disk.path / "wal" / "free") == [] or recycle
        disk.free()
        wait_until(traffic.commit, "it goes on by itself")
        for _ in range(20):
            assert traffic.commit(size=10_000)
        traffic.finish()
        traffic.check()


@pytest.mark.parametrize("kind", ["tmpfs", "ext4"])
def test_a_disk_that_is_read_only_for_a_while(tmp_path: Path, kind: str) -> None:
    with small_disk(tmp_path / "disk", kind, 24) as disk:
        traffic = Traffic(WALDirectory(disk.path / "wal"), WALOptions(max_size_bytes=200_000))
        for _ in range(5):
            assert traffic.commit(size=10_000)
        disk.make_read_only()
        for _ in range(60):
            traffic.commit(size=10_000)
            traffic.writer.tick()
        assert set(traffic.errors) == {errno.EROFS}
        disk.make_writable()
        wait_until(traffic.commit, "it goes on by itself")
        traffic.finish()
        traffic.check()


def test_a_file_system_that_gave_up_and_is_mounted_again(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "ext4", 24) as disk:
        directory = WALDirectory(disk.path / "wal")
        traffic = Traffic(directory, WALOptions(max_size_bytes=200_000))
        for _ in range(5):
            assert traffic.commit(size=10_000)
        disk.abort()
        for _ in range(5):
            assert not traffic.commit(size=10_000)
            traffic.writer.tick()
        assert not set(traffic.errors) & set(NO_SPACE)
        disk.mount_again()
        wait_until(traffic.commit, "it goes on by itself")
        for _ in range(5):
            assert traffic.commit(size=10_000)
        traffic.finish()
        # What was being written when the file system gave up may have reached the disk: nobody could take it back.
        traffic.check(refused_may_be_there=True)


# The whole server


class Sender:
    """Writes numbered records to a server one after the other, and knows which were acknowledged."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.acknowledged: list[int] = []
        self.refused: dict[int, tuple[int, str]] = {}
        self.reason = ""  # of the last refusal
        self._number = 0

    def send(self, size: int = 50_000) -> int:
        """One record with that much ballast; the status of the answer."""
        self._number += 1
        number = self._number
        ballast = random.Random(number).randbytes(size).hex()
        body = pack({"m": "fault", "columns": {"number": [number], "ballast": [ballast]}})
        response = self.server.post("/write/v2/msgpack", body)
        if response.status == 202:
            self.acknowledged.append(number)
        else:
            assert response.headers["retry-after"]
            self.refused[number] = (response.status, response.json()["code"])
            self.reason = response.reason
        return response.status

    def until(self, status: int, what: str) -> None:
        wait_until(lambda: self.send() == status, what)

    def check_lake(self) -> None:
        """After the end of the server: every acknowledged record once, and none that was refused."""
        numbers = [row["number"] for row in lake_rows(self.server.lake, "default", "fault")]
        assert sorted(numbers) == sorted(self.acknowledged)


def serve_on(tmp_path: Path, disk: SmallDisk, **settings: object) -> Server:
    """A server whose log is on that disk, and its store on another."""
    wal = disk.path / "wal"
    small: dict[str, object] = {"wal_dir": wal, "wal_min_free_mb": 0, "wal_max_size_mb": 2, "server_workers": 2}
    server = Server(tmp_path, **small | settings)
    server.wal = wal
    return server


@pytest.fixture(params=["tmpfs", "ext4"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_the_server_answers_507_while_the_disk_is_full(tmp_path: Path, kind: str) -> None:
    """The server answers 507 while the disk is full and goes on when it is not."""
    with small_disk(tmp_path / "disk", kind, 32) as disk, serve_on(tmp_path, disk) as server:
        sender = Sender(server)
        workers = server.pids()
        for _ in range(20):
            assert sender.send() == 202
        wait_until(lambda: not server.segments(".wal.sealed"), "the uploader to have shipped")
        disk.fill()
        sender.until(507, "a 507")
        disk.fill()  # what shipping and cutting back have freed since
        for _ in range(30):
            sender.send()
        assert set(sender.refused.values()) == {(507, "no_space")}
        disk.free()
        sender.until(202, "it to go on by itself")
        for _ in range(20):
            assert sender.send() == 202
        assert server.pids() == workers, "nobody had to be restarted"
        server.stop()
        server.assert_log_is_shipped()
        sender.check_lake()


def test_the_server_starts_on_a_disk_that_has_become_full(tmp_path: Path, kind: str) -> None:
    with small_disk(tmp_path / "disk", kind, 32) as disk, serve_on(tmp_path, disk) as server:
        sender = Sender(server)
        for _ in range(20):
            assert sender.send() == 202
        server.kill_all()
        disk.fill()
        disk.give_back(64 << 10)  # a start needs some blocks for its own
        server.restart()
        disk.fill()  # what it has made of what was left to write over
        sender.until(507, "a 507")
        disk.free()
        sender.until(202, "it to go on by itself")
        server.stop()
        server.assert_log_is_shipped()
        sender.check_lake()


def test_the_server_starts_on_a_disk_without_a_byte(tmp_path: Path, kind: str) -> None:
    """Nothing is left over that the start could remove; there are the uploader's spare files."""
    with small_disk(tmp_path / "disk", kind, 32) as disk, serve_on(tmp_path, disk) as server:
        sender = Sender(server)
        assert sender.send() == 202
        spares = [server.wal / "batches" / name for name in ("spare-1", "spare-2")]
        wait_until(lambda: all(spare.exists() for spare in spares), "the spare files")
        server.stop()
        for path in (server.wal / "free").iterdir():
            path.unlink()
        disk.fill()
        server.restart()
        if kind == "tmpfs":  # ext4 keeps a block or two of its own, which `fill` does not get
            assert "node.json is written over a spare file" in server.log
        disk.free()
        sender.until(202, "it to go on by itself")
        server.stop()
        server.assert_log_is_shipped()
        sender.check_lake()


def test_a_worker_that_can_make_no_segment_serves_and_refuses(tmp_path: Path, kind: str) -> None:
    """A disk that takes nothing for a while is a reason to wait, not to end."""
    with small_disk(tmp_path / "disk", kind, 32) as disk, serve_on(tmp_path, disk, server_workers=1) as server:
        sender = Sender(server)
        for _ in range(5):
            assert sender.send() == 202
        server.wait_for_rows(5)
        wait_until(lambda: not server.segments(".wal.sealed"), "the segment to be retired")
        disk.make_read_only()
        dead = server.kill("ingest 1")
        worker = server.wait_for_successor("ingest 1", dead)
        wait_until(lambda: answers(server, "/health"), "the new worker to serve")
        told = "cannot be written: [Errno 30] Read-only file system"
        wait_until(lambda: told in server.log, "it to be told before the first write")
        for _ in range(3):
            assert sender.send() == 503
        assert sender.reason.endswith("nothing was written")
        assert answers(server, "/metrics")
        disk.make_writable()
        sender.until(202, "it to go on by itself")
        assert server.pids()["ingest 1"] == worker, "it did not die of it"
        server.stop()
        server.restart()  # what the dead worker left could not be recovered then
        server.stop()
        server.assert_log_is_shipped()
        sender.check_lake()


def answers(server: Server, path: str) -> bool:
    try:
        return server.get(path).status in (200, 503, 507)
    except OSError:
        return False


def test_the_server_refuses_before_the_disk_is_full(tmp_path: Path) -> None:
    with (
        small_disk(tmp_path / "disk", "tmpfs", 32) as disk,
        serve_on(tmp_path, disk, wal_min_free_mb=8) as server,
    ):
        sender = Sender(server)
        assert sender.send() == 202
        disk.fill()
        wait_until(lambda: sender.send() == 507 and "wal.min_free_mb = 8" in sender.reason, "a 507 ahead of need")
        disk.free()
        sender.until(202, "it to go on by itself")
        server.stop()
        sender.check_lake()


def test_the_server_outlives_a_read_only_disk(tmp_path: Path, kind: str) -> None:
    with small_disk(tmp_path / "disk", kind, 32) as disk, serve_on(tmp_path, disk) as server:
        sender = Sender(server)
        workers = server.pids()
        assert sender.send() == 202
        disk.make_read_only()
        sender.until(503, "a 503, once a segment is full")
        assert set(sender.refused.values()) == {(503, "log_failure")}
        disk.make_writable()
        sender.until(202, "it to go on by itself")
        assert server.pids() == workers, "nobody had to be restarted"
        server.stop()
        server.assert_log_is_shipped()
        sender.check_lake()


def test_writes_are_refused_on_a_file_system_that_gave_up(tmp_path: Path) -> None:
    """The server refuses on a file system that gave up and has everything when it is back."""
    with (
        small_disk(tmp_path / "disk", "ext4", 32) as disk,
        serve_on(tmp_path, disk, shutdown_drain_seconds=0.5) as server,
    ):
        sender = Sender(server)
        workers = server.pids()
        for _ in range(5):
            assert sender.send() == 202
        disk.abort()
        for _ in range(10):
            assert sender.send() == 503
        assert set(sender.refused.values()) == {(503, "log_failure")}
        assert server.pids() == workers, "nobody had to be restarted"
        server.send_signal(signal.SIGTERM)
        assert server.exit_code() == 0
        disk.mount_again()
        server.settings["shutdown_drain_seconds"] = 30.0  # now the store gets everything, however slow the machine is
        server.restart()
        assert sender.send() == 202
        server.stop()
        server.assert_log_is_shipped()
        numbers = [row["number"] for row in lake_rows(server.lake, "default", "fault")]
        assert len(set(numbers)) == len(numbers)
        assert set(sender.acknowledged) <= set(numbers)


def test_the_server_outlives_the_removal_of_its_directory(tmp_path: Path) -> None:
    with Server(tmp_path, server_workers=1) as server:
        sender = Sender(server)
        workers = server.pids()
        assert sender.send() == 202
        server.wait_for_rows(1)
        wait_until(lambda: not server.segments(".wal.sealed"), "the segment to be retired")
        inode = os.stat(server.wal).st_ino  # which the supervisor holds open, so that no other directory gets it

        def is_removed() -> bool:
            shutil.rmtree(server.wal, ignore_errors=True)  # in vain, if the server makes a file in it at this moment
            try:
                return os.stat(server.wal).st_ino != inode
            except FileNotFoundError:
                return True

        wait_until(is_removed, "the removal of the directory")
        sender.until(202, "it to go on by itself")
        # 507 until the supervisor has looked at the disk again.
        assert {status for status, _ in sender.refused.values()} <= {503, 507}
        sender.until(202, "it to go on for good")
        assert server.pids() == workers, "nobody had to be restarted"
        server.stop(code=EXIT_UNKNOWN)
        sender.check_lake()


def test_what_was_moved_away_with_its_directory_can_be_replayed(tmp_path: Path) -> None:
    with Server(tmp_path, server_workers=1, flush_max_age_seconds=3600) as server:
        sender = Sender(server)
        assert sender.send() == 202
        elsewhere = tmp_path / "elsewhere"
        server.wal.rename(elsewhere)
        wait_until(lambda: bool(server.segments(".wal")), "a new segment in a new directory")
        sender.until(202, "it to go on by itself")  # 507 until the supervisor has looked at the disk again
        server.stop(code=EXIT_UNKNOWN)
        assert len(lake_rows(server.lake, "default", "fault")) >= 1
        _replay(server, elsewhere)
        server.restart()
        server.wait_for_rows(2)
        server.stop()
        sender.check_lake()


def _replay(server: Server, folder: Path) -> None:
    done = subprocess.run(
        [*COMMAND, "wal", "replay", str(folder)],
        cwd=server.directory,
        env=environment(**server.settings),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
