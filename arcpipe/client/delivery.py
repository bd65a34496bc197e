"""One batch, tried until it is accepted, refused for good, given up or stopped: always the same key and bytes."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Final, NamedTuple

from arcpipe.client import retry
from arcpipe.client.connections import Connections, NoAnswer
from arcpipe.client.encoding import Stream, compressed
from arcpipe.client.errors import Refusal
from arcpipe.client.options import Node, Options
from arcpipe.client.retry import Failure
from arcpipe.client.routes import Routes

log = logging.getLogger(__name__)

_LINES_BETWEEN: Final = 20  # failures of one batch after the first that pass between two lines of the log


class Message(NamedTuple):
    """What a request sends."""

    key: str
    stream: Stream
    records: int
    body: bytes


class Accepted(NamedTuple):
    """The batch is on the server's disk."""

    was_replayed: bool
    may_be_doubled: bool


class Stopped(Exception):
    """The delivery was stopped; the batch may be at a server, and was not answered."""


class Delivery:
    """Deliver batches, one after another. It belongs to one thread; only `stop` may be called by others."""

    def __init__(
        self,
        nodes: Sequence[Node],
        options: Options,
        watch: Callable[[Failure, float], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepare.

        Args:
            watch: called before each pause with what failed, and the seconds until the next try.

        Raises:
            ClientError: certificates cannot be used.
        """
        self._options = options
        self._watch = watch
        self._clock = clock
        self._connections = Connections(options, any(node.scheme == "https" for node in nodes), clock)
        self._routes = Routes(nodes, options.failover_seconds, clock)
        self._stopped = threading.Event()

    def stop(self) -> None:
        """End the present delivery, and all that would follow."""
        self._stopped.set()
        self._connections.abort()

    def close(self) -> None:
        """Close the connections."""
        self._connections.close()

    def deliver(self, message: Message, may_be_sent: bool = False) -> Accepted | Refusal:
        """Send a batch until there is an answer that counts.

        Args:
            message: what to send.
            may_be_sent: a former process may have sent it.

        Raises:
            Stopped: `stop` was called before.
        """
        route = self._routes.route(message.key, may_be_sent)
        body = compressed(message.body, self._options.compression)
        headers = self._headers(message)
        started = self._clock()
        failures = server_errors = 0
        may_be_written = may_be_sent
        while not self._stopped.is_set():
            node = route.node
            try:
                answer = self._connections.post(node, message.stream.target, headers, body)
            except NoAnswer as error:
                failure = Failure(error.reason, error.may_be_written)
                if not error.may_be_written:
                    self._routes.avoid(node)
            else:
                if retry.is_accepted(answer):
                    return Accepted(retry.was_replayed(answer), route.may_be_doubled)
                server_errors += answer.status == 500
                if retry.is_final(answer, server_errors):
                    # 400 is for the bytes, so an earlier try had the same answer; others say nothing of earlier tries.
                    is_partly_written = retry.is_partly_written(answer) or (may_be_written and answer.status != 400)
                    return _refusal(message, answer.status, retry.refusal_reason(answer), is_partly_written)
                failure = retry.failure_of(answer, datetime.now(UTC))
            failures += 1
            may_be_written = may_be_written or failure.may_be_written
            give_up = self._options.give_up_seconds
            left = None if give_up is None else started + give_up - self._clock()
            if left is not None and left <= 0:
                reason = f"gave up after {give_up:g} s: {failure.reason}"
                return _refusal(message, 0, reason, may_be_written)
            if not route.failed(failure.may_be_written):
                self._pause(message, node, failure, failures, left)
        raise Stopped

    def pause(self, failures: int) -> None:
        """Wait as after a failure that no server has to do with.

        Raises:
            Stopped: `stop` was called.
        """
        if self._stopped.wait(self._pause_seconds(failures, None)):
            raise Stopped

    def _pause_seconds(self, failures: int, retry_after: float | None) -> float:
        options = self._options
        first, longest = options.first_pause_seconds, options.longest_pause_seconds
        return retry.pause_seconds(failures, retry_after, first, longest, random.random())

    def _headers(self, message: Message) -> dict[str, str]:
        headers = {
            "Idempotency-Key": message.key,
            "Content-Type": "application/msgpack"
            if message.stream.format == "msgpack"
            else "text/plain; charset=utf-8",
        }
        if self._options.token:
            headers["Authorization"] = f"Bearer {self._options.token}"
        if self._options.compression != "none":
            headers["Content-Encoding"] = self._options.compression
        return headers

    def _pause(self, message: Message, node: Node, failure: Failure, failures: int, most: float | None) -> None:
        """Wait before the next try: `most` seconds, after which the batch is tried once more and given up."""
        seconds = self._pause_seconds(failures, failure.retry_after_seconds)
        if most is not None:
            seconds = min(seconds, most)
        if failures % _LINES_BETWEEN == 1:
            log.warning(
                "%s took no batch (%s); trying again in %.1f s, for the %s. time, with the same key %s",
                *(node.url, failure.reason, seconds, failures, message.key),
            )
        if self._watch is not None:
            self._watch(failure, seconds)
        self._stopped.wait(seconds)


def _refusal(message: Message, status: int, reason: str, is_partly_written: bool) -> Refusal:
    return Refusal(
        key=message.key,
        database=message.stream.database,
        format=message.stream.format,
        records=message.records,
        status=status,
        reason=reason,
        is_partly_written=is_partly_written,
        body=message.body,
    )
