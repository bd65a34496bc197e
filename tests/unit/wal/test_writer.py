"""`WALWriter`: timestamps, rotation, and what it does when the disk says no."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import shutil
import threading
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgpack
import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from arcpipe.cli.wal import app
from arcpipe.clock import steady_us_at
from arcpipe.disk import Buffer, Disk
from arcpipe.errors import CommitFailed
from arcpipe.wal import WALReader, WALWriter
from arcpipe.wal import background_sync as background_sync_module
from arcpipe.wal import factory as factory_module
from arcpipe.wal import segment as segment_module
from arcpipe.wal import stamps as stamps_module
from arcpipe.wal import writer as writer_module
from arcpipe.wal.background_sync import BackgroundSync
from arcpipe.wal.directory import ACTIVE, SEALED, WALDirectory
from arcpipe.wal.format import (
    END_ENTRY_BYTES,
    ENTRY_HEADER,
    KeyedPrefix,
    crc32,
    envelope_prefix,
    identity_of,
    is_identity_of,
    make_identity,
)
from arcpipe.wal.group import Group, WALStats
from arcpipe.wal.pool import FreePool
from arcpipe.wal.reader import Entry, SegmentScan
from arcpipe.wal.recovery import recover_at_start
from arcpipe.wal.segment import Segment
from arcpipe.wal.writer import SyncMode, WALOptions
from tests.support.directories import copy_at_one_moment
from tests.support.waiting import wait_until
from tests.support.wal_doubles import Clock, FaultyDisk, HeldDisk, WatchedLock

PREFIX = envelope_prefix(1, "db")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(segment_module, "time", clock)
    monkeypatch.setattr(writer_module, "time", clock)
    monkeypatch.setattr(stamps_module, "time", clock)
    return clock


def body(number: int, size: int = 0) -> bytes:
    packed: bytes = msgpack.packb({"m": "m", "columns": {"number": [number], "filler": [bytes(size)]}})
    return packed


def group_of(writer: WALWriter, *numbers: int, size: int = 0) -> Group:
    group = writer.new_group()
    for number in numbers:
        group.add(PREFIX, body(number, size), 1, writer.next_timestamp())
    return group


def commit(writer: WALWriter, *numbers: int, size: int = 0) -> None:
    writer.commit(group_of(writer, *numbers, size=size))


def number_of(entry: Entry) -> int:
    return int(msgpack.unpackb(entry.payload)[3]["columns"]["number"][0])


def contents(directory: WALDirectory, state: str = SEALED) -> list[list[int]]:
    """The numbers in each segment, oldest segment first; checks what each segment must have."""
    found = []
    for file in directory.segments(state):
        scan = SegmentScan(file.path)
        entries = list(scan)
        report = scan.report
        stamps = [entry.timestamp for entry in entries]
        assert report.damage == []
        assert report.torn_bytes == 0
        assert report.start is not None
        assert stamps == sorted(set(stamps))
        assert not stamps or report.start.created < stamps[0]
        if report.end is not None:
            assert report.end.entries == len(entries)
            assert report.last_timestamp == (stamps or [report.start.created])[-1] + 1
        found.append([number_of(entry) for entry in entries])
    return found


def all_timestamps(directory: WALDirectory) -> list[int]:
    return [entry.timestamp for file in directory.segments(SEALED) for entry in SegmentScan(file.path)]


def wait_ready(writer: WALWriter) -> None:
    wait_until(lambda: not writer._pipeline._ready.empty(), "the next segment is ready")


def wait_sealed(writer: WALWriter) -> None:
    wait_until(lambda: writer._pipeline.unsealed == 0, "all that was left is sealed")


# By hand


def test_records_are_read_back_as_they_were_appended(tmp_path: Path) -> None:
    writer = WALWriter(str(tmp_path / "wal"), slot=3)
    records = [
        {"measurement": "cpu", "time": 1700000000, "host": "a", "usage": 0.5, "on": True, "none": None, "raw": b"\x00"},
        {"measurement": "cpu", "usage": 1},
    ]
    writer.append(records)
    writer.append([{"measurement": "mem", "_database": "other", "used": 2**64 - 1}], database="third")
    writer.close()
    [file] = WALDirectory(tmp_path / "wal").segments(SEALED)
    assert file.name.slot == 3
    (one, two), [three] = WALReader(file.path).read_all()
    assert one == records[0] | {"_database": "default"}
    assert {"time": two.pop("time"), **two} == {**two, "time": pytest.approx(time.time() * 1e6, abs=60e6)}
    assert two == {"measurement": "cpu", "_database": "default", "usage": 1}
    assert three["_database"] == "other"
    assert three["used"] == 2**64 - 1


def test_timestamps_go_on_after_the_clock_was_set_back(tmp_path: Path) -> None:
    """As when what was recovered has timestamps that are an hour ahead."""
    ahead = time.time_ns() // 1000 + 3_600_000_000
    writer = WALWriter(str(tmp_path / "wal"), slot=1, last_timestamp=ahead)
    assert -3_600_000_000 - 100 <= writer.clock_meta()["clock"] < -3_500_000_000
    for number in range(2):
        writer.append([{"measurement": "cpu", "usage": number}])
    writer.close()
    [file] = WALDirectory(tmp_path / "wal").segments(SEALED)
    assert all(entry.timestamp > ahead for entry in SegmentScan(file.path))
    times = [record["time"] for [record] in WALReader(file.path).read_all()]
    assert times == [pytest.approx(time.time() * 1e6, abs=60e6)] * 2
    half_an_hour_on = datetime.fromtimestamp(time.time() + 1800, UTC).isoformat()
    shown = CliRunner().invoke(app, ["cat", "--until", half_an_hour_on, file.path]).output.splitlines()
    taken = [datetime.fromisoformat(" ".join(line.split()[1:3])).timestamp() for line in shown]
    assert taken == [pytest.approx(time.time(), abs=60)] * 2
    assert WALWriter(str(tmp_path / "other"), slot=1).clock_meta() == {}


@pytest.mark.parametrize(
    "records",
    [[], [{}], [{"usage": 1}], [{"measurement": ""}], [{"measurement": "cpu"}], [{"measurement": "c", "time": 1}]],
)
def test_records_without_measurement_or_field_are_refused(tmp_path: Path, records: list[dict[str, object]]) -> None:
    writer = WALWriter(str(tmp_path / "wal"), slot=1)
    with pytest.raises(ValueError, match="record"):
        writer.append([{"measurement": "good", "field": 1}, *records] if records else records)
    writer.close()
    assert WALDirectory(tmp_path / "wal").segments(SEALED) == []


def test_without_entries_nothing_is_left(directory: WALDirectory) -> None:
    WALWriter(directory, 1).close()
    assert directory.segments(ACTIVE) == directory.segments(SEALED) == []
    assert os.listdir(directory.free) == []


# Groups


def test_a_group_is_one_write_and_one_sync(directory: WALDirectory, disk: FaultyDisk) -> None:
    writer = WALWriter(directory, 1)
    wait_ready(writer)
    disk.calls.clear()
    commit(writer, *range(50), size=3000)
    assert [operation for operation, _ in disk.calls] == ["write", "fdatasync"]
    assert (writer.stats.commits, writer.stats.entries, writer.stats.syncs) == (1, 50, 1)
    writer.close()
    assert contents(directory) == [list(range(50))]


@pytest.mark.parametrize(
    ("mode", "syncs"),
    [("fsync", ["fsync"]), ("fdatasync", ["fdatasync"]), ("async", []), ("off", [])],
)
def test_each_sync_mode_syncs_as_it_says(
    directory: WALDirectory, disk: FaultyDisk, mode: SyncMode, syncs: list[str]
) -> None:
    writer = WALWriter(directory, 1, WALOptions(sync_mode=mode, async_interval_seconds=3600))
    wait_ready(writer)
    disk.calls.clear()
    commit(writer, 1)
    assert [operation for operation, _ in disk.calls] == ["write", *syncs]
    writer.close()
    assert contents(directory) == [[1]]
    assert (disk.count("sync_directory") > 0) is (mode != "off")


class _WrittenBack(Disk):
    """Notes which bytes the kernel was asked to write."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, int]] = []

    def forget(self, fd: int, offset: int = 0, size: int = 0) -> None:
        self.asked.append((offset, size))
        super().forget(fd, offset, size)


def test_what_is_not_synced_is_written_back_without_delay(tmp_path: Path) -> None:
    disk = _WrittenBack()
    directory = WALDirectory(tmp_path / "wal", disk)
    directory.make()
    writer = WALWriter(directory, 1, WALOptions(sync_mode="off"))
    commit(writer, 1)
    begin = writer.segment.offset
    commit(writer, *range(50), size=3000)
    middle = writer.segment.offset
    commit(writer, 2)
    assert disk.asked[-2:] == [(begin, middle - begin), (middle, writer.segment.offset - middle)]
    writer.close()
    assert contents(directory) == [[1, *range(50), 2]]


def entries_of(buffers: Sequence[Buffer]) -> list[tuple[int, int, bytes]]:
    """Timestamp, CRC and payload of each entry in a group's buffers."""
    data, offset, found = b"".join(buffers), 0, []
    while offset < len(data):
        length, timestamp, crc = ENTRY_HEADER.unpack_from(data, offset)
        found.append((timestamp, crc, data[offset + 16 : offset + 16 + length]))
        offset += 16 + length
    return found


@settings(max_examples=50, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 6000), min_size=1, max_size=20),
    above=st.integers(0, 2**62),
    moves=st.booleans(),
    meta=st.dictionaries(st.text(max_size=9), st.text(max_size=300), max_size=12),
    database=st.text(max_size=64),
    key=st.binary(max_size=128),
)
def test_a_group_fits_a_segment_by_its_heads_alone(
    sizes: list[int], above: int, moves: bool, meta: dict[str, str], database: str, key: bytes
) -> None:
    former, present = make_identity(1, 5), make_identity(1, 6)
    plain = envelope_prefix(1, database, {key: value for key, value in meta.items() if key != "in"})
    prefix = KeyedPrefix(plain, None, len(key)) if key else plain
    group = Group(former)
    for number, size in enumerate(sizes):
        group.add(prefix, body(number, size), 2, 100 + number, key)
    before, bodies = entries_of(group.buffers), [buffer for buffer in group.buffers if len(buffer) > 5000]
    group.fit(present if moves else former, above)
    after = entries_of(group.buffers)
    assert sum(map(len, group.buffers)) == group.size
    assert [payload for _, _, payload in after] == [
        payload.replace(former, present) if moves else payload for _, _, payload in before
    ]
    assert all(crc32(payload) == crc for _, crc, payload in after)
    stamps = [timestamp for timestamp, _, _ in after]
    first = 100 if above < 100 else above + 1
    assert stamps == list(range(first, first + len(sizes)))
    assert (group.first_timestamp, group.last_timestamp) == (stamps[0], stamps[-1])
    assert {identity_of(payload) for _, _, payload in after} == {group.identity}
    if max(sizes) > 5100:
        assert any(buffer is kept for buffer in group.buffers for kept in bodies), "a large body was copied"


def test_every_entry_names_the_segment_that_it_is_in(directory: WALDirectory) -> None:
    """Groups that began before a rotation, groups of no segment, and one prefix for all of them."""
    writer = WALWriter(directory, 1, WALOptions(max_size_bytes=9000))
    for number in range(0, 30, 3):
        nowhere, early = Group(), writer.new_group()
        for offset, group in enumerate((nowhere, early)):
            group.add(PREFIX, body(number + offset, 2500 * offset), 1, writer.next_timestamp())
        writer.commit(nowhere)
        commit(writer, number + 2, size=1500)
        writer.commit(early)
    writer.close()
    files = directory.segments(SEALED)
    assert len(files) > 4
    for file in files:
        scan = SegmentScan(file.path)
        named = {identity_of(entry.payload) for entry in scan}
        assert scan.report.start is not None
        assert scan.report.end is not None
        assert named == {scan.report.start.identity} == {scan.report.end.identity}
        assert is_identity_of(scan.report.start.identity, 1, file.name.seq)
    assert sorted(number for numbers in contents(directory) for number in numbers) == list(range(30))


# Timestamps


@pytest.mark.slow
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(st.sampled_from([0, 1, 1_000, -1, -1_000_000, -86_400_000_000, 3_600_000_000]), max_size=25))
def test_timestamps_increase_whatever_the_clock_does(tmp_path: Path, steps: list[int]) -> None:
    shutil.rmtree(tmp_path / "wal", ignore_errors=True)
    directory = WALDirectory(tmp_path / "wal")
    directory.make()
    clock = Clock()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(segment_module, "time", clock)
        patch.setattr(writer_module, "time", clock)
        patch.setattr(stamps_module, "time", clock)
        first = clock.now_us + 50
        writer = WALWriter(directory, 1, WALOptions(max_size_bytes=2000), last_timestamp=first)
        for number, step in enumerate(steps):
            group = group_of(writer, 2 * number, 2 * number + 1, size=300)
            clock.now_us += step
            writer.commit(group)
        writer.close()
    found = contents(directory)
    assert [number for numbers in found for number in numbers] == list(range(2 * len(steps)))
    stamps = all_timestamps(directory)
    assert stamps == sorted(set(stamps))
    assert not stamps or stamps[0] > first


def test_entries_stamped_before_a_rotation_are_restamped_behind_it(directory: WALDirectory, clock: Clock) -> None:
    writer = WALWriter(directory, 1, WALOptions(max_size_bytes=3000))
    commit(writer, 1, size=2000)
    waiting = group_of(writer, 2, 3, size=1000)
    stamped = waiting.first_timestamp
    clock.now_us -= 3_600_000_000
    writer._pipeline.take().discard()  # the next one is made after the entries were stamped
    clock.now_us += 7_200_000_000
    writer._pipeline.take().discard()
    writer.commit(waiting)
    assert writer.segment.created > stamped
    assert waiting.first_timestamp > writer.segment.created
    writer.close()
    assert contents(directory) == [[1], [2, 3]]


def test_a_writer_goes_on_above_what_was_recovered(directory: WALDirectory) -> None:
    ahead = time.time_ns() // 1000 + 3_600_000_000
    writer = WALWriter(directory, 1, last_timestamp=ahead)
    assert writer.segment.created > ahead
    commit(writer, 1)
    writer.close()
    assert all_timestamps(directory)[0] > ahead


# Completing segments


def test_a_segment_is_completed_when_a_group_finds_no_room(directory: WALDirectory) -> None:
    writer = WALWriter(directory, 1, WALOptions(max_size_bytes=10_000))
    for number in range(20):
        commit(writer, number, size=1000)
    writer.close()
    found = contents(directory)
    assert [number for numbers in found for number in numbers] == list(range(20))
    assert len(found) == 3
    assert [file.name.seq for file in directory.segments(SEALED)] == [1, 2, 3]
    assert all(file.size <= 10_000 for file in directory.segments(SEALED))


def test_a_group_that_exceeds_a_whole_segment_has_one_for_itself(directory: WALDirectory) -> None:
    writer = WALWriter(directory, 1, WALOptions(max_size_bytes=5_000))
    commit(writer, 1)
    commit(writer, 2, size=50_000)
    commit(writer, 3)
    writer.close()
    assert contents(directory) == [[1], [2], [3]]


def test_there_is_always_room_for_the_end_entry(directory: WALDirectory) -> None:
    writer = WALWriter(directory, 1, WALOptions(max_size_bytes=4_000))
    for number in range(40):
        commit(writer, number, size=37 * number % 500)
        assert writer.segment.offset + END_ENTRY_BYTES <= 4_000
    writer.close()


def test_flush_age_completes_a_segment(directory: WALDirectory, clock: Clock) -> None:
    writer = WALWriter(directory, 1, WALOptions(flush_max_age_seconds=5))
    clock.pass_seconds(100)
    writer.tick()
    commit(writer, 1)  # the age is that of the oldest entry, not of the segment
    clock.pass_seconds(4.9)
    writer.tick()
    assert writer.stats.rotations == 0
    clock.pass_seconds(0.2)
    writer.tick()
    wait_sealed(writer)
    assert contents(directory) == [[1]]
    writer.close()


def test_records_complete_a_segment(directory: WALDirectory, clock: Clock) -> None:
    writer = WALWriter(directory, 1, WALOptions(flush_max_records=3))
    commit(writer, 1, 2)
    writer.tick()
    assert writer.stats.rotations == 0
    commit(writer, 3)
    writer.tick()
    wait_sealed(writer)
    assert contents(directory) == [[1, 2, 3]]
    writer.close()


def test_small_segments_are_only_completed_while_none_of_the_slot_waits(
    directory: WALDirectory, clock: Clock, disk: FaultyDisk
) -> None:
    writer = WALWriter(directory, 1, WALOptions(flush_max_age_seconds=5, flush_max_records=3, max_age_seconds=100))
    commit(writer, 1)
    wait_ready(writer)
    clock.pass_seconds(6)
    with disk.failing("rename"):  # left, but not sealed yet
        writer.tick()
        commit(writer, 2)
        clock.pass_seconds(6)
        writer.tick()
        assert writer.stats.rotations == 1
    wait_sealed(writer)
    for number in range(3, 6):
        commit(writer, number)
        clock.pass_seconds(6)
        writer.tick()
    assert writer.stats.rotations == 1, "one waits: neither age nor records complete another"
    [waiting] = directory.segments(SEALED)
    os.rename(waiting.path, waiting.path.replace("worker-1", "worker-2"))  # another slot's do not count
    writer.tick()
    assert writer.stats.rotations == 2
    commit(writer, 6)
    clock.pass_seconds(101)
    writer.tick()
    assert writer.stats.rotations == 3, "the largest age completes in any case"
    writer.close()
    assert sorted(contents(directory)) == [[1], [2, 3, 4, 5], [6]]


def test_to_know_that_one_waits_the_others_are_not_looked_at(
    directory: WALDirectory, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread that commits looks four times a second, and a long outage leaves ten thousands of them."""
    writer = WALWriter(directory, 1, WALOptions(flush_max_age_seconds=5))
    Path(directory.path, "worker-1-20251008_143000-000001.wal.sealed").write_bytes(b"")
    commit(writer, 1)
    clock.pass_seconds(6)
    with monkeypatch.context() as patch:
        patch.setattr(directory, "segments", None)
        writer.tick()
        assert writer.stats.rotations == 0
        Path(directory.path, "worker-1-20251008_143000-000001.wal.sealed").unlink()
        wait_ready(writer)
        writer.tick()
        assert writer.stats.rotations == 1
    writer.close()


def test_a_segment_that_waits_for_good_does_not_hold_the_others_back(directory: WALDirectory, clock: Clock) -> None:
    """One that cannot be read, or whose manifest is damaged, may wait for an operator."""
    Path(directory.path, "worker-1-20251008_143000-000001.wal.sealed").write_bytes(b"")
    writer = WALWriter(directory, 1, WALOptions(flush_max_age_seconds=5))
    commit(writer, 1)
    wait_ready(writer)
    clock.pass_seconds(20)
    writer.tick()
    assert writer.stats.rotations == 0
    clock.pass_seconds(11)
    writer.tick()
    assert writer.stats.rotations == 1
    writer.close()


def test_segment_is_sealed_for_a_batch_that_collects(directory: WALDirectory, clock: Clock) -> None:
    """Whether others wait or not; one that began later is not sealed."""
    Path(directory.path, "worker-1-20251008_143000-000001.wal.sealed").write_bytes(b"")
    writer = WALWriter(directory, 1, WALOptions(flush_max_age_seconds=5))
    commit(writer, 1)
    wait_ready(writer)
    began = steady_us_at(writer.segment.started_at)
    writer.collect_us = lambda: began - 1
    writer.tick()
    assert writer.stats.rotations == 0
    writer.collect_us = lambda: began
    writer.tick()
    assert writer.stats.rotations == 1
    clock.pass_seconds(1)
    commit(writer, 2)
    writer.tick()
    assert writer.stats.rotations == 1
    writer.close()


def test_numbers_go_on_where_the_directory_ends(directory: WALDirectory) -> None:
    Path(directory.path, "worker-1-20251008_143000-000041.wal.recovered").write_bytes(b"")
    writer = WALWriter(directory, 1)
    assert writer.segment.name.seq == 42
    writer.close()
    assert WALWriter(directory, 1, next_seq=7).segment.name.seq == 7


def test_a_number_that_no_server_gives_is_not_gone_on_from(directory: WALDirectory) -> None:
    """A person gave it to a file. The next one would not fit the start entry, and no worker could start."""
    for number in (3, (1 << 64) - 1, 10**25):
        Path(directory.path, f"worker-1-20251008_143000-{number}.wal.recovered").write_bytes(b"")
    writer = WALWriter(directory, 1)
    commit(writer, 1)
    assert writer.segment.name.seq == 4
    writer.close()
    assert contents(directory) == [[1]]


def test_a_shipped_segment_is_written_over_and_nothing_old_is_seen(directory: WALDirectory, clock: Clock) -> None:
    options = WALOptions(max_size_bytes=8_000, free_segments=2)
    writer = WALWriter(directory, 1, options)
    pool = FreePool(directory, 2)
    inodes = set()
    shipped: list[int] = []
    reused = 0
    for number in range(120):
        commit(writer, number, size=500)
        inode = os.stat(writer.segment.path).st_ino
        wait_sealed(writer)
        for file in directory.segments(SEALED):
            scan = SegmentScan(file.path)
            shipped += [msgpack.unpackb(entry.payload)[3]["columns"]["number"][0] for entry in scan]
            inodes.add(os.stat(file.path).st_ino)
            if not pool.put(file.path, scan.report.last_timestamp):
                os.unlink(file.path)
            clock.pass_seconds(1)
        reused += inode in inodes
    writer.close()
    shipped += [number for numbers in contents(directory) for number in numbers]
    assert shipped == list(range(120))
    assert reused > 20


def test_without_recycling_the_pool_is_left_alone(directory: WALDirectory) -> None:
    pool = FreePool(directory, 1)
    path = Path(directory.path, "worker-9-20251008_143000-000001.wal.sealed")
    path.write_bytes(b"x")
    pool.put(str(path), 5)
    writer = WALWriter(directory, 1, WALOptions(recycle=False))
    commit(writer, 1)
    writer.close()
    assert len(os.listdir(directory.free)) == 1


# When the disk says no


@pytest.mark.parametrize("mode", ["fsync", "fdatasync"])
@pytest.mark.parametrize("operation", ["write", "sync"])
@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EROFS])
def test_what_failed_is_refused_cut_off_and_left_behind(
    directory: WALDirectory, disk: FaultyDisk, mode: SyncMode, operation: str, error: int
) -> None:
    writer = WALWriter(directory, 1, WALOptions(sync_mode=mode))
    commit(writer, 1)
    commit(writer, 2)
    with disk.failing(mode if operation == "sync" else operation, error=error):
        with pytest.raises(OSError, match=os.strerror(error)) as caught:
            commit(writer, 3, 4)
        assert caught.value.errno == error
    assert writer.stats.failures == 1
    commit(writer, 5)
    commit(writer, 6)
    writer.close()
    assert contents(directory) == [[1, 2], [5, 6]]


def after_a_kill(directory: WALDirectory, where: Path) -> list[int]:
    """The numbers that a start finds if the process is killed now."""
    copy_at_one_moment(directory.path, where)
    copy = WALDirectory(where)
    recover_at_start(copy)
    return [number for numbers in contents(copy) for number in numbers]


class HalfWritten(FaultyDisk):
    """Takes half of what is written, and then has no space, as long as `full` is set."""

    full = False

    def _pwritev(self, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
        if self.full:
            data = b"".join(buffers)
            super()._pwritev(fd, [data[: len(data) // 2]], offset)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super()._pwritev(fd, buffers, offset)


@pytest.mark.parametrize("mode", ["fsync", "fdatasync"])
def test_after_a_refusal_a_kill_brings_nothing_back(
    directory: WALDirectory, disk: FaultyDisk, mode: SyncMode, tmp_path: Path
) -> None:
    """The client was told to send it again, and did: it would be there twice."""
    writer = WALWriter(directory, 1, WALOptions(sync_mode=mode))
    commit(writer, 1)
    wait_ready(writer)
    disk.calls.clear()
    refuse_once = iter([OSError(errno.EIO, "bad block")])

    def fault(operation: str, path: str) -> None:
        if operation == mode and (error := next(refuse_once, None)):
            raise error

    disk.fault = fault
    with pytest.raises(CommitFailed) as caught:
        commit(writer, 2, 3)
    assert not caught.value.may_have_been_written
    assert [operation for operation, _ in disk.calls] == ["write", mode, "truncate", "fsync"], "cut before it is told"
    assert after_a_kill(directory, tmp_path / "killed") == [1]
    commit(writer, 2, 3)
    writer.close()
    assert contents(directory) == [[1], [2, 3]]


@pytest.mark.parametrize("mode", ["fsync", "fdatasync", "async", "off"])
def test_after_half_a_write_a_kill_brings_nothing_back(tmp_path: Path, mode: SyncMode) -> None:
    disk = HalfWritten()
    directory = WALDirectory(tmp_path / "wal", disk)
    directory.make()
    writer = WALWriter(directory, 1, WALOptions(sync_mode=mode, async_interval_seconds=3600))
    commit(writer, 1)
    wait_ready(writer)
    disk.full = True
    with pytest.raises(CommitFailed, match="No space") as caught:
        commit(writer, *range(2, 20), size=100)
    assert (caught.value.errno, caught.value.may_have_been_written) == (errno.ENOSPC, False)
    disk.full = False
    assert after_a_kill(directory, tmp_path / "killed") == [1]
    writer.close()
    assert contents(directory) == [[1]]


@pytest.mark.parametrize("operation", ["truncate", "fsync"])
def test_a_failed_cut_is_told_as_may_have_been_written(
    directory: WALDirectory, disk: FaultyDisk, operation: str, tmp_path: Path
) -> None:
    """Where the cut fails too, the error says that it may have been written."""
    writer = WALWriter(directory, 1)
    commit(writer, 1)
    with disk.failing("fdatasync", operation):
        with pytest.raises(CommitFailed) as first:
            commit(writer, 2)
        with pytest.raises(CommitFailed) as second:
            commit(writer, 3)
    assert first.value.may_have_been_written
    assert not second.value.may_have_been_written, "of that one nothing was written"
    assert 3 not in after_a_kill(directory, tmp_path / "killed")
    commit(writer, 4)
    writer.close()
    assert contents(directory) == [[1], [4]]


def test_a_group_that_no_segment_could_be_made_for_was_not_written(directory: WALDirectory, disk: FaultyDisk) -> None:
    writer = WALWriter(directory, 1, WALOptions(max_size_bytes=3000, recycle=False))
    commit(writer, 1, size=2000)
    wait_ready(writer)
    with disk.failing("create"):
        writer._pipeline.take().discard()
        with pytest.raises(CommitFailed) as caught:
            commit(writer, 2, size=2000)
    assert not caught.value.may_have_been_written
    commit(writer, 3, size=2000)
    writer.close()
    assert contents(directory) == [[1], [3]]


def test_a_refused_group_does_not_come_back_with_a_file_that_was_moved(directory: WALDirectory, tmp_path: Path) -> None:
    writer = WALWriter(directory, 1)
    commit(writer, 1)
    wait_ready(writer)
    moved = tmp_path / "moved" / os.path.basename(writer.segment.path)
    moved.parent.mkdir()
    os.rename(writer.segment.path, moved)
    with pytest.raises(CommitFailed, match="removed or moved") as caught:
        commit(writer, 2)
    assert not caught.value.may_have_been_written
    assert [number_of(entry) for entry in SegmentScan(moved)] == [1]
    commit(writer, 3)
    writer.close()
    assert contents(directory) == [[3]]


def test_a_segment_that_failed_is_sealed_though_no_other_can_be_made(directory: WALDirectory, disk: FaultyDisk) -> None:
    """On a full disk that makes the room: what is sealed can be uploaded and removed."""
    writer = WALWriter(directory, 1)
    commit(writer, 1)
    wait_ready(writer)
    with disk.failing("create", error=errno.ENOSPC):
        writer._pipeline.take().discard()
        with disk.failing("fdatasync", "create"), pytest.raises(CommitFailed):
            commit(writer, 2)
        for _ in range(2):
            with pytest.raises(CommitFailed, match="No space"):
                commit(writer, 3)
        assert writer.current is None
        wait_sealed(writer)
        assert contents(directory) == [[1]]
    commit(writer, 4)
    writer.close()
    assert contents(directory) == [[1], [4]]


def test_a_full_segment_is_sealed_though_no_other_can_be_made(directory: WALDirectory, disk: FaultyDisk) -> None:
    """It takes nothing more, and only what is sealed can be uploaded. Without inodes, that gives one back."""
    writer = WALWriter(directory, 1, WALOptions(max_size_bytes=3000))
    commit(writer, 1, size=2000)
    wait_ready(writer)
    with disk.failing("create", error=errno.ENOSPC):
        writer._pipeline.take().discard()
        with pytest.raises(CommitFailed, match="No space"):
            commit(writer, 2, size=2000)
        wait_sealed(writer)
        assert contents(directory) == [[1]]
        writer.tick()
        with pytest.raises(CommitFailed, match="No space"):
            commit(writer, 3, size=2000)
    commit(writer, 4, size=2000)
    writer.close()
    assert contents(directory) == [[1], [4]]


def test_a_segment_of_the_highest_age_is_sealed_though_no_other_can_be_made(
    directory: WALDirectory, disk: FaultyDisk, clock: Clock
) -> None:
    writer = WALWriter(directory, 1, WALOptions(flush_max_age_seconds=5, max_age_seconds=60))
    commit(writer, 1)
    wait_ready(writer)
    with disk.failing("create"):
        writer._pipeline.take().discard()
        clock.pass_seconds(50)
        writer.tick()
        commit(writer, 2)  # it takes more until then
        clock.pass_seconds(11)
        writer.tick()
        wait_sealed(writer)
        assert contents(directory) == [[1, 2]]
    commit(writer, 3)
    writer.close()
    assert contents(directory) == [[1, 2], [3]]


def test_a_full_disk_gives_the_pool_for_the_end_entry(directory: WALDirectory, disk: FaultyDisk) -> None:
    writer = WALWriter(directory, 1)
    commit(writer, 1)
    wait_ready(writer)
    spare = Path(directory.free, f"{2**62:020d}-worker-1.wal")  # too young to be written over
    spare.write_bytes(bytes(100_000))

    def fault(operation: str, path: str) -> None:
        if operation == "write" and spare.exists():
            raise OSError(errno.ENOSPC, "no space")

    disk.fault = fault
    writer.close()
    assert not spare.exists()
    [file] = directory.segments(SEALED)
    scan = SegmentScan(file.path)
    assert [number_of(entry) for entry in scan] == [1]
    assert scan.report.end is not None


def test_without_room_for_the_end_entry_a_segment_waits(directory: WALDirectory, disk: FaultyDisk) -> None:
    writer = WALWriter(directory, 1, WALOptions(flush_max_age_seconds=0.0))
    commit(writer, 1)
    wait_ready(writer)
    with disk.failing("write", error=errno.ENOSPC):
        writer.tick()
        wait_until(lambda: disk.count("write") >= 4, "sealing it and making the next one have been tried")
        assert directory.segments(SEALED) == []
        assert writer._pipeline.unsealed == 1
    wait_sealed(writer)
    writer.close()
    assert contents(directory) == [[1]]


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EROFS, errno.EIO])
def test_a_writer_that_waits_for_its_disk_begins_without_a_segment(
    directory: WALDirectory, disk: FaultyDisk, error: int
) -> None:
    with disk.failing(error=error):
        with pytest.raises(OSError, match=os.strerror(error)):
            WALWriter(directory, 1)
        writer = WALWriter(directory, 1, wait_for_disk=True)
        assert writer.current is None
        assert writer.stats.last_failure_us
        group = group_of(writer, 1)
        for _ in range(3):
            with pytest.raises(CommitFailed) as caught:
                writer.commit(group)
            assert (caught.value.errno, caught.value.may_have_been_written) == (error, False)
            writer.tick()
    writer.commit(group)
    commit(writer, 2)
    writer.close()
    assert contents(directory) == [[1, 2]]


def test_a_writer_that_never_had_a_segment_ends(directory: WALDirectory, disk: FaultyDisk) -> None:
    for mode in ("fdatasync", "async"):
        with disk.failing(error=errno.EROFS):
            WALWriter(directory, 1, WALOptions(sync_mode=mode), wait_for_disk=True).close()
    assert directory.segments(ACTIVE) == []


def test_a_tick_is_enough_to_get_the_first_segment(directory: WALDirectory, disk: FaultyDisk) -> None:
    with disk.failing(error=errno.ENOSPC):
        writer = WALWriter(directory, 1, wait_for_disk=True)
    writer.tick()
    assert writer.segment.name.seq >= 1
    assert writer.stats.last_error == ""
    writer.close()


def test_a_segment_whose_first_group_failed_leaves_no_file(directory: WALDirectory, disk: FaultyDisk) -> None:
    writer = WALWriter(directory, 1)
    with disk.failing("fdatasync"), pytest.raises(OSError, match="Input/output"):
        commit(writer, 1)
    commit(writer, 2)
    writer.close()
    assert contents(directory) == [[2]]


@pytest.mark.parametrize("operation", ["truncate", "fsync"])
def test_nothing_is_accepted_until_the_failed_segment_is_cut_back(
    directory: WALDirectory, disk: FaultyDisk, operation: str
) -> None:
    writer = WALWriter(directory, 1)
    commit(writer, 1)
    with disk.failing("fdatasync", operation):
        for number in (2, 3, 4):
            with pytest.raises(OSError, match="Input/output"):
                commit(writer, number)
        writer.tick()
    with disk.failing(operation):
        for number in (5, 6):
            with pytest.raises(OSError, match="Input/output"):
                commit(writer, number)
        writer.tick()
    writer.tick()
    commit(writer, 7)
    writer.close()
    assert contents(directory) == [[1], [7]]


def test_it_goes_on_by_itself_without_a_commit(
    directory: WALDirectory, disk: FaultyDisk, caplog: pytest.LogCaptureFixture
) -> None:
    writer = WALWriter(directory, 1)
    commit(writer, 1)
    with disk.failing(error=errno.ENOSPC):
        for _ in range(5):
            with pytest.raises(OSError, match="No space"):
                commit(writer, 2)
            writer.tick()
    writer.tick()
    assert writer.stats.last_error == ""
    assert "going on in a new segment" in caplog.text
    assert caplog.text.count("cannot be written") <= 3, "the same trouble is not logged again and again"
    wait_sealed(writer)
    assert contents(directory) == [[1]]
    commit(writer, 3)
    writer.close()
    assert contents(directory) == [[1], [3]]
    assert os.listdir(directory.free) == []


def test_a_next_segment_that_could_not_be_made_long_ago_refuses_nothing(
    directory: WALDirectory, disk: FaultyDisk
) -> None:
    with disk.failing("create", error=errno.ENOSPC), pytest.raises(OSError, match="No space"):
        WALWriter(directory, 1)
    writer = WALWriter(directory, 1, WALOptions(max_size_bytes=3000))
    wait_ready(writer)
    with disk.failing("create", error=errno.ENOSPC):
        writer._pipeline.take().discard()
        wait_until(lambda: disk.count("create") >= 4, "making the next one has failed")
    for number in range(4):
        commit(writer, number, size=1500)
    assert writer.stats.failures == 0
    writer.close()


def test_trouble_with_the_next_segment_leaves_no_litter(directory: WALDirectory, disk: FaultyDisk) -> None:
    writer = WALWriter(directory, 1, WALOptions(max_size_bytes=3000))
    commit(writer, 0, size=2000)
    with disk.failing("fdatasync", "sync_directory", error=errno.ENOSPC):
        for number in range(1, 30):
            with pytest.raises(OSError, match="No space"):
                commit(writer, number, size=2000)
            writer.tick()
    wait_until(lambda: not os.listdir(directory.free), "what is being made to be there or gone")
    assert len(directory.segments(ACTIVE)) <= 2
    commit(writer, 99)
    writer.close()
    assert [number for numbers in contents(directory) for number in numbers] == [0, 99]


def test_an_error_that_names_a_new_segment_each_time_is_logged_once(
    directory: WALDirectory, disk: FaultyDisk, caplog: pytest.LogCaptureFixture
) -> None:
    writer = WALWriter(directory, 1, WALOptions(max_size_bytes=3000))
    commit(writer, 0, size=2000)
    wait_ready(writer)

    def fault(operation: str, path: str) -> None:
        if operation == "rename" and "new-" in path:
            raise OSError(errno.EACCES, os.strerror(errno.EACCES), path, None, f"{disk.count('rename')}.wal")

    disk.fault = fault
    writer._pipeline.take().discard()
    for number in range(1, 10):
        with pytest.raises(CommitFailed):
            commit(writer, number, size=2000)
        writer.tick()
    assert caplog.text.count("cannot be written") == 1
    disk.fault = lambda operation, path: None
    commit(writer, 10)
    writer.close()
    assert contents(directory) == [[0], [10]]


def keep_what_failed(operation: str, path: str) -> None:
    """A fault: what has its name gets no further, and cannot be removed."""
    if operation == "sync_directory" or (operation == "unlink" and "worker-" in path):
        raise OSError(errno.EIO, os.strerror(errno.EIO), path)


def test_a_next_segment_that_could_not_be_removed_is_removed_later(directory: WALDirectory, disk: FaultyDisk) -> None:
    """It has no entry, but would count as one that waits to be sealed, until the next start."""
    writer = WALWriter(directory, 1, WALOptions(max_size_bytes=3000))
    commit(writer, 0, size=2000)
    wait_ready(writer)
    disk.fault = keep_what_failed
    commit(writer, 1, size=2000)  # takes the one that is ready
    wait_ready(writer)
    disk.fault = lambda operation, path: None
    wait_sealed(writer)
    assert len(directory.segments(ACTIVE)) == 2, "one in use, one that failed"
    commit(writer, 2, size=2000)
    writer.close()
    assert directory.segments(ACTIVE) == []
    assert [number for numbers in contents(directory) for number in numbers] == [0, 1, 2]


def test_closing_while_it_fails_leaves_the_rest_to_the_next_start(directory: WALDirectory, disk: FaultyDisk) -> None:
    writer = WALWriter(directory, 1)
    commit(writer, 1)
    with disk.failing("fdatasync", "truncate", "unlink"):
        with pytest.raises(OSError, match="Input/output"):
            commit(writer, 2)
        writer.close()
    active = contents(directory, ACTIVE)
    assert [1, 2] in active or [1] in active
    assert directory.segments(SEALED) == []


def test_a_removed_directory_is_made_again(directory: WALDirectory, clock: Clock) -> None:
    writer = WALWriter(directory, 1)
    commit(writer, 1)
    wait_ready(writer)
    shutil.rmtree(directory.path)
    with pytest.raises(OSError, match="removed"):
        commit(writer, 2)
    commit(writer, 3)
    writer.close()
    assert contents(directory) == [[3]]
    assert sorted(os.listdir(directory.path))[:3] == ["batches", "free", "quarantine"]


def test_a_removed_directory_is_noticed_without_a_commit(directory: WALDirectory, clock: Clock) -> None:
    writer = WALWriter(directory, 1, WALOptions(flush_max_age_seconds=0.0))
    commit(writer, 1)
    writer.tick()
    wait_sealed(writer)
    commit(writer, 2)
    wait_ready(writer)
    shutil.rmtree(directory.path)
    writer.tick()  # neither listing what waits nor the rotation ends the thread
    clock.pass_seconds(2)
    writer.tick()
    commit(writer, 3)
    writer.close()
    assert contents(directory) == [[3]]


def test_a_directory_that_was_moved_away_keeps_what_it_has(
    directory: WALDirectory, clock: Clock, tmp_path: Path
) -> None:
    writer = WALWriter(directory, 1)
    commit(writer, 1)
    wait_ready(writer)
    os.rename(directory.path, tmp_path / "elsewhere")
    clock.pass_seconds(2)
    writer.tick()
    commit(writer, 2)
    writer.close()
    assert contents(directory) == [[2]]
    moved = WALDirectory(tmp_path / "elsewhere")
    assert [1] in contents(moved, ACTIVE)


def test_a_segment_whose_file_cannot_be_looked_at_is_neither_gone_nor_a_bug(
    directory: WALDirectory, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a network file system: the next write tells what is wrong."""
    writer = WALWriter(directory, 1)
    commit(writer, 1)
    segment = writer.segment

    def refuse(fd: int) -> os.stat_result:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fstat", refuse)
        writer.tick()
    commit(writer, 2)
    assert writer.segment is segment
    writer.close()
    assert contents(directory) == [[1, 2]]


def test_a_missing_pool_folder_is_made_again(directory: WALDirectory) -> None:
    writer = WALWriter(directory, 1, WALOptions(max_size_bytes=3000))
    wait_ready(writer)
    shutil.rmtree(directory.free)
    for number in range(5):
        commit(writer, number, size=2000)
    writer.close()
    assert contents(directory) == [[0], [1], [2], [3], [4]]


def cached_pages(path: str) -> int:
    """Pages of a file in the page cache, asked of mincore(2): a read with RWF_NOWAIT starts what it asks about."""
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        pages = (ctypes.c_ubyte * -(-len(mapped) // mmap.PAGESIZE))()
        first = ctypes.c_char.from_buffer(mapped)
        address, length = ctypes.c_void_p(ctypes.addressof(first)), ctypes.c_size_t(len(mapped))
        del first
        if ctypes.CDLL(None).mincore(address, length, pages):
            pytest.skip("this system does not tell what is in the page cache")
        return sum(page & 1 for page in pages)


def needs_a_cache_to_leave(directory: WALDirectory) -> None:
    """Skip the test where the file system keeps everything in the page cache."""
    probe = os.path.join(directory.path, "probe")
    with open(probe, "wb") as file:
        file.write(bytes(100_000))
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if cached_pages(probe):
        pytest.skip("this file system keeps everything in the page cache")


@pytest.mark.on_disk
def test_segments_leave_the_page_cache_while_much_waits_for_the_uploader(
    directory: WALDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that come once more than CACHED_BACKLOG_BYTES wait; of the others, the kernel may do as it likes."""
    kept: list[bool] = []
    seal = segment_module.Segment.seal

    def watched(*arguments: Any, keep_cached: bool, **others: Any) -> None:
        kept.append(keep_cached)
        seal(*arguments, keep_cached=keep_cached, **others)

    monkeypatch.setattr(segment_module.Segment, "seal", watched)
    needs_a_cache_to_leave(directory)
    writer = WALWriter(directory, 1, WALOptions(max_size_bytes=100_000))
    monkeypatch.setattr(factory_module, "CACHED_BACKLOG_BYTES", 250_000)
    for number in range(6):
        commit(writer, number, size=90_000)
    writer.close()
    assert kept == [True] * 3 + [False] * 3
    assert [cached_pages(file.path) for file in directory.segments(SEALED)][3:] == [0] * 3
    assert contents(directory) == [[number] for number in range(6)]


@pytest.mark.on_disk
def test_segments_that_are_never_synced_leave_the_page_cache_once_they_are_written(
    directory: WALDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the WAL off a segment is dirty when it is sealed, so it leaves when a later one is sealed."""
    needs_a_cache_to_leave(directory)
    writer = WALWriter(directory, 1, WALOptions(sync_mode="off", max_size_bytes=100_000))
    monkeypatch.setattr(factory_module, "CACHED_BACKLOG_BYTES", 250_000)
    for number in range(6):
        commit(writer, number, size=90_000)
    wait_until(lambda: len(directory.segments(SEALED)) == 5)
    for file in directory.segments(SEALED):  # as the kernel does, sooner or later
        with open(file.path, "rb") as opened:
            os.fsync(opened.fileno())
    os.unlink(directory.segments(SEALED)[-1].path)  # uploaded meanwhile
    writer.close()
    assert cached_pages(directory.segments(SEALED)[3].path) == 0
    assert contents(directory) == [[0], [1], [2], [3], [5]]


def test_a_bug_in_the_background_is_raised_by_the_next_tick(
    directory: WALDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = WALWriter(directory, 1, WALOptions(flush_max_age_seconds=0.0))

    def bug(self: object, max_size_bytes: int, *, keep_cached: bool) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(segment_module.Segment, "seal", bug)
    commit(writer, 1)
    writer.tick()
    wait_until(lambda: not writer._pipeline._thread.is_alive(), "the thread has ended")
    with pytest.raises(ZeroDivisionError):
        writer.tick()
    writer.close()


# The background sync of the async mode

# No sync by itself while a test runs.
LATER = WALOptions(sync_mode="async", async_interval_seconds=7200)


def fail_a_sync(writer: WALWriter, disk: FaultyDisk) -> None:
    assert writer._background is not None
    with disk.failing("fdatasync"):
        writer._background.sync_now()
    assert writer._background.error is not None


def test_the_background_sync_comes_within_the_interval(directory: WALDirectory, disk: FaultyDisk) -> None:
    writer = WALWriter(directory, 1, WALOptions(sync_mode="async", async_interval_seconds=0.05))
    wait_ready(writer)
    disk.calls.clear()
    commit(writer, 1)
    commit(writer, 2)
    assert writer._background is not None
    background = writer._background
    wait_until(lambda: background.retained == [], "both are synced")
    synced = disk.count("fdatasync")
    assert synced >= 1
    commit(writer, 3)
    wait_until(lambda: disk.count("fdatasync") > synced and not background.retained, "the third is synced")
    writer.close()
    assert contents(directory) == [[1, 2, 3]]


@pytest.mark.parametrize("by", ["commit", "tick", "rotation", "close"])
def test_after_a_failed_background_sync_nothing_is_lost(directory: WALDirectory, disk: FaultyDisk, by: str) -> None:
    writer = WALWriter(directory, 1, msgspec.structs.replace(LATER, max_size_bytes=9000))
    commit(writer, 1, size=1000)
    assert writer._background is not None
    writer._background.sync_now()
    commit(writer, 2, size=1000)
    commit(writer, 3, 4, size=1000)
    wait_ready(writer)
    first = writer.segment
    fail_a_sync(writer, disk)
    expected = [[1], [2, 3, 4]]
    if by == "commit":
        commit(writer, 5)
        expected = [[1], [2, 3, 4, 5]]
    elif by == "rotation":
        commit(writer, 5, size=7000)
        expected = [[1], [2, 3, 4], [5]]
    elif by == "tick":
        writer.tick()
    if by != "close":
        assert writer.segment is not first
        assert sum(group.entries for group in writer._background.retained) == (0 if by == "tick" else 1)
    writer.close()
    assert contents(directory) == expected
    assert directory.segments(ACTIVE) == []
    assert writer.stats.failures == 1


def test_a_rotation_whose_sync_fails_loses_nothing(directory: WALDirectory, disk: FaultyDisk) -> None:
    writer = WALWriter(directory, 1, msgspec.structs.replace(LATER, max_size_bytes=5000))
    commit(writer, 1, size=3000)
    wait_ready(writer)
    name = os.path.basename(writer.segment.path)
    refuse_once = iter([OSError(errno.EIO, "bad block")])

    def fault(operation: str, path: str) -> None:
        in_commit = operation == "fdatasync" and threading.current_thread() is threading.main_thread()
        if in_commit and (error := next(refuse_once, None)) is not None:
            raise error

    disk.fault = fault
    commit(writer, 2, size=3000)
    assert os.path.basename(writer.segment.path) > name
    commit(writer, 3, size=3000)
    writer.close()
    assert contents(directory) == [[1], [2], [3]]
    assert writer.stats.failures == 1


def test_the_successor_is_complete_before_the_cut(directory: WALDirectory, disk: FaultyDisk, tmp_path: Path) -> None:
    """Its name decides: a kill before it finds the failed segment whole, one after it the successor."""
    writer = WALWriter(directory, 1, LATER)
    commit(writer, 1)
    assert writer._background is not None
    writer._background.sync_now()
    synced = writer.segment.offset
    commit(writer, 2, 3)
    failed = writer.segment
    wait_ready(writer)
    fail_a_sync(writer, disk)
    states: list[dict[str, bytes]] = []

    def remember(operation: str, path: str) -> None:
        files = [file for file in Path(directory.path).iterdir() if file.is_file()]
        states.append({file.name: file.read_bytes() for file in files})

    disk.fault = remember
    commit(writer, 4)
    disk.fault = lambda operation, path: None
    name, successor = os.path.basename(failed.path), os.path.basename(writer.segment.path)
    whole = states[0][name]
    cut = [state for state in states if state.get(name) != whole]
    assert any(name in state for state in cut)
    for state in cut:
        file = tmp_path / successor
        file.write_bytes(state[successor])
        scan = SegmentScan(file)
        assert [number_of(entry) for entry in scan][:2] == [2, 3]
        assert scan.report.start is not None
        assert scan.report.start.replaces == (failed.name.seq, synced)
    writer.close()
    assert contents(directory) == [[1], [2, 3, 4]]


def test_a_kill_at_any_moment_of_a_replacement_neither_loses_nor_doubles(
    directory: WALDirectory, disk: FaultyDisk, tmp_path: Path
) -> None:
    writer = WALWriter(directory, 1, LATER)
    commit(writer, 1)
    assert writer._background is not None
    writer._background.sync_now()
    commit(writer, 2, 3)
    wait_ready(writer)
    fail_a_sync(writer, disk)
    found: list[list[int]] = []

    def kill(operation: str, path: str) -> None:
        if threading.current_thread() is threading.main_thread():
            found.append(after_a_kill(directory, tmp_path / str(len(found))))

    disk.fault = kill
    disk.fault_after = kill
    commit(writer, 4)
    disk.fault = disk.fault_after = lambda operation, path: None
    writer.close()
    assert len(found) > 15
    assert [numbers for numbers in found if numbers not in ([1, 2, 3], [1, 2, 3, 4])] == []
    assert contents(directory) == [[1], [2, 3, 4]]


def test_a_successor_that_failed_and_cannot_be_removed_does_not_come_twice(
    directory: WALDirectory, disk: FaultyDisk
) -> None:
    """It holds the retained groups, durably: with a second one of them, recovery would have them twice."""
    writer = WALWriter(directory, 1, LATER)
    commit(writer, 1, 2)
    wait_ready(writer)
    fail_a_sync(writer, disk)
    disk.fault = keep_what_failed
    for _ in range(3):
        with pytest.raises(CommitFailed):
            commit(writer, 3)
    assert [numbers for numbers in contents(directory, ACTIVE) if numbers] == [[1, 2], [1, 2]]
    disk.fault = lambda operation, path: None
    commit(writer, 4)
    writer.close()
    recover_at_start(directory)
    assert [number for numbers in contents(directory) for number in numbers] == [1, 2, 4]
    assert directory.segments(ACTIVE) == []


def test_a_lack_of_memory_does_not_end_the_background_syncs(directory: WALDirectory, disk: FaultyDisk) -> None:
    writer = WALWriter(directory, 1, WALOptions(sync_mode="async", async_interval_seconds=0.05))
    wait_ready(writer)
    background = writer._background
    assert background is not None
    lacking = threading.Event()

    def fault(operation: str, path: str) -> None:
        if operation == "fdatasync" and not lacking.is_set():
            lacking.set()
            raise MemoryError

    disk.fault = fault
    commit(writer, 1)
    wait_until(lambda: lacking.is_set() and background.retained == [], "the group is synced by the next try")
    writer.close()
    assert contents(directory) == [[1]]


@pytest.mark.parametrize("operation", ["truncate", "fsync"])
def test_nothing_new_is_accepted_until_what_is_replaced_is_cut_off(
    directory: WALDirectory, disk: FaultyDisk, operation: str
) -> None:
    writer = WALWriter(directory, 1, LATER)
    commit(writer, 1, 2)
    wait_ready(writer)
    fail_a_sync(writer, disk)
    with disk.failing(operation):
        for _ in range(3):
            with pytest.raises(CommitFailed) as caught:
                commit(writer, 3)
            assert not caught.value.may_have_been_written
            writer.tick()
    wait_ready(writer)
    seqs = [file.name.seq for file in directory.segments(ACTIVE)]
    assert seqs == [1, 3, 4], "the successor is made once, however often it is tried"
    commit(writer, 4)
    writer.close()
    assert contents(directory) == [[1, 2, 4]]


def test_closing_before_the_cut_leaves_both_for_recovery(directory: WALDirectory, disk: FaultyDisk) -> None:
    writer = WALWriter(directory, 1, LATER)
    commit(writer, 1)
    fail_a_sync(writer, disk)
    with disk.failing("truncate"):
        writer.close()
    assert directory.segments(SEALED) == []
    assert contents(directory, ACTIVE) == [[1], [1]]
    replaces = [SegmentScan(file.path) for file in directory.segments(ACTIVE)]
    for scan in replaces:
        list(scan)
    assert [scan.report.start and scan.report.start.replaces is not None for scan in replaces] == [False, True]


def test_while_syncs_fail_commits_are_refused_and_nothing_more_is_retained(
    directory: WALDirectory, disk: FaultyDisk
) -> None:
    writer = WALWriter(directory, 1, LATER)
    commit(writer, 1)
    wait_ready(writer)
    assert writer._background is not None
    with disk.failing("fdatasync", "fsync"):
        writer._background.sync_now()
        for number in range(2, 8):
            with pytest.raises(CommitFailed):
                commit(writer, number)
            writer.tick()
        assert [group.entries for group in writer._background.retained] == [1]
    commit(writer, 9)
    writer.close()
    assert contents(directory) == [[1, 9]]


def test_a_write_that_fails_while_syncs_succeed_needs_no_replacement(directory: WALDirectory, disk: FaultyDisk) -> None:
    """The cut syncs what was acknowledged: on a full disk there is no room to write it again."""
    writer = WALWriter(directory, 1, LATER)
    commit(writer, 1)
    wait_ready(writer)
    with disk.failing("write", error=errno.ENOSPC), pytest.raises(CommitFailed) as caught:
        commit(writer, 2)
    assert not caught.value.may_have_been_written
    assert writer._background is not None
    assert writer._background.retained == []
    commit(writer, 3)
    writer.close()
    assert contents(directory) == [[1], [3]]


def test_a_group_that_is_refused_is_not_written_again(
    directory: WALDirectory, disk: FaultyDisk, tmp_path: Path
) -> None:
    """The sync that its answer waited for fails: what was acknowledged before is written again, it is not."""
    clock = Clock()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(background_sync_module, "time", clock)
        writer = WALWriter(directory, 1, LATER)
        commit(writer, 1)
        wait_ready(writer)
        clock.pass_seconds(10_000)
        with disk.failing("fdatasync"), pytest.raises(CommitFailed) as caught:
            commit(writer, 2)
        assert not caught.value.may_have_been_written
        assert after_a_kill(directory, tmp_path / "killed") == [1]
        commit(writer, 3)
        writer.close()
    assert contents(directory) == [[1, 3]]


def test_leaving_a_segment_syncs_it_first(directory: WALDirectory, disk: FaultyDisk) -> None:
    writer = WALWriter(directory, 1, msgspec.structs.replace(LATER, max_size_bytes=4000))
    commit(writer, 1, size=3000)
    wait_ready(writer)
    disk.calls.clear()

    def fault(operation: str, path: str) -> None:
        if threading.current_thread() is threading.main_thread():
            done.append(operation)

    done: list[str] = []
    disk.fault = fault
    commit(writer, 2, size=3000)
    assert done == ["fdatasync", "write"], "the sync of the one that is left comes before the write to the next"
    writer.close()
    assert contents(directory) == [[1], [2]]


# What is retained in memory


def test_more_than_the_bound_is_synced_at_once_and_twice_as_much_waits(tmp_path: Path) -> None:
    disk = HeldDisk()
    directory = WALDirectory(tmp_path / "wal", disk)
    directory.make()
    segment = Segment.make(directory, None, 1, 1, "node")
    background = BackgroundSync(segment, 7200.0, WALStats(), retained_bytes=10_000)
    lock = WatchedLock()
    background._syncing = lock  # type: ignore[assignment]
    stamp = segment.created

    def write() -> None:
        nonlocal stamp
        group = Group(segment.identity)
        stamp += 1
        group.add(PREFIX, bytes(4000), 1, stamp)
        segment.write(group.buffers, group.size, 1, 1, stamp)
        background.keep_up()
        background.retain(group, segment.acknowledge())

    disk.hold()
    for _ in range(2):
        write()
    assert not disk.held.is_set()
    write()
    assert disk.held.wait(60), "a sync starts though the interval is an hour away"
    for _ in range(2):
        write()
    assert not lock.somebody_waits.is_set()
    waiting = threading.Thread(target=write)
    waiting.start()
    assert lock.somebody_waits.wait(60)
    assert len(background.retained) == 5
    disk.go_on.set()
    waiting.join(60)
    assert not waiting.is_alive()
    background.close()
    assert background.error is None
    assert background.retained == []
    assert background.synced == segment.acknowledged
    segment.discard()
