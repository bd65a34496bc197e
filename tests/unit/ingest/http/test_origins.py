"""Which requests of browsers are somebody else's, whatever stands in their headers."""

from __future__ import annotations

import string
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arcpipe.config.settings import Auth, Server, Settings
from arcpipe.ingest.http.exchange import Exchange
from arcpipe.ingest.http.origins import Origins, Sites, is_foreign, words_of

SITES = Sites(Settings(server=Server(host="ingest.example", allowed_hosts="other.example, third")), None)


def refusal(headers: dict[bytes, bytes], sites: Sites = SITES, write: bool = False) -> bytes | None:
    exchange = cast(Exchange, SimpleNamespace(headers=headers))
    return sites.guard_write(exchange) if write else sites.guard_operation(exchange)


@pytest.mark.parametrize(
    "host",
    [
        *("127.0.0.1", "127.0.0.1:8000", "[::1]:8000", "[fe80::1]", "10.0.0.1", "localhost", "LOCALHOST:1"),
        *("a.localhost", "ingest.example", "Ingest.Example.:8000", "other.example", "third", ""),
        *("http://127.0.0.1:8000", "https://ingest.example", "HTTP://[::1]"),
    ],
)
def test_a_name_is_known_that_no_stranger_can_make_lead_here(host: str) -> None:
    assert refusal({b"host": host.encode()}) is None


@pytest.mark.parametrize(
    "host",
    [
        *("evil.example", "localhost.evil.example", "evil-localhost", "ingest.example.evil.example", ".", ":8000"),
        *("http://evil.example", "http://localhost.evil.example:80"),
        *("127.0.0.1.evil.example", "2130706433", "0x7f000001", "127.1", "[::1].evil.example", "*", "\xb9.0.0.1"),
    ],
)
def test_any_other_name_is_not(host: str) -> None:
    headers = {b"host": host.encode("latin-1")}
    assert refusal(headers) is not None
    assert refusal(headers, write=True) is None  # of a program
    assert refusal(headers | {b"origin": b"http://" + headers[b"host"]}, write=True) is not None


def test_a_star_knows_every_name() -> None:
    any_name = Sites(Settings(server=Server(allowed_hosts="*")), None)
    assert refusal({b"host": b"evil.example"}, any_name) is None
    assert refusal({b"host": b"evil.example", b"origin": b"http://else.example"}, any_name) is not None


def test_a_name_does_not_matter_where_a_token_had_to_be_known() -> None:
    guarded = Sites(Settings(auth=Auth(enabled=True)), None)
    named = {b"host": b"public.example"}
    assert refusal(named | {b"authorization": b"Bearer x"}, guarded) is None
    assert refusal(named, guarded) is None  # in the query, or as x-api-key
    for basic in (b"Basic eDp5", b"basic eDp5", b"BASIC\teDp5"):
        assert refusal(named | {b"authorization": basic}, guarded) is not None


_BYTES = st.binary(max_size=40) | st.text(string.printable, max_size=40).map(str.encode)


@pytest.mark.slow
@given(st.dictionaries(st.sampled_from([b"origin", b"host", b"sec-fetch-site", b"authorization"]), _BYTES))
def test_no_header_is_an_error(headers: dict[bytes, bytes]) -> None:
    origins = Origins(["https://app.example"], [b"/write"])
    refusal(headers)
    refusal(headers, write=True)
    lines = origins.lines(b"POST", b"/write", headers)
    assert lines.count(b"\r\n") == len(lines.splitlines())
    if b"sec-fetch-site" in headers:
        assert is_foreign(headers) == (headers[b"sec-fetch-site"].lower() not in (b"same-origin", b"none"))
    if headers.get(b"origin") != b"https://app.example":
        assert b"Allow-Origin" not in lines


@given(st.sampled_from(["http", "https", "app"]), st.from_regex(r"[a-z0-9.-]{1,20}(:[0-9]{1,5})?", fullmatch=True))
def test_a_page_is_of_this_server_if_its_origin_is_the_host(scheme: str, host: str) -> None:
    headers: dict[bytes, bytes] = {b"host": host.encode(), b"origin": f"{scheme}://{host}".encode()}
    assert not is_foreign(headers)
    for other in (f"{scheme}://x{host}", f"{scheme}://{host}.x", f"{scheme}://{host}0:1", "null"):
        assert is_foreign(headers | {b"origin": other.encode()})


def test_lists_are_read_with_blanks_and_commas() -> None:
    wanted: dict[str, list[Any]] = {"": [], " , ": [], "a": ["a"], " a,b ,  c": ["a", "b", "c"]}
    assert {text: words_of(text) for text in wanted} == wanted
