"""Who holds an address, as /proc tells: a check asks whether it is the instance that it would take over from.

The tables are proc_net_tcp(5) and unix(7). Only sockets that listen are in question: others keep nobody out for long.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import struct
from collections.abc import Iterator
from typing import Final

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_LISTENING: Final = "0A"  # TCP_LISTEN in the fourth column of /proc/net/tcp


def holds_port(pid: int, host: str, port: int) -> bool:
    """Whether a process has every socket that listens on a TCP address, or on one that includes it or is included.

    No such socket is False, too.
    """
    wanted = ipaddress.ip_address(host)
    there = {
        inode
        for name in ("tcp", "tcp6")
        for found, inode in _on_port(name, port)
        if found.packed == wanted.packed or found.is_unspecified or wanted.is_unspecified
    }
    return bool(there) and there <= _sockets_of(pid)


def holds_path(pid: int, path: str) -> bool:
    """Whether a process has every Unix socket that is bound to a path, and there is one."""
    there = {fields[6] for fields in _rows("unix") if len(fields) > 7 and fields[7] == path}
    return bool(there) and there <= _sockets_of(pid)


def _on_port(name: str, port: int) -> Iterator[tuple[_Address, str]]:
    """The addresses of sockets that listen on a port, and their inodes."""
    for fields in _rows(name):
        if len(fields) <= 9 or fields[3] != _LISTENING:
            continue
        address, _, number = fields[1].rpartition(":")
        if int(number, 16) == port:
            words = [int(address[start : start + 8], 16) for start in range(0, len(address), 8)]
            yield ipaddress.ip_address(struct.pack(f"={len(words)}I", *words)), fields[9].split()[0]


def _rows(name: str) -> Iterator[list[str]]:
    """The lines of a table below its head; none where there is no such table."""
    with contextlib.suppress(OSError), open(f"/proc/net/{name}", encoding="utf-8", errors="surrogateescape") as table:
        next(table, "")
        for line in table:
            yield line.rstrip("\n").split(None, 9 if name != "unix" else 7)


def _sockets_of(pid: int) -> set[str]:
    """The inodes of a process's sockets; none if it may not be looked at."""
    found = set()
    with contextlib.suppress(OSError):
        for fd in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                kind, _, rest = os.readlink(f"/proc/{pid}/fd/{fd}").partition(":[")
                if kind == "socket":
                    found.add(rest.rstrip("]"))
    return found
