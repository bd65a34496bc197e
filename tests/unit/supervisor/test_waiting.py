"""Since when segments wait: by what the supervisor saw, and by a file's own word only where it saw nothing."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path

import pytest

from arcpipe.clock import steady_us
from arcpipe.counters import Counters, Node, Worker
from arcpipe.disk import Disk
from arcpipe.supervisor import waiting
from arcpipe.supervisor.backlog import Backlog, Leftovers
from arcpipe.supervisor.waiting import _MOST_LOOKS, Waiting
from arcpipe.wal import WALWriter, reader
from arcpipe.wal.directory import ACTIVE, SEALED, SegmentFile, WALDirectory

HOUR_US = 3_600_000_000
SECOND_US = 1_000_000


class Segments:
    """A directory, the counters of one worker, and what is known of both."""

    def __init__(self, path: Path) -> None:
        self.directory = WALDirectory(path)
        self.directory.make()
        self.counters = Counters(1)
        self.waiting = Waiting(self.counters)

    def seal(self, slot: int = 1, ahead_us: int = 0, modified: float | None = None) -> SegmentFile:
        """A new sealed segment whose timestamps are ahead of the clock; its file."""
        before = {file.path for file in self.directory.segments(SEALED)}
        stamp = time.time_ns() // 1000 + ahead_us
        writer = WALWriter(self.directory.path, slot, last_timestamp=stamp if ahead_us > 0 else 0)
        writer.append([{"measurement": "m", "time": 1_700_000_000, "v": 1}])
        writer.close()
        [file] = [file for file in self.directory.segments(SEALED) if file.path not in before]
        if modified is not None:
            os.utime(file.path, (modified, modified))
            file = file._replace(modified=modified)
        return file

    def write(self, file: SegmentFile, since: int) -> None:
        """A worker publishes that it writes this segment, whose first record is that old."""
        block = self.counters.worker(1)
        block[Worker.SEGMENT_SEQ] = file.name.seq
        block[Worker.SEGMENT_CREATED_US] = file.name.created_us
        block[Worker.SEGMENT_FIRST_US] = since

    def age_seconds(self, *sealed: SegmentFile, left: tuple[SegmentFile, ...] = ()) -> float:
        oldest = self.waiting.oldest(sealed, left)
        assert oldest > 0
        return (steady_us() - oldest) / SECOND_US


@pytest.fixture
def segments(tmp_path: Path) -> Segments:
    return Segments(tmp_path / "wal")


def test_nothing_waits_where_nothing_is(segments: Segments) -> None:
    segments.waiting.note_active()
    assert segments.waiting.oldest([], []) == 0


@pytest.mark.parametrize("ahead_us", [0, 2 * HOUR_US])
def test_a_segment_seen_written_is_as_old_as_its_worker_said(segments: Segments, ahead_us: int) -> None:
    """Its timestamps are two hours ahead where the clock was set back that far."""
    file = segments.seal(ahead_us=ahead_us)
    segments.write(file, steady_us() - 90 * SECOND_US)
    segments.waiting.note_active()
    segments.counters.worker(1)[Worker.SEGMENT_FIRST_US] = 0  # the next segment has nothing yet
    for _ in range(2):
        segments.waiting.note_active()
        assert 90 <= segments.age_seconds(file) < 120
    assert segments.waiting.oldest([], []) == 0  # it is uploaded
    assert segments.age_seconds(segments.seal()) < 30


def test_a_segment_of_a_former_process_is_as_old_as_its_first_record(segments: Segments) -> None:
    early, late = segments.seal(modified=time.time() - 100), segments.seal(modified=time.time() - 50)
    stamp = time.time_ns() // 1000 - 130 * SECOND_US
    content = bytearray(Path(early.path).read_bytes())
    start = 7 + 16 + int.from_bytes(content[7:11], "big")  # the header of the first data entry
    content[start + 4 : start + 12] = stamp.to_bytes(8, "big")
    Path(early.path).write_bytes(content)
    assert 130 <= segments.age_seconds(early, late) < 160
    assert 130 <= segments.age_seconds(early, late) < 160  # and both are known now
    assert 0 <= segments.age_seconds(late) < 30


def test_one_head_is_read_at_a_time_and_each_only_once(segments: Segments, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [segments.seal(slot, modified=time.time() - 100 + slot) for slot in (1, 2, 3)]
    asked: list[str] = []
    real = reader.first_timestamp

    def first_timestamp(path: str, *, may_wait: bool) -> int:
        assert not may_wait, "the supervisor waits for a disk, which may fail"
        asked.append(path)
        return real(path, may_wait=may_wait)

    monkeypatch.setattr(waiting, "first_timestamp", first_timestamp)
    for _ in range(5):
        segments.waiting.oldest(files, [])
    assert asked == [file.path for file in files]


def test_a_head_that_would_have_to_be_waited_for_is_looked_at_again(
    segments: Segments, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, bad, other = (segments.seal(slot, modified=time.time() - 100 + 10 * slot) for slot in (1, 2, 3))
    read_cached = Disk.read_cached
    fetched: set[str] = {other.path}

    def read(disk: Disk, fd: int, length: int, offset: int) -> bytes:
        if os.readlink(f"/proc/self/fd/{fd}") not in fetched:
            raise BlockingIOError(errno.EAGAIN, "not in memory")
        return read_cached(disk, fd, length, offset)

    monkeypatch.setattr(Disk, "read_cached", read)
    assert 90 <= segments.age_seconds(old, bad, other) < 120  # by the file's time, meanwhile
    fetched.add(old.path)
    assert 80 <= segments.age_seconds(old, bad, other) < 110  # the one whose sectors are bad is the oldest now
    for _ in range(_MOST_LOOKS + 1):
        segments.waiting.oldest([old, bad, other], [])
    assert 0 <= segments.age_seconds(other) < 30  # it held up none


def test_no_segment_is_of_a_time_that_has_not_come(segments: Segments) -> None:
    file = segments.seal(ahead_us=2 * HOUR_US, modified=time.time() + 7200)
    assert 0 <= segments.age_seconds(file) < 30
    assert 0 <= segments.age_seconds(file) < 30


def test_an_unreadable_segment_is_as_old_as_its_file(
    segments: Segments,
) -> None:
    """One that cannot be read is as old as its file and one that is gone counts no more."""
    file = segments.seal(modified=time.time() - 60)
    Path(file.path).rename(f"{file.path}.aside")
    Path(file.path).mkdir()
    assert 60 <= segments.age_seconds(file) < 90
    gone = segments.seal(slot=2)
    os.unlink(gone.path)
    assert segments.waiting.oldest([gone], []) == 0
    replayed = segments.seal(slot=0, modified=time.time() - 30)
    assert 30 <= segments.age_seconds(replayed) < 60


def test_an_unread_segment_is_as_old_as_its_worker_or_name_says(segments: Segments) -> None:
    """What a dead worker left unread is as old as its worker said or its name."""
    file = segments.seal()
    left = file._replace(path=file.path.removesuffix(".sealed"), state=ACTIVE)
    assert 0 <= segments.age_seconds(left=(left,)) < 30
    other = Segments(Path(segments.directory.path, "other"))
    other.write(left, steady_us() - 90 * SECOND_US)
    other.waiting.note_active()
    assert 90 <= other.age_seconds(left=(left,)) < 120


@pytest.mark.slow
def test_what_is_remembered_has_a_bound(segments: Segments) -> None:
    file = segments.seal()
    for seq in range(1, 3000):
        segments.write(file._replace(name=file.name._replace(seq=seq)), steady_us())
        segments.waiting.note_active()
        segments.waiting.oldest([], [])
    assert len(segments.waiting._since) <= 1025


def test_a_segment_that_is_being_sealed_is_a_part_of_the_backlog(segments: Segments) -> None:
    """Its worker writes the next one, and the file has the name of an active one until all of it is on disk."""
    sealed = segments.seal()
    path = Path(sealed.path.removesuffix(".sealed"))
    Path(sealed.path).rename(path)
    file = sealed._replace(path=str(path), state=ACTIVE)
    backlog = Backlog(segments.directory, Leftovers(segments.directory), segments.counters)
    node = segments.counters.node

    def measured() -> tuple[int, int, bool, bool]:
        backlog.measure()
        oldest, unsealed = node[Node.OLDEST_BACKLOG_US], node[Node.OLDEST_UNSEALED_US]
        return node[Node.BACKLOG_SEGMENTS], node[Node.BACKLOG_BYTES], oldest > 0, unsealed > 0

    segments.write(file, steady_us() - SECOND_US)
    assert measured() == (0, 0, False, False)  # it is written, and the worker tells of it
    segments.write(file._replace(name=file.name._replace(seq=file.name.seq + 1)), 0)
    assert measured() == (1, file.size, True, True)
    path.rename(sealed.path)
    assert measured() == (1, file.size, True, False)
    os.unlink(sealed.path)
    assert measured() == (0, 0, False, False)
