"""The check of credentials with arbitrary bytes in every place, and what it remembers of good ones."""

from __future__ import annotations

import base64
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arcpipe.access.tls import Certificate
from arcpipe.access.tokens import Token
from arcpipe.ingest.http import auth
from arcpipe.ingest.http.auth import Auth
from arcpipe.ingest.http.exchange import Exchange
from tests.support.tokens import new_token

NOW = datetime.now(UTC)


TEXT, TOKEN = new_token()
GUARD = Auth([TOKEN])

schemes = st.sampled_from([b"", b"Bearer ", b"Token ", b"Basic ", b"basic  ", b"Digest ", b"Bearer\t"])
secrets = st.binary(max_size=80) | st.sampled_from(
    [TEXT.encode()[:-1], TEXT.encode() + b"\0", TEXT.upper().encode(), TEXT[:13].encode() + b"a" * 43, b"\xff" * 56]
)


def ask(
    guard: Auth,
    headers: dict[bytes, bytes],
    query: bytes = b"",
    scope: str = "write",
    certificate: Certificate | None = None,
) -> bytes | None:
    connection = SimpleNamespace(unrouted={}, peer_certificate=lambda: certificate)
    exchange = Exchange(cast(Any, connection), headers)
    exchange.query = query
    return guard.refusal(exchange, scope)


@given(schemes, secrets, st.booleans())
def test_no_bytes_but_a_token_open_anything(scheme: bytes, secret: bytes, encoded: bool) -> None:
    value = scheme + (base64.b64encode(b"u:" + secret) if encoded else secret)
    for headers, query in (({b"authorization": value}, b""), ({b"x-api-key": secret}, b""), ({}, b"u=x&p=" + secret)):
        refusal = ask(GUARD, headers, query)
        assert refusal is not None
        assert refusal.startswith((b"HTTP/1.1 401 ", b"HTTP/1.1 400 "))


@given(st.binary(max_size=200))
def test_no_query_but_one_with_a_token_opens_anything(query: bytes) -> None:
    assert ask(GUARD, {}, query) is not None


def test_a_certificate_counts_with_a_retention_policy_in_a_query() -> None:
    """A certificate counts where the query has a retention policy and no token."""
    guard = Auth([Token(id="a" * 8, certificate="CN:web-1", scopes=("write",), created=NOW)])
    certificate = Certificate(("CN:web-1",), NOW.timestamp() + 86400)
    assert ask(guard, {}, b"db=x&rp=autogen", certificate=certificate) is None
    assert ask(guard, {}, b"rp=autogen&up=1", certificate=certificate) is None
    for query in (b"p=x", b"rp=autogen&p=x"):
        refusal = ask(guard, {}, query, certificate=certificate)
        assert refusal is not None
        assert refusal.startswith(b"HTTP/1.1 401 ")


def test_what_is_remembered_has_a_bound_in_number_and_in_length(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auth, "_MAX_REMEMBERED", 10)
    guard = Auth([TOKEN])
    for number in range(100):
        pair = base64.b64encode(f"user {number}:{TEXT}".encode())
        assert ask(guard, {b"authorization": b"Basic " + pair}) is None
        assert ask(guard, {b"authorization": b"Basic " + base64.b64encode(b"u" * 2000 + b":" + TEXT.encode())}) is None
        assert len(guard._by_credential) <= 10
        assert all(len(key) <= 1024 for key in guard._by_credential)


def test_what_is_remembered_ends_with_the_token_at_every_door(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without anybody who looks at the clock now and then: each use does."""
    ends = datetime.now(UTC) + timedelta(hours=1)
    text, token = new_token(expires=ends)
    _, of_owner = new_token(sha256="", certificate="CN:web-1", expires=ends)
    _, later = new_token(sha256="", certificate="CN:web-2", expires=ends + timedelta(days=1))
    _, of_both = new_token(sha256="", certificate="CN:web-2", expires=ends, scopes=("read",))
    guard = Auth([token, of_owner, of_both, later])
    far = NOW.timestamp() + 86400
    doors: list[dict[str, Any]] = [
        {"headers": {b"authorization": b"Bearer " + text.encode()}},
        {"headers": {b"x-api-key": text.encode()}},
        {"headers": {}, "query": b"p=" + text.encode()},
        {"headers": {}, "certificate": Certificate(("CN:web-1",), far)},
    ]
    for door in doors:
        assert ask(guard, **door) is None
    both: dict[str, Any] = {"headers": {}, "certificate": Certificate(("CN:web-2",), far)}
    assert ask(guard, scope="read", **both) is None
    assert len(guard._by_credential) == 3
    monkeypatch.setattr(auth, "time", ends.timestamp)
    monkeypatch.setattr(auth, "datetime", SimpleNamespace(now=lambda _: ends))
    for door in doors:
        refusal = ask(guard, **door)
        assert refusal is not None
        assert b"the token has expired or was revoked" in refusal
    assert ask(guard, **both) is None  # by the other token of its name
    guard.replace([TOKEN])
    assert ask(guard, **both) is not None


def test_admin_may_read_and_not_write() -> None:
    text, token = new_token(scopes=("admin",))
    guard = Auth([token])
    headers = {b"authorization": f"Bearer {text}".encode()}
    assert ask(guard, headers, scope="admin") is None
    assert ask(guard, headers, scope="read") is None
    refusal = ask(guard, headers, scope="write")
    assert refusal is not None
    assert refusal.startswith(b"HTTP/1.1 403 ")
