"""The supervisor's children: whether one is well, when it may be started again, and how it is forked.

Knows nothing of the work that they do.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import logging
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Sequence, Set
from typing import Final

from arcpipe import logs

log = logging.getLogger(__name__)

_PR_SET_PDEATHSIG: Final = 1
_PAUSES: Final = (0.1, 10.0)  # seconds before the first and the later tries; in between each doubles
# A child that lived this long after it was ready was well: its next death starts the backoff anew.
_HEALTHY_SECONDS: Final = 10.0
# Children that die this often in a row without ever having been well are not kept alive by yet another try.
_MAX_EARLY_DEATHS: Final = 8
# Of the kernel's memory killer, in thousandths of the memory: so much sooner than the supervisor a child is taken.
_OOM_SCORE: Final = 100
_OOM_SCORE_FILE: Final = "/proc/self/oom_score_adj"
# A start that takes longer hangs.
_START_HUNG_SECONDS: Final = 60.0

# The last lines of a process wait so long for whoever reads them.
_LAST_LINES_SECONDS: Final = 1.0
# A process that waits for its disk is not gone before that answers, whatever it is sent: nobody waits longer for it.
_UNKILLABLE_SECONDS: Final = 10.0

EXIT_SHORTAGE: Final = os.EX_TEMPFAIL
"""How a child ends that the machine refused something: space, memory, a thread, a file. It is no fault of its own."""


class Pulse:
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


class Child:
    """One process slot: who is in it, whether it is well, and when it may be filled again. Times are monotonic."""

    def __init__(
        self,
        name: str,
        start: Callable[[], int],
        started: Callable[[], bool],
        pulses: list[Pulse],
        pauses: tuple[float, float] = _PAUSES,
    ) -> None:
        self.name = name
        self.pulses = pulses
        self.pid = 0  # of the process that is there; 0 without one
        self.status = 0  # how its last process ended, as waitpid tells
        self.killed_at = 0.0  # because it hung
        self.started_at = 0.0
        self.start_at = 0.0  # not before this time
        self.failures = 0  # starts that failed and lives that ended early, in a row
        self.was_well = False  # ever
        self._start = start
        self._has_started = started
        self._first_pause, self._longest_pause = pauses
        self._early_deaths = 0  # in a row, by its own fault

    @property
    def is_ready(self) -> bool:
        return bool(self.pid) and self._has_started()

    @property
    def has_been_tried(self) -> bool:
        """Whether nobody needs to wait for it any longer: it is ready, or its start has failed."""
        return self.is_ready or self.failures > 0

    @property
    def is_hopeless(self) -> bool:
        """Whether it dies again and again by its own fault, and never was well."""
        return self._early_deaths >= _MAX_EARLY_DEATHS and not self.was_well

    def start(self, now: float) -> None:
        """Fills the slot; a start that fails is tried again after a backoff, however often."""
        try:
            self.pid = self._start()
        except Exception as error:
            delay = self.put_off(now)
            is_expected = is_shortage(error)
            log.error("cannot start %s: %s; trying again in %.1f s", self.name, error, delay, exc_info=not is_expected)
            return
        self.started_at = now
        self.killed_at = 0.0
        self.forgive(now)  # or the silence of a long pause would be its own

    def note_end(self, now: float, status: int) -> float:
        """Empties the slot after its process's death; seconds until it may be filled again."""
        self.check(now)
        self.pid, self.status = 0, status
        if not (os.WIFEXITED(status) and os.WEXITSTATUS(status) == EXIT_SHORTAGE):
            self._early_deaths += 1
        return self.put_off(now)

    def put_off(self, now: float) -> float:
        """Leaves the slot empty for a while, the longer the more often in a row; seconds."""
        self.failures += 1
        delay = min(self._first_pause * 2.0 ** min(self.failures - 1, 16), self._longest_pause)
        self.start_at = now + delay
        return delay

    def check(self, now: float) -> None:
        """Forgets its failures once it has been well."""
        if self.is_ready and now - self.started_at >= _HEALTHY_SECONDS:
            self.was_well = True
            self.failures = self._early_deaths = 0

    def hangs(self, now: float) -> bool:
        """Whether a process that is there shows no sign of life."""
        if not self._has_started():
            self.forgive(now)  # the pulse is expected from when it has started
            return now - self.started_at > _START_HUNG_SECONDS
        return any(pulse.is_missed(now) for pulse in self.pulses)

    def forgive(self, now: float) -> None:
        for pulse in self.pulses:
            pulse.forgive(now)


def fork(name: str, prepare: Callable[[], None], work: Callable[[], int]) -> int:
    """Runs `prepare` and `work` in a child that dies with this process; its pid.

    Raises:
        OSError: there is no room for another process.
    """
    parent = os.getpid()
    for stream in filter(None, (sys.stdout, sys.stderr)):  # None where this process was started without
        stream.flush()
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        # Before anything else, and checked afterwards: the parent may have died in between.
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
            os._exit(code)  # whatever happens: this is not to go on as a second supervisor


def be_killed_sooner(score_file: str) -> None:
    """Has the kernel's memory killer take this process rather than its parent, without which all others end.

    A parent that is protected (`OOMScoreAdjust=` of the service) would protect its children as much, by inheritance.
    """
    with contextlib.suppress(OSError, ValueError), open(score_file, "r+", encoding="ascii") as file:
        inherited = int(file.read())
        if inherited < 0:
            file.seek(0)
            file.write(f"{min(0, inherited + _OOM_SCORE)}\n")


def stop(children: Sequence[Child], seconds: float, signals: Set[signal.Signals], wait: Callable[[], None]) -> bool:
    """Ends processes: SIGTERM, then SIGKILL after that time; calls `wait` meanwhile.

    Signals that are not among `signals` stay pending. One that not even SIGKILL ends keeps its pid. Returns whether a
    second signal asked to hurry.
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
    """Sends a signal to all that are there."""
    for child in children:
        if child.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child.pid, number)


def is_shortage(error: BaseException) -> bool:
    """Whether the machine refused something that it may give later: to wait and to try again is all there is to do."""
    return isinstance(error, OSError) or lacks_room(error)


def lacks_room(error: BaseException) -> bool:
    """Whether there was no room for another process or thread, or no memory."""
    if isinstance(error, OSError):
        return error.errno in (errno.EAGAIN, errno.ENOMEM)
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and "can't start new thread" in str(error)
    )


def _place(error: BaseException) -> str:
    """The file and line that raised it."""
    frames = traceback.extract_tb(error.__traceback__)
    return f"{os.path.basename(frames[-1].filename)}:{frames[-1].lineno}" if frames else "unknown place"


def cause(status: int) -> str:
    """How a process ended, from what waitpid tells."""
    if os.WIFSIGNALED(status):
        return f"killed by {signal.Signals(os.WTERMSIG(status)).name}"
    code = os.WEXITSTATUS(status)
    return f"exit code {code}" + (", as the machine refused something" if code == EXIT_SHORTAGE else "")
