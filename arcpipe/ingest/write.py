"""The write endpoints: from a complete request to an entry in the group that is being collected."""

from __future__ import annotations

import errno
import re
from collections.abc import Callable
from typing import Final

from arcpipe.codec.msgpack_columns import encode
from arcpipe.errors import BadPayload
from arcpipe.ingest import responses
from arcpipe.ingest.limits import Admission
from arcpipe.ingest.protocol import Exchange
from arcpipe.wal.format import KIND_BATCH, KIND_COLUMNAR, Prefix, envelope_prefix
from arcpipe.wal.writer import GroupCommit

DEFAULT_DATABASE: Final = "default"
_DATABASE: Final = re.compile(r"[A-Za-z0-9_-]{1,64}\Z")
# Envelope fronts are kept for this many databases; more are made anew each time.
_PREFIXES_KEPT: Final = 1024


class WriteEndpoints:
    """Handlers of the write paths, and what becomes of their requests when a group is committed."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self._prefixes: dict[tuple[bool, str], Prefix] = {}
        self.commit: GroupCommit  # set once the log is open
        self.accepted = 0
        self.refused = 0
        self.records = 0
        self.body_bytes = 0

    def msgpack(self, success: bytes) -> Callable[[Exchange], None]:
        """A handler for MessagePack bodies that answers `success` when the entry is on disk."""

        def handle(exchange: Exchange) -> None:
            exchange.success = success
            refusal = self._admission.refusal()
            if refusal is None:
                try:
                    database = self._database(exchange)
                    body = exchange.body
                    batch, body_out, records = encode(body)
                except BadPayload as error:
                    refusal = responses.error(400, "bad_request", str(error))
                else:
                    prefix = self._prefixes.get((batch, database)) or self._make_prefix(batch, database)
                    self.records += records
                    self.body_bytes += len(body)
                    exchange.body = b""
                    self.commit.append(prefix, body_out, records, exchange)
                    return
            self.refused += 1
            exchange.answer(refusal)

        return handle

    def committed(self, waiters: list[Exchange], error: OSError | None) -> None:
        """A group's outcome: acknowledges all of it, or none."""
        if error is None:
            self.accepted += len(waiters)
            for exchange in waiters:
                exchange.answer(exchange.success)
            return
        self.refused += len(waiters)
        response = write_failure(error)
        for exchange in waiters:
            exchange.answer(response)

    def _database(self, exchange: Exchange) -> str:
        header = exchange.headers.get(b"x-arc-database")
        if header is not None:
            return check_database(header.decode("utf-8", "replace"), "header 'x-arc-database'")
        if exchange.query:
            parameters = exchange.parameters()
            for name in ("db", "bucket"):
                if name in parameters:
                    return check_database(parameters[name], f"query parameter '{name}'")
        return DEFAULT_DATABASE

    def _make_prefix(self, batch: bool, database: str) -> Prefix:
        prefix = envelope_prefix(KIND_BATCH if batch else KIND_COLUMNAR, database)
        if len(self._prefixes) < _PREFIXES_KEPT:
            self._prefixes[batch, database] = prefix
        return prefix


def check_database(name: str, where: str) -> str:
    """The name, if it is one.

    Raises:
        BadPayload: it is not; the text tells where it stood.
    """
    if _DATABASE.match(name) is None:
        shown = name if len(name) <= 80 else name[:80] + "…"
        raise BadPayload(f"{where}: {shown!r} is no database name; use 1 to 64 of A-Z a-z 0-9 _ -")
    return name


def write_failure(error: OSError) -> bytes:
    """The answer to every request of a group that could not be written: 507 for no space, else 503."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return responses.error(507, "no_space", "the log's disk is full; nothing was written", b"Retry-After: 10\r\n")
    reason = f"the log could not be written ({error.strerror or error}); nothing was written"
    return responses.error(503, "log_failure", reason, b"Retry-After: 5\r\n")
