"""The parent of all: takes the directory, recovers, binds, forks, watches, restarts, drains.

A plain synchronous process: it waits for signals and children in one place and never runs an event loop, so that it
can fork at any time. It holds the listening sockets too; a connection that arrives while a worker is being replaced
waits in the queue of its socket and is served by the successor. The same holds for its own replacement: at SIGUSR2
this process executes its command line again, with sockets, lock and workers in its hands. The new program ends these
workers once it is ready to start its own. So no slot ever has two owners, and no connection is refused.

A child that shows no sign of life for too long is killed and replaced alone. The service manager's watchdog is for what
that cannot mend: it is fed only while every child is well, in its backoff, or has just been killed.
"""

from __future__ import annotations

import contextlib
import ctypes
import ipaddress
import logging
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, NoReturn

from setproctitle import setproctitle

from arcpipe import __version__, logs
from arcpipe.changeable import Changeable
from arcpipe.counters import Counters, Node, Uploader, Worker
from arcpipe.errors import ArcpipeError
from arcpipe.ingest.worker import IngestWorker
from arcpipe.service_manager import (
    Inheritance,
    InheritedFd,
    ServiceManager,
    become_new_program,
    command_line,
    take_inheritance,
)
from arcpipe.wal.directory import SEALED, SegmentFile, WALDirectory
from arcpipe.wal.reader import first_timestamp
from arcpipe.wal.recovery import RecoverySummary, recover_at_start, recover_slot, remove_recovered

if TYPE_CHECKING:
    from arcpipe.config import Settings

log = logging.getLogger(__name__)

_PR_SET_PDEATHSIG: Final = 1
_SIGNALS: Final = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR2, signal.SIGCHLD}
_MEASURE_SECONDS: Final = 0.25
_STARTING_SECONDS: Final = 0.02
_CLEANUP_SECONDS: Final = 60.0
# Workers get so long to answer what is in flight and seal before they are killed; nothing acknowledged is lost then.
_WORKER_STOP_SECONDS: Final = 15.0
_BACKOFF_FIRST_SECONDS: Final = 0.1
_BACKOFF_LIMIT_SECONDS: Final = 10.0
# A child that lived this long was well: its next death starts the backoff anew.
_HEALTHY_SECONDS: Final = 10.0
# Files that a worker has open beside its connections, those that are turned away among them.
_OTHER_FILES: Final = 512
# Children that die this often in a row without ever having been well end the instance. Not the uploader, once there
# was one: writes go on without it for as long as the backlog limit allows.
_MAX_EARLY_DEATHS: Final = 8
# Without a sign of life for so long a child hangs: an event loop that does not turn (workers sign four times a second,
# the uploader twice), an uploader that does none of its steps although each try of an upload has an end, a start. An
# event loop has no more than a third of the watchdog's time: it is to be replaced alone, before that ends all.
_WORKER_HUNG_SECONDS: Final = 10.0
_UPLOADER_HUNG_SECONDS: Final = 30.0
_UPLOADER_STUCK_SECONDS: Final = 900.0
_START_HUNG_SECONDS: Final = 60.0
# A child that was killed for it has to be gone in this time, or the watchdog starves.
_KILL_SECONDS: Final = 10.0
# Between two looks at the children this process itself was stopped, or the machine was: nobody had a chance to sign.
_PAUSED_SECONDS: Final = 2.0
_STATUS_SECONDS: Final = 5.0
# An upgrade waits so long for the uploader, while the workers still serve; a batch that is cut short is done again.
_UPLOADER_HAND_OVER_SECONDS: Final = 5.0
_CHECK_SECONDS: Final = 20.0

EXIT_GIVEN_UP: Final = 3
_LISTENER: Final = "listener"  # names of what one process hands to the next
_LOCK: Final = "lock"


def serve(settings: Settings, load_settings: Callable[[], Settings]) -> int:
    """Runs the whole instance until SIGTERM or SIGINT; the exit code of the process.

    At SIGUSR2 this process becomes the program as it is installed by then: it does not return.

    Args:
        load_settings: gives the settings as they are at a reload, or raises ConfigError.

    Raises:
        ArcpipeError: it could not start; the text says why.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        return _Supervisor(settings, load_settings, take_inheritance(os.environ)).run()
    except OSError as error:
        where = f" (wal.dir = {settings.wal.dir})" if error.filename is None else ""
        raise ArcpipeError(f"cannot start: {error}{where}") from error


def import_everything() -> None:
    """Imports what the whole tree of processes runs.

    Raises:
        ImportError: the installation is not complete.
    """
    import arcpipe.upload.uploader  # noqa: F401


class _Pulse:
    """A counter that moves for as long as a process is well."""

    def __init__(self, block: memoryview, field: int, patience_seconds: float) -> None:
        self._block = block
        self._field = field
        self._patience_seconds = patience_seconds
        self._value = 0
        self._moved_at = 0.0

    def is_missed(self, now: float) -> bool:
        value = self._block[self._field]
        if value != self._value:
            self._value = value
            self._moved_at = now
        return now - self._moved_at > self._patience_seconds

    def forgive(self, now: float) -> None:
        self._moved_at = now


class _Child:
    """One process slot: who is in it, whether he is well, and when it may be filled again."""

    def __init__(self, name: str, start: Callable[[], int], started: Callable[[], bool], pulses: list[_Pulse]) -> None:
        self.name = name
        self.start = start
        self.is_ready = started
        self.pulses = pulses
        self.killed_at = 0.0  # because it hung
        self.pid = 0
        self.status = 0  # how its last process ended, as waitpid tells
        self.started_at = 0.0
        self.start_at = 0.0  # not before this monotonic time
        self.deaths = 0  # in a row, none of them after a healthy life

    def hangs(self, now: float) -> bool:
        """Whether a process that is there shows no sign of life."""
        if not self.is_ready():
            self.forgive(now)  # the pulse is expected from when it has started
            return now - self.started_at > _START_HUNG_SECONDS
        return any(pulse.is_missed(now) for pulse in self.pulses)

    def forgive(self, now: float) -> None:
        for pulse in self.pulses:
            pulse.forgive(now)


class _Supervisor:
    def __init__(self, settings: Settings, load_settings: Callable[[], Settings], inheritance: Inheritance) -> None:
        self._settings = settings
        self._manager = ServiceManager(os.environ)
        self._inheritance = inheritance
        self._directory = WALDirectory(settings.wal.dir)
        self._workers = settings.server.worker_count()
        self._counters = Counters(self._workers)
        self._listeners: list[socket.socket] = []
        self._recovered = RecoverySummary([], 0.0)
        self._children: list[_Child] = []
        self._announced = ""  # the address, once it is served
        self._looked_at = 0.0
        self._described_at = 0.0
        self._described_records = 0
        self._changeable = Changeable(settings, load_settings, self._counters)
        self._oldest_path = ""  # of the completed segment whose age is shared

    def run(self) -> int:
        settings = self._settings
        setproctitle("arcpipe: supervisor")
        notes = self._counters.notes("supervisor")
        logs.setup(settings.log.level, settings.log.format, "supervisor", notes.add)
        log.info("arcpipe %s starting, log in %s, store %s", __version__, settings.wal.dir, settings.storage.url)
        _raise_file_limit(settings.server.max_connections)
        self._changeable.read()
        self._manager.status("recovering the log")
        self._directory.make()
        # First, as they hold the directory where the version before this one could not hand its lock over.
        self._end_former_workers()
        self._directory.lock(inherited_fds=[fd for name, fd in self._inheritance.fds if name == _LOCK])
        # First, because on a full disk it makes the space that all the rest needs.
        self._recovered = recover_at_start(self._directory, self._show_recovery)
        self._node = self._directory.next_boot()
        remove_recovered(self._directory, settings.wal.keep_recovered_seconds)
        self._listen()
        self._counters.node[Node.STARTED_US] = time.time_ns() // 1000
        self._measure()
        self._children = [self._uploader_child(), *(self._worker_child(slot) for slot in range(1, self._workers + 1))]
        code = self._watch()
        if code is None:
            self._hand_over()
        self._drain(hurry=code != 0)
        return code

    def _show_recovery(self, done: int, total: int) -> None:
        self._manager.needs_time()
        self._manager.status(f"recovering the log: {done} of {total} segments")

    def _listen(self) -> None:
        """Binds, with the sockets of a former process where they fit; each is a queue in which clients may wait."""
        server = self._settings.server
        inherited = [socket.socket(fileno=fd) for name, fd in self._inheritance.fds if name == _LISTENER]
        may_be_reached = self._settings.auth.enabled or self._settings.auth.allow_anonymous
        self._listeners = _bind(server.host, server.port, self._workers, inherited, may_be_reached)
        if self._settings.auth.enabled and not (server.tls_cert or _is_loopback(self._listeners[0].getsockname()[0])):
            log.warning(
                "tokens cross the network as plain text: set server.tls_cert and server.tls_key, or let only a proxy "
                "that speaks TLS reach this address"
            )
        unfit = [listener for listener in inherited if listener not in self._listeners]
        if unfit:
            log.info("%d sockets of the former process are at another address; closing them", len(unfit))
            self._manager.drop(_LISTENER)
        for listener in unfit:
            listener.close()
        self._manager.keep(_LISTENER, [listener.fileno() for listener in self._listeners])

    def _uploader_child(self) -> _Child:
        block = self._counters.uploader
        pulses = [
            _Pulse(block, Uploader.HEARTBEAT_US, self._patience(_UPLOADER_HUNG_SECONDS)),
            _Pulse(block, Uploader.STEPS, _UPLOADER_STUCK_SECONDS),
        ]
        return _Child("uploader", self._fork_uploader, lambda: bool(block[Uploader.PID]), pulses)

    def _worker_child(self, slot: int) -> _Child:
        block = self._counters.worker(slot)
        pulses = [_Pulse(block, Worker.HEARTBEAT_US, self._patience(_WORKER_HUNG_SECONDS))]
        return _Child(f"ingest {slot}", lambda: self._fork_worker(slot), lambda: bool(block[Worker.PID]), pulses)

    def _patience(self, seconds: float) -> float:
        return min(seconds, self._manager.watchdog_seconds / 3)

    # Watching

    def _watch(self) -> int | None:
        """Keeps every slot filled until told to stop; the exit code, or None to make place for a new version."""
        next_cleanup = time.monotonic() + _CLEANUP_SECONDS
        while True:
            now = time.monotonic()
            for child in reversed(self._children):
                if not child.pid and now >= child.start_at:
                    self._start(child)
            if self._announced:
                self._describe(now)
            elif all(child.is_ready() for child in self._children):
                self._announce()
            else:
                self._manager.needs_time()
            received = signal.sigtimedwait(_SIGNALS, _MEASURE_SECONDS if self._announced else _STARTING_SECONDS)
            match received.si_signo if received is not None else 0:
                case signal.SIGTERM | signal.SIGINT as number:
                    log.info("%s: stopping", signal.Signals(number).name)
                    return 0
                case signal.SIGHUP:
                    self._reload()
                case signal.SIGUSR2 if self._can_upgrade():
                    return None
            self._reap()
            vital = self._children[1:] if self._announced else self._children
            if any(child.deaths >= _MAX_EARLY_DEATHS for child in vital):
                log.critical(
                    "a process cannot be kept alive (see above); stopping. What was acknowledged is in the log"
                )
                return EXIT_GIVEN_UP
            if self._look_after_children(time.monotonic()):
                self._manager.is_well()
            self._measure()
            self._follow_reload()
            if time.monotonic() >= next_cleanup:
                next_cleanup += _CLEANUP_SECONDS
                self._remove_recovered()

    def _announce(self) -> None:
        host, port = self._listeners[0].getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        scheme = "http" if self._changeable.tls is None else "https"
        self._announced = f"{scheme}://{shown}:{port}"
        self._described_at = time.monotonic()
        log.info("serving on %s with %d workers", self._announced, self._workers)
        self._manager.ready(f"serving on {self._announced} with {self._workers} workers")

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
        self._manager.reloading("reading tokens, certificate and log level again")
        self._changeable.reload()

    def _follow_reload(self) -> None:
        if self._changeable.is_reload_over() and self._announced:
            self._manager.ready(f"serving on {self._announced} with {self._workers} workers")

    def _look_after_children(self, now: float) -> bool:
        """Kills a child that hangs. False if one hangs that cannot even be killed."""
        was_paused = now - self._looked_at > _PAUSED_SECONDS
        self._looked_at = now
        well = True
        for child in self._children:
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

    def _start(self, child: _Child) -> None:
        child.pid = child.start()
        child.started_at = time.monotonic()
        child.killed_at = 0.0

    def _reap(self) -> None:
        """Takes note of dead children and prepares their successors."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            for slot, child in enumerate(self._children):
                if child.pid == pid:
                    child.pid, child.status = 0, status
                    self._note_death(slot, child, pid)

    def _note_death(self, slot: int, child: _Child, pid: int) -> None:
        """Decides when a slot that has just become empty is filled again, and recovers what a worker left."""
        now = time.monotonic()
        child.deaths = 1 if now - child.started_at >= _HEALTHY_SECONDS else child.deaths + 1
        delay = min(_BACKOFF_FIRST_SECONDS * 2 ** (child.deaths - 1), _BACKOFF_LIMIT_SECONDS)
        child.start_at = now + delay
        log.error("%s (pid %d) died: %s; restarting in %.1f s", child.name, pid, _cause(child.status), delay)
        if slot == 0:
            self._counters.node[Node.UPLOADER_RESTARTS] += 1
            return
        self._counters.node[Node.WORKER_RESTARTS] += 1
        self._recover_slot(slot)

    def _recover_slot(self, slot: int) -> None:
        try:
            summary = recover_slot(self._directory, slot)
        except OSError as error:
            log.error("cannot recover the segments of ingest %d: %s; the next start tries again", slot, error)
            return
        self._recovered = RecoverySummary([*self._recovered.files, *summary.files], 0.0)

    def _measure(self) -> None:
        """Shares the figures that decide whether writes are taken."""
        node = self._counters.node
        try:
            sealed = self._directory.segments(SEALED)
            disk = os.statvfs(self._directory.path)
        except OSError as error:
            # A directory that is gone: workers find out by themselves; writes are refused until it is back.
            node[Node.DISK_FREE_BYTES] = 0
            log.error("cannot look at %s: %s", self._directory.path, error)
            with contextlib.suppress(OSError):
                self._directory.make()
            return
        node[Node.BACKLOG_SEGMENTS] = len(sealed)
        node[Node.BACKLOG_BYTES] = sum(file.size for file in sealed)
        self._note_oldest(sealed[0] if sealed else None)
        node[Node.DISK_FREE_BYTES] = disk.f_bavail * disk.f_frsize
        node[Node.DISK_TOTAL_BYTES] = disk.f_blocks * disk.f_frsize

    def _note_oldest(self, oldest: SegmentFile | None) -> None:
        """Shares since when the oldest record of the completed segments waits. Replayed ones count from their copy."""
        since = 0
        if oldest is not None:
            if oldest.path == self._oldest_path:
                return
            with contextlib.suppress(OSError):  # shipped since
                since = first_timestamp(oldest.path) if oldest.name.slot else int(oldest.modified * 1e6)
        self._oldest_path = oldest.path if oldest is not None else ""
        self._counters.node[Node.OLDEST_BACKLOG_US] = since

    def _remove_recovered(self) -> None:
        try:
            count, freed = remove_recovered(self._directory, self._settings.wal.keep_recovered_seconds)
        except OSError as error:
            log.error("cannot remove old recovered segments: %s", error)
            return
        if count:
            log.info("removed %d recovered segments, %.1f MB", count, freed / 1e6)

    # Stopping

    def _drain(self, hurry: bool) -> None:
        """Stops the workers, then gives the uploader its time. A second signal ends the waiting."""
        self._counters.node[Node.DRAINING] = 1
        self._manager.stopping("answering what is in flight")
        self._manager.drop(_LISTENER)
        for listener in self._listeners:
            listener.close()
        workers = self._children[1:]
        hurry = self._stop(workers, 0.0 if hurry else _WORKER_STOP_SECONDS) or hurry
        for slot, _ in enumerate(workers, 1):
            self._recover_slot(slot)  # only what a worker that had to be killed left
        self._manager.status("uploading what is in the log")
        self._ship_the_rest(0.0 if hurry else self._settings.shutdown.drain_seconds)
        self._measure()
        waiting = self._counters.node[Node.BACKLOG_SEGMENTS]
        if waiting:
            log.warning("stopped; %d completed segments ship at the next start", waiting)
        else:
            log.info("stopped; everything is uploaded")

    def _ship_the_rest(self, seconds: float) -> None:
        """Waits until the uploader is done. One that dies over it, or was dead already, has a successor.

        So has one that stopped too early, because it got the signal too: some service managers tell every process.
        """
        uploader = self._children[0]
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            if not uploader.pid:
                self._start(uploader)
            pid = uploader.pid
            if self._stop([uploader], left) or time.monotonic() >= deadline:
                return
            if uploader.status == 0:
                if not self._directory.segments(SEALED):
                    return
                continue
            self._note_death(0, uploader, pid)
            pause = min(uploader.start_at, deadline) - time.monotonic()
            if signal.sigtimedwait({signal.SIGTERM, signal.SIGINT}, max(0.0, pause)) is not None:
                return
        self._stop([uploader], 0.0)

    def _stop(self, children: list[_Child], seconds: float, signals: set[signal.Signals] = _SIGNALS) -> bool:
        """Ends processes: SIGTERM, then SIGKILL after that time. True if a second signal asked to hurry.

        Signals that are not among `signals` stay pending.
        """
        hurried = False
        for child in children:
            if child.pid:
                os.kill(child.pid, signal.SIGTERM if seconds else signal.SIGKILL)
        deadline = time.monotonic() + seconds
        while True:
            for child in children:
                if child.pid:
                    pid, status = os.waitpid(child.pid, os.WNOHANG)
                    if pid:
                        child.pid, child.status = 0, status
            if not any(child.pid for child in children):
                return hurried
            if time.monotonic() >= deadline:
                for child in children:
                    if child.pid:
                        log.warning("%s did not stop in time; killing it", child.name)
                        os.kill(child.pid, signal.SIGKILL)
                deadline = float("inf")
            if time.monotonic() < deadline < float("inf"):
                self._manager.needs_time()
            received = signal.sigtimedwait(signals, 0.1)
            if received is not None and received.si_signo in (signal.SIGTERM, signal.SIGINT) and not hurried:
                log.info("a second %s: not waiting any longer", signal.Signals(received.si_signo).name)
                hurried = True
                deadline = 0.0

    # Making place for a new version

    def _can_upgrade(self) -> bool:
        """Whether the program as it is installed now would start with the settings as they are now."""
        if not self._announced:
            log.error("SIGUSR2: this version is still starting, so it stays")
            return False
        try:
            check = subprocess.run(
                [*command_line(), "--check"],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=_CHECK_SECONDS,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            reason = str(error)
        else:
            if check.returncode == 0:
                return True
            reason = check.stderr.strip() or f"exit code {check.returncode}"
        log.error("SIGUSR2: the installed version would not start, so this one stays: %s", reason)
        return False

    def _hand_over(self) -> NoReturn:
        """Turns into the installed version. The workers serve until that has loaded its code (`_end_former_workers`).

        A signal to stop waits for the new version.
        """
        log.info("SIGUSR2: making place for the installed version")
        self._manager.reloading("making place for the installed version")
        uploader, *workers = self._children
        self._stop([uploader], _UPLOADER_HAND_OVER_SECONDS, {signal.SIGCHLD})
        self._manager.needs_time()
        become_new_program(
            Inheritance(
                [
                    # The file's comes first: an older version takes one, and that is the one it knows.
                    *(InheritedFd(_LOCK, fd) for fd in self._directory.lock_fds),
                    *(InheritedFd(_LISTENER, listener.fileno()) for listener in self._listeners),
                ],
                [worker.pid for worker in workers if worker.pid],
            )
        )

    def _end_former_workers(self) -> None:
        """Ends the workers of the program that this process was. From now on connections wait in their queues."""
        former = []
        for pid in self._inheritance.children:
            former.append(_Child("worker of the former version", lambda: 0, lambda: True, []))
            former[-1].pid = pid
        self._stop(former, _WORKER_STOP_SECONDS, {signal.SIGCHLD})

    # Forking

    def _fork_worker(self, slot: int) -> int:
        block = self._counters.worker(slot)
        block[Worker.PID] = 0
        access = self._changeable.access()  # before the fork: what is reloaded after it is news to the worker

        def work() -> int:
            # More than one where a former process had more workers: clients may be waiting at each.
            mine = self._listeners[slot - 1 :: self._workers]
            for listener in self._listeners:
                if listener not in mine:
                    listener.close()
            last = self._recovered.last_timestamp(slot)
            return IngestWorker(self._settings, slot, mine, self._counters, self._node, last, access).run()

        return self._fork(f"ingest {slot}", work)

    def _fork_uploader(self) -> int:
        # Here and not in the child: one that is started later is of this version, whatever is installed by then. Not at
        # the top: workers start first, and do not wait for it.
        from arcpipe.upload.uploader import run

        self._counters.uploader[Uploader.PID] = 0

        def work() -> int:
            for listener in self._listeners:
                listener.close()
            os.nice(self._settings.uploader.nice)
            return run(self._settings, self._directory, self._counters, self._node)

        return self._fork("uploader", work)

    def _fork(self, name: str, work: Callable[[], int]) -> int:
        """Runs `work` in a child that dies with this process; its pid."""
        parent = os.getpid()
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid:
            return pid
        code = 1
        try:
            # Before anything else, and checked afterwards: the parent may have died in between.
            if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
                raise OSError(
                    ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed: children could outlive the supervisor"
                )
            if os.getppid() == parent:
                notes = self._counters.notes(name)
                logs.setup(self._counters.node[Node.LOG_LEVEL], self._settings.log.format, name, notes.add)
                setproctitle(f"arcpipe: {name}")
                # Ctrl-C reaches the whole terminal group, other signals the whole service; the supervisor acts on them.
                for ignored in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR2):
                    signal.signal(ignored, signal.SIG_IGN)
                # SIGTERM stays blocked until the child has a handler for it: one that comes before is not lost then.
                signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS - {signal.SIGTERM})
                code = work()
        except BaseException:
            log.critical("%s ends with an error", name, exc_info=True)
        finally:
            os._exit(code)


def _bind(
    host: str, port: int, count: int, inherited: Sequence[socket.socket], may_be_reached: bool
) -> list[socket.socket]:
    """At least one socket per worker, all on the same address; they listen once their workers do.

    Inherited ones that are at this address are all among them.

    Args:
        may_be_reached: the address may be another than loopback.

    Raises:
        ArcpipeError: the address is not to be had, or may not be listened on.
    """
    wanted = port
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        # The settings are checked for what is written there; this is for what a name stands for.
        if not (may_be_reached or _is_loopback(address[0])):
            raise ArcpipeError(
                f"server.host = {host!r} is {address[0]}, and anyone who reaches it could write: listen on 127.0.0.1, "
                "set auth.enabled = true, or say with auth.allow_anonymous = true that this is meant"
            )
        listeners = [listener for listener in inherited if _is_at(listener, family, address)]
        if listeners:
            address = listeners[0].getsockname()
            port = 0
        while len(listeners) < count:
            listener = socket.socket(family, kind, protocol)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if port:
                # Somebody else's listening socket with SO_REUSEPORT would silently share our connections.
                _refuse_taken_port(family, kind, protocol, address)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            listener.bind(address)
            address = listener.getsockname()
            port = 0
            listeners.append(listener)
    except OSError as error:
        raise ArcpipeError(
            f"cannot listen on {host} port {wanted}: {error.strerror}. "
            "Set server.host and server.port to a free address."
        ) from error
    return listeners


def _is_at(listener: socket.socket, family: int, address: Any) -> bool:
    host, port = listener.getsockname()[:2]
    return listener.family == family and host == address[0] and address[1] in (0, port)


def _refuse_taken_port(family: int, kind: int, protocol: int, address: Any) -> None:
    with socket.socket(family, kind, protocol) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(address)


def _is_loopback(address: Any) -> bool:
    return ipaddress.ip_address(address).is_loopback


def _raise_file_limit(connections: int) -> None:
    """Makes room for that many connections in each worker, as far as the hard limit allows."""
    wanted = connections + _OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    if hard != resource.RLIM_INFINITY and hard < wanted:
        log.warning(
            "server.max_connections = %d needs %d open files, and a process may have %d: connections above that wait "
            "or are cut off. Raise the limit (ulimit -Hn, or LimitNOFILE= of the service), or lower the setting",
            *(connections, wanted, hard),
        )
        wanted = hard
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _cause(status: int) -> str:
    if os.WIFSIGNALED(status):
        return f"killed by {signal.Signals(os.WTERMSIG(status)).name}"
    return f"exit code {os.WEXITSTATUS(status)}"
