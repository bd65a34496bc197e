"""The parent of all: takes the directory, recovers, binds, forks, watches, restarts, drains.

A plain synchronous process: it waits for signals and children in one place and never runs an event loop, so that it
can fork at any time. It holds the listening sockets too; a connection that arrives while a worker is being replaced
waits in the queue of its socket and is served by the successor.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from setproctitle import setproctitle

from arcpipe import __version__, logs
from arcpipe.counters import Counters, Node, Uploader, Worker
from arcpipe.errors import ArcpipeError
from arcpipe.wal.directory import SEALED, WALDirectory
from arcpipe.wal.recovery import RecoverySummary, recover_at_start, recover_slot, remove_recovered

if TYPE_CHECKING:
    from arcpipe.config import Settings

log = logging.getLogger(__name__)

_PR_SET_PDEATHSIG: Final = 1
_SIGNALS: Final = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD}
_MEASURE_SECONDS: Final = 0.25
_STARTING_SECONDS: Final = 0.02
_CLEANUP_SECONDS: Final = 60.0
# Workers get so long to answer what is in flight and seal before they are killed; nothing acknowledged is lost then.
_WORKER_STOP_SECONDS: Final = 15.0
_BACKOFF_FIRST_SECONDS: Final = 0.1
_BACKOFF_LIMIT_SECONDS: Final = 10.0
# A child that lived this long was well: its next death starts the backoff anew.
_HEALTHY_SECONDS: Final = 10.0
# Children that die this often in a row without ever having been well end the instance. Not the uploader, once there
# was one: writes go on without it for as long as the backlog limit allows.
_MAX_EARLY_DEATHS: Final = 8


def serve(settings: Settings) -> int:
    """Runs the whole instance until SIGTERM or SIGINT; the exit code of the process.

    Raises:
        ArcpipeError: it could not start; the text says why.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        return _Supervisor(settings).run()
    except OSError as error:
        raise ArcpipeError(f"cannot start: {error}") from error


class _Child:
    """One process slot: who is in it and when it may be filled again."""

    def __init__(self, name: str, start: Callable[[], int], started: Callable[[], bool]) -> None:
        self.name = name
        self.start = start
        self.is_ready = started
        self.pid = 0
        self.status = 0  # how its last process ended, as waitpid tells
        self.started_at = 0.0
        self.start_at = 0.0  # not before this monotonic time
        self.deaths = 0  # in a row, none of them after a healthy life


class _Supervisor:
    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._directory = WALDirectory(settings.wal.dir)
        self._workers = settings.server.worker_count()
        self._counters = Counters(self._workers)
        self._listeners: list[socket.socket] = []
        self._recovered = RecoverySummary([], 0.0)
        self._children: list[_Child] = []
        self._announced = False

    def run(self) -> int:
        settings = self._settings
        setproctitle("arcpipe: supervisor")
        log.info("arcpipe %s starting, log in %s, store %s", __version__, settings.wal.dir, settings.storage.url)
        self._directory.make()
        self._directory.lock()
        self._node = self._directory.next_boot()
        self._recovered = recover_at_start(self._directory)
        remove_recovered(self._directory, settings.wal.keep_recovered_seconds)
        self._listeners = _bind(settings.server.host, settings.server.port, self._workers)
        self._counters.node[Node.STARTED_US] = time.time_ns() // 1000
        self._measure()
        self._children = [
            _Child("uploader", self._fork_uploader, lambda: bool(self._counters.uploader[Uploader.PID])),
            *(self._worker_child(slot) for slot in range(1, self._workers + 1)),
        ]
        code = self._watch()
        self._drain(hurry=code != 0)
        return code

    def _worker_child(self, slot: int) -> _Child:
        block = self._counters.worker(slot)
        return _Child(f"ingest {slot}", lambda: self._fork_worker(slot), lambda: bool(block[Worker.PID]))

    # Watching

    def _watch(self) -> int:
        """Keeps every slot filled until told to stop; the exit code."""
        next_cleanup = time.monotonic() + _CLEANUP_SECONDS
        while True:
            now = time.monotonic()
            for child in self._children:
                if not child.pid and now >= child.start_at:
                    self._start(child)
            if not self._announced and all(child.is_ready() for child in self._children):
                self._announced = True
                host, port = self._listeners[0].getsockname()[:2]
                shown = f"[{host}]" if ":" in host else host
                log.info("serving on http://%s:%d with %d workers", shown, port, self._workers)
            received = signal.sigtimedwait(_SIGNALS, _MEASURE_SECONDS if self._announced else _STARTING_SECONDS)
            if received is not None and received.si_signo in (signal.SIGTERM, signal.SIGINT):
                log.info("%s: stopping", signal.Signals(received.si_signo).name)
                return 0
            if received is not None and received.si_signo == signal.SIGHUP:
                log.info("SIGHUP: there is nothing to reload")
            self._reap()
            vital = self._children[1:] if self._announced else self._children
            if any(child.deaths >= _MAX_EARLY_DEATHS for child in vital):
                log.critical(
                    "a process cannot be kept alive (see above); stopping. What was acknowledged is in the log"
                )
                return 1
            self._measure()
            if time.monotonic() >= next_cleanup:
                next_cleanup += _CLEANUP_SECONDS
                self._remove_recovered()

    def _start(self, child: _Child) -> None:
        child.pid = child.start()
        child.started_at = time.monotonic()

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
        node[Node.DISK_FREE_BYTES] = disk.f_bavail * disk.f_frsize
        node[Node.DISK_TOTAL_BYTES] = disk.f_blocks * disk.f_frsize

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
        for listener in self._listeners:
            listener.close()
        workers = self._children[1:]
        hurry = self._stop(workers, 0.0 if hurry else _WORKER_STOP_SECONDS) or hurry
        for slot, _ in enumerate(workers, 1):
            self._recover_slot(slot)  # only what a worker that had to be killed left
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

    def _stop(self, children: list[_Child], seconds: float) -> bool:
        """Ends processes: SIGTERM, then SIGKILL after that time. True if a second signal asked to hurry."""
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
            received = signal.sigtimedwait(_SIGNALS, 0.1)
            if received is not None and received.si_signo in (signal.SIGTERM, signal.SIGINT) and not hurried:
                log.info("a second %s: not waiting any longer", signal.Signals(received.si_signo).name)
                hurried = True
                deadline = 0.0

    # Forking

    def _fork_worker(self, slot: int) -> int:
        block = self._counters.worker(slot)
        block[Worker.PID] = 0

        def work() -> int:
            from arcpipe.ingest.worker import IngestWorker

            for other in self._listeners:
                if other is not self._listeners[slot - 1]:
                    other.close()
            last = self._recovered.last_timestamp(slot)
            listener = self._listeners[slot - 1]
            return IngestWorker(self._settings, slot, listener, self._counters, self._node, last).run()

        return self._fork(f"ingest {slot}", work)

    def _fork_uploader(self) -> int:
        self._counters.uploader[Uploader.PID] = 0

        def work() -> int:
            from arcpipe.upload.uploader import run

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
                logs.setup(self._settings.log.level, self._settings.log.format, name)
                setproctitle(f"arcpipe: {name}")
                # Ctrl-C reaches the whole terminal group; only the supervisor acts on it.
                signal.signal(signal.SIGINT, signal.SIG_IGN)
                signal.signal(signal.SIGHUP, signal.SIG_IGN)
                # SIGTERM stays blocked until the child has a handler for it: one that comes before is not lost then.
                signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS - {signal.SIGTERM})
                code = work()
        except BaseException:
            log.critical("%s ends with an error", name, exc_info=True)
        finally:
            os._exit(code)


def _bind(host: str, port: int, count: int) -> list[socket.socket]:
    """One socket per worker, all on the same address; they listen once their workers do.

    Raises:
        ArcpipeError: the address is not to be had.
    """
    wanted = port
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listeners = []
        for _ in range(count):
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


def _refuse_taken_port(family: int, kind: int, protocol: int, address: Any) -> None:
    with socket.socket(family, kind, protocol) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(address)


def _cause(status: int) -> str:
    if os.WIFSIGNALED(status):
        return f"killed by {signal.Signals(os.WTERMSIG(status)).name}"
    return f"exit code {os.WEXITSTATUS(status)}"
