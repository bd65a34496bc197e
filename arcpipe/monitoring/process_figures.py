"""What the kernel tells of a process: memory, CPU, open files and when it started, from /proc.

Each figure that cannot be read is None, and never 0: a process that has just ended, or one of another user.
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
# Fields of /proc/PID/stat (proc(5)), counted from the one behind the name, which may hold anything.
_UTIME: Final = 11
_STIME: Final = 12
_START_TIME: Final = 19
_RSS: Final = 21
# When the machine started, in Unix time. Looked up once, before any fork: all processes of an instance tell the same
# start of another one, whatever becomes of the clock.
_BOOT: Final = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)


class ProcessFigures(Struct, frozen=True):
    """One process at one moment."""

    pid: int
    memory_bytes: int | None  # resident
    cpu_seconds: float | None  # in user and kernel mode, since its start
    open_files: int | None
    max_files: int | None  # its limit; infinite ones are None, too
    started: float | None  # seconds since the epoch


def look_at(pid: int) -> ProcessFigures:
    """The figures of a process, as far as they can be read."""
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
    # Linux tells it as the size of the directory since 6.2; before that, and in sandboxes, it has to be listed.
    path = f"/proc/{pid}/fd"
    return os.stat(path).st_size or len(os.listdir(path))


def _max_files(pid: int) -> int:
    with open(f"/proc/{pid}/limits", "rb") as file:
        line = next((line for line in file if line.startswith(b"Max open files")), b"")
    return int(line.split()[3])
