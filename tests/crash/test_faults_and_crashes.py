"""A fault at one operation, then a crash at any later moment: what was said to clients stays true.

The program runs on a disk that fails at the n-th change (before or after it took effect, or halfway, once, some times
or for good), and at every moment after it is killed, loses its power, or goes on to its end. Then it starts on what is
there. `--crash-states N` (or ARCPIPE_CRASH_STATES) sets how many disks are tried, together with `test_power_cut`.
"""

from __future__ import annotations

import errno
import os
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator
from unittest import mock

import msgspec
import pytest

from arcpipe.codec.envelope import KIND_COLUMNAR
from arcpipe.wal import salvage as salvage_module
from arcpipe.wal import segment as segment_module
from arcpipe.wal import stamps as stamps_module
from arcpipe.wal import writer as writer_module
from arcpipe.wal.checksum import with_checksum
from arcpipe.wal.directory import WALDirectory, parse_filename
from arcpipe.wal.format import envelope_prefix
from arcpipe.wal.recovery import RecoverySummary
from arcpipe.wal.source import SearchEffort
from arcpipe.wal.writer import WALWriter
from tests.crash import judge as judge_module
from tests.crash.entries import entries_in, make_body, shipped_in
from tests.crash.judge import come_up, compare, expectation, is_batch, is_untouched, judge, kept
from tests.crash.power_cut import State, states_after_kills, states_after_power_cuts
from tests.crash.recording import CHANGES, READS, SECTOR, Fault, Image, Note, RecordingDisk
from tests.crash.scenario import FOLDER, Plan, Run
from tests.crash.shipping import StoreFault
from tests.crash.trying import explain
from tests.support.wal_doubles import Clock

PLANS = [
    Plan(101, "fdatasync", sizes="any", steps=70),
    Plan(102, "fdatasync", sizes="sectors", slots=2, steps=70),
    Plan(103, "fsync", sizes="same", steps=70),
    Plan(104, "fdatasync", sizes="any", recycle=False, slots=2, steps=70),
    Plan(105, "async", sizes="any", steps=90),
    Plan(106, "async", sizes="sectors", slots=2, recycle=False, steps=90),
]
# While a batch is put, the next one is converted and put.
AHEAD = [
    Plan(115, "fdatasync", sizes="any", slots=2, steps=70, ahead=1),
    Plan(114, "async", sizes="sectors", recycle=False, steps=90, ahead=2),
]
LASTING = (1, 2, 5, 40)
_PLACES = 12  # of faults, per plan
_AT_ONCE = 6  # kills right after a fault, all of them: a refusal has just left
_SOON = 40  # operations after a fault: what it has set in motion is under way then
_name = "{0.sync_mode}-{0.sizes}-{0.slots}-{0.seed}".format


@pytest.fixture(autouse=True)
def fresh(quiet: None) -> None:
    judge_module.forget()


def faults_of(plan: Plan, count: int) -> Iterator[Fault]:
    """Faults all over a plan's run, of all kinds; the same ones each time."""
    rng = random.Random(plan.seed)
    calls = Run(plan).record().calls
    changes = sum(calls[kind] for kind in CHANGES)
    syncs = calls["fdatasync"] + calls["fsync"]
    for number in range(count):
        times = rng.choice(LASTING)
        error = rng.choice((errno.EIO, errno.ENOSPC))
        if number % 3 == 0:  # what a failed sync leaves is the hardest
            yield Fault(frozenset({"fdatasync", "fsync"}), rng.randrange(syncs), times, error=error)
        elif number % 3 == 1:
            yield Fault(frozenset({"write"}), rng.randrange(calls["write"]), times, "short", error)
        else:
            yield Fault(CHANGES, rng.randrange(changes), times, rng.choice(("before", "after")), error)


def states_since(disk: RecordingDisk, rng: random.Random, limit: int, since: int) -> Iterator[State]:
    """Kills and power cuts after an operation, about `limit`, most of them soon; and the end, if there is one."""
    soon = since + _SOON
    kills = list(states_after_kills(disk, since))
    yield from kills[:_AT_ONCE]
    near = [kill for kill in kills[_AT_ONCE:] if kill.after <= soon]
    far = [kill for kill in kills[_AT_ONCE:] if kill.after > soon]
    yield from rng.sample(near, min(limit // 3, len(near)))
    yield from rng.sample(far, min(limit // 6, len(far)))
    yield from states_after_power_cuts(disk, rng, limit // 3, since, soon, stale=True)
    yield from states_after_power_cuts(disk, rng, limit // 6, soon, stale=True)
    if isinstance(disk.log[-1], Note) and disk.log[-1].kind == "ended":
        yield State(disk.image(), len(disk.log), "end")


def first_fault(disk: RecordingDisk) -> int:
    """Where something failed first; the recording's end if nothing did."""
    struck = (at for at, operation in enumerate(disk.log) if isinstance(operation, Note) and operation.kind == "fault")
    return next(struck, len(disk.log))


def check(disk: RecordingDisk, plan: Plan, fault: object, states: Iterator[State]) -> int:
    """Judges states; AssertionError says which fault and which state. How many there were."""
    count = 0
    for state in states:
        count += 1
        try:
            judge(state.image, expectation(disk, state.after, plan, state.kind))
        except AssertionError as error:
            raise AssertionError(f"{explain(error, disk, plan, state)}\nfault: {fault!r}") from error
    return count


def check_run(plan: Plan, fault: Fault, each: int) -> int:
    """Runs with a fault and judges about `each` states after it."""
    disk = Run(plan, fault).record()
    since = max(0, min(first_fault(disk), len(disk.log) - each))
    return check(disk, plan, fault, states_since(disk, random.Random(plan.seed), each, since))


@pytest.mark.parametrize("plan", [*PLANS, *AHEAD], ids=_name)
def test_a_fault_and_then_a_crash_make_nobody_a_liar(
    plan: Plan, crash_states: int, record_property: Callable[[str, object], None]
) -> None:
    each = max(8, crash_states * 3 // 10 // len(PLANS) // _PLACES)
    record_property("states", sum(check_run(plan, fault, each) for fault in faults_of(plan, _PLACES)))


@pytest.mark.parametrize("plan", [*PLANS[:4], *AHEAD], ids=_name)
def test_a_failing_store_and_then_a_crash_make_nobody_a_liar(plan: Plan, crash_states: int) -> None:
    rng = random.Random(plan.seed)
    each = max(8, crash_states // 20 // 4 // 4)
    for _ in range(4):
        fault = StoreFault(rng.randrange(6), rng.choice((1, 3, 9)), after=rng.random() < 0.7)
        disk = Run(plan, store_fault=fault).record()
        first_put = next(at for at, note in enumerate(disk.log) if isinstance(note, Note) and note.kind == "put")
        check(disk, plan, fault, states_since(disk, random.Random(plan.seed), each, first_put))


# Reads that fail when the program starts on what a crash left


def read_fault(rng: random.Random, times: float, image: Image) -> Fault:
    """Reads fail: at the start, in the middle or at the tail of a file, or of whatever is asked for."""
    files = [path for path, content in image.items() if content and path.startswith(FOLDER)]
    choice = rng.randrange(4)
    if choice == 0 or not files:
        return Fault(READS, rng.randrange(60), times)
    path = rng.choice(files)
    if choice == 1:
        return Fault(frozenset({rng.choice(("open", "read", "stat"))}), 0, times, path=path)
    size = len(image[path] or b"")
    last = max(1, -(-size // SECTOR))
    begin = rng.choice((0, last // 2, last - 1))
    return Fault(frozenset({"read"}), 0, times, path=path, sectors=range(begin, begin + 1))


def some_states(plan: Plan, count: int) -> Iterator[tuple[RecordingDisk, State, random.Random]]:
    """States of a run on a good disk, power cuts and kills."""
    disk = Run(plan).record()
    rng = random.Random(plan.seed)
    kills = list(states_after_kills(disk))
    for state in rng.sample(kills, min(count // 2, len(kills))):
        yield disk, state, rng
    for state in states_after_power_cuts(disk, rng, count // 2):
        yield disk, state, rng


@pytest.mark.parametrize("plan", PLANS, ids=_name)
def test_reads_that_fail_for_a_while_cost_nothing(plan: Plan, crash_states: int) -> None:
    check_reads(plan, max(20, crash_states // 20 // len(PLANS)))


def check_reads(plan: Plan, count: int, make: Callable[[], Fault] | None = None) -> None:
    """AssertionError tells what reads that fail for a while cost.

    Args:
        make: a fault to be tried on all states.
    """
    for disk, state, rng in some_states(plan, count):
        expected = expectation(disk, state.after, plan, state.kind)
        fault = make() if make is not None else read_fault(rng, rng.choice((1, 2, 5)), state.image)
        try:
            outcome = come_up(state.image, expected, [fault])
            compare(outcome, expected)
            assert not outcome.left, f"never shipped: {outcome.left}"
        except AssertionError as error:
            raise AssertionError(f"{explain(error, disk, plan, state)}\nfault: {fault!r}") from error


def check_lost_ends(plan: Plan) -> None:
    """AssertionError if a completed segment whose end is damaged is taken for a good one."""
    tried = 0
    for disk, state, _ in some_states(plan, 40):
        sealed = [path for path in state.image if path.endswith(".sealed") and "/quarantine/" not in path]
        if not sealed or any(is_batch(path) for path in state.image):
            continue
        content = state.image[sealed[0]] or b""
        entries = list(entries_in(content))
        image = {**state.image, sealed[0]: content[: entries[-2].end].ljust(len(content), b"\x00")}
        tried += 1
        expected = expectation(disk, state.after, plan, state.kind)
        outcome = come_up(image, expected, is_torn=True)
        compare(outcome, expected)
        assert outcome.reported, "nobody was told"
        assert is_untouched(outcome.disk, sealed[0]), "the original was not kept"
    assert tried


def test_a_completed_segment_that_has_lost_its_end_is_damaged_and_kept() -> None:
    check_lost_ends(PLANS[0])


def _no_effort(size: int) -> SearchEffort:
    return SearchEffort(0)


def check_spent_searches(plan: Plan) -> None:
    """AssertionError if what a search did not look through any more is cut off as a torn tail."""
    tried = 0
    for disk, state, _ in some_states(plan, 60):
        places = {
            path: list(entries_in(content))
            for path, content in state.image.items()
            if content and path.endswith(".wal") and "/free/" not in path
        }
        # One that ends with an end entry holds those of its last life.
        path = next((path for path, entries in places.items() if len(entries) > 4 and entries[-1].number), "")
        if state.kind != "kill" or not path or any(is_batch(path) for path in state.image):
            continue
        content = bytearray(state.image[path] or b"")
        content[places[path][2].end - 1] ^= 0x01
        tried += 1
        expected = expectation(disk, state.after, plan, state.kind)
        hidden = frozenset(entry.number for entry in places[path][2:] if entry.number)
        with mock.patch.object(salvage_module, "SearchEffort", _no_effort):
            outcome = come_up({**state.image, path: bytes(content)}, expected, is_torn=True)
        compare(outcome, expected, hidden)
        assert outcome.reported, "nobody was told"
        assert is_untouched(outcome.disk, path), "the original was not kept"
    assert tried


def test_what_a_search_gives_up_on_is_damage_and_kept() -> None:
    check_spent_searches(PLANS[0])


class Quiet(Run):
    """A little is written, all workers stop, and everything is uploaded."""

    def _run(self) -> None:
        self._start()
        for _ in range(3):
            self._commit()
        self._end()
        while self._shipping.work():
            pass


def check_new_entries(plan: Plan) -> None:
    """AssertionError if what is written after the start, with a clock that stepped back, is lost or doubled."""
    number = 1_000_000
    tried = 0
    disk = Quiet(plan).record()
    for state in states_after_kills(disk):
        named = sorted(
            name
            for path, content in state.image.items()
            if content and is_batch(path)
            for name in re.findall(r"worker-1-[0-9_]+-[0-9]+", content.decode("utf-8", "replace"))
        )
        if not named:
            continue
        tried += 1
        parsed = parse_filename(named[-1] + ".wal")
        assert parsed is not None
        clock = Clock()
        clock.now_us = parsed[0].created_us

        def write_on(directory: WALDirectory, summary: RecoverySummary, clock: Clock = clock) -> None:
            with (
                mock.patch.object(writer_module, "time", clock),
                mock.patch.object(stamps_module, "time", clock),
                mock.patch.object(segment_module, "time", clock),
            ):
                writer = WALWriter(directory, 1, node="n", last_timestamp=summary.last_timestamp(1))
                group = writer.new_group()
                group.add(envelope_prefix(KIND_COLUMNAR, "db"), make_body(number, 300), 1, writer.next_timestamp())
                writer.commit(group)
                writer.close()

        expected = expectation(disk, state.after, plan, state.kind)
        expected = expected._replace(sent=expected.sent + Counter([number]), promised=expected.promised | {number})
        compare(come_up(state.image, expected, write_on=write_on), expected)
    assert tried


@pytest.mark.parametrize("plan", PLANS, ids=_name)
def test_what_can_never_be_read_stays_as_it_is_and_takes_nothing_with_it(plan: Plan, crash_states: int) -> None:
    tried = 0
    for disk, state, rng in some_states(plan, max(20, crash_states // 20 // len(PLANS))):
        expected = expectation(disk, state.after, plan, state.kind)
        files = {
            path: content
            for path, content in state.image.items()
            if content and path.endswith((".wal", ".wal.sealed")) and "/free/" not in path
        }
        if not files:
            continue
        path = rng.choice(sorted(files))
        used = [entry for entry in entries_in(files[path]) if entry.number]
        if not used:
            continue
        sector = rng.choice((0, used[len(used) // 2].begin // SECTOR, (used[-1].end - 1) // SECTOR))
        tried += 1
        try:
            outcome = come_up(state.image, expected, bad={path: {sector}})
            compare(outcome, expected, frozenset(kept(outcome.disk)))
            if expected.promised - outcome.found.keys():
                assert outcome.reported, "nobody was told"
            assert is_untouched(outcome.disk, path) or all(outcome.found[entry.number] for entry in used), "not kept"
        except AssertionError as error:
            text = explain(error, disk, plan, state)
            raise AssertionError(f"{text}\nunreadable: sector {sector} of {path}") from error
    assert tried


@pytest.mark.parametrize("plan", PLANS[:4], ids=_name)
@pytest.mark.parametrize("how", ["torn", "unreadable"])
def test_a_sector_that_the_power_cut_tore_takes_only_what_is_on_it(plan: Plan, how: str, crash_states: int) -> None:
    disk = Run(plan).record()
    rng = random.Random(plan.seed)
    count = max(20, crash_states // 20 // 8)
    for state in states_after_power_cuts(disk, rng, count, stale=True, sectors=True):
        in_service = sorted(path for path in state.open_sectors if path.endswith((".wal", ".sealed")))
        in_service = [path for path in in_service if "/free/" not in path]
        if not in_service:
            continue
        path = rng.choice(in_service)
        sector = rng.choice(state.open_sectors[path])
        begin, end = sector * SECTOR, (sector + 1) * SECTOR
        content = state.image[path] or b""
        on_it = {entry.number for entry in entries_in(content) if entry.begin < end and entry.end > begin}
        expected = expectation(disk, state.after, plan)
        image = dict(state.image)
        try:
            if how == "torn":
                garbage = rng.randbytes(SECTOR)[: max(0, len(content) - begin)]
                image[path] = content[:begin] + garbage + content[end:]
                outcome = come_up(image, expected, is_torn=True)
                compare(outcome, expected, frozenset(on_it))
            else:
                outcome = come_up(image, expected, bad={path: {sector}})
                compare(outcome, expected, frozenset(kept(outcome.disk)))
                if expected.promised - outcome.found.keys():
                    assert outcome.reported, "nobody was told"
        except AssertionError as error:
            raise AssertionError(f"{explain(error, disk, plan, state)}\n{how}: sector {sector} of {path}") from error


# Small files


def states_within_a_batch(plan: Plan) -> list[tuple[RecordingDisk, State, str]]:
    """Kills while some objects of a batch are in the store, and its manifest."""
    disk = Run(plan).record()
    found = []
    for state in states_after_kills(disk):
        objects = expectation(disk, state.after, plan, "kill").objects
        for path in state.image:
            batch_id = os.path.basename(path).partition(".json")[0].removesuffix(".uploaded")
            if "/batches/" in path and path.endswith(".json") and any(batch_id in key for key in objects):
                found.append((disk, state, path))
    return found


def of_a_later_version(content: bytes) -> bytes:
    manifest = msgspec.json.decode(content)
    del manifest["crc32"]
    return with_checksum(msgspec.json.encode(manifest | {"version": 99}))


def with_an_unknown_word(content: bytes) -> bytes:
    manifest = msgspec.json.decode(content)
    del manifest["crc32"]
    return with_checksum(msgspec.json.encode(manifest | {"layout": "heap"}))


@pytest.mark.parametrize("change", [of_a_later_version, with_an_unknown_word])
def test_a_manifest_of_another_program_is_left_alone(change: Callable[[bytes], bytes]) -> None:
    """A manifest of another program is left alone and nothing ships twice."""
    check_manifests(change, is_kept=True)


@pytest.mark.parametrize(
    "change",
    [lambda content: content.replace(b"segm", b"s\xc5gm"), lambda content: content[:-2], lambda content: b""],
    ids=["a flipped bit", "cut off", "empty"],
)
def test_a_damaged_manifest_lets_nothing_ship_twice(change: Callable[[bytes], bytes]) -> None:
    check_manifests(change, is_kept=False)


def check_manifests(change: Callable[[bytes], bytes], is_kept: bool) -> None:
    plan = PLANS[0]
    states = states_within_a_batch(plan)
    assert states
    for disk, state, path in states[::3]:
        content = change(state.image[path] or b"")
        expected = expectation(disk, state.after, plan, "kill")
        try:
            outcome = come_up({**state.image, path: content}, expected, is_torn=True)
            compare(outcome, expected, frozenset(kept(outcome.disk)))
            if is_kept:
                assert outcome.disk.image().get(path) == content, "the manifest is gone"
                assert outcome.reported, "nobody was told"
        except AssertionError as error:
            raise AssertionError(f"{explain(error, disk, plan, state)}\n{path}: {content!r}") from error


def check_vanished(plan: Plan) -> None:
    """AssertionError if a segment that is gone when its batch is redone costs what is in the store already."""
    tried = 0
    for disk, state, path in states_within_a_batch(plan)[::2]:
        names = re.findall(r"worker-[0-9_-]+\.wal\.sealed", (state.image[path] or b"").decode("utf-8", "replace"))
        there = [name for name in names if f"{FOLDER}/{name}" in state.image]
        if len(there) < 2:
            continue
        tried += 1
        expected = expectation(disk, state.after, plan, "kill")
        gone = state.image[f"{FOLDER}/{there[0]}"] or b""
        in_store = {number for key, content in expected.objects.items() for number in shipped_in(key, content).numbers}
        excused = {entry.number for entry in entries_in(gone)} - in_store
        image = {name: content for name, content in state.image.items() if name != f"{FOLDER}/{there[0]}"}
        try:
            # What was not known to be whole in the store may be there under two batch ids.
            compare(come_up(image, expected, is_torn=True), expected, frozenset(excused), may_double=True)
        except AssertionError as error:
            raise AssertionError(f"{explain(error, disk, plan, state)}\ngone: {there[0]}") from error
    assert tried


def test_a_redo_without_a_segment_removes_nothing_from_the_store() -> None:
    """A segment that is gone when its batch is redone takes nothing out of the store."""
    check_vanished(PLANS[3])
