"""Browsers: pages that may write (CORS), and protection from pages of other sites (CSRF, DNS rebinding).

A browser sends any request that a page asks for, from within its own network, with the credentials that it remembers.
It names the page's site in Sec-Fetch-Site, or in Origin, which it sends with each POST. An attacker may make a name of
their own lead to this server, and the browser then takes their page for one of this server. So the name in Host is
checked, too. Programs send neither of the two headers, and need none.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from arcpipe.ingest.http import responses
from arcpipe.ingest.http.head_checks import authority_of
from arcpipe.ingest.http.router import OPEN, WRITE, Endpoint, Fields, Handler, Table, pattern_of, stems

if TYPE_CHECKING:
    from arcpipe.config.settings import Settings
    from arcpipe.ingest.http.exchange import Exchange

# Methods that change nothing (RFC 9110 §9.2.1).
_SAFE: Final = frozenset(("GET", "HEAD", "OPTIONS"))
_DEFAULT_PORTS: Final = {b"http": b":80", b"https": b":443"}

_VARY: Final = b"Vary: Origin\r\n"
_VARY_PREFLIGHT: Final = b"Vary: Origin, Access-Control-Request-Method, Access-Control-Request-Headers\r\n"
# A star does not include Authorization (Fetch §3.3.4).
_REQUEST_HEADERS: Final = (
    b"Access-Control-Allow-Headers: Authorization, Content-Encoding, Content-Type, Idempotency-Key, X-Api-Key, "
    b"X-Arc-Database, *\r\n"
)
# Seconds that a browser remembers a preflight, and so its delay to notice other settings after a restart.
_MAX_AGE: Final = b"Access-Control-Max-Age: 600\r\n"
_EXPOSED: Final = (
    b"Access-Control-Expose-Headers: Date, Idempotency-Replayed, Retry-After, X-Influxdb-Build, X-Influxdb-Error, "
    b"X-Influxdb-Version, X-Request-Id\r\n"
)
_PRIVATE_NETWORK: Final = b"Access-Control-Allow-Private-Network: true\r\n"

_FOREIGN_PAGE: Final = responses.error(
    403, "cross_site", "a page of another site sent this; name its origin in server.cors_origins to let it write", _VARY
)
_FOREIGN_OPERATION: Final = responses.error(
    403, "cross_site", "a page of another site sent this; only programs and pages of this server may"
)
_FOREIGN_HOST: Final = responses.error(
    403,
    "cross_site",
    "the Host header has a name that is not known here: use an IP address, localhost or server.host, "
    "or add the name to server.allowed_hosts",
)


def words_of(text: str) -> list[str]:
    """Split a setting that is a list: blanks or commas separate its parts."""
    return re.split(r"[ ,]+", text.strip(" ,")) if text.strip(" ,") else []


class Origins:
    """The origins whose pages may write, and the header lines that their browsers need."""

    def __init__(self, origins: Iterable[str], paths: Iterable[bytes]) -> None:
        """Keep the origins in their normal form.

        Args:
            origins: as in `server.cors_origins`; "*" means all.
            paths: where they may write.
        """
        self._origins = {_normal_origin(origin) for origin in origins}
        self._takes_all = "*" in self._origins
        self._paths = frozenset(paths)
        self._by_stem = stems(self._paths)

    def allow(self, headers: dict[bytes, bytes]) -> bool:
        """Return whether a request comes from a page that may write."""
        origin = headers.get(b"origin")
        return origin is not None and (self._takes_all or origin.decode("latin-1") in self._origins)

    def lines(self, method: bytes, path: bytes, headers: dict[bytes, bytes]) -> bytes:
        """Return the lines that a browser needs in an answer; a preflight gets them from its handler."""
        if pattern_of(path, self._by_stem) not in self._paths or method == b"OPTIONS":
            return b""
        if self.allow(headers):
            return self._allowed_origin(headers) + _EXPOSED + (b"" if self._takes_all else _VARY)
        # Only answers to GET are kept by caches.
        return _VARY if method != b"POST" and not self._takes_all else b""

    def preflight(self, exchange: Exchange, methods: bytes) -> None:
        """Answer OPTIONS: whether a page may send the request that its browser announces."""
        headers = exchange.headers
        if not self.allow(headers):
            refused = b"origin" in headers and b"access-control-request-method" in headers
            exchange.answer(_FOREIGN_PAGE if refused else responses.empty(204, b"Allow: %b\r\n" % methods))
            return
        lines = self._allowed_origin(headers) + b"Access-Control-Allow-Methods: %b\r\n" % methods + _REQUEST_HEADERS
        if b"access-control-request-private-network" in headers:
            lines += _PRIVATE_NETWORK
        exchange.answer(responses.empty(204, b"".join((lines, _MAX_AGE, _VARY_PREFLIGHT, b"Allow: %b\r\n" % methods))))

    def _allowed_origin(self, headers: dict[bytes, bytes]) -> bytes:
        return b"Access-Control-Allow-Origin: %b\r\n" % (b"*" if self._takes_all else headers[b"origin"])


class Sites:
    """Refuses requests that pages of other sites cause."""

    def __init__(self, settings: Settings, origins: Origins | None) -> None:
        server = settings.server
        self._origins = origins
        self._hosts = {name.lower() for name in (server.host, *words_of(server.allowed_hosts))}
        self._has_tokens = settings.auth.enabled

    def guard_write(self, exchange: Exchange) -> bytes | None:
        """Refuse the write of a page that `server.cors_origins` does not name."""
        headers = exchange.headers
        site = headers.get(b"sec-fetch-site")
        if site is None and b"origin" not in headers:
            return None
        if self._origins is not None and self._origins.allow(headers):
            return None
        if is_foreign(headers):
            return _FOREIGN_PAGE
        # Browsers send Sec-Fetch-Site only over TLS and to localhost, where an attacker's name cannot lead here.
        return None if site is not None else self._host_refusal(headers)

    def guard_operation(self, exchange: Exchange) -> bytes | None:
        """Refuse an operation that a page of another site causes."""
        return _FOREIGN_OPERATION if is_foreign(exchange.headers) else self._host_refusal(exchange.headers)

    def _host_refusal(self, headers: dict[bytes, bytes]) -> bytes | None:
        # The only credentials that a browser adds by itself are a remembered user name and password.
        if self._has_tokens and not headers.get(b"authorization", b"").lower().startswith(b"basic"):
            return None
        return None if self._knows(authority_of(headers.get(b"host", b""))) else _FOREIGN_HOST

    def _knows(self, host: bytes) -> bool:
        """Return whether no attacker can have made this host lead here, which is possible with names, not addresses."""
        name = re.sub(r":[0-9]*\Z", "", host.decode("latin-1")).rstrip(".").lower()
        if not host or name == "localhost" or name.endswith(".localhost") or not self._hosts.isdisjoint((name, "*")):
            return True
        try:
            ipaddress.ip_address(name.strip("[]"))
        except ValueError:
            return False
        return True


def is_foreign(headers: dict[bytes, bytes]) -> bool:
    """Return whether a browser says that a page of another site, or of an unknown one, sent a request."""
    site = headers.get(b"sec-fetch-site")
    if site is not None:
        return site.lower() not in (b"same-origin", b"none")
    origin = headers.get(b"origin")
    if origin is None:
        return False
    scheme, _, authority = origin.lower().partition(b"://")
    port = _DEFAULT_PORTS.get(scheme, b"")
    host = authority_of(headers.get(b"host", b""))
    return authority.removesuffix(port) != host.lower().removesuffix(port) or not authority


def protect(table: Table, settings: Settings) -> tuple[dict[tuple[str, str], Fields], Origins | None]:
    """Add guards and preflights to a router's table; return it with the origins that may write, None without any."""
    paths = {path for (_, path), fields in table.items() if fields[1] == WRITE or path == "/ping"}
    wanted = words_of(settings.server.cors_origins)
    origins = Origins(wanted, (path.encode("ascii") for path in paths)) if wanted else None
    sites = Sites(settings, origins)
    protected = dict(table)
    for (method, path), fields in table.items():
        if method not in _SAFE:
            endpoint = Endpoint(*fields)
            guard = sites.guard_write if endpoint.scope == WRITE else sites.guard_operation
            protected[method, path] = endpoint._replace(guard=guard)
    if origins is not None:
        for path in sorted(paths):
            protected["OPTIONS", path] = (_preflight(origins, path, table), OPEN)
    return protected, origins


def _preflight(origins: Origins, path: str, table: Table) -> Handler:
    methods = {method for method, known in table if known == path} | {"OPTIONS"}
    if "GET" in methods:
        methods.add("HEAD")
    shown = ", ".join(sorted(methods)).encode("ascii")
    return lambda exchange: origins.preflight(exchange, shown)


def _normal_origin(origin: str) -> str:
    """Spell an origin as browsers do: in small letters, without the default port of its scheme."""
    origin = origin.lower()
    scheme = origin.partition("://")[0].encode()
    return origin.removesuffix(_DEFAULT_PORTS.get(scheme, b" ").decode())
