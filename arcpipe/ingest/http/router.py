"""Which handler a method and a path lead to, what right it needs, and what to answer where there is none."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final, NamedTuple

from arcpipe.ingest.http import responses

if TYPE_CHECKING:
    from arcpipe.ingest.http.exchange import Exchange

Handler = Callable[["Exchange"], None]
# Refuses a request by its head: the answer, or None.
Judge = Callable[["Exchange"], "bytes | None"]

# The scope that a token needs for an endpoint. `READ` is for what reveals something about the instance, `ADMIN` for
# what changes it; a token with "admin" may read, too. `OPEN` is for what anybody may ask, token or not.
OPEN: Final = ""
WRITE: Final = "write"
READ: Final = "read"
ADMIN: Final = "admin"


class Endpoint(NamedTuple):
    """Who answers, and who is asked before.

    A head that was let pass may come again without being looked at. So a guard looks at nothing else, and a handler
    judges anew.
    """

    handler: Handler
    scope: str  # that the sender needs, if `auth.enabled`
    judge: Judge | None = None  # is asked before a body is taken that has not come with its head
    guard: Judge | None = None  # is asked first


Fields = tuple[Handler, str] | tuple[Handler, str, Judge | None] | tuple[Handler, str, Judge | None, Judge | None]
Table = Mapping[tuple[str, str], Fields]
"""(method, path) to the fields of an endpoint."""


class Route(NamedTuple):
    """What a path offers: an endpoint by method, the 405 answer for all other methods, and how often which status was
    answered."""

    endpoints: dict[bytes, Endpoint]
    wrong_method: bytes
    answered: defaultdict[bytes, int]

    @property
    def scopes(self) -> frozenset[str]:
        """All scopes that its endpoints need."""
        return frozenset(endpoint.scope for endpoint in self.endpoints.values())


class Router:
    """Exact paths to routes. HEAD is answered by the GET handler, without its body."""

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
    """The routes that a listener with `paths` = "all", "writes" or "operations" offers.

    What is open to everybody is offered with both, but for the status page, which is of no use without its figures.
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
