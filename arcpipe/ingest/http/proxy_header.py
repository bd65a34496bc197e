"""The PROXY protocol, versions 1 and 2: the header in which a proxy names its client, before all other bytes.

    https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt

Bytes go in; either the number of bytes to wait for comes out, or the client's address. The number never exceeds the
header, so the bytes after it (TLS, HTTP) stay in the socket for their reader. As the specification demands, this is
strict: anything that is not exactly a header ends the connection.
"""

from __future__ import annotations

import ipaddress
import re
import struct
from typing import Final, NamedTuple

from arcpipe.config.listeners import UNIX
from arcpipe.units import KB

MAX_BYTES: Final = 4 * KB
"""The longest header of version 2 that is accepted. HAProxy's take some hundred bytes, with names of certificates."""

_SIGNATURE: Final = b"\r\n\r\n\0\r\nQUIT\n"
_V1_START: Final = b"PROXY "
_V1_MAX_BYTES: Final = 107  # as the specification says, line end included
_FIRST_BYTES: Final = 15  # b"PROXY UNKNOWN\r\n", the shortest header of all
_V2_FIXED: Final = struct.Struct(">12sBBH")

_V1_UNKNOWN: Final = re.compile(rb"PROXY UNKNOWN(?: [^\r\n]*)?\r\n")
_PORT: Final = rb"(0|[1-9][0-9]{0,4})"
_V1_TCP: Final = re.compile(rb"PROXY TCP([46]) ([0-9A-Fa-f:.]+) ([0-9A-Fa-f:.]+) " + _PORT + b" " + _PORT + rb"\r\n")

# Of version 2: the low and the high half of the bytes after the signature.
_VERSION: Final = 0x20
_LOCAL, _PROXY = 0x0, 0x1
_UNSPECIFIED: Final = 0x00  # family and protocol
_TCP4, _TCP6, _UNIX_STREAM = 0x11, 0x21, 0x31
_ADDRESS_BYTES: Final = {_TCP4: 12, _TCP6: 36, _UNIX_STREAM: 216}
_TLV_HEAD_BYTES: Final = 3  # type, and a length of 16 bits


class BadProxyHeader(Exception):
    """The bytes are no header of the PROXY protocol; the text says why."""


class Source(NamedTuple):
    """The client of a proxy; None if the proxy made the connection for itself, or names no client."""

    client: str | None


def read(data: bytes) -> int | Source:
    """Return the client in a complete header, or else the least size of the header, which is larger than `data`.

    Raises:
        BadProxyHeader: the bytes can never become a header.
    """
    if len(data) < _FIRST_BYTES:
        return _FIRST_BYTES
    if data.startswith(_SIGNATURE):
        return _read_2(data)
    if data.startswith(_V1_START):
        return _read_1(data)
    raise BadProxyHeader("it begins with neither the signature of version 2 nor PROXY")


def normal_address(text: str) -> str | None:
    """Return an IP address in its one spelling, without a zone, IPv4 never mapped into IPv6; None for other texts."""
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return _normal(address)


def _normal(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> str:
    return str(getattr(address, "ipv4_mapped", None) or address)


def _read_1(data: bytes) -> int | Source:
    if not data.endswith(b"\n"):
        if b"\n" in data or len(data) >= _V1_MAX_BYTES:
            raise BadProxyHeader(f"its line of version 1 does not end with {_V1_MAX_BYTES} bytes")
        return len(data) + 1
    if _V1_UNKNOWN.fullmatch(data):
        return Source(None)
    match = _V1_TCP.fullmatch(data)
    if match is None:
        raise BadProxyHeader("its line of version 1 is malformed")
    kind = ipaddress.IPv4Address if match[1] == b"4" else ipaddress.IPv6Address
    try:
        source, _ = kind(match[2].decode("ascii")), kind(match[3].decode("ascii"))
    except ValueError:
        raise BadProxyHeader("its line of version 1 has an invalid address") from None
    if max(int(match[4]), int(match[5])) > 0xFFFF:
        raise BadProxyHeader("its line of version 1 has an invalid port")
    return Source(_normal(source))


def _read_2(data: bytes) -> int | Source:
    if len(data) < _V2_FIXED.size:
        return _V2_FIXED.size
    _, version_and_command, kind, length = _V2_FIXED.unpack_from(data)
    command: int = version_and_command & 0x0F
    if version_and_command & 0xF0 != _VERSION or command not in (_LOCAL, _PROXY):
        raise BadProxyHeader(f"it has version and command {version_and_command:#04x}, which are not known")
    size: int = _V2_FIXED.size + length
    if size > MAX_BYTES:
        raise BadProxyHeader(f"it has {size} bytes, more than {MAX_BYTES}")
    if command == _PROXY and kind != _UNSPECIFIED:
        if kind not in _ADDRESS_BYTES:
            raise BadProxyHeader(f"it has family and transport {kind:#04x}, and a stream has none of these")
        if length < _ADDRESS_BYTES[kind]:
            raise BadProxyHeader(f"it has {length} bytes of addresses, fewer than its family")
    if len(data) < size:
        return size
    if command == _LOCAL or kind == _UNSPECIFIED:
        return Source(None)
    block = data[_V2_FIXED.size :]
    _skip_tlvs(block[_ADDRESS_BYTES[kind] :])
    if kind == _TCP4:
        return Source(_normal(ipaddress.IPv4Address(block[:4])))
    if kind == _TCP6:
        return Source(_normal(ipaddress.IPv6Address(block[:16])))
    return Source(UNIX)


def _skip_tlvs(block: bytes) -> None:
    """Skip the additional fields, which are not used but must be well-formed."""
    at = 0
    while at < len(block):
        end = at + _TLV_HEAD_BYTES + int.from_bytes(block[at + 1 : at + _TLV_HEAD_BYTES], "big")
        if at + _TLV_HEAD_BYTES > len(block) or end > len(block):
            raise BadProxyHeader("its additional fields are longer than itself")
        at = end
