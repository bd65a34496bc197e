"""Whose request it is: the PROXY protocol's headers and HTTP's, and who is believed."""

from __future__ import annotations

import ipaddress
import socket
import struct

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from arcpipe.ingest.http.client_address import ForwardedFor, TrustedProxies
from arcpipe.ingest.http.proxy_header import MAX_BYTES, BadProxyHeader, Source, read

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
TCP4 = socket.inet_aton("192.0.2.7") + socket.inet_aton("192.0.2.1") + struct.pack(">HH", 56324, 443)
TCP6 = ipaddress.ip_address("2001:db8::7").packed + ipaddress.ip_address("::1").packed + struct.pack(">HH", 1, 2)
MAPPED = ipaddress.ip_address("::ffff:192.0.2.7").packed + bytes(16) + struct.pack(">HH", 1, 2)
UNIX = b"/run/haproxy.sock".ljust(108, b"\0") * 2
TLVS = b"\x02\x00\x0bexample.com" + b"\x04\x00\x00" + b"\x20\x00\x05\x01\0\0\0\0"


def version_2(kind: int, addresses: bytes, command: int = 0x21) -> bytes:
    return SIGNATURE + bytes((command, kind)) + struct.pack(">H", len(addresses)) + addresses


def read_whole(stream: bytes) -> tuple[Source, int]:
    """As a socket is read: never more than was asked for. The result, and the bytes that it took."""
    taken = 0
    while isinstance(found := read(stream[:taken]), int):
        assert found > taken
        assert found <= MAX_BYTES
        taken = found
        assert taken <= len(stream), "it waits for more"
    return found, taken


GOOD = [
    (b"PROXY TCP4 192.0.2.7 192.0.2.1 56324 443\r\n", "192.0.2.7"),
    (b"PROXY TCP4 0.0.0.0 255.255.255.255 0 65535\r\n", "0.0.0.0"),
    (b"PROXY TCP6 2001:DB8::7 ::1 56324 443\r\n", "2001:db8::7"),
    (b"PROXY TCP6 :: :: 0 0\r\n", "::"),
    (b"PROXY TCP6 " + b"ffff:" * 7 + b"ffff " + b"ffff:" * 7 + b"ffff 65535 65535\r\n", "ffff:" * 7 + "ffff"),
    (b"PROXY UNKNOWN\r\n", None),
    (b"PROXY UNKNOWN " + b"ffff:" * 7 + b"ffff " + b"ffff:" * 7 + b"ffff 65535 65535\r\n", None),
    (version_2(0x11, TCP4), "192.0.2.7"),
    (version_2(0x11, TCP4 + TLVS), "192.0.2.7"),
    (version_2(0x21, TCP6), "2001:db8::7"),
    (version_2(0x21, MAPPED), "192.0.2.7"),
    (version_2(0x31, UNIX + TLVS), "unix"),
    (version_2(0x00, b""), None),
    (version_2(0x00, b"anything"), None),
    (version_2(0x11, TCP4, command=0x20), None),  # LOCAL: a health check
    (version_2(0x00, b"", command=0x20), None),
    (version_2(0xFF, b"anything", command=0x20), None),
    (version_2(0x11, TCP4 + b"\x04" + struct.pack(">H", 4000) + bytes(4000)), "192.0.2.7"),
]

BAD = [
    b"GET / HTTP/1.1\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(20),
    b"proxy TCP4 192.0.2.7 192.0.2.1 1 2\r\n",
    b"PROXY  TCP4 192.0.2.7 192.0.2.1 1 2\r\n",
    b"PROXY TCP4 192.0.2.7 192.0.2.1 1 2\n",
    b"PROXY TCP4 192.0.2.7 192.0.2.1 1 2 \r\n",
    b"PROXY TCP4 192.0.2.7 192.0.2.1 01 2\r\n",
    b"PROXY TCP4 192.0.2.7 192.0.2.1 1 65536\r\n",
    b"PROXY TCP4 192.0.2.7 192.0.2.1 -1 2\r\n",
    b"PROXY TCP4 192.0.2.07 192.0.2.1 1 2\r\n",
    b"PROXY TCP4 192.0.2.256 192.0.2.1 1 2\r\n",
    b"PROXY TCP4 2001:db8::7 192.0.2.1 1 2\r\n",
    b"PROXY TCP6 192.0.2.7 192.0.2.1 1 2\r\n",
    b"PROXY TCP6 fe80::1%1 ::1 1 2\r\n",
    b"PROXY TCP4 192.0.2.7 192.0.2.1\r\n1 2",
    b"PROXY UDP4 192.0.2.7 192.0.2.1 1 2\r\n",
    b"PROXY UNKNOWNS\r\n",
    b"PROXY UNKNOWN " + b"x" * 100 + b"\r\n",
    b"PROXY TCP4 " + b"1" * 200,
    version_2(0x11, TCP4, command=0x11),  # version 1 in the layout of 2
    version_2(0x11, TCP4, command=0x22),  # no command
    version_2(0x12, TCP4),  # UDP
    version_2(0x01, b""),
    version_2(0x41, TCP4),
    version_2(0x11, TCP4[:-1]),
    version_2(0x21, TCP4),
    version_2(0x31, UNIX[:-1]),
    version_2(0x11, TCP4 + b"\x04"),
    version_2(0x11, TCP4 + b"\x04\x00\x01"),
    version_2(0x11, TCP4 + b"\x04\xff\xff" + bytes(10)),
    version_2(0x11, TCP4 + bytes(MAX_BYTES)),
    version_2(0x00, bytes(MAX_BYTES), command=0x20),
]


@pytest.mark.parametrize(("header", "client"), GOOD)
def test_a_header_tells_the_client_and_not_a_byte_beyond_it_is_read(header: bytes, client: str | None) -> None:
    assert read_whole(header + b"GET / HTTP/1.1\r\n") == (Source(client), len(header))


@pytest.mark.parametrize("header", BAD)
def test_what_is_no_header_is_refused(header: bytes) -> None:
    with pytest.raises(BadProxyHeader):
        read_whole(header)


@given(st.sampled_from([header for header, _ in GOOD]), st.data())
def test_a_header_with_a_flipped_byte_is_read_or_refused_within_its_bound(header: bytes, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(header) - 1))
    changed = header[:at] + bytes((data.draw(st.integers(0, 255)),)) + header[at + 1 :]
    try:
        found, taken = read_whole(changed + bytes(MAX_BYTES))
    except BadProxyHeader:
        return
    assert taken <= MAX_BYTES
    assert found.client in (None, "unix") or ipaddress.ip_address(found.client)


TRUSTED = TrustedProxies(["10.0.0.0/8", "2001:db8:1::/48", "127.0.0.1", "unix"])


def test_networks_hold_their_addresses_and_no_others() -> None:
    for address in ("10.0.0.1", "10.255.255.255", "2001:db8:1::5", "127.0.0.1", "unix"):
        assert TRUSTED.has(address)
    for address in ("11.0.0.1", "2001:db8:2::5", "127.0.0.2", "::1", "unknown", "", "10.0.0"):
        assert not TRUSTED.has(address)
    assert not TrustedProxies(["10.0.0.0/8"]).has("unix")
    assert not TrustedProxies([])
    assert TRUSTED


def x_forwarded_for(value: str, peer: str = "10.0.0.1") -> str:
    return ForwardedFor(TRUSTED, "X-Forwarded-For").client(peer, {b"x-forwarded-for": value.encode("latin-1")})


@pytest.mark.parametrize(
    ("value", "client"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("192.0.2.7, 10.0.0.2", "192.0.2.7"),
        ("203.0.113.9, 192.0.2.7, 10.0.0.2,10.0.0.3", "192.0.2.7"),  # the first one is invented
        ("192.0.2.7:4711", "192.0.2.7"),
        ("2001:DB8::7", "2001:db8::7"),
        ("[2001:db8::7]", "2001:db8::7"),
        ("[2001:db8::7]:4711", "2001:db8::7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("10.0.0.9, 10.0.0.2", "10.0.0.9"),  # a proxy is the client
        ("unknown", "10.0.0.1"),
        ("192.0.2.7, unknown", "10.0.0.1"),
        ("192.0.2.7, unknown, 10.0.0.2", "10.0.0.2"),
        ("192.0.2.7, , 10.0.0.2", "10.0.0.2"),
        ("192.0.2.7;10.0.0.2", "10.0.0.1"),
        ("", "10.0.0.1"),
        ("192.0.2.7, " + "10.0.0.2, " * 100 + "10.0.0.3", "10.0.0.2"),
        ("unix", "10.0.0.1"),
    ],
)
def test_the_client_is_the_rightmost_untrusted_address(value: str, client: str) -> None:
    assert x_forwarded_for(value) == client


def test_a_header_of_somebody_else_is_not_believed() -> None:
    assert x_forwarded_for("192.0.2.7", peer="192.0.2.99") == "192.0.2.99"
    assert ForwardedFor(TRUSTED, "Forwarded").client("10.0.0.1", {b"x-forwarded-for": b"192.0.2.7"}) == "10.0.0.1"
    assert ForwardedFor(TRUSTED, "X-Forwarded-For").client("10.0.0.1", {}) == "10.0.0.1"


@pytest.mark.parametrize(
    ("value", "client"),
    [
        ("for=192.0.2.7", "192.0.2.7"),
        ('for="192.0.2.7:4711";proto=https;by=10.0.0.1', "192.0.2.7"),
        ('proto=http;For="[2001:db8::7]:4711"', "2001:db8::7"),
        ("for=203.0.113.9, for=192.0.2.7, for=10.0.0.2;proto=http", "192.0.2.7"),
        ('for="unclosed, for=192.0.2.7', "192.0.2.7"),  # what an attacker puts ahead of what the proxy adds
        ("for=192.0.2.7, for=_hidden", "10.0.0.1"),
        ("for=192.0.2.7;for=192.0.2.8", "10.0.0.1"),
        ("by=192.0.2.7", "10.0.0.1"),
        ("xfor=192.0.2.7", "10.0.0.1"),
    ],
)
def test_forwarded_is_read_as_rfc_7239_has_it(value: str, client: str) -> None:
    assert ForwardedFor(TRUSTED, "Forwarded").client("10.0.0.1", {b"forwarded": value.encode()}) == client


@given(st.text(alphabet='0123456789abcdef.:[]%, \t;=for"unixk_', max_size=80))
@example("192.0.2.7" + "," * 60)
def test_whatever_stands_left_of_what_the_proxy_added_changes_nothing(sent: str) -> None:
    assert x_forwarded_for(f"{sent}, 192.0.2.7") == "192.0.2.7"
    found = ForwardedFor(TRUSTED, "Forwarded")
    assert found.client("10.0.0.1", {b"forwarded": f"{sent}, for=192.0.2.7".encode()}) == "192.0.2.7"
