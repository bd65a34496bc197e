"""Finds in /proc whether a process holds an address: a check asks whether that is the instance to take over from.

The tables are described in proc_net_tcp(5) and unix(7). Only listening sockets count: others block no address for long.
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
    """Tell whether one process holds all listening sockets that conflict with a TCP address, and there is one.

    A wildcard address conflicts with every address of the same port.
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
    """Tell whether one process holds all Unix sockets that are bound to a path, and there is one."""
    there = {fields[6] for fields in _rows("unix") if len(fields) > 7 and fields[7] == path}
    return bool(there) and there <= _sockets_of(pid)


def _on_port(name: str, port: int) -> Iterator[tuple[_Address, str]]:
    """Return addresses and inodes of the sockets that listen on a port."""
    for fields in _rows(name):
        if len(fields) <= 9 or fields[3] != _LISTENING:
            continue
        address, _, number = fields[1].rpartition(":")
        if int(number, 16) == port:
            words = [int(address[start : start + 8], 16) for start in range(0, len(address), 8)]
            yield ipaddress.ip_address(struct.pack(f"={len(words)}I", *words)), fields[9].split()[0]


def _rows(name: str) -> Iterator[list[str]]:
    """Return the rows of a table without its head; none if there is no such table."""
    with contextlib.suppress(OSError), open(f"/proc/net/{name}", encoding="utf-8", errors="surrogateescape") as table:
        next(table, "")
        for line in table:
            yield line.rstrip("\n").split(None, 9 if name != "unix" else 7)


def _sockets_of(pid: int) -> set[str]:
    """Return the inodes of a process's sockets; none if this process may not see them."""
    found = set()
    with contextlib.suppress(OSError):
        for fd in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                kind, _, rest = os.readlink(f"/proc/{pid}/fd/{fd}").partition(":[")
                if kind == "socket":
                    found.add(rest.rstrip("]"))
    return found
