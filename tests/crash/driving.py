"""Hands on the real program: a loop and a thread that a test turns, and a worker under its group commit.

Everything that is driven is arcpipe's own.
"""

from __future__ import annotations

import math
import queue
import threading
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

from arcpipe.codec.envelope import KIND_COLUMNAR
from arcpipe.ingest.endpoints.write import write_failure
from arcpipe.wal.directory import WALDirectory
from arcpipe.wal.format import KeyedPrefix, envelope_prefix
from arcpipe.wal.group_commit import COMMIT_SECONDS, group_commit
from arcpipe.wal.pipeline import Pipeline
from arcpipe.wal.segment import Segment
from arcpipe.wal.writer import WALOptions, WALWriter
from tests.crash.entries import key_of, make_body

_PATIENCE_SECONDS = 60.0  # nothing here waits for long, unless it hangs


# The thread that makes and seals segments


class Killed(BaseException):
    """Ends the thread of a worker that was killed, at its next operation."""


class Turn:
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
                raise Killed
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


class SteppedPipeline(Pipeline):
    """The real pipeline, whose thread waits for its turn ahead of each operation."""

    def __init__(self, make: Callable[[], Segment], seal: Callable[[Segment], None]) -> None:
        self.turn = Turn()
        self.turn.jobs = 1

        def in_turn(job: Callable[..., Any], again: bool) -> Callable[..., Any]:
            def run(*arguments: Any) -> Any:
                self.turn.started()
                try:
                    self.turn.wait()
                    result = job(*arguments)
                except OSError:
                    if not again:
                        self.turn.done()
                    raise
                except BaseException:
                    self.turn.done()
                    raise
                self.turn.done()
                return result

            return run

        super().__init__(in_turn(make, False), in_turn(seal, True))

    def _take_ready(self) -> Segment | BaseException:
        while self._ready.empty() and self.turn.jobs:
            self.turn.step()
        return super()._take_ready()

    def _next(self) -> Segment | BaseException:
        segment = self._take_ready()
        self.turn.jobs += 1  # only now: there is no other before it is asked for
        self._jobs.put("make")
        return segment

    def make_instead(self, make: Callable[[], Segment]) -> Segment:
        segment = super().make_instead(make)
        self.turn.jobs += 1
        return segment

    def seal_later(self, segment: Segment) -> None:
        self.turn.jobs += 1
        super().seal_later(segment)

    def close(self) -> None:
        self.turn.open()
        super().close()

    def kill(self) -> None:
        self.turn.kill()
        self._jobs.put("stop")


# The worker


class _Timer:
    def __init__(self, delay: float, call: Callable[[], None]) -> None:
        self.delay = delay
        self._call = call
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True

    def fire(self) -> None:
        if not self.cancelled:
            self.cancelled = True
            self._call()


class TurnedLoop:
    """The part of an event loop that a group commit asks for; it turns when `run` is called."""

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[tuple[Callable[..., None], tuple[Any, ...]]] = queue.SimpleQueue()
        self._timers: list[_Timer] = []

    def call_soon(self, call: Callable[..., None], *arguments: Any) -> None:
        self._calls.put((call, arguments))

    call_soon_threadsafe = call_soon

    def call_later(self, delay: float, call: Callable[..., None], *arguments: Any) -> _Timer:
        self._timers.append(_Timer(delay, lambda: call(*arguments)))
        return self._timers[-1]

    def run(self, is_waiting: Callable[[], bool] = lambda: False) -> None:
        """Turns until nothing is left to call, nothing is waited for, and no group waits for more entries."""
        while True:
            if not is_waiting() and self._calls.empty():
                self.fire_timers(COMMIT_SECONDS)
                if not is_waiting() and self._calls.empty():
                    return
            call, arguments = self._calls.get(timeout=_PATIENCE_SECONDS)
            call(*arguments)

    def fire_timers(self, most_seconds: float = math.inf) -> None:
        """Let the time come of timers, of all or of those that are as short as this."""
        due = [timer for timer in self._timers if timer.delay <= most_seconds]
        self._timers = [timer for timer in self._timers if timer.delay > most_seconds]
        for timer in due:
            timer.fire()


class Worker:
    """One slot's writer under the real group commit. `on_answer(numbers, response)`: None acknowledges."""

    def __init__(
        self,
        directory: WALDirectory,
        slot: int,
        options: WALOptions,
        node: str,
        last_timestamp: int,
        on_answer: Callable[[list[int], bytes | None], None],
    ) -> None:
        """Raises OSError: the directory cannot be read."""
        self.writer = WALWriter(directory, slot, options, node=node, last_timestamp=last_timestamp, wait_for_disk=True)
        self._loop = TurnedLoop()
        self._prefix = envelope_prefix(KIND_COLUMNAR, "db")
        self._on_answer = on_answer
        self._unsynced: list[int] = []  # acknowledged, and not on the disk as far as we know: the `async` mode
        self.has_keys = False
        self._keyed_prefix = lru_cache(partial(KeyedPrefix, self._prefix, None))  # by the length of the key
        loop: Any = self._loop
        self._commit: Any = group_commit(self.writer, loop, self._committed, self._crashed)

    def send(self, entries: list[tuple[int, int]]) -> None:
        """Numbers and sizes of entries that arrive together; returns when they are answered."""
        for number, size in entries:
            key = key_of(number) if self.has_keys else b""
            prefix = self._keyed_prefix(len(key)) if key else self._prefix
            self._commit.append(prefix, make_body(number, size), 1, number, key)
        self._loop.run(self._is_committing)

    def flush(self) -> None:
        """Make the entries that wait in memory old enough."""
        self._loop.fire_timers()
        self._loop.run(self._is_committing)

    def tick(self) -> None:
        self.writer.tick()

    def sync(self) -> None:
        """The background sync of the `async` mode is due."""
        if self.writer._background is not None:
            self.writer._background.sync_now()

    def take_synced(self) -> list[int]:
        """Numbers acknowledged in `async` mode that are no longer kept in memory for the next sync."""
        background = self.writer._background
        kept = sum(group.entries for group in background.retained) if background is not None else 0
        count = len(self._unsynced) - kept
        synced, self._unsynced = self._unsynced[:count], self._unsynced[count:]
        return synced

    @property
    def offset(self) -> int:
        return self.writer.current.offset if self.writer.current is not None else 0

    @property
    def turn(self) -> Turn:
        pipeline = self.writer._pipeline
        assert isinstance(pipeline, SteppedPipeline)
        return pipeline.turn

    def close(self) -> None:
        for _ in range(4):  # as `drain`
            self.flush()
        self._commit.close()

    def kill(self) -> list[int]:
        """Ends it as SIGKILL ends its process: nothing more is done, nothing is closed. What only it had in memory."""
        pipeline = self.writer._pipeline
        assert isinstance(pipeline, SteppedPipeline)
        pipeline.kill()
        self._commit._thread._groups.put(None)
        background = self.writer._background
        if background is not None:
            background._stop.set()
            background._hurry.set()
            background._wake.set()
        return self._unsynced

    def _is_committing(self) -> bool:
        return bool(self._commit._committing)

    def _committed(self, waiters: list[int], error: OSError | None) -> None:
        if not waiters:
            return
        if error is None and self.writer._background is not None:
            self._unsynced += waiters
        self._on_answer(waiters, None if error is None else write_failure(error))

    def _crashed(self, error: BaseException) -> None:
        raise AssertionError("the commit thread ended") from error
