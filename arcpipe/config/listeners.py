"""Listeners and trusted proxies: the two settings that are lists, and their allowed values.

A listener is an address with the paths that are served there. `server.host` and `server.port` make the first one,
`server.listeners` the others. This module knows text and addresses; it opens no socket.
"""

from __future__ import annotations

import ipaddress
import os
import re
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, get_args

import msgspec
from msgspec import Struct

if TYPE_CHECKING:
    pass

Paths = Literal["all", "writes", "operations"]
Proxies = tuple[str, ...]

UNIX: Final = "unix"
"""The spelling of a peer over a Unix socket, which has no address."""

_UNIX_PREFIX: Final = "unix:"
_MAX_PATH_BYTES: Final = 107  # sun_path of unix(7) without its final NUL
_MAX_LISTENERS: Final = 16  # each costs every worker a socket and a table of paths
_MAX_PROXIES: Final = 256  # each address is compared with all of them
_TCP: Final = re.compile(r"(?:\[([0-9A-Za-z:.%_-]+)\]|([A-Za-z0-9._-]+)):([0-9]{1,5})")
_MODE: Final = re.compile(r"0?[0-7]{3}")
_OWNER: Final = re.compile(r"[A-Za-z0-9._-]*(?::[A-Za-z0-9._-]+)?")


class TCPAddress(NamedTuple):
    """A host name or IP address, without brackets, and a port; 0 is any free one."""

    host: str
    port: int


class Listener(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """One entry of `server.listeners`. Mode and owner are those of a Unix socket's file."""

    address: str
    paths: Paths = "all"
    tls: bool = False
    proxy_protocol: bool = False
    mode: str = "0660"
    owner: str = ""

    @property
    def path(self) -> str:
        """The path of a Unix socket; empty for TCP."""
        return self.address[len(_UNIX_PREFIX) :] if self.address.startswith(_UNIX_PREFIX) else ""

    @property
    def tcp(self) -> TCPAddress:
        """Host and port of a TCP address."""
        match = _TCP.fullmatch(self.address)
        assert match is not None, "BUG: an address that was not checked"
        return TCPAddress(match[1] or match[2], int(match[3]))


Listeners = tuple[Listener, ...]


def parse_listeners(value: Any, is_text: bool) -> Listeners:
    """Parse `server.listeners` from TOML, or from JSON in a variable.

    Args:
        is_text: the value is of a variable.

    Raises:
        ValueError: the text says which entry is wrong, and what is allowed.
    """
    if is_text:
        try:
            value = msgspec.json.decode(value) if value.strip() else []
        except (msgspec.DecodeError, UnicodeEncodeError):
            raise ValueError(f"allowed: {_LISTENERS_FORM}") from None
    if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
        raise ValueError(f"allowed: {_LISTENERS_FORM}")
    if len(value) > _MAX_LISTENERS:
        raise ValueError(f"allowed: at most {_MAX_LISTENERS} listeners")
    return tuple(_listener(one, f"listener {number}") for number, one in enumerate(value, 1))


def parse_proxies(value: Any, is_text: bool) -> Proxies:
    """Parse `server.trusted_proxies` from TOML, or from a variable with commas between them.

    Args:
        is_text: the value is of a variable.

    Raises:
        ValueError: the text says which entry is wrong, and what is allowed.
    """
    if is_text:
        value = [part.strip() for part in value.split(",") if part.strip()]
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value) or len(value) > _MAX_PROXIES:
        raise ValueError(f"allowed: {_PROXIES_FORM}")
    for one in value:
        if one == UNIX:
            continue
        try:
            ipaddress.ip_network(one)
        except ValueError as error:
            raise ValueError(f"{error}; allowed: {_PROXIES_FORM}") from None
    return tuple(value)


PARSERS: Final = {Listeners: parse_listeners, Proxies: parse_proxies}
"""Parsers for settings of these types."""

_ADDRESS_FORM: Final = '"127.0.0.1:8001", "[::1]:8001" or "unix:/path/of.sock"'
_LISTENERS_FORM: Final = f"a list of tables, each with an address such as {_ADDRESS_FORM}"
_PROXIES_FORM: Final = (
    f'a list of at most {_MAX_PROXIES} addresses, networks such as "10.0.0.0/8", and "{UNIX}" for Unix sockets'
)


def _listener(value: dict[str, Any], place: str) -> Listener:
    names = Listener.__struct_fields__
    for name in value:
        if name not in names:
            near = get_close_matches(str(name), names, n=1)
            meant = f"; did you mean {near[0]}?" if near else f"; it has {', '.join(names)}"
            raise ValueError(f"{place}: {name} is not a key of a listener{meant}")
    try:
        found = msgspec.convert(value, Listener)
    except msgspec.ValidationError as error:
        hint = f"; allowed: {', '.join(get_args(Paths))}" if "$.paths" in str(error) else ""
        raise ValueError(f"{place}: {error}{hint}") from None
    problem = _problem_of(found, value)
    if problem:
        raise ValueError(f"{place}: {problem}")
    return found


def _problem_of(listener: Listener, given: dict[str, Any]) -> str:
    """Return the problem of a listener by itself; empty if there is none."""
    path = listener.path
    reason = ""
    if path:
        if not path.isprintable() or len(os.fsencode(path)) > _MAX_PATH_BYTES or path.endswith("/"):
            reason = f"a Unix socket's path has 1 to {_MAX_PATH_BYTES} printable bytes and names a file"
        elif not _MODE.fullmatch(listener.mode):
            reason = f"mode {listener.mode!r}: write it in octal digits, such as '0660'"
        elif not _OWNER.fullmatch(listener.owner):
            reason = f"owner {listener.owner!r}: write USER, USER:GROUP or :GROUP"
    elif not (match := _TCP.fullmatch(listener.address)) or int(match[3]) > 0xFFFF:
        reason = f"address {listener.address!r}: write {_ADDRESS_FORM}"
    elif not given.keys().isdisjoint(("mode", "owner")):
        reason = "mode and owner are for Unix sockets, and this is a TCP address"
    return reason


def is_loopback(host: str) -> bool:
    """Tell from a host's name whether only this machine reaches it."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost"
    # From Python 3.13 on ::ffff:127.0.0.1 is loopback, too. A setting means the same on all of them.
    return address.is_loopback and getattr(address, "ipv4_mapped", None) is None
