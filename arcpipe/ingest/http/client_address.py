"""The client's address: the other end of the connection, or the address that a trusted proxy tells.

An address is text, such as "192.0.2.7", "2001:db8::7" or "unix", with one spelling each. A header counts only on a
connection from `server.trusted_proxies`, and only those of its elements that trusted proxies have added. So a client
cannot forge its address.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
from collections.abc import Iterable, Mapping
from typing import Final

from arcpipe.config.listeners import UNIX
from arcpipe.ingest.http.proxy_header import normal_address

# Answers of each kind that are remembered: a proxy sends the same clients again and again.
_MAX_REMEMBERED: Final = 4096
_MAX_REMEMBERED_BYTES: Final = 256  # of a header's value
# Proxies in a row up to which a header is followed.
_MAX_HOPS: Final = 16

# An address in a header: with or without port, IPv6 in brackets if it has one.
_BRACKETED: Final = re.compile(r"\[([0-9A-Fa-f:.]+)\](?::[0-9]{1,5})?")
_IPV4_AND_PORT: Final = re.compile(r"([0-9.]+):[0-9]{1,5}")
# The parameter of RFC 7239 that names the client; quotes are needed around brackets and colons.
_FOR: Final = re.compile(r'(?:^|;)[ \t]*for="?([^";, \t]+)"?[ \t]*(?=;|$)', re.IGNORECASE)


def peer_of(transport: asyncio.BaseTransport) -> str:
    """Return the address at the other end of a connection."""
    name = transport.get_extra_info("peername")
    # A Unix socket has a string, mostly empty; a TCP connection that is gone already has None.
    if not isinstance(name, tuple):
        return UNIX if isinstance(name, str | bytes) else "unknown"
    host: str = name[0]
    # Nearly all addresses are IPv4, with one spelling only.
    return host if ":" not in host else normal_address(host) or host


class TrustedProxies:
    """`server.trusted_proxies`: whether an address is one of them."""

    def __init__(self, entries: Iterable[str]) -> None:
        """Parse the entries of server.trusted_proxies.

        Args:
            entries: valid ones, as the settings have checked them.
        """
        entries = tuple(entries)
        self._unix = UNIX in entries
        self._networks = [ipaddress.ip_network(entry) for entry in entries if entry != UNIX]
        self._known: dict[str, bool] = {}

    def __bool__(self) -> bool:
        return self._unix or bool(self._networks)

    def has(self, address: str) -> bool:
        """Return whether an address, as `peer_of` writes it, belongs to a trusted proxy."""
        known = self._known.get(address)
        if known is None:
            if len(self._known) >= _MAX_REMEMBERED:
                self._known.clear()
            known = self._known[address] = self._look(address)
        return known

    def _look(self, address: str) -> bool:
        if address == UNIX:
            return self._unix
        try:
            found = ipaddress.ip_address(address)
        except ValueError:
            return False
        return any(found in network for network in self._networks)


class ForwardedFor:
    """The header in which trusted HTTP proxies name their client."""

    def __init__(self, trusted: TrustedProxies, header: str) -> None:
        """Read one header, of requests from trusted proxies only.

        Args:
            header: "X-Forwarded-For" or "Forwarded".
        """
        self._trusted = trusted
        self._name = header.lower().encode("ascii")
        self._find = _in_forwarded if header == "Forwarded" else _in_x_forwarded_for
        self._known: dict[bytes, str | None] = {}

    def is_of(self, peer: str) -> bool:
        """Return whether the header counts on connections from `peer`."""
        return self._trusted.has(peer)

    def client(self, peer: str, headers: Mapping[bytes, bytes]) -> str:
        """Return the client of a request that came from `peer` with these headers."""
        value = headers.get(self._name)
        if value is None or not self._trusted.has(peer):
            return peer
        try:
            return self._known[value] or peer
        except KeyError:
            pass
        found = self._rightmost_untrusted(value)
        if len(value) <= _MAX_REMEMBERED_BYTES:
            if len(self._known) >= _MAX_REMEMBERED:
                self._known.clear()
            self._known[value] = found
        return found or peer

    def _rightmost_untrusted(self, value: bytes) -> str | None:
        """Return the address that the outermost trusted proxy has seen.

        Each proxy adds its client at the end, so everything to the left of an untrusted address may be invented. A
        proxy that names no address ends the search: its own address is then the nearest known one to the client.
        """
        last: str | None = None
        for element in reversed(value.decode("latin-1").rsplit(",", _MAX_HOPS)[-_MAX_HOPS:]):
            found = self._find(element.strip(" \t"))
            if found is None:
                break
            last = found
            if not self._trusted.has(found):
                break
        return last


def _in_x_forwarded_for(element: str) -> str | None:
    return _address(element)


def _in_forwarded(element: str) -> str | None:
    names = _FOR.findall(element)
    return _address(names[0]) if len(names) == 1 else None


def _address(text: str) -> str | None:
    match = _BRACKETED.fullmatch(text) or _IPV4_AND_PORT.fullmatch(text)
    return normal_address(match[1] if match else text)
