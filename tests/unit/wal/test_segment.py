"""One segment's life and the pool that its file goes through."""

from __future__ import annotations

import errno
import os
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from arcpipe.supervisor import last_words
from arcpipe.wal import acknowledged, findings
from arcpipe.wal import segment as segment_module
from arcpipe.wal.directory import ACTIVE, SEALED, WALDirectory
from arcpipe.wal.findings import LOST_SEGMENTS
from arcpipe.wal.format import envelope_prefix, identity_of, is_identity_of, pack_entry
from arcpipe.wal.group import Group
from arcpipe.wal.pipeline import Pipeline
from arcpipe.wal.pool import FreePool
from arcpipe.wal.reader import SegmentScan
from arcpipe.wal.segment import Segment, State
from tests.support.waiting import wait_until
from tests.support.wal_doubles import Clock, FaultyDisk

MEGABYTE = 1 << 20


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(segment_module, "time", clock)
    return clock


def make(directory: WALDirectory, seq: int = 1, pool: FreePool | None = None, above_us: int = 0) -> Segment:
    return Segment.make(directory, pool, 1, seq, "node", above_us=above_us)


def add(segment: Segment, payload: bytes = b"\xc4\x04body", acknowledge: bool = True) -> None:
    stamp = segment.last_timestamp + 1
    packed = pack_entry(envelope_prefix(1, "db", identity=segment.identity), payload, stamp)
    segment.write([packed], len(packed), 1, 3, stamp)
    if acknowledge:
        segment.acknowledge()


def sealed(directory: WALDirectory) -> Path:
    [file] = directory.segments(SEALED)
    return Path(file.path)


def everything(directory: WALDirectory) -> list[str]:
    return [
        os.path.relpath(os.path.join(folder, name), directory.path)
        for folder, _, names in os.walk(directory.path)
        for name in names
    ]


# Making


def test_a_new_segment_is_synced_then_named_then_used(directory: WALDirectory, disk: FaultyDisk) -> None:
    """A new segment is synced before it is named, and named before it is used."""
    segment = make(directory)
    assert [call for call in disk.calls if call[0] != "unlink"] == [
        ("create", "new-1-next"),
        ("write", "new-1-next"),
        ("fdatasync", "new-1-next"),
        ("rename", "new-1-next"),
        ("sync_directory", "free"),
        ("sync_directory", "wal"),
    ]
    scan = SegmentScan(segment.path)
    assert list(scan) == []
    assert scan.report.start is not None
    assert (scan.report.start.node, scan.report.start.slot, scan.report.start.seq) == ("node", 1, 1)
    assert scan.report.start.created == segment.created
    assert segment.offset == os.path.getsize(segment.path)
    segment.discard()
    assert everything(directory) == []


def test_a_file_of_the_pool_is_written_over_in_place(directory: WALDirectory, clock: Clock) -> None:
    pool = FreePool(directory, 2)
    first = make(directory)
    for _ in range(5):
        add(first, b"\xc5\x03\xe8" + bytes(1000))
    first.seal(4096)
    file = sealed(directory)
    before = file.stat()
    last = first.last_timestamp + 1
    assert pool.put(str(file), last)
    clock.pass_seconds(1)
    second = make(directory, 2, pool)
    after = os.stat(second.path)
    assert (after.st_ino, after.st_size) == (before.st_ino, before.st_size)
    assert second.created > last
    # Only the second in the name says where the stale entries end.
    assert second.name.created_us > last
    assert list(SegmentScan(second.path)) == []
    add(second)
    assert len(list(SegmentScan(second.path))) == 1
    second.discard()


@pytest.mark.parametrize("step_us", [-3_600_000_000, -1, 0, 1, 5_000_000])
def test_a_segment_begins_above_all_earlier_timestamps(directory: WALDirectory, clock: Clock, step_us: int) -> None:
    """A segment begins above all that was before, whatever the clock does."""
    pool = FreePool(directory, 2)
    first = make(directory)
    add(first)
    first.seal(1)
    last = first.last_timestamp + 1
    pool.put(str(sealed(directory)), last)
    clock.now_us += step_us
    second = make(directory, 2, pool, above_us=last + 10)
    assert second.created > last + 10
    second.discard()


@pytest.mark.parametrize("from_pool", [False, True])
@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO])
def test_a_segment_that_cannot_be_made_leaves_nothing_behind(
    directory: WALDirectory, disk: FaultyDisk, from_pool: bool, error: int
) -> None:
    for failing in range(20):
        pool = FreePool(directory, 4)
        if from_pool:
            Path(directory.free, f"{5:020d}-worker-1.wal").write_bytes(bytes(5000))
        remaining = iter(range(failing + 1))

        def fault(operation: str, path: str, remaining: Iterator[int] = remaining, last: int = failing) -> None:
            if operation != "unlink" and next(remaining, None) == last:
                raise OSError(error, "injected")

        disk.fault = fault
        try:
            made = make(directory, failing + 1, pool if from_pool else None)
        except OSError:
            pass
        else:
            disk.fault = lambda operation, path: None
            made.discard()
            break
        finally:
            disk.fault = lambda operation, path: None
        left = everything(directory)
        assert [name for name in left if "claimed" in name or "new" in name or not name.startswith("free")] == []
        pool.clear()
    else:
        pytest.fail("it never succeeded")
    assert failing == 6 + from_pool  # every operation has failed once


def test_a_name_that_is_taken_is_not_written_over(directory: WALDirectory, clock: Clock) -> None:
    segment = make(directory)
    clock.now_us = segment.created
    with pytest.raises(FileExistsError):
        make(directory)
    segment.discard()


# Sealing


def test_sealing_writes_the_end_syncs_and_renames(directory: WALDirectory, disk: FaultyDisk) -> None:
    segment = make(directory)
    add(segment)
    add(segment)
    end_at = segment.offset
    disk.calls.clear()
    segment.seal(1000)
    operations = [operation for operation, _ in disk.calls]
    assert operations == ["write", "truncate", "fdatasync", "rename", "sync_directory"]
    scan = SegmentScan(sealed(directory))
    entries = list(scan)
    assert len(entries) == 2
    end = scan.report.end
    assert end is not None
    assert (end.entries, end.records, end.offset, end.recovered) == (2, 6, end_at, False)
    assert scan.report.last_timestamp == entries[-1].timestamp + 1
    assert directory.segments(ACTIVE) == []


def test_a_mostly_empty_segment_is_cut_to_its_length_and_a_full_one_is_not(directory: WALDirectory) -> None:
    for seq, (entries, kept) in enumerate([(1, False), (6, True)], 1):
        pool = FreePool(directory, 2)
        Path(directory.free, f"{5:020d}-worker-1.wal").write_bytes(bytes(10_000))
        segment = make(directory, seq, pool)
        for _ in range(entries):
            add(segment, b"\xc5\x03\xe8" + bytes(1000))
        length = segment.offset
        segment.seal(10_000)
        file = sealed(directory)
        assert (file.stat().st_size == 10_000) is kept
        assert kept or file.stat().st_size < length + 256
        file.unlink()


@pytest.mark.parametrize("operation", ["write", "truncate"])
def test_a_segment_keeps_its_name_until_its_end_entry_is_there(
    directory: WALDirectory, disk: FaultyDisk, operation: str
) -> None:
    segment = make(directory)
    add(segment)
    with disk.failing(operation, error=errno.ENOSPC), pytest.raises(OSError, match="No space"):
        segment.seal(MEGABYTE)
    assert directory.segments(SEALED) == []
    assert segment.state is State.OPEN
    segment.seal(MEGABYTE)
    scan = SegmentScan(sealed(directory))
    assert len(list(scan)) == 1
    assert scan.report.end is not None


@pytest.mark.parametrize("operation", ["write", "truncate", "fdatasync", "rename", "sync_directory"])
def test_sealing_may_be_tried_again(directory: WALDirectory, disk: FaultyDisk, operation: str) -> None:
    segment = make(directory)
    add(segment)
    with disk.failing(operation), pytest.raises(OSError, match="Input/output"):
        segment.seal(MEGABYTE)
    segment.seal(MEGABYTE)
    scan = SegmentScan(sealed(directory))
    assert len(list(scan)) == 1
    assert scan.report.end is not None


def test_once_it_has_its_name_a_segment_is_not_touched_again(
    directory: WALDirectory, disk: FaultyDisk, clock: Clock
) -> None:
    """The uploader may have shipped it meanwhile, and another worker may be writing over it."""
    segment = make(directory)
    add(segment)
    with disk.failing("sync_directory"), pytest.raises(OSError, match="Input/output"):
        segment.seal(MEGABYTE)
    file = sealed(directory)
    FreePool(directory, 1).put(str(file), segment.last_timestamp + 1)
    clock.pass_seconds(1)
    successor = Segment.make(directory, FreePool(directory, 1), 2, 1, "node")
    content = Path(successor.path).read_bytes()
    segment.seal(MEGABYTE)
    assert Path(successor.path).read_bytes() == content
    successor.discard()


def test_a_segment_that_was_removed_is_given_up(directory: WALDirectory, caplog: pytest.LogCaptureFixture) -> None:
    segment = make(directory)
    add(segment)
    os.unlink(segment.path)
    segment.seal(MEGABYTE)
    assert "removed or moved by somebody else" in caplog.text
    assert sorted(everything(directory)) == ["findings.json", "findings.lock"]


def test_what_went_with_a_removed_segment_is_told_by_health_and_last_words(
    directory: WALDirectory, caplog: pytest.LogCaptureFixture
) -> None:
    segment = make(directory)
    add(segment)
    os.unlink(segment.path)
    segment.seal(MEGABYTE)
    [found] = acknowledged.look(directory).findings[LOST_SEGMENTS].latest
    assert (found.subject, found.what) == (str(segment.name), "it was removed or moved while it was in use")
    assert last_words.speak(directory) == 0
    assert caplog.messages[-1].startswith("stopped; everything is uploaded but for 1 lost segments.")


def test_a_loss_that_cannot_be_noted_is_logged_and_stops_nothing(
    directory: WALDirectory, caplog: pytest.LogCaptureFixture
) -> None:
    segment = make(directory)
    add(segment)
    os.unlink(segment.path)
    os.mkdir(findings.path_of(directory))
    segment.seal(MEGABYTE)
    assert segment.state is State.CLOSED
    assert "cannot note that 1 segments were lost: [Errno 21] Is a directory" in caplog.text


# Cutting back


def test_cutting_back_takes_away_what_was_not_acknowledged(directory: WALDirectory, disk: FaultyDisk) -> None:
    segment = make(directory)
    add(segment)
    acknowledged = segment.offset
    add(segment, acknowledge=False)
    disk.calls.clear()
    segment.cut_back()
    assert [operation for operation, _ in disk.calls] == ["truncate", "fsync"]
    assert os.path.getsize(segment.path) == segment.offset == acknowledged
    segment.seal(MEGABYTE)
    scan = SegmentScan(sealed(directory))
    assert len(list(scan)) == 1
    assert scan.report.end is not None
    assert (scan.report.end.entries, scan.report.end.records) == (1, 3)


@pytest.mark.parametrize("operation", ["truncate", "fsync"])
def test_cutting_back_may_be_tried_again(directory: WALDirectory, disk: FaultyDisk, operation: str) -> None:
    segment = make(directory)
    add(segment, acknowledge=False)
    with disk.failing(operation), pytest.raises(OSError, match="Input/output"):
        segment.cut_back()
    segment.cut_back()
    assert segment.state is State.CUT
    assert segment.entries == 0
    segment.discard()
    assert everything(directory) == []


@pytest.mark.parametrize("what", ["removed", "moved"])
def test_a_file_that_was_removed_or_moved_is_cut_back_too(directory: WALDirectory, tmp_path: Path, what: str) -> None:
    """A removal that was not durable, or a replay of the moved file, would bring back what was refused."""
    segment = make(directory)
    add(segment)
    length = segment.offset
    add(segment, acknowledge=False)
    other_name = tmp_path / "elsewhere"
    os.link(segment.path, other_name)
    os.unlink(segment.path)
    if what == "removed":
        other_name.unlink()
    segment.cut_back()
    assert os.fstat(segment._fd).st_size == length
    segment.close()


def test_a_segment_can_be_cut_back_to_an_earlier_acknowledgement(directory: WALDirectory) -> None:
    segment = make(directory)
    add(segment)
    synced = segment.acknowledged
    add(segment)
    segment.cut_back(synced)
    segment.seal(MEGABYTE)
    scan = SegmentScan(sealed(directory))
    assert len(list(scan)) == 1
    assert scan.report.end is not None
    assert scan.report.end.entries == 1


# Identity


def test_start_entries_and_end_name_the_segment(directory: WALDirectory) -> None:
    segment = make(directory, seq=7)
    assert is_identity_of(segment.identity, 1, 7)
    add(segment)
    segment.seal(MEGABYTE)
    scan = SegmentScan(sealed(directory))
    assert [identity_of(entry.payload) for entry in scan] == [segment.identity]
    assert scan.report.start is not None
    assert scan.report.start.identity == segment.identity
    assert scan.report.start.replaces is None
    assert scan.report.end is not None
    assert scan.report.end.identity == segment.identity


def test_no_two_segments_of_the_same_number_are_the_same(directory: WALDirectory) -> None:
    identities = set()
    for _ in range(5):
        segment = make(directory)
        identities.add(segment.identity)
        segment.discard()
    assert len(identities) == 5


def test_retained_groups_are_in_a_segment_before_it_has_its_name(directory: WALDirectory, disk: FaultyDisk) -> None:
    former = make(directory)
    groups = []
    for number in range(3):
        group = Group(former.identity)
        for size in (10, 5000):
            stamp = former.created + 10 * number + size
            group.add(envelope_prefix(1, "db"), b"\xc5" + size.to_bytes(2, "big") + bytes(size), 1, stamp)
        groups.append(group)
    disk.calls.clear()
    segment = Segment.make(directory, None, 1, 2, "node", above_us=former.created, retained=groups, replaces=(1, 77))
    operations = [operation for operation, _ in disk.calls]
    assert operations.index("write") < operations.index("fdatasync") < operations.index("rename")
    assert operations.count("write") == 1
    add(segment)
    segment.seal(MEGABYTE)
    scan = SegmentScan(sealed(directory))
    entries = list(scan)
    assert [len(entry.payload) > 5000 for entry in entries] == [False, True] * 3 + [False]
    assert {identity_of(entry.payload) for entry in entries} == {segment.identity}
    stamps = [entry.timestamp for entry in entries]
    assert stamps == sorted(set(stamps))
    assert stamps[0] > segment.created
    assert scan.report.start is not None
    assert scan.report.start.replaces == (1, 77)
    assert scan.report.end is not None
    assert (scan.report.end.entries, scan.report.end.records) == (7, 9)
    former.discard()


def test_discarding_removes_no_file_that_is_not_its_own(directory: WALDirectory) -> None:
    segment = make(directory)
    os.rename(segment.path, segment.path + ".moved")
    Path(segment.path).write_bytes(b"somebody else's")
    segment.discard()
    assert Path(segment.path).read_bytes() == b"somebody else's"


# The pool


def put(directory: WALDirectory, pool: FreePool, seq: int, last: int) -> bool:
    path = Path(directory.path, f"worker-1-20251008_143000-{seq:06d}.wal.sealed")
    path.write_bytes(b"x")
    return pool.put(str(path), last)


def test_the_pool_gives_the_oldest_first_and_none_that_is_too_young(directory: WALDirectory) -> None:
    pool = FreePool(directory, 3)
    assert pool.take(1, 2**62) is None
    assert put(directory, pool, 1, 2**60)
    assert put(directory, pool, 2, 1_760_000_000_000_000)
    assert pool.take(4, 1_760_000_000_000_000) is None
    taken = pool.take(4, 1_760_000_000_000_001)
    assert taken is not None
    assert os.path.basename(taken).startswith(f"claimed-4-{1_760_000_000_000_000:020d}-")
    assert pool.take(4, 2**60) is None
    taken = pool.take(4, 2**60 + 1)
    assert taken is not None
    assert os.path.basename(taken).startswith(f"claimed-4-{2**60:020d}-")
    assert pool.take(4, 2**62) is None


def test_a_file_whose_last_second_is_not_over_is_not_written_over(directory: WALDirectory, clock: Clock) -> None:
    """Its successor's timestamps would run ahead of the clock: by a second with each reuse."""
    pool = FreePool(directory, 2)
    first = make(directory)
    add(first)
    first.seal(1)
    pool.put(str(sealed(directory)), first.last_timestamp + 1)
    second = make(directory, 2, pool)
    assert second.created <= clock.now_us
    assert len(os.listdir(directory.free)) == 1
    second.discard()


def test_a_full_pool_takes_nothing(directory: WALDirectory) -> None:
    pool = FreePool(directory, 2)
    assert [put(directory, pool, seq, seq) for seq in range(3)] == [True, True, False]
    assert [file.name.seq for file in directory.segments(SEALED)] == [2]
    assert not FreePool(directory, 0).put("anything", 1)


def test_two_takers_never_get_the_same_file(directory: WALDirectory) -> None:
    pool = FreePool(directory, 1000)
    for seq in range(200):
        put(directory, pool, seq, seq)
    taken: list[str] = []

    def take_all(slot: int) -> None:
        while (found := pool.take(slot, 2**62)) is not None:
            taken.append(found)

    threads = [threading.Thread(target=take_all, args=(slot,)) for slot in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(int(os.path.basename(path).split("-")[2]) for path in taken) == list(range(200))


def test_clearing_one_slots_leftovers_spares_the_others(directory: WALDirectory) -> None:
    for name in ("claimed-1-x.wal", "new-1-5", "claimed-11-x.wal", "new-11-5", f"{7:020d}-x.wal"):
        Path(directory.free, name).write_bytes(b"")
    FreePool(directory, 9).clear(1)
    assert sorted(os.listdir(directory.free)) == [f"{7:020d}-x.wal", "claimed-11-x.wal", "new-11-5"]
    FreePool(directory, 9).give_back()
    assert sorted(os.listdir(directory.free)) == ["claimed-11-x.wal", "new-11-5"]
    FreePool(directory, 9).clear()
    assert os.listdir(directory.free) == []


def test_a_file_that_one_large_entry_made_grow_does_not_keep_its_size(directory: WALDirectory) -> None:
    large = Path(directory.path, "worker-1-20251008_143000-000001.wal.sealed")
    large.write_bytes(bytes(9000))
    pool = FreePool(directory, 3, max_size_bytes=4096)
    assert not pool.put(str(large), 5), "its space is needed more"
    assert os.listdir(directory.free) == []
    Path(directory.free, f"{5:020d}-worker-1-20251008_143000-000001.wal").write_bytes(bytes(9000))
    taken = pool.take(1, 2**62)
    assert taken is not None
    assert os.path.getsize(taken) == 4096


def test_what_is_not_the_pool_s_stops_nothing_and_stays(directory: WALDirectory) -> None:
    """`free/` may be the root of a file system of its own, and anybody may put a file there."""
    ours = f"{7:020d}-x.wal"
    strangers = ["lost+found", f"{3:020d}-folder.wal", "claimed-1-folder", "notes.txt", f"{4:020d}-link.wal"]
    for folder in strangers[:3]:
        Path(directory.free, folder).mkdir()
    Path(directory.free, "notes.txt").write_bytes(b"")
    Path(directory.free, strangers[4]).symlink_to("notes.txt")
    pool = FreePool(directory, 1)
    assert put(directory, pool, 1, 7), "what is not the pool's takes no place in it"
    taken = pool.take(1, 2**62)
    assert taken is not None
    assert f"{7:020d}-worker" in taken
    Path(directory.free, ours).write_bytes(b"")
    pool.give_back()
    assert ours not in os.listdir(directory.free)
    pool.clear(1)
    pool.clear()
    assert sorted(os.listdir(directory.free)) == sorted(strangers)


# The pipeline


class Maker:
    """Makes real segments, or fails as told; keeps what was sealed."""

    def __init__(self, directory: WALDirectory) -> None:
        self.directory = directory
        self.made = 0
        self.error: BaseException | None = None
        self.seal_error: BaseException | None = None
        self.sealed: list[Segment] = []

    def make(self) -> Segment:
        self.made += 1
        if self.error is not None:
            raise self.error
        return Segment.make(self.directory, None, 1, self.made, "node")

    def seal(self, segment: Segment) -> None:
        if self.seal_error is not None:
            raise self.seal_error
        segment.seal(MEGABYTE)
        self.sealed.append(segment)


def test_the_next_segment_is_made_before_it_is_asked_for(directory: WALDirectory) -> None:
    maker = Maker(directory)
    pipeline = Pipeline(maker.make, maker.seal)
    segment = pipeline.take()
    wait_until(lambda: maker.made == 2, "the next segment is made")
    add(segment)
    pipeline.seal_later(segment)
    wait_until(lambda: pipeline.unsealed == 0, "it is sealed")
    assert maker.sealed == [segment]
    pipeline.close()
    assert everything(directory) == [sealed(directory).name]


def test_a_failure_of_long_ago_is_not_reported_as_one_of_now(directory: WALDirectory) -> None:
    maker = Maker(directory)
    pipeline = Pipeline(maker.make, maker.seal)
    wait_until(lambda: maker.made == 1, "the first one is made")
    maker.error = OSError(errno.ENOSPC, "no space")
    first = pipeline.take()
    wait_until(lambda: maker.made == 2, "the next one has failed")
    maker.error = None
    second = pipeline.take()
    assert second.name.seq == 3
    wait_until(lambda: maker.made == 4, "the fourth one is made")
    maker.error = OSError(errno.ENOSPC, "no space")
    pipeline.take().discard()
    with pytest.raises(OSError, match="no space"):
        pipeline.take()
    maker.error = None
    pipeline.take().discard()
    first.discard()
    second.discard()
    pipeline.close()
    assert everything(directory) == []


def test_sealing_is_tried_until_it_succeeds_and_logged_once(
    directory: WALDirectory, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("arcpipe.wal.pipeline._RETRY_SECONDS", 0.01)
    maker = Maker(directory)
    tries = 0
    seal = maker.seal

    def failing(segment: Segment) -> None:
        nonlocal tries
        tries += 1
        if tries < 5:
            raise OSError(errno.EIO, "not now")
        seal(segment)

    pipeline = Pipeline(maker.make, failing)
    segment = pipeline.take()
    add(segment)
    pipeline.seal_later(segment)
    assert pipeline.unsealed in (0, 1)
    wait_until(lambda: pipeline.unsealed == 0, "it is sealed")
    assert tries == 5
    assert caplog.text.count("not now") == 1
    pipeline.close()


def test_sealing_is_not_tried_again_with_each_other_job(
    directory: WALDirectory, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("arcpipe.wal.pipeline._RETRY_SECONDS", 3600.0)
    maker = Maker(directory)
    tries: list[Segment] = []

    def failing(segment: Segment) -> None:
        tries.append(segment)
        raise OSError(errno.EIO, "not now", segment.path)

    pipeline = Pipeline(maker.make, failing)
    left = [pipeline.take(), pipeline.take()]
    for segment in left:
        add(segment)
        pipeline.seal_later(segment)
    wait_until(lambda: not pipeline._ready.empty(), "the next segment is made")
    maker.error = OSError(errno.EIO, "no file")
    pipeline.take().discard()
    for _ in range(5):
        with pytest.raises(OSError, match="no file"):
            pipeline.take()
    assert tries == left
    pipeline.close()
    assert tries == left * 2
    assert caplog.text.count("cannot seal segment") == 2


def test_a_bug_in_its_thread_is_raised_where_it_is_used(directory: WALDirectory) -> None:
    maker = Maker(directory)
    pipeline = Pipeline(maker.make, maker.seal)
    segment = pipeline.take()
    add(segment)
    maker.seal_error = ZeroDivisionError("a bug")
    pipeline.seal_later(segment)
    wait_until(lambda: not pipeline._thread.is_alive(), "the thread has ended")
    for _ in range(3):
        with pytest.raises(ZeroDivisionError):
            pipeline.check()
        with pytest.raises(ZeroDivisionError):
            pipeline.take()
    pipeline.close()


def test_a_bug_in_making_does_not_leave_the_writer_waiting(directory: WALDirectory) -> None:
    maker = Maker(directory)
    maker.error = ValueError("year 292277026596 is out of range")
    pipeline = Pipeline(maker.make, maker.seal)
    with pytest.raises(ValueError, match="year"):
        pipeline.take()
    pipeline.close()


def test_closing_without_the_directory_is_no_error(directory: WALDirectory) -> None:
    maker = Maker(directory)
    pipeline = Pipeline(maker.make, maker.seal)
    segment = pipeline.take()
    add(segment)
    while pipeline._ready.empty():  # the next one: nothing is made while the directory is being removed
        time.sleep(0.001)
    shutil.rmtree(directory.path)
    pipeline.seal_later(segment)
    pipeline.close()


def test_a_segment_made_instead_sorts_between_its_neighbours(
    directory: WALDirectory,
) -> None:
    """A segment that is made instead sorts after the ones before and before the next."""
    maker = Maker(directory)
    pipeline = Pipeline(maker.make, maker.seal)
    first = pipeline.take()
    wait_until(lambda: not pipeline._ready.empty(), "the next one is ready")
    with pytest.raises(OSError, match="no space"):
        pipeline.make_instead(_fail)
    made = pipeline.make_instead(lambda: Segment.make(directory, None, 1, 100, "node"))
    following = pipeline.take()
    assert [first.name.seq, made.name.seq, following.name.seq] == [1, 100, 3]
    for segment in (first, made, following):
        segment.discard()
    pipeline.close()
    assert everything(directory) == [], "the one that was ready is gone"


def _fail() -> Segment:
    raise OSError(errno.ENOSPC, "no space")
