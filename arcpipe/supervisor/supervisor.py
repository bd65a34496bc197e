"""The parent of all: takes the directory, recovers, binds, forks, watches, restarts, drains.

A plain synchronous process: it waits for signals and children in one place and never runs an event loop, so that it
can fork at any time. It holds the listening sockets too; a connection that arrives while a worker is being replaced
waits in the queue of its socket and is served by the successor. The same holds for its own replacement: at SIGUSR2
this process executes its command line again, with sockets, lock and workers in its hands (`supervisor.upgrade`). The
new program ends these workers once it is ready to start its own. So no slot ever has two owners, and no connection is
refused.

It never waits for a pipe, a child or a name server: what may take its time is done by a child (`supervisor.aftermath`).

A child that shows no sign of life for too long is killed and replaced alone. One that cannot be started, or dies again
and again, is tried again for as long as another one is well. The service manager's watchdog is for what that cannot
mend: it is fed only while every child is well, in its backoff, or has just been killed.
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
from arcpipe.counters import ANNOUNCED, BEGUN, HANDED_OVER, Node, Uploader, Worker
from arcpipe.errors import InstanceLocked
from arcpipe.ingest.worker import IngestWorker
from arcpipe.supervisor import first_words, last_words
from arcpipe.supervisor.aftermath import Aftermath
from arcpipe.supervisor.backlog import Backlog, Leftovers
from arcpipe.supervisor.child import Child, Pulse, cause, fork, lacks_room, send, stop
from arcpipe.supervisor.listeners import LISTENER, Listeners, discard, raise_file_limit
from arcpipe.supervisor.service_manager import Inheritance, InheritedFd, become_new_program
from arcpipe.supervisor.signals import SIGNALS
from arcpipe.supervisor.startup import LOCK, cannot_start, counters_for
from arcpipe.supervisor.upgrade import WORKER_STOP_SECONDS, Former, Trial
from arcpipe.wal.directory import SEALED, WALDirectory
from arcpipe.wal.recovery import recover_at_start, remove_recovered

if TYPE_CHECKING:
    from arcpipe.config.settings import Settings

log = logging.getLogger(__name__)
T = TypeVar("T")

_MEASURE_SECONDS: Final = 0.25
_STARTING_SECONDS: Final = 0.02
_CLEANUP_SECONDS: Final = 60.0
_NO_ROOM_SECONDS: Final = 1.0
# Without a sign of life for so long a child hangs: an event loop that does not turn (workers sign four times a second,
# the uploader twice), an uploader that does none of its steps although each try of an upload has an end, a start. An
# event loop has no more than a third of the watchdog's time: it is to be replaced alone, before that ends all.
_WORKER_HUNG_SECONDS: Final = 10.0
_UPLOADER_HUNG_SECONDS: Final = 30.0
_UPLOADER_STUCK_SECONDS: Final = 900.0
# A child that was killed for it has to be gone in this time, or the watchdog starves.
_KILL_SECONDS: Final = 10.0
# The last lines before another program is executed wait so long for whoever reads them.
_LAST_LINES_SECONDS: Final = 0.5
# Between two looks at the children this process itself was stopped, or the machine was: nobody had a chance to sign.
_PAUSED_SECONDS: Final = 2.0
_STATUS_SECONDS: Final = 5.0
# What a worker that had to be killed at a stop left is recovered in this time, or at the next start.
_LAST_RECOVERY_SECONDS: Final = 15.0
# An upgrade waits so long for the uploader, while the workers still serve; a batch that is cut short is done again.
_UPLOADER_HAND_OVER_SECONDS: Final = 5.0

EXIT_GIVEN_UP: Final = 3


def serve(settings: Settings, load_settings: Callable[[], Settings], former: Former) -> int:
    """Runs the whole instance until SIGTERM or SIGINT; the exit code of the process.

    At SIGUSR2 this process becomes the program as it is installed by then: it does not return.

    Args:
        load_settings: gives the settings as they are at a reload, or raises ConfigError.
        former: the program that this process was before, if it was one.

    Raises:
        ArcpipeError: it could not start; the text says why.
    """
    try:
        return _Supervisor(settings, load_settings, former).run()
    except OSError as error:
        raise cannot_start(error, settings) from error


class _Stopped(Exception):
    """A signal asked for the end of a start."""


class _Supervisor:
    def __init__(self, settings: Settings, load_settings: Callable[[], Settings], former: Former) -> None:
        self._settings = settings
        self._manager = former.manager
        self._former = former
        self._directory = WALDirectory(settings.wal.dir)
        self._counters = counters_for(settings)
        self._workers = self._counters.workers
        self._listeners = Listeners(settings, self._workers)
        self._leftovers = Leftovers(self._directory)
        self._backlog = Backlog(self._directory, self._leftovers, self._counters)
        self._aftermath = Aftermath(self._leftovers, self._workers, settings.uploader.nice, self._fork_recovery)
        self._children: list[Child] = []  # the uploader, then the workers by slot
        self._lock_problem = ""  # the last one logged
        self._announced = ""  # the address, once it is served
        self._looked_at = 0.0
        self._described_at = 0.0
        self._described_records = 0
        self._changeable = Changeable(settings, load_settings, self._counters)
        self._trial = Trial(self._fork)
        self._leaving_since = 0.0  # when an upgrade began to make place

    def run(self) -> int:
        settings = self._settings
        setproctitle("arcpipe: supervisor")
        notes = self._counters.notes("supervisor")
        logs.setup(settings.log.level, settings.log.format, "supervisor", notes.add)
        log.info("arcpipe %s starting, log in %s, store %s", __version__, settings.wal.dir, settings.storage.url)
        first_words.say(settings, self._workers)
        raise_file_limit(settings.server.max_connections)
        self._changeable.read()
        is_upgrade = self._former.has_workers
        self._manager.status("recovering the log")
        self._directory.refuse_another(self._former.fds(LOCK))
        self._directory.make()
        self._lock()
        unfit = 0
        if is_upgrade:  # as long as there is a way back
            self._node = self._directory.next_boot()
            unfit = self._bind()
            self._listeners.listen_early()
            self._former.end_workers()
        # First, because on a full disk it makes the space that all the rest needs.
        try:
            summary = self._insist(lambda: recover_at_start(self._directory, self._show_recovery), is_upgrade)
        except _Stopped:
            return 0
        self._aftermath.note_recovered(summary)
        if not is_upgrade:
            self._node = self._directory.next_boot()
            unfit = self._bind()
        self._remove_recovered()
        self._leave_sockets_with_the_manager(unfit)
        self._counters.node[Node.STARTED_US] = steady_us()
        self._measure()
        first_words.warn_of_a_small_disk(settings, self._counters.node)
        self._children = [self._uploader_child(), *(self._worker_child(slot) for slot in range(1, self._workers + 1))]
        code = self._watch()
        unknown = self._drain(hurry=code != 0)
        return code or unknown

    def _lock(self) -> None:
        """Takes the directory. The version before this one could not hand all of its lock over: its workers have it."""
        try:
            self._directory.lock(inherited_fds=self._former.copies(LOCK))
        except InstanceLocked:
            if not self._former.has_workers:
                raise
            self._former.end_workers()
            self._directory.lock(inherited_fds=self._former.copies(LOCK))
        self._former.close(LOCK)

    def _insist(self, step: Callable[[], T], whatever_happens: bool) -> T:
        """Does a step of the start, again and again while there is no room for a thread or no memory.

        Args:
            whatever_happens: after any other failure, too: nobody would start this process again as it is.

        Raises:
            _Stopped: a signal came meanwhile.
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
        self._manager.status(f"recovering the log: {done} of {total} segments")

    def _bind(self) -> int:
        """Binds, with the sockets of a former process where they fit; how many do not. Clients may wait in each."""
        return self._listeners.bind(self._former.others(LOCK))

    def _leave_sockets_with_the_manager(self, unfit: int) -> None:
        self._listeners.settle()
        if unfit:
            log.info("%d sockets of the former process are at another address; closing them", unfit)
            self._manager.drop(LISTENER)
        self._manager.keep(LISTENER, self._listeners.kept)

    def _uploader_child(self) -> Child:
        block = self._counters.uploader
        pulses = [
            Pulse(block, Uploader.HEARTBEAT_US, self._patience(_UPLOADER_HUNG_SECONDS)),
            Pulse(block, Uploader.STEPS, _UPLOADER_STUCK_SECONDS),
        ]
        return Child("uploader", self._fork_uploader, lambda: bool(block[Uploader.PID]), pulses)

    def _worker_child(self, slot: int) -> Child:
        block = self._counters.worker(slot)
        pulses = [Pulse(block, Worker.HEARTBEAT_US, self._patience(_WORKER_HUNG_SECONDS))]
        return Child(f"ingest {slot}", lambda: self._fork_worker(slot), lambda: bool(block[Worker.PID]), pulses)

    def _patience(self, seconds: float) -> float:
        return min(seconds, self._manager.watchdog_seconds / 3)

    # Watching

    def _watch(self) -> int:
        """Keeps every slot filled until told to stop; the exit code."""
        next_cleanup = time.monotonic() + _CLEANUP_SECONDS
        stop_at = math.inf
        while (now := time.monotonic()) < stop_at:
            try:
                self._start_what_is_due(now)
                self._tell_the_manager(now, is_stopping=stop_at < math.inf)
                received = signal.sigtimedwait(SIGNALS, _MEASURE_SECONDS if self._announced else _STARTING_SECONDS)
                match received.si_signo if received is not None else 0:
                    case signal.SIGTERM | signal.SIGINT as number:
                        log.info("%s: stopping", signal.Signals(number).name)
                        self._forget_upgrade()
                        stop_at = self._put_off_the_end() if stop_at == math.inf else 0.0
                        continue
                    case signal.SIGHUP:
                        self._reload()
                    case signal.SIGUSR2 if stop_at == math.inf:
                        self._try_upgrade()
                self._reap()
                if all(worker.is_hopeless for worker in self._children[1:]):
                    log.critical(
                        "no worker can be kept alive (see above); stopping. What was acknowledged is in the WAL"
                    )
                    return EXIT_GIVEN_UP
                if self._look_after_children(time.monotonic()):
                    self._manager.is_well()
                self._measure()
                self._follow_reload()
                logs.flush()
                if time.monotonic() >= next_cleanup:
                    next_cleanup += _CLEANUP_SECONDS
                    self._remove_recovered()
                    self._changeable.note_endings()
            except Exception:
                log.exception("a bug in the supervisor; it goes on")
                time.sleep(_STARTING_SECONDS)  # it may be there in each turn
        return 0

    def _start_what_is_due(self, now: float) -> None:
        self._trial.look(now)
        if self._leaving_since:
            self._make_place(now)
            return
        self._aftermath.look(now)
        for number, child in reversed(list(enumerate(self._children))):
            if not child.pid and now >= child.start_at and self._aftermath.is_over(number):
                child.start(now)

    def _tell_the_manager(self, now: float, is_stopping: bool) -> None:
        if is_stopping or not (self._announced or self._announce()):
            self._manager.needs_time()
        elif not self._leaving_since:
            self._describe(now)

    def _put_off_the_end(self) -> float:
        """Tells load balancers to send elsewhere; the time until which they may take to do so."""
        delay = self._settings.shutdown.delay_seconds if self._announced else 0.0
        if delay:
            self._counters.node[Node.DRAINING] = ANNOUNCED
            self._manager.stopping(f"/ready says no for {delay:g} s, for load balancers to see")
            log.info("/ready answers 503 from now on; requests are taken for another %g s", delay)
        return time.monotonic() + delay

    def _announce(self) -> bool:
        """Says so once every process was tried and a worker serves; one that fails is no reason to wait for it."""
        workers = self._children[1:]
        if not all(child.has_been_tried for child in self._children) or not any(child.is_ready for child in workers):
            return False
        self._announced, *others = self._listeners.urls
        self._described_at = time.monotonic()
        for url in others:
            log.info("also serving on %s", url)
        log.info("serving on %s with %d workers", self._announced, self._workers)
        missing = [child.name for child in self._children if not child.is_ready]
        if missing:
            log.warning("serving without %s for now: its start has failed (see above)", ", ".join(missing))
        self._manager.ready(f"serving on {self._announced} with {self._workers} workers")
        return True

    def _describe(self, now: float) -> None:
        """Tells the service manager now and then how things are."""
        seconds = now - self._described_at
        if seconds < _STATUS_SECONDS:
            return
        node = self._counters.node
        records = sum(self._counters.worker(slot)[Worker.RECORDS] for slot in range(1, self._workers + 1))
        # A worker that was killed takes what it counted in its last quarter of a second along.
        rate = max(0, records - self._described_records) / seconds
        self._described_at, self._described_records = now, records
        self._manager.status(
            f"serving on {self._announced} with {self._workers} workers: {rate:.0f} records/s, "
            f"backlog {node[Node.BACKLOG_BYTES] / 1e6:.1f} MB in {node[Node.BACKLOG_SEGMENTS]} segments, "
            f"restarts: {node[Node.WORKER_RESTARTS]} of workers, {node[Node.UPLOADER_RESTARTS]} of the uploader"
        )

    def _reload(self) -> None:
        self._manager.reloading("reading tokens, certificate and log level again, opening the access log anew")
        self._changeable.reload()

    def _follow_reload(self) -> None:
        if self._changeable.is_reload_over() and self._announced:
            self._manager.ready(f"serving on {self._announced} with {self._workers} workers")

    def _look_after_children(self, now: float) -> bool:
        """Kills a child that hangs. False if one hangs that cannot even be killed."""
        was_paused = now - self._looked_at > _PAUSED_SECONDS
        self._looked_at = now
        well = True
        for number, child in enumerate(self._children):
            child.check(now)
            self._counters.failed_starts[number] = child.failures
            if not child.pid:
                continue
            if was_paused:
                child.forgive(now)
            elif child.killed_at:
                well = well and now - child.killed_at <= _KILL_SECONDS
            elif child.hangs(now):
                log.error("%s (pid %d) shows no sign of life; killing it", child.name, child.pid)
                child.killed_at = now
                os.kill(child.pid, signal.SIGKILL)
        return well

    def _reap(self) -> None:
        """Takes note of dead children and prepares their successors."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            self._aftermath.note_end(pid, status)
            if self._trial.note_end(pid, status):
                self._begin_to_leave()
            for number, child in enumerate(self._children):
                if child.pid == pid:
                    self._note_death(number, pid, status)

    def _note_death(self, number: int, pid: int, status: int) -> None:
        """Decides when a slot that has just become empty is filled again, and has recovered what a worker left."""
        child = self._children[number]
        if number == 0 and self._leaving_since:
            child.pid = 0  # it was told to end
            return
        delay = child.note_end(time.monotonic(), status)
        log.error("%s (pid %d) died: %s; restarting in %.1f s", child.name, pid, cause(status), delay)
        if number == 0:
            self._counters.node[Node.UPLOADER_RESTARTS] += 1
            return
        self._counters.node[Node.WORKER_RESTARTS] += 1
        if self._counters.meters is not None:
            self._counters.meters.forget(number)
        self._aftermath.note_death(number)

    def _measure(self) -> None:
        """Shares the figures that decide whether writes are taken, and keeps the lock."""
        self._backlog.measure()
        problem = ""
        try:
            self._directory.keep_lock()
        except (OSError, InstanceLocked) as error:
            problem = str(error)
            if problem != self._lock_problem:  # once, however often it is looked
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

    # Stopping

    def _drain(self, hurry: bool) -> int:
        """Stops the workers, then gives the uploader its time. A second signal ends the waiting.

        Returns:
            An exit code if it is not known whether everything is uploaded, else 0.
        """
        self._counters.node[Node.DRAINING] = BEGUN
        self._manager.stopping("answering what is in flight")
        self._manager.drop(LISTENER)
        self._listeners.remove_files()
        self._listeners.close()
        workers = self._children[1:]
        hurry = self._stop(workers, 0.0 if hurry else WORKER_STOP_SECONDS) or hurry
        self._aftermath.finish(_LAST_RECOVERY_SECONDS, self._while_waiting)
        self._manager.status("uploading what is in the log")
        self._ship_the_rest(0.0 if hurry else self._settings.shutdown.drain_seconds)
        self._measure()
        lost = sum(self._counters.worker(slot)[Worker.LOST_RECORDS] for slot, _ in enumerate(workers, 1))
        return last_words.speak(self._directory, self._doubt(workers), lost)

    def _doubt(self, workers: list[Child]) -> str:
        """Why an empty directory would not mean that everything is uploaded; empty if it would."""
        if self._counters.node[Node.REPLACED]:
            return f"{self._directory.path} is not the directory of the start"
        has_died = self._counters.node[Node.WORKER_RESTARTS] > 0 or any(worker.status for worker in workers)
        if not self._settings.wal.enabled and has_died:
            return "the WAL is disabled, and a worker ended with what it held in memory"
        return ""

    def _ship_the_rest(self, seconds: float) -> None:
        """Waits until the uploader is done. One that dies over it, or was dead already, has a successor.

        So has one that stopped too early, because it got the signal too: some service managers tell every process.
        """
        uploader = self._children[0]
        deadline = time.monotonic() + seconds
        while (now := time.monotonic()) < deadline:
            if not uploader.pid and now >= uploader.start_at:
                uploader.start(now)
            pid = uploader.pid
            if pid:
                if self._stop([uploader], deadline - now) or time.monotonic() >= deadline:
                    return
                if uploader.status != 0:
                    self._note_death(0, pid, uploader.status)
                elif self._is_shipped():
                    return
                else:
                    uploader.put_off(time.monotonic())
            pause = min(uploader.start_at, deadline) - time.monotonic()
            if signal.sigtimedwait({signal.SIGTERM, signal.SIGINT}, max(0.0, pause)) is not None:
                return
        self._stop([uploader], 0.0)

    def _is_shipped(self) -> bool:
        try:
            return not self._directory.segments(SEALED)
        except OSError:
            return False  # nobody knows

    def _stop(self, children: list[Child], seconds: float) -> bool:
        return stop(children, seconds, SIGNALS, self._while_waiting)

    def _while_waiting(self) -> None:
        self._backlog.measure()  # children that still serve go by it
        self._manager.needs_time()

    # Making place for a new version

    def _try_upgrade(self) -> None:
        """Has the program as it is installed now try whether it would start with the settings as they are now."""
        if not self._announced:
            log.error("SIGUSR2: this version is still starting, so it stays")
        elif self._trial.is_running or self._leaving_since:
            log.warning("SIGUSR2: an upgrade is being tried already")
        else:
            try:
                self._trial.begin(self._handed_over)
            except OSError as error:
                log.error("SIGUSR2: the installed version cannot be tried, so this one stays: %s", error)

    @property
    def _handed_over(self) -> list[InheritedFd]:
        # The lock's file comes first: an older version takes one, and that is the one it knows.
        return [*(InheritedFd(LOCK, fd) for fd in self._directory.lock_fds), *self._listeners.handed_over]

    def _begin_to_leave(self) -> None:
        """Ends the uploader and what else is at the WAL; the workers serve on."""
        self._leaving_since = time.monotonic()
        self._counters.node[Node.DRAINING] = HANDED_OVER
        self._aftermath.kill()
        send(self._children[:1], signal.SIGTERM)

    def _make_place(self, now: float) -> None:
        """Turns into the installed version once nobody but the workers is left; those serve until that can start.

        A signal to stop waits for the new version then.
        """
        uploader, *workers = self._children
        if uploader.pid or not self._aftermath.is_idle:
            seconds = now - self._leaving_since
            if seconds > _UPLOADER_HAND_OVER_SECONDS and not uploader.killed_at:
                uploader.killed_at = now
                send([uploader], signal.SIGKILL)
            elif seconds > _UPLOADER_HAND_OVER_SECONDS + _KILL_SECONDS:
                log.error("SIGUSR2: a process at the WAL cannot be killed, so this version stays")
                self._forget_upgrade()
            return
        log.info("SIGUSR2: making place for the installed version")
        self._manager.reloading("making place for the installed version")
        self._manager.needs_time()
        logs.flush(_LAST_LINES_SECONDS)
        made = self._trial.take_made()
        try:
            become_new_program(
                Inheritance([*self._handed_over, *made], [worker.pid for worker in workers if worker.pid])
            )
        except OSError as error:
            log.error("SIGUSR2: the installed version cannot be executed, so this one stays: %s", error)
        discard(made)
        self._manager.ready(f"serving on {self._announced} with {self._workers} workers")
        self._forget_upgrade()

    def _forget_upgrade(self) -> None:
        if self._leaving_since:
            self._counters.node[Node.DRAINING] = 0
        self._leaving_since = 0.0
        self._trial.forget()

    # Forking

    def _fork_worker(self, slot: int) -> int:
        block = self._counters.worker(slot)
        block[Worker.PID] = block[Worker.SEGMENT_FIRST_US] = 0  # nobody writes the segment of the one before any more
        access = self._changeable.access()  # before the fork: what is reloaded after it is news to the worker

        def work() -> int:
            mine = self._listeners.of_worker(slot)
            self._listeners.close(but=mine)
            last = self._aftermath.last_timestamp(slot)
            listening = [(bound.listener, bound.socket) for bound in mine]
            return IngestWorker(self._settings, slot, listening, self._counters, self._node, last, access).run()

        return self._fork(f"ingest {slot}", work)

    def _fork_uploader(self) -> int:
        # Here and not in the child: one that is started later is of this version, whatever is installed by then. Not at
        # the top: workers start first, and do not wait for it.
        from arcpipe.upload.uploader import run

        self._counters.uploader[Uploader.PID] = 0

        def work() -> int:
            self._listeners.close()
            os.nice(self._settings.uploader.nice)
            return run(self._settings, self._directory, self._counters, self._node)

        return self._fork("uploader", work)

    def _fork_recovery(self, name: str, work: Callable[[], int]) -> int:
        def work_alone() -> int:
            self._listeners.close()
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})  # may end it at any moment, as a crash may
            return work()

        return self._fork(name, work_alone)

    def _fork(self, name: str, work: Callable[[], int]) -> int:
        """Runs `work` in a child that dies with this process; its pid."""

        def prepare() -> None:
            self._trial.close()
            # What recovers a slot has the notes of its dead worker.
            of = name.removeprefix("recovery of ")
            remember = self._counters.notes(of).add if of in self._counters.processes() else None
            logs.setup(self._counters.node[Node.LOG_LEVEL], self._settings.log.format, name, remember)
            setproctitle(f"arcpipe: {name}")
            # Ctrl-C reaches the whole terminal group, other signals the whole service; the supervisor acts on them.
            for ignored in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR2):
                signal.signal(ignored, signal.SIG_IGN)
            # SIGTERM stays blocked until the child has a handler for it: one that comes before is not lost then.
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS - {signal.SIGTERM})

        return fork(name, prepare, work)
