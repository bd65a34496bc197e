"""Find the processes of this machine that listen at an address, as far as this user may see them.

From proc_pid_net(5) and proc_pid_fd(5).
"""

from __future__ import annotations

import os
import re
import socket
from pathlib import Path
from typing import Final

from benchmarks.system.server import process_tree

_LISTEN: Final = "0A"
# Title of a process that forks workers, and of its workers: `arcpipe: ingest 1`, `nginx: master process`.
_FAMILY: Final = re.compile(r"[\w.-]+(?=: )")


def processes_at(host: str, port: int) -> list[int]:
    """Return the process ids of a server that listens at an address, with its parents of the same family and children.

    There are none if the address is another machine's, or the processes are another user's.
    """
    if not _is_local(host):
        return []
    sockets = _listening(port)
    holders = [pid for pid in _process_ids() if sockets & _sockets_of(pid)]
    found: list[int] = []
    for holder in holders:
        for pid in process_tree(_head_of_family(holder)):
            if pid not in found:
                found.append(pid)
    return found


def _is_local(host: str) -> bool:
    """Tell whether an address is this machine's: whether a socket can be bound to it."""
    try:
        kind, _, _, _, address = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0]
        with socket.socket(kind, socket.SOCK_STREAM) as attempt:
            attempt.bind(address)
    except OSError:
        return False
    return True


def _listening(port: int) -> set[str]:
    """Return the names in /proc/PID/fd of the sockets that listen at a port of any address."""
    found = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:] if os.path.exists(table) else ():
            fields = line.split()
            if fields[3] == _LISTEN and int(fields[1].rpartition(":")[2], 16) == port:
                found.add(f"socket:[{fields[9]}]")
    return found


def _process_ids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _sockets_of(pid: int) -> set[str]:
    found = set()
    try:
        for entry in os.scandir(f"/proc/{pid}/fd"):
            try:
                found.add(os.readlink(entry.path))
            except FileNotFoundError:  # closed since
                pass
    except (FileNotFoundError, PermissionError, ProcessLookupError):
        pass
    return found


def _head_of_family(pid: int) -> int:
    """Return the highest ancestor of a process of which all descendants down to it have one family name."""
    family = _family(pid)
    while family and _family(parent := _parent(pid)) == family:
        pid = parent
    return pid


def _family(pid: int) -> str:
    try:
        title = Path(f"/proc/{pid}/cmdline").read_bytes().partition(b"\0")[0].decode("utf-8", "replace")
    except (FileNotFoundError, ProcessLookupError):
        return ""
    found = _FAMILY.match(title)
    return found[0] if found else ""


def _parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return 0
