"""The parent process: locks the directory, recovers, binds, forks, watches, restarts, drains.

The supervisor is a plain synchronous process. It waits for signals and children in one place and never runs an event
loop, so it can fork at any time. It also holds the listening sockets. A connection that arrives while a worker is being
replaced waits in the queue of its socket; the successor serves it.

An upgrade works the same way. At SIGUSR2 this process executes its command line again and keeps sockets, lock and
workers (`supervisor.handover`, `supervisor.upgrade`). The new program ends these workers once it is ready to start its
own. So no slot ever has two owners, and no connection is refused.

The supervisor never waits for a pipe, a child or a name server. Work that may take long is done by a child
(`supervisor.aftermath`).

A child without a heartbeat is killed and replaced alone. A child that cannot be started, or dies repeatedly, is tried
again while another one is well. The service manager's watchdog is for everything else: it is fed only while every child
is well, in its backoff, or has just been killed.
"""

from __future__ import annotations

import logging
import math
import os
import signal
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, TypeVar

from setproctitle import setproctitle

from arcpipe import __version__, logs
from arcpipe.access.reload import Changeable
from arcpipe.clock import steady_us
from arcpipe.counters import ANNOUNCED, Node
from arcpipe.errors import InstanceLocked, lacks_room
from arcpipe.supervisor import first_words
from arcpipe.supervisor.aftermath import Aftermath
from arcpipe.supervisor.announcer import Announcer
from arcpipe.supervisor.backlog import Backlog, Leftovers
from arcpipe.supervisor.drain import Drain
from arcpipe.supervisor.file_limit import raise_file_limit
from arcpipe.supervisor.handover import Handover
from arcpipe.supervisor.listeners import LISTENER, Listeners
from arcpipe.supervisor.processes import Processes
from arcpipe.supervisor.service_manager import InheritedFd
from arcpipe.supervisor.signals import SIGNALS
from arcpipe.supervisor.slots import Slots
from arcpipe.supervisor.startup import LOCK, cannot_start, counters_for
from arcpipe.supervisor.upgrade import Former, Trial
from arcpipe.wal.directory import NodeIdentity, WALDirectory
from arcpipe.wal.recovery import recover_at_start, remove_recovered

if TYPE_CHECKING:
    from arcpipe.config.settings import Settings

log = logging.getLogger(__name__)
T = TypeVar("T")

# Longest wait for a signal in a round of the supervisor: once it serves, and before that.
_MEASURE_SECONDS: Final = 0.25
_STARTING_SECONDS: Final = 0.02
# Time between two searches for recovered segments that are old enough to be removed.
_CLEANUP_SECONDS: Final = 60.0
# Pause before a step of the start is tried again that lacked memory or a thread.
_NO_ROOM_SECONDS: Final = 1.0
EXIT_GIVEN_UP: Final = 3
"""The exit code of an instance whose workers all die repeatedly."""


def serve(settings: Settings, load_settings: Callable[[], Settings], former: Former) -> int:
    """Run the whole instance until SIGTERM or SIGINT.

    At SIGUSR2 this process executes the installed program, and this function does not return.

    Args:
        load_settings: returns the settings at a reload, or raises ConfigError.
        former: the remains of the program that this process executed before, if any.

    Returns:
        The exit code of the process.

    Raises:
        ArcpipeError: the instance could not start; the text says why.
    """
    try:
        return _Supervisor(settings, load_settings, former).run()
    except OSError as error:
        raise cannot_start(error, settings) from error


class _Stopped(Exception):
    """A signal to stop arrived during the start."""


class _Supervisor:
    """One instance, from the lock of its directory to its last log line."""

    def __init__(self, settings: Settings, load_settings: Callable[[], Settings], former: Former) -> None:
        self._settings = settings
        self._manager = former.manager
        self._former = former
        self._directory = WALDirectory(settings.wal.dir)
        self._counters = counters_for(settings)
        self._workers = self._counters.workers
        self._listeners = Listeners(settings, self._workers)
        self._announcer = Announcer(self._listeners, self._counters, self._manager)
        self._leftovers = Leftovers(self._directory)
        self._backlog = Backlog(self._directory, self._leftovers, self._counters)
        self._lock_problem = ""  # the last one logged
        self._changeable = Changeable(settings, load_settings, self._counters)
        self._processes = Processes(
            *(settings, self._counters, self._listeners, self._changeable),
            watchdog_seconds=self._manager.watchdog_seconds,
            close_inherited=lambda: trial.close(),
        )
        self._aftermath = Aftermath(
            self._leftovers, self._workers, settings.uploader.nice, self._processes.fork_recovery
        )
        trial = Trial(self._processes.fork)
        self._handover = Handover(trial, self._aftermath, self._manager, self._counters.node, self._inheritance)

    def run(self) -> int:
        """Start, watch and stop the instance; return the exit code."""
        settings = self._settings
        setproctitle("arcpipe: supervisor")
        notes = self._counters.notes("supervisor")
        logs.setup(settings.log.level, settings.log.format, "supervisor", notes.add)
        log.info("arcpipe %s starting, WAL in %s, store %s", __version__, settings.wal.dir, settings.storage.url)
        first_words.say(settings, self._workers)
        raise_file_limit(settings.server.max_connections)
        self._changeable.read()
        is_upgrade = self._former.has_workers
        self._manager.status("recovering the WAL")
        self._directory.refuse_another(self._former.fds(LOCK))
        self._directory.make()
        self._lock()
        unfit = 0
        if is_upgrade:  # bind while there is a way back
            node = self._directory.next_boot()
            unfit = self._bind()
            self._listeners.listen_early()
            self._former.end_workers()
        # Recovery comes first: on a full disk it frees the space that the rest of the start needs.
        try:
            summary = self._insist(lambda: recover_at_start(self._directory, self._show_recovery), is_upgrade)
        except _Stopped:
            return 0
        self._aftermath.note_recovered(summary)
        if not is_upgrade:
            node = self._directory.next_boot()
            unfit = self._bind()
        self._remove_recovered()
        self._leave_sockets_with_the_manager(unfit)
        self._counters.node[Node.STARTED_US] = steady_us()
        self._measure()
        first_words.warn_of_a_small_disk(settings, self._counters.node)
        first_words.warn_of_forgotten_tables(settings)
        slots = self._slots(node)
        code = self._watch(slots)
        drain = Drain(settings, self._directory, self._counters, self._manager, self._backlog)
        unknown = drain.run(slots, self._listeners, self._aftermath, hurry=code != 0)
        return code or unknown

    def _slots(self, node: NodeIdentity) -> Slots:
        numbers = range(1, self._workers + 1)
        return Slots(
            self._processes.uploader(self._directory, node),
            [self._processes.worker(slot, node, self._aftermath.last_timestamp) for slot in numbers],
            self._counters,
            self._aftermath,
            self._processes.upkeep(self._directory, node),
        )

    def _lock(self) -> None:
        """Lock the WAL directory.

        An older version could not hand over all of its lock: its workers still hold it, so they end first.
        """
        try:
            self._directory.lock(inherited_fds=self._former.copies(LOCK))
        except InstanceLocked:
            if not self._former.has_workers:
                raise
            self._former.end_workers()
            self._directory.lock(inherited_fds=self._former.copies(LOCK))
        self._former.close(LOCK)

    def _insist(self, step: Callable[[], T], whatever_happens: bool) -> T:
        """Do a step of the start; try again while memory or a thread is lacking.

        Args:
            whatever_happens: try again after any other failure, too. An upgrade has no way back at this point.

        Raises:
            _Stopped: a signal to stop arrived.
        """
        while True:
            try:
                return step()
            except (OSError, RuntimeError, MemoryError) as error:
                if not (lacks_room(error) or whatever_happens):
                    raise
                log.error("the start has to wait: %s; trying again in %g s", error, _NO_ROOM_SECONDS)
            self._manager.needs_time()
            logs.flush()
            if signal.sigtimedwait({signal.SIGTERM, signal.SIGINT}, _NO_ROOM_SECONDS) is not None:
                log.info("stopping before it has started")
                raise _Stopped

    def _show_recovery(self, done: int, total: int) -> None:
        self._manager.needs_time()
        self._manager.status(f"recovering the WAL: {done} of {total} segments")

    def _bind(self) -> int:
        """Bind all listeners, and return the number of inherited sockets that fit none of them.

        Inherited sockets are used where they fit, because clients may be waiting in their queues.
        """
        return self._listeners.bind(self._former.others(LOCK))

    def _leave_sockets_with_the_manager(self, unfit: int) -> None:
        self._listeners.settle()
        if unfit:
            log.info("%d sockets of the former process are at another address; closing them", unfit)
            self._manager.drop(LISTENER)
        self._manager.keep(LISTENER, self._listeners.kept)

    # Watching

    def _watch(self, slots: Slots) -> int:
        """Keep every slot filled until a signal to stop; return the exit code."""
        next_cleanup = time.monotonic() + _CLEANUP_SECONDS
        stop_at = math.inf
        while (now := time.monotonic()) < stop_at:
            try:
                self._start_what_is_due(slots, now)
                self._tell_the_manager(slots, now, is_stopping=stop_at < math.inf)
                pause = _MEASURE_SECONDS if self._announcer.is_done else _STARTING_SECONDS
                received = signal.sigtimedwait(SIGNALS, pause)
                match received.si_signo if received is not None else 0:
                    case signal.SIGTERM | signal.SIGINT as number:
                        log.info("%s: stopping", signal.Signals(number).name)
                        self._handover.forget()
                        stop_at = self._put_off_the_end() if stop_at == math.inf else 0.0
                        continue
                    case signal.SIGHUP:
                        self._reload()
                    case signal.SIGUSR1:
                        log.warning("SIGUSR1 has no effect: SIGHUP reloads and opens the access log again")
                    case signal.SIGUSR2 if stop_at == math.inf:
                        self._try_upgrade()
                self._reap(slots)
                if slots.are_hopeless:
                    log.critical(
                        "no worker can be kept alive (see above); stopping. What was acknowledged is in the WAL"
                    )
                    return EXIT_GIVEN_UP
                if slots.look_after(time.monotonic()):
                    self._manager.is_well()
                if self._backlog.is_due:
                    self._measure()
                self._follow_reload()
                logs.flush()
                if time.monotonic() >= next_cleanup:
                    next_cleanup += _CLEANUP_SECONDS
                    self._remove_recovered()
                    self._changeable.note_endings()
            except Exception:
                log.exception("a bug in the supervisor; it goes on")
                time.sleep(_STARTING_SECONDS)  # the bug may occur in every round
        return 0

    def _start_what_is_due(self, slots: Slots, now: float) -> None:
        self._handover.check_trial(now)
        if self._handover.is_leaving:
            slots.kill_upkeep()
            self._handover.make_way(now, slots.uploader, slots.workers, self._announcer.status)
            return
        self._aftermath.look(now)
        slots.start_due(now)

    def _tell_the_manager(self, slots: Slots, now: float, is_stopping: bool) -> None:
        if is_stopping or not (self._announcer.is_done or self._announcer.announce(slots.all)):
            self._manager.needs_time()
        elif not self._handover.is_leaving:
            self._announcer.describe(now)

    def _put_off_the_end(self) -> float:
        """Tell load balancers to send elsewhere; return the monotonic time at which the stop begins."""
        delay = self._settings.shutdown.delay_seconds if self._announcer.is_done else 0.0
        if delay:
            self._counters.node[Node.DRAINING] = ANNOUNCED
            self._manager.stopping(f"/ready says no for {delay:g} s, for load balancers to see")
            log.info("/ready answers 503 from now on; requests are taken for another %g s", delay)
        return time.monotonic() + delay

    def _reload(self) -> None:
        self._manager.reloading("reading tokens, certificate and log level again, opening the access log anew")
        self._changeable.reload()

    def _follow_reload(self) -> None:
        if self._changeable.is_reload_over() and self._announcer.is_done:
            self._manager.ready(self._announcer.status)

    def _reap(self, slots: Slots) -> None:
        """Collect dead children and prepare their successors."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            self._aftermath.note_end(pid, status)
            self._handover.note_end(pid, status, slots.uploader)
            if self._handover.is_leaving and pid == slots.uploader.pid:
                slots.uploader.pid = 0  # its end was asked for
            elif self._handover.is_leaving and (ended := slots.upkeep_of(pid)) is not None:
                ended.pid = 0  # as well
            else:
                slots.note_end(pid, status)

    def _measure(self) -> None:
        """Publish the figures that decide whether writes are accepted, and keep the lock."""
        self._backlog.measure()
        problem = ""
        try:
            self._directory.keep_lock()
        except (OSError, InstanceLocked) as error:
            problem = str(error)
            if problem != self._lock_problem:  # log each problem once
                log.error("the lock of %s was taken away: %s", self._directory.path, problem)
        self._lock_problem = problem
        self._counters.node[Node.UNLOCKED] = bool(problem)

    def _remove_recovered(self) -> None:
        try:
            count, freed = remove_recovered(self._directory, self._settings.wal.keep_recovered_seconds)
        except OSError as error:
            log.error("cannot remove old recovered segments: %s", error)
            return
        if count:
            log.info("removed %d recovered segments, %.1f MB", count, freed / 1e6)

    # Making place for a new version

    def _try_upgrade(self) -> None:
        if self._announcer.is_done:
            self._handover.begin()
        else:
            log.error("SIGUSR2: this version is still starting, so it stays")

    def _inheritance(self) -> list[InheritedFd]:
        """Return the descriptors for the next program in this process."""
        # The lock's file comes first: an older version accepts only one lock, and knows that one.
        return [*(InheritedFd(LOCK, fd) for fd in self._directory.lock_fds), *self._listeners.handed_over]
