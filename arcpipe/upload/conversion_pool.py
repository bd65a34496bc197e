"""The threads that convert and write, and the bounds on their work: jobs, bytes, and open files.

`InHand.begin` blocks the calling thread until there is room. It decides when a job begins, and never its content: the
same batch makes the same files however the threads are timed. This module must not know tables or Parquet.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from queue import SimpleQueue
from threading import Condition, Lock, Thread

Job = Callable[[], None]


class Pool:
    """Threads that run jobs in the order in which they come. Exceptions of jobs go to `on_error`."""

    def __init__(self, threads: int, name: str, on_error: Callable[[BaseException], None]) -> None:
        self._on_error = on_error
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self._threads = [Thread(target=self._work, name=f"{name}_{number}") for number in range(threads)]

    def start(self) -> None:
        """Start all threads, so that no job ever waits for a thread that cannot start. Raises OSError."""
        started: list[Thread] = []
        try:
            for thread in self._threads:
                thread.start()
                started.append(thread)
        except RuntimeError as error:
            self._threads = started
            self.stop()
            raise OSError(
                errno.EAGAIN, f"cannot start thread {len(started) + 1} to convert with: raise the limit of tasks"
            ) from error

    def submit(self, job: Job) -> None:
        self._jobs.put(job)

    def stop(self) -> None:
        """Wait until all jobs are done and the threads have ended."""
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                job()
            except BaseException as error:  # a thread that ended would leave its jobs undone
                self._on_error(error)
            del job  # and what it holds


class Lane:
    """Runs jobs one at a time, in the order in which they come, on a shared pool."""

    __slots__ = ("_lock", "_pool", "_running", "_waiting")

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._lock = Lock()
        self._waiting: list[Job] = []  # few; an empty deque has 600 bytes
        self._running = False

    def submit(self, job: Job) -> None:
        with self._lock:
            self._waiting.append(job)
            if self._running:
                return
            self._running = True
        self._pool.submit(self._run)

    def _run(self) -> None:
        with self._lock:
            job = self._waiting.pop(0)
        try:
            job()
        finally:
            with self._lock:
                self._running = bool(self._waiting)
                if self._running:  # after the jobs of other lanes
                    self._pool.submit(self._run)


class FileCost:
    """The cost of one table's open files: now, and at most until all begun jobs are done."""

    __slots__ = ("_jobs", "_used")

    def __init__(self) -> None:
        self._used = 0
        self._jobs: list[tuple[int, int]] = []  # growth, and the bound that holds from then on

    @property
    def most(self) -> int:
        if not self._jobs:
            return self._used
        growth = sum(growth for growth, _ in self._jobs)
        return max(self._used, min(self._used + growth, max(bound for _, bound in self._jobs)))

    def begin(self, growth: int, bound: int) -> int:
        """Count a job that may add `growth` and keeps all files within `bound`; return what they may cost more now."""
        before = self.most
        self._jobs.append((growth, bound))
        return self.most - before

    def end(self, used: int) -> int:
        """Count the oldest job as done, after which files cost `used`; return what they may cost more now."""
        before = self.most
        del self._jobs[0]
        self._used = used
        return self.most - before


class InHand:
    """Count the work in hand, and make the calling thread wait until there is room for more."""

    def __init__(self, most_open: int, most_jobs: int, most_bytes: int) -> None:
        """Start with nothing.

        Args:
            most_open: bytes of memory that open files may cost.
            most_jobs: jobs that were begun and are not done.
            most_bytes: bytes of memory that these may cost, besides open files.
        """
        self._most_open = most_open
        self._most_jobs = most_jobs
        self._most_bytes = most_bytes
        self._idle = Condition()
        self._jobs = 0
        self._bytes = 0
        self._open = 0
        self._bundles = 0

    def begin(self, cost: int) -> None:
        """Count a job that costs `cost` bytes, once there is room for it."""
        self._begin(cost, 0)

    def begin_writing(self, cost: int, files: FileCost, growth: int, bound: int) -> None:
        """Count a job that may also open files. `end_writing` ends it."""
        with self._idle:
            more = files.begin(growth, bound)
        self._begin(cost, more)

    def _begin(self, cost: int, more: int) -> None:
        def has_room() -> bool:
            return not self._jobs or (
                self._jobs < self._most_jobs
                and self._bytes + cost <= self._most_bytes
                and (more <= 0 or self._open + more <= self._most_open)
            )

        with self._idle:
            self._idle.wait_for(has_room)
            self._jobs += 1
            self._bytes += cost
            self._open += more

    def change(self, cost: int) -> None:
        """Count `cost` bytes more, or less, for a job that goes on."""
        with self._idle:
            self._bytes += cost
            self._idle.notify_all()

    def end(self, cost: int) -> None:
        with self._idle:
            self._jobs -= 1
            self._bytes -= cost
            self._idle.notify_all()

    def end_writing(self, cost: int, files: FileCost, used: int) -> None:
        """Count a job of `begin_writing` as done; the table's open files cost `used`."""
        with self._idle:
            self._open += files.end(used)
            self._jobs -= 1
            self._bytes -= cost
            self._idle.notify_all()

    def wait(self) -> None:
        """Wait until all jobs are done."""
        with self._idle:
            self._idle.wait_for(lambda: not self._jobs)

    def end_bundle(self, cost: int) -> None:
        with self._idle:
            self._bundles += 1
        self.end(cost)

    def wait_for_bundle(self, number: int) -> None:
        """Wait until bundle `number`, counted from 1, is done."""
        with self._idle:
            self._idle.wait_for(lambda: self._bundles >= number)
