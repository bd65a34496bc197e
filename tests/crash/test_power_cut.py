"""A power cut at any moment: what was acknowledged is there, once, and nothing else is but what was sent.

The real program runs under a recorder; `power_cut` says what its disk may hold after a power cut at any moment;
start-up and shipping run on each of these disks. `--crash-states N` (or ARCPIPE_CRASH_STATES) sets how many are tried.
"""

from __future__ import annotations

import os
import random
import threading
from collections import Counter
from collections.abc import Callable

import pytest

from arcpipe.disk import Disk
from arcpipe.upload.key_window import KeyWindow
from arcpipe.wal import recovery as recovery_module
from arcpipe.wal import segment as segment_module
from arcpipe.wal.directory import WALDirectory
from arcpipe.wal.life import SegmentLife, settle
from arcpipe.wal.pool import FreePool
from arcpipe.wal.recovery import recover_at_start
from arcpipe.wal.salvage import IdentitySalvager
from arcpipe.wal.source import SegmentSource
from arcpipe.wal.writer import WALWriter
from tests.crash import judge as judge_module
from tests.crash.judge import is_batch
from tests.crash.power_cut import Model, State, states_after_power_cuts
from tests.crash.recording import Image, Note, RecordingDisk, Rename
from tests.crash.scenario import FOLDER, Plan, Run
from tests.crash.system_calls import mounted
from tests.crash.trying import judging, try_states
from tests.support.sets import long

PLANS = [
    Plan(1, "fdatasync", sizes="sectors"),
    Plan(2, "fdatasync", sizes="same"),
    Plan(3, "fdatasync", sizes="any"),
    Plan(4, "fdatasync", sizes="sectors", slots=2),
    Plan(5, "fdatasync", sizes="same", slots=2),
    Plan(6, "fdatasync", sizes="any", slots=3),
    Plan(7, "fdatasync", sizes="any", recycle=False),
    Plan(8, "fsync", sizes="sectors"),
    Plan(9, "fsync", sizes="any", slots=2),
    Plan(10, "async", sizes="sectors"),
    Plan(11, "async", sizes="same", slots=2, steps=240),
    Plan(12, "async", sizes="any", recycle=False),
    Plan(13, "off", sizes="sectors"),
    Plan(14, "off", sizes="any", slots=2),
]

# A batch has few segments, and while it is put, the next one is converted and put.
AHEAD = [
    Plan(22, "fdatasync", sizes="any", slots=2, ahead=1),
    Plan(23, "fsync", sizes="sectors", ahead=2),
    Plan(22, "async", sizes="any", slots=2, ahead=1),
    Plan(22, "fdatasync", sizes="same", recycle=False, slots=3, ahead=1),
]
# Clients send entries with a key again.
KEYED = [
    Plan(31, "fdatasync", sizes="any", slots=2, keyed=True),
    Plan(32, "async", sizes="any", slots=2, keyed=True),
    Plan(33, "fsync", sizes="same", recycle=False, keyed=True, ahead=1),
]
_OTHERS = 0.08  # of the states without a batch ahead of its turn, which the other plans have, too


@pytest.fixture(autouse=True)
def fresh(quiet: None) -> None:
    judge_module.forget()


def record(plan: Plan) -> RecordingDisk:
    return Run(plan).record()


@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: f"{plan.sync_mode}-{plan.sizes}-{plan.slots}-{plan.seed}")
def test_after_a_power_cut_all_that_was_acknowledged_is_shipped_once(
    plan: Plan, crash_states: int, record_property: Callable[[str, object], None]
) -> None:
    disk = record(plan)
    tried = try_states(disk, plan, crash_states * 2 // 5 // len(PLANS), judging(disk, plan))
    record_property("states", tried)


@pytest.mark.slow
@pytest.mark.parametrize("plan", [*KEYED[:1], *(pytest.param(plan, marks=long) for plan in KEYED[1:])])
def test_after_a_power_cut_no_retry_with_a_key_is_a_second_record(
    plan: Plan, crash_states: int, record_property: Callable[[str, object], None]
) -> None:
    disk = record(plan)
    sent = Counter(
        number for note in disk.log if isinstance(note, Note) and note.kind == "sent" for number in note.value
    )
    assert max(sent.values()) > 2
    record_property("states", try_states(disk, plan, max(40, crash_states // 200), judging(disk, plan)))


@pytest.mark.parametrize("plan", AHEAD, ids=lambda plan: f"{plan.sync_mode}-{plan.sizes}-{plan.slots}-{plan.seed}")
def test_after_a_power_cut_a_batch_ahead_of_its_turn_is_shipped_once(
    plan: Plan, crash_states: int, record_property: Callable[[str, object], None]
) -> None:
    """So is the one before: a successor finishes both, with the columns that follow from their order."""
    disk = record(plan)
    tried, of_two = try_batches(disk, plan, crash_states * 2 // 5 // len(PLANS), judging(disk, plan))
    record_property("states", tried)
    assert of_two > tried // 3, "few of the states have a batch ahead of its turn"


def try_batches(disk: RecordingDisk, plan: Plan, limit: int, on_state: Callable[[State], None]) -> tuple[int, int]:
    """Call back with about `limit` states, above all such with two batches. Returns how many there were of both."""
    chance = random.Random(plan.seed)
    tried = of_two = 0
    for state in states_after_power_cuts(disk, random.Random(plan.seed), 2 * limit):
        is_of_two = sum(path.endswith(".json") for path in state.image if is_batch(path)) == 2
        if is_of_two or chance.random() < _OTHERS:
            tried += 1
            of_two += is_of_two
            on_state(state)
    return tried, of_two


def test_objects_are_put_ahead_of_their_turn_in_these_runs() -> None:
    """Otherwise nothing here would be shown about them."""
    for plan in AHEAD:
        assert puts_ahead(record(plan)) > 2, plan


def puts_ahead(disk: RecordingDisk) -> int:
    """Count the objects that were put while the batch before theirs was not marked as uploaded."""
    waiting: list[str] = []  # batches that are planned, and not marked
    count = 0
    for operation in disk.log:
        if isinstance(operation, Rename) and is_batch(operation.target) and operation.target.endswith(".json"):
            name = os.path.basename(operation.target).removesuffix(".json")
            if name.endswith(".uploaded"):
                waiting.remove(name.removesuffix(".uploaded"))
            else:
                waiting.append(name)
        elif isinstance(operation, Note) and operation.kind == "put":
            count += len(waiting) > 1 and waiting[0] not in operation.value[0]
    return count


@pytest.mark.parametrize("plan", PLANS[::3], ids=lambda plan: f"{plan.sync_mode}-{plan.sizes}-{plan.slots}-{plan.seed}")
def test_a_second_power_cut_during_recovery_takes_nothing_either(
    plan: Plan, crash_states: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recovery_module, "_PARALLEL_FILES", 1)
    disk = record(plan)
    recoveries = max(1, crash_states // 10 // len(PLANS[::3]) // 12)

    def recover_and_crash_again(state: State) -> None:
        recovery = RecordingDisk(state.image)
        with mounted(recovery):
            directory = WALDirectory(f"{recovery.base}/{FOLDER}")
            directory.make()
            recover_at_start(directory)
        try_states(
            recovery, plan, 12, lambda second: judging(disk, plan)(State(second.image, state.after, "second power cut"))
        )

    try_states(disk, plan, recoveries, recover_and_crash_again)


def test_the_same_plan_gives_the_same_recording() -> None:
    for plan in (Plan(1, slots=2), AHEAD[0]):
        one, other = record(plan), record(plan)
        assert one.log == other.log


def test_segments_are_written_over_in_these_runs() -> None:
    """Otherwise nothing here would be shown about stale entries."""
    for plan in PLANS:
        if not plan.recycle:
            continue
        disk = record(plan)
        claimed = [rename for rename in disk.log if "claimed-" in getattr(rename, "source", "")]
        assert claimed, plan


# Each of these plants a bug and demands that it is found: a checker that never complains has checked nothing.


def violation(plans: list[Plan], before_judging: Callable[[], None] = lambda: None) -> str:
    """Return the first violation in the states of these plans' runs; the empty string without one."""
    for plan in plans:
        disk = record(plan)
        before_judging()
        try:
            try_states(disk, plan, 400, judging(disk, plan))
        except AssertionError as error:
            return str(error)
    return ""


@long
def test_it_is_noticed_if_keys_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(KeyWindow, "finish", lambda self, batch_id: None)
    assert "are there twice" in violation([plan._replace(steps=60) for plan in KEYED])


def test_without_a_planted_bug_nothing_is_found() -> None:
    """The shorter plans: whole ones are judged by the first test."""
    assert violation([plan._replace(steps=40) for plan in PLANS[:2]]) == ""


def test_it_is_caught_if_a_commit_does_not_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(WALWriter, "_sync", lambda self, segment, size: None)
    assert "acknowledged and lost" in violation(PLANS[:3])


def test_it_is_caught_if_the_directory_of_a_segment_is_not_synced(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is caught if the directory is not synced after making a segment."""
    monkeypatch.setattr(WALDirectory, "sync", lambda self: None)
    assert "acknowledged and lost" in violation([plan._replace(steps=40) for plan in PLANS[:3]])


def test_it_is_caught_if_a_directory_that_leads_to_the_log_is_not_synced(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def make_without_sync(self: WALDirectory) -> None:
        for folder in (self.path, self.free, self.batches, self.quarantine, self.spool):
            self.disk.make_directory(folder)
            self.disk.sync_directory(folder)

    monkeypatch.setattr(WALDirectory, "make", make_without_sync)
    monkeypatch.setattr(WALDirectory, "_sync_above", lambda self: None)  # which a first start does, too
    monkeypatch.setattr(WALDirectory, "_sync_above", lambda self: None)
    assert "acknowledged and lost" in violation([PLANS[0]._replace(steps=20)])


def test_it_is_caught_if_the_reader_does_not_ask_whose_entries_these_are(monkeypatch: pytest.MonkeyPatch) -> None:
    def settle_nothing(source: SegmentSource) -> SegmentLife:
        return settle(source)._replace(identity=b"", border=0)

    monkeypatch.setattr("arcpipe.wal.reader.settle", settle_nothing)
    assert "are there twice" in violation(PLANS[:6])


def test_it_is_caught_if_a_stale_entry_is_taken_for_a_new_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """An intact stale entry before new ones: a torn write leaves just that."""
    monkeypatch.setattr(IdentitySalvager, "refusal", lambda self, header: "")
    assert violation(PLANS[:6]) != ""


def test_it_is_caught_if_a_start_is_synced_after_the_rename(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is caught if a segment is renamed into service before its start is synced."""
    make = segment_module.Segment.make.__func__  # type: ignore[attr-defined]

    def make_without_file_sync(
        cls: type[segment_module.Segment], /, directory: WALDirectory, *arguments: object, **options: object
    ) -> object:
        fdatasync = directory.disk.fdatasync
        here = threading.current_thread()
        directory.disk.fdatasync = lambda fd: (  # type: ignore[method-assign]
            None if threading.current_thread() is here else fdatasync(fd)
        )
        try:
            return make(cls, directory, *arguments, **options)
        finally:
            directory.disk.fdatasync = fdatasync  # type: ignore[method-assign]

    monkeypatch.setattr(segment_module.Segment, "make", classmethod(make_without_file_sync))
    assert "in service" in violation(PLANS[:3])


def test_it_is_caught_if_the_torn_tail_is_archived(monkeypatch: pytest.MonkeyPatch) -> None:
    def stop_truncating() -> None:
        monkeypatch.setattr(Disk, "truncate", lambda self, fd, size: None)

    assert "after its end" in violation(PLANS[:3], before_judging=stop_truncating)


def test_it_is_caught_if_the_border_is_only_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of segments whose entries name none: there the pool's rule about ages keeps stale entries apart."""
    take = FreePool.take

    def forgetful(self: FreePool, slot: int, below_us: int) -> str | None:
        return take(self, slot, 1 << 62)

    def without_identity(source: SegmentSource) -> SegmentLife:
        return settle(source)._replace(identity=b"")

    jumping = [Plan(seed, sizes="same", slots=2, steps=150, jumps=True) for seed in (35, 38, 40)]
    monkeypatch.setattr("arcpipe.wal.reader.settle", without_identity)
    assert violation(jumping[:1]) == ""
    monkeypatch.setattr(FreePool, "take", forgetful)
    assert violation(jumping) != ""


def test_it_is_caught_if_recovery_does_not_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    """A killed worker's segment is sealed from the page cache: in the `async` mode only recovery's sync saves it."""
    recover = recovery_module._complete

    def complete_without_sync(directory: WALDirectory, file: object, report: object) -> str:
        fsync = directory.disk.fsync
        directory.disk.fsync = lambda fd: None  # type: ignore[method-assign]
        try:
            return recover(directory, file, report)  # type: ignore[arg-type]
        finally:
            directory.disk.fsync = fsync  # type: ignore[method-assign]

    monkeypatch.setattr(recovery_module, "_complete", complete_without_sync)
    assert violation([Plan(seed, "async", steps=120) for seed in range(50, 60)]) != ""


# The model itself


def states_of(operations: Callable[[Disk, str], None]) -> list[Image]:
    """Every state after the last of some operations on a disk with one old file; they get the disk's base."""
    disk = RecordingDisk({"old": b"o" * 1024})
    with mounted(disk):
        operations(Disk(), disk.base)
    model = Model(disk)
    for operation in disk.log:
        model.apply(operation)
    states = list(model.states(random.Random(0), 1000))
    assert disk.image() in states
    return states


def test_the_model_loses_any_sectors_that_are_not_synced_and_no_others() -> None:
    def operations(disk: Disk, base: str) -> None:
        fd = disk.open(f"{base}/old")
        disk.write(fd, [b"a" * 512], 0)
        disk.fdatasync(fd)
        disk.write(fd, [b"b" * 1024], 512)

    contents = {state["old"] for state in states_of(operations)}
    first = b"a" * 512
    assert contents == {
        first + b"o" * 512,
        first + b"b" * 512,
        first + b"o" * 512 + bytes(512),
        first + b"b" * 512 + bytes(512),
        first + b"o" * 512 + b"b" * 512,
        first + b"b" * 1024,
    }


def test_the_model_keeps_names_only_if_their_directories_are_synced() -> None:
    def operations(disk: Disk, base: str) -> None:
        disk.make_directory(f"{base}/d")
        disk.sync_directory(base)
        disk.rename(f"{base}/old", f"{base}/d/new")
        disk.sync_directory(f"{base}/d")

    assert {tuple(sorted(state)) for state in states_of(operations)} == {("d", "old"), ("d", "d/new")}


def test_the_model_never_keeps_a_name_inside_a_directory_that_is_lost() -> None:
    def operations(disk: Disk, base: str) -> None:
        disk.make_directory(f"{base}/d")
        disk.close(disk.create(f"{base}/d/f"))
        disk.sync_directory(f"{base}/d")

    assert {tuple(sorted(state)) for state in states_of(operations)} == {
        ("old",),
        ("d", "old"),
        ("d", "d/f", "old"),
    }
