"""Routing: from method and path to a handler, the scope that it needs, and the answers without a handler."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Final, NamedTuple

from arcpipe.ingest.http import responses

if TYPE_CHECKING:
    from arcpipe.ingest.http.exchange import Exchange

Handler = Callable[["Exchange"], None]
# Judges a request by its head; returns its refusal, or None.
Judge = Callable[["Exchange"], "bytes | None"]
# Tells by its head whether a request's handler takes a large body as a view, not as `bytes`.
TakesView = Callable[["Exchange"], bool]

# The scope that a token needs for an endpoint. `READ` endpoints reveal something about the instance, `ADMIN` endpoints
# change it; a token with "admin" may read, too. `OPEN` endpoints need no token.
OPEN: Final = ""
WRITE: Final = "write"
READ: Final = "read"
ADMIN: Final = "admin"


class Endpoint(NamedTuple):
    """A handler, and its judges.

    A head that has passed them once may come again unseen. So a guard looks at the head alone, and a handler judges
    anew.
    """

    handler: Handler
    scope: str  # which the sender needs, if `auth.enabled`
    judge: Judge | None = None  # asked before a body that did not come with its head
    guard: Judge | None = None  # asked first
    takes_view: TakesView | None = None


Fields = (
    tuple[Handler, str]
    | tuple[Handler, str, Judge | None]
    | tuple[Handler, str, Judge | None, Judge | None]
    | tuple[Handler, str, Judge | None, Judge | None, TakesView | None]
)
Table = Mapping[tuple[str, str], Fields]
"""(method, path) to the fields of an endpoint."""


class Route(NamedTuple):
    """The endpoints of a path by method, the 405 answer for all other methods, and the counts of statuses."""

    endpoints: dict[bytes, Endpoint]
    wrong_method: bytes
    answered: defaultdict[bytes, int]

    @property
    def scopes(self) -> frozenset[str]:
        """All scopes that its endpoints need."""
        return frozenset(endpoint.scope for endpoint in self.endpoints.values())


def stem_of(path: bytes) -> bytes | None:
    """Return the part of a route's path before its parameter, which is its last segment; None if it has none."""
    return path[: path.rindex(b"{")] if path.endswith(b"}") else None


def stems(paths: Iterable[bytes]) -> dict[bytes, bytes]:
    """Return the paths that have a parameter by their stems."""
    return {stem: path for path in paths if (stem := stem_of(path)) is not None}


def pattern_of(path: bytes, by_stem: Mapping[bytes, bytes]) -> bytes:
    """Return the path with a parameter that a request's path has, of those of `stems`; else the path itself."""
    at = path.rfind(b"/") + 1
    return by_stem.get(path[:at], path) if at < len(path) else path


class Router:
    """Makes routes by paths. The last segment of a path may be a parameter, such as `{measurement}`: any one segment.

    The GET handler answers HEAD, too, without its body.
    """

    def __init__(self, table: Table) -> None:
        by_path: dict[bytes, dict[bytes, Endpoint]] = {}
        for (method, path), fields in table.items():
            endpoints = by_path.setdefault(path.encode("ascii"), {})
            endpoints[method.encode("ascii")] = Endpoint(*fields)
            if method == "GET":
                endpoints[b"HEAD"] = Endpoint(*fields)
        self.routes = {
            path: Route(endpoints, _wrong_method(endpoints), defaultdict(int)) for path, endpoints in by_path.items()
        }


def offered(routes: Mapping[bytes, Route], paths: str) -> dict[bytes, Route]:
    """Return the routes of a listener with `paths` = "all", "writes" or "operations".

    Both kinds offer the open paths, except that "writes" lacks the status page, which is useless without its figures.
    """
    if paths == "writes":
        return {path: route for path, route in routes.items() if route.scopes <= {WRITE, OPEN} and path != b"/"}
    if paths == "operations":
        return {path: route for path, route in routes.items() if WRITE not in route.scopes}
    return dict(routes)


def _wrong_method(endpoints: Mapping[bytes, Endpoint]) -> bytes:
    allowed = b", ".join(sorted(endpoints))
    reason = f"this path takes {allowed.decode('ascii')}"
    return responses.error(405, "method_not_allowed", reason, b"Allow: %b\r\n" % allowed)
