"""The processes of an instance: how each is forked, and the heartbeats by which it is watched."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from setproctitle import setproctitle

from arcpipe import logs
from arcpipe.access.reload import Changeable
from arcpipe.counters import Committer, Compaction, Counters, Uploader, Worker
from arcpipe.counters import Node as NodeBlock
from arcpipe.ingest.worker import IngestWorker
from arcpipe.libraries import loading
from arcpipe.supervisor.child import Child, Pulse, fork
from arcpipe.supervisor.listeners import Listeners
from arcpipe.supervisor.signals import SIGNALS
from arcpipe.supervisor.slots import Upkeep
from arcpipe.wal.directory import NodeIdentity, WALDirectory

if TYPE_CHECKING:
    from arcpipe.config.settings import Settings

# Heartbeat timeouts, after which a child counts as hung. A worker sends a heartbeat four times a second, the uploader
# twice.
_WORKER_HUNG_SECONDS: Final = 10.0
_UPLOADER_HUNG_SECONDS: Final = 30.0
# The uploader makes a step at least this often while it is well, since each try of an upload has a timeout.
_UPLOADER_STUCK_SECONDS: Final = 900.0
# A merge of a wide table holds the interpreter for some seconds at a time.
_COMPACTION_HUNG_SECONDS: Final = 120.0
# A merge makes a step at least this often: each table that is read, each row group, each try of a request.
_COMPACTION_STUCK_SECONDS: Final = 3600.0
# Seconds before the first restart and at most before later ones: nothing waits for it.
_COMPACTION_PAUSES: Final = (1.0, 300.0)
# To load the library of a format, or to rewrite a large manifest, holds the interpreter for some seconds.
_COMMITTER_HUNG_SECONDS: Final = 60.0
# The committer makes a step at least this often: each footer, each commit of a table, which has timeouts.
_COMMITTER_STUCK_SECONDS: Final = 900.0
_COMMITTER_PAUSES: Final = (1.0, 60.0)


class Processes:
    """Forks workers, the uploader and recoveries. Each child dies with this process."""

    def __init__(
        self,
        settings: Settings,
        counters: Counters,
        listeners: Listeners,
        changeable: Changeable,
        watchdog_seconds: float,
        close_inherited: Callable[[], None],
    ) -> None:
        """Keep what the children need.

        Args:
            watchdog_seconds: timeout of the service manager's watchdog.
            close_inherited: closes, in a child, what only this process needs.
        """
        self._settings = settings
        self._counters = counters
        self._listeners = listeners
        self._changeable = changeable
        self._watchdog_seconds = watchdog_seconds
        self._close_inherited = close_inherited
        self._run_uploader: Callable[[Settings, WALDirectory, Counters, NodeIdentity], int] | None = None

    def uploader(self, directory: WALDirectory, node: NodeIdentity) -> Child:
        """Return the slot of the uploader."""
        block = self._counters.uploader
        pulses = [
            Pulse(block, Uploader.HEARTBEAT_US, self._patience(_UPLOADER_HUNG_SECONDS)),
            Pulse(block, Uploader.STEPS, _UPLOADER_STUCK_SECONDS),
        ]
        return Child(
            "uploader", lambda: self._fork_uploader(directory, node), lambda: bool(block[Uploader.PID]), pulses
        )

    def upkeep(self, directory: WALDirectory, node: NodeIdentity) -> list[Upkeep]:
        """Return the slots of the compaction process and of the committer, if the settings want them."""
        found = []
        if self._settings.has_upkeep:
            child = self._compaction(directory, node)
            found.append(Upkeep(child, self._counters.compaction, Compaction.RESTARTS, Compaction.FAILED_STARTS))
        if self._settings.has_tables:
            child = self._committer(directory)
            found.append(Upkeep(child, self._counters.committer, Committer.RESTARTS, Committer.FAILED_STARTS))
        return found

    def _compaction(self, directory: WALDirectory, node: NodeIdentity) -> Child:
        block = self._counters.compaction
        pulses = [
            Pulse(block, Compaction.HEARTBEAT_US, self._patience(_COMPACTION_HUNG_SECONDS)),
            Pulse(block, Compaction.STEPS, _COMPACTION_STUCK_SECONDS),
        ]
        return Child(
            "compaction",
            lambda: self._fork_compaction(directory, node),
            lambda: bool(block[Compaction.PID]),
            pulses,
            _COMPACTION_PAUSES,
        )

    def _committer(self, directory: WALDirectory) -> Child:
        block = self._counters.committer
        pulses = [
            Pulse(block, Committer.HEARTBEAT_US, self._patience(_COMMITTER_HUNG_SECONDS)),
            Pulse(block, Committer.STEPS, _COMMITTER_STUCK_SECONDS),
        ]
        return Child(
            "committer",
            lambda: self._fork_committer(directory),
            lambda: bool(block[Committer.PID]),
            pulses,
            _COMMITTER_PAUSES,
        )

    def worker(self, slot: int, node: NodeIdentity, last_timestamp: Callable[[int], int]) -> Child:
        """Return a slot of a worker.

        Args:
            last_timestamp: returns the highest timestamp of a slot's earlier workers, in µs.
        """
        block = self._counters.worker(slot)
        pulses = [Pulse(block, Worker.HEARTBEAT_US, self._patience(_WORKER_HUNG_SECONDS))]
        return Child(
            f"ingest {slot}",
            lambda: self._fork_worker(slot, node, last_timestamp),
            lambda: bool(block[Worker.PID]),
            pulses,
        )

    def _patience(self, seconds: float) -> float:
        """Limit a timeout to a third of the watchdog's, so that a hung child is replaced before the watchdog acts."""
        return min(seconds, self._watchdog_seconds / 3)

    def _fork_worker(self, slot: int, node: NodeIdentity, last_timestamp: Callable[[int], int]) -> int:
        block = self._counters.worker(slot)
        block[Worker.PID] = block[Worker.SEGMENT_FIRST_US] = 0  # the former worker's segment has no writer any more
        access = self._changeable.access()  # before the fork: a reload after it is news to the worker

        def work() -> int:
            mine = self._listeners.of_worker(slot)
            self._listeners.close(but=mine)
            last = last_timestamp(slot)
            listening = [(bound.listener, bound.socket) for bound in mine]
            return IngestWorker(self._settings, slot, listening, self._counters, node, last, access).run()

        return self.fork(f"ingest {slot}", work)

    def _fork_uploader(self, directory: WALDirectory, node: NodeIdentity) -> int:
        # Imported in this process and not in the child, so that a later uploader is of this version, too, even if
        # another one is installed by then. Not imported at the top, because workers start first and need not wait.
        if self._run_uploader is None:
            with loading():
                from arcpipe.storage import load_store
                from arcpipe.upload.uploader import run

                load_store(self._settings.storage.url)
            self._run_uploader = run
        run_uploader = self._run_uploader
        self._counters.uploader[Uploader.PID] = 0

        def work() -> int:
            self._listeners.close()
            os.nice(self._settings.uploader.nice)
            return run_uploader(self._settings, directory, self._counters, node)

        return self.fork("uploader", work)

    def _fork_compaction(self, directory: WALDirectory, node: NodeIdentity) -> int:
        with loading():
            from arcpipe.compaction.process import run  # as in `_fork_uploader`

        self._counters.compaction[Compaction.PID] = 0

        def work() -> int:
            self._listeners.close()
            os.nice(self._settings.compaction.nice)
            return run(self._settings, directory.path, self._counters, node.node)

        return self.fork("compaction", work)

    def _fork_committer(self, directory: WALDirectory) -> int:
        with loading():
            from arcpipe.tables.process import run  # as in `_fork_uploader`, but for the libraries of formats

        self._counters.committer[Committer.PID] = 0

        def work() -> int:
            self._listeners.close()
            os.nice(self._settings.uploader.nice)
            return run(self._settings, directory.path, self._counters)

        return self.fork("committer", work)

    def fork_recovery(self, name: str, work: Callable[[], int]) -> int:
        """Run a recovery in a child and return its pid. SIGTERM may end it at any moment, as a crash may."""

        def work_alone() -> int:
            self._listeners.close()
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
            return work()

        return self.fork(name, work_alone)

    def fork(self, name: str, work: Callable[[], int]) -> int:
        """Run `work` in a child that dies with this process, and return its pid."""

        def prepare() -> None:
            self._close_inherited()
            # A recovery of a slot adds to the warnings of the slot's dead worker.
            of = name.removeprefix("recovery of ")
            remember = self._counters.notes(of).add if of in self._counters.processes() else None
            logs.setup(self._counters.node[NodeBlock.LOG_LEVEL], self._settings.log.format, name, remember)
            setproctitle(f"arcpipe: {name}")
            # Ctrl-C reaches the whole terminal group, other signals the whole service; the supervisor acts on them.
            for ignored in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
                signal.signal(ignored, signal.SIG_IGN)
            # SIGTERM stays blocked until the child has a handler, so that an early one is not lost.
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS - {signal.SIGTERM})

        return fork(name, prepare, work)
