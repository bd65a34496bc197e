"""The target of a write: its database, and the other parameters of its head."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

from arcpipe.codec.envelope import KIND_ARROW, KIND_BATCH, KIND_COLUMNAR
from arcpipe.codec.records.roles import Roles
from arcpipe.errors import BadPayload, NotAllowed
from arcpipe.ingest.http import keys
from arcpipe.ingest.http.exchange import DATABASE, Exchange
from arcpipe.names import DATABASE_RULE, is_database_name
from arcpipe.units import KB
from arcpipe.wal.format import Prefix, envelope_prefix

DEFAULT_DATABASE: Final = "default"

# Every spelling of time units in any generation of InfluxDB, to the envelope's word; "auto" derives the unit from the
# size of a number.
PRECISIONS: Final[dict[str, str | None]] = {
    **dict.fromkeys(("ns", "n", "nanosecond"), "ns"),
    **dict.fromkeys(("us", "u", "µs", "µ", "μs", "μ", "microsecond"), "us"),  # micro sign and Greek mu
    **dict.fromkeys(("ms", "millisecond"), "ms"),
    **dict.fromkeys(("s", "second"), "s"),
    "m": "m",
    "h": "h",
    "auto": None,
}

# Targets that a worker remembers, and the bytes of query and header up to which it remembers one.
_TARGETS_KEPT: Final = 1024
_TARGET_BYTES: Final = KB


class Target(NamedTuple):
    """The database of a request's records, and its other parameters."""

    database: str
    prefixes: tuple[Prefix, Prefix, Prefix]  # of a columnar envelope, of a batch, of an Arrow IPC stream
    accept_partial: bool  # whether good lines are written if others are bad
    precision: str | None  # the envelope's word for the unit of its times; None: read from the size of a number
    key: bytes = b""  # the idempotency key in the query; empty without one
    format: str = ""  # of the body, where a path takes several
    roles: Roles | None = None  # of the fields, where a request names them


TargetKey = tuple[bytes | None, ...]
"""The bytes that a target follows from; the first two are the query and the database header."""


class Targets:
    """Targets by the bytes of query and database header, which clients repeat with each request."""

    def __init__(self, precision: str | None, accept_partial: bool = True) -> None:
        """Read database and precision from requests of one kind of path.

        Args:
            precision: the envelope's word where the query names none; None reads it from the size of a number.
            accept_partial: of a target where the query says nothing.
        """
        self._precision = precision
        self._accept_partial = "true" if accept_partial else "false"
        self._clock: Mapping[str, int] = {}
        self._known: dict[TargetKey, Target] = {}

    def follow_clock(self, meta: Mapping[str, int]) -> None:
        """Add this to all envelopes from now on, as `WALWriter.clock_meta` gives it."""
        self._clock = meta
        self._known.clear()

    def of(self, exchange: Exchange) -> Target:
        """Return the target of a request.

        Raises:
            BadPayload: the query is wrong; the text names the parameter.
            NotAllowed: the sender's token is not for the database.
        """
        key = self._key(exchange)
        known = self._known.get(key)
        target = known or self._read(exchange)
        if exchange.databases is not None and target.database not in exchange.databases:
            raise NotAllowed(f"this token is not for the database '{target.database}'")
        if known is None and not target.key and sum(len(part or b"") for part in key) <= _TARGET_BYTES:
            if len(self._known) >= _TARGETS_KEPT:  # otherwise different queries would keep out later ones
                self._known.clear()
            self._known[key] = target
        return target

    def _key(self, exchange: Exchange) -> TargetKey:
        return exchange.query, exchange.headers.get(DATABASE)

    def _read(self, exchange: Exchange) -> Target:
        return self._make(exchange.parameters(), exchange.headers.get(DATABASE))

    def _make(self, parameters: dict[str, str], header: bytes | None) -> Target:
        database = _database(parameters, header)
        precision = self._precision
        if word := parameters.get("precision"):
            if word not in PRECISIONS:
                raise BadPayload(f"query parameter 'precision': {_shown(word)} is not one of {', '.join(PRECISIONS)}")
            precision = PRECISIONS[word]
        partial = parameters.get("accept_partial", self._accept_partial).lower()
        if partial not in ("true", "false"):
            raise BadPayload(f"query parameter 'accept_partial': {_shown(partial)} is neither true nor false")
        meta = {**({} if precision is None else {"precision": precision}), **self._clock}
        word = parameters.get(keys.PARAMETER)
        return Target(
            database,
            (
                envelope_prefix(KIND_COLUMNAR, database, meta),
                envelope_prefix(KIND_BATCH, database, meta),
                envelope_prefix(KIND_ARROW, database, meta),
            ),
            partial == "true",
            precision,
            b"" if word is None else keys.in_query(word),
        )


def key_of(exchange: Exchange, target: Target) -> bytes:
    """Read the idempotency key of a request; empty without one.

    Raises:
        BadPayload: it is no key, or header and query have different ones.
    """
    key = exchange.key
    if key is None:
        return target.key
    key = key or keys.in_header(exchange.headers[keys.HEADER])
    if target.key and target.key != key:
        raise BadPayload(f"header 'idempotency-key' and query parameter '{keys.PARAMETER}' differ: send one of them")
    return key


def check_database(name: str, where: str) -> str:
    """Return the name if it is a valid one.

    Args:
        where: the name's place in the request.

    Raises:
        BadPayload: it is not valid.
    """
    if not is_database_name(name):
        raise BadPayload(f"{where}: {_shown(name)} is no database name; {DATABASE_RULE}")
    return name


def _database(parameters: dict[str, str], header: bytes | None) -> str:
    if header is not None:
        try:
            return check_database(header.decode(), "header 'x-arc-database'")
        except UnicodeDecodeError:
            raise BadPayload(f"header 'x-arc-database': {ascii(header[:80])[1:]} is not UTF-8") from None
    if "db" in parameters:
        return check_database(parameters["db"], "query parameter 'db'")
    if "bucket" in parameters:
        # InfluxDB 2 calls the retention policy `rp` of the database `db` the bucket `db/rp`.
        return check_database(parameters["bucket"].partition("/")[0], "query parameter 'bucket'")
    return DEFAULT_DATABASE


def _shown(text: str) -> str:
    return repr(text if len(text) <= 80 else text[:80] + "…")
