"""What start-up does with what a crash left."""

from __future__ import annotations

import errno
import logging
import os
import time
from pathlib import Path
from typing import Any

import msgpack
import pytest

from arcpipe.errors import InstanceLocked
from arcpipe.wal import WALReader, WALRecovery, WALWriter
from arcpipe.wal import reader as reader_module
from arcpipe.wal.directory import ACTIVE, RECOVERED, SEALED, WALDirectory
from arcpipe.wal.reader import SegmentScan
from arcpipe.wal.recovery import recover_at_start, recover_slot, remove_recovered
from tests.wal_doubles import FaultyDisk
from tests.wal_files import DAY, HEADER, columnar, entry, segment, start, written_over

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


def listing(directory: WALDirectory) -> set[str]:
    return {found.name for found in Path(directory.path).iterdir() if found.is_file()}


# Start-up


def test_an_empty_directory_needs_nothing(directory: WALDirectory) -> None:
    summary = recover_at_start(directory)
    assert (summary.files, summary.entries, summary.last_timestamp(1)) == ([], 0, 0)


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


def test_a_segment_that_had_its_end_but_not_its_name_is_cut_to_its_length_and_synced(
    directory: WALDirectory, disk: FaultyDisk
) -> None:
    """A worker killed while it sealed: all is there, perhaps nowhere but in the page cache."""
    former, _ = segment([columnar(100 + number, 300) for number in range(30)], DAY - HOUR, closed=True)
    present, _ = segment([columnar(1, 300), columnar(2, 300)], closed=True)
    put(directory, written_over(former, present))
    recover_at_start(directory)
    path = Path(directory.path, name() + ".sealed")
    assert path.stat().st_size == len(present)
    assert numbers(path) == [1, 2]
    assert disk.count("fsync") == 1


def test_damage_is_skipped_counted_and_logged_with_its_offset(
    directory: WALDirectory, caplog: pytest.LogCaptureFixture
) -> None:
    content, offsets = segment([columnar(number, 100) for number in range(5)])
    position = offsets[2] + 50
    put(directory, content[:position] + b"\xff" + content[position + 1 :])
    summary = recover_at_start(directory)
    assert sealed(directory) == {name() + ".sealed": [0, 1, 3, 4]}
    assert summary.corrupted == 1
    assert f"checksum mismatch: expected" in caplog.text  # noqa: F541
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
    assert path.exists()
    summary = recover_at_start(directory)
    assert [file.outcome for file in summary.files] == ["sealed"]
    assert sealed(directory) == {name() + ".sealed": [1]}


def test_a_full_disk_does_not_keep_data_from_being_shipped(directory: WALDirectory, disk: FaultyDisk) -> None:
    content, _ = segment([columnar(1)])
    put(directory, content + b"torn")
    with disk.failing("write", error=errno.ENOSPC):
        assert [file.outcome for file in recover_at_start(directory).files] == ["sealed"]
    path = Path(directory.path, name() + ".sealed")
    assert path.read_bytes() == content.replace(start(), start(slot=1, seq=1))
    assert numbers(path) == [1]


def test_a_quarantine_that_cannot_be_reached_is_no_reason_not_to_start(
    directory: WALDirectory, disk: FaultyDisk
) -> None:
    path = Path(directory.path, name())
    path.write_bytes(b"no log")
    with disk.failing("rename", error=errno.EACCES):
        assert [file.outcome for file in recover_at_start(directory).files] == ["failed"]
    assert path.exists()


def test_a_disk_that_cannot_read_a_file_does_not_stop_the_others(
    directory: WALDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(directory, segment([columnar(1)])[0])
    put(directory, segment([columnar(2)])[0], slot=2)
    opened = reader_module.os.open

    def failing(path: str, flags: int, *arguments: Any) -> int:
        if "worker-1" in str(path):
            raise OSError(errno.EIO, "cannot be opened")
        return opened(path, flags, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(reader_module.os, "open", failing)
        outcomes = {file.slot: file.outcome for file in recover_at_start(directory).files}
    assert outcomes == {1: "failed", 2: "sealed"}


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
    summary = recover_slot(directory, 1)
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
