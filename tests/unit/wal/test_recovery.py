"""Recovery at the start, of files that a crash left."""

from __future__ import annotations

import errno
import logging
import os
import struct
import threading
import time
from pathlib import Path
from typing import Any

import msgpack
import pytest

from arcpipe.errors import InstanceLocked
from arcpipe.wal import WALReader, WALRecovery, WALWriter
from arcpipe.wal import recovery as recovery_module
from arcpipe.wal.directory import ACTIVE, RECOVERED, SEALED, WALDirectory
from arcpipe.wal.format import make_identity
from arcpipe.wal.reader import SegmentScan
from arcpipe.wal.recovery import recover_at_start, recover_files, recover_slot, remove_recovered
from arcpipe.wal.timestamps import LATEST_US
from arcpipe.wal.verdict import ScanVerdict
from tests.support.wal_doubles import BadBlocks, FaultyDisk
from tests.support.wal_files import DAY, HEADER, IDENTITY, TWIN, columnar, end, entry, segment, start, written_over

HOUR = 3_600_000_000


def name(slot: int = 1, seq: int = 1) -> str:
    return f"worker-{slot}-20251010_000000-{seq:06d}.wal"


def put(directory: WALDirectory, content: bytes, slot: int = 1, seq: int = 1) -> Path:
    path = Path(directory.path, name(slot, seq))
    path.write_bytes(content.replace(start(), start(slot=slot, seq=seq), 1))
    return path


def numbers(path: Path | str) -> list[int]:
    return [msgpack.unpackb(found.payload)[3]["columns"]["number"][0] for found in SegmentScan(path)]


def sealed(directory: WALDirectory) -> dict[str, list[int]]:
    return {file.filename: numbers(file.path) for file in directory.segments(SEALED)}


def verdicts(directory: WALDirectory) -> list[ScanVerdict]:
    found = []
    for file in directory.segments(SEALED):
        scan = SegmentScan(file.path)
        list(scan)
        found.append(scan.report.verdict)
    return found


def listing(directory: WALDirectory) -> set[str]:
    return {found.name for found in Path(directory.path).iterdir() if found.is_file()}


# Start-up


def test_an_empty_directory_needs_nothing(directory: WALDirectory) -> None:
    summary = recover_at_start(directory)
    assert (summary.files, summary.entries, summary.last_timestamp(1)) == ([], 0, 0)


@pytest.mark.parametrize("created", [LATEST_US + 1, 1 << 63, (1 << 64) - 1])
def test_a_time_that_no_clock_shows_stops_neither_the_start_nor_a_worker(directory: WALDirectory, created: int) -> None:
    """The next entry's timestamp would not fit, and the next segment's name has no such year."""
    content = HEADER + start(created, identity=IDENTITY)
    content += entry(columnar(1, 60, IDENTITY), DAY + 1) + entry(columnar(2, 60, IDENTITY), DAY + 2)
    Path(directory.path, name()).write_bytes(content)
    Path(directory.path, name(2)).write_bytes(HEADER + start(created, slot=2))  # without an identity, and with no entry
    summary = recover_at_start(directory)
    assert sealed(directory)[f"{name()}.sealed"] == [1, 2]
    for slot in (1, 2):
        assert summary.last_timestamp(slot) <= LATEST_US
        writer = WALWriter(directory, slot, last_timestamp=summary.last_timestamp(slot))
        writer.append([{"measurement": "cpu", "usage": 1.0}])
        writer.close()


def test_a_bug_that_one_file_meets_leaves_it_and_stops_nothing(
    directory: WALDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seq in (1, 2, 3):
        put(directory, segment([columnar(seq, 60)])[0], seq=seq)

    def scan(path: str, **others: Any) -> SegmentScan:
        if "000002" in path:
            raise ValueError("a bug")
        return SegmentScan(path, **others)

    with monkeypatch.context() as patch:
        patch.setattr(recovery_module, "SegmentScan", scan)
        summary = recover_at_start(directory, sleep=lambda seconds: None)
    assert list(sealed(directory).values()) == [[1], [3]]
    assert [file.filename for file in summary.unreadable] == [name(seq=2)]
    recover_files(directory, summary.unreadable)
    assert list(sealed(directory).values()) == [[1], [2], [3]]


def test_what_is_no_file_stops_nothing(directory: WALDirectory) -> None:
    """To open a named pipe would wait until somebody writes to it."""
    put(directory, segment([columnar(1, 60)])[0])
    os.mkfifo(Path(directory.path, name(seq=2)))
    Path(directory.path, name(seq=3)).mkdir()
    Path(directory.path, name(seq=4)).symlink_to("nowhere")
    summary = recover_at_start(directory, sleep=lambda seconds: None)
    assert list(sealed(directory).values()) == [[1]]
    assert [file.filename for file in summary.unreadable] == [name(seq=3)]
    assert os.listdir(directory.quarantine) == [name(seq=2)]
    assert {found.name for found in Path(directory.path).iterdir()} >= {name(seq=3), name(seq=4)}


def test_a_lack_of_memory_is_no_bug_and_waits(directory: WALDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    put(directory, segment([columnar(1, 60)])[0])

    def scan(path: str, **others: Any) -> SegmentScan:
        raise MemoryError

    monkeypatch.setattr(recovery_module, "SegmentScan", scan)
    with pytest.raises(MemoryError):
        recover_at_start(directory)


def test_the_spool_is_cleared_of_files_and_of_nothing_else(directory: WALDirectory) -> None:
    """`lost+found` is there where a disk of its own is mounted on the folder."""
    Path(directory.spool, "lost+found", "#12").mkdir(parents=True)
    Path(directory.spool, "put-1.parquet").write_bytes(b"x")
    Path(directory.spool, "link").symlink_to(directory.path)
    recover_at_start(directory)
    assert os.listdir(directory.spool) == ["lost+found"]
    assert Path(directory.path).is_dir()


def test_what_a_crash_left_is_completed(directory: WALDirectory, disk: FaultyDisk) -> None:
    content, _ = segment([columnar(number) for number in range(3)])
    put(directory, content)
    summary = recover_at_start(directory)
    assert sealed(directory) == {name() + ".sealed": [0, 1, 2]}
    [file] = summary.files
    assert (file.filename, file.slot, file.outcome, file.entries) == (name(), 1, "sealed", 3)
    assert (file.bytes, file.corrupted, summary.corrupted) == (len(content), 0, 0)
    assert summary.last_timestamp(1) == DAY + 3
    assert summary.last_timestamp(2) == 0
    scan = SegmentScan(Path(directory.path, name() + ".sealed"))
    list(scan)
    assert scan.report.end is not None
    assert (scan.report.end.entries, scan.report.end.records, scan.report.end.recovered) == (3, None, True)
    order = [operation for operation, _ in disk.calls]
    assert order.index("fsync") < order.index("rename") < len(order) - 1 - order[::-1].index("sync_directory")


def test_a_torn_tail_is_cut_off_and_is_no_error(directory: WALDirectory, caplog: pytest.LogCaptureFixture) -> None:
    content, offsets = segment([columnar(number, 500) for number in range(3)])
    put(directory, content[: offsets[2] + 100])
    with caplog.at_level(logging.INFO):
        summary = recover_at_start(directory)
    assert sealed(directory) == {name() + ".sealed": [0, 1]}
    assert summary.corrupted == 0
    assert not [record for record in caplog.records if record.levelno > logging.INFO]
    assert f"{name()}: 2 entries, {offsets[2]} bytes, 0 corrupted, 100 torn" in caplog.text


def test_no_former_life_is_archived(directory: WALDirectory) -> None:
    former, _ = segment([columnar(100 + number, 300) for number in range(30)], DAY - HOUR, closed=True)
    present, _ = segment([columnar(1, 300)])
    put(directory, written_over(former, present))
    recover_at_start(directory)
    [file] = directory.segments(SEALED)
    scan = SegmentScan(file.path)
    assert len(list(scan)) == 1
    assert scan.report.end_offset == scan.report.size


def test_a_segment_that_had_its_end_but_not_its_name_is_synced_and_renamed(
    directory: WALDirectory, disk: FaultyDisk
) -> None:
    """A worker killed while it sealed: all is there, perhaps nowhere but in the page cache, which may call it clean."""
    former, _ = segment([columnar(100 + number, 300) for number in range(30)], DAY - HOUR, closed=True)
    present, _ = segment([columnar(1, 300), columnar(2, 300)], closed=True)
    put(directory, written_over(former, present))
    recover_at_start(directory)
    path = Path(directory.path, name() + ".sealed")
    assert path.read_bytes() == present, "nothing stale is archived"
    assert numbers(path) == [1, 2]
    assert (disk.count("fsync"), disk.count("write"), disk.count("truncate")) == (1, 1, 1), "its end is written again"


def test_damage_is_skipped_counted_and_logged_with_its_offset(
    directory: WALDirectory, caplog: pytest.LogCaptureFixture
) -> None:
    content, offsets = segment([columnar(number, 100) for number in range(5)])
    position = offsets[2] + 50
    put(directory, content[:position] + b"\xff" + content[position + 1 :])
    before = Path(directory.path, name()).read_bytes()
    summary = recover_at_start(directory)
    assert sealed(directory) == {name() + ".sealed": [0, 1, 3, 4]}
    assert Path(directory.path, name() + ".sealed").read_bytes() == before, "a damaged file stays as it is"
    assert summary.corrupted == 1
    assert "checksum mismatch: expected" in caplog.text
    assert f"at offset {offsets[2]}; skipped {offsets[3] - offsets[2]} bytes" in caplog.text


@pytest.mark.parametrize(
    "content", [HEADER + start(), HEADER + start() + bytes(5000), HEADER + start() + b"\x00\x00\x01"]
)
def test_a_segment_without_entries_is_removed(directory: WALDirectory, content: bytes) -> None:
    put(directory, content)
    summary = recover_at_start(directory)
    assert [file.outcome for file in summary.files] == ["empty"]
    assert directory.segments(SEALED) == directory.segments(ACTIVE) == []


@pytest.mark.parametrize("content", [b"", b"\x00" * 4096, b"PAR1 and more", b"ARCW\x00\x09\x01" + bytes(99)])
def test_what_is_no_log_goes_to_quarantine(
    directory: WALDirectory, caplog: pytest.LogCaptureFixture, content: bytes
) -> None:
    Path(directory.path, name()).write_bytes(content)
    put(directory, segment([columnar(1)])[0], seq=2)
    summary = recover_at_start(directory)
    assert Path(directory.quarantine, name()).read_bytes() == content
    assert sealed(directory) == {name(seq=2) + ".sealed": [1]}
    assert sorted(file.outcome for file in summary.files) == ["quarantined", "sealed"]
    assert "quarantine" in caplog.text


@pytest.mark.parametrize("timestamp", [2**64 - 1, 2**63, DAY + (1 << 52)])
@pytest.mark.parametrize("index", [0, 1, 2])
def test_no_damaged_timestamp_stops_the_start_or_the_writer_after_it(
    directory: WALDirectory, timestamp: int, index: int
) -> None:
    content, offsets = segment([columnar(number) for number in range(3)])
    at = offsets[index] + 4
    put(directory, content[:at] + timestamp.to_bytes(8, "big") + content[at + 8 :])
    summary = recover_at_start(directory)
    assert sealed(directory) == {name() + ".sealed": [0, 1, 2]}
    assert summary.last_timestamp(1) < DAY + HOUR
    writer = WALWriter(directory, 1, last_timestamp=summary.last_timestamp(1))
    writer.append([{"measurement": "cpu", "usage": 1}])
    assert writer.segment.created < time.time_ns() // 1000 + HOUR
    writer.close()


def test_many_files_are_recovered_and_each_has_its_line(
    directory: WALDirectory, caplog: pytest.LogCaptureFixture
) -> None:
    for slot in range(1, 6):
        for seq in (1, 2):
            put(directory, segment([columnar(10 * slot + seq)])[0], slot, seq)
    with caplog.at_level(logging.INFO):
        summary = recover_at_start(directory)
    assert len(sealed(directory)) == 10
    assert summary.entries == 10
    assert "WAL recovery started: 10 files" in caplog.text
    assert caplog.text.count(": 1 entries, ") == 10
    assert "WAL recovery complete: 10 files, 10 entries" in caplog.text


def test_recovering_again_changes_nothing(directory: WALDirectory) -> None:
    content, _ = segment([columnar(number) for number in range(3)])
    put(directory, content + b"torn")
    recover_at_start(directory)
    path = Path(directory.path, name() + ".sealed")
    before = (path.read_bytes(), listing(directory))
    assert recover_at_start(directory).files == []
    assert (path.read_bytes(), listing(directory)) == before


@pytest.mark.parametrize("operation", ["open", "truncate", "write", "fsync", "rename"])
def test_a_file_that_cannot_be_recovered_now_stays_for_the_next_start(
    directory: WALDirectory, disk: FaultyDisk, operation: str
) -> None:
    content, _ = segment([columnar(1)])
    path = put(directory, content + b"torn")
    with disk.failing(operation):
        summary = recover_at_start(directory)
    assert [file.outcome for file in summary.files] == ["failed"]
    assert [file.path for file in summary.unreadable] == [str(path)]
    assert path.exists()
    summary = recover_at_start(directory)
    assert [file.outcome for file in summary.files] == ["sealed"]
    assert sealed(directory) == {name() + ".sealed": [1]}


def test_an_end_entry_that_finds_no_space_takes_that_of_the_free_pool(
    directory: WALDirectory, disk: FaultyDisk
) -> None:
    put(directory, segment([columnar(1)])[0] + b"torn")
    spare = Path(directory.free, "00000000000000000005-worker-2-20251010_000000-000001.wal")

    def fault(operation: str, path: str) -> None:
        if operation == "write" and spare.exists():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    disk.fault = fault
    [file] = directory.segments(ACTIVE)
    spare.write_bytes(b"x")
    assert [found.outcome for found in recover_files(directory, [file]).files] == ["sealed"]
    assert not spare.exists()
    assert verdicts(directory) == [ScanVerdict.CLEAN]


def test_a_segment_with_no_space_for_its_end_stays_active(directory: WALDirectory, disk: FaultyDisk) -> None:
    """Without its end entry it would count as damaged."""
    content, _ = segment([columnar(1)])
    path = put(directory, content + b"torn")
    with disk.failing("write", error=errno.ENOSPC):
        summary = recover_at_start(directory)
    assert [file.outcome for file in summary.files] == ["waiting"]
    assert [file.path for file in summary.unreadable] == [str(path)]
    assert summary.last_timestamp(1) == DAY + 1
    assert path.read_bytes() == content.replace(start(), start(slot=1, seq=1))
    again = recover_files(directory, summary.unreadable)
    assert ([file.outcome for file in again.files], again.unreadable) == (["sealed"], [])
    assert verdicts(directory) == [ScanVerdict.CLEAN]


def test_a_quarantine_that_cannot_be_reached_is_no_reason_not_to_start(
    directory: WALDirectory, disk: FaultyDisk
) -> None:
    path = Path(directory.path, name())
    path.write_bytes(b"no log")
    with disk.failing("rename", error=errno.EACCES):
        assert [file.outcome for file in recover_at_start(directory).files] == ["failed"]
    assert path.exists()


# A disk that cannot read


def hundred(identity: bytes = IDENTITY) -> bytes:
    """A hundred acknowledged records that fill several blocks."""
    return segment([columnar(number, 300, identity) for number in range(100)], identity=identity)[0]


@pytest.mark.parametrize("identity", [b"", IDENTITY])
@pytest.mark.parametrize("begin", [0, 4096, 27_000])
def test_what_cannot_be_read_is_left_exactly_as_it_is(tmp_path: Path, identity: bytes, begin: int) -> None:
    """The issue's case: an error at the start left 0 of 100 records, one in the last quarter 73; nothing was told."""
    directory = WALDirectory(tmp_path / "wal", BadBlocks(begin, begin + 4096, where="worker-1"))
    directory.make()
    path = Path(directory.path, name())
    path.write_bytes(hundred(identity))
    put(directory, segment([columnar(2)])[0], slot=2)
    slept: list[float] = []
    summary = recover_at_start(directory, sleep=slept.append)
    assert {file.slot: file.outcome for file in summary.files} == {1: "unreadable", 2: "sealed"}
    assert [file.path for file in summary.unreadable] == [str(path)]
    assert path.read_bytes() == hundred(identity)
    assert len(slept) == 2
    assert sum(slept) < 1
    # Later it can be read, and nothing is missing.
    healthy = WALDirectory(tmp_path / "wal")
    assert recover_files(healthy, summary.unreadable).unreadable == []
    assert sealed(healthy)[name() + ".sealed"] == list(range(100))


def test_a_disk_that_is_unwell_for_a_moment_costs_a_moment(tmp_path: Path) -> None:
    disk = BadBlocks(where=name())
    directory = WALDirectory(tmp_path / "wal", disk)
    directory.make()
    Path(directory.path, name()).write_bytes(hundred())

    def heal(seconds: float) -> None:
        disk.begin = 1 << 62

    summary = recover_at_start(directory, sleep=heal)
    assert [file.outcome for file in summary.files] == ["sealed"]
    assert summary.unreadable == []
    assert sealed(directory) == {name() + ".sealed": list(range(100))}


def test_a_file_that_cannot_be_opened_does_not_stop_the_others(directory: WALDirectory, disk: FaultyDisk) -> None:
    put(directory, segment([columnar(1)])[0])
    put(directory, segment([columnar(2)])[0], slot=2)

    class Closed(type(disk)):  # type: ignore[misc]
        def open_for_reading(self, path: str) -> int:
            if "worker-1" in path:
                raise OSError(errno.EACCES, os.strerror(errno.EACCES), path)
            return int(super().open_for_reading(path))

    directory.disk = Closed()
    summary = recover_at_start(directory, sleep=lambda seconds: None)
    assert {file.slot: file.outcome for file in summary.files} == {1: "unreadable", 2: "sealed"}


def test_files_that_are_tried_again_leave_the_others_alone(directory: WALDirectory) -> None:
    """A worker of the same slot writes on meanwhile."""
    put(directory, segment([columnar(1)])[0])
    [dead] = directory.segments(ACTIVE)
    living = put(directory, segment([columnar(2)])[0] + b"being written", seq=2)
    before = living.read_bytes()
    Path(directory.free, "new-1-next").write_bytes(b"")
    assert [file.outcome for file in recover_files(directory, [dead]).files] == ["sealed"]
    assert living.read_bytes() == before
    assert os.listdir(directory.free) == ["new-1-next"]
    assert [file.outcome for file in recover_files(directory, [dead]).files] == ["gone"]


def test_recovery_needs_no_thread(directory: WALDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    for slot in (1, 2, 3):
        put(directory, segment([columnar(slot)])[0], slot)

    def start_none(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start_none)
    done: list[tuple[int, int]] = []
    summary = recover_at_start(directory, lambda *counts: done.append(counts))
    assert [file.outcome for file in summary.files] == ["sealed"] * 3
    assert done[-1] == (3, 3)


def test_what_was_renamed_is_durable_when_recovery_returns(directory: WALDirectory, disk: FaultyDisk) -> None:
    put(directory, segment([columnar(1)])[0])
    put(directory, HEADER + start(), seq=2)
    recover_at_start(directory)
    last = max(index for index, (operation, _) in enumerate(disk.calls) if operation in ("rename", "unlink"))
    assert ("sync_directory", "wal") in disk.calls[last:]


def test_a_directory_that_cannot_be_synced_is_an_error(directory: WALDirectory, disk: FaultyDisk) -> None:
    put(directory, segment([columnar(1)])[0])
    with disk.failing("sync_directory"), pytest.raises(OSError, match="Input/output error"):
        recover_at_start(directory)
    assert recover_at_start(directory).files == []
    assert sealed(directory) == {name() + ".sealed": [1]}


# Damage


@pytest.mark.parametrize("identity", [b"", IDENTITY])
def test_a_damaged_file_is_sealed_as_it_is(directory: WALDirectory, identity: bytes) -> None:
    content, offsets = segment([columnar(number, 100, identity) for number in range(5)], identity=identity)
    damaged = content[: offsets[2] + 50] + b"\xff" + content[offsets[2] + 51 :] + b"torn"
    Path(directory.path, name()).write_bytes(damaged)
    summary = recover_at_start(directory)
    assert (summary.entries, summary.corrupted) == (4, 1)
    assert Path(directory.path, name() + ".sealed").read_bytes() == damaged
    assert verdicts(directory) == [ScanVerdict.DAMAGED]


def test_a_search_that_gives_up_cuts_nothing_off(directory: WALDirectory) -> None:
    count = 40_000
    lookalikes = b"".join(
        struct.pack(">IQI", 24 * (count - n) - 16, DAY + n, 0) + b"\x94\x01" + bytes(6) for n in range(count)
    )
    content, offsets = segment([columnar(0), columnar(1, value=lookalikes), *(columnar(n) for n in range(2, 50))])
    damaged = content[: offsets[1]] + b"\xff" + content[offsets[1] + 1 :]
    Path(directory.path, name()).write_bytes(damaged)
    assert recover_at_start(directory).corrupted == 1
    assert Path(directory.path, name() + ".sealed").read_bytes() == damaged


def test_counts_that_differ_are_damage_and_are_told(directory: WALDirectory, caplog: pytest.LogCaptureFixture) -> None:
    content, _ = segment([columnar(number) for number in range(3)])
    content += end(4, len(content), DAY + 9)
    Path(directory.path, name()).write_bytes(content)
    assert recover_at_start(directory).corrupted == 1
    assert "the end entry tells 4 entries" in caplog.text
    assert Path(directory.path, name() + ".sealed").read_bytes() == content


def test_a_damaged_start_is_not_taken_for_an_empty_segment(directory: WALDirectory) -> None:
    """A damaged start with nothing intact is not taken for an empty segment."""
    content, offsets = segment([columnar(1, 100, IDENTITY)], identity=IDENTITY)
    damaged = bytearray(content)
    damaged[40] ^= 1
    damaged[offsets[0] + 40] ^= 1
    Path(directory.path, name()).write_bytes(damaged)
    assert [file.outcome for file in recover_at_start(directory).files] == ["sealed"]
    assert Path(directory.path, name() + ".sealed").read_bytes() == damaged


def test_a_recovered_segment_keeps_its_identity(directory: WALDirectory) -> None:
    content, offsets = segment([columnar(number, 100, IDENTITY) for number in range(3)], identity=IDENTITY)
    Path(directory.path, name()).write_bytes(content[: offsets[2] + 40])
    recover_at_start(directory)
    scan = SegmentScan(Path(directory.path, name() + ".sealed"))
    assert len(list(scan)) == 2
    assert scan.report.end is not None
    assert scan.report.end.identity == scan.report.identity == IDENTITY
    assert scan.report.verdict is ScanVerdict.CLEAN


def test_a_cut_that_a_power_cut_took_back_is_done_again(directory: WALDirectory) -> None:
    """Of an earlier recovery: its end entry was kept, and the stale entries after it are there again."""
    stale, _ = segment([columnar(100 + number, 300, TWIN) for number in range(30)], identity=TWIN)
    present, _ = segment([columnar(1, 300, IDENTITY)], identity=IDENTITY)
    Path(directory.path, name()).write_bytes(present)
    recover_at_start(directory)
    recovered = Path(directory.path, name() + ".sealed").rename(Path(directory.path, name()))
    content = recovered.read_bytes()
    recovered.write_bytes(written_over(stale, content))
    recover_at_start(directory)
    assert Path(directory.path, name() + ".sealed").read_bytes() == content


# A segment that another one replaces, from an offset on


def replaced(kept: int = 2, size: int = 100) -> tuple[bytes, bytes]:
    """Two files: the first has three entries, and the second holds again all but `kept` of them, and one more."""
    first = make_identity(1, 1)
    content, offsets = segment([columnar(number, size, first) for number in range(3)], identity=first)
    second = make_identity(1, 2)
    successor = HEADER + start(DAY + 100, seq=2, identity=second, replaces=[1, offsets[kept]])
    for number in range(kept, 4):
        successor += entry(columnar(number, size, second), DAY + 101 + number)
    return content, successor


@pytest.mark.parametrize("kept", [0, 1, 2])
def test_a_replaced_segment_is_cut_before_both_are_sealed(directory: WALDirectory, kept: int) -> None:
    for content, seq in zip(replaced(kept), (1, 2), strict=True):
        Path(directory.path, name(seq=seq)).write_bytes(content)
    recover_at_start(directory)
    found = sealed(directory)
    assert sorted(number for numbers in found.values() for number in numbers) == [0, 1, 2, 3]
    assert found[name(seq=2) + ".sealed"] == list(range(kept, 4))
    assert set(verdicts(directory)) == {ScanVerdict.CLEAN}


def test_a_replaced_segment_that_was_sealed_uncut_gets_another_end(directory: WALDirectory) -> None:
    content, successor = replaced()
    content += end(3, len(content), DAY + 9, content[content.index(b"\xa2in\xc4\x10") + 5 :][:16])
    Path(directory.path, name(seq=1) + ".sealed").write_bytes(content)
    Path(directory.path, name(seq=2)).write_bytes(successor)
    recover_at_start(directory)
    assert sealed(directory) == {name(seq=1) + ".sealed": [0, 1], name(seq=2) + ".sealed": [2, 3]}
    assert set(verdicts(directory)) == {ScanVerdict.CLEAN}


def test_a_replaced_segment_that_was_cut_and_sealed_stays_as_it_is(directory: WALDirectory, disk: FaultyDisk) -> None:
    content, successor = replaced()
    first = content[content.index(b"\xa2in\xc4\x10") + 5 :][:16]
    cut, _ = segment([columnar(number, 100, first) for number in range(2)], identity=first)
    sealed_content = cut + end(2, len(cut), DAY + 9, first)
    path = Path(directory.path, name(seq=1) + ".sealed")
    path.write_bytes(sealed_content)
    Path(directory.path, name(seq=2)).write_bytes(successor)
    recover_at_start(directory)
    assert path.read_bytes() == sealed_content


def test_a_replaced_segment_that_cannot_be_cut_holds_both_back(directory: WALDirectory, disk: FaultyDisk) -> None:
    for content, seq in zip(replaced(), (1, 2), strict=True):
        Path(directory.path, name(seq=seq)).write_bytes(content)
    with disk.failing("truncate"):
        summary = recover_at_start(directory)
    assert {file.outcome for file in summary.files} == {"waiting"}
    assert len(summary.unreadable) == 2
    assert recover_files(directory, summary.unreadable).unreadable == []
    assert sealed(directory) == {name(seq=1) + ".sealed": [0, 1], name(seq=2) + ".sealed": [2, 3]}


@pytest.mark.parametrize("holds_entries", [True, False])
def test_a_successor_that_cannot_be_read_holds_back_what_it_may_replace(tmp_path: Path, holds_entries: bool) -> None:
    """One that was only made ready replaces nothing, and holds nothing back."""
    content, successor = replaced(size=5000)
    if not holds_entries:
        successor = successor[:200] + bytes(20_000)
    disk = BadBlocks(0, 4096, where="000002.wal")
    directory = WALDirectory(tmp_path / "wal", disk)
    directory.make()
    for written, seq in zip((content, successor), (1, 2), strict=True):
        Path(directory.path, name(seq=seq)).write_bytes(written)
    summary = recover_at_start(directory, sleep=lambda seconds: None)
    outcomes = {file.filename: file.outcome for file in summary.files}
    assert outcomes == {name(seq=1): "waiting" if holds_entries else "sealed", name(seq=2): "unreadable"}
    if holds_entries:
        disk.begin = 1 << 62
        assert recover_files(directory, summary.unreadable).unreadable == []
        assert sealed(directory) == {name(seq=1) + ".sealed": [0, 1], name(seq=2) + ".sealed": [2, 3]}


def test_the_pool_and_the_spool_are_emptied(directory: WALDirectory) -> None:
    for folder in (directory.free, directory.spool):
        Path(folder, "00000000000000000005-worker-1.wal").write_bytes(b"x")
        Path(folder, "new-1-next").write_bytes(b"x")
    recover_at_start(directory)
    assert os.listdir(directory.free) == os.listdir(directory.spool) == []


def test_a_file_of_arc_is_completed_as_it_is(directory: WALDirectory) -> None:
    rows = [{"measurement": "cpu", "_database": "arc", "time": 5, "usage": 0.5}]
    path = Path(directory.path, "worker-1-20251010_000000.wal")
    path.write_bytes(HEADER + entry(msgpack.packb(rows), DAY) + entry(msgpack.packb(rows), DAY))
    recover_at_start(directory)
    assert WALReader(f"{path}.sealed").read_all() == [rows, rows]


# One worker


def test_a_dead_workers_segments_are_recovered_without_touching_the_others(directory: WALDirectory) -> None:
    put(directory, segment([columnar(1)])[0], slot=1)
    other = put(directory, segment([columnar(2)])[0] + b"being written", slot=11)
    before = other.read_bytes()
    for kept in ("claimed-11-x.wal", "new-11-next", "00000000000000000005-x.wal"):
        Path(directory.free, kept).write_bytes(b"")
    Path(directory.free, "claimed-1-x.wal").write_bytes(b"")
    spooled = Path(directory.spool, "of the uploader")
    spooled.write_bytes(b"")
    summary = recover_slot(directory, 1, directory.segments(ACTIVE, 1))
    assert [file.slot for file in summary.files] == [1]
    assert sealed(directory) == {name(1) + ".sealed": [1]}
    assert other.read_bytes() == before
    assert sorted(os.listdir(directory.free)) == ["00000000000000000005-x.wal", "claimed-11-x.wal", "new-11-next"]
    assert spooled.exists()


# The archive


def test_archived_segments_are_removed_when_they_are_old(directory: WALDirectory) -> None:
    for seq, age in ((1, 100), (2, 5000)):
        path = Path(directory.path, name(seq=seq) + ".recovered")
        path.write_bytes(bytes(1000))
        os.utime(path, (time.time() - age, time.time() - age))
    assert remove_recovered(directory, 3600) == (1, 1000)
    assert [file.name.seq for file in directory.segments(RECOVERED)] == [1]
    assert WALRecovery(directory.path).cleanup_old_wals(max_age_seconds=50) == 1
    assert directory.segments(RECOVERED) == []


# By hand


def test_recovery_by_hand_calls_back_with_every_batch_and_archives(directory: WALDirectory) -> None:
    put(directory, segment([columnar(1), columnar(2)])[0] + b"torn")
    writer = WALWriter(directory, 2)
    writer.append([{"measurement": "cpu", "usage": 1}, {"measurement": "mem", "used": 2}])
    writer.close()
    batches: list[list[dict[str, Any]]] = []
    assert WALRecovery(directory.path).recover(batches.append) == 3
    assert [len(batch) for batch in batches] == [1, 1, 2]
    assert len(directory.segments(RECOVERED)) == 2
    assert WALRecovery(directory.path).recover(batches.append) == 0


def test_recovery_by_hand_works_in_a_directory_of_arc(tmp_path: Path) -> None:
    """There is nothing in it but log files."""
    rows = [{"measurement": "cpu", "_database": "arc", "time": 5, "usage": 0.5}]
    for slot in (1, 2):
        (tmp_path / f"worker-{slot}-20251010_000000.wal").write_bytes(HEADER + entry(msgpack.packb(rows), DAY))
    batches: list[list[dict[str, Any]]] = []
    assert WALRecovery(tmp_path).recover(batches.append) == 2
    assert batches == [rows, rows]
    assert len(list(tmp_path.glob("*.recovered"))) == 2
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]


def test_a_callback_that_fails_leaves_the_file_for_another_try(directory: WALDirectory) -> None:
    put(directory, segment([columnar(1), columnar(2)])[0])
    batches: list[list[dict[str, Any]]] = []

    def failing(batch: list[dict[str, Any]]) -> None:
        if batches:
            raise RuntimeError("the other side is down")
        batches.append(batch)

    with pytest.raises(RuntimeError):
        WALRecovery(directory.path).recover(failing)
    assert [file.filename for file in directory.segments(ACTIVE)] == [name()]
    batches.clear()
    assert WALRecovery(directory.path).recover(batches.append) == 2


def test_recovery_by_hand_is_refused_while_a_server_has_the_directory(directory: WALDirectory) -> None:
    directory.lock()
    try:
        with pytest.raises(InstanceLocked):
            WALRecovery(directory.path).recover(print)
    finally:
        directory.unlock()


def test_recovery_by_hand_leaves_what_is_no_log_where_it_is(directory: WALDirectory) -> None:
    Path(directory.path, name()).write_bytes(b"no log")
    assert WALRecovery(directory.path).recover(print) == 0
    assert Path(directory.path, name()).read_bytes() == b"no log"


def test_recovery_by_hand_leaves_a_file_that_cannot_be_read_whole(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "wal"
    WALDirectory(folder).make()
    content = segment([columnar(number, 2000) for number in range(20)])[0]
    Path(folder, name()).write_bytes(content)
    put(WALDirectory(folder), segment([columnar(7)])[0], slot=2)
    batches: list[list[dict[str, Any]]] = []
    disk = BadBlocks(30_000, 30_001, where="worker-1")
    assert WALRecovery(folder, disk).recover(batches.append) == 1
    assert Path(folder, name()).read_bytes() == content
    assert "cannot be read" in caplog.text
    assert WALRecovery(folder).recover(batches.append) == 20
    assert len(batches) == 21


def test_recovery_by_hand_keeps_a_damaged_file_and_tells_it(
    directory: WALDirectory, caplog: pytest.LogCaptureFixture
) -> None:
    content, offsets = segment([columnar(number, 100) for number in range(5)])
    damaged = content[: offsets[2] + 50] + b"\xff" + content[offsets[2] + 51 :]
    Path(directory.path, name()).write_bytes(damaged)
    assert WALRecovery(directory.path).recover(lambda batch: None) == 4
    assert Path(directory.path, name() + "").with_suffix(".wal.recovered").read_bytes() == damaged
    assert f"at offset {offsets[2]}" in caplog.text
