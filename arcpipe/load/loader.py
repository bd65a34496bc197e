"""Send the chunks of files, one after another, and tell what became of each."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Protocol

from arcpipe.client.delivery import Accepted, Delivery, Message
from arcpipe.client.errors import Refusal
from arcpipe.errors import ArcpipeError
from arcpipe.load.chunks import BadInput, BadRecord, Chunk
from arcpipe.load.formats import Reader

MAX_BAD: Final = 100
"""Refused records of one file that are told one by one."""

_MAX_REFUSALS: Final = 1000  # of one file: then it is the file that is wrong, and not some of its records
_DIVIDED: Final = (400, 413)  # refused for what is in it: some of its records may be good


class LoadFailed(ArcpipeError):
    """The load ended before its end. To run it again doubles nothing."""


@dataclass(slots=True)
class Result:
    """What became of one file."""

    file: str
    format: str
    digest: str = ""
    records: int = 0
    """Written, now or by an earlier load."""
    replayed: int = 0
    """Of these, known to the server already."""
    refused: int = 0
    chunks: int = 0
    bytes: int = 0
    """Of bodies, before compression."""
    seconds: float = 0.0
    bad: list[BadRecord] = field(default_factory=list)
    may_be_doubled: int = 0
    """Chunks that another node may have, too."""


class Watcher(Protocol):
    """Who hears how it goes."""

    def progressed(self, result: Result, reader: Reader) -> None: ...

    def was_refused(self, result: Result, bad: BadRecord) -> None: ...

    def was_too_large(self, result: Result, reason: str) -> None:
        """Hear that a request was too large for the server, and is sent as two with keys of their own."""


class Pace:
    """At most `rate` records per second, on average from its beginning on; None is as fast as it goes."""

    def __init__(
        self,
        rate: float | None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._rate = rate
        self._clock = clock
        self._sleep = sleep
        self._free_at = clock()

    def wait_for(self, records: int) -> None:
        """Wait until so many more records may be sent."""
        if self._rate is None:
            return
        now = self._clock()
        if self._free_at > now:
            self._sleep(self._free_at - now)
        # Time that nobody used is no reason to hurry later.
        self._free_at = max(self._free_at, now) + records / self._rate


class Loader:
    """Sends chunks through one delivery. Without one it only checks them, as `--dry-run` wants it."""

    def __init__(self, delivery: Delivery | None, pace: Pace, watcher: Watcher) -> None:
        self._delivery = delivery
        self._pace = pace
        self._watcher = watcher

    def load(self, reader: Reader) -> Result:
        """Send a file.

        Raises:
            BadInput: the file cannot be read any further.
            LoadFailed: the server does not take it.
        """
        result = Result(reader.name, reader.plan.format, reader.digest)
        began = time.monotonic()
        try:
            for chunk in reader.chunks():
                self._pace.wait_for(chunk.records)
                if self._delivery is None:
                    self._check(chunk, result)
                else:
                    self._send(self._delivery, reader, chunk, result)
                result.seconds = time.monotonic() - began
                self._watcher.progressed(result, reader)
        except BadInput as error:
            if self._delivery is None or not result.records:
                raise
            raise BadInput(
                f"{error}. {result.records} records before it are written; a changed file is another one, so load only "
                "the rest of it"
            ) from None
        return result

    def _check(self, chunk: Chunk, result: Result) -> None:
        """Count a chunk, and find what the server would refuse as far as it can be told here."""
        body = chunk.body()
        result.chunks += 1
        result.bytes += len(body)
        bad, refused = _bad_lines(chunk)
        result.records += chunk.records - refused
        self._note_bad(result, bad, refused)

    def _send(self, delivery: Delivery, reader: Reader, chunk: Chunk, result: Result) -> None:
        body = chunk.body()
        outcome = delivery.deliver(Message(reader.key(chunk), chunk.stream, chunk.records, body))
        result.chunks += 1
        result.bytes += len(body)
        if isinstance(outcome, Accepted):
            # Of a key that it knows the server does not tell again which lines were bad.
            bad, refused = _bad_lines(chunk) if outcome.was_replayed else ([], 0)
            result.records += chunk.records - refused
            result.replayed += (chunk.records - refused) * outcome.was_replayed
            result.may_be_doubled += outcome.may_be_doubled
            self._note_bad(result, bad, refused)
            return
        if outcome.status not in _DIVIDED:
            raise LoadFailed(f"{reader.name}: {chunk.place}: {_said(outcome)}")
        halves = chunk.halves()
        if halves and outcome.status == 413:
            self._watcher.was_too_large(result, outcome.reason)
        for half in halves:
            self._send(delivery, reader, half, result)
        if halves:
            return
        if outcome.status == 413:
            raise LoadFailed(f"{reader.name}: {chunk.place}: {_said(outcome)}; {_advice(chunk, result)}")
        bad, refused = chunk.bad_records(outcome.reason)
        result.records += chunk.records - refused
        self._note_bad(result, bad, refused)
        if result.refused > _MAX_REFUSALS and result.refused > result.records:
            raise LoadFailed(
                f"{reader.name}: more records are refused than written ({result.refused} of "
                f"{result.refused + result.records}); the last one: {chunk.place}: {outcome.reason}"
            )

    def _note_bad(self, result: Result, bad: list[BadRecord], refused: int) -> None:
        result.refused += refused
        for one in bad:
            if len(result.bad) < MAX_BAD:
                result.bad.append(one)
            self._watcher.was_refused(result, one)


def _bad_lines(chunk: Chunk) -> tuple[list[BadRecord], int]:
    from arcpipe.load.lines import LineChunk

    return chunk.check() if isinstance(chunk, LineChunk) else ([], 0)


def _advice(chunk: Chunk, result: Result) -> str:
    """Say what to do about a request that is too large and cannot be divided."""
    if chunk.records > 1 and not result.records:
        return "lower --batch-bytes"
    advice = "raise server.max_body_mb there and run the same command again"
    if chunk.records > 1:
        advice += f"; with another --batch-bytes the {result.records} records before it would be stored twice"
    return advice


def _said(refusal: Refusal) -> str:
    return f"answered {refusal.status}: {refusal.reason}" if refusal.status else refusal.reason
