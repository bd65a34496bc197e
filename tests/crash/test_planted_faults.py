"""Bugs planted in the program, each of which the fault model has to find: one that never complains has checked nothing.

`test_power_cut` plants those that a power cut alone shows. These need a fault first, reads that fail at the start, a
batch that was under way, or a rule other than the promise itself.
"""

from __future__ import annotations

import asyncio
import functools
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from arcpipe.disk import Disk
from arcpipe.upload.batches import Batches
from arcpipe.upload.journal import Record
from arcpipe.upload.journal_writer import JournalWriter
from arcpipe.upload.look_ahead import LookAhead
from arcpipe.upload.schema import SchemaRegistry
from arcpipe.upload.shipment import Shipment
from arcpipe.upload.uploader import BatchUploader
from arcpipe.wal import recovery as recovery_module
from arcpipe.wal import report as report_module
from arcpipe.wal.background_sync import BackgroundSync
from arcpipe.wal.directory import WALDirectory, parse_filename
from arcpipe.wal.reader import SegmentScan
from arcpipe.wal.salvage import IdentitySalvager
from arcpipe.wal.segment import Segment
from arcpipe.wal.writer import WALWriter
from tests.crash import judge as judge_module
from tests.crash import test_faults_and_crashes as faults
from tests.crash.power_cut import moments
from tests.crash.recording import Fault, Note, RecordingDisk, Rename
from tests.crash.scenario import Plan, Run
from tests.crash.test_power_cut import AHEAD, try_batches
from tests.crash.trying import judging, try_states

SYNCS = frozenset({"fdatasync", "fsync"})


@pytest.fixture(autouse=True)
def fresh(quiet: None) -> None:
    judge_module.forget()


def violation_of(check: Callable[[], object]) -> str:
    """Return the complaint of a check; the empty string without one."""
    try:
        check()
    except AssertionError as error:
        return str(error)
    return ""


def with_faults(*plans: Plan, every: int = 4) -> Callable[[], None]:
    """A check: a sync of a segment fails here and there, then the run is cut off at many moments."""

    def check() -> None:
        for plan in plans:
            for skip in range(1, 30, every):
                fault = Fault(SYNCS, skip, path="/wal/worker-")
                faults.check_run(plan, fault, 60)

    return check


def with_failing_reads(*skips: int) -> Callable[[], None]:
    """A check: a read of a segment fails after these many, at the start on what some of the runs left."""

    def check() -> None:
        for plan in faults.PLANS[:4]:
            for skip in skips:
                faults.check_reads(plan, 60, lambda skip=skip: a_read_of_a_segment(skip))  # type: ignore[misc]

    return check


def test_it_is_caught_if_a_refusal_comes_before_the_cut_is_durable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(WALWriter, "_take_back", lambda self, segment: True)
    assert "refused as not written" in violation_of(with_faults(*faults.PLANS[:4], every=2))


def test_it_is_caught_if_the_cut_is_only_in_the_page_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    cut_back = Segment.cut_back

    def without_sync(self: Segment, *arguments: object) -> None:
        disk = self._directory.disk
        fsync = disk.fsync
        disk.fsync = lambda fd: None  # type: ignore[method-assign]
        try:
            cut_back(self, *arguments)  # type: ignore[arg-type]
        finally:
            disk.fsync = fsync  # type: ignore[method-assign]

    monkeypatch.setattr(Segment, "cut_back", without_sync)
    assert violation_of(with_faults(*faults.PLANS[:4], every=2)) != ""


def test_it_is_caught_if_what_was_retained_is_dropped_after_a_failed_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BackgroundSync, "retained", property(lambda self: []))
    assert "acknowledged and lost" in violation_of(with_faults(faults.PLANS[4]))


def test_it_is_caught_if_recovery_does_not_know_what_a_successor_replaces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recovery_module, "cut_replaced", lambda directory, files: {})
    assert "are there twice" in violation_of(with_faults(faults.PLANS[4], every=2))


def a_read_of_a_segment(times: int) -> Fault:
    return Fault(frozenset({"read"}), 0, times, path="worker-", sectors=range(6, 7))


def test_it_is_caught_if_a_read_error_is_taken_for_zeros(monkeypatch: pytest.MonkeyPatch) -> None:
    read, read_into = Disk.read, Disk.read_into

    def read_or_zeros(self: Disk, fd: int, length: int, offset: int) -> bytes:
        try:
            return read(self, fd, length, offset)
        except OSError:
            return bytes(max(0, min(length, os.fstat(fd).st_size - offset)))

    def read_into_or_zeros(self: Disk, fd: int, buffer: memoryview, offset: int) -> int:
        try:
            return read_into(self, fd, buffer, offset)
        except OSError:
            buffer[:] = bytes(len(buffer))
            return len(buffer)

    monkeypatch.setattr(Disk, "read", read_or_zeros)
    monkeypatch.setattr(Disk, "read_into", read_into_or_zeros)
    check = functools.partial(faults.check_reads, faults.PLANS[0], 60, lambda: a_read_of_a_segment(1))
    assert "acknowledged and lost" in violation_of(check)


def to_the_first_error(walk: Callable[[SegmentScan], Iterator[Any]]) -> Callable[[SegmentScan], Iterator[Any]]:
    """Make a way to read a segment end at the first error."""

    def walked(self: SegmentScan) -> Iterator[Any]:
        try:
            yield from walk(self)
        except OSError:
            self._finish()

    return walked


def test_it_is_caught_if_a_read_error_is_taken_for_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("__iter__", "by_stretches"):
        monkeypatch.setattr(SegmentScan, name, to_the_first_error(getattr(SegmentScan, name)))
    assert violation_of(with_failing_reads(1, 2, 3, 5, 9)) != ""


def test_it_is_caught_if_an_unreadable_file_is_treated_as_damaged(monkeypatch: pytest.MonkeyPatch) -> None:
    """The readable part is uploaded; the rest never is, although it can be read a moment later."""
    init = SegmentScan.__init__

    def around_bad_blocks(self: SegmentScan, path: str, **options: object) -> None:
        init(self, path, **{**options, "salvage": True})  # type: ignore[arg-type]

    monkeypatch.setattr(SegmentScan, "__init__", around_bad_blocks)
    check = functools.partial(faults.check_reads, faults.PLANS[0], 60, lambda: a_read_of_a_segment(9))
    assert "acknowledged and lost" in violation_of(check)


def test_reads_of_segments_that_fail_once_or_nine_times_cost_nothing() -> None:
    for times in (1, 9):
        faults.check_reads(faults.PLANS[0], 60, functools.partial(a_read_of_a_segment, times))


def test_it_is_caught_if_a_registry_that_cannot_be_read_is_begun_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    load = SchemaRegistry.load.__func__  # type: ignore[attr-defined]

    def load_or_new(cls: type[SchemaRegistry], path: str, *arguments: object) -> SchemaRegistry:
        try:
            return load(cls, path, *arguments)  # type: ignore[no-any-return]
        except OSError:
            return cls(Path(path))

    monkeypatch.setattr(SchemaRegistry, "load", classmethod(load_or_new))

    def check() -> None:
        for plan in faults.PLANS[:4]:
            for disk, state, _ in faults.some_states(plan, 60):
                expected = judge_module.expectation(disk, state.after, plan, state.kind)
                once = Fault(frozenset({"read"}), 0, 1, path="schema.json")
                judge_module.compare(judge_module.come_up(state.image, expected, [once]), expected)

    assert "changed its type" in violation_of(check)


def test_it_is_caught_if_an_object_is_put_before_its_key_is_durable(monkeypatch: pytest.MonkeyPatch) -> None:
    add = JournalWriter.add

    def durable_at_once(self: JournalWriter, records: Iterable[Record]) -> asyncio.Future[None]:
        loop = asyncio.get_running_loop()
        loop.call_soon(add, self, list(records))
        done = loop.create_future()
        done.set_result(None)
        return done

    monkeypatch.setattr(JournalWriter, "add", durable_at_once)
    assert "before its key was durable" in violation_of(lambda: keys_come_first(Run(Plan(4, steps=60)).record()))


def test_the_key_of_an_object_is_durable_before_it_is_put() -> None:
    for seed in range(4, 8):
        keys_come_first(Run(Plan(seed, steps=60, jumps=True)).record())


def keys_come_first(disk: RecordingDisk) -> None:
    """AssertionError names an object whose key a power cut would have taken when it was put."""
    put = 0
    for model, position, after in moments(disk):
        for note in disk.log[position + 1 : after]:
            if isinstance(note, Note) and note.kind == "put":
                put += 1
                key = note.value[0].encode()
                journals = [number for path, number in model.names.items() if path.endswith(".journal")]
                contents = [model.files[number].versions[0] for number in journals if number is not None]
                assert any(key in content for content in contents), f"{key!r} was put before its key was durable"
    assert put


def test_the_key_of_an_object_that_is_ahead_is_durable_before_it_is_put() -> None:
    for plan in AHEAD:
        keys_come_first(Run(plan).record())


# Bugs of a batch that is converted ahead of its turn. Without one, `test_power_cut` finds nothing in these runs.


def ahead_of_its_turn() -> None:
    for plan in AHEAD:
        disk = Run(plan).record()
        try_batches(disk, plan, 100, judging(disk, plan))


def test_it_is_caught_if_a_batch_that_is_ahead_ends_before_its_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then the registry forgets its columns again when the batch before it ends."""
    finish = BatchUploader._finish

    async def finish_both(self: BatchUploader, *arguments: Any) -> Shipment:
        shipment = await finish(self, *arguments)
        ahead = await self._ahead.take()
        if ahead is not None and ahead.shipment is not None:
            await ahead.shipment.finish()
            await self._end(ahead.batch, ahead.shipment)
        return shipment

    monkeypatch.setattr(BatchUploader, "_finish", finish_both)
    assert "changed its type" in violation_of(ahead_of_its_turn)


def test_it_is_caught_if_a_batch_that_is_ahead_lacks_the_columns_of_the_one_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begin = LookAhead.begin

    def begin_without(self: LookAhead, registry: SchemaRegistry, before: Shipment, *teach: Any) -> None:
        begin(self, registry, mock.Mock(schema=[], used=[], drafted=[]), *teach)

    monkeypatch.setattr(LookAhead, "begin", begin_without)
    assert "changed its type" in violation_of(ahead_of_its_turn)


def test_it_is_caught_if_a_successor_begins_with_the_batch_that_was_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only a crash shows it."""
    unfinished = Batches.unfinished
    monkeypatch.setattr(Batches, "unfinished", lambda self: unfinished(self)[::-1])
    assert "changed its type" in violation_of(ahead_of_its_turn)


def test_it_is_caught_if_a_redo_does_not_look_what_its_segments_still_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    async def trusting(*arguments: object) -> None:
        return

    monkeypatch.setattr("arcpipe.upload.uploader.prepare", trusting)
    assert "acknowledged and lost" in violation_of(lambda: faults.check_vanished(faults.PLANS[3]))


def test_it_is_caught_if_another_version_is_taken_for_damage(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is caught if a manifest of another version is taken for a damaged one."""

    def damaged(path: str, found: str) -> Exception:
        return ValueError(found)

    monkeypatch.setattr("arcpipe.upload.manifest.unknown_version", damaged)
    check = functools.partial(faults.check_manifests, faults.of_a_later_version, True)
    assert violation_of(check) != ""


def test_it_is_caught_if_a_missing_end_is_taken_for_clean(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is caught if a sealed segment without its end is taken for clean."""
    judged = report_module.judge

    def lenient(report: object, was_active: bool) -> object:
        return judged(report, True)  # type: ignore[arg-type]

    monkeypatch.setattr("arcpipe.wal.reader.judge", lenient)
    assert violation_of(lambda: faults.check_lost_ends(faults.PLANS[0])) != ""


def test_it_is_caught_if_a_search_that_gives_up_is_taken_for_a_torn_tail(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(IdentitySalvager, "gave_up", False)
    assert violation_of(lambda: faults.check_spent_searches(faults.PLANS[0])) != ""


def test_it_is_caught_if_a_segment_is_sealed_without_its_file_being_synced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Segment, "_sync_before_naming", lambda self: None)
    assert "without its end" in violation_of(lambda: power_cuts(Plan(2, sizes="same", steps=60)))


def power_cuts(plan: Plan) -> None:
    disk = Run(plan).record()
    try_states(disk, plan, 200, judging(disk, plan))


def test_it_is_caught_if_the_timestamp_of_the_end_entry_is_not_reserved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(WALWriter, "_reserve_end_timestamp", lambda self: None)

    def check() -> None:
        for seed in range(200, 206):
            power_cuts(Plan(seed, steps=60, jumps=True))

    assert "gave a timestamp twice" in violation_of(check)


def test_it_is_caught_if_recovery_leaves_names_that_are_not_durable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recovery_module, "sync_names", lambda directory: None)
    assert "is not durable" in violation_of(lambda: settled_after_recovery(Run(Plan(3, steps=150)).record()))


def test_what_recovery_has_done_is_durable_when_it_returns() -> None:
    for seed in range(3, 8):
        settled_after_recovery(Run(Plan(seed, steps=150, slots=1 + seed % 2)).record())


def settled_after_recovery(disk: RecordingDisk) -> None:
    """AssertionError names what a power cut would undo of a recovery that has returned."""
    recovered = 0
    for model, position, after in moments(disk):
        notes = [note for note in disk.log[position + 1 : after] if isinstance(note, Note) and note.kind == "recovered"]
        for note in notes:
            recovered += 1
            for change in model.unsynced:
                name = parse_filename(os.path.basename(change.names[0]))
                if isinstance(change.operation, Rename) and name is not None and name[0].slot in note.value:
                    assert not change.names[1].endswith(".sealed"), f"{change.operation} is not durable"
    assert recovered


def test_it_is_caught_if_a_number_that_a_manifest_names_is_given_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def only_files(self: WALDirectory, slot: int) -> int:
        found = map(parse_filename, os.listdir(self.path))
        return max((name[0].seq for name in found if name is not None and name[0].slot == slot), default=0)

    monkeypatch.setattr(WALDirectory, "highest_seq", only_files)
    assert "acknowledged and lost" in violation_of(lambda: faults.check_new_entries(Plan(301, steps=60)))


def test_numbers_that_a_manifest_names_are_not_given_again() -> None:
    faults.check_new_entries(Plan(301, steps=60))


def test_a_disk_that_fails_at_nothing_shows_nothing() -> None:
    faults.check_reads(faults.PLANS[0], 20, lambda: Fault(frozenset()))
