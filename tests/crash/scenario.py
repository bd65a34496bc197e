"""A program run under a recording disk: writers, the uploader's bookkeeping, crashes of single workers, restarts.

Everything that runs is arcpipe's own: `WALWriter`, segments, pool, recovery, `Batches`. Only three things are taken
in hand, so that a seed always gives the same recording: the clock; the threads that make and seal segments, which do
an operation when the schedule says so and at no other time; and the object store, which is a dict here.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from unittest import mock

import msgspec

from arcpipe.counters import Counters
from arcpipe.errors import NotAWAL
from arcpipe.upload import batch as batch_module
from arcpipe.upload.batch import Batches, Manifest
from arcpipe.wal import recovery as recovery_module
from arcpipe.wal import segment as segment_module
from arcpipe.wal import writer as writer_module
from arcpipe.wal.directory import ACTIVE, SEALED, Node, WALDirectory
from arcpipe.wal.format import ENTRY_HEADER_SIZE, KIND_COLUMNAR, envelope_prefix
from arcpipe.wal.pool import FreePool, Pipeline
from arcpipe.wal.reader import Entry, ScanReport, SegmentScan
from arcpipe.wal.recovery import recover_at_start, recover_slot
from arcpipe.wal.segment import Segment
from arcpipe.wal.writer import Group, SyncMode, WALOptions, WALWriter
from tests.crash.recording import RecordingDisk

NODE = Node("0123456789ab", 1)
PREFIX = envelope_prefix(KIND_COLUMNAR, "db")
FOLDER = "made/on/start/wal"

Store = dict[str, list[int]]


class Shipped(NamedTuple):
    """Objects that a batch put into the store: the same batch id overwrites them."""

    batch_id: str
    numbers: list[int]


# Entries that can be told apart, and checked byte for byte


def make_body(number: int, size: int) -> bytes:
    """A columnar body so that its whole entry takes `size` bytes; what fills it follows from the number."""
    want = size - ENTRY_HEADER_SIZE - len(PREFIX.data)
    for shorter in range(8):
        filler = _filler(number, max(0, want - 40 + shorter))
        body = msgspec.msgpack.encode({"m": "m", "columns": {"number": [number], "filler": [filler]}})
        body = _pad(body, want, number)
        if body is not None:
            return body
    raise ValueError(f"no entry of {size} bytes can hold number {number}")


def _pad(body: bytes, want: int, number: int) -> bytes | None:
    missing = want - len(body)
    if missing == 0:
        return body
    filler_length = len(msgspec.msgpack.decode(body)["columns"]["filler"][0])
    longer = msgspec.msgpack.encode(
        {"m": "m", "columns": {"number": [number], "filler": [_filler(number, max(0, filler_length + missing))]}}
    )
    return longer if len(longer) == want else None


def _filler(number: int, length: int) -> bytes:
    return random.Random(number).randbytes(length)


def number_of(entry: Entry) -> int:
    """The number of an entry that `make_body` made; AssertionError if a byte of it is another."""
    kind, database, _, body = msgspec.msgpack.decode(entry.payload)
    assert (kind, database) == (KIND_COLUMNAR, "db")
    [number], [filler] = body["columns"]["number"], body["columns"]["filler"]
    assert filler == _filler(number, len(filler)), f"entry {number} is not as it was sent"
    return int(number)


def ship(directory: WALDirectory, batches: Batches, manifest: Manifest, store: Store, pool: FreePool | None) -> None:
    """Takes a batch from its state to its end, as the uploader does."""
    for step in shipping(directory, batches, manifest, lambda shipped: store.update([shipped]), pool):
        step()


def shipping(
    directory: WALDirectory,
    batches: Batches,
    manifest: Manifest,
    put: Callable[[Shipped], None],
    pool: FreePool | None,
    reusable_bytes: int = 0,
) -> Iterator[Callable[[], None]]:
    """The steps of a batch in their order; between two of them anything else may happen."""
    reports: dict[str, ScanReport] = {}
    if manifest.state == "planned":

        def read_and_put() -> None:
            numbers = []
            for name in manifest.segments:
                path = os.path.join(directory.path, name)
                try:
                    scan = SegmentScan(path)
                except FileNotFoundError:  # without syncs, a manifest may outlive a segment's name …
                    continue
                except NotAWAL:  # … and a name its content
                    os.rename(path, os.path.join(directory.quarantine, name))
                    continue
                numbers += [number_of(entry) for entry in scan]
                reports[name] = scan.report
            put(Shipped(manifest.batch_id, numbers))

        yield read_and_put
        yield lambda: batches.mark_uploaded(manifest, reports, [])
    timestamps = {name: report.last_timestamp for name, report in reports.items() if report.size >= reusable_bytes}
    yield lambda: batches.retire(manifest, pool, timestamps)


# What is taken in hand


class Clock:
    """Stands in for the module `time`: moves a little with each look, and as the test says."""

    def __init__(self) -> None:
        self.now_us = 1_760_000_000_000_000
        self.monotonic_us = 0
        self.perf_counter = time.perf_counter
        self.time = lambda: self.now_us / 1e6

    def token_hex(self, size: int) -> str:
        """Stands in for the module `secrets`: the random part of a batch id."""
        return "0" * (2 * size)

    def time_ns(self) -> int:
        self.now_us += 7
        return self.now_us * 1000

    def monotonic(self) -> float:
        self.monotonic_us += 7
        return self.monotonic_us / 1e6


class _Killed(BaseException):
    """Ends the thread of a worker that was killed, at its next operation."""


class _Turn:
    """Lets a thread do one operation at a time."""

    current = threading.local()

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting = False
        self._permits = 0.0
        self._killed = False
        self.jobs = 0  # given and not yet done

    def started(self) -> None:
        self.current.turn = self

    def done(self) -> None:
        with self._changed:
            self.jobs -= 1
            self._changed.notify_all()

    def wait(self) -> None:
        """In the thread: ahead of an operation."""
        with self._changed:
            self._waiting = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._permits > 0 or self._killed)
            self._waiting = False
            if self._killed:
                raise _Killed
            self._permits -= 1

    def step(self) -> None:
        """From outside: the thread does its next operation, if it has one, and stops ahead of the one after."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or not self.jobs)
            if self.jobs:
                self._permits = 1
                self._changed.notify_all()
                self._changed.wait_for(lambda: not self._permits and (self._waiting or not self.jobs))

    def open(self) -> None:
        with self._changed:
            self._permits = float("inf")
            self._changed.notify_all()

    def kill(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or not self.jobs)
            self._killed = True
            self._changed.notify_all()


class _SteppedPipeline(Pipeline):
    """The real pipeline, whose thread waits for its turn ahead of each operation."""

    def __init__(self, make: Callable[[], Segment], seal: Callable[[Segment], None]) -> None:
        self.turn = _Turn()
        self.turn.jobs = 1

        def in_turn(job: Callable[..., Any]) -> Callable[..., Any]:
            def run(*arguments: Any) -> Any:
                self.turn.started()
                try:
                    self.turn.wait()
                    return job(*arguments)
                finally:
                    self.turn.done()

            return run

        super().__init__(in_turn(make), in_turn(seal))

    def take(self) -> Segment:
        while self._ready.empty() and self.turn.jobs:
            self.turn.step()
        self.turn.jobs += 1
        return super().take()

    def complete(self, segment: Segment) -> None:
        self.turn.jobs += 1
        super().complete(segment)

    def close(self) -> None:
        self.turn.open()
        super().close()


# The run


class Plan(NamedTuple):
    """What a run is made of."""

    seed: int
    sync_mode: SyncMode = "fdatasync"
    recycle: bool = True
    steps: int = 160
    slots: int = 1
    # Sizes of entries: of any size; all the same; or whole sectors that begin and end at a sector's border.
    sizes: str = "any"
    jumps: bool = False  # the clock steps back by an hour, so that it alone is no border


class Run:
    """Carries out a plan below a directory and keeps its recording."""

    max_size_bytes = 6144

    def __init__(self, base: str, plan: Plan) -> None:
        self.plan = plan
        self.rng = random.Random(plan.seed)
        self.disk = RecordingDisk(base)
        self.directory = WALDirectory(os.path.join(base, FOLDER), self.disk)
        self.clock = Clock()
        self.recycled = 0
        self._options = WALOptions(
            sync_mode=plan.sync_mode,
            async_interval_seconds=1e6,  # syncs come when the schedule says so
            max_size_bytes=self.max_size_bytes,
            flush_max_age_seconds=0.0,
            recycle=plan.recycle,
            free_segments=3,
        )
        self._writers: dict[int, WALWriter] = {}
        self._pending: dict[int, list[int]] = {}  # acknowledged, not known to be synced: the `async` mode
        self._pool = FreePool(self.directory, 3) if plan.recycle else None
        self._batches = Batches(self.directory, NODE, Counters(1).uploader, "file:///x", "arc")
        self._shipping: Iterator[Callable[[], None]] = iter(())
        self._number = 0

    def record(self) -> RecordingDisk:
        with (
            mock.patch.multiple(writer_module, time=self.clock, Pipeline=_SteppedPipeline),
            mock.patch.object(segment_module, "time", self.clock),
            mock.patch.multiple(batch_module, time=self.clock, secrets=self.clock),
            mock.patch.object(recovery_module, "_PARALLEL_FILES", 1),
        ):
            try:
                self._run()
            finally:
                self.disk.before = lambda: None
                for writer in self._writers.values():
                    _kill(writer)
                self.disk.close_all()
        return self.disk

    def _run(self) -> None:
        rng = self.rng
        self.disk.before = self._let_others_work
        self.directory.make()
        recover_at_start(self.directory)
        for slot in range(1, self.plan.slots + 1):
            self._open(slot, 0)
        actions = {
            self._commit: 40,
            self._upload: 25,
            self._tick: 8,
            self._sync: 6 if self.plan.sync_mode == "async" else 0,
            self._kill_worker: 2,
            self._restart: 1,
            self._move_clock: 2,
        }
        for action in rng.choices(list(actions), list(actions.values()), k=self.plan.steps):
            action()

    def _open(self, slot: int, last_timestamp: int) -> None:
        self._pending.setdefault(slot, [])
        self._writers[slot] = WALWriter(
            self.directory, slot, self._options, node=NODE.node, last_timestamp=last_timestamp
        )

    def _commit(self) -> None:
        slot = self.rng.choice(list(self._writers))
        writer = self._writers[slot]
        group = Group()
        numbers = []
        offset = writer.segment.offset
        for _ in range(self.rng.randint(1, 4)):
            self._number += 1
            size = self._entry_size(offset)
            offset += size
            numbers.append(self._number)
            group.add(PREFIX, make_body(self._number, size), 1, writer.next_timestamp())
        self.disk.note("sent", numbers)
        rotations = writer.stats.rotations
        writer.commit(group)
        if self.plan.sync_mode in ("fsync", "fdatasync"):
            self.disk.note("acknowledged", numbers)
            return
        if writer.stats.rotations != rotations:  # a segment is left behind synced
            self._note_synced(slot)
        self._pending[slot] += numbers

    def _entry_size(self, offset: int) -> int:
        if self.plan.sizes == "same":
            return 300
        if self.plan.sizes == "sectors":
            return (
                -offset % 512 + self.rng.choice((512, 512, 1024))
                if offset % 512 > 400 or offset % 512 == 0
                else (-offset % 512)
            )
        return self.rng.choice((100, 130, 300, 700, 1500))

    def _tick(self) -> None:
        self.rng.choice(list(self._writers.values())).tick()

    def _sync(self) -> None:
        slot = self.rng.choice(list(self._writers))
        background = self._writers[slot]._background
        assert background is not None
        background.leave()
        self._note_synced(slot)

    def _note_synced(self, slot: int) -> None:
        if self.plan.sync_mode == "async":
            self.disk.note("acknowledged", self._pending[slot])
        self._pending[slot] = []

    def _upload(self) -> None:
        step = next(self._shipping, None)
        if step is not None:
            step()
            self.clock.now_us += 700_000  # a file is written over only in a later second than its last
            return
        manifest = self._batches.plan()
        if manifest is not None:
            self._shipping = shipping(
                self.directory,
                self._batches,
                manifest,
                lambda shipped: self.disk.note("shipped", shipped),
                self._pool,
                self.max_size_bytes // 2,
            )

    def _kill_worker(self) -> None:
        slot = self.rng.choice(list(self._writers))
        _kill(self._writers.pop(slot))
        summary = recover_slot(self.directory, slot)
        self._note_synced(slot)
        self._open(slot, summary.last_timestamp(slot))

    def _restart(self) -> None:
        slots = list(self._writers)
        for slot in slots:
            writer = self._writers.pop(slot)
            if self.rng.random() < 0.5:
                writer.close()
            else:
                _kill(writer)
        self._shipping = iter(())
        self.directory.make()
        summary = recover_at_start(self.directory)
        for slot in slots:
            self._note_synced(slot)
        for manifest in self._batches.unfinished():
            for step in shipping(
                self.directory, self._batches, manifest, lambda shipped: self.disk.note("shipped", shipped), None
            ):
                step()
        for slot in slots:
            self._open(slot, summary.last_timestamp(slot))

    def _move_clock(self) -> None:
        self.clock.now_us += self.rng.choice(
            (-3_600_000_000 if self.plan.jumps else -3_000_000, -5_000, 5_000, 2_000_000)
        )

    def _let_others_work(self) -> None:
        """Ahead of each operation of this thread: the writers' own threads may do some of theirs."""
        turn = getattr(_Turn.current, "turn", None)
        if turn is not None:
            turn.wait()
            return
        for writer in list(self._writers.values()):
            while self.rng.random() < 0.4:
                pipeline = writer._pipeline
                assert isinstance(pipeline, _SteppedPipeline)
                pipeline.turn.step()


def _kill(writer: WALWriter) -> None:
    """Ends a writer as SIGKILL ends its process: nothing more is done, nothing is closed."""
    pipeline = writer._pipeline
    assert isinstance(pipeline, _SteppedPipeline)
    pipeline.turn.kill()
    pipeline._jobs.put("stop")
    if writer._background is not None:
        writer._background._stop.set()
        writer._background._wake.set()


# The judgement


class Expectation(NamedTuple):
    """What the world knew when the power went."""

    sent: frozenset[int]
    acknowledged: frozenset[int]
    store: Store
    starts_synced: bool  # whether a segment's name is never there without its start entry


def expectation(disk: RecordingDisk, after: int, plan: Plan) -> Expectation:
    """From the notes among the first `after` records."""
    sent: set[int] = set()
    acknowledged: set[int] = set()
    store: Store = {}
    for note in disk.log[:after]:
        kind = getattr(note, "kind", "")
        if kind == "sent":
            sent.update(note.value)  # type: ignore[union-attr]
        elif kind == "acknowledged":
            acknowledged.update(note.value)  # type: ignore[union-attr]
        elif kind == "shipped":
            store.update([note.value])  # type: ignore[union-attr]
    return Expectation(frozenset(sent), frozenset(acknowledged), store, plan.sync_mode != "off")


def judge(directory: WALDirectory, expected: Expectation) -> None:
    """Starts up, ships all there is, and compares with what the world knows. AssertionError says what is wrong."""
    directory.make()
    if expected.starts_synced:
        _check_starts(directory)
    recover_at_start(directory)
    first = _contents(directory)
    recover_at_start(directory)
    assert _contents(directory) == first, "recovering again gave something else"
    store = dict(expected.store)
    batches = Batches(directory, Node(NODE.node, 2), Counters(1).uploader, "file:///x", "arc")
    for manifest in batches.unfinished():
        ship(directory, batches, manifest, store, None)
    while (planned := batches.plan()) is not None:
        ship(directory, batches, planned, store, None)
    numbers = [number for batch in store.values() for number in batch]
    found = set(numbers)
    twice = {number for number in found if numbers.count(number) > 1} if len(found) < len(numbers) else set()
    assert not twice, f"entries {sorted(twice)} are there twice"
    assert expected.acknowledged <= found, f"acknowledged and lost: {sorted(expected.acknowledged - found)}"
    assert found <= expected.sent, f"never sent: {sorted(found - expected.sent)}"


def _check_starts(directory: WALDirectory) -> None:
    """A file in service never shows a former life, and is never empty."""
    for file in directory.segments(ACTIVE):
        try:
            scan = SegmentScan(file.path)
        except NotAWAL as error:
            raise AssertionError(f"{file.filename} is in service, but is no log") from error
        for _ in scan:
            break
        start = scan.report.start
        assert start is not None, f"{file.filename} is in service without a start entry"
        assert (start.slot, start.seq) == file.name[::2], f"{file.filename} is in service with another's start entry"


def _contents(directory: WALDirectory) -> dict[str, list[tuple[int, int]]]:
    assert not directory.segments(ACTIVE), "a file was left unrecovered"
    contents = {}
    for file in directory.segments(SEALED):
        try:
            scan = SegmentScan(file.path)
        except NotAWAL:
            contents[file.filename] = []
            continue
        contents[file.filename] = entries = [(entry.timestamp, number_of(entry)) for entry in scan]
        report = scan.report
        stamps = [stamp for stamp, _ in entries]
        assert stamps == sorted(set(stamps)), f"timestamps of {file.filename} do not increase"
        if report.end is not None and report.end.recovered:
            after_end = report.size - report.end_offset
            assert not after_end, f"{file.filename} was archived with {after_end} bytes behind its end"
    return contents
