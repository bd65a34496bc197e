"""Who may enter: from the credentials of a request to the right to do what it asks.

A credential is looked up as the bytes that the client sent, because it sends the same ones with each request: a known
one costs a dictionary lookup, and only an unknown one is taken apart, hashed and compared. When its token ends is
looked at each time, by the clock as it is then, however often that was set. The lookup gives no time to measure:
dictionaries hash bytes with SipHash under a key of this process alone, and two keys are compared only where all 64 bits
of their hashes agree. The comparison of token hashes is `hmac.compare_digest`.

Nothing here is logged or echoed of what a client sent.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import logging
import re
from collections.abc import Iterable
from datetime import UTC, datetime
from time import time
from typing import TYPE_CHECKING, Final, NamedTuple

from arcpipe.access import tokens
from arcpipe.access.tls import normal_name
from arcpipe.config.settings import ClientLimits
from arcpipe.errors import BadPayload
from arcpipe.ingest.http import responses
from arcpipe.ingest.http.router import ADMIN, READ, WRITE

if TYPE_CHECKING:
    from arcpipe.access.tls import Certificate
    from arcpipe.access.tokens import Token
    from arcpipe.ingest.http.exchange import Exchange

log = logging.getLogger(__name__)

# Spellings of credentials that are remembered; one token may have many, as Basic takes any user name.
_MAX_REMEMBERED: Final = 4096
_MAX_REMEMBERED_BYTES: Final = 1024  # of each
# Refusals are logged in sums, so that nobody can fill the disk with them.
_REFUSALS_LINE_SECONDS: Final = 60.0
_NO_HASH: Final = bytes(32)
# The parameter in which clients of InfluxDB 1 send a token; `rp` is another one.
_PASSWORD: Final = re.compile(rb"(?:\A|&)p=")

# Basic makes a browser ask for a name and a password; each challenge has a line of its own, as browsers want it.
_CHALLENGES: Final = b'WWW-Authenticate: Bearer realm="arcpipe"%b\r\nWWW-Authenticate: Basic realm="arcpipe"\r\n'


def _unauthorized(reason: str, parameters: bytes = b"") -> bytes:
    return responses.error(401, "unauthorized", reason, _CHALLENGES % parameters)


def _forbidden(scope: str) -> bytes:
    challenge = f'WWW-Authenticate: Bearer realm="arcpipe", error="insufficient_scope", scope="{scope}"\r\n'
    return responses.error(403, "forbidden", f"this token lacks the scope '{scope}'", challenge.encode("ascii"))


_NO_CREDENTIAL: Final = _unauthorized("a token is needed: send it as 'Authorization: Bearer TOKEN'")
_UNKNOWN: Final = _unauthorized("the token is not known here", b', error="invalid_token"')
_UNKNOWN_CERTIFICATE: Final = _unauthorized("no token is for the client certificate, and none was sent")
_EXPIRED_CERTIFICATE: Final = _unauthorized("the client certificate has expired since the connection was opened")
# Said only to whoever holds the token itself, or the certificate.
_LAPSED: Final = _unauthorized("the token has expired or was revoked", b', error="invalid_token"')
_FORBIDDEN: Final = {scope: _forbidden(scope) for scope in (WRITE, READ, ADMIN)}


class Grant(NamedTuple):
    """What a token allows, and until when. `databases` None is all of them, `ends` None is never."""

    scopes: frozenset[str]
    databases: frozenset[str] | None
    token_id: str
    ends: float | None  # seconds since the epoch


class Auth:
    """The tokens as a worker knows them, and what it remembers of credentials that it has found good."""

    def __init__(self, found: Iterable[Token]) -> None:
        self.refused = 0
        self._logged = 0
        self._next_line = 0.0
        self._by_credential: dict[bytes, Grant] = {}
        self._by_certificate: dict[tuple[str, ...], Grant] = {}  # by the names in it
        self.replace(found)

    def replace(self, found: Iterable[Token]) -> None:
        """Takes other tokens from now on; what was known of the former ones is forgotten."""
        self._tokens = {token.id: token for token in found}
        self._by_name: dict[str, list[Token]] = {}
        for token in self._tokens.values():
            if token.certificate:
                self._by_name.setdefault(normal_name(token.certificate), []).append(token)
        self._by_credential.clear()
        self._by_certificate.clear()

    def tick(self, monotonic: float) -> None:
        """To be called a few times a second: reports refusals."""
        if self.refused != self._logged and monotonic >= self._next_line:
            log.warning("%d requests refused for want of a valid token with the right", self.refused - self._logged)
            self._logged = self.refused
            self._next_line = monotonic + _REFUSALS_LINE_SECONDS

    def refusal(self, exchange: Exchange, scope: str) -> bytes | None:
        """The answer to a request that may not do what needs `scope`, or None; notes its databases."""
        grant = self._by_credential.get(exchange.headers.get(b"authorization", b""))
        if grant is None or scope not in grant.scopes or (grant.ends is not None and grant.ends <= time()):
            granted = self.grant(exchange, scope)
            if isinstance(granted, bytes):
                return granted
            grant = granted
        exchange.databases = grant.databases
        return None

    def grant(self, exchange: Exchange, scope: str) -> Grant | bytes:
        """What the token of a request that needs `scope` allows, or the refusal."""
        grant = _unless_ended(self._by_credential.get(exchange.headers.get(b"authorization", b"")))
        if grant is None:
            admitted = self._admit(exchange)
            if isinstance(admitted, bytes):
                self.refused += 1
                return admitted
            grant = admitted
        if scope not in grant.scopes:
            self.refused += 1
            return _FORBIDDEN[scope]
        return grant

    def limits_of(self, token_id: str, default: ClientLimits) -> ClientLimits:
        """The limits of a token: its own where it has some, else the default ones."""
        token = self._tokens.get(token_id)
        return default if token is None else token.limits(default)

    def has_own_limits(self) -> bool:
        """Whether any token has."""
        return any(token.limits(ClientLimits()).any for token in self._tokens.values())

    def _admit(self, exchange: Exchange) -> Grant | bytes:
        """Finds the credential of a request, wherever it stands; what it allows, or the refusal."""
        headers, query = exchange.headers, exchange.query
        token: bytes | None
        # The first kind that is there counts, so that a request is never judged by two.
        if b"authorization" in headers:
            key = headers[b"authorization"]
            token = _in_authorization(key)
        elif b"x-api-key" in headers:
            token = headers[b"x-api-key"]
            key = b"x-api-key: " + token
        elif _PASSWORD.search(query) is not None:
            key = b"query: " + query
            known = _unless_ended(self._by_credential.get(key))
            if known is not None:
                return known
            try:
                token = exchange.parameters().get("p", "").encode("utf-8", "replace")
            except BadPayload as error:
                return responses.error(400, "bad_request", str(error))
        else:
            return self._admit_certificate(exchange.connection.peer_certificate())
        # Each key holds the token itself, so it opens nothing to send one in the place of another.
        grant = _unless_ended(self._by_credential.get(key))
        if grant is None:
            verified = self._verify(token) if token is not None else _UNKNOWN
            if isinstance(verified, bytes):
                return verified
            grant = verified
            if len(key) <= _MAX_REMEMBERED_BYTES:
                if len(self._by_credential) >= _MAX_REMEMBERED:
                    self._by_credential.clear()
                self._by_credential[key] = grant
        return grant

    def _verify(self, credential: bytes) -> Grant | bytes:
        """What a token allows now, or the refusal."""
        try:
            token_id = tokens.id_of(credential.decode("ascii"))
        except UnicodeDecodeError:
            token_id = None
        token = self._tokens.get(token_id) if token_id is not None else None
        expected = bytes.fromhex(token.sha256) if token is not None and token.sha256 else _NO_HASH
        if not hmac.compare_digest(tokens.digest(credential), expected) or token is None:
            return _UNKNOWN
        return _grant(token) if token.state(datetime.now(UTC)) == "active" else _LAPSED

    def _admit_certificate(self, certificate: Certificate | None) -> Grant | bytes:
        """What the owner of a client certificate may do, or the refusal. The first name that is known counts."""
        if certificate is None:
            return _NO_CREDENTIAL
        if certificate.expires <= time():
            return _EXPIRED_CERTIFICATE
        grant = _unless_ended(self._by_certificate.get(certificate.names))
        if grant is None:
            found = next((self._by_name[name] for name in certificate.names if name in self._by_name), None)
            if found is None:
                return _UNKNOWN_CERTIFICATE
            now = datetime.now(UTC)
            token = next((token for token in found if token.state(now) == "active"), None)
            if token is None:
                return _LAPSED
            if len(self._by_certificate) >= _MAX_REMEMBERED:
                self._by_certificate.clear()
            grant = self._by_certificate[certificate.names] = _grant(token)
        return grant


def _grant(token: Token) -> Grant:
    scopes = frozenset((*token.scopes, READ) if ADMIN in token.scopes else token.scopes)
    ends = token.expires.timestamp() if token.expires is not None else None
    return Grant(scopes, frozenset(token.databases) or None, token.id, ends)


def _unless_ended(grant: Grant | None) -> Grant | None:
    """A grant that is remembered, if its token has not expired since."""
    return None if grant is not None and grant.ends is not None and grant.ends <= time() else grant


def _in_authorization(value: bytes) -> bytes | None:
    """The token in an Authorization header; None if there is none in a way that is known.

    InfluxDB 1.x clients of the 2.x API send `Token name:password`; as with Basic, the password is the token.
    """
    scheme, _, credential = value.partition(b" ")
    credential = credential.strip(b" ")
    match scheme.lower():
        case b"bearer":
            return credential
        case b"token":
            return credential.rpartition(b":")[2]
        case b"basic":
            try:
                return base64.b64decode(credential, validate=True).partition(b":")[2]
            except binascii.Error:
                return None
    return None
