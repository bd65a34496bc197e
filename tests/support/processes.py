"""The processes of a session, from /proc."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple


class Process(NamedTuple):
    """A process as /proc shows it."""

    pid: int
    title: str


def processes_of_session(session: int) -> list[Process]:
    """List the processes of a session that have a thread which still runs.

    A killed process shows as a zombie while one of its threads waits for a disk, and holds its locks until then.
    """
    found = []
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            if os.getsid(int(entry)) != session:  # far cheaper than to read it from /proc
                continue
        except ProcessLookupError:
            continue
        process = Path("/proc", entry)
        try:
            threads = list((process / "task").iterdir())
            title = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
        except OSError:  # gone since the listing
            continue
        if any(_state(thread) not in "ZX" for thread in threads):
            found.append(Process(int(entry), title))
    return found


def _state(directory: Path) -> str:
    """Return the state of a thread; X if it is gone."""
    try:
        return (directory / "stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "X"


def memory_kb(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1])
    raise AssertionError("no VmHWM")
