"""Authentication: from the credentials of a request to the rights of its sender.

A client sends the same credential with each request, so a known one costs a dictionary lookup of its bytes. Only an
unknown one is parsed, hashed and compared. The expiry of its token is checked each time, by the present time of day.

The time of a lookup tells an attacker nothing: dictionaries hash bytes with SipHash under a key of this process alone,
and compare two keys only if all 64 bits of their hashes agree. Token hashes are compared by `hmac.compare_digest`.

Nothing that a client sent is logged or echoed here.
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
from arcpipe.units import KB

if TYPE_CHECKING:
    from arcpipe.access.tls import Certificate
    from arcpipe.access.tokens import Token
    from arcpipe.ingest.http.exchange import Exchange

log = logging.getLogger(__name__)

# Spellings of credentials that are remembered; a token may have many, as Basic accepts any user name.
_MAX_REMEMBERED: Final = 4096
_MAX_REMEMBERED_BYTES: Final = KB  # of each
# Seconds between two log lines with the sum of refusals, so that clients cannot fill the disk.
_REFUSALS_LINE_SECONDS: Final = 60.0
_NO_HASH: Final = bytes(32)
# The query parameter in which clients of InfluxDB 1 send a token; `rp` is a different one.
_PASSWORD: Final = re.compile(rb"(?:\A|&)p=")

# Basic makes a browser ask for a name and a password. Browsers need each challenge on a line of its own.
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
# Only the holder of the token itself, or of the certificate, gets this answer.
_LAPSED: Final = _unauthorized("the token has expired or was revoked", b', error="invalid_token"')
_FORBIDDEN: Final = {scope: _forbidden(scope) for scope in (WRITE, READ, ADMIN)}


class Grant(NamedTuple):
    """The rights of a token. `databases` None means all, `ends` None means never."""

    scopes: frozenset[str]
    databases: frozenset[str] | None
    token_id: str
    ends: float | None  # seconds since the epoch


class Auth:
    """The tokens that a worker knows, and the credentials that it has found valid."""

    def __init__(self, found: Iterable[Token]) -> None:
        self.refused = 0
        self._logged = 0
        self._next_line = 0.0
        self._by_credential: dict[bytes, Grant] = {}
        self._by_certificate: dict[tuple[str, ...], Grant] = {}  # by the names in it
        self.replace(found)

    def replace(self, found: Iterable[Token]) -> None:
        """Use other tokens from now on, and forget all known credentials."""
        self._tokens = {token.id: token for token in found}
        self._by_name: dict[str, list[Token]] = {}
        for token in self._tokens.values():
            if token.certificate:
                self._by_name.setdefault(normal_name(token.certificate), []).append(token)
        self._by_credential.clear()
        self._by_certificate.clear()

    def tick(self, monotonic: float) -> None:
        """Log refusals. Call it a few times a second."""
        if self.refused != self._logged and monotonic >= self._next_line:
            log.warning("refused %d requests without a valid token of the needed scope", self.refused - self._logged)
            self._logged = self.refused
            self._next_line = monotonic + _REFUSALS_LINE_SECONDS

    def refusal(self, exchange: Exchange, scope: str) -> bytes | None:
        """Return the refusal of a request that lacks `scope`, or None after noting the databases that it may write."""
        grant = self._by_credential.get(exchange.headers.get(b"authorization", b""))
        if grant is None or scope not in grant.scopes or (grant.ends is not None and grant.ends <= time()):
            granted = self.grant(exchange, scope)
            if isinstance(granted, bytes):
                return granted
            grant = granted
        exchange.databases = grant.databases
        exchange.token = grant.token_id
        return None

    def grant(self, exchange: Exchange, scope: str) -> Grant | bytes:
        """Return the rights of a request that needs `scope`, or its refusal."""
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
        """Return the limits of a token: its own if it has any, else the default ones."""
        token = self._tokens.get(token_id)
        return default if token is None else token.limits(default)

    def has_own_limits(self) -> bool:
        """Return whether any token has limits of its own."""
        return any(token.limits(ClientLimits()).any for token in self._tokens.values())

    def _admit(self, exchange: Exchange) -> Grant | bytes:
        """Find the credential of a request, wherever it is; return its rights, or the refusal."""
        headers, query = exchange.headers, exchange.query
        token: bytes | None
        # Only the first kind of credential counts, so that a request is never judged by two.
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
        # Each key contains the token itself, so sending one kind of key in place of another gains nothing.
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
        """Return the present rights of a token, or the refusal."""
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
        """Return the rights of a client certificate by its first known name, or the refusal."""
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
    """Return a remembered grant unless its token has expired since."""
    return None if grant is not None and grant.ends is not None and grant.ends <= time() else grant


def _in_authorization(value: bytes) -> bytes | None:
    """Return the token in an Authorization header; None if its scheme is unknown or it is malformed.

    InfluxDB 1.x clients of the 2.x API send `Token name:password`. As with Basic, the password is the token.
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
