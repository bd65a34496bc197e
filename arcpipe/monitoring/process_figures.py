"""Figures of a process from /proc: memory, CPU time, open files and start time.

A figure that cannot be read is None, never 0. That happens if the process has just ended, or is of another user.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Final, TypeVar

from msgspec import Struct

T = TypeVar("T")

_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")
_TICKS_PER_SECOND: Final = os.sysconf("SC_CLK_TCK")
# Fields of /proc/PID/stat (proc(5)), counted from the first one after the name. The name may contain spaces.
_UTIME: Final = 11
_STIME: Final = 12
_START_TIME: Final = 19
_RSS: Final = 21
# Start of the machine, in Unix time. It is read once, before any fork, so that all processes of an instance report the
# same start time of a process, even if the clock is set.
_BOOT: Final = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)


class ProcessFigures(Struct, frozen=True):
    """One process at one moment."""

    pid: int
    memory_bytes: int | None  # resident
    cpu_seconds: float | None  # in user and kernel mode, since its start
    open_files: int | None
    max_files: int | None  # its limit; None also if there is no limit
    started: float | None  # seconds since the epoch


def look_at(pid: int) -> ProcessFigures:
    """Return the figures of a process, as far as they can be read."""
    stat = _try(lambda: _stat(pid))
    return ProcessFigures(
        pid=pid,
        memory_bytes=stat[_RSS] * _PAGE_BYTES if stat else None,
        cpu_seconds=(stat[_UTIME] + stat[_STIME]) / _TICKS_PER_SECOND if stat else None,
        open_files=_try(lambda: _open_files(pid)),
        max_files=_try(lambda: _max_files(pid)),
        started=round(_BOOT + stat[_START_TIME] / _TICKS_PER_SECOND, 2) if stat else None,
    )


def _try(read: Callable[[], T]) -> T | None:
    try:
        return read()
    except (OSError, ValueError, IndexError):
        return None


def _stat(pid: int) -> list[int]:
    with open(f"/proc/{pid}/stat", "rb") as file:
        fields = file.read().rpartition(b")")[2].split()
    return [0, *map(int, fields[1:])]  # the first one is a letter


def _open_files(pid: int) -> int:
    # Since Linux 6.2 this is the size of the directory; older kernels and sandboxes need a listing.
    path = f"/proc/{pid}/fd"
    return os.stat(path).st_size or len(os.listdir(path))


def _max_files(pid: int) -> int:
    with open(f"/proc/{pid}/limits", "rb") as file:
        line = next((line for line in file if line.startswith(b"Max open files")), b"")
    return int(line.split()[3])
