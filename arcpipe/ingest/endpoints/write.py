"""The write endpoints: from a complete request to an entry in the group that is being collected."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Mapping, Sequence
from time import perf_counter
from typing import Final, NamedTuple, TypeVar

from arcpipe.codec.columns import Encoded
from arcpipe.codec.envelope import KIND_ARROW, KIND_BATCH, KIND_COLUMNAR
from arcpipe.codec.messagepack.body import encode
from arcpipe.codec.messagepack.times import TimeRule
from arcpipe.codec.records.roles import Roles
from arcpipe.codec.time_units import UNIT_NS
from arcpipe.counters import LATENCY_BOUNDS_US, MAX_DATABASES, Histogram
from arcpipe.errors import BadPayload, CommitFailed, NotAllowed, PayloadTooLarge, UnknownFormat
from arcpipe.ingest.endpoints.admission import Admission
from arcpipe.ingest.http import responses
from arcpipe.ingest.http.background import Background, Check, ClientGone
from arcpipe.ingest.http.exchange import DATABASE, NO_HEADERS, Exchange
from arcpipe.ingest.http.router import Judge
from arcpipe.ingest.http.turns import TooLong, Turns
from arcpipe.names import DATABASE_RULE, is_database_name
from arcpipe.units import KB
from arcpipe.wal.format import MAX_PAYLOAD_BYTES, Prefix, envelope_prefix
from arcpipe.wal.group_commit import Commit

T = TypeVar("T")

DEFAULT_DATABASE: Final = "default"

# Bytes of an encoded body. Encoding may enlarge a body, and readers of the WAL refuse entries above MAX_PAYLOAD_BYTES.
_MAX_ENCODED_BYTES: Final = MAX_PAYLOAD_BYTES - 4 * KB
_ENCODED_TOO_LARGE: Final = responses.error(
    413, "body_too_large", f"the body needs more than {_MAX_ENCODED_BYTES} bytes of the WAL; send it in parts"
)

# Bytes of a body that is encoded in the loop, if that and the turn so far are short (`TimeBudget`): handing it to a
# thread costs as much as 500 rows. Each step that cannot be interrupted takes a few milliseconds at most.
_INLINE_BYTES: Final = 256 * KB
# Bytes of a body that is encoded in the loop however long the turn has been, if it takes `small_seconds` at most.
_TINY_BYTES: Final = KB

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
# Databases that are counted by name: names cost memory, and anybody may invent them.
_DATABASES_COUNTED: Final = MAX_DATABASES - 1


# Ends of the answer for a group that could not be written: it was cut off again, durably, or that failed, too.
_NOTHING_WRITTEN: Final = "nothing was written"
_MAYBE_WRITTEN: Final = "the records may have been written; a retry may store them twice"


class Target(NamedTuple):
    """The database of a request's records, and its other parameters."""

    database: str
    prefixes: tuple[Prefix, Prefix, Prefix]  # of a columnar envelope, of a batch, of an Arrow IPC stream
    accept_partial: bool  # whether good lines are written if others are bad
    precision: str | None  # the envelope's word for the unit of its times; None: read from the size of a number
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
        if known is None and sum(len(part or b"") for part in key) <= _TARGET_BYTES:
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
        return Target(
            database,
            (
                envelope_prefix(KIND_COLUMNAR, database, meta),
                envelope_prefix(KIND_BATCH, database, meta),
                envelope_prefix(KIND_ARROW, database, meta),
            ),
            partial == "true",
            precision,
        )


class WriteEndpoints:
    """The handlers of MessagePack, and for all write paths the way from an encoded body to its acknowledgement."""

    def __init__(
        self,
        admission: Admission,
        encoding: Background,
        turns: Turns,
        commit: Commit,
        usage: Iterable[tuple[str, Sequence[int]]] = (),
        accept_partial: bool = True,
    ) -> None:
        """Commit through one group commit.

        Args:
            usage: by database, as earlier processes of the slot have counted it.
            accept_partial: whether good lines are written if others are bad, where a request says nothing.
        """
        self._admission = admission
        self._encoding = encoding
        self._turns = turns
        self._commit = commit
        self._accept_partial = accept_partial
        self._clock: Mapping[str, int] = {}  # as envelopes tell it
        self.accepted = 0
        self.refused = 0
        # Requests, records and bytes that are on disk, by database; "" for those beyond the last that has a place.
        self.usage = {database: list(counts) for database, counts in usage}
        # By their kind and the precision of requests that name none.
        self._targets: dict[tuple[type[Targets], str | None], Targets] = {}
        self.ack_us = Histogram(LATENCY_BOUNDS_US)

    def msgpack(self, success: bytes, *, as_arc: bool = False) -> Callable[[Exchange], None]:
        """Make a handler for MessagePack bodies that answers `success` when the entry is on disk.

        Args:
            as_arc: whether times whose unit nobody names are read as Arc reads them.
        """
        rules = {precision: TimeRule(precision, as_arc) for precision in (None, *UNIT_NS)}

        def encode_body(body: bytes, check: Check, target: Target) -> Encoded:
            return encode(body, check, rules[target.precision])

        def settle(exchange: Exchange, target: Target, encoded: Encoded) -> None:
            self.append(exchange, target, encoded, success)

        return self.handler(None, encode_body, settle)

    def handler(
        self,
        precision: str | None,
        encode: Callable[[bytes, Check, Target], T],
        settle: Callable[[Exchange, Target, T], None],
        kind: type[Targets] = Targets,
    ) -> Callable[[Exchange], None]:
        """Make a handler that has a body encoded and gives the outcome to `settle`.

        Args:
            precision: as in `Targets`.
            kind: of the targets.
            encode: raises BadPayload or PayloadTooLarge if nothing of the body can be written.
        """
        targets = self._targets_of(precision, kind)
        turns = self._turns
        check = turns.check
        small_seconds, inline_seconds = turns.budget.small_seconds, turns.budget.inline_seconds
        inline_turn_seconds = turns.budget.inline_turn_seconds

        def handle(exchange: Exchange) -> None:
            try:
                target = self._find(exchange, targets)
            except _Refused as refused:
                self.refuse(exchange, refused.response)
                return
            body = exchange.body
            size = len(body)
            if size <= _TINY_BYTES:
                turns.deadline = exchange.received + small_seconds
            elif size <= _INLINE_BYTES and size <= turns.longest_inline and turns.spent < inline_turn_seconds:
                turns.deadline = exchange.received + inline_seconds
            else:
                self._encode_apart(exchange, target, encode, settle)
                return
            try:
                settle(exchange, target, encode(body, check, target))
            except TooLong:
                turns.longest_inline = size // 2  # in this turn: each attempt costs as much
                turns.charge(small_seconds)
                self._encode_apart(exchange, target, encode, settle)
            except (BadPayload, PayloadTooLarge) as error:
                self._refuse_body(exchange, error)

        return handle

    def judge(self, precision: str | None, kind: type[Targets] = Targets) -> Judge:
        """Make a judge that refuses writes by their heads, before the body comes, as the handler would refuse them."""
        targets = self._targets_of(precision, kind)

        def judge(exchange: Exchange) -> bytes | None:
            try:
                self._find(exchange, targets)
            except _Refused as refused:
                self.refused += 1
                return refused.response
            return None

        return judge

    def _targets_of(self, precision: str | None, kind: type[Targets]) -> Targets:
        return self._targets.setdefault((kind, precision), kind(precision, self._accept_partial))

    def follow_clock(self) -> None:
        """Note in entries while the clock is behind their timestamps. Call it a few times a second."""
        meta = self._commit.writer.clock_meta()
        if meta or self._clock:
            self._clock = meta
            for targets in self._targets.values():
                targets.follow_clock(meta)

    def _find(self, exchange: Exchange, targets: Targets) -> Target:
        """Return the target of a request.

        Raises:
            _Refused: the request is not written.
        """
        refusal = self._admission.refusal()
        if refusal is None:
            try:
                return targets.of(exchange)
            except UnknownFormat as error:
                refusal = responses.error(415, "unsupported_media_type", str(error))
            except BadPayload as error:
                refusal = responses.error(400, "bad_request", str(error))
            except NotAllowed as error:
                refusal = responses.error(403, "forbidden", str(error))
        raise _Refused(refusal)

    def _encode_apart(
        self,
        exchange: Exchange,
        target: Target,
        encode: Callable[[bytes, Check, Target], T],
        settle: Callable[[Exchange, Target, T], None],
    ) -> None:
        """Have a costly body encoded on a thread; `settle` gets the outcome in the loop."""
        body = exchange.body
        outcome: list[T] = []

        def done(error: Exception | None) -> None:
            if isinstance(error, ClientGone):
                exchange.cut_off()
                return
            try:
                if error is not None:
                    raise error
                settle(exchange, target, outcome[0])
            except (BadPayload, PayloadTooLarge) as refused:
                self._refuse_body(exchange, refused)
            except Exception as bug:
                exchange.connection.answer_bug(exchange, bug)

        def work(check: Check) -> None:
            outcome.append(encode(body, check, target))

        self._encoding.add(exchange.connection, len(body), work, done)

    def _refuse_body(self, exchange: Exchange, error: BadPayload | PayloadTooLarge) -> None:
        if isinstance(error, BadPayload):
            self.refuse(exchange, responses.error(400, "bad_request", str(error)))
        else:
            self.refuse(exchange, responses.error(413, "body_too_large", str(error)))

    def append(self, exchange: Exchange, target: Target, encoded: Encoded, answer: bytes) -> None:
        """Add an entry to the group that is being collected; the request gets `answer` when the group is on disk."""
        batch, body, records = encoded
        if len(body) > _MAX_ENCODED_BYTES:
            self.refuse(exchange, _ENCODED_TOO_LARGE)
            return
        exchange.brings = target.database, records, len(exchange.body)
        exchange.body = b""
        exchange.headers = NO_HEADERS  # they take much memory while thousands of small requests wait for a slow disk
        exchange.success = answer
        self._commit.append(target.prefixes[batch], body, records, exchange)

    def _usage_of(self, database: str) -> list[int]:
        """Return the counts of a database. Only databases with records on disk take one of the places."""
        if database not in self.usage and len(self.usage) >= _DATABASES_COUNTED:
            database = ""
        return self.usage.setdefault(database, [0, 0, 0])

    def refuse(self, exchange: Exchange, response: bytes) -> None:
        """Refuse a request of which nothing is written."""
        self.refused += 1
        exchange.answer(response)

    def committed(self, waiters: list[Exchange], error: OSError | None) -> None:
        """Answer all requests of a group: either all were written, or none."""
        if error is None:
            self.accepted += len(waiters)
            observe, now = self.ack_us.observe, perf_counter()
            usage = self.usage
            latest = None
            for exchange in waiters:
                database, records, size = exchange.brings
                if database is not latest:
                    latest = database
                    counts = usage.get(database) or self._usage_of(database)
                counts[0] += 1
                counts[1] += records
                counts[2] += size
                exchange.answer(exchange.success)
                observe(int((now - exchange.received) * 1e6))
            return
        response = write_failure(error)
        for exchange in waiters:
            self.refuse(exchange, response)


class _Refused(Exception):
    """Raised for a request that is not written, with its answer."""

    def __init__(self, response: bytes) -> None:
        super().__init__()
        self.response = response


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


def write_failure(error: OSError) -> bytes:
    """Make the answer to all requests of a group that could not be written: 507 for no space, else 503."""
    what_became = _NOTHING_WRITTEN
    if isinstance(error, CommitFailed) and error.may_have_been_written:
        what_became = _MAYBE_WRITTEN
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        reason = f"the disk of the WAL is full; {what_became}"
        return responses.error(507, "no_space", reason, b"Retry-After: 10\r\n")
    reason = f"the WAL could not be written ({error.strerror or error}); {what_became}"
    return responses.error(503, "log_failure", reason, b"Retry-After: 5\r\n")


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
