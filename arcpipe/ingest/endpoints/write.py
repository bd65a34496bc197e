"""The write endpoints: from a complete request to an entry in the group that is being collected."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from time import perf_counter
from typing import Any, Final, TypeVar

from arcpipe.codec.columns import Encoded
from arcpipe.codec.effort import Check
from arcpipe.codec.messagepack.body import encode
from arcpipe.codec.messagepack.times import TimeRule
from arcpipe.codec.time_units import UNIT_NS
from arcpipe.counters import LATENCY_BOUNDS_US, MAX_DATABASES, Histogram
from arcpipe.errors import BadPayload, CommitFailed, NotAllowed, PayloadTooLarge, UnknownFormat, is_full
from arcpipe.ingest.endpoints import idempotency
from arcpipe.ingest.endpoints.admission import Admission
from arcpipe.ingest.endpoints.idempotency import AnyRecentKeys, Claim, recent_keys
from arcpipe.ingest.endpoints.targets import Target, Targets, key_of
from arcpipe.ingest.http import responses
from arcpipe.ingest.http.background import Background, ClientGone
from arcpipe.ingest.http.exchange import NO_HEADERS, Exchange
from arcpipe.ingest.http.router import Judge, TakesView
from arcpipe.ingest.http.turns import TooLong, Turns
from arcpipe.units import KB
from arcpipe.wal.format import MAX_PAYLOAD_BYTES, AnyPrefix, KeyedPrefix, crc32
from arcpipe.wal.group_commit import Commit

log = logging.getLogger(__name__)
T = TypeVar("T")

# Bytes of an encoded body. Encoding may enlarge a body, and readers of the WAL refuse entries above MAX_PAYLOAD_BYTES.
_MAX_ENCODED_BYTES: Final = MAX_PAYLOAD_BYTES - 4 * KB
_ENCODED_TOO_LARGE: Final = responses.error(
    413, "body_too_large", f"the body needs more than {_MAX_ENCODED_BYTES} bytes of the WAL; send it in parts"
)

# Bytes of a body that is encoded in the loop, if that and the turn so far are short (`TimeBudget`): handing it to a
# thread costs as much as 500 rows. Each step that cannot be interrupted takes a few milliseconds at most.
INLINE_BYTES: Final = 256 * KB
COSTLY_INLINE_BYTES: Final = 32 * KB
"""The same for JSON, CSV and protobuf: their longest steps take 0.2 ms for each KB of the worst bodies."""
TINY_BYTES: Final = KB
"""Bytes of a body that is encoded in the loop however long the turn has been, if it takes `small_seconds` at most."""

# Prefixes of entries with keys, by database, parameters, token and length of the key: making one takes 3 µs.
_KEYED_PREFIXES_KEPT: Final = 1024

# Databases that are counted by name: names cost memory, and anybody may invent them.
_DATABASES_COUNTED: Final = MAX_DATABASES - 1


# Ends of the answer for a group that could not be written: it was cut off again, durably, or that failed, too.
_NOTHING_WRITTEN: Final = "nothing was written"
_MAYBE_WRITTEN: Final = "the records may have been written; a retry may store them twice"
# Seconds between two log lines about keys that were sent with other bodies, so that clients cannot fill the disk.
_OTHER_BODIES_LINE_SECONDS: Final = 60.0


def usual_inline_bytes(_target: Target) -> int:
    """Return the bytes of a body that may be encoded in the loop."""
    return INLINE_BYTES


def costly_inline_bytes(_target: Target) -> int:
    """Return the same for formats with long steps."""
    return COSTLY_INLINE_BYTES


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
        recent: AnyRecentKeys | None = None,
    ) -> None:
        """Commit through one group commit.

        Args:
            usage: by database, as earlier processes of the slot have counted it.
            accept_partial: whether good lines are written if others are bad, where a request says nothing.
            recent: the keys that this worker knows; by default it knows none.
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
        # Requests with an idempotency key: written, answered without writing, and of these the ones with other bodies.
        self.keyed = self.replayed = self.other_bodies = 0
        self._recent = recent or recent_keys(0.0)
        self._keyed_prefix = lru_cache(_KEYED_PREFIXES_KEPT)(KeyedPrefix)  # by plain one, token and length
        self._next_line = 0.0  # perf_counter seconds

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
        encode: Callable[[Any, Check, Target], T],
        settle: Callable[[Exchange, Target, T], None],
        kind: type[Targets] = Targets,
        inline_bytes: Callable[[Target], int] = usual_inline_bytes,
        tiny_bytes: int = TINY_BYTES,
    ) -> Callable[[Exchange], None]:
        """Make a handler that has a body encoded and gives the outcome to `settle`.

        Args:
            inline_bytes: returns the bytes of a body that may be encoded in the loop.
            tiny_bytes: of a body that may be encoded there however long the turn has been; 0 where none is that quick.
            precision: as in `Targets`.
            kind: of the targets.
            encode: takes `bytes`, and views if the endpoint takes them; raises BadPayload or PayloadTooLarge if
                nothing of the body can be written.
        """
        targets = self._targets_of(precision, kind)
        turns = self._turns
        check = turns.check
        small_seconds, inline_seconds = turns.budget.small_seconds, turns.budget.inline_seconds
        inline_turn_seconds = turns.budget.inline_turn_seconds
        given_up = -1  # the turn in which a tiny body took too long: others are alike, and may be thousands

        def handle(exchange: Exchange) -> None:
            nonlocal given_up
            try:
                target = self._find(exchange, targets)
                if target.key or (exchange.key is not None and not exchange.key):
                    exchange.key = self._key_of(exchange, target)
            except _Refused as refused:
                self.refuse(exchange, refused.response)
                return
            body = exchange.body
            size = len(body)
            if size <= tiny_bytes and turns.number != given_up:
                turns.deadline = exchange.received + small_seconds
            elif size <= inline_bytes(target) and size <= turns.longest_inline and turns.spent < inline_turn_seconds:
                turns.deadline = exchange.received + inline_seconds
            else:
                self._encode_apart(exchange, target, encode, settle)
                return
            try:
                settle(exchange, target, encode(body, check, target))
            except TooLong:
                turns.longest_inline = size // 2  # in this turn: each attempt costs as much
                if size <= tiny_bytes:
                    given_up = turns.number
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
                self._key_of(exchange, self._find(exchange, targets))
            except _Refused as refused:
                self.refused += 1
                return refused.response
            return None

        return judge

    def tells_of_targets(self, tell: Callable[[Target], bool], kind: type[Targets]) -> TakesView:
        """Make a function that tells something of a request's target; False if the request has none."""
        targets = self._targets_of(None, kind)

        def tells(exchange: Exchange) -> bool:
            try:
                return tell(targets.of(exchange))
            except (UnknownFormat, BadPayload, NotAllowed):  # it is refused later
                return False

        return tells

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

    @staticmethod
    def _key_of(exchange: Exchange, target: Target) -> bytes:
        """Read the idempotency key of a request; empty without one. Raises _Refused."""
        try:
            return key_of(exchange, target)
        except BadPayload as error:
            raise _Refused(responses.error(400, "bad_request", str(error))) from None

    def _encode_apart(
        self,
        exchange: Exchange,
        target: Target,
        encode: Callable[[Any, Check, Target], T],
        settle: Callable[[Exchange, Target, T], None],
    ) -> None:
        """Have a costly body encoded on a thread; `settle` gets the outcome in the loop."""
        body = exchange.body
        outcome: list[T] = []

        def done(error: Exception | None) -> None:
            if isinstance(error, ClientGone):
                exchange.cut_off()
            elif error is not None:  # not raised again: this frame would be in its traceback, and both would be kept
                self._fail(exchange, error)
            else:
                try:
                    settle(exchange, target, outcome[0])
                except Exception as raised:
                    self._fail(exchange, raised)

        def work(check: Check) -> None:
            outcome.append(encode(body, check, target))

        self._encoding.add(exchange.connection, len(body), work, done)

    def _fail(self, exchange: Exchange, error: Exception) -> None:
        if isinstance(error, (BadPayload, PayloadTooLarge)):
            self._refuse_body(exchange, error)
        else:
            exchange.connection.answer_bug(exchange, error)

    def _refuse_body(self, exchange: Exchange, error: BadPayload | PayloadTooLarge) -> None:
        if isinstance(error, BadPayload):
            self.refuse(exchange, responses.error(400, "bad_request", str(error)))
        else:
            self.refuse(exchange, responses.error(413, "body_too_large", str(error)))

    def append(self, exchange: Exchange, target: Target, encoded: Encoded, answer: bytes) -> None:
        """Add an entry to the group that is being collected; the request gets `answer` when the group is on disk."""
        batch, body, records, front = encoded
        if len(body) > _MAX_ENCODED_BYTES:
            self.refuse(exchange, _ENCODED_TOO_LARGE)
            return
        plain = target.prefixes[batch]
        prefix: AnyPrefix = plain
        key = exchange.key
        if key is not None:
            keyed = plain.keyed
            if keyed is None or keyed.token is not exchange.token or keyed.key_bytes != len(key):
                keyed = plain.keyed = self._keyed_prefix(plain, exchange.token, len(key))
            claim = self._recent.claim(keyed.owner, key, body, exchange.received, front)
            if claim is None:
                self.replay(exchange, target, answer, encoded, self._recent.earlier(keyed.owner, key))
                return
            exchange.claim = claim
            exchange.key = b""  # it is in the entry now: its memory is for the next one
            prefix, front = keyed, key + front if front else key
        exchange.brings = target.database, records, len(exchange.body)
        exchange.body = b""
        exchange.headers = NO_HEADERS  # they take much memory while thousands of small requests wait for a slow disk
        exchange.success = answer
        try:
            self._commit.append(prefix, body, records, exchange, front)
        except BaseException:
            if key is not None:
                self._recent.forget([exchange.claim])
            raise

    def replay(self, exchange: Exchange, target: Target, answer: bytes, encoded: Encoded, first: Claim) -> None:
        """Answer a retry of a request that is on disk: as if it were written, which it is not."""
        self.replayed += 1
        size, crc = first[1:]
        own_size = len(encoded.front) + len(encoded.body)
        if own_size != size or crc32(encoded.body, crc32(encoded.front)) != crc:
            self.other_bodies += 1
            now = perf_counter()
            if now >= self._next_line:
                self._next_line = now + _OTHER_BODIES_LINE_SECONDS
                log.warning(
                    "idempotency key %s of database %s came again with another body: %d bytes as encoded, and %d at "
                    "first; the first one counts",
                    *((exchange.key or b"").decode("ascii"), target.database, own_size, size),
                )
        exchange.answer(responses.with_lines(answer, idempotency.REPLAYED))

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
            recent = self._recent
            if recent.claimed != recent.settled and waiters:
                last = waiters[-1]  # groups and their entries are in the order of their claims
                if last.key is None:
                    last = next((exchange for exchange in reversed(waiters) if exchange.key is not None), last)
                if last.key is not None:
                    self.keyed += recent.settle(last.claim)
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
        self._recent.forget([exchange.claim for exchange in waiters if exchange.key is not None])
        response = write_failure(error)
        for exchange in waiters:
            self.refuse(exchange, response)


class _Refused(Exception):
    """Raised for a request that is not written, with its answer."""

    def __init__(self, response: bytes) -> None:
        super().__init__()
        self.response = response


def write_failure(error: OSError) -> bytes:
    """Make the answer to all requests of a group that could not be written: 507 for no space, else 503."""
    what_became = _NOTHING_WRITTEN
    if isinstance(error, CommitFailed) and error.may_have_been_written:
        what_became = _MAYBE_WRITTEN
    if is_full(error):
        reason = f"the disk of the WAL is full; {what_became}"
        return responses.error(507, "no_space", reason, b"Retry-After: 10\r\n")
    reason = f"the WAL could not be written ({error.strerror or error}); {what_became}"
    return responses.error(503, "log_failure", reason, b"Retry-After: 5\r\n")
