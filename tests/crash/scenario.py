"""A program run on a recording, failing disk: workers, the uploader, clients, deaths of single processes, restarts.

Everything that runs is arcpipe's own. Three things are taken in hand (`driving`), so that a seed always gives the same
recording: the clock and random numbers; the threads that make and seal segments, which do an operation when the
schedule says so and at no other time; and the object store, which is in memory and outside of the disk.

What the world learns is noted in the recording: `sent`, `answered` (acknowledged), `durable` (acknowledged, and the
promise holds after a power cut too), `refused` ("nothing was written"), `doubted` ("may have been written"), `put` and
`deleted` (objects), `recovered` (slots), `ended` (an orderly stop). A client sends again what was refused, as told.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import NamedTuple
from unittest import mock

from arcpipe.upload import batches as batches_module
from arcpipe.upload import conversion_jobs as conversion_jobs_module
from arcpipe.upload import look_ahead as look_ahead_module
from arcpipe.upload import puts as puts_module
from arcpipe.upload import spares as spares_module
from arcpipe.wal import background_sync as background_sync_module
from arcpipe.wal import directory as directory_module
from arcpipe.wal import format as format_module
from arcpipe.wal import group_commit as group_commit_module
from arcpipe.wal import recovery as recovery_module
from arcpipe.wal import segment as segment_module
from arcpipe.wal import source as source_module
from arcpipe.wal import stamps as stamps_module
from arcpipe.wal import writer as writer_module
from arcpipe.wal.directory import ACTIVE, WALDirectory
from arcpipe.wal.recovery import recover_at_start, recover_slot
from arcpipe.wal.writer import SyncMode, WALOptions
from tests.crash.driving import SteppedPipeline, Turn, Worker
from tests.crash.entries import MANY_COLUMNS, PREFIX, key_of, make_body, number_of
from tests.crash.recording import CHANGES, Fault, RecordingDisk
from tests.crash.shipping import InlineExecutor, InlinePool, MemoryStore, Shipping, StoreFault, Unbounded
from tests.crash.system_calls import mounted
from tests.support.wal_doubles import Clock

__all__ = ["FOLDER", "PREFIX", "Plan", "Run", "make_body", "number_of"]

FOLDER = "made/on/start/wal"
SURE = b"nothing was written"
# A process that cannot start is started again; after this many times the run ends.
_STARTS = 8
# Turns of the uploader's loop that a put takes at most: in a third of that, the next batch is converted.
_PUT_TURNS = 150


class Plan(NamedTuple):
    """The parameters of a run."""

    seed: int
    sync_mode: SyncMode = "fdatasync"
    recycle: bool = True
    steps: int = 160
    slots: int = 1
    # Sizes of entries: of any size; all the same; or whole sectors that begin and end at a sector's border.
    sizes: str = "any"
    jumps: bool = False  # the clock steps back by an hour, so that it alone is no border
    # Segments of a batch, where the next one is converted while one is put; 0: all that wait, one batch at a time.
    ahead: int = 0
    keyed: bool = False  # every second entry has a key, and its client may send it again, whatever the answer was


class _Down(Exception):
    """The program does not come up any more: the run is over."""


class Run:
    """Carries out a plan and keeps its recording."""

    max_size_bytes = 6144

    def __init__(self, plan: Plan, fault: Fault | None = None, store_fault: StoreFault | None = None) -> None:
        self.plan = plan
        self.fault = fault
        self.rng = random.Random(plan.seed)
        self.disk = RecordingDisk(seed=f"{plan.seed} {fault!r}")  # each fault leaves something else
        self.directory = WALDirectory(os.path.join(self.disk.base, FOLDER))
        self.clock = Clock()
        self._options = WALOptions(
            sync_mode=plan.sync_mode,
            async_interval_seconds=1e6,  # syncs come when the schedule says so
            max_size_bytes=self.max_size_bytes,
            flush_max_age_seconds=0.0,
            recycle=plan.recycle,
            free_segments=3,
        )
        self._workers: dict[int, Worker] = {}
        self._last_timestamps = dict.fromkeys(range(1, plan.slots + 1), 0)
        self._store = MemoryStore()
        self._store.fault = store_fault
        self._store.on_put = lambda key, content: self.disk.note("put", (key, content))
        self._store.on_delete = lambda key: self.disk.note("deleted", key)
        if plan.ahead:
            latency = random.Random(plan.seed)
            self._store.turns = lambda: latency.randrange(_PUT_TURNS)
        self._shipping: Shipping
        self._number = MANY_COLUMNS if plan.ahead else 0
        self._refused: list[tuple[int, int]] = []  # numbers and sizes that clients are to send again
        self._sizes: dict[int, int] = {}
        self._is_nested = False

    def record(self) -> RecordingDisk:
        """Returns the disk with its recording; what it fails at is part of that."""
        with mounted(self.disk), held(self.clock, self.plan.seed):
            self._shipping = Shipping(self.directory, self._store, self.plan.recycle, self.plan.ahead)
            self.disk.before = self._let_others_work
            if self.fault is not None:
                self.disk.faults.append(self.fault)
            try:
                self._run()
            except _Down:
                pass
            finally:
                self.disk.before = lambda: None
                for worker in self._workers.values():
                    worker.kill()
                self._shipping.die()
        return self.disk

    def _run(self) -> None:
        rng = self.rng
        self._start()
        actions = {
            self._commit: 40,
            self._upload: 10 if not self.plan.ahead else 2,  # so that several batches wait
            self._tick: 8,
            self._sync: 6 if self.plan.sync_mode == "async" else 0,
            self._flush: 20 if self.plan.sync_mode == "off" else 0,
            self._kill_worker: 2,
            self._kill_uploader: 1,
            self._restart: 1,
            self._evict: 1,
            self._move_clock: 2,
        }
        for action in rng.choices(list(actions), list(actions.values()), k=self.plan.steps):
            try:
                action()
            except OSError:
                # What only a look at the disk raises concerns nobody but who looked; a process that dies of it is
                # started again by the next action.
                continue
        self._end()

    def _end(self) -> None:
        """An orderly stop. What was refused is sent again until it is taken, if the disk has recovered."""
        for _ in range(4):
            self._retry_refused()
        for slot in list(self._workers):
            self._workers.pop(slot).close()
        if not self._refused and self._is_well():
            self.disk.note("ended", None)

    def _is_well(self) -> bool:
        return self.fault is None or self.fault.struck >= self.fault.times or not self.fault.struck

    def _start(self) -> None:
        """The whole server, again and again if it does not come up."""
        for _ in range(_STARTS):
            try:
                self.directory.make()
                self._shipping.node = self.directory.next_boot()
                summary = recover_at_start(self.directory)
            except OSError:
                continue
            self.disk.note("recovered", list(self._last_timestamps))
            for slot in self._last_timestamps:
                self._last_timestamps[slot] = max(summary.last_timestamp(slot), 0)
            for slot in self._last_timestamps:
                self._open(slot)
            return
        raise _Down

    def _open(self, slot: int) -> None:
        try:
            self._workers[slot] = Worker(
                self.directory, slot, self._options, self._shipping.node.node, self._last_timestamps[slot], self._answer
            )
        except OSError:  # the supervisor starts it again later
            self._workers.pop(slot, None)
        else:
            self._workers[slot].has_keys = self.plan.keyed

    def _pick(self) -> Worker | None:
        slot = self.rng.choice(list(self._last_timestamps))
        if slot not in self._workers:
            self._open(slot)
        return self._workers.get(slot)

    # Actions

    def _commit(self) -> None:
        worker = self._pick()
        if worker is None:
            return
        again = self._refused if self.rng.random() < 0.7 else []
        if again:
            self._refused = []
        entries = list(again)
        offset = worker.offset
        for _ in range(self.rng.randint(1, 4)):
            self._number += 1
            size = self._entry_size(offset)
            offset += size
            self._sizes[self._number] = size
            entries.append((self._number, size))
        keyed = [number for number in self._sizes if key_of(number)] if self.plan.keyed else []
        if keyed and self.rng.random() < 0.5:
            entries += [(number, self._sizes[number]) for number in self.rng.choices(keyed, k=3)]
        self._send(worker, entries)

    def _send(self, worker: Worker, entries: list[tuple[int, int]]) -> None:
        self.disk.note("sent", [number for number, _ in entries])
        worker.send(entries)
        self._note_synced(worker)

    def _answer(self, numbers: list[int], response: bytes | None) -> None:
        if response is None:
            self.disk.note("answered", numbers)
            if self.plan.sync_mode in ("fsync", "fdatasync"):
                self.disk.note("durable", numbers)
        elif SURE in response:
            self.disk.note("refused", numbers)
            self._refused += [(number, self._sizes[number]) for number in numbers]
        else:
            self.disk.note("doubted", numbers)

    def _retry_refused(self) -> None:
        worker = self._pick()
        if self._refused and worker is not None:
            again, self._refused = self._refused, []
            self._send(worker, again)

    def _entry_size(self, offset: int) -> int:
        if self.plan.sizes == "same":
            return 300
        if self.plan.sizes == "sectors":
            return (
                -offset % 512 + self.rng.choice((512, 512, 1024))
                if offset % 512 > 400 or offset % 512 == 0
                else (-offset % 512)
            )
        return self.rng.choice((130, 160, 300, 700, 1500))

    def _tick(self) -> None:
        worker = self._pick()
        if worker is not None:
            worker.tick()
            self._note_synced(worker)

    def _flush(self) -> None:
        worker = self._pick()
        if worker is not None:
            worker.flush()

    def _sync(self) -> None:
        worker = self._pick()
        if worker is not None:
            worker.sync()
            self._note_synced(worker)

    def _note_synced(self, worker: Worker) -> None:
        if synced := worker.take_synced():
            self.disk.note("durable", synced)

    def _upload(self) -> None:
        for _ in range(6 if self.plan.ahead else 1):
            self._shipping.work()
        self.clock.now_us += 700_000  # a file is written over only in a later second than its last

    def _kill_uploader(self) -> None:
        done = len(self.disk.log)
        self._shipping.die()
        assert len(self.disk.log) == done, f"BUG: a process did something after its death: {self.disk.log[done:]}"

    def _kill_worker(self) -> None:
        slot = self.rng.choice(list(self._last_timestamps))
        worker = self._workers.pop(slot, None)
        unsynced = worker.kill() if worker is not None else []
        summary = recover_slot(self.directory, slot, self.directory.segments(ACTIVE, slot))
        self.disk.note("recovered", [slot])
        self._last_timestamps[slot] = max(self._last_timestamps[slot], summary.last_timestamp(slot))
        # Recovery syncs what it completes; of a disk that has failed, nobody knows what it finds.
        if self.fault is None and unsynced:
            self.disk.note("durable", unsynced)
        self._open(slot)

    def _restart(self) -> None:
        for slot in list(self._workers):
            worker = self._workers.pop(slot)
            if self.rng.random() < 0.5:
                worker.close()
                self._note_synced(worker)
            else:
                worker.kill()
        self._shipping.die()
        self._start()

    def _evict(self) -> None:
        self.disk.evict()

    def _move_clock(self) -> None:
        self.clock.now_us += self.rng.choice(
            (-3_600_000_000 if self.plan.jumps else -3_000_000, -5_000, 5_000, 2_000_000)
        )

    def _let_others_work(self) -> None:
        """Let the workers' own threads do some of their work before a change.

        While the uploader works, which is another process, others may commit.
        """
        turn = getattr(Turn.current, "turn", None)
        if turn is not None:
            turn.wait()
            return
        for worker in list(self._workers.values()):
            while self.rng.random() < 0.4:
                worker.turn.step()


@contextmanager
def held(clock: Clock, seed: int) -> Iterator[None]:
    """The clock, the threads and the random numbers are in our hands meanwhile."""
    rng = random.Random(seed)
    with ExitStack() as patches:
        patches.enter_context(mock.patch.multiple(writer_module, time=clock, Pipeline=SteppedPipeline))
        for module in (segment_module, stamps_module, batches_module, group_commit_module, background_sync_module):
            patches.enter_context(mock.patch.object(module, "time", clock))
        patches.enter_context(hurried())
        patches.enter_context(mock.patch("arcpipe.wal.pipeline._RETRY_SECONDS", 0.0))
        secrets = mock.Mock(token_bytes=rng.randbytes, token_hex=lambda count: rng.randbytes(count).hex())
        for module in (directory_module, format_module, batches_module):
            patches.enter_context(mock.patch.object(module, "secrets", secrets))
        yield


@contextmanager
def hurried() -> Iterator[None]:
    """Have recovery and the conversion work in this thread, wait for no disk, and read little at once.

    Its reads and the spare files are as small as the segments and batches of these tests.
    """
    spares = {"manifest": ("spare-1", 4096), "journal": ("spare-2", 8192)}
    with (
        mock.patch.object(recovery_module, "ThreadPoolExecutor", InlineExecutor),
        mock.patch.object(recovery_module, "_PAUSES_SECONDS", (0.0, 0.0)),
        mock.patch.dict(spares_module.SPARES, spares),
        mock.patch.object(conversion_jobs_module, "Pool", InlinePool),
        mock.patch.object(puts_module, "threading", Unbounded),
        mock.patch.object(look_ahead_module, "_POLL_SECONDS", 0.0),  # a look in each turn, and not by the clock
        mock.patch.multiple(source_module, WINDOW_BYTES=2048, _PIECE_BYTES=1024, _BLOCK_BYTES=512),
    ):
        yield


def changes_of(disk: RecordingDisk) -> int:
    """Count the calls at which a fault could be planted."""
    return sum(disk.calls[kind] for kind in CHANGES)
