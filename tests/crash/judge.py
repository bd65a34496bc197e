"""The judgement: start up on what a crash left, ship all there is, and compare with what the world knows."""

from __future__ import annotations

import functools
import os
from collections import Counter
from collections.abc import Callable, Iterable
from typing import NamedTuple

from arcpipe.errors import ArcpipeError, NotAWAL
from arcpipe.wal.directory import ACTIVE, RECOVERED, SEALED, NodeIdentity, WALDirectory, parse_filename
from arcpipe.wal.reader import SegmentScan
from arcpipe.wal.recovery import RecoverySummary, recover_at_start
from tests.crash.entries import Shipped, entries_in, key_of, number_of, shipped_in
from tests.crash.recording import FailedSync, Fault, Image, Note, RecordingDisk
from tests.crash.scenario import FOLDER, Plan, hurried
from tests.crash.shipping import MemoryStore, Shipping
from tests.crash.system_calls import mounted

# A start-up or a shipment that fails is tried again this many times; faults that heal do so earlier.
_TRIES = 12
# With no batch under way, what is read of the segments is what would be shipped: the uploader does it in one state of
# this many, which is by far the longest part of judging it.
_SHIPPED = 5


class Expectation(NamedTuple):
    """The knowledge of the world when the program was cut off."""

    sent: Counter[int]  # how often each number was sent
    refused: Counter[int]  # how often it was said that nothing was written
    promised: frozenset[int]  # acknowledged, and to be found after this kind of cut
    objects: dict[str, bytes]
    starts_synced: bool  # whether a segment's name is never there without its start entry
    ends_synced: bool  # the same of a completed segment and its end entry
    once: frozenset[int] = frozenset()  # they have a key: there once, however often they were sent


@functools.lru_cache(64)
def expectation(disk: RecordingDisk, after: int, plan: Plan, kind: str = "power cut") -> Expectation:
    """From the notes among the first `after` operations.

    Args:
        kind: "power cut", "kill", "end" for an orderly stop, or "second power cut", while recovery was at work.
    """
    sent: Counter[int] = Counter()
    refused: Counter[int] = Counter()
    answered: set[int] = set()
    durable: set[int] = set()
    objects: dict[str, bytes] = {}
    failed_sync = False
    for position, operation in _news(disk, len(disk.log)):
        if position >= after:
            break
        if isinstance(operation, FailedSync):
            failed_sync = True
        elif operation.kind == "sent":
            sent.update(operation.value)
        elif operation.kind == "refused":
            refused.update(operation.value)
        elif operation.kind == "answered":
            answered.update(operation.value)
        elif operation.kind == "durable":
            durable.update(operation.value)
        elif operation.kind == "put":
            objects[operation.value[0]] = operation.value[1]
        elif operation.kind == "deleted":
            objects.pop(operation.value, None)
    if plan.sync_mode == "off":
        answered = answered if kind == "end" else set()
    # With `async`, what is acknowledged lives in memory until a sync succeeds: a kill after a failed one takes it.
    promised = durable if "power cut" in kind or (kind == "kill" and failed_sync) else answered
    is_synced = plan.sync_mode != "off"
    ends_synced = is_synced and kind != "second power cut"
    once = frozenset(filter(key_of, sent)) if plan.keyed else frozenset()
    return Expectation(sent, refused, frozenset(promised), objects, is_synced, ends_synced, once)


@functools.lru_cache(4)
def _news(disk: RecordingDisk, length: int) -> list[tuple[int, FailedSync | Note]]:
    """List the few operations from which the world knows something, with their positions in a log of this length."""
    return [
        (at, operation) for at, operation in enumerate(disk.log[:length]) if isinstance(operation, FailedSync | Note)
    ]


class Outcome(NamedTuple):
    """The result of a start and an upload on a disk."""

    found: Counter[int]
    moods: frozenset[str]  # columns of a type that follows from the first batch, each with its type
    reported: list[str]  # what was said to be wrong
    left: list[str]  # segments that are still there
    disk: RecordingDisk


_known: dict[tuple[object, ...], tuple[Counter[int], frozenset[str], list[str], list[str]]] = {}


def judge(image: Image, expected: Expectation) -> None:
    """AssertionError says what is wrong with a healthy disk that holds this."""
    outcome = come_up(image, expected)
    compare(outcome, expected)
    assert not outcome.left, f"never shipped: {outcome.left}"


def come_up(
    image: Image,
    expected: Expectation,
    faults: Iterable[Fault] = (),
    bad: dict[str, set[int]] | None = None,
    is_torn: bool = False,
    write_on: Callable[[WALDirectory, RecoverySummary], None] | None = None,
) -> Outcome:
    """Start on a disk, and upload until nothing is left or nothing moves any more.

    Args:
        image: of the disk.
        expected: which entries and objects there are.
        faults: of the disk, from the start on.
        bad: unreadable sectors, by path.
        is_torn: some content is not as any program wrote it.
        write_on: what workers do before the uploader has begun.
    """
    disk = RecordingDisk(image)
    disk.faults = list(faults)
    disk.bad = dict(bad or {})
    is_healthy = not disk.faults and not disk.bad and not is_torn and write_on is None
    with mounted(disk), hurried():
        directory = WALDirectory(os.path.join(disk.base, FOLDER))
        if expected.starts_synced and is_healthy:
            _check_in_service(disk.initial, expected.ends_synced)
        reported: list[str] = []
        node, summary = _start(directory, reported, disk)
        if write_on is not None:
            write_on(directory, summary)
        if is_healthy:
            first = disk.image()
            _check_recovered(first)
            key = (frozenset(first.items()), frozenset(expected.objects.items()))
            if key in _known:
                return Outcome(*_known[key], disk)
            recover_at_start(directory)
            assert disk.image() == first, "recovering again gave something else"
        found: Counter[int] = Counter()
        store = MemoryStore(expected.objects)
        if is_healthy and not expected.once and not _is_to_be_shipped(first):  # only the uploader tells what is a retry
            for segment in directory.segments(SEALED):
                found.update(_read(directory, segment.path))
                directory.disk.unlink(segment.path)
        else:
            reported += _ship(directory, store, node)
    outcome = _outcome(disk, store, found, reported)
    if is_healthy:
        if len(_known) > 20_000:
            _known.clear()
        _known[key] = outcome[:4]
    return outcome


def _outcome(disk: RecordingDisk, store: MemoryStore, found: Counter[int], reported: list[str]) -> Outcome:
    uploaded: list[Shipped] = [shipped_in(name, content) for name, content in store.objects.items()]
    for shipped in uploaded:
        found.update(shipped.numbers)
    moods = {mood for shipped in uploaded for mood in shipped.moods}
    left = [path for path in disk.entries if (parsed := _parsed(path)) is not None and parsed in (ACTIVE, SEALED)]
    reported += [path for path in disk.entries if "/quarantine/" in path]
    return Outcome(found, frozenset(moods), reported, left, disk)


def compare(
    outcome: Outcome, expected: Expectation, excused: frozenset[int] = frozenset(), *, may_double: bool = False
) -> None:
    """AssertionError says what is there too often, too rarely or of the wrong type.

    Args:
        may_double: only a loss is wrong.
        excused: entries that a fault took for good; they may be missing, not be there twice.
    """
    found = outcome.found
    never_sent = found.keys() - expected.sent.keys()
    assert not never_sent, f"never sent: {sorted(never_sent)}"
    allowed = expected.sent - expected.refused
    for number in expected.once & allowed.keys():
        allowed[number] = 1
    surplus = {number: count for number, count in found.items() if count > allowed[number]}
    unwanted = sorted(number for number in surplus if not allowed[number])
    assert not unwanted, f"refused as not written, and there: {unwanted}"
    assert not surplus or may_double, f"entries {sorted(surplus)} are there twice"
    lost = expected.promised - found.keys() - excused
    assert not lost, f"acknowledged and lost: {sorted(lost)}"
    columns = {mood.partition(":")[0] for mood in outcome.moods}
    assert len(outcome.moods) == len(columns), f"a column changed its type: {sorted(outcome.moods)}"


def kept(disk: RecordingDisk) -> set[int]:
    """The entries in files that are still there, wherever they were put."""
    return {
        entry.number
        for path, content in disk.image().items()
        if content is not None and ".wal" in path and "/free/" not in path
        for entry in entries_in(content)
        if entry.number
    }


def is_untouched(disk: RecordingDisk, path: str) -> bool:
    """Whether a file that was there at the start still is, by whatever name, with every byte."""
    number = disk.initial_files[path]
    before = disk.initial[path]
    return any(
        file is not None and file.number == number and bytes(file.content) == before for file in disk.entries.values()
    )


def _start(directory: WALDirectory, reported: list[str], disk: RecordingDisk) -> tuple[NodeIdentity, RecoverySummary]:
    """Start-up, again and again as long as it fails or leaves a file for the next try."""
    node, summary = NodeIdentity("none", 1), RecoverySummary([], 0.0)
    for tries in range(_TRIES):
        try:
            directory.make()
            node = directory.next_boot()
            summary = recover_at_start(directory)
        except (OSError, ArcpipeError) as error:
            if tries == _TRIES - 1:
                reported.append(f"no start: {error}")
            continue
        if not any(_parsed(path) == ACTIVE for path in disk.entries) or tries == _TRIES - 1:
            reported += [
                f"{file.filename}: {file.outcome}, {file.corrupted} corrupted"
                for file in summary.files
                if file.corrupted or file.outcome not in ("sealed", "empty")
            ]
            break
        reported += [f"{file.filename}: {file.corrupted} corrupted" for file in summary.files if file.corrupted]
    return node, summary


def _ship(directory: WALDirectory, store: MemoryStore, node: NodeIdentity) -> list[str]:
    shipping = Shipping(directory, store, recycle=False)
    shipping.node = node
    idle = 0
    while idle < _TRIES:
        done = shipping.batches_done
        shipping.work()
        if shipping.has_nothing_to_do:
            break
        idle = 0 if shipping.batches_done != done else idle + 1
    return (
        shipping.reported if shipping.has_nothing_to_do else [*shipping.reported, "the uploader has not come to an end"]
    )


def is_batch(path: str) -> bool:
    """Whether a file belongs to a batch under way."""
    return "/batches/" in path and path.endswith((".json", ".journal"))


def _is_to_be_shipped(image: Image) -> bool:
    size = sum(len(content) for content in image.values() if content is not None)
    return size % _SHIPPED == 0 or any(is_batch(path) for path in image)


def _read(directory: WALDirectory, path: str) -> list[int]:
    """The numbers in a completed segment, by arcpipe's reader; none of a file that would go to quarantine."""
    try:
        return [number_of(entry) for entry in SegmentScan(path, disk=directory.disk)]
    except NotAWAL:
        return []


def forget() -> None:
    """Forget former verdicts: they say nothing about a changed program."""
    _known.clear()


def _parsed(path: str) -> str | None:
    """The state of a segment in service; None for what is no segment, or lies elsewhere."""
    folder, _, name = path.rpartition("/")
    parsed = parse_filename(name)
    return parsed[1] if parsed is not None and folder == FOLDER else None


def _check_in_service(image: Image, ends_synced: bool) -> None:
    """Check that a file in service is never stale and never empty.

    A sealed one has its end entry, and no two entries of a slot have the same timestamp.
    """
    ends: dict[tuple[int, int], int] = {}
    stamps: dict[tuple[int, int], set[int]] = {}
    # What is uploaded may be on its way to the pool already.
    batched = " ".join(repr(content) for path, content in image.items() if is_batch(path))
    for path, content in image.items():
        state = _parsed(path)
        if state is None or state == RECOVERED:
            continue
        name = os.path.basename(path)
        life = parse_filename(name)
        assert content is not None
        assert life is not None
        assert content.startswith(b"ARCW"), f"{name} is in service, but is no log"
        entries = list(entries_in(content))
        assert entries, f"{name} is in service without a start entry"
        assert not entries[0].number, f"{name} is in service without a start entry"
        began = entries[0].timestamp // 1_000_000 * 1_000_000
        assert began == life[0].created_us, f"{name} is in service with another's start"
        own = [entry for entry in entries if entry.timestamp >= entries[0].timestamp]
        last = own[-1]
        is_complete = last.number == 0 and last is not own[0]
        if state == SEALED and ends_synced and name not in batched:
            assert is_complete, f"{name} is sealed without its end"
        key = life[0].slot, life[0].seq
        stamps[key] = {entry.timestamp for entry in own if entry.number}
        if is_complete and not last.is_recovered_end:
            ends[key] = last.timestamp
    for (slot, seq), stamp in ends.items():
        assert stamp not in stamps.get((slot, seq + 1), ()), f"slot {slot} gave a timestamp twice: {stamp}"


def _check_recovered(image: Image) -> None:
    for path, content in image.items():
        assert _parsed(path) != ACTIVE, f"{path} was left unrecovered"
        if _parsed(path) != SEALED or not content:
            continue
        entries = list(entries_in(content))
        # Stale entries may stand between the torn parts.
        stamps = [entry.timestamp for entry in entries if entry.timestamp >= entries[0].timestamp]
        assert stamps == sorted(set(stamps)), f"timestamps of {path} do not increase"
        if entries and entries[-1].is_recovered_end:
            after_end = len(content) - entries[-1].end
            assert not after_end, f"{path} was archived with {after_end} bytes after its end"
