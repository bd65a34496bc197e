"""What both clients are made of: the buffer, the thread that sends, what was refused, and the figures.

One thread sends for each client, for the asynchronous one, too: HTTP, TLS, compression and the syncs of the spool would
stall an event loop, and there is one implementation of retries to prove.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from arcpipe.client import encoding
from arcpipe.client.batches import Batch, MemoryStore, Store
from arcpipe.client.buffer import Buffer, Taken
from arcpipe.client.delivery import Accepted, Delivery, Message, Stopped
from arcpipe.client.encoding import Format, Part, Record, Stream
from arcpipe.client.errors import ClientError, Closed, NotSent, Refusal, Refused, SpoolBusy
from arcpipe.client.options import Options, read_urls
from arcpipe.client.retry import Failure
from arcpipe.client.spool import Spool
from arcpipe.units import MB

log = logging.getLogger(__name__)

_END_SECONDS: Final = 5.0  # for the sender's thread to see that it was stopped, once nothing holds it
# Of refusals that are kept for `flush` and `close`; further ones are only counted, and in the log.
_MAX_REFUSALS: Final = 100
_MAX_REFUSED_BYTES: Final = 16 * MB


@dataclass(frozen=True, slots=True)
class Stats:
    """Figures of a client since it was made."""

    accepted_records: int
    """Taken by `write` and its like, and what a former process left in the spool, once that was read."""
    sent_records: int
    refused_records: int
    damaged_records: int
    """In files of the spool that could be read no more. Of those of a former process nobody knows the number."""
    waiting_records: int
    waiting_bytes: int
    sent_batches: int
    replayed_batches: int
    """Known to the server before: an answer was lost on its way."""
    doubled_batches: int
    """Sent to another node while the first one may have them, too."""
    retries: int
    damaged_files: int
    last_error: str


class Core:
    """A client without its calling convention."""

    def __init__(
        self, urls: str | Sequence[str], options: Options, on_refused: Callable[[Refusal], None] | None = None
    ) -> None:
        """Open the spool, if there is one, and start the sender.

        Raises:
            ClientError: an URL, an option or a certificate cannot be used.
            SpoolError: the spool directory cannot be used.
        """
        self.options = options
        self._on_refused = on_refused
        self._delivery = Delivery(read_urls(urls), options, self._note_failure)
        self._spool = None if options.spool is None else Spool(options.spool, options.spool_bytes, options.spool_sync)
        store: Store = MemoryStore(options.memory_bytes) if self._spool is None else self._spool
        self._store = store
        self._lock = threading.Lock()
        self._refusals: list[Refusal] = []
        self._more_refusals = 0
        self._figures = dict.fromkeys(("sent", "refused", "damaged", "batches", "replayed", "doubled", "retries"), 0)
        self._last_error = ""
        self._process = os.getpid()
        self._is_shut = False
        self._thread = threading.Thread(target=self._send, name="arcpipe client", daemon=True)
        try:
            self.buffer = Buffer(options, store)
            self._thread.start()
        except BaseException:
            store.close()
            raise

    # Records

    def parts_of(self, measurement: str, records: Record | Iterable[Record], tags: Sequence[str]) -> Iterable[Part]:
        """Encode one record, or several. Raises BadRecord."""
        if isinstance(records, Mapping):
            return [encoding.encode_record(measurement, records, tags, self.options.precision)]
        return encoding.encode_records(measurement, records, tags, self.options.precision, self.options.batch_records)

    def parts_of_columns(self, measurement: str, columns: Mapping[str, Any], tags: Sequence[str]) -> Iterable[Part]:
        """Encode columns. Raises BadRecord."""
        return encoding.encode_columns(measurement, columns, tags, self.options.precision, self.options.batch_records)

    def stream(self, format_: Format, database: str | None) -> Stream:
        """Return what a batch of this format and database has in common. Raises Closed after a fork."""
        self.check_process()
        precision = self.options.precision
        if format_ == "lines" and precision == "auto":
            precision = "ns"
        name = self.options.database if database is None else database
        encoding.check_database(name)
        return Stream(format_, name, precision)

    # Callers

    @property
    def is_in_sender(self) -> bool:
        """Tell whether `on_refused` calls: nothing is sent meanwhile, so nothing must be waited for."""
        return threading.current_thread() is self._thread

    def check_process(self) -> None:
        """Raise Closed after a fork: the child has no sender, and perhaps locks that nobody opens."""
        if os.getpid() != self._process:
            raise Closed("the client was made by another process: after a fork, make a new one")

    def check_may_wait(self) -> None:
        """Raise ClientError if waiting for the sender would never end; Closed after a fork."""
        self.check_process()
        if self.is_in_sender:
            raise ClientError(
                "on_refused runs in the sender's thread, and flush and close wait for that one: call them elsewhere"
            )

    # Ends

    def take_refusals(self) -> None:
        """Raise Refused if batches were refused since the last call, and no callback heard of them."""
        with self._lock:
            refusals, self._refusals = self._refusals, []
            number = len(refusals) + self._more_refusals
            self._more_refusals = 0
        if refusals:
            first = refusals[0]
            raise Refused(
                f"{number} batches were refused; the first has {first.records} records for {first.database}: "
                f"{first.status} {first.reason}",
                refusals,
            )

    @property
    def is_closed(self) -> bool:
        """Tell whether there is nothing to close: it is closed, or another process made it."""
        return self._is_shut or os.getpid() != self._process

    def shut(self) -> int:
        """Stop the sender, whatever waits, and let go of the spool. Returns the records that were not sent."""
        self._is_shut = True
        self._delivery.stop()
        self._thread.join(self.options.connect_seconds + _END_SECONDS)
        records, _ = self.buffer.waiting()
        self.buffer.fail("the client is closed")
        if not self._thread.is_alive():  # else another process would send what this one may still be sending
            with self._lock:  # of two that close it at once
                self._store.close()
        return records

    def not_sent(self, records: int) -> NotSent:
        """Make the error of a `flush` or `close` whose time was over."""
        rest = "they are in the spool" if self._spool is not None else "no server has said that it has them"
        because = f" ({self._last_error})" if self._last_error else ""
        return NotSent(f"{records} records were not sent in time{because}; {rest}", records)

    def stats(self) -> Stats:
        """Return the figures. Raises Closed after a fork."""
        self.check_process()
        waiting_records, waiting_bytes = self.buffer.waiting()
        with self._lock:
            figures = dict(self._figures)
        done = figures["sent"] + figures["refused"] + figures["damaged"]
        return Stats(
            accepted_records=done + waiting_records,
            sent_records=figures["sent"],
            refused_records=figures["refused"],
            damaged_records=figures["damaged"],
            waiting_records=waiting_records,
            waiting_bytes=waiting_bytes,
            sent_batches=figures["batches"],
            replayed_batches=figures["replayed"],
            doubled_batches=figures["doubled"],
            retries=figures["retries"],
            damaged_files=0 if self._spool is None else self._spool.damaged,
            last_error=self._last_error,
        )

    # The sender

    def _send(self) -> None:
        try:
            while (taken := self.buffer.take()) is not None:
                self._send_one(taken)
        except Stopped:
            pass
        except BaseException as error:
            log.exception("the sender of the client has a bug; nothing more is sent or accepted")
            self.buffer.fail(f"the sender ended by a bug: {error!r}")
        finally:
            self._delivery.close()

    def _send_one(self, taken: Taken) -> None:
        batch = taken.batch
        message = self._sealed(batch)
        if message is None:
            self._count(damaged=batch.records)
            if batch.records:  # they were accepted by this client, and `flush` must not say that they are sent
                self._tell_refusal(_lost(batch))
            self.buffer.finish(taken)
            return
        outcome = self._delivery.deliver(message, batch.may_be_sent)
        if isinstance(outcome, Accepted):
            batch.accepted()
            self._count(
                sent=message.records, batches=1, replayed=int(outcome.was_replayed), doubled=int(outcome.may_be_doubled)
            )
        else:
            batch.refused(outcome)
            self._count(refused=message.records)
            self._tell_refusal(outcome)
        self.buffer.finish(taken)

    def _sealed(self, batch: Batch) -> Message | None:
        """Seal a batch, however often the system has to be asked. Raises Stopped."""
        failures = 0
        while True:
            try:
                return batch.seal()
            except SpoolBusy as error:
                failures += 1
                self._last_error = str(error)
                self._delivery.pause(failures)

    def _tell_refusal(self, refusal: Refusal) -> None:
        log.error(
            "a batch of %s records for %s was refused: %s %s (key %s)",
            *(refusal.records, refusal.database, refusal.status, refusal.reason, refusal.key),
        )
        self._last_error = refusal.reason
        if self._on_refused is None:
            with self._lock:
                kept = sum(len(one.body) for one in self._refusals)
                if not kept or (len(self._refusals) < _MAX_REFUSALS and kept + len(refusal.body) <= _MAX_REFUSED_BYTES):
                    self._refusals.append(refusal)
                else:
                    self._more_refusals += 1
            return
        try:
            self._on_refused(refusal)
        except Exception:
            log.exception("on_refused raised; the sender goes on")

    def _note_failure(self, failure: Failure, seconds: float) -> None:
        self._last_error = failure.reason
        self._count(retries=1)

    def _count(self, **more: int) -> None:
        with self._lock:
            for name, number in more.items():
                self._figures[name] += number


def _lost(batch: Batch) -> Refusal:
    """Return what is told of a batch of this client whose file can be read no more."""
    stream = batch.stream
    reason = "its file in the spool cannot be read; the log says why, and where the file is"
    return Refusal(batch.key, stream.database, stream.format, batch.records, 0, reason, False, b"")
