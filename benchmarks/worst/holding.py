"""Kinds of stalled connections, and the client that opens them.

A kind defines the bytes of each connection and the way to send them. The client runs in a process of its own, and sends
as much as the server takes. It reads only if the kind says so, and keeps its connections until its standard input ends.
"""

from __future__ import annotations

import argparse
import json
import select
import socket
import ssl
import sys
import time
from collections.abc import Mapping
from itertools import islice
from typing import Any, Final, NamedTuple

from benchmarks.worst.attacks import request

COMMAND: Final = (sys.executable, "-m", "benchmarks.worst.holding")

# Seconds without a byte sent, after which the server takes no more.
_STILL_SECONDS: Final = 1.0
# Seconds after which a client stops opening and filling connections, and goes on with those that it has.
_OPEN_SECONDS: Final = 120.0
# TLS handshakes of this client at a time; fewer than the limit of the server.
_HANDSHAKES: Final = 64
_HANDSHAKE_SECONDS: Final = 20.0
# Seconds between passes over connections that the server has not finished reading.
_PASS_SECONDS: Final = 0.05
# Receive buffer of a client that reads nothing: bytes in the kernel are not in the worker's memory.
_SMALL_RECEIVE_BYTES: Final = 4096

_GET: Final = b"GET %b HTTP/1.1\r\nHost: x\r\n%b\r\n"
_BEGUN: Final = b"GET /ping HTTP/1.1\r\nHost: x\r\n"
_POST: Final = b"POST /write/v2/msgpack HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b"
_CHUNKED: Final = b"POST /write/v2/msgpack HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n%b"
_PING: Final = _GET % (b"/ping", b"")


class Kind(NamedTuple):
    """The behaviour of each connection of a kind."""

    what: str
    data: bytes = b""
    piece_bytes: int = 0  # sent at a time, on one connection after the other; 0 for as much as the server takes
    reads: bool = False
    tls: bool = False
    hello: bool = False  # `data` is the first half of a TLS handshake
    listener: Mapping[str, Any] | None = None  # settings of an additional listener
    settings: Mapping[str, str] = {}


def _header_lines(count: int, size: int) -> bytes:
    return b"".join(b"h%03d: %b\r\n" % (number, b"v" * (size - 8)) for number in range(count))


def _hello() -> bytes:
    """Return the first message of a handshake."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    handshake = context.wrap_bio(incoming, outgoing)
    try:
        handshake.do_handshake()
    except ssl.SSLWantReadError:
        pass
    return outgoing.read()


_TLS: Final[Mapping[str, Any]] = {"tls": True}
_PROXY: Final[Mapping[str, Any]] = {"proxy_protocol": True}
_LIMITED: Final[Mapping[str, str]] = {
    "limits.per_address.connections": "1000000",
    "limits.per_address.requests_per_second": "1000000",
    "limits.per_address.mb_per_second": "100000",
    "access_log.format": "json",
    "access_log.path": "access.log",
}

KINDS: Final[dict[str, Kind]] = {
    "idle": Kind("sends nothing"),
    "asked": Kind("has asked once and keeps the connection", _PING, reads=True),
    "head": Kind("an unfinished head of 31 kB, one line", _BEGUN + b"a: " + b"v" * 31_000),
    "head-dribbles": Kind("the same in pieces of 1 kB", _BEGUN + b"a: " + b"v" * 31_000, piece_bytes=1000),
    "head-lines": Kind("an unfinished head of 99 lines, 31 kB", _BEGUN + _header_lines(98, 310)),
    "head-short-lines": Kind("an unfinished head of 99 lines, 1 kB", _BEGUN + _header_lines(98, 10)),
    "head-refused": Kind(
        "a head of 60 kB, which is refused, and keeps the connection", b"GET /ping HTTP/1.1\r\na: " + b"v" * 60_000
    ),
    "pipelined": Kind("GET / again and again, and reads no answer", _GET % (b"/", b"") * 8000),
    "pipelined-heads": Kind("the same with 20 kB of header lines each", _GET % (b"/", _header_lines(90, 222)) * 60),
    "waiting-heads": Kind(
        "a costly body, and GET /ping with 98 short header lines again and again after it",
        request("/write", b"".join(b"m f%x=1\n" % number for number in range(4000)))
        + _GET % (b"/ping", _header_lines(98, 10)) * 200,
    ),
    "unread": Kind("GET /metrics again and again, and reads no answer", _GET % (b"/metrics", b"") * 4000),
    "unread-pings": Kind("GET /ping again and again, and reads no answer", _PING * 40_000),
    "asked-head": Kind(
        "has asked once with 31 kB of header lines, and keeps the connection",
        _GET % (b"/ping", _header_lines(98, 310)),
        reads=True,
    ),
    "body-small": Kind("half of a body of 2 kB", _POST % (2000, bytes(1000))),
    "body": Kind("64 kB of a body of 128 kB", _POST % (128 << 10, bytes(64 << 10))),
    "body-pieces": Kind("the same in pieces of 1,000 bytes", _POST % (128 << 10, bytes(64 << 10)), piece_bytes=1000),
    "chunks": Kind("20,000 chunks of one byte", _CHUNKED % (b"1\r\nx\r\n" * 20_000)),
    "trailers": Kind("31 kB of trailers after a body", _CHUNKED % (b"1\r\nx\r\n0\r\n" + _header_lines(98, 310))),
    "trailer": Kind("a trailer without an end after a body", _CHUNKED % (b"1\r\nx\r\n0\r\na: " + b"v" * 300_000)),
    "tls": Kind("TLS, sends nothing", tls=True, listener=_TLS),
    "tls-asked": Kind("TLS, has asked once", _PING, tls=True, reads=True, listener=_TLS),
    "tls-body": Kind("TLS, 64 kB of a body of 128 kB", _POST % (128 << 10, bytes(64 << 10)), tls=True, listener=_TLS),
    "tls-unread": Kind(
        "TLS, GET / again and again, and reads no answer", _GET % (b"/", b"") * 8000, tls=True, listener=_TLS
    ),
    "tls-large": Kind(
        "TLS, has sent a refused body of 1 MB and keeps the connection",
        b"POST /nothing HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n" + bytes(1_000_000),
        tls=True,
        reads=True,
        listener=_TLS,
    ),
    "tls-handshake": Kind("the first message of a TLS handshake", hello=True, listener=_TLS),
    "proxy": Kind("half of a PROXY header", b"PROXY TCP4 192.0.2.7 ", listener=_PROXY),
    "limited": Kind("has asked once, with limits per address and an access log", _PING, reads=True, settings=_LIMITED),
}


class _Held:
    """One connection of the client."""

    __slots__ = ("at", "is_over", "sock")

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.at = 0  # bytes sent
        self.is_over = False


def _connect(host: str, port: int, number: int, kind: Kind) -> socket.socket:
    sock = socket.socket()
    if not kind.reads:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _SMALL_RECEIVE_BYTES)
    # One address has 28,000 ports, and connections in TIME_WAIT hold some; so use four addresses.
    sock.bind((f"127.0.0.{1 + number % 4}", 0))
    sock.connect((host, port))
    return sock


def _shake_hands(socks: list[socket.socket], context: ssl.SSLContext) -> list[ssl.SSLSocket]:
    """Shake hands on all sockets at a time; return those on which it succeeded."""
    done = []
    waiting = []
    for sock in socks:
        sock.setblocking(False)
        waiting.append(context.wrap_socket(sock, do_handshake_on_connect=False))
    deadline = time.monotonic() + _HANDSHAKE_SECONDS
    while waiting and time.monotonic() < deadline:
        for one in list(waiting):
            try:
                one.do_handshake()
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
                continue
            except OSError:
                waiting.remove(one)
                continue
            waiting.remove(one)
            done.append(one)
        time.sleep(0.001)
    return done


def _open(kind: Kind, count: int, host: str, port: int) -> list[_Held]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    held: list[_Held] = []
    deadline = time.monotonic() + _OPEN_SECONDS
    numbers = iter(range(count))
    while (batch := list(islice(numbers, _HANDSHAKES))) and time.monotonic() < deadline:
        socks = [_connect(host, port, number, kind) for number in batch]
        held += map(_Held, _shake_hands(socks, context) if kind.tls else socks)
    for one in held:
        one.sock.setblocking(False)
    return held


def _send_on(held: list[_Held], data: bytes, piece_bytes: int) -> int:
    """Send on all connections once; return the bytes that the server took."""
    moved = 0
    size = len(data)
    for one in held:
        while one.at < size and not one.is_over:
            end = one.at + piece_bytes if piece_bytes else size
            try:
                sent = one.sock.send(memoryview(data)[one.at : end])
            except (BlockingIOError, ssl.SSLWantWriteError, ssl.SSLWantReadError):
                break
            except OSError:
                one.is_over = True
                break
            one.at += sent
            moved += sent
            if piece_bytes:
                break
    return moved


def _read_on(held: list[_Held]) -> None:
    for one in held:
        try:
            one.is_over = one.is_over or not one.sock.recv(1 << 16)
        except (BlockingIOError, ssl.SSLWantReadError):
            pass
        except OSError:
            one.is_over = True


def _count_open(held: list[_Held]) -> int:
    """Count the connections that the server has not ended."""
    poll = select.poll()
    for one in held:
        poll.register(one.sock, select.POLLRDHUP)
    return len(held) - len(poll.poll(0))


def hold(name: str, count: int, host: str, port: int) -> None:
    """Open and fill the connections; print their state now, and again for each line of standard input."""
    kind = KINDS[name]
    data = _hello() if kind.hello else kind.data
    held = _open(kind, count, host, port)
    deadline = time.monotonic() + _OPEN_SECONDS
    moved_at = time.monotonic()
    while time.monotonic() < min(moved_at + _STILL_SECONDS, deadline):
        if _send_on(held, data, kind.piece_bytes):
            moved_at = time.monotonic()
        else:
            time.sleep(_PASS_SECONDS)
        if kind.reads:
            _read_on(held)
    while True:
        told = {"opened": len(held), "open": _count_open(held), "sent_bytes": sum(one.at for one in held)}
        print(json.dumps(told), flush=True)
        while not select.select([sys.stdin], [], [], _PASS_SECONDS)[0]:
            if not kind.hello:
                _send_on(held, data, kind.piece_bytes)
            if kind.reads:
                _read_on(held)
        if not sys.stdin.readline():
            return


def main() -> None:
    """Hold the connections of the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("count", type=int)
    parser.add_argument("host")
    parser.add_argument("port", type=int)
    arguments = parser.parse_args()
    hold(arguments.kind, arguments.count, arguments.host, arguments.port)


if __name__ == "__main__":
    main()
