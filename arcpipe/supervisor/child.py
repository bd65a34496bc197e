"""The supervisor's children: how one is forked, watched, stopped, and started again.

This module knows nothing of the work that they do.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Sequence, Set
from typing import Final

from arcpipe import logs
from arcpipe.errors import lacks_room

log = logging.getLogger(__name__)

_PR_SET_PDEATHSIG: Final = 1  # of prctl(2)
_PAUSES: Final = (0.1, 10.0)  # seconds before the first retry and at most before later ones; each pause doubles
# A child that lives this long after it was ready is well: its next death starts the backoff anew.
_HEALTHY_SECONDS: Final = 10.0
# After this many early deaths in a row, a child that never was well is hopeless.
_MAX_EARLY_DEATHS: Final = 8
# Added to a child's OOM score, in thousandths of the memory, so that the kernel kills it before the supervisor.
_OOM_SCORE: Final = 100
_OOM_SCORE_FILE: Final = "/proc/self/oom_score_adj"
# A child that is not ready after this time hangs.
_START_HUNG_SECONDS: Final = 60.0

# At the end of a process, log lines that nobody has read yet get this time.
_LAST_LINES_SECONDS: Final = 1.0
# Longest wait after SIGKILL. A process that waits for its disk does not end before the disk answers.
_UNKILLABLE_SECONDS: Final = 10.0

KILL_SECONDS: Final = 10.0
"""A child that was killed has to be gone in this time; otherwise the watchdog is not fed any more."""

EXIT_SHORTAGE: Final = os.EX_TEMPFAIL
"""Exit code of a child that lacked something of the machine, such as space, memory, a thread or a file. The child is
not to blame."""


class Pulse:
    """A counter that changes while a process is well."""

    def __init__(self, block: memoryview, field: int, patience_seconds: float) -> None:
        self._block = block
        self._field = field
        self._patience_seconds = patience_seconds
        self._value = 0
        self._moved_at = 0.0

    def is_missed(self, now: float) -> bool:
        """Tell whether the counter has not changed for longer than the patience."""
        value = self._block[self._field]
        if value != self._value:
            self._value = value
            self._moved_at = now
        return now - self._moved_at > self._patience_seconds

    def forgive(self, now: float) -> None:
        """Expect the next change from now on."""
        self._moved_at = now


class Child:
    """One process slot: its pid, its health, and the earliest time to restart it. Times are monotonic, in seconds."""

    def __init__(
        self,
        name: str,
        start: Callable[[], int],
        started: Callable[[], bool],
        pulses: list[Pulse],
        pauses: tuple[float, float] = _PAUSES,
    ) -> None:
        """Make an empty slot.

        Args:
            start: forks the process and returns its pid.
            started: tells whether the process is ready.
            pulses: its heartbeats, expected from when it is ready.
            pauses: seconds before the first retry, and at most before later ones.
        """
        self.name = name
        self.pulses = pulses
        self.pid = 0  # of the running process; 0: none is running
        self.status = 0  # of the last process that ended, as waitpid returns it
        self.killed_at = 0.0  # because it hung; 0: not killed
        self.started_at = 0.0
        self.start_at = 0.0  # earliest time of the next start
        self.failures = 0  # consecutive failed starts and early deaths
        self.was_well = False  # at any time
        self._start = start
        self._has_started = started
        self._first_pause, self._longest_pause = pauses
        self._early_deaths = 0  # consecutive ones by its own fault

    @property
    def is_ready(self) -> bool:
        """Whether a process is running and has started its work."""
        return bool(self.pid) and self._has_started()

    @property
    def has_been_tried(self) -> bool:
        """Whether it is ready, or its start has failed, so that nobody needs to wait for it."""
        return self.is_ready or self.failures > 0

    @property
    def is_hopeless(self) -> bool:
        """Whether it dies repeatedly by its own fault, and never was well."""
        return self._early_deaths >= _MAX_EARLY_DEATHS and not self.was_well

    def start(self, now: float) -> None:
        """Fill the slot. If that fails, it is tried again after a backoff, without limit."""
        try:
            self.pid = self._start()
        except Exception as error:
            delay = self.put_off(now)
            is_expected = is_shortage(error)
            log.error("cannot start %s: %s; trying again in %.1f s", self.name, error, delay, exc_info=not is_expected)
            return
        self.started_at = now
        self.killed_at = 0.0
        self.forgive(now)  # else the time without a process would count as silence

    def note_end(self, now: float, status: int) -> float:
        """Empty the slot after its process died; return the seconds until it may be filled again."""
        self.check(now)
        self.pid, self.status = 0, status
        if not (os.WIFEXITED(status) and os.WEXITSTATUS(status) == EXIT_SHORTAGE):
            self._early_deaths += 1
        return self.put_off(now)

    def put_off(self, now: float) -> float:
        """Leave the slot empty for a pause that doubles with each failure; return its seconds."""
        self.failures += 1
        delay = min(self._first_pause * 2.0 ** min(self.failures - 1, 16), self._longest_pause)
        self.start_at = now + delay
        return delay

    def check(self, now: float) -> None:
        """Forget its failures if it is well."""
        if self.is_ready and now - self.started_at >= _HEALTHY_SECONDS:
            self.was_well = True
            self.failures = self._early_deaths = 0

    def hangs(self, now: float) -> bool:
        """Tell whether the running process has no heartbeat, or takes too long to start."""
        if not self._has_started():
            self.forgive(now)  # heartbeats are expected once it has started
            return now - self.started_at > _START_HUNG_SECONDS
        return any(pulse.is_missed(now) for pulse in self.pulses)

    def forgive(self, now: float) -> None:
        """Expect the next heartbeats from now on."""
        for pulse in self.pulses:
            pulse.forgive(now)


def fork(name: str, prepare: Callable[[], None], work: Callable[[], int]) -> int:
    """Run `prepare` and `work` in a child that dies with this process, and return its pid.

    Raises:
        OSError: the machine allows no further process.
    """
    parent = os.getpid()
    for stream in filter(None, (sys.stdout, sys.stderr)):  # None if this process was started without it
        stream.flush()
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        # First of all, and then the parent is checked: it may have died before this call.
        if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed: children could outlive the supervisor")
        if os.getppid() == parent:
            be_killed_sooner(_OOM_SCORE_FILE)
            prepare()
            code = work()
    except BaseException as error:
        if is_shortage(error):
            code = EXIT_SHORTAGE
            log.error("%s cannot go on: %s (%s)", name, error, _place(error))
        else:
            log.critical("%s ends with an error", name, exc_info=True)
    finally:
        try:
            logs.flush(_LAST_LINES_SECONDS)
        finally:
            os._exit(code)  # in any case: a child must not go on as a second supervisor


def be_killed_sooner(score_file: str) -> None:
    """Have the kernel's OOM killer choose this process before the supervisor, whose death ends all others.

    Children inherit the protection of a protected supervisor (`OOMScoreAdjust=` of the service); this reduces it.
    """
    with contextlib.suppress(OSError, ValueError), open(score_file, "r+", encoding="ascii") as file:
        inherited = int(file.read())
        if inherited < 0:
            file.seek(0)
            file.write(f"{min(0, inherited + _OOM_SCORE)}\n")


def stop(children: Sequence[Child], seconds: float, signals: Set[signal.Signals], wait: Callable[[], None]) -> bool:
    """End processes with SIGTERM, and with SIGKILL after some time.

    Args:
        children: those to end. A process that not even SIGKILL ends keeps its pid.
        seconds: time before SIGKILL; 0 sends it at once.
        signals: those to wait for meanwhile; all others stay pending.
        wait: called again and again meanwhile.

    Returns:
        True if a second signal asked to hurry.
    """
    hurried = False
    send(children, signal.SIGTERM if seconds else signal.SIGKILL)
    deadline = time.monotonic() + seconds
    unkillable = float("inf")
    while True:
        for child in children:
            if child.pid:
                pid, status = os.waitpid(child.pid, os.WNOHANG)
                if pid:
                    child.pid, child.status = 0, status
        left = [child for child in children if child.pid]
        now = time.monotonic()
        if not left:
            return hurried
        if now >= unkillable:
            for child in left:
                log.error("%s (pid %d) cannot be killed; not waiting for it any longer", child.name, child.pid)
            return hurried
        if now >= deadline:
            for child in left:
                log.warning("%s did not stop in time; killing it", child.name)
            send(left, signal.SIGKILL)
            deadline, unkillable = float("inf"), now + _UNKILLABLE_SECONDS
        wait()
        logs.flush()
        received = signal.sigtimedwait(signals, 0.1)
        if received is not None and received.si_signo in (signal.SIGTERM, signal.SIGINT) and not hurried:
            log.info("a second %s: not waiting any longer", signal.Signals(received.si_signo).name)
            hurried = True
            deadline = 0.0


def send(children: Iterable[Child], number: signal.Signals) -> None:
    """Send a signal to all running processes."""
    for child in children:
        if child.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child.pid, number)


def is_shortage(error: BaseException) -> bool:
    """Tell whether the machine refused something that it may grant later, so that a retry may succeed."""
    return isinstance(error, OSError) or lacks_room(error)


def _place(error: BaseException) -> str:
    """Return the file and line that raised an error."""
    frames = traceback.extract_tb(error.__traceback__)
    return f"{os.path.basename(frames[-1].filename)}:{frames[-1].lineno}" if frames else "unknown place"


def cause(status: int) -> str:
    """Describe how a process ended, from its status of waitpid."""
    if os.WIFSIGNALED(status):
        return f"killed by {signal.Signals(os.WTERMSIG(status)).name}"
    code = os.WEXITSTATUS(status)
    return f"exit code {code}" + (", as the machine refused something" if code == EXIT_SHORTAGE else "")
