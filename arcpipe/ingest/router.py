"""Which handler a method and a path lead to, and what to answer where there is none."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from arcpipe.ingest import responses

if TYPE_CHECKING:
    from arcpipe.ingest.protocol import Exchange

Handler = Callable[["Exchange"], None]


class Route(NamedTuple):
    """What a path offers: a handler by method, and the 405 answer for all other methods."""

    handlers: dict[bytes, Handler]
    wrong_method: bytes


class Router:
    """Exact paths to routes. HEAD is answered by the GET handler, without its body."""

    def __init__(self, table: dict[tuple[str, str], Handler]) -> None:
        """Args: table: (method, path) to handler."""
        by_path: dict[bytes, dict[bytes, Handler]] = {}
        for (method, path), handler in table.items():
            handlers = by_path.setdefault(path.encode("ascii"), {})
            handlers[method.encode("ascii")] = handler
            if method == "GET":
                handlers[b"HEAD"] = handler
        self.routes = {path: Route(handlers, _wrong_method(handlers)) for path, handlers in by_path.items()}


def _wrong_method(handlers: dict[bytes, Handler]) -> bytes:
    allowed = b", ".join(sorted(handlers))
    reason = f"this path takes {allowed.decode('ascii')}"
    return responses.error(405, "method_not_allowed", reason, b"Allow: %b\r\n" % allowed)
